"""All rows, in the order of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import bulk, bus, listing, mixed, recalls, scale, small_files, streaming

if TYPE_CHECKING:
    from benchmarks.row import Row

ROWS: Final[tuple[Row, ...]] = (
    *bulk.ROWS,
    *small_files.ROWS,
    *listing.ROWS,
    *scale.ROWS,
    *recalls.ROWS,
    *mixed.ROWS,
    *streaming.ROWS,
    *bus.ROWS,
)
