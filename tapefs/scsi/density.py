"""REPORT DENSITY SUPPORT (SSC-4): how much a kind of medium holds."""

from __future__ import annotations

from typing import Final

_HEADER_BYTES: Final = 4
_DESCRIPTOR_BYTES: Final = 52
_DEFAULT_DENSITY: Final = 0x20
_MEGABYTE: Final = 1_000_000

# A drive lists one descriptor for each density of the loaded medium: hardly ever more than two.
DENSITY_REPORT_BYTES: Final = _HEADER_BYTES + 8 * _DESCRIPTOR_BYTES


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
