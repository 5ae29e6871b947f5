"""A frozen view of the live catalog for the archiver, while the catalog itself moves on."""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tapefs.catalog.database import APPLICATION_LIVE, Closing, Database
from tapefs.catalog.namespace import Namespace
from tapefs.catalog.rows import INODE_COLUMNS, STAGED_COLUMNS, Staged, staged_from
from tapefs.entries import Inode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_LISTED: Final = "FROM json_each(?) AS listed CROSS JOIN"
_INODES: Final = f"SELECT {INODE_COLUMNS} {_LISTED} inode ON inode.ino = listed.value"
_STAGED: Final = f"SELECT {STAGED_COLUMNS} {_LISTED} staged ON staged.ino = listed.value"
_LINKS: Final = (
    f"SELECT ino, dentry.parent, name {_LISTED} dentry ON dentry.ino = listed.value"
    " ORDER BY ino, cookie"
)
_XATTRS: Final = (
    f"SELECT ino, name, xattr.value {_LISTED} xattr ON xattr.ino = listed.value ORDER BY ino, name"
)


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """All that a snapshot knows of one file with content in the spool.

    `links` are its names as (directory, name), oldest first.
    """

    inode: Inode
    staged: Staged
    links: list[tuple[int, bytes]] = field(default_factory=list)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Snapshot(Closing, Namespace):
    """The live catalog as it was committed when this was opened.

    Open it right after `Catalog.close_epoch`, with no await between, and it holds exactly the
    changes up to that epoch. It may be used from a worker thread, by one caller at a time. The
    write-ahead log cannot be folded while it is open, so it should live for a segment, not for
    days. Methods raise StateUnusable when the file cannot be read.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        database.execute("BEGIN")
        # The view is taken by the first read, not by BEGIN.
        self.epoch = database.integer_setting("epoch") - 1
        # What `Catalog.begin_segment` and `set_confirmed_sequence` said last.
        self.segment_written_ns = database.integer_setting("segment_written_ns")
        self.confirmed_sequence = database.integer_setting("confirmed_sequence")

    @classmethod
    def open(cls, path: Path) -> Snapshot:
        """A snapshot of the live catalog in `path`. Raises StateUnusable."""
        database = Database.open(path, APPLICATION_LIVE, read_only=True, any_thread=True)
        try:
            return cls(database)
        except BaseException:
            database.close()
            raise

    def inode(self, ino: int) -> Inode | None:
        """An inode as it was, or None when it was gone."""
        row = self._inode_values(ino)
        return Inode(*row) if row else None

    def dirty_staged(self) -> Iterator[Staged]:
        """The files with content that is not on tape yet, by inode number."""
        for row in self._database.stream(
            f"SELECT {STAGED_COLUMNS} FROM staged WHERE dirty_bytes > 0 ORDER BY ino"
        ):
            yield staged_from(row)

    def dirty_sizes(self, after_ino: int) -> Iterator[tuple[int, int, int]]:
        """(inode, dirty bytes, time of last use) of the files with a name and with content that is
        not on tape yet, from the first behind `after_ino` on, in order."""
        yield from self._database.stream(
            "SELECT ino, dirty_bytes, touched_ns FROM staged WHERE dirty_bytes > 0 AND ino > ?"
            " AND EXISTS (SELECT 1 FROM dentry WHERE dentry.ino = staged.ino) ORDER BY ino",
            (after_ino,),
        )

    def files(self, inos: Sequence[int]) -> dict[int, SnapshotFile]:
        """Those of `inos`, at most some hundreds, that exist and have something in the spool."""
        listed = (json.dumps(inos),)
        rows = self._database.rows
        staged = {row[0]: staged_from(row) for row in rows(_STAGED, listed)}
        files = {
            row[0]: SnapshotFile(Inode(*row), staged[row[0]])
            for row in rows(_INODES, listed)
            if row[0] in staged
        }
        for ino, parent, name in rows(_LINKS, listed):
            if ino in files:
                files[ino].links.append((parent, name))
        for ino, name, value in rows(_XATTRS, listed):
            if ino in files:
                files[ino].xattrs[name] = value
        return files

    def staged(self, ino: int) -> Staged | None:
        """What the spool held of a file, or None."""
        row = self._database.first(
            f"SELECT {STAGED_COLUMNS} FROM staged WHERE ino = ?",
            (ino,),
        )
        return staged_from(row) if row else None

    def changed_inodes(self) -> Iterator[int]:
        """The inodes that changed or went since a closed segment told of them, in order."""
        for row in self._database.stream("SELECT ino FROM inode_change ORDER BY ino"):
            yield row[0]

    def changed_dentries(self) -> Iterator[tuple[int, bytes, int | None]]:
        """The names that changed, as (directory, name, inode now or None), in order."""
        yield from self._database.stream(
            "SELECT parent, name, ino FROM dentry_change LEFT JOIN dentry USING (parent, name)"
            " ORDER BY parent, name"
        )

    def change_counts(self) -> tuple[int, int]:
        """How many inodes and how many names changed."""
        row = self._database.first(
            "SELECT (SELECT count(*) FROM inode_change), (SELECT count(*) FROM dentry_change)"
        )
        assert row is not None
        return row[0], row[1]

    def close(self) -> None:
        """Let the view go. May be called again."""
        self._database.close()
