"""Which contents are on which volumes: a table of hashes in a file that nobody else sees."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tapefs.catalog.database import CACHE_BYTES, Database, translated

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

# For messages: SQLite makes the file where temporary files go, and deletes it.
_PLACE: Final = Path("the temporary file of a comparison")


class CopyTable:
    """SHA-256 of contents, and the numbers of the volumes that have them. For one thread.

    Memory does not grow with the number of files. Methods raise SpoolFull when the disk that holds
    temporary files is full, StateUnusable when it fails.
    """

    def __init__(self) -> None:
        with translated(_PLACE):
            connection = sqlite3.connect("", isolation_level=None)
        self._database = Database(connection, _PLACE, fail_stop=False)
        self._database.execute(f"PRAGMA cache_size = -{CACHE_BYTES // 1024}")
        self._database.execute(
            "CREATE TABLE copy (sha256 BLOB NOT NULL, volume INTEGER NOT NULL,"
            " PRIMARY KEY (sha256, volume)) STRICT, WITHOUT ROWID"
        )

    def add(self, volume: int, contents: Iterable[bytes]) -> None:
        """`volume` has these."""
        with self._database.transaction():
            self._database.execute_many(
                "INSERT OR IGNORE INTO copy VALUES (?, ?)",
                ((sha256, volume) for sha256 in contents),
            )

    def volumes_with(self, sha256: bytes) -> list[int]:
        """The volumes that have this content."""
        rows = self._database.rows(
            "SELECT volume FROM copy WHERE sha256 = ? ORDER BY volume", (sha256,)
        )
        return [row[0] for row in rows]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()
