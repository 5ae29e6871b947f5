"""Sense data (SPC-4, "Sense data"): what a device says after CHECK CONDITION, bytes to fields."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from tapefs.errors import MalformedData

FIXED_BYTES: Final = 18
_SIGN_32: Final = 1 << 31


class SenseKey(enum.IntEnum):
    """SPC-4 sense keys."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    RESERVED = 0xC
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


@dataclass(frozen=True, slots=True)
class Sense:
    """One sense report.

    `information` is None unless the VALID bit stood. It is signed: a read of a block longer than
    the buffer gives a negative number. `key_specific` holds the three sense-key-specific bytes
    when their SKSV bit stood. `deferred`: about an earlier command; the one that got it was not
    executed.
    """

    key: SenseKey = SenseKey.NO_SENSE
    asc: int = 0
    ascq: int = 0
    filemark: bool = False
    end_of_medium: bool = False
    incorrect_length: bool = False
    information: int | None = None
    deferred: bool = False
    key_specific: bytes | None = None

    @property
    def valid(self) -> bool:
        """Whether the INFORMATION field means anything."""
        return self.information is not None

    @property
    def code(self) -> str:
        """Key, ASC and ASCQ as the trade writes them: `3/0C/00`."""
        return f"{self.key:X}/{self.asc:02X}/{self.ascq:02X}"

    @property
    def progress(self) -> float | None:
        """Share done, 0 to 1, of an operation in progress; None when the drive does not say."""
        if self.key_specific is None or self.key not in (SenseKey.NO_SENSE, SenseKey.NOT_READY):
            return None
        return int.from_bytes(self.key_specific[1:3], "big") / 65536

    def pack(self) -> bytes:
        """Fixed format, 18 bytes; an `information` that exceeds 32 bits is left out (SPC-4)."""
        flags = self.filemark << 7 | self.end_of_medium << 6 | self.incorrect_length << 5
        report = bytearray(FIXED_BYTES)
        report[0] = 0x71 if self.deferred else 0x70
        report[2] = flags | self.key
        if self.information is not None and -_SIGN_32 <= self.information < _SIGN_32:
            report[0] |= 0x80
            report[3:7] = self.information.to_bytes(4, "big", signed=True)
        report[7] = FIXED_BYTES - 8
        report[12] = self.asc
        report[13] = self.ascq
        if self.key_specific is not None:
            report[15:18] = bytes((self.key_specific[0] | 0x80,)) + self.key_specific[1:3]
        return bytes(report)

    @classmethod
    def unpack(cls, report: bytes | memoryview) -> Sense:
        """Read fixed (70h, 71h) or descriptor format (72h, 73h), cut short or not.

        Fields that a short report leaves out count as zero. Raises MalformedData when not even
        the key is there or the response code is none of these four.
        """
        data = bytes(report)
        response = data[0] & 0x7F if data else 0
        if response in (0x70, 0x71) and len(data) >= 3:
            return cls._unpack_fixed(data, deferred=response == 0x71)
        if response in (0x72, 0x73) and len(data) >= 4:
            return cls._unpack_descriptor(data, deferred=response == 0x73)
        raise MalformedData(
            f"the drive's sense data '{data[:FIXED_BYTES].hex()}' cannot be understood;"
            " power-cycle the drive and try again"
        )

    @classmethod
    def _unpack_fixed(cls, data: bytes, *, deferred: bool) -> Sense:
        has_information = data[0] & 0x80 and len(data) >= 7
        # Bytes behind the additional sense length are whatever was in the drive's buffer.
        end = min(len(data), 8 + data[7]) if len(data) > 7 else len(data)
        data = data[:end].ljust(FIXED_BYTES, b"\0")
        return cls(
            key=SenseKey(data[2] & 0x0F),
            asc=data[12],
            ascq=data[13],
            filemark=bool(data[2] & 0x80),
            end_of_medium=bool(data[2] & 0x40),
            incorrect_length=bool(data[2] & 0x20),
            information=int.from_bytes(data[3:7], "big", signed=True) if has_information else None,
            deferred=deferred,
            key_specific=data[15:18] if data[15] & 0x80 else None,
        )

    @classmethod
    def _unpack_descriptor(cls, data: bytes, *, deferred: bool) -> Sense:
        information: int | None = None
        key_specific: bytes | None = None
        flags = 0
        end = min(len(data), 8 + data[7]) if len(data) > 7 else 0
        at = 8
        while at + 2 <= end:
            kind, size_bytes = data[at], data[at + 1]
            body = data[at + 2 : min(end, at + 2 + size_bytes)]
            if kind == 0x00 and len(body) >= 10 and body[0] & 0x80:
                information = int.from_bytes(body[2:10], "big", signed=True)
            elif kind == 0x02 and len(body) >= 5 and body[2] & 0x80:
                key_specific = body[2:5]
            elif kind == 0x04 and len(body) >= 2:
                flags = body[1]
            at += 2 + size_bytes
        return cls(
            key=SenseKey(data[1] & 0x0F),
            asc=data[2],
            ascq=data[3],
            filemark=bool(flags & 0x80),
            end_of_medium=bool(flags & 0x40),
            incorrect_length=bool(flags & 0x20),
            information=information,
            deferred=deferred,
            key_specific=key_specific,
        )
