"""Log pages (SPC-4, LOG SENSE): parameters by code, and what tapefs reads out of them.

Same rules as `tapefs.scsi.data`: `unpack` raises MalformedData and nothing else.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from tapefs.errors import MalformedData

SUPPORTED_PAGES_PAGE: Final = 0x00
WRITE_ERRORS_PAGE: Final = 0x02
READ_ERRORS_PAGE: Final = 0x03
SEQUENTIAL_ACCESS_PAGE: Final = 0x0C
DEVICE_STATISTICS_PAGE: Final = 0x14
VOLUME_STATISTICS_PAGE: Final = 0x17
COMPRESSION_PAGE: Final = 0x1B
TAPE_ALERT_PAGE: Final = 0x2E
TAPE_CAPACITY_PAGE: Final = 0x31
# The same parameters as 1Bh, where LTO drives had them before SSC-4.
OLD_COMPRESSION_PAGE: Final = 0x32

KIB: Final = 1024
MIB: Final = 1024 * KIB

_MEGABYTE: Final = 1_000_000

# What fits a signed 64-bit number, as file systems and databases want it.
_CAPACITY_BYTES_MAX: Final = 2**63 - 1
# ... also when it counts megabytes.
_COUNT_MAX: Final = 2**63 // _MEGABYTE

# Control byte of a parameter: binary format, list parameter.
_BINARY_LIST: Final = 0x03


@dataclass(frozen=True, slots=True)
class LogPage:
    """One log page: parameter code to the parameter's bytes."""

    page: int
    parameters: dict[int, bytes] = field(default_factory=dict)
    subpage: int = 0

    def pack(self) -> bytes:
        body = b"".join(
            code.to_bytes(2, "big") + bytes((_BINARY_LIST, len(value))) + value
            for code, value in self.parameters.items()
        )
        head = bytes((self.page | bool(self.subpage) << 6, self.subpage))
        return head + len(body).to_bytes(2, "big") + body

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> LogPage:
        """A last parameter that was cut short is left out. Raises MalformedData below 4 bytes."""
        raw = bytes(data)
        if len(raw) < 4:
            raise MalformedData(
                f"the drive's log page has {len(raw)} bytes instead of at least 4;"
                " power-cycle the drive and try again"
            )
        rest = raw[4 : 4 + int.from_bytes(raw[2:4], "big")]
        parameters = {}
        while len(rest) >= 4 and len(rest) >= 4 + rest[3]:
            parameters[int.from_bytes(rest[:2], "big")] = rest[4 : 4 + rest[3]]
            rest = rest[4 + rest[3] :]
        return cls(raw[0] & 0x3F, parameters, raw[1] if raw[0] & 0x40 else 0)

    def number(self, code: int) -> int | None:
        """Parameter `code` as unsigned number; None when it is not there or empty."""
        value = self.parameters.get(code)
        return int.from_bytes(value, "big") if value else None

    def count(self, code: int) -> int | None:
        """Parameter `code` as a counter; None also when the drive does not know it.

        Then it is all ones, or larger than anything that can be counted.
        """
        value, number = self.parameters.get(code, b""), self.number(code)
        unknown = number is None or number > _COUNT_MAX or (len(value) > 1 and set(value) == {0xFF})
        return None if unknown else number


