"""The commands that every SCSI device knows (SPC-4; SPC-2 for reservations).

The layout of each CDB stands in the clause of the standard that bears its name. What a class
promises stands in `tapefs.scsi.command`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Final

from tapefs.scsi.command import (
    SEARCH_TIMEOUT_S,
    TRANSFER_TIMEOUT_S,
    Direction,
    NoData,
    Plain,
    be,
)

INQUIRY_BYTES: Final = 36
REQUEST_SENSE_BYTES: Final = 18


@dataclass(frozen=True, slots=True)
class TestUnitReady(NoData):
    """TEST UNIT READY (SPC-4): good when a medium is loaded and can be accessed."""

    __test__: ClassVar[bool] = False  # not a test class, whatever pytest reads into its name
    name: ClassVar[str] = "TEST UNIT READY"

    def pack(self) -> bytes:
        return bytes(6)


@dataclass(frozen=True, slots=True)
class RequestSense(Plain):
    """REQUEST SENSE (SPC-4), fixed format."""

    name: ClassVar[str] = "REQUEST SENSE"
    direction: ClassVar[Direction] = Direction.IN
    allocation_bytes: int = REQUEST_SENSE_BYTES

    @property
    def transfer_length_bytes(self) -> int:
        return self.allocation_bytes

    def pack(self) -> bytes:
        return bytes((0x03, 0, 0, 0)) + be(self.allocation_bytes, 1) + b"\0"


@dataclass(frozen=True, slots=True)
class Inquiry(Plain):
    """INQUIRY (SPC-4). The standard data is asked for with 36 bytes, never more: many USB
    devices choke on anything else.
    """

    name: ClassVar[str] = "INQUIRY"
    direction: ClassVar[Direction] = Direction.IN
    evpd: bool = False
    page: int = 0
    allocation_bytes: int = INQUIRY_BYTES

    @property
    def transfer_length_bytes(self) -> int:
        return self.allocation_bytes

    def pack(self) -> bytes:
        return bytes((0x12, self.evpd, self.page)) + be(self.allocation_bytes, 2) + b"\0"


@dataclass(frozen=True, slots=True)
class ModeSelect6(Plain):
    """MODE SELECT(6) (SPC-4), never saving pages."""

    name: ClassVar[str] = "MODE SELECT(6)"
    direction: ClassVar[Direction] = Direction.OUT
    timeout_s = TRANSFER_TIMEOUT_S
    parameter_list_bytes: int
    page_format: bool = True

    @property
    def transfer_length_bytes(self) -> int:
        return self.parameter_list_bytes

    def pack(self) -> bytes:
        length = be(self.parameter_list_bytes, 1)
        return bytes((0x15, self.page_format << 4, 0, 0)) + length + b"\0"


@dataclass(frozen=True, slots=True)
class ModeSelect10(Plain):
    """MODE SELECT(10) (SPC-4), never saving pages."""

    name: ClassVar[str] = "MODE SELECT(10)"
    direction: ClassVar[Direction] = Direction.OUT
    timeout_s = TRANSFER_TIMEOUT_S
    parameter_list_bytes: int
    page_format: bool = True

    @property
    def transfer_length_bytes(self) -> int:
        return self.parameter_list_bytes

    def pack(self) -> bytes:
        head = bytes((0x55, self.page_format << 4, 0, 0, 0, 0, 0))
        return head + be(self.parameter_list_bytes, 2) + b"\0"


class PageControl(enum.IntEnum):
    """Which values MODE SENSE returns (SPC-4)."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


@dataclass(frozen=True, slots=True)
class ModeSense6(Plain):
    """MODE SENSE(6) (SPC-4). Page 0 with 12 bytes asks for header and block descriptor."""

    name: ClassVar[str] = "MODE SENSE(6)"
    direction: ClassVar[Direction] = Direction.IN
    page: int = 0
    subpage: int = 0
    allocation_bytes: int = 12
    control: PageControl = PageControl.CURRENT
    no_block_descriptor: bool = False

    @property
    def transfer_length_bytes(self) -> int:
        return self.allocation_bytes

    def pack(self) -> bytes:
        page = self.control << 6 | self.page
        head = bytes((0x1A, self.no_block_descriptor << 3, page, self.subpage))
        return head + be(self.allocation_bytes, 1) + b"\0"


@dataclass(frozen=True, slots=True)
class ModeSense10(Plain):
    """MODE SENSE(10) (SPC-4). Page 0 with 16 bytes asks for header and block descriptor."""

    name: ClassVar[str] = "MODE SENSE(10)"
    direction: ClassVar[Direction] = Direction.IN
    page: int = 0
    subpage: int = 0
    allocation_bytes: int = 16
    control: PageControl = PageControl.CURRENT
    no_block_descriptor: bool = False

    @property
    def transfer_length_bytes(self) -> int:
        return self.allocation_bytes

    def pack(self) -> bytes:
        page = self.control << 6 | self.page
        head = bytes((0x5A, self.no_block_descriptor << 3, page, self.subpage, 0, 0, 0))
        return head + be(self.allocation_bytes, 2) + b"\0"


