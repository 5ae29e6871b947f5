"""A transport, an emulated wire and a small server behind it, ready to be broken."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from tape_server import TapeServer

from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.emulator.wire_faults import FaultEffect, WireFault
from tapefs.scsi.cdb import Write6
from tapefs.scsi.sense import Sense, SenseKey
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.emulator.fault_queue import FaultPoint
    from tapefs.usb.device import UsbEndpoints

NOT_READY = Sense(SenseKey.NOT_READY, 0x04, 0x01)
RECORD_BYTES = 4096
RECORD = array("B", bytes(range(256)) * 16)


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