@dataclass(frozen=True, slots=True)
class TapeCapacity:
    """What the drive says of the first partition's room, without compression, in bytes."""

    remaining_bytes: int
    total_bytes: int

    def pack(self, unit_bytes: int = MIB) -> bytes:
        """As log page 31h, in units of `unit_bytes` (rounded down)."""
        numbers = {1: self.remaining_bytes, 2: 0, 3: self.total_bytes, 4: 0}
        parameters = {
            code: (value // unit_bytes).to_bytes(4, "big") for code, value in numbers.items()
        }
        return LogPage(TAPE_CAPACITY_PAGE, parameters).pack()

    @classmethod
    def from_page(cls, page: LogPage, unit_bytes: int = MIB) -> TapeCapacity | None:
        """From log page 31h, whose unit the standard leaves open: LTO counts MiB, Sony KiB.

        None when a number is missing or absurd, or the maximum is 0.
        """
        remaining, total = page.number(1), page.number(3)
        if page.page != TAPE_CAPACITY_PAGE or remaining is None or not total:
            return None
        return cls._in(unit_bytes, remaining, total)

    @classmethod
    def from_statistics(cls, page: LogPage) -> TapeCapacity | None:
        """From log page 17h (SSC-4, Volume Statistics), which counts 10^6 bytes.

        None when the drive does not know: numbers of all ones or absurd ones, or no record for
        partition 0.
        """
        total = _partition_megabytes(page.parameters.get(0x0202, b""))
        remaining = _partition_megabytes(page.parameters.get(0x0204, b""))
        if page.page != VOLUME_STATISTICS_PAGE or remaining is None or not total:
            return None
        return cls._in(_MEGABYTE, remaining, total)

    @classmethod
    def _in(cls, unit_bytes: int, remaining: int, total: int) -> TapeCapacity | None:
        """None when no tape has such a length: parameters can be 255 bytes long."""
        most = _CAPACITY_BYTES_MAX // unit_bytes
        if max(remaining, total) > most:
            return None
        return cls(remaining * unit_bytes, total * unit_bytes)


def _partition_megabytes(records: bytes) -> int | None:
    """The number for partition 0 in a parameter made of partition records."""
    while len(records) >= 8 and records[0] >= 7:
        if records[2:4] == b"\0\0":
            number = records[4 : records[0] + 1]
            return None if set(number) == {0xFF} else int.from_bytes(number, "big")
        records = records[records[0] + 1 :]
    return None


def supported_pages(data: bytes | memoryview) -> frozenset[int]:
    """The page codes in log page 00h, which is a list and has no parameters.

    Raises MalformedData below 4 bytes.
    """
    raw = bytes(data)
    if len(raw) < 4:
        raise MalformedData(
            f"the drive's list of log pages has {len(raw)} bytes instead of at least 4;"
            " power-cycle the drive and try again"
        )
    return frozenset(code & 0x3F for code in raw[4 : 4 + int.from_bytes(raw[2:4], "big")])


@dataclass(frozen=True, slots=True)
class ErrorCounters:
    """Log page 02h or 03h (SPC-4, error counters): how hard writing or reading was.

    Counts since the drive was reset or, in many drives, since the cartridge was loaded. None: the
    drive does not count that.
    """

    corrected_count: int | None
    # Blocks that had to be written or read again.
    repeated_count: int | None
    uncorrected_count: int | None

    @classmethod
    def from_page(cls, page: LogPage) -> ErrorCounters:
        """From either page; what is missing or empty stays None."""
        corrected = page.count(3)
        if corrected is None:
            at_once, delayed = page.count(0), page.count(1)
            if at_once is not None or delayed is not None:
                corrected = (at_once or 0) + (delayed or 0)
        return cls(corrected, page.count(2), page.count(6))


@dataclass(frozen=True, slots=True)
class VolumeStatistics:
    """Log page 17h (SSC-4): what the cartridge has been through, as its chip remembers it.

    None: the drive does not say. Bytes are counted in steps of 10^6.
    """

    loads_count: int | None
    unrecovered_write_errors_count: int | None
    unrecovered_read_errors_count: int | None
    written_bytes: int | None
    read_bytes: int | None
    # How often the beginning of the medium went past the head.
    passes_count: int | None

    @classmethod
    def from_page(cls, page: LogPage) -> VolumeStatistics:
        """From page 17h; what is missing or empty stays None."""
        written, read = page.count(0x0010), page.count(0x0011)
        return cls(
            loads_count=page.count(0x0001),
            unrecovered_write_errors_count=page.count(0x0004),
            unrecovered_read_errors_count=page.count(0x0009),
            written_bytes=None if written is None else written * _MEGABYTE,
            read_bytes=None if read is None else read * _MEGABYTE,
            passes_count=page.count(0x0101),
        )


@dataclass(frozen=True, slots=True)
class DeviceStatistics:
    """Log page 14h (SSC-4): the drive's own life. None: the drive does not say."""

    loads_count: int | None
    cleanings_count: int | None
    power_on_h: int | None
    motion_h: int | None
    motion_since_cleaning_h: int | None

    @classmethod
    def from_page(cls, page: LogPage) -> DeviceStatistics:
        """From page 14h; what is missing or empty stays None."""
        return cls(
            loads_count=page.count(0x0000),
            cleanings_count=page.count(0x0001),
            power_on_h=page.count(0x0002),
            motion_h=page.count(0x0003),
            motion_since_cleaning_h=page.count(0x0008),
        )


@dataclass(frozen=True, slots=True)
class CompressionRatios:
    """Log page 1Bh (SSC-4) or 32h: hundredths; 100 is no gain, None or 0 nothing to tell."""

    read_percent: int | None
    write_percent: int | None

    @classmethod
    def from_page(cls, page: LogPage) -> CompressionRatios:
        """From either page."""
        return cls(page.count(0), page.count(1))


def cleaning_requested(page: LogPage) -> bool | None:
    """Whether the drive wants to be cleaned, from log page 0Ch (SSC-4). None: it does not say.

    Unlike a TapeAlert flag this stands until the drive has been cleaned.
    """
    wanted = page.count(0x0100)
    return None if wanted is None else wanted > 0


class AlertSubject(enum.Enum):
    """Whom a TapeAlert flag is about, and so who can do something."""

    MEDIUM = "medium"
    CLEANING = "cleaning"
    DRIVE = "drive"
    # What the operator did, or a state that harms nothing.
    USE = "use"


@dataclass(frozen=True, slots=True)
class TapeAlert:
    """TapeAlert flags, 1 to 64, that stand (SSC-4, TapeAlert log page 2Eh)."""

    flags: frozenset[int] = frozenset()

    def pack(self) -> bytes:
        parameters = {flag: bytes((flag in self.flags,)) for flag in range(1, 65)}
        return LogPage(TAPE_ALERT_PAGE, parameters).pack()

    @classmethod
    def from_page(cls, page: LogPage) -> TapeAlert:
        """The flags of a page 2Eh; codes outside 1 to 64 are ignored."""
        parameters = page.parameters.items()
        return cls(frozenset(c for c, v in parameters if 1 <= c <= 64 and v and v[0] & 1))


def alert_text(flag: int) -> str:
    """What a TapeAlert flag means to an operator; one without a known meaning by number."""
    return _ALERTS[flag][1] if flag in _ALERTS else f"TapeAlert flag {flag}"


def alert_subject(flag: int) -> AlertSubject:
    """Whom a TapeAlert flag is about; one without a known meaning is the drive's."""
    return _ALERTS[flag][0] if flag in _ALERTS else AlertSubject.DRIVE


_MEDIUM, _CLEANING = AlertSubject.MEDIUM, AlertSubject.CLEANING
_DRIVE, _USE = AlertSubject.DRIVE, AlertSubject.USE
# SSC-4, TapeAlert flags.
_ALERTS: Final = {
    1: (_MEDIUM, "the drive has trouble reading"),
    2: (_MEDIUM, "the drive has trouble writing"),
    3: (_MEDIUM, "the drive met an error that it could not recover"),
    4: (_MEDIUM, "the cartridge is unreliable"),
    5: (_MEDIUM, "reading failed: cartridge or drive is faulty"),
    6: (_MEDIUM, "writing failed: cartridge or drive is faulty"),
    7: (_MEDIUM, "the cartridge has reached the end of its life"),
    9: (_USE, "writing was tried on a write-protected cartridge"),
    10: (_USE, "the cartridge cannot be taken out while it is in use"),
    11: (_USE, "a cleaning cartridge is loaded"),
    12: (_USE, "the cartridge has a format that the drive does not know"),
    13: (_MEDIUM, "the cartridge is mechanically damaged"),
    14: (
        _MEDIUM,
        "the cartridge is mechanically damaged: the tape may have to be freed by service",
    ),
    15: (_MEDIUM, "the memory chip of the cartridge failed"),
    16: (_USE, "the cartridge was taken out by force"),
    17: (_USE, "the cartridge is of a kind that this drive can only read"),
    18: (_MEDIUM, "the tape directory is corrupted: searching will be slow"),
    19: (_MEDIUM, "the cartridge nears the end of its life"),
    20: (_CLEANING, "the drive needs cleaning now"),
    21: (_CLEANING, "the drive is due for cleaning"),
    22: (_CLEANING, "the cleaning cartridge is used up"),
    23: (_CLEANING, "the cleaning cartridge is of the wrong kind"),
    24: (_MEDIUM, "the cartridge needs retensioning"),
    26: (_DRIVE, "a cooling fan of the drive failed"),
    27: (_DRIVE, "the drive's power supply failed"),
    28: (_DRIVE, "the drive draws more power than it should"),
    29: (_DRIVE, "the drive is due for maintenance"),
    30: (_DRIVE, "the drive has a hardware fault"),
    31: (_DRIVE, "the drive has a hardware fault and must be power-cycled"),
    32: (_DRIVE, "there is a fault on the interface"),
    33: (_USE, "the cartridge must be ejected and loaded again"),
    36: (_DRIVE, "the drive is too hot or too cold"),
    37: (_DRIVE, "the drive's supply voltage is out of its limits"),
    38: (_DRIVE, "the drive is likely to fail soon"),
    39: (_DRIVE, "the drive wants to be diagnosed"),
    51: (_MEDIUM, "the tape directory was invalid at the last unload"),
    52: (_MEDIUM, "the system area of the tape could not be written"),
    53: (_MEDIUM, "the system area of the tape could not be read"),
    54: (_MEDIUM, "the tape has no readable beginning of data"),
    55: (_DRIVE, "loading failed"),
    56: (_DRIVE, "unloading failed"),
    59: (_MEDIUM, "the integrity of the WORM cartridge is in doubt"),
    60: (_USE, "overwriting was tried on a WORM cartridge"),
}
