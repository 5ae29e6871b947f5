"""The commands of a sequential-access device (SSC-4), without INQUIRY and friends.

The layout of each CDB stands in the clause of the standard that bears its name. What a class
promises stands in `tapefs.scsi.command`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Final

from tapefs.scsi.command import (
    ERASE_TIMEOUT_S,
    REWIND_TIMEOUT_S,
    TRANSFER_TIMEOUT_S,
    Direction,
    InvalidField,
    Motion,
    Plain,
    UnknownCommand,
    be,
)
from tapefs.scsi.wraps import WRAP_REPORT_BYTES

READ_BLOCK_LIMITS_BYTES: Final = 6
MAINTENANCE_IN: Final = 0xA3
_VENDOR_ACTION: Final = 0x1F
_END_OF_WRAP: Final = 0x45


@dataclass(frozen=True, slots=True)
class Rewind(Motion):
    """REWIND (SSC-4): flushes the drive's buffer, then goes to the beginning of partition."""

    name: ClassVar[str] = "REWIND"
    timeout_s = REWIND_TIMEOUT_S
    immediate: bool = False

    def pack(self) -> bytes:
        return bytes((0x01, self.immediate, 0, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class ReadBlockLimits(Plain):
    """READ BLOCK LIMITS (SSC-4), the 6-byte form."""

    name: ClassVar[str] = "READ BLOCK LIMITS"
    direction: ClassVar[Direction] = Direction.IN
    transfer_length_bytes: ClassVar[int] = READ_BLOCK_LIMITS_BYTES

    def pack(self) -> bytes:
        return bytes((0x05, 0, 0, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class Read6(Plain):
    """READ(6) (SSC-4).

    Variable mode: `transfer_length` is the buffer in bytes, one block is read. Fixed mode:
    `transfer_length` counts blocks of `block_bytes`, which the CDB itself does not carry.
    """

    name: ClassVar[str] = "READ(6)"
    direction: ClassVar[Direction] = Direction.IN
    timeout_s = TRANSFER_TIMEOUT_S
    moves_medium = True
    transfer_length: int
    fixed: bool = False
    sili: bool = False
    block_bytes: int = 0

    @property
    def transfer_length_bytes(self) -> int:
        return self.transfer_length * self.block_bytes if self.fixed else self.transfer_length

    def pack(self) -> bytes:
        return bytes((0x08, self.sili << 1 | self.fixed)) + be(self.transfer_length, 3) + b"\0"


@dataclass(frozen=True, slots=True)
class Write6(Plain):
    """WRITE(6) (SSC-4): one block of `transfer_length` bytes, or in fixed mode that many
    blocks of `block_bytes`. Everything behind the write point is logically gone afterwards.
    """

    name: ClassVar[str] = "WRITE(6)"
    direction: ClassVar[Direction] = Direction.OUT
    timeout_s = TRANSFER_TIMEOUT_S
    moves_medium = True
    transfer_length: int
    fixed: bool = False
    block_bytes: int = 0

    @property
    def transfer_length_bytes(self) -> int:
        return self.transfer_length * self.block_bytes if self.fixed else self.transfer_length

    def pack(self) -> bytes:
        return bytes((0x0A, self.fixed)) + be(self.transfer_length, 3) + b"\0"


@dataclass(frozen=True, slots=True)
class WriteFilemarks6(Motion):
    """WRITE FILEMARKS(6) (SSC-4). Not immediate: everything buffered is on the medium when
    it ends good; with `count` 0 that flush is all it does.
    """

    name: ClassVar[str] = "WRITE FILEMARKS(6)"
    timeout_s = TRANSFER_TIMEOUT_S
    count: int
    immediate: bool = False

    def pack(self) -> bytes:
        return bytes((0x10, self.immediate)) + be(self.count, 3) + b"\0"


class SpaceCode(enum.IntEnum):
    """What SPACE counts (SSC-4)."""

    BLOCKS = 0
    FILEMARKS = 1
    SEQUENTIAL_FILEMARKS = 2
    END_OF_DATA = 3
    SETMARKS = 4


@dataclass(frozen=True, slots=True)
class Space6(Motion):
    """SPACE(6) (SSC-4). A negative `count` goes backwards."""

    name: ClassVar[str] = "SPACE(6)"
    code: SpaceCode
    count: int = 0

    def pack(self) -> bytes:
        return bytes((0x11, self.code)) + self.count.to_bytes(3, "big", signed=True) + b"\0"


@dataclass(frozen=True, slots=True)
class Space16(Motion):
    """SPACE(16) (SSC-4): like SPACE(6) with a 64-bit count."""

    name: ClassVar[str] = "SPACE(16)"
    code: SpaceCode
    count: int = 0

    def pack(self) -> bytes:
        count = self.count.to_bytes(8, "big", signed=True)
        return bytes((0x91, self.code, 0, 0)) + count + bytes(4)


@dataclass(frozen=True, slots=True)
class LoadUnload(Motion):
    """LOAD UNLOAD (SSC-4). Unloading flushes the drive's buffer first."""

    name: ClassVar[str] = "LOAD UNLOAD"
    timeout_s = REWIND_TIMEOUT_S
    load: bool
    retension: bool = False
    eot: bool = False
    hold: bool = False
    immediate: bool = False

    def pack(self) -> bytes:
        flags = self.hold << 3 | self.eot << 2 | self.retension << 1 | self.load
        return bytes((0x1B, self.immediate, 0, 0, flags, 0))


@dataclass(frozen=True, slots=True)
class Locate10(Motion):
    """LOCATE(10) (SSC-4): `block` counts records and filemarks from the beginning of the
    partition. `partition` None stays in the current one.
    """

    name: ClassVar[str] = "LOCATE(10)"
    block: int
    partition: int | None = None
    immediate: bool = False

    def pack(self) -> bytes:
        change = self.partition is not None
        head = bytes((0x2B, change << 1 | self.immediate, 0))
        return head + be(self.block, 4) + bytes((0, self.partition or 0, 0))


class LocateDestination(enum.IntEnum):
    """What LOCATE(16)'s identifier names (SSC-4)."""

    OBJECT = 0
    FILE = 1
    END_OF_DATA = 3


@dataclass(frozen=True, slots=True)
class Locate16(Motion):
    """LOCATE(16) (SSC-4): like LOCATE(10) with a 64-bit `block`."""

    name: ClassVar[str] = "LOCATE(16)"
    block: int
    partition: int | None = None
    destination: LocateDestination = LocateDestination.OBJECT
    immediate: bool = False

    def pack(self) -> bytes:
        change = self.partition is not None
        flags = self.destination << 3 | change << 1 | self.immediate
        return bytes((0x92, flags, 0, self.partition or 0)) + be(self.block, 8) + bytes(4)


class PositionForm(enum.IntEnum):
    """Service actions of READ POSITION (SSC-4)."""

    SHORT = 0
    LONG = 6
    EXTENDED = 8


_POSITION_BYTES: Final = {PositionForm.SHORT: 20, PositionForm.LONG: 32, PositionForm.EXTENDED: 32}


@dataclass(frozen=True, slots=True)
class ReadPosition(Plain):
    """READ POSITION (SSC-4). Only the extended form carries an allocation length."""

    name: ClassVar[str] = "READ POSITION"
    direction: ClassVar[Direction] = Direction.IN
    form: PositionForm = PositionForm.SHORT

    @property
    def transfer_length_bytes(self) -> int:
        return _POSITION_BYTES[self.form]

    def pack(self) -> bytes:
        length = self.transfer_length_bytes if self.form is PositionForm.EXTENDED else 0
        return bytes((0x34, self.form, 0, 0, 0, 0, 0)) + be(length, 2) + b"\0"


@dataclass(frozen=True, slots=True)
class ReportDensitySupport(Plain):
    """REPORT DENSITY SUPPORT (SSC-4): of the loaded medium when `media`, else of the drive."""

    name: ClassVar[str] = "REPORT DENSITY SUPPORT"
    direction: ClassVar[Direction] = Direction.IN
    media: bool = False
    allocation_bytes: int = 4 + 52 * 16

    @property
    def transfer_length_bytes(self) -> int:
        return self.allocation_bytes

    def pack(self) -> bytes:
        return bytes((0x44, self.media, 0, 0, 0, 0, 0)) + be(self.allocation_bytes, 2) + b"\0"


@dataclass(frozen=True, slots=True)
class ReadEndOfWrapPosition(Plain):
    """READ END OF WRAP POSITION, all wraps: MAINTENANCE IN of LTO-7 and later (IBM LTO-8 SCSI
    reference; in no edition of SSC).
    """

    name: ClassVar[str] = "READ END OF WRAP POSITION"
    direction: ClassVar[Direction] = Direction.IN
    allocation_bytes: int = WRAP_REPORT_BYTES

    @property
    def transfer_length_bytes(self) -> int:
        return self.allocation_bytes

    def pack(self) -> bytes:
        report_all = 0x02
        head = bytes((MAINTENANCE_IN, _VENDOR_ACTION, _END_OF_WRAP, report_all, 0, 0))
        return head + be(self.allocation_bytes, 4) + bytes(2)

    @classmethod
    def unpack(cls, cdb: bytes) -> ReadEndOfWrapPosition:
        """Raises UnknownCommand for other service actions, InvalidField for the short form."""
        if (cdb[1] & 0x1F, cdb[2]) != (_VENDOR_ACTION, _END_OF_WRAP):
            raise UnknownCommand(f"service action {cdb[1] & 0x1F:#x}/{cdb[2]:#x} is not known")
        if cdb[3:6] != b"\x02\0\0":
            raise InvalidField("only the positions of all wraps can be asked for")
        return cls(int.from_bytes(cdb[6:10], "big"))


@dataclass(frozen=True, slots=True)
class Erase6(Motion):
    """ERASE(6) (SSC-4): from the current position; `long` to the end of the partition."""

    name: ClassVar[str] = "ERASE(6)"
    timeout_s = ERASE_TIMEOUT_S
    long: bool = False
    immediate: bool = False

    def pack(self) -> bytes:
        return bytes((0x19, self.immediate << 1 | self.long, 0, 0, 0, 0))
