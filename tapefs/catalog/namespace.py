"""Questions about files and names that the live catalog, its snapshots and the tape view share."""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from tapefs.catalog.extents import overlapping
from tapefs.catalog.rows import EXTENT_COLUMNS, INODE_COLUMNS
from tapefs.entries import ROOT_INO, Extent, Inode
from tapefs.errors import FilesystemError, StateUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapefs.catalog.database import Database, Row

_ENTRIES: Final = (
    "SELECT cookie, name, EXISTS (SELECT 1 FROM xattr WHERE xattr.ino = dentry.ino),"
    f" inode.{INODE_COLUMNS.replace(', ', ', inode.')}"
    " FROM dentry CROSS JOIN inode ON inode.ino = dentry.ino"
    " WHERE parent = ? AND cookie > ? ORDER BY cookie LIMIT ?"
)
_SELECT_INODE: Final = f"SELECT {INODE_COLUMNS} FROM inode WHERE ino = ?"


class NoSuchInode(FilesystemError):
    """The inode does not exist, or not any more."""

    def __init__(self, ino: int) -> None:
        super().__init__(errno.ENOENT, f"inode {ino} does not exist")


class Namespace:
    """Reads the tables of namespace.sql."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lookup(self, parent: int, name: bytes) -> int | None:
        """The inode that directory `parent` calls `name`, or None."""
        row = self._database.first(
            "SELECT ino FROM dentry WHERE parent = ? AND name = ?", (parent, name)
        )
        return row[0] if row else None

    def _names(self) -> Database:
        """The database, with all names in it: for whatever asks for more than one name."""
        return self._database

    def entries(
        self, parent: int, after_cookie: int, limit: int
    ) -> list[tuple[int, bytes, Inode, bool]]:
        """As `children`, with the inodes themselves, for reading only, and whether each has
        extended attributes."""
        return [
            (row[0], row[1], Inode(*row[3:]), bool(row[2]))
            for row in self._names().rows(_ENTRIES, (parent, after_cookie, limit))
        ]

    def children(
        self, parent: int, after_cookie: int = 0, limit: int = 1000
    ) -> list[tuple[int, bytes, int]]:
        """Up to `limit` (cookie, name, inode) of a directory, from the first after `after_cookie`.

        Cookies are positive and grow; going on from the last one seen gives every name that
        exists all the while exactly once, whatever else is made or removed meanwhile.
        """
        return self._names().rows(
            "SELECT cookie, name, ino FROM dentry WHERE parent = ? AND cookie > ?"
            " ORDER BY cookie LIMIT ?",
            (parent, after_cookie, limit),
        )

    def has_children(self, parent: int) -> bool:
        """Whether directory `parent` holds any name."""
        row = self._names().first("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", (parent,))
        return row is not None

    def links(self, ino: int) -> list[tuple[int, bytes]]:
        """All names of an inode as (directory, name), oldest first."""
        return self._names().rows(
            "SELECT parent, name FROM dentry WHERE ino = ? ORDER BY cookie", (ino,)
        )

    def parent_of(self, ino: int) -> int:
        """The directory that holds directory `ino`; the root holds itself.

        Raises NoSuchInode when `ino` has no name.
        """
        if ino == ROOT_INO:
            return ROOT_INO
        row = self._names().first("SELECT parent FROM dentry WHERE ino = ?", (ino,))
        if row is None:
            raise NoSuchInode(ino)
        parent: int = row[0]
        return parent

    def directory_path(self, ino: int) -> bytes:
        """The path of directory `ino` from the root, without leading slash; the root's is empty.

        Raises NoSuchInode when it hangs nowhere, StateUnusable when it lies within itself.
        """
        names: list[bytes] = []
        seen: set[int] = set()
        while ino != ROOT_INO:
            if ino in seen:
                raise StateUnusable(
                    f"directory {ino} in {self._database.path} lies within itself; "
                    "run 'tapefs rebuild' to make the catalog anew"
                )
            seen.add(ino)
            row = self._names().first("SELECT parent, name FROM dentry WHERE ino = ?", (ino,))
            if row is None:
                raise NoSuchInode(ino)
            ino = row[0]
            names.append(row[1])
        return b"/".join(reversed(names))

    def path_of(self, parent: int, name: bytes) -> bytes:
        """The path of `name` in directory `parent` from the root, without leading slash."""
        directory = self.directory_path(parent)
        return directory + b"/" + name if directory else name

    def extents_in(self, sequence: int) -> Iterator[Extent]:
        """What tape file `sequence` holds of files that exist, in no order.

        Reads through all extents: a second for millions of files.
        """
        for row in self._names().stream(
            f"SELECT {EXTENT_COLUMNS} FROM extent WHERE sequence = ?", (sequence,)
        ):
            yield Extent(*row)

    def content_below(self, ino: int) -> Iterator[tuple[Extent, bytes | None, bytes | None]]:
        """All extents of file `ino`, or of everything below directory `ino`, in tape order.

        With each, SHA-256 and xxh128 of its bytes if it is its file's whole content and they are
        known.
        """
        yield from (
            (Extent(*row[:5]), row[5], row[6])
            for row in self._names().stream(
                f"WITH RECURSIVE below (ino) AS (SELECT ? UNION SELECT dentry.ino FROM below"
                f" JOIN dentry ON dentry.parent = below.ino)"
                f" SELECT {EXTENT_COLUMNS}, iif(length = size, sha256, NULL),"
                f" iif(length = size, xxh128, NULL)"
                f" FROM below JOIN extent USING (ino) JOIN inode USING (ino)"
                f" ORDER BY sequence, position",
                (ino,),
            )
        )

    def _inode_values(self, ino: int) -> Row | None:
        return self._database.first(_SELECT_INODE, (ino,))

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """All extended attributes of an inode, by name."""
        return dict(
            self._database.rows("SELECT name, value FROM xattr WHERE ino = ? ORDER BY name", (ino,))
        )

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """One extended attribute of an inode, or None."""
        row = self._database.first(
            "SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, name)
        )
        return row[0] if row else None

    def first_extent(self, ino: int) -> Extent | None:
        """Where the lowest byte of a file that is on tape stands, or None."""
        row = self._database.first(
            f"SELECT {EXTENT_COLUMNS} FROM extent WHERE ino = ? ORDER BY offset LIMIT 1", (ino,)
        )
        return Extent(*row) if row else None

    def extents(self, ino: int, offset: int = 0, length: int | None = None) -> list[Extent]:
        """The extents that touch [offset, offset + length) of a file, in order, not cut to it.

        Without `length`: all from `offset` on.
        """
        return overlapping(self._database, ino, offset, length)
