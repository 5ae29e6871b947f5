"""Which command blocks a Bulk-Only device accepts: valid and meaningful ones (BOT 1.0 §6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapefs.scsi.cdb import UnknownCommand, cdb_length_bytes, unpack
from tapefs.usb.bot import (
    ATAPI_CDB_BYTES,
    COMMAND_SIGNATURE,
    TWELVE_BYTE_SUBCLASSES,
    CommandBlock,
    ProtocolError,
)

if TYPE_CHECKING:
    from array import array


def accepted(data: bytes, subclass: int, max_lun: int) -> CommandBlock:
    """The command block in `data`, for a device of this subclass with units 0 to `max_lun`.

    Raises ProtocolError that says what is wrong: length, signature, reserved bits, a logical unit
    that does not exist, or a CDB of a length that does not belong to its operation code or is not
    what an ATAPI packet has.
    """
    block = CommandBlock.unpack(data)
    if block.lun > max_lun:
        raise ProtocolError(f"a command block for LUN {block.lun}, which does not exist")
    count = len(block.cdb)
    if subclass in TWELVE_BYTE_SUBCLASSES and count != ATAPI_CDB_BYTES:
        raise ProtocolError(f"a CDB of {count} bytes for a drive that takes {ATAPI_CDB_BYTES}")
    if count < _natural_bytes(block.cdb):
        raise ProtocolError(f"a CDB of {count} bytes, too few for {block.cdb[0]:02X}h")
    return block


def natural(cdb: bytes) -> bytes:
    """`cdb` without the zeros that pad it for ATAPI."""
    return cdb[: _natural_bytes(cdb)]


def command_name(cdb: bytes) -> str:
    """The standard's name of the command, or its number."""
    try:
        return unpack(cdb).name
    except UnknownCommand:
        return f"command {cdb[0]:02X}h"


def starts_like_command(data: bytes | memoryview | array[int]) -> bool:
    """Whether `data` begins with the signature of a command block."""
    return bytes(data[: len(COMMAND_SIGNATURE)]) == COMMAND_SIGNATURE


def _natural_bytes(cdb: bytes) -> int:
    try:
        return cdb_length_bytes(cdb[0])
    except UnknownCommand:
        return len(cdb)
