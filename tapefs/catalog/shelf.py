"""The catalog of a volume that is on the shelf, or in use by somebody else: pages of names.

Each page is one statement and no transaction stays open between two, however long the caller
takes: an open one would keep a mount from folding its write-ahead log.
"""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.catalog.database import APPLICATION_LIVE, APPLICATION_TAPE, Closing, Database
from tapefs.catalog.namespace import Namespace
from tapefs.catalog.rows import INODE_COLUMNS, Staged, staged_from
from tapefs.entries import ROOT_INO, Inode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    from tapefs.catalog.database import Row

PAGE_ROWS: Final = 500

_INODE_COLUMNS_COUNT: Final = INODE_COLUMNS.count(",") + 1
# In the live catalog; a tape view holds the same without a spool.
_SPOOL: Final = "LEFT JOIN staged USING (ino)"
_SPOOL_COLUMNS: Final = "resident, dirty, touched_ns"
_NO_SPOOL_COLUMNS: Final = "NULL, NULL, NULL"
_BELOW: Final = (
    "WITH RECURSIVE below (ino) AS (SELECT ? UNION"
    " SELECT dentry.ino FROM below JOIN dentry ON dentry.parent = below.ino)"
)


@dataclass(frozen=True, slots=True)
class Named:
    """One name and what it stands for; `staged` is None when nothing of it is in the spool."""

    cookie: int
    parent: int
    name: bytes
    inode: Inode
    staged: Staged | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files are looked for; None: whatever they are. `newer_ns`: modified after that."""

    size_min: int | None = None
    size_max: int | None = None
    newer_ns: int | None = None
    sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """What is at and below one place. Directories are not counted; a file with two names once.

    `size_bytes`: sizes of the files. `tape_bytes`: what of their content is on tape.
    `waiting_bytes`: what is not on tape yet.
    """

    files_count: int
    size_bytes: int
    tape_bytes: int
    waiting_bytes: int


class ShelfCatalog(Closing, Namespace):
    """What users see of a volume, or would: its live catalog, else what its tape view says.

    For any process, also while another one mounts the volume: no lock, no write. What a mount
    changed in the last seconds may be missing. Methods raise StateUnusable when the file is
    damaged or its disk fails.
    """

    def __init__(self, database: Database, *, is_live: bool) -> None:
        super().__init__(database)
        self._is_live = is_live
        spool_columns = _SPOOL_COLUMNS if is_live else _NO_SPOOL_COLUMNS
        self._columns = f"cookie, parent, name, {INODE_COLUMNS}, {spool_columns}"
        self._spool = _SPOOL if is_live else ""

    @classmethod
    def open(cls, live: Path, view: Path) -> Self:
        """The catalog in `live`, or in `view` where there is none. Raises StateUnusable."""
        if live.exists():
            return cls(Database.open(live, APPLICATION_LIVE, read_only=True), is_live=True)
        return cls(Database.open(view, APPLICATION_TAPE, read_only=True), is_live=False)

    def root(self) -> Named | None:
        """The root directory, as an empty name in itself."""
        row = self._inode_values(ROOT_INO)
        return Named(0, ROOT_INO, b"", Inode(*row), None) if row else None

    def named(self, parent: int, name: bytes) -> Named | None:
        """What directory `parent` calls `name`, or None."""
        row = self._database.first(
            f"SELECT {self._columns} FROM dentry JOIN inode USING (ino) {self._spool}"
            " WHERE parent = ? AND name = ?",
            (parent, name),
        )
        return _named(row) if row else None

    def at(self, path: bytes) -> Named | None:
        """What `path`, from the root on without `.` and `..`, leads to; no symlink is followed."""
        found = self.root()
        for name in filter(None, path.split(b"/")):
            found = self.named(found.inode.ino, name) if found else None
        return found

    def listing(self, parent: int) -> Iterator[Named]:
        """The names in directory `parent`, sorted by their bytes."""
        name = b""
        while True:
            rows = self._database.rows(
                f"SELECT {self._columns} FROM dentry INDEXED BY dentry_name"
                f" JOIN inode USING (ino) {self._spool}"
                " WHERE parent = ? AND name > ? ORDER BY name LIMIT ?",
                (parent, name, PAGE_ROWS),
            )
            yield from map(_named, rows)
            if len(rows) < PAGE_ROWS:
                return
            name = rows[-1][2]

    def search(self, wanted: Wanted, fits: Callable[[bytes], bool]) -> Iterator[list[Named]]:
        """The names that fit of everything that is `wanted`, by their cookies, page by page."""
        cookie = 0
        while True:
            # The order of a cross join is kept: name by name, so that a page needs no sorting.
            rows = self._database.rows(
                f"SELECT {self._columns} FROM dentry CROSS JOIN inode USING (ino) {self._spool}"
                " WHERE cookie > ?1 AND (?2 IS NULL OR size >= ?2) AND (?3 IS NULL OR size <= ?3)"
                " AND (?4 IS NULL OR mtime_ns > ?4) AND (?5 IS NULL OR sha256 = ?5)"
                # Sizes are of files; a directory has none.
                " AND ((?2 IS NULL AND ?3 IS NULL) OR mode & 61440 = 32768)"
                " ORDER BY cookie LIMIT ?6",
                (
                    cookie,
                    wanted.size_min,
                    wanted.size_max,
                    wanted.newer_ns,
                    wanted.sha256,
                    PAGE_ROWS,
                ),
            )
            if page := [_named(row) for row in rows if fits(row[2])]:
                yield page
            if len(rows) < PAGE_ROWS:
                return
            cookie = rows[-1][0]

    def hashes(self) -> Iterator[bytes]:
        """SHA-256 of every file that has content, as far as it is known; also several times."""
        ino = 0
        while rows := self._database.rows(
            "SELECT ino, sha256 FROM inode WHERE ino > ? AND sha256 IS NOT NULL AND size > 0"
            " AND nlink > 0 ORDER BY ino LIMIT ?",
            (ino, PAGE_ROWS),
        ):
            yield from (row[1] for row in rows)
            ino = rows[-1][0]

    def totals(self, ino: int) -> Totals:
        """What `ino` and everything below it comes to. Seconds for millions of files."""
        row = self._database.first(
            f"{_BELOW} {self._sums('below.ino')} FROM below JOIN inode USING (ino) {self._spool}",
            (ino,),
        )
        assert row is not None
        return Totals(*row)

    def totals_of_volume(self) -> Totals:
        """What the whole volume comes to; sooner than by way of its directories."""
        row = self._database.first(
            f"{self._sums('inode.ino')} FROM inode {self._spool} WHERE nlink > 0"
        )
        assert row is not None
        return Totals(*row)

    def close(self) -> None:
        """Close the file. May be called again."""
        self._database.close()

    def _sums(self, ino: str) -> str:
        waiting = "coalesce(sum(dirty_bytes), 0)" if self._is_live else "0"
        return (
            "SELECT count(*) FILTER (WHERE mode & 61440 <> 16384),"
            " coalesce(sum(size) FILTER (WHERE mode & 61440 = 32768), 0),"
            f" coalesce(sum((SELECT sum(length) FROM extent WHERE extent.ino = {ino})), 0),"
            f" {waiting}"
        )


def _named(row: Row) -> Named:
    end = 3 + _INODE_COLUMNS_COUNT
    inode = Inode(*row[3:end])
    staged = staged_from((inode.ino, *row[end:])) if row[end] is not None else None
    return Named(row[0], row[1], row[2], inode, staged)
