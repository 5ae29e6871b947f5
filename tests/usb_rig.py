"""A transport, an emulated wire and a small server behind it, ready to be broken."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import usb.backend
from tape_server import TapeServer

from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.emulator.wire_faults import FaultEffect, WireFault
from tapefs.scsi.cdb import Write6
from tapefs.scsi.sense import Sense, SenseKey
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tapefs.emulator.fault_queue import FaultPoint
    from tapefs.usb.device import UsbEndpoints

NOT_READY = Sense(SenseKey.NOT_READY, 0x04, 0x01)
RECORD_BYTES = 4096
RECORD = array("B", bytes(range(256)) * 16)


class Bus(usb.backend.IBackend):  # type: ignore[misc]  # pyusb has no types
    """Several emulated devices on one bus; the backend's `dev` is one of their backends."""

    def __init__(self, *devices: EmulatedUsbBackend) -> None:
        self.devices = list(devices)
        self._owners: dict[Any, EmulatedUsbBackend] = {}

    def enumerate_devices(self) -> Iterator[Any]:
        yield from (device for device in self.devices if device.device.plugged_in)

    def open_device(self, dev: Any) -> Any:
        handle = dev.open_device("")
        self._owners[handle] = dev
        return handle

    def get_parent(self, _dev: Any) -> None:
        return None


def _of_device(name: str) -> Any:
    return lambda _bus, dev, *words: getattr(dev, name)("", *words)


def _of_handle(name: str) -> Any:
    return lambda bus, handle, *words: getattr(bus._owners[handle], name)(handle, *words)


for _name in ("device", "configuration", "interface", "endpoint"):
    setattr(Bus, f"get_{_name}_descriptor", _of_device(f"get_{_name}_descriptor"))
for _name in (
    *("close_device", "get_configuration", "set_configuration", "set_interface_altsetting"),
    *("claim_interface", "release_interface", "reset_device", "clear_halt", "ctrl_transfer"),
    *("is_kernel_driver_active", "detach_kernel_driver", "attach_kernel_driver"),
    *("bulk_write", "bulk_read"),
):
    setattr(Bus, _name, _of_handle(_name))


class Rig:
    """A transport, the wire and the server behind it."""

    def __init__(self, **backend: Any) -> None:
        self.server = TapeServer()
        self.backend = EmulatedUsbBackend(self.server, **backend)
        self.device = self.backend.device
        self.connect()

    def connect(self) -> None:
        self.endpoints = open_endpoints("usb", self.backend)
        self.transport = BotTransport(self.endpoints, settle_s=0)

    def plan(self, point: FaultPoint, effect: FaultEffect, skip_count: int = 0) -> None:
        self.device.faults.plan(WireFault(point, effect, skip_count=skip_count))

    async def write(self) -> None:
        completion = await self.transport.execute(Write6(RECORD_BYTES), RECORD)
        assert completion.good
        assert completion.residue_bytes == 0


class Unthreaded:
    """Endpoints without the thread: a mock clock and a thread do not go together."""

    def __init__(self, endpoints: UsbEndpoints) -> None:
        self._endpoints = endpoints

    def __getattr__(self, name: str) -> Any:
        return getattr(self._endpoints, name)

    async def run(self, work: Callable[[], Any]) -> Any:
        return work()
