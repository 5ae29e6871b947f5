"""Hashes in a file that nobody else sees: which volumes have which, and what was read just now."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tapefs.catalog.database import CACHE_BYTES, Closing, Database, translated

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tapefs.entries import Inode

# For messages: SQLite makes the file where temporary files go, and deletes it.
_PLACE: Final = Path("the temporary file of a comparison")


class _Temporary(Closing):
    """Tables for one command, for one thread; memory does not grow with their rows.

    Methods raise SpoolFull when the disk that holds temporary files is full, StateUnusable when it
    fails.
    """

    def __init__(self, table: str) -> None:
        with translated(_PLACE):
            connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database = Database(connection, _PLACE, fail_stop=False)
        self._database.execute(f"PRAGMA cache_size = -{CACHE_BYTES // 1024}")
        self._database.execute(table)

    def close(self) -> None:
        """Let the tables go."""
        self._database.close()


class CopyTable(_Temporary):
    """SHA-256 of contents, and the numbers of the volumes that have them."""

    def __init__(self) -> None:
        super().__init__(
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


class HashTable(_Temporary):
    """SHA-256 and xxh128 of files of one volume, as they were when they were read."""

    def __init__(self) -> None:
        super().__init__(
            "CREATE TABLE hash (ino INTEGER PRIMARY KEY, size INTEGER NOT NULL,"
            " mtime_ns INTEGER NOT NULL, sha256 BLOB NOT NULL, xxh128 BLOB NOT NULL) STRICT"
        )

    def add(self, inode: Inode, sha256: bytes, xxh128: bytes) -> None:
        """The content of `inode` hashes to these."""
        self._database.execute(
            "INSERT OR REPLACE INTO hash VALUES (?, ?, ?, ?, ?)",
            (inode.ino, inode.size, inode.mtime_ns, sha256, xxh128),
        )

    def find(self, inode: Inode) -> tuple[bytes, bytes] | None:
        """What the content of `inode` hashes to, if that was read since it is what it is."""
        row = self._database.first(
            "SELECT sha256, xxh128 FROM hash WHERE (ino, size, mtime_ns) = (?, ?, ?)",
            (inode.ino, inode.size, inode.mtime_ns),
        )
        return (row[0], row[1]) if row else None
