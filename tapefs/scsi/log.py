"""Log pages (SPC-4, LOG SENSE): parameters by code, and what tapefs reads out of them.

Same rules as `tapefs.scsi.data`: `unpack` raises MalformedData and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tapefs.errors import MalformedData

TAPE_ALERT_PAGE: Final = 0x2E
TAPE_CAPACITY_PAGE: Final = 0x31
VOLUME_STATISTICS_PAGE: Final = 0x17
SUPPORTED_PAGES_PAGE: Final = 0x00

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What fits a signed 64-bit number, as file systems and databases want it.
_CAPACITY_BYTES_MAX: Final = 2**63 - 1

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
        return cls._in(1_000_000, remaining, total)

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

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the flags mean to an operator; flags without a known meaning by number."""
        return tuple(_ALERTS.get(flag, f"TapeAlert flag {flag}") for flag in sorted(self.flags))


_ALERTS: Final = {
    1: "the drive has trouble reading",
    2: "the drive has trouble writing",
    3: "the drive met an error it could not recover",
    4: "the cartridge is unreliable: copy it to another one",
    5: "reading failed: cartridge or drive is faulty",
    6: "writing failed: cartridge or drive is faulty",
    7: "the cartridge has reached the end of its life",
    9: "writing was tried on a write-protected cartridge",
    10: "the cartridge cannot be taken out while it is in use",
    11: "a cleaning cartridge is loaded",
    12: "the cartridge has a format that the drive does not know",
    15: "the memory chip of the cartridge failed",
    18: "the tape directory is corrupted: searching will be slow",
    19: "the cartridge nears the end of its life",
    20: "the drive needs cleaning now",
    21: "the drive is due for cleaning",
    22: "the cleaning cartridge is used up",
    23: "the cleaning cartridge is of the wrong kind",
    24: "the cartridge needs retensioning",
    30: "the drive has a hardware fault",
    31: "the drive has a hardware fault and must be power-cycled",
    32: "there is a fault on the interface",
    33: "the cartridge must be ejected and loaded again",
    51: "the tape directory was invalid at the last unload",
    52: "the system area of the tape could not be written",
    53: "the system area of the tape could not be read",
    55: "loading failed",
    59: "the integrity of the WORM cartridge is in doubt",
    60: "overwriting was tried on a WORM cartridge",
}
