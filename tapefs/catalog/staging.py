"""The table of what the spool holds, with its totals kept at hand."""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tapefs.catalog.rows import (
    STAGED_COLUMNS,
    Staged,
    pack_ranges,
    ranges_bytes,
    staged_from,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapefs.catalog.database import Database

_SELECT: Final = f"SELECT {STAGED_COLUMNS} FROM staged"


class StagedTable:
    """Rows of `staged` within the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Files with dirty bytes, dirty bytes, resident bytes.
        self.totals = (0, 0, 0)
        self.count_again()

    def count_again(self) -> None:
        """Take the totals from the table, after a transaction was dropped."""
        row = self._database.first(
            "SELECT count(*) FILTER (WHERE dirty_bytes > 0), coalesce(sum(dirty_bytes), 0),"
            " coalesce(sum(resident_bytes), 0)"
            " FROM staged"
        )
        assert row is not None
        self.totals = (row[0], row[1], row[2])

    def load(self, ino: int) -> Staged | None:
        """What the spool holds of a file, or None."""
        row = self._database.first(f"{_SELECT} WHERE ino = ?", (ino,))
        return staged_from(row) if row else None

    def save(self, staged: Staged) -> None:
        """Write or replace the row of a file."""
        dirty_bytes, resident_bytes = ranges_bytes(staged.dirty), ranges_bytes(staged.resident)
        self._count_out(staged.ino)
        self._database.execute(
            "INSERT OR REPLACE INTO staged"
            " (ino, resident, dirty, resident_bytes, dirty_bytes, touched_ns)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                staged.ino,
                pack_ranges(staged.resident),
                pack_ranges(staged.dirty),
                resident_bytes,
                dirty_bytes,
                staged.touched_ns,
            ),
        )
        files, dirty, resident = self.totals
        self.totals = (files + (dirty_bytes > 0), dirty + dirty_bytes, resident + resident_bytes)

    def delete(self, ino: int) -> None:
        """Remove the row of a file, if it has one."""
        if self._count_out(ino):
            self._database.execute("DELETE FROM staged WHERE ino = ?", (ino,))

    def clean(self, limit: int) -> list[Staged]:
        """Up to `limit` files without dirty bytes, the longest unused first."""
        rows = self._database.rows(
            f"{_SELECT} WHERE dirty_bytes = 0 ORDER BY touched_ns, ino LIMIT ?", (limit,)
        )
        return [staged_from(row) for row in rows]

    def all_inos(self) -> Iterator[int]:
        """Every file that has a row, in order, read in pages so that rows may change meanwhile."""
        last = 0
        while page := self._database.rows(
            "SELECT ino FROM staged WHERE ino > ? ORDER BY ino LIMIT 1000", (last,)
        ):
            yield from (row[0] for row in page)
            last = page[-1][0]

    def _count_out(self, ino: int) -> bool:
        row = self._database.first(
            "SELECT dirty_bytes, resident_bytes FROM staged WHERE ino = ?", (ino,)
        )
        if row is None:
            return False
        files, dirty, resident = self.totals
        self.totals = (files - (row[0] > 0), dirty - row[0], resident - row[1])
        return True
