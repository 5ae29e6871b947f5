"""USB/IP 1.1.1 as Linux speaks it: packets and dataclasses, no I/O.

Written after Documentation/usb/usbip_protocol.rst of Linux. All numbers are big-endian; statuses
are negated Linux error numbers, whatever system this runs on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.emulator import descriptors

if TYPE_CHECKING:
    from tapefs.emulator.descriptors import UsbIdentity

VERSION: Final = 0x0111
DEFAULT_PORT: Final = 3240

LIST_REQUEST: Final = 0x8005
IMPORT_REQUEST: Final = 0x8003
_REPLY_MASK: Final = 0x7FFF

STATUS_OK: Final = 0
STATUS_BUSY: Final = 2
STATUS_NO_DEVICE: Final = 4

OPERATION: Final = struct.Struct(">HHI")
BUS_ID_BYTES: Final = 32
_DEVICE: Final = struct.Struct(">256s32sIIIHHH6B")
_INTERFACE: Final = struct.Struct(">BBBx")
_COUNT: Final = struct.Struct(">I")

SUBMIT: Final = 1
UNLINK: Final = 2
_SUBMIT_REPLY: Final = 3
_UNLINK_REPLY: Final = 4
URB_HEADER_BYTES: Final = 48
_BASIC: Final = struct.Struct(">5I")
_SUBMIT: Final = struct.Struct(">Iiiii8s")
_SUBMIT_ANSWER: Final = struct.Struct(">5I5i8x")
_UNLINK_ANSWER: Final = struct.Struct(">5Ii24x")
_DIRECTION_IN: Final = 1

# More than any tape record, rounded up to whole packets.
TRANSFER_BYTES_MAX: Final = 16 * 1024 * 1024

URB_SHORT_NOT_OK: Final = 0x01
URB_NO_INTERRUPT: Final = 0x80

EPIPE: Final = -32
EOVERFLOW: Final = -75
ECONNRESET: Final = -104
EREMOTEIO: Final = -121

# The only device there is: bus 1, device 2, as on a machine whose root hub is device 1.
BUS_ID: Final = "1-1"
_BUS: Final = 1
_ADDRESS: Final = 2
DEVICE_ID: Final = _BUS << 16 | _ADDRESS

# libusb's speeds as Linux counts them.
_SPEEDS: Final = {2: 2, 3: 3}


class UsbipError(Exception):
    """The other end does not speak USB/IP, or asks for what this end does not do."""


@dataclass(frozen=True, slots=True)
class Submit:
    """USBIP_CMD_SUBMIT without the data that follows when the direction is out."""

    sequence: int
    endpoint: int
    is_in: bool
    flags: int
    length_bytes: int
    setup: bytes


@dataclass(frozen=True, slots=True)
class Unlink:
    """USBIP_CMD_UNLINK: forget the transfer `victim` if it has not ended."""

    sequence: int
    victim: int


def unpack_urb(data: bytes | bytearray | memoryview) -> Submit | Unlink:
    """The command in a header of 48 bytes. Raises UsbipError for what cannot be."""
    command, sequence, device_id, direction, endpoint = _BASIC.unpack_from(data)
    if command == UNLINK:
        return Unlink(sequence, _COUNT.unpack_from(data, _BASIC.size)[0])
    if command != SUBMIT:
        raise UsbipError(f"command {command} is unknown")
    flags, length_bytes, _, packets, _, setup = _SUBMIT.unpack_from(data, _BASIC.size)
    if device_id != DEVICE_ID or endpoint > 0x0F or direction > _DIRECTION_IN:
        raise UsbipError(f"there is no endpoint {endpoint} of device {device_id:#x}")
    if packets not in (0, -1):
        raise UsbipError("isochronous transfers are not for tape drives")
    if not 0 <= length_bytes <= TRANSFER_BYTES_MAX:
        raise UsbipError(f"a transfer of {length_bytes} bytes is too long")
    return Submit(sequence, endpoint, direction == _DIRECTION_IN, flags, length_bytes, setup)


def pack_submit_answer(sequence: int, status: int, actual_bytes: int) -> bytes:
    """USBIP_RET_SUBMIT; the data follow when the direction was in."""
    return _SUBMIT_ANSWER.pack(_SUBMIT_REPLY, sequence, 0, 0, 0, status, actual_bytes, 0, 0, 0)


def pack_unlink_answer(sequence: int, status: int) -> bytes:
    """USBIP_RET_UNLINK: `status` is ECONNRESET when the transfer was forgotten, else 0."""
    return _UNLINK_ANSWER.pack(_UNLINK_REPLY, sequence, 0, 0, 0, status)


def unpack_operation(data: bytes | bytearray | memoryview) -> int:
    """The code of an operation's first 8 bytes. Raises UsbipError for another version."""
    version, code, _ = OPERATION.unpack(data)
    if version != VERSION:
        raise UsbipError(f"USB/IP version {version:#06x} is not spoken here, only {VERSION:#06x}")
    return int(code)


def pack_list_reply(identity: UsbIdentity, subclass: int, *, free: bool) -> bytes:
    """OP_REP_DEVLIST: the drive, unless another host has it."""
    head = OPERATION.pack(VERSION, LIST_REQUEST & _REPLY_MASK, STATUS_OK) + _COUNT.pack(free)
    if not free:
        return head
    _, _, _, _, _, *interface, _ = descriptors.INTERFACE.unpack(
        descriptors.interface_descriptor(subclass)
    )
    return head + _pack_device(identity) + _INTERFACE.pack(*interface)


def pack_import_reply(identity: UsbIdentity, status: int) -> bytes:
    """OP_REP_IMPORT: the drive where `status` is STATUS_OK."""
    head = OPERATION.pack(VERSION, IMPORT_REQUEST & _REPLY_MASK, status)
    return head + _pack_device(identity) if status == STATUS_OK else head


def _pack_device(identity: UsbIdentity) -> bytes:
    _, _, _, *kind, _, vendor, product, release, _, _, _, configurations = (
        descriptors.DEVICE.unpack(descriptors.device_descriptor(identity))
    )
    return _DEVICE.pack(
        f"/tapefs/{BUS_ID}".encode(),
        BUS_ID.encode(),
        _BUS,
        _ADDRESS,
        _SPEEDS[identity.speed],
        vendor,
        product,
        release,
        *kind,
        descriptors.CONFIGURATION_VALUE,
        configurations,
        1,
    )
