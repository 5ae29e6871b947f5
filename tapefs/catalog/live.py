"""The live catalog: the namespace as users see it, and what this host still owes the tape.

Only the trio thread calls it, and every call returns without waiting for anything but the local
disk. All writes go into one long transaction that `commit` ends, so whatever happens between two
awaits is committed together. A crash loses what came after the last commit; power loss what came
after the last durable one.
"""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from tapefs.catalog.creation import create_live
from tapefs.catalog.database import (
    APPLICATION_LIVE,
    Database,
    fold_log,
    lock_database,
    sync_path,
    translated,
)
from tapefs.catalog.extents import cut_extents, insert_extents
from tapefs.catalog.host_settings import HostSettings
from tapefs.catalog.inode_cache import CachedInode, InodeCache
from tapefs.catalog.namespace import NoSuchInode
from tapefs.catalog.new_names import NewNames
from tapefs.catalog.rows import INODE_COLUMNS, S_IFDIR, S_IFMT, Range, Staged, inode_row
from tapefs.catalog.snapshot import Snapshot
from tapefs.catalog.staging import StagedTable
from tapefs.entries import INO_MAX, Extent, ExtentEntry, Inode
from tapefs.errors import TapefsError, VolumeFull

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

CACHED_INODES_MAX: Final = 20_000
MODIFIED_INODES_MAX: Final = 5_000
# Inodes without extended attributes that are kept in mind; a number each.
BARE_INODES_MAX: Final = 50_000

