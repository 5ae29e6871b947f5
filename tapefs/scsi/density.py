"""REPORT DENSITY SUPPORT (SSC-4): how much a kind of medium holds."""

from __future__ import annotations

from typing import Final

_HEADER_BYTES: Final = 4
_DESCRIPTOR_BYTES: Final = 52
_DEFAULT_DENSITY: Final = 0x20
_MEGABYTE: Final = 1_000_000

# A drive lists one descriptor for each density of the loaded medium: hardly ever more than two.
DENSITY_REPORT_BYTES: Final = _HEADER_BYTES + 8 * _DESCRIPTOR_BYTES


# What drives write at without compression, by density code (SSC-4, annex; makers' data sheets).
_RATES_MB_PER_S: Final = {
    0x40: 20,
    0x42: 40,
    0x44: 80,
    0x46: 120,
    0x58: 140,
    0x5A: 160,  # LTO-1 to LTO-6
    0x5C: 300,
    0x5D: 300,
    0x5E: 360,
    0x60: 400,  # LTO-7 to LTO-9
    0x30: 4,
    0x31: 6,
    0x32: 12,
    0x33: 24,  # AIT-1 to AIT-4
    0x13: 0.2,
    0x24: 0.5,
    0x25: 1,
    0x26: 3,
    0x47: 3.2,
    0x48: 6.9,  # DDS-1 to DAT160
}


def rate_bytes_per_s(density: int | None) -> int | None:
    """What a drive writes at, at most, to a medium of this density; None where nobody knows."""
    rate = _RATES_MB_PER_S.get(density or 0)
    return None if rate is None else int(rate * _MEGABYTE)


def nominal_capacity_bytes(report: bytes | memoryview) -> int | None:
    """CAPACITY of the density that the drive writes by default, else of the first that has one.

    None when the report names none: drives that do not know give 0, or no descriptor at all.
    """
    length = min(len(report), int.from_bytes(report[:2], "big") + 2)
    found: int | None = None
    for start in range(_HEADER_BYTES, length - _DESCRIPTOR_BYTES + 1, _DESCRIPTOR_BYTES):
        capacity = int.from_bytes(report[start + 12 : start + 16], "big")
        if capacity and (found is None or report[start + 2] & _DEFAULT_DENSITY):
            found = capacity * _MEGABYTE
    return found
