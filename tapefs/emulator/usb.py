"""A USB bus with one emulated tape drive on it, in the shape of a pyusb backend.

`usb.core.find(backend=EmulatedUsbBackend(server))` and everything that follows works as with
libusb: descriptors, kernel driver, claiming, bulk and control transfers, errors with libusb's
numbers. So the code that talks to a real drive is the very code that is tested. What happens on
the bulk pipes is `BotDevice`'s business; `backend.device` gives access to it.

Data is not copied on its way to the device server; on its way to the host, once, into the host's
buffer. Methods may be called from any thread, as libusb's may.
"""

from __future__ import annotations

import errno
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import usb.backend
import usb.core

from tapefs.emulator.bot_device import BotDevice
from tapefs.emulator.bot_device import DeviceServer as DeviceServer
from tapefs.emulator.wire_faults import Babble, Silence, Stall, Unplugged
from tapefs.usb.bot import INTERFACE_CLASS, INTERFACE_PROTOCOL, Pipe

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

IN_ADDRESS: Final = 0x81
OUT_ADDRESS: Final = 0x02

# pid.codes' number for experiments: no vendor owns it, and nothing in tapefs matches on it.
_VENDOR_ID: Final = 0x1209
_PRODUCT_ID: Final = 0x0001
_BULK: Final = 2
_CLASS_RESET: Final = (0x21, 0xFF)
_GET_MAX_LUN: Final = (0xA1, 0xFE)
_GET_DESCRIPTOR: Final = (0x80, 0x06)
_STRING_TYPE: Final = 3
_ENGLISH: Final = 0x0409


@dataclass(frozen=True, slots=True)
class UsbIdentity:
    """What the bus tells about the device. `speed` is libusb's number: 2 full, 3 high, 4 super."""

    manufacturer: str = "tapefs"
    product: str = "Emulated tape drive"
    serial: str = "TAPEFS000001"
    bus: int = 1
    ports: tuple[int, ...] = (1,)
    speed: int = 3

    @property
    def max_packet_bytes(self) -> int:
        """Of a bulk endpoint at this speed (USB 2.0 §5.8.3, USB 3.2 §8.12.1)."""
        return {2: 64, 3: 512}.get(self.speed, 1024)


@dataclass(eq=False, slots=True)
class _Handle:
    """One open of the device. It dies with the cable that it was opened over."""

    plugged_count: int
    claimed: bool = False