@dataclass(frozen=True, slots=True)
class PreventAllowMediumRemoval(NoData):
    """PREVENT ALLOW MEDIUM REMOVAL (SPC-4)."""

    name: ClassVar[str] = "PREVENT ALLOW MEDIUM REMOVAL"
    prevent: bool

    def pack(self) -> bytes:
        return bytes((0x1E, 0, 0, 0, self.prevent, 0))


class LogControl(enum.IntEnum):
    """Which values LOG SENSE returns (SPC-4)."""

    THRESHOLD = 0
    CUMULATIVE = 1
    DEFAULT_THRESHOLD = 2
    DEFAULT_CUMULATIVE = 3


@dataclass(frozen=True, slots=True)
class LogSense(Plain):
    """LOG SENSE (SPC-4). Reading some pages clears them, TapeAlert (2Eh) for one."""

    name: ClassVar[str] = "LOG SENSE"
    direction: ClassVar[Direction] = Direction.IN
    page: int
    subpage: int = 0
    allocation_bytes: int = 1024
    control: LogControl = LogControl.CUMULATIVE
    parameter: int = 0

    @property
    def transfer_length_bytes(self) -> int:
        return self.allocation_bytes

    def pack(self) -> bytes:
        head = bytes((0x4D, 0, self.control << 6 | self.page, self.subpage, 0))
        return head + be(self.parameter, 2) + be(self.allocation_bytes, 2) + b"\0"


@dataclass(frozen=True, slots=True)
class LogSelect(Plain):
    """LOG SELECT (SPC-4). `reset` sets the page's counters to their defaults."""

    name: ClassVar[str] = "LOG SELECT"
    direction: ClassVar[Direction] = Direction.OUT
    page: int = 0
    subpage: int = 0
    parameter_list_bytes: int = 0
    reset: bool = False
    control: LogControl = LogControl.CUMULATIVE

    @property
    def transfer_length_bytes(self) -> int:
        return self.parameter_list_bytes

    def pack(self) -> bytes:
        page = self.control << 6 | self.page
        head = bytes((0x4C, self.reset << 1, page, self.subpage, 0, 0, 0))
        return head + be(self.parameter_list_bytes, 2) + b"\0"


@dataclass(frozen=True, slots=True)
class ReadAttribute(Plain):
    """READ ATTRIBUTE (SPC-4), service action 0: values from attribute `first` on."""

    name: ClassVar[str] = "READ ATTRIBUTE"
    direction: ClassVar[Direction] = Direction.IN
    first: int = 0
    partition: int = 0
    allocation_bytes: int = 4096

    @property
    def transfer_length_bytes(self) -> int:
        return self.allocation_bytes

    def pack(self) -> bytes:
        head = bytes((0x8C, 0, 0, 0, 0, 0, 0, self.partition))
        return head + be(self.first, 2) + be(self.allocation_bytes, 4) + bytes(2)


@dataclass(frozen=True, slots=True)
class WriteAttribute(Plain):
    """WRITE ATTRIBUTE (SPC-4). `write_through`: on the cartridge's memory before it ends."""

    name: ClassVar[str] = "WRITE ATTRIBUTE"
    direction: ClassVar[Direction] = Direction.OUT
    parameter_list_bytes: int
    partition: int = 0
    write_through: bool = True

    @property
    def transfer_length_bytes(self) -> int:
        return self.parameter_list_bytes

    def pack(self) -> bytes:
        head = bytes((0x8D, self.write_through, 0, 0, 0, 0, 0, self.partition, 0, 0))
        return head + be(self.parameter_list_bytes, 4) + bytes(2)


@dataclass(frozen=True, slots=True)
class ReportLuns(Plain):
    """REPORT LUNS (SPC-4). tapefs never sends it over USB, where it upsets devices."""

    name: ClassVar[str] = "REPORT LUNS"
    direction: ClassVar[Direction] = Direction.IN
    allocation_bytes: int = 16
    select: int = 0

    @property
    def transfer_length_bytes(self) -> int:
        return self.allocation_bytes

    def pack(self) -> bytes:
        head = bytes((0xA0, 0, self.select, 0, 0, 0))
        return head + be(self.allocation_bytes, 4) + bytes(2)


@dataclass(frozen=True, slots=True)
class Reserve6(NoData):
    """RESERVE(6) (SPC-2)."""

    name: ClassVar[str] = "RESERVE(6)"

    def pack(self) -> bytes:
        return bytes((0x16, 0, 0, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class Release6(NoData):
    """RELEASE(6) (SPC-2)."""

    name: ClassVar[str] = "RELEASE(6)"

    def pack(self) -> bytes:
        return bytes((0x17, 0, 0, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class SendDiagnostic(NoData):
    """SEND DIAGNOSTIC (SPC-4) without parameters: the drive's default self test."""

    name: ClassVar[str] = "SEND DIAGNOSTIC"
    timeout_s = SEARCH_TIMEOUT_S
    moves_medium = True
    self_test: bool = True

    def pack(self) -> bytes:
        return bytes((0x1D, self.self_test << 2, 0, 0, 0, 0))
