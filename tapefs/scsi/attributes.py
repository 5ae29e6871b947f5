"""READ ATTRIBUTE data (SPC-4): what the chip in a cartridge says of it.

Same rules as `tapefs.scsi.data`: `unpack` raises MalformedData and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tapefs.errors import MalformedData

_HEADER_BYTES: Final = 4
_LOAD_COUNT: Final = 0x0003
_WRITTEN_MIB: Final = 0x0220
_READ_MIB: Final = 0x0221
_MIB: Final = 1 << 20
# Larger ones mean that the chip does not know.
_COUNT_MAX: Final = 2**63 // _MIB


@dataclass(frozen=True, slots=True)
class MediumAttributes:
    """Those attributes that tell of wear. None: the chip, or the drive, does not say."""

    loads_count: int | None = None
    written_bytes: int | None = None
    read_bytes: int | None = None

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> MediumAttributes:
        """From the values that READ ATTRIBUTE brings; one that was cut short is left out.

        Raises MalformedData below 4 bytes.
        """
        raw = bytes(data)
        if len(raw) < _HEADER_BYTES:
            raise MalformedData(
                f"the drive's attribute data has {len(raw)} bytes instead of at least 4;"
                " power-cycle the drive and try again"
            )
        rest = raw[_HEADER_BYTES : _HEADER_BYTES + int.from_bytes(raw[:_HEADER_BYTES], "big")]
        numbers: dict[int, int] = {}
        while len(rest) >= 5 and len(rest) >= 5 + int.from_bytes(rest[3:5], "big"):
            end = 5 + int.from_bytes(rest[3:5], "big")
            # A number has at most 8 bytes; longer ones are text, and none of ours.
            number = int.from_bytes(rest[5:end], "big")
            if 5 < end <= 13 and number <= _COUNT_MAX:
                numbers[int.from_bytes(rest[:2], "big")] = number
            rest = rest[end:]
        return cls(
            numbers.get(_LOAD_COUNT),
            _bytes(numbers.get(_WRITTEN_MIB)),
            _bytes(numbers.get(_READ_MIB)),
        )


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * _MIB
