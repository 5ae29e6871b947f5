"""Applying one tape file's journal to the tape view's tables.

The result depends only on the rows before and on the entries, in their order: the daemon that
wrote a tape and one that rebuilds from it arrive at the same rows, cookies included.
"""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from tapefs.catalog.database import sentences
from tapefs.catalog.extents import cut_extents, insert_extent, insert_extents
from tapefs.catalog.rows import S_IFDIR, S_IFMT
from tapefs.entries import (
    ROOT_INO,
    Entry,
    Extent,
    ExtentEntry,
    InodeEntry,
    LinkEntry,
    UnlinkEntry,
)
from tapefs.errors import DamagedTape

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from tapefs.catalog.database import Database, Row

# Notes kept in memory before they go to the temporary tables.
_NOTES_MAX: Final = 10_000
# Rows of new files, and names, that are inserted at a time.
_ROWS_MAX: Final = 500
# Directories known to hang below the root that are kept in mind while checking others.
_SAFE_MAX: Final = 100_000


# The type of an inode is part of its identity, and its link count follows from the names.
_UPSERT_INODE: Final = f"""
INSERT INTO inode (ino, mode, uid, gid, nlink, size, rdev, atime_ns, mtime_ns, ctime_ns,
                   target, sha256, xxh128)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (ino) DO UPDATE SET
    mode = excluded.mode, uid = excluded.uid, gid = excluded.gid, size = excluded.size,
    rdev = excluded.rdev, atime_ns = excluded.atime_ns, mtime_ns = excluded.mtime_ns,
    ctime_ns = excluded.ctime_ns, target = excluded.target, sha256 = excluded.sha256,
    xxh128 = excluded.xxh128
WHERE inode.mode & {S_IFMT} = excluded.mode & {S_IFMT}
"""

_LINK: Final = """
INSERT INTO dentry (parent, name, ino) VALUES (?, ?, ?)
ON CONFLICT (parent, name) DO UPDATE SET ino = excluded.ino
"""

_LINK_NEW: Final = "INSERT OR IGNORE INTO dentry (parent, name, ino) VALUES (?, ?, ?)"

# Subdirectories that came to and went from each directory, added to what it had.
_COUNT_SUBDIRECTORIES: Final = f"""
UPDATE inode SET nlink = nlink + change.subdirectories
FROM (SELECT moved.parent AS parent, sum(moved.delta) AS subdirectories
      FROM moved JOIN inode AS child ON child.ino = moved.ino
      WHERE child.mode & {S_IFMT} = {S_IFDIR} GROUP BY moved.parent) AS change
WHERE inode.ino = change.parent AND change.subdirectories <> 0
"""

_COUNT_LINKS: Final = f"""
UPDATE inode SET nlink = (SELECT count(*) FROM dentry WHERE dentry.ino = inode.ino)
WHERE ino IN (SELECT ino FROM touched) AND mode & {S_IFMT} <> {S_IFDIR}
"""

_REMOVE_UNLINKED: Final = """
DELETE FROM inode WHERE ino IN (SELECT ino FROM touched) AND ino <> 1
AND NOT EXISTS (SELECT 1 FROM dentry WHERE dentry.ino = inode.ino)
"""

_FORGET_LIVING: Final = """
DELETE FROM touched WHERE EXISTS (SELECT 1 FROM inode WHERE inode.ino = touched.ino)
"""

_MOVED_DIRECTORIES: Final = f"""
SELECT DISTINCT moved.ino FROM moved JOIN inode ON inode.ino = moved.ino
WHERE moved.delta > 0 AND inode.mode & {S_IFMT} = {S_IFDIR}
"""

TEMPORARY_TABLES: Final = (
    # Inodes that entries of this journal concern.
    "CREATE TEMP TABLE touched (ino INTEGER PRIMARY KEY)",
    # Names that came (+1) and went (-1): of which directory, and what they stood for.
    "CREATE TEMP TABLE moved (parent INTEGER, ino INTEGER, delta INTEGER)",
)