class _Descriptor:
    """Attributes by name, which is all that pyusb wants of a descriptor."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


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
        self.kernel_driver_active = kernel_driver
        self._has_kernel_driver = kernel_driver
        self._plugged_count = 1
        self._owner: _Handle | None = None

    def unplug(self) -> None:
        """Pull the cable: transfers fail with ENODEV, the bus is empty."""
        self.device.unplug()
        self._owner = None

    def plug_in(self) -> None:
        """Connect the device again. Handles from before stay dead."""
        self._plugged_count += 1
        self.kernel_driver_active = self._has_kernel_driver
        self.device.plug_in()

    # Enumeration and descriptors.

    def enumerate_devices(self) -> Iterator[str]:
        if self.device.plugged_in:
            yield "emulated"

    def get_parent(self, _dev: str) -> None:
        return None

    def get_device_descriptor(self, _dev: str) -> _Descriptor:
        return _Descriptor(
            bLength=18,
            bDescriptorType=1,
            bcdUSB=0x0200 if self.identity.speed < 4 else 0x0300,
            bDeviceClass=0,
            bDeviceSubClass=0,
            bDeviceProtocol=0,
            bMaxPacketSize0=64,
            idVendor=_VENDOR_ID,
            idProduct=_PRODUCT_ID,
            bcdDevice=0x0100,
            iManufacturer=1,
            iProduct=2,
            iSerialNumber=3 if self.identity.serial else 0,
            bNumConfigurations=1,
            address=self._plugged_count,
            bus=self.identity.bus,
            port_number=self.identity.ports[-1],
            port_numbers=self.identity.ports,
            speed=self.identity.speed,
        )

    def get_configuration_descriptor(self, _dev: str, config: int) -> _Descriptor:
        _only_first(config)
        return _Descriptor(
            bLength=9,
            bDescriptorType=2,
            wTotalLength=32,
            bNumInterfaces=1,
            bConfigurationValue=1,
            iConfiguration=0,
            bmAttributes=0x80,
            bMaxPower=50,
            extra_descriptors=[],
        )

    def get_interface_descriptor(self, _dev: str, intf: int, alt: int, _config: int) -> _Descriptor:
        _only_first(intf, alt)
        return _Descriptor(
            bLength=9,
            bDescriptorType=4,
            bInterfaceNumber=0,
            bAlternateSetting=0,
            bNumEndpoints=2,
            bInterfaceClass=INTERFACE_CLASS,
            bInterfaceSubClass=self.device.subclass,
            bInterfaceProtocol=INTERFACE_PROTOCOL,
            iInterface=0,
            extra_descriptors=[],
        )

    def get_endpoint_descriptor(
        self, _dev: str, ep: int, _intf: int, _alt: int, _config: int
    ) -> _Descriptor:
        return _Descriptor(
            bLength=7,
            bDescriptorType=5,
            bEndpointAddress=(IN_ADDRESS, OUT_ADDRESS)[ep],
            bmAttributes=_BULK,
            wMaxPacketSize=self.device.max_packet_bytes,
            bInterval=0,
            bRefresh=0,
            bSynchAddress=0,
            extra_descriptors=[],
        )

    # Handles, claiming, the kernel's driver.

    def open_device(self, _dev: str) -> _Handle:
        if not self.device.plugged_in:
            raise _no_device()
        return _Handle(self._plugged_count)

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
        with _libusb_errors():
            return self.device.bulk_out(data)

    def bulk_read(
        self, handle: _Handle, _ep: int, _intf: int, buff: array[int], _timeout_ms: int
    ) -> int:
        self._alive(handle)
        with _libusb_errors(), memoryview(buff) as into:
            return self.device.bulk_in(into)

    def ctrl_transfer(
        self,
        handle: _Handle,
        request_type: int,
        request: int,
        value: int,
        _index: int,
        data: array[int],
        _timeout_ms: int,
    ) -> int:
        self._alive(handle)
        with _libusb_errors():
            if (request_type, request) == _CLASS_RESET:
                self.device.class_reset()
                return 0
            if (request_type, request) == _GET_MAX_LUN:
                answer = b"\0"
            elif (request_type, request) == _GET_DESCRIPTOR and value >> 8 == _STRING_TYPE:
                answer = self._string(value & 0xFF)
            else:
                raise Stall  # what a device does with requests that it does not know
        count = min(len(answer), len(data))
        memoryview(data)[:count] = answer[:count]
        return count

    def clear_halt(self, handle: _Handle, ep: int) -> None:
        self._alive(handle)
        with _libusb_errors():
            self.device.clear_halt(Pipe.IN if ep == IN_ADDRESS else Pipe.OUT)

    def reset_device(self, handle: _Handle) -> None:
        self._alive(handle)
        with _libusb_errors():
            self.device.port_reset()
        self._owner = None
        self.kernel_driver_active = self._has_kernel_driver

    def _string(self, index: int) -> bytes:
        texts = (self.identity.manufacturer, self.identity.product, self.identity.serial)
        if index > len(texts):
            raise Stall
        body = texts[index - 1].encode("utf-16-le") if index else struct.pack("<H", _ENGLISH)
        return bytes((len(body) + 2, _STRING_TYPE)) + body

    def _alive(self, handle: _Handle) -> None:
        if not self.device.plugged_in or handle.plugged_count != self._plugged_count:
            raise _no_device()


@contextmanager
def _libusb_errors() -> Iterator[None]:
    """What happened on the wire, in pyusb's exceptions with libusb's and the system's numbers."""
    try:
        yield
    except Stall as exc:
        raise usb.core.USBError("Pipe error", -9, errno.EPIPE) from exc
    except Silence as exc:
        raise usb.core.USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT) from exc
    except Babble as exc:
        raise usb.core.USBError("Overflow", -8, errno.EOVERFLOW) from exc
    except Unplugged as exc:
        raise _no_device() from exc


def _no_device() -> usb.core.USBError:
    return usb.core.USBError("No such device", -4, errno.ENODEV)


def _only_first(*indexes: int) -> None:
    if any(indexes):
        raise IndexError("there is only one")