_WRITE_INODE: Final = (
    f"INSERT OR REPLACE INTO inode ({INODE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_NOTE_INODE: Final = "INSERT OR REPLACE INTO inode_change (ino, epoch) VALUES (?, ?)"
_ANY_XATTR: Final = "SELECT 1 FROM xattr WHERE ino = ? LIMIT 1"
_EXISTING: Final = "SELECT ino FROM inode WHERE ino IN (SELECT value FROM json_each(?) AS listed)"
# The tape knows them already, so this is no change to be noted.
_TAKE_HASHES: Final = "UPDATE inode SET sha256 = ?, xxh128 = ? WHERE ino = ?"


class Catalog(HostSettings):
    """The namespace of one mounted volume.

    After an error that may have lost a transaction (disk full, input or output error) every call
    raises StateUnusable: the files on disk then hold the last commit, and the next mount starts
    from it.
    """

    def __init__(
        self, database: Database, lock: int, cached_inodes_max: int, modified_inodes_max: int
    ) -> None:
        super().__init__(database)
        self.path = database.path
        self._lock: int | None = lock
        self._cache = InodeCache(cached_inodes_max)
        self._modified_inodes_max = modified_inodes_max
        # Inodes to be written to inode_change with the current epoch at the next flush.
        self._changed_inos: set[int] = set()
        self._staged = StagedTable(database)
        self._new_names = NewNames(database)
        # Inodes known to have no extended attributes.
        self._bare: set[int] = set()
        self._grouped = False
        # Called before each commit: to hand over what must not be committed without the rest.
        self.before_commit: Callable[[], None] = lambda: None
        # Called, more often than not in vain, when there is something to commit.
        self.on_change: Callable[[], None] = lambda: None
        self._epoch = database.integer_setting("epoch")
        self._next_ino = database.integer_setting("next_ino")
        self._stored_next_ino = self._next_ino
        log = self.path.with_name(self.path.name + "-wal")
        with translated(log):
            self._log = os.open(log, os.O_RDONLY)
            sync_path(self.path.parent)

    @classmethod
    def create_from(cls, tape_view: Path, path: Path, first_ino: int = 0) -> Catalog:
        """Make a live catalog in `path` that says what the tape view in `tape_view` says.

        Nothing is staged, nothing has changed; new inodes have numbers from `first_ino` on. Raises
        StateUnusable when `path` exists, or when either file cannot be used.
        """
        create_live(tape_view, path, first_ino)
        return cls.open(path)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        cached_inodes_max: int = CACHED_INODES_MAX,
        modified_inodes_max: int = MODIFIED_INODES_MAX,
    ) -> Catalog:
        """Open the live catalog in `path`, for this process alone.

        Raises DriveBusy when another process has it open, StateUnusable when the file is missing,
        damaged or cannot be written.
        """
        lock = lock_database(path)
        database = None
        try:
            database = Database.open(path, APPLICATION_LIVE, fail_stop=True)
            return cls(database, lock, cached_inodes_max, modified_inodes_max)
        except BaseException:
            if database is not None:
                database.close()
            os.close(lock)
            raise

    @property
    def epoch(self) -> int:
        """The epoch that changes made now belong to."""
        return self._epoch

    # -- inodes

    def inode(self, ino: int) -> Inode:
        """The one object of this inode. Raises NoSuchInode.

        Everyone who asks gets the same object, as long as anyone holds it. Change it in place and
        tell `changed`.
        """
        inode = self._cache.find(ino)
        if inode is None:
            row = self._inode_values(ino)
            if row is None:
                raise NoSuchInode(ino)
            inode = CachedInode(*row)
            self._cache.add(inode)
        return inode

    def new_inode(
        self,
        mode: int,
        uid: int,
        gid: int,
        *,
        now_ns: int = 0,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """A new inode with a number never used before, counted as linked once; link it next.

        `mode` carries the type; a directory starts with 2 links, a symlink with the size of its
        `target`. All its times are `now_ns`. Raises VolumeFull when no number is left.
        """
        if self._next_ino > INO_MAX:
            raise VolumeFull("this volume has no inode numbers left; use another cartridge")
        inode = CachedInode(
            self._next_ino,
            mode,
            uid,
            gid,
            nlink=2 if mode & S_IFMT == S_IFDIR else 1,
            size=len(target) if target is not None else 0,
            rdev=rdev,
            atime_ns=now_ns,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
            target=target,
        )
        self._next_ino += 1
        self._cache.add(inode)
        self._note_bare(inode.ino)
        self.changed(inode)
        return inode

    def changed(self, inode: Inode) -> None:
        """Take note that an object from `inode` or `new_inode` was changed.

        Raises NoSuchInode when it was removed since.
        """
        if not self._cache.mark_modified(inode):
            raise NoSuchInode(inode.ino)
        self._changed_inos.add(inode.ino)
        self.on_change()
        if self._cache.modified_count > self._modified_inodes_max and not self._grouped:
            self.flush()

    def remove_inode(self, ino: int) -> None:
        """Remove an inode with its extended attributes, extents and staged row, but no names."""
        self._begin()
        self._cache.drop(ino)
        self._staged.delete(ino)
        for table in ("inode", "xattr", "extent"):
            self._database.execute(f"DELETE FROM {table} WHERE ino = ?", (ino,))
        self._changed_inos.add(ino)

    def orphans(self) -> list[int]:
        """The inodes that have no name but were still open when the last session ended."""
        self.flush()
        return [row[0] for row in self._database.rows("SELECT ino FROM inode WHERE nlink = 0")]

    # -- names

    def lookup(self, parent: int, name: bytes) -> int | None:
        """The inode that directory `parent` calls `name`, or None."""
        return self._new_names.lookup((parent, name))

    def link(self, parent: int, name: bytes, ino: int) -> None:
        """Let directory `parent` call `ino` by `name`, instead of what had the name."""
        self._begin()
        self._new_names.give((parent, name), ino, self._epoch)

    def unlink(self, parent: int, name: bytes) -> None:
        """Take `name` from directory `parent`; does nothing when it does not have it."""
        self._begin()
        self._new_names.take((parent, name), self._epoch)

    def _names(self) -> Database:
        self._new_names.write(self._epoch)
        return self._database

    def entries(
        self, parent: int, after_cookie: int, limit: int
    ) -> list[tuple[int, bytes, Inode, bool]]:
        """As `Namespace.entries`. Who has no extended attributes is kept in mind."""
        self.flush()
        found = super().entries(parent, after_cookie, limit)
        for _, _, inode, has_xattrs in found:
            if not has_xattrs:
                self._note_bare(inode.ino)
        return found

    # -- extended attributes

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """One extended attribute of an inode, or None. Without a query where the inode is known
        to have none: programs and the kernel ask for several of each file."""
        if ino in self._bare:
            return None
        value = super().xattr(ino, name)
        if value is None and not self._database.rows(_ANY_XATTR, (ino,)):
            self._note_bare(ino)
        return value

    def _note_bare(self, ino: int) -> None:
        if len(self._bare) >= BARE_INODES_MAX:
            self._bare.clear()
        self._bare.add(ino)

    def set_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Give an inode an extended attribute, replacing the value it had."""
        self._begin()
        self._bare.discard(ino)
        self._database.execute(
            "INSERT OR REPLACE INTO xattr (ino, name, value) VALUES (?, ?, ?)", (ino, name, value)
        )
        self._changed_inos.add(ino)

    def remove_xattr(self, ino: int, name: bytes) -> bool:
        """Take an extended attribute from an inode; False when it had none of that name."""
        self._begin()
        if not self._database.execute("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, name)):
            return False
        self._changed_inos.add(ino)
        return True

    # -- content

    def cut_extents(self, ino: int, size: int) -> None:
        """Forget where bytes from `size` on stand on tape: the file was cut there."""
        self._begin()
        cut_extents(self._database, ino, size)

    def load_staged(self, ino: int) -> Staged | None:
        """What the spool holds of a file, or None."""
        return self._staged.load(ino)

    def save_staged(self, staged: Staged) -> None:
        """Write or replace what the spool holds of a file."""
        self._begin()
        self._staged.save(staged)

    def delete_staged(self, ino: int) -> None:
        """Take note that the spool holds nothing of a file."""
        self._begin()
        self._staged.delete(ino)

    def staged_totals(self) -> tuple[int, int, int]:
        """(files with dirty bytes, dirty bytes, resident bytes). Reads through all rows."""
        return self._staged.totals()

    def prefetch_staged(self, inos: Collection[int]) -> None:
        """`load_staged` will be asked of these, some hundreds: get them in one query."""
        self._staged.prefetch(inos)

    def clean_staged(self, limit: int = 100) -> list[Staged]:
        """Up to `limit` files that may be evicted, the longest unused first."""
        return self._staged.clean(limit)

    def staged_inos(self) -> Iterator[int]:
        """Every file the spool holds something of, in order; rows may change meanwhile."""
        return self._staged.all_inos()

    def owes_tape(self) -> bool:
        """Whether any content or change is not on tape yet."""
        self.flush()
        row = self._database.first(
            "SELECT EXISTS (SELECT 1 FROM staged WHERE dirty_bytes > 0)"
            " OR EXISTS (SELECT 1 FROM inode_change) OR EXISTS (SELECT 1 FROM dentry_change)"
        )
        return bool(row and row[0])

    # -- transactions and epochs

    @property
    def needs_commit(self) -> bool:
        """Whether anything changed since the last commit."""
        return bool(
            self._database.in_transaction or self._changed_inos or self._cache.modified_count
        )

    def flush(self) -> None:
        """Write modified inodes into the open transaction."""
        assert not self._grouped, "inode objects are not written within transaction()"
        self._staged.write()
        self._new_names.write(self._epoch)
        if not (self._changed_inos or self._cache.modified_count):
            return
        self._begin()
        self._database.execute_many(_WRITE_INODE, map(inode_row, self._cache.modified()))
        self._database.execute_many(
            _NOTE_INODE, [(ino, self._epoch) for ino in sorted(self._changed_inos)]
        )
        if self._next_ino != self._stored_next_ino:
            self._database.set_setting("next_ino", self._next_ino)
            self._stored_next_ino = self._next_ino
        self._cache.clear_modified()
        self._changed_inos.clear()

    def commit(self, *, durable: bool = False) -> None:
        """End the open transaction: all changes so far survive the end of the process.

        With `durable` they also survive power loss when this returns.
        """
        self.before_commit()
        self.flush()
        if self._database.in_transaction:
            self._database.commit()
        if durable:
            self.sync_log()

    def sync_log(self) -> None:
        """Wait until everything committed survives power loss. May run in any thread.

        Raises StateUnusable when the disk fails.
        """
        with translated(self.path):
            os.fsync(self._log)

    def fold_log(self) -> None:
        """Fold the write-ahead log into the database. May run in any thread, beside all else.

        Without it, a commit does so by itself when the log has grown, and takes its time.
        """
        fold_log(self.path)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Rows written inside are kept together, or dropped when an exception leaves the block.

        The block must not await, and must not commit; inode objects are not put back.
        """
        self.flush()
        self._begin()
        self._database.execute("SAVEPOINT grouped")
        self._grouped = True
        try:
            yield
        except BaseException:
            with suppress(TapefsError):
                self._database.execute("ROLLBACK TO grouped")
                self._staged.forget()
                self._new_names.forget()
            raise
        finally:
            self._grouped = False
            with suppress(TapefsError):
                self._database.execute("RELEASE grouped")

    def close_epoch(self) -> int:
        """Commit durably and return the epoch that ends here; later changes belong to the next.

        So whatever is written to tape from a snapshot of this epoch, the catalog has it as well,
        also after power loss.
        """
        ended = self._epoch
        self.flush()
        self._begin()
        self._epoch += 1
        self._database.set_setting("epoch", self._epoch)
        self.commit(durable=True)
        return ended

    def snapshot(self) -> Snapshot:
        """A frozen view of what is committed now."""
        return Snapshot.open(self.path)

    def confirm(
        self,
        sequence: int,
        epoch: int,
        *,
        extents: Iterable[tuple[ExtentEntry, Sequence[Range]]] = (),
        logged_inodes: Iterable[int] = (),
        logged_dentries: Iterable[tuple[int, bytes]] = (),
        hashes: Iterable[tuple[int, bytes | None, bytes | None]] = (),
    ) -> None:
        """Take note of what tape file `sequence`, written from a snapshot of `epoch`, now holds.

        `extents`: what was written, each with the ranges (start, end) of the file for which it
        still is the content. `logged_inodes`, `logged_dentries`: what its journal tells; changes
        after `epoch` stay noted. `hashes`: (inode, SHA-256, xxh128) of whole contents that the
        caller knows to be the content still. Inodes that are gone are passed over.

        May be called in batches, with other work between; repeating one changes nothing.
        """
        if not self._grouped:
            self.flush()
        self._begin()
        insert_extents(self._database, self._kept(extents, sequence))
        self._take_hashes(list(hashes))
        self._database.execute_many(
            "DELETE FROM inode_change WHERE ino = ? AND epoch <= ?",
            ((ino, epoch) for ino in logged_inodes),
        )
        self._database.execute_many(
            "DELETE FROM dentry_change WHERE parent = ? AND name = ? AND epoch <= ?",
            ((parent, name, epoch) for parent, name in logged_dentries),
        )

    def close(self, *, clean: bool, commit: bool = True) -> None:
        """Commit everything, or nothing, and close the file; may be called again.

        `clean`: the tape has everything too, and the next mount need not look for leftovers.
        """
        if self._lock is None:
            return
        try:
            if commit:
                self._begin()
                self._database.set_setting("clean_shutdown", int(clean))
                self.commit(durable=True)
        finally:
            self._database.close()
            os.close(self._log)
            os.close(self._lock)
            self._lock = None

    def _begin(self) -> None:
        if not self._database.in_transaction:
            self._database.begin()
            self.on_change()

    def _kept(
        self, extents: Iterable[tuple[ExtentEntry, Sequence[Range]]], sequence: int
    ) -> list[Extent]:
        """What files that exist still have of `extents`, written to tape file `sequence`."""
        told = [(entry, kept) for entry, kept in extents if kept]
        inos = json.dumps([entry.ino for entry, _ in told])
        existing = {row[0] for row in self._database.rows(_EXISTING, (inos,))}
        found: list[Extent] = []
        for entry, kept in told:
            if entry.ino not in existing:
                continue
            for start, end in kept:
                assert entry.offset <= start < end <= entry.offset + entry.length, "range outside"
                position = entry.position + start - entry.offset
                found.append(Extent(entry.ino, start, end - start, sequence, position))
        return found

    def _take_hashes(self, hashes: Sequence[tuple[int, bytes | None, bytes | None]]) -> None:
        self._database.execute_many(
            _TAKE_HASHES, ((sha256, xxh128, ino) for ino, sha256, xxh128 in hashes)
        )
        for ino, sha256, xxh128 in hashes:
            inode = self._cache.find(ino)
            if inode is not None:
                inode.sha256, inode.xxh128 = sha256, xxh128
