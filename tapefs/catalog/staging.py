"""The table of what the spool holds, written in batches.

Rows change with every small write, so what is to be written is kept here until `write`, which the
catalog calls before each commit. Questions are answered as if it stood in the table already.
"""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from tapefs.catalog.rows import (
    STAGED_COLUMNS,
    Staged,
    pack_ranges,
    ranges_bytes,
    staged_from,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tapefs.catalog.database import Database, Row

# Rows kept until they are written.
_PENDING_MAX: Final = 2_000

_SELECT: Final = f"SELECT {STAGED_COLUMNS} FROM staged"
_SAVE: Final = (
    "INSERT OR REPLACE INTO staged"
    " (ino, resident, dirty, resident_bytes, dirty_bytes, touched_ns)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)


class StagedTable:
    """Rows of `staged` within the caller's transaction, which must be open for every change."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # What the table has to say; None: nothing of this file.
        self._pending: dict[int, Staged | None] = {}
        # No inode above this ever had a row: those that were made a moment ago.
        row = database.first("SELECT max(ino) FROM staged")
        self._highest_ino: int = row[0] or 0 if row else 0
        # What the table says of some files that `prefetch` was told of.
        self._fetched: dict[int, Staged | None] = {}

    def write(self) -> None:
        """Let the table say everything."""
        if not self._pending:
            return
        pending, self._pending = self._pending, {}
        self._database.execute_many(_SAVE, (_row(row) for row in pending.values() if row))
        self._database.execute_many(
            "DELETE FROM staged WHERE ino = ?", ((ino,) for ino, row in pending.items() if not row)
        )

    def forget(self) -> None:
        """The transaction was dropped back to where `write` was called last."""
        self._pending.clear()
        self._fetched.clear()

    def totals(self) -> tuple[int, int, int]:
        """(files with dirty bytes, dirty bytes, resident bytes). Reads the whole table."""
        self.write()
        row = self._database.first(
            "SELECT count(*) FILTER (WHERE dirty_bytes > 0), coalesce(sum(dirty_bytes), 0),"
            " coalesce(sum(resident_bytes), 0)"
            " FROM staged"
        )
        assert row is not None
        return row[0], row[1], row[2]

    def load(self, ino: int) -> Staged | None:
        """What the spool holds of a file, or None. The caller changes a copy at most."""
        if ino in self._pending:
            return self._pending[ino]
        if ino in self._fetched:
            return self._fetched[ino]
        if ino > self._highest_ino:
            return None
        row = self._database.first(f"{_SELECT} WHERE ino = ?", (ino,))
        return staged_from(row) if row else None

    def prefetch(self, inos: Collection[int]) -> None:
        """Have at hand what `load` will be asked of some hundred files, in one query."""
        # First: what is written after this must not be hidden by what was not there yet.
        self.write()
        self._fetched = dict.fromkeys(inos)
        for row in self._database.rows(
            f"{_SELECT} WHERE ino IN (SELECT value FROM json_each(?) AS listed)",
            (json.dumps(list(inos)),),
        ):
            self._fetched[row[0]] = staged_from(row)

    def save(self, staged: Staged) -> None:
        """Write or replace the row of a file."""
        self._change(staged.ino, staged)

    def delete(self, ino: int) -> None:
        """Remove the row of a file, if it has one."""
        self._change(ino, None)

    def _change(self, ino: int, row: Staged | None) -> None:
        self._fetched.pop(ino, None)
        self._pending[ino] = row
        self._highest_ino = max(self._highest_ino, ino)
        if len(self._pending) > _PENDING_MAX:
            self.write()

    def clean(self, limit: int) -> list[Staged]:
        """Up to `limit` files without dirty bytes, the longest unused first."""
        self.write()
        rows = self._database.rows(
            f"{_SELECT} WHERE dirty_bytes = 0 ORDER BY touched_ns, ino LIMIT ?", (limit,)
        )
        return [staged_from(row) for row in rows]

    def all_inos(self) -> Iterator[int]:
        """Every file that has a row, in order, read in pages so that rows may change meanwhile."""
        last = 0
        while page := self._page(last):
            yield from page
            last = page[-1]

    def _page(self, after_ino: int) -> list[int]:
        self.write()
        return [
            row[0]
            for row in self._database.rows(
                "SELECT ino FROM staged WHERE ino > ? ORDER BY ino LIMIT 1000", (after_ino,)
            )
        ]


def _row(staged: Staged) -> Row:
    return (
        staged.ino,
        pack_ranges(staged.resident),
        pack_ranges(staged.dirty),
        ranges_bytes(staged.resident),
        ranges_bytes(staged.dirty),
        staged.touched_ns,
    )
