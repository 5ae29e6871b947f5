"""A USB bus with one emulated tape drive on it, in the shape of a pyusb backend.

`usb.core.find(backend=EmulatedUsbBackend(server))` and everything that follows works as with
libusb: descriptors, kernel driver, claiming, bulk and control transfers, errors with libusb's
numbers. So the code that talks to a real drive is the very code that is tested. What happens on
the bulk pipes is `BotDevice`'s business; `backend.device` gives access to it.

Data is not copied on its way to the device server; on its way to the host, once, into the host's
buffer. Methods may be called from any thread, as libusb's may.
"""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import usb.backend
import usb.core

from tapefs.emulator import descriptors
from tapefs.emulator.bot_device import BotDevice
from tapefs.emulator.control_pipe import ControlPipe, Setup
from tapefs.emulator.descriptors import IN_ADDRESS, OUT_ADDRESS
from tapefs.emulator.descriptors import UsbIdentity as UsbIdentity
from tapefs.emulator.wire_faults import Babble, Silence, Stall, Unplugged
from tapefs.usb.bot import Pipe

if TYPE_CHECKING:
    import struct
    from array import array
    from collections.abc import Iterator

    from tapefs.emulator.device_server import DeviceServer


@dataclass(eq=False, slots=True)
class _Handle:
    """One open of the device. It dies with the cable that it was opened over."""

    plugged_count: int
    claimed: bool = False


class _Descriptor:
    """Attributes by name, which is all that pyusb wants of a descriptor."""

    def __init__(self, layout: struct.Struct, names: str, data: bytes, **more: object) -> None:
        """`names` are the standard's, as many as `layout` has fields; `more` is libusb's."""
        self.__dict__.update(zip(names.split(), layout.unpack_from(data), strict=True), **more)