@functools.cache
def _checks() -> list[tuple[str, str]]:
    return sentences("journal_checks.sql")


class Application:
    """One journal being applied, within a transaction of the caller.

    Call `add` for every entry in order, then `finish`. Memory is bounded; what has to be
    remembered until the end stands in temporary tables.
    """

    def __init__(
        self, database: Database, sequence: int, next_ino: int, content_bytes: int
    ) -> None:
        """For the journal of tape file `sequence`, whose records hold `content_bytes` in all."""
        self._database = database
        self._sequence = sequence
        self._content_bytes = content_bytes
        # One more than the highest inode number seen so far, in this journal or before.
        self.next_ino = next_ino
        self._touched: set[int] = set()
        self._moved: list[tuple[int, int, int]] = []
        # Rows of files that nothing was known of before, not yet in their tables: by inode number.
        self._new_inodes: dict[int, Row] = {}
        self._new_extents: dict[int, Extent] = {}
        # Names that wait to be given, in order.
        self._new_names: dict[tuple[int, bytes], int] = {}
        self._handlers: dict[type[Entry], Callable[[Any], None]] = {
            InodeEntry: self._inode,
            ExtentEntry: self._extent,
            LinkEntry: self._link,
            UnlinkEntry: self._unlink,
        }
        database.execute("DELETE FROM touched")
        database.execute("DELETE FROM moved")

    def add_all(self, entries: Iterable[Entry]) -> None:
        """Apply `entries` one after the other."""
        for entry in entries:
            self._handlers[type(entry)](entry)
            if len(self._new_inodes) >= _ROWS_MAX or len(self._new_names) >= _ROWS_MAX:
                self._insert()
            if len(self._touched) >= _NOTES_MAX or len(self._moved) >= _NOTES_MAX:
                self._note()

    def finish(self) -> None:
        """Count links anew, drop inodes without any, check what is left.

        Raises DamagedTape when the names do not form a tree of described inodes.
        """
        self._insert()
        self._note()
        self._database.execute(_COUNT_SUBDIRECTORIES)
        self._database.execute(_COUNT_LINKS)
        for sentence, query in _checks():
            row = self._database.first(query)
            if row is not None:
                raise self._damaged(sentence.format(row[0]))
        self._refuse_loops()
        self._database.execute(_REMOVE_UNLINKED)
        self._database.execute(_FORGET_LIVING)
        for table in ("xattr", "extent"):
            self._database.execute(f"DELETE FROM {table} WHERE ino IN (SELECT ino FROM touched)")
        self._database.execute("DELETE FROM touched")
        self._database.execute("DELETE FROM moved")

    def _inode(self, entry: InodeEntry) -> None:
        is_new = self._is_new(entry.ino)
        is_directory = entry.mode & S_IFMT == S_IFDIR
        row = (
            entry.ino,
            entry.mode,
            entry.uid,
            entry.gid,
            2 if is_directory else 0,
            entry.size,
            entry.rdev,
            entry.atime_ns,
            entry.mtime_ns,
            entry.ctime_ns,
            entry.target,
            entry.sha256,
            entry.xxh128,
        )
        if is_new:
            self._new_inodes[entry.ino] = row
        else:
            self._insert()
            self._replace_inode(entry.ino, row, entry.size)
        for name, value in entry.xattrs.items():
            self._database.execute(
                "INSERT INTO xattr (ino, name, value) VALUES (?, ?, ?)", (entry.ino, name, value)
            )

    def _replace_inode(self, ino: int, row: Row, size: int) -> None:
        if not self._database.execute(_UPSERT_INODE, row):
            raise self._damaged(f"changes the type of inode {ino}")
        self._database.execute("DELETE FROM xattr WHERE ino = ?", (ino,))
        cut_extents(self._database, ino, size)

    def _extent(self, entry: ExtentEntry) -> None:
        ino = entry.ino
        if entry.position + entry.length > self._content_bytes:
            raise self._damaged(f"puts bytes of inode {ino} beyond its tape file")
        self._is_new(ino)
        extent = Extent(ino, entry.offset, entry.length, self._sequence, entry.position)
        if ino in self._new_inodes and ino not in self._new_extents:
            self._new_extents[ino] = extent
        else:
            self._insert()
            insert_extent(self._database, extent)

    def _link(self, entry: LinkEntry) -> None:
        self._is_new(entry.ino)
        if (entry.parent, entry.name) in self._new_names:
            self._insert()
        self._new_names[entry.parent, entry.name] = entry.ino

    def _insert(self) -> None:
        """Bring the tables up to date with the entries so far."""
        if self._new_inodes:
            self._insert_inodes(self._new_inodes.values())
            insert_extents(self._database, list(self._new_extents.values()))
            self._new_inodes.clear()
            self._new_extents.clear()
        if self._new_names:
            self._insert_names([(*place, ino) for place, ino in self._new_names.items()])
            self._new_names.clear()

    def _insert_inodes(self, rows: Collection[Row]) -> None:
        if self._database.execute_many(_UPSERT_INODE, rows) != len(rows):
            raise self._damaged(f"changes the type of one of the inodes from {min(rows)[0]} on")

    def _insert_names(self, rows: list[tuple[int, bytes, int]]) -> None:
        self._database.execute("SAVEPOINT names")
        if self._database.execute_many(_LINK_NEW, rows) == len(rows):
            self._moved.extend((parent, ino, 1) for parent, _, ino in rows)
        else:
            # Some are taken: one after the other, and see by what.
            self._database.execute("ROLLBACK TO names")
            for row in rows:
                self._link_one(*row)
        self._database.execute("RELEASE names")

    def _link_one(self, parent: int, name: bytes, ino: int) -> None:
        replaced = self._named(parent, name)
        if replaced == ino:
            return
        if replaced is not None:
            self._touched.add(replaced)
            self._moved.append((parent, replaced, -1))
        self._database.execute(_LINK, (parent, name, ino))
        self._moved.append((parent, ino, 1))

    def _unlink(self, entry: UnlinkEntry) -> None:
        self._insert()
        gone = self._named(entry.parent, entry.name)
        if gone is None:
            return
        self._database.execute(
            "DELETE FROM dentry WHERE parent = ? AND name = ?", (entry.parent, entry.name)
        )
        self._touched.add(gone)
        self._moved.append((entry.parent, gone, -1))

    def _named(self, parent: int, name: bytes) -> int | None:
        row = self._database.first(
            "SELECT ino FROM dentry WHERE parent = ? AND name = ?", (parent, name)
        )
        return row[0] if row else None

    def _is_new(self, ino: int) -> bool:
        """Note that an entry concerns `ino`; tells whether none ever did before."""
        self._touched.add(ino)
        if ino < self.next_ino:
            return False
        self.next_ino = ino + 1
        return True

    def _note(self) -> None:
        self._database.execute_many(
            "INSERT OR IGNORE INTO touched (ino) VALUES (?)", [(ino,) for ino in self._touched]
        )
        self._database.execute_many(
            "INSERT INTO moved (parent, ino, delta) VALUES (?, ?, ?)", self._moved
        )
        self._touched.clear()
        self._moved.clear()

    def _refuse_loops(self) -> None:
        """Each directory that came to a new place must hang below the root."""
        safe = {ROOT_INO}
        for (ino,) in self._database.stream(_MOVED_DIRECTORIES):
            if len(safe) > _SAFE_MAX:
                safe = {ROOT_INO}
            way: set[int] = set()
            at = ino
            while at not in safe:
                if at in way:
                    raise self._damaged(f"puts directory {ino} below itself")
                way.add(at)
                row = self._database.first("SELECT parent FROM dentry WHERE ino = ?", (at,))
                # None: a directory on the way is being removed, which another check judges.
                at = row[0] if row else ROOT_INO
            safe.update(way)

    def _damaged(self, what: str) -> DamagedTape:
        return DamagedTape(
            f"the journal of tape file {self._sequence} {what}; mount an earlier checkpoint "
            "or restore with tar"
        )
