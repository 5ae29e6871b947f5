"""What the emulated drive tells about itself as a USB device: its descriptors, to the byte.

The one place for them: the pyusb backend shows these bytes as libusb would, and the USB/IP server
puts them on the wire. Layouts are USB 2.0 §9.6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.usb.bot import INTERFACE_CLASS, INTERFACE_PROTOCOL

if TYPE_CHECKING:
    from typing import Self

    from tapefs.emulator.personality import Personality

IN_ADDRESS: Final = 0x81
OUT_ADDRESS: Final = 0x02
CONFIGURATION_VALUE: Final = 1

DEVICE_TYPE: Final = 1
CONFIGURATION_TYPE: Final = 2
STRING_TYPE: Final = 3
_INTERFACE_TYPE: Final = 4
_ENDPOINT_TYPE: Final = 5

DEVICE: Final = struct.Struct("<BBHBBBBHHHBBBB")
CONFIGURATION: Final = struct.Struct("<BBHBBBBB")
INTERFACE: Final = struct.Struct("<9B")
ENDPOINT: Final = struct.Struct("<BBBBHB")

# pid.codes' number for experiments: no vendor owns it, and nothing in tapefs matches on it.
_VENDOR_ID: Final = 0x1209
_PRODUCT_ID: Final = 0x0001
_RELEASE: Final = 0x0100
_CONTROL_PACKET_BYTES: Final = 64
_BUS_POWERED: Final = 0x80
_POWER_2_MA: Final = 50
_BULK: Final = 2
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

    @classmethod
    def of(cls, personality: Personality, serial: str) -> Self:
        """What a drive of this personality tells; its serial number is SCSI's as well."""
        return cls(personality.vendor, personality.product, serial, speed=personality.usb_speed)

    @property
    def max_packet_bytes(self) -> int:
        """Of a bulk endpoint at this speed (USB 2.0 §5.8.3, USB 3.2 §8.12.1)."""
        return {2: 64, 3: 512}.get(self.speed, 1024)


def device_descriptor(identity: UsbIdentity) -> bytes:
    """The device descriptor; manufacturer, product and serial number are strings 1 to 3."""
    return DEVICE.pack(
        DEVICE.size,
        DEVICE_TYPE,
        0x0200 if identity.speed < 4 else 0x0300,
        0,  # class, subclass and protocol are the interface's
        0,
        0,
        _CONTROL_PACKET_BYTES,
        _VENDOR_ID,
        _PRODUCT_ID,
        _RELEASE,
        1,
        2,
        3 if identity.serial else 0,
        1,
    )


def interface_descriptor(subclass: int) -> bytes:
    """The one Bulk-Only interface, number 0, with two endpoints (BOT 1.0 §4.3)."""
    return INTERFACE.pack(
        INTERFACE.size, _INTERFACE_TYPE, 0, 0, 2, INTERFACE_CLASS, subclass, INTERFACE_PROTOCOL, 0
    )


def endpoint_descriptor(address: int, max_packet_bytes: int) -> bytes:
    """A bulk endpoint."""
    return ENDPOINT.pack(ENDPOINT.size, _ENDPOINT_TYPE, address, _BULK, max_packet_bytes, 0)


def configuration_descriptor(subclass: int, max_packet_bytes: int) -> bytes:
    """The one configuration, with everything that belongs to it, as GET DESCRIPTOR answers it."""
    below = b"".join(
        (
            interface_descriptor(subclass),
            endpoint_descriptor(IN_ADDRESS, max_packet_bytes),
            endpoint_descriptor(OUT_ADDRESS, max_packet_bytes),
        )
    )
    return (
        CONFIGURATION.pack(
            CONFIGURATION.size,
            CONFIGURATION_TYPE,
            CONFIGURATION.size + len(below),
            1,
            CONFIGURATION_VALUE,
            0,
            _BUS_POWERED,
            _POWER_2_MA,
        )
        + below
    )


def string_descriptor(identity: UsbIdentity, index: int) -> bytes | None:
    """String `index`, in US English; string 0 names that language. None where there is none."""
    texts = (identity.manufacturer, identity.product, identity.serial)
    if index > len(texts):
        return None
    body = texts[index - 1].encode("utf-16-le") if index else struct.pack("<H", _ENGLISH)
    return bytes((len(body) + 2, STRING_TYPE)) + body