class EmulatedUsbBackend(usb.backend.IBackend):  # type: ignore[misc]  # pyusb has no types
    """One bus, one device with one Bulk-Only interface (class 08h, protocol 50h)."""

    def __init__(
        self,
        server: DeviceServer,
        *,
        identity: UsbIdentity | None = None,
        subclass: int = 0x06,
        kernel_driver: bool = False,
    ) -> None:
        """`kernel_driver`: usb-storage holds the interface, and takes it again after a reset."""
        self.identity = identity or UsbIdentity()
        self.device = BotDevice(
            server, subclass=subclass, max_packet_bytes=self.identity.max_packet_bytes
        )
        self._control = ControlPipe(self.device, self.identity)
        self.kernel_driver_active = kernel_driver
        self._has_kernel_driver = kernel_driver
        self._seen_count = self.device.cable.plug_count
        self._owner: _Handle | None = None

    def unplug(self) -> None:
        """Pull the cable: transfers fail with ENODEV, the bus is empty."""
        self.device.unplug()

    def plug_in(self) -> None:
        """Connect the device again. Handles from before stay dead."""
        self.device.plug_in()

    # Enumeration and descriptors.

    def enumerate_devices(self) -> Iterator[str]:
        if self.device.is_found():
            yield "emulated"

    def get_parent(self, _dev: str) -> None:
        return None

    def get_device_descriptor(self, _dev: str) -> _Descriptor:
        return _Descriptor(
            descriptors.DEVICE,
            "bLength bDescriptorType bcdUSB bDeviceClass bDeviceSubClass bDeviceProtocol "
            "bMaxPacketSize0 idVendor idProduct bcdDevice iManufacturer iProduct iSerialNumber "
            "bNumConfigurations",
            descriptors.device_descriptor(self.identity),
            address=self.device.cable.plug_count,
            bus=self.identity.bus,
            port_number=self.identity.ports[-1],
            port_numbers=self.identity.ports,
            speed=self.identity.speed,
        )

    def get_configuration_descriptor(self, _dev: str, config: int) -> _Descriptor:
        _only_first(config)
        return _Descriptor(
            descriptors.CONFIGURATION,
            "bLength bDescriptorType wTotalLength bNumInterfaces bConfigurationValue "
            "iConfiguration bmAttributes bMaxPower",
            descriptors.configuration_descriptor(
                self.device.subclass, self.device.max_packet_bytes
            ),
            extra_descriptors=[],
        )

    def get_interface_descriptor(self, _dev: str, intf: int, alt: int, _config: int) -> _Descriptor:
        _only_first(intf, alt)
        return _Descriptor(
            descriptors.INTERFACE,
            "bLength bDescriptorType bInterfaceNumber bAlternateSetting bNumEndpoints "
            "bInterfaceClass bInterfaceSubClass bInterfaceProtocol iInterface",
            descriptors.interface_descriptor(self.device.subclass),
            extra_descriptors=[],
        )

    def get_endpoint_descriptor(
        self, _dev: str, ep: int, _intf: int, _alt: int, _config: int
    ) -> _Descriptor:
        address = (IN_ADDRESS, OUT_ADDRESS)[ep]
        return _Descriptor(
            descriptors.ENDPOINT,
            "bLength bDescriptorType bEndpointAddress bmAttributes wMaxPacketSize bInterval",
            descriptors.endpoint_descriptor(address, self.device.max_packet_bytes),
            extra_descriptors=[],
            bRefresh=0,
            bSynchAddress=0,
        )

    # Handles, claiming, the kernel's driver.

    def open_device(self, _dev: str) -> _Handle:
        if not self.device.plugged_in:
            raise _no_device()
        self._notice_replug()
        return _Handle(self._seen_count)

    def close_device(self, handle: _Handle) -> None:
        if self._owner is handle:
            self._owner = None

    def get_configuration(self, handle: _Handle) -> int:
        self._alive(handle)
        return 1

    def set_configuration(self, handle: _Handle, _value: int) -> None:
        self._alive(handle)

    def set_interface_altsetting(self, handle: _Handle, _intf: int, _alt: int) -> None:
        self._alive(handle)

    def claim_interface(self, handle: _Handle, _intf: int) -> None:
        self._alive(handle)
        if self.kernel_driver_active or self._owner not in (None, handle):
            raise usb.core.USBError("Resource busy", -6, errno.EBUSY)
        self._owner = handle

    def release_interface(self, handle: _Handle, _intf: int) -> None:
        self._alive(handle)
        if self._owner is handle:
            self._owner = None

    def is_kernel_driver_active(self, handle: _Handle, _intf: int) -> bool:
        self._alive(handle)
        return self.kernel_driver_active

    def detach_kernel_driver(self, handle: _Handle, _intf: int) -> None:
        self._alive(handle)
        self.kernel_driver_active = False

    def attach_kernel_driver(self, handle: _Handle, _intf: int) -> None:
        self._alive(handle)
        if self._owner is not None:
            raise usb.core.USBError("Resource busy", -6, errno.EBUSY)
        self.kernel_driver_active = self._has_kernel_driver

    # Transfers. Timeouts are not waited for: a device that stays silent is known to.

    def bulk_write(
        self, handle: _Handle, _ep: int, _intf: int, data: array[int], _timeout_ms: int
    ) -> int:
        self._alive(handle)
        with _libusb_errors:
            return self.device.bulk_out(_memory(data))

    def bulk_read(
        self, handle: _Handle, _ep: int, _intf: int, buff: array[int], _timeout_ms: int
    ) -> int:
        self._alive(handle)
        with _libusb_errors:
            return self.device.bulk_in(_memory(buff))

    def ctrl_transfer(
        self,
        handle: _Handle,
        request_type: int,
        request: int,
        value: int,
        index: int,
        data: array[int],
        _timeout_ms: int,
    ) -> int:
        self._alive(handle)
        with _libusb_errors:
            answer = self._control.request(Setup(request_type, request, value, index, len(data)))
        count = min(len(answer), len(data))
        memoryview(data)[:count] = answer[:count]
        return count

    def clear_halt(self, handle: _Handle, ep: int) -> None:
        self._alive(handle)
        with _libusb_errors:
            self.device.clear_halt(Pipe.IN if ep == IN_ADDRESS else Pipe.OUT)

    def reset_device(self, handle: _Handle) -> None:
        self._alive(handle)
        with _libusb_errors:
            self.device.port_reset()
        self._owner = None
        self.kernel_driver_active = self._has_kernel_driver

    def _alive(self, handle: _Handle) -> None:
        # A cable that was out in between is not noticed by looking at it now.
        self._notice_replug()
        if not self.device.plugged_in or handle.plugged_count != self._seen_count:
            raise _no_device()

    def _notice_replug(self) -> None:
        """After the cable was in anew, nobody owns the device, and the kernel's driver has it."""
        count = self.device.cable.plug_count
        if count != self._seen_count:
            self._seen_count = count
            self._owner = None
            self.kernel_driver_active = self._has_kernel_driver


class _LibusbErrors:
    """What happened on the wire, in pyusb's exceptions with libusb's and the system's numbers."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, Stall):
            raise usb.core.USBError("Pipe error", -9, errno.EPIPE) from error
        if isinstance(error, Silence):
            raise usb.core.USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT) from error
        if isinstance(error, Babble):
            raise usb.core.USBError("Overflow", -8, errno.EOVERFLOW) from error
        if isinstance(error, Unplugged):
            raise _no_device() from error


_libusb_errors: Final = _LibusbErrors()


def _no_device() -> usb.core.USBError:
    return usb.core.USBError("No such device", -4, errno.ENODEV)


def _only_first(*indexes: int) -> None:
    if any(indexes):
        raise IndexError("there is only one")


def _memory(data: array[int]) -> memoryview:
    """The bytes that libusb would be told of: where `data` says they are."""
    address, length = data.buffer_info()
    if not length:
        return memoryview(b"")
    return memoryview((ctypes.c_char * length).from_address(address)).cast("B")
