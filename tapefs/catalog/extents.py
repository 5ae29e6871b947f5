"""Extents of a file: which bytes stand where on tape, kept free of overlaps.

Each function is one or a few statements within the caller's transaction, and their cost does not
grow with the number of extents that a file has elsewhere.
"""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Final

from tapefs.catalog.rows import EXTENT_COLUMNS
from tapefs.entries import Extent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapefs.catalog.database import Database

# SQLite's largest integer: no offset lies beyond.
_END_MAX: Final = 2**63 - 1

_LAST_BEFORE: Final = (
    f"SELECT {EXTENT_COLUMNS} FROM extent WHERE ino = ? AND offset < ? ORDER BY offset DESC LIMIT 1"
)
_PLACED: Final = (
    "SELECT value FROM json_each(?) AS listed"
    " WHERE EXISTS (SELECT 1 FROM extent WHERE extent.ino = listed.value)"
)
_INSERT: Final = f"INSERT INTO extent ({EXTENT_COLUMNS}) VALUES (?, ?, ?, ?, ?)"


def overlapping(database: Database, ino: int, offset: int, length: int | None) -> list[Extent]:
    """The extents of `ino` that touch [offset, offset + length), in order; None: to the end."""
    end = _END_MAX if length is None else min(offset + length, _END_MAX)
    rows = database.rows(
        f"SELECT {EXTENT_COLUMNS} FROM extent WHERE ino = ?1 AND offset < ?3"
        " AND offset >= coalesce((SELECT max(offset) FROM extent"
        " WHERE ino = ?1 AND offset <= ?2), 0)"
        " AND offset + length > ?2 ORDER BY offset",
        (ino, offset, end),
    )
    return [Extent(*row) for row in rows]


def insert_extent(database: Database, extent: Extent) -> None:
    """Record `extent`, cutting away what older ones say about the same bytes."""
    cut_range(database, extent.ino, extent.offset, extent.offset + extent.length)
    database.execute(
        _INSERT, (extent.ino, extent.offset, extent.length, extent.sequence, extent.position)
    )


def insert_extents(database: Database, extents: Sequence[Extent]) -> None:
    """`insert_extent` for each in turn: at once for files that have none yet and get only one."""
    inos = [extent.ino for extent in extents]
    seen = set(inos)
    placed = {row[0] for row in database.rows(_PLACED, (json.dumps(sorted(seen)),))}
    if len(seen) < len(inos):
        counts = Counter(inos)
        placed.update(ino for ino, count in counts.items() if count > 1)
    database.execute_many(
        _INSERT,
        (
            (extent.ino, extent.offset, extent.length, extent.sequence, extent.position)
            for extent in extents
            if extent.ino not in placed
        ),
    )
    for extent in extents:
        if extent.ino in placed:
            insert_extent(database, extent)


def cut_extents(database: Database, ino: int, size: int) -> None:
    """Forget everything from byte `size` of a file on."""
    cut_range(database, ino, size, _END_MAX)


def cut_range(database: Database, ino: int, start: int, end: int) -> None:
    """Forget bytes [start, end) of a file; an extent that reaches over an edge keeps its rest."""
    last = _last_before(database, ino, end)
    if last is None or last.offset + last.length <= start:
        return
    first = _last_before(database, ino, start)
    database.execute(
        "DELETE FROM extent WHERE ino = ? AND offset >= ? AND offset < ?", (ino, start, end)
    )
    if first is not None and first.offset + first.length > start:
        database.execute(
            "UPDATE extent SET length = ? WHERE ino = ? AND offset = ?",
            (start - first.offset, ino, first.offset),
        )
    rest = last.offset + last.length - end
    if rest > 0:
        position = last.position + end - last.offset
        database.execute(_INSERT, (ino, end, rest, last.sequence, position))


def _last_before(database: Database, ino: int, offset: int) -> Extent | None:
    row = database.first(_LAST_BEFORE, (ino, offset))
    return Extent(*row) if row else None
