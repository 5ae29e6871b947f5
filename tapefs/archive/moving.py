"""Takes what waits in the spool of one volume somewhere else: the next cartridge, mounted.

For a volume that is full, worn out or was written by another host, and is not mounted. Everything
is copied first, made safe at its new place, and only then forgotten here: after a crash anywhere
it is in both places at worst, and the command run again finds the copies. What cannot be taken
stays, and is named with the reason.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tapefs.archive import placement
from tapefs.archive.catalogs import LIVE_NAME, VIEW_NAME, written_elsewhere
from tapefs.archive.ranges import RangeSet
from tapefs.archive.spool import Spool
from tapefs.archive.waiting import is_whole
from tapefs.catalog import Catalog, NoSuchInode, Staged, TapeView
from tapefs.entries import ROOT_INO, ExtentEntry, Inode
from tapefs.errors import DriveBusy, MountpointUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from tapefs.archive.waiting import WaitingVolume

    Report = Callable[[dict[str, Any]], None]

_COPY_BYTES: Final = 1 << 20
_TAKEN: Final = "something else has its name there: move that away"
_NEEDS_TAPE: Final = "a part of it is only on its own tape: mount that and copy the file from there"


@dataclass(slots=True)
class Moved:
    """What became of what waited. `left`: path and reason of what was not taken.

    `remarks` are about what was taken, but not in every respect; `changes_count` is how many
    changes of names and attributes concern what is on the old tape, and stay.
    """

    files_count: int = 0
    moved_bytes: int = 0
    left: list[tuple[bytes, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    changes_count: int = 0


def move(volume: WaitingVolume, target: Path, report: Report) -> Moved:
    """Move everything that waits in `volume` into the directory `target`.

    Raises DriveBusy when the volume is mounted, MountpointUnusable when `target` is no directory
    or fails, StateUnusable.
    """
    with ExitStack() as opened:
        try:
            catalog = Catalog.open(volume.directory / LIVE_NAME)
        except DriveBusy as exc:
            raise DriveBusy(
                f"volume '{volume.name}' is mounted; unmount it, then move what waits"
            ) from exc
        was_clean = catalog.clean_shutdown
        # Unless all went well: what is half forgotten is not forgotten.
        opened.callback(lambda: catalog.close(clean=was_clean, commit=False))
        view = TapeView.open(volume.directory / VIEW_NAME)
        opened.callback(view.close)
        # The limit matters to writers only; nothing is written to this spool.
        spool = Spool(volume.directory / "spool", limit_bytes=1)
        try:
            root = os.open(target, placement.OPEN_DIRECTORY & ~os.O_NOFOLLOW)
        except OSError as exc:
            raise MountpointUnusable(
                f"{target} is no usable directory: {exc.strerror}; name one that exists with --to"
            ) from exc
        opened.callback(os.close, root)
        mover = _Mover(catalog, view, spool, root, report, trusts_caches=was_clean)
        try:
            mover.copy_all(volume.waiting_bytes)
        except OSError as exc:
            raise MountpointUnusable(
                f"{target} does not keep what is copied there ({exc.strerror}); everything is "
                "still in the spool"
            ) from exc
        mover.forget_copied()
        catalog.close(clean=was_clean)
        return mover.moved


class _Mover:
    """One move."""

    def __init__(
        self,
        catalog: Catalog,
        view: TapeView,
        spool: Spool,
        root: int,
        report: Report,
        *,
        trusts_caches: bool,
    ) -> None:
        self._catalog = catalog
        self._view = view
        self._spool = spool
        self._root = root
        self._report = report
        self._trusts_caches = trusts_caches
        # Then inode numbers on tape are another host's, and names here are no part of it.
        self._is_foreign = written_elsewhere(view, catalog)
        self.moved = Moved()
        # What is at its new place now, directories after what is in them.
        self._copied: list[int] = []
        self._new_directories: list[int] = []
        # Directories made or used at the new place, by path.
        self._directories: dict[bytes, int] = {b"": ROOT_INO}

    # -- copying

    def copy_all(self, total_bytes: int) -> None:
        """Copy, and make it last. Raises OSError of the new place."""
        catalog = self._catalog
        with catalog.snapshot() as snapshot:
            for row in snapshot.dirty_staged():
                self._report(
                    {
                        "event": "progress",
                        "phase": "move",
                        "message": "copying what waits in the spool",
                        "done_bytes": self.moved.moved_bytes,
                        "total_bytes": total_bytes,
                    }
                )
                self._copy(row.ino, row)
            for ino in snapshot.changed_inodes():
                inode, row_or_none = snapshot.inode(ino), snapshot.staged(ino)
                waits = row_or_none is not None and bool(row_or_none.dirty)
                if inode is not None and not waits and self._is_new(inode):
                    self._copy(ino, None)
        self._finish_directories()

    def _is_new(self, inode: Inode) -> bool:
        """Whether the tape does not have this inode, which waits without any content."""
        if inode.ino == ROOT_INO:
            return False
        if self._is_foreign:
            return not (stat.S_ISREG(inode.mode) and inode.size)
        return not self._view.has_inode(inode.ino)

    def _copy(self, ino: int, row: Staged | None) -> None:
        inode, links = self._catalog.inode(ino), self._catalog.links(ino)
        if not links:
            return  # unlinked while it was open: nobody can want it any more
        paths = [self._catalog.path_of(*link) for link in links]
        if row is not None and not self._is_here(row, inode):
            self.moved.left.append((paths[0], _NEEDS_TAPE))
            return
        path = paths[0]
        try:
            if stat.S_ISDIR(inode.mode):
                self._enter(path)
                self._new_directories.append(ino)
                return
            for number, path in enumerate(paths):
                if refused := self._place(inode, row, path, paths[0] if number else None):
                    self.moved.left.append((path, refused))
                    return
        except OSError as exc:
            self.moved.left.append((path, f"it could not be copied: {exc.strerror}"))
            return
        self._copied.append(ino)
        if row is not None:
            self.moved.files_count += 1
            self.moved.moved_bytes += sum(end - start for start, end in row.dirty)

    def _is_here(self, row: Staged, inode: Inode) -> bool:
        trusted = row
        if not self._trusts_caches:
            # After an unclean end clean ranges may be overwritten, and others may be lost.
            dirty = RangeSet(row.dirty)
            resident = RangeSet(row.resident)
            kept = resident.without(resident.without(dirty))
            trusted = Staged(row.ino, kept.as_pairs(), row.dirty)
            if any(end > self._spool.file_bytes(row.ino) for _, end in kept):
                return False
        return is_whole(trusted, inode.size)

    def _place(self, inode: Inode, row: Staged | None, path: bytes, first: bytes | None) -> str:
        """Bring one name to its new place; why not, or an empty string."""
        parent, _, name = path.rpartition(b"/")
        with self._opened(parent) as directory:
            if first is not None:
                return self._link(first, directory, name)
            there = placement.status_of(directory, name)
            if there is not None:
                same = self._is_same(inode, row, directory, name, there)
                if same:
                    placement.remove_name(directory, _making(inode))
                return "" if same else _TAKEN
            if stat.S_ISREG(inode.mode):
                return self._write_file(inode, row, directory, name)
            placement.make_node(inode, directory, name)
            self._set_attributes(inode, directory, name)
        return ""

    def _link(self, first: bytes, directory: int, name: bytes) -> str:
        first_parent, _, first_name = first.rpartition(b"/")
        with self._opened(first_parent) as source:
            there = placement.status_of(directory, name)
            original = placement.status_of(source, first_name)
            assert original is not None
            if there is not None:
                same = there.st_ino == original.st_ino
                return "" if same else _TAKEN
            os.link(
                first_name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False
            )
        return ""

    def _write_file(self, inode: Inode, row: Staged | None, directory: int, name: bytes) -> str:
        """Why it did not get its name, or empty."""
        making = _making(inode)
        try:
            with placement.made_whole(directory, making, name) as fd:
                os.ftruncate(fd, inode.size)
                for start, data in self._pieces(row, inode.size):
                    placement.write_at(fd, start, data)
                self._set_attributes(inode, directory, making)
                os.fsync(fd)
        except FileExistsError:
            return _TAKEN
        return ""

    def _pieces(self, row: Staged | None, size: int) -> Iterator[tuple[int, bytes]]:
        """The file's bytes that are not holes, with their offsets."""
        if row is None or not row.resident:
            return
        fd = self._spool.open_for_reading(row.ino)
        try:
            for start, end in RangeSet(row.resident).within(0, size):
                at = start
                while at < end:
                    data = os.pread(fd, min(_COPY_BYTES, end - at), at)
                    # A hole at the end of the spool file; `_is_here` has looked.
                    data = data or bytes(min(_COPY_BYTES, end - at))
                    yield at, data
                    at += len(data)
        finally:
            os.close(fd)

    def _is_same(
        self, inode: Inode, row: Staged | None, directory: int, name: bytes, there: os.stat_result
    ) -> bool:
        """Whether the copy of an earlier, interrupted move has the name already; then it lasts."""
        if not (stat.S_ISREG(inode.mode) and stat.S_ISREG(there.st_mode)):
            return placement.is_same_node(inode, directory, name, there)
        if (there.st_size, there.st_mtime_ns) != (inode.size, inode.mtime_ns):
            return False
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            for start, data in self._pieces(row, inode.size):
                if os.pread(fd, len(data), start) != data:
                    return False
            # It may be somebody's own copy, which nobody has written out yet.
            os.fsync(fd)
            return True
        finally:
            os.close(fd)

    def _set_attributes(self, inode: Inode, directory: int, name: bytes) -> None:
        xattrs = self._catalog.xattrs(inode.ino)

        def remark(text: str) -> None:
            self._remark(text.format(os.fsdecode(name)))

        placement.set_attributes(inode, xattrs, directory, name, remark)

    def _remark(self, text: str) -> None:
        if text not in self.moved.remarks:
            self.moved.remarks.append(text)

    # -- directories

    def _enter(self, path: bytes) -> None:
        """Make directory `path` and those above it, as far as they are missing."""
        if path in self._directories:
            return
        parent, _, name = path.rpartition(b"/")
        self._enter(parent)
        above = self._directories[parent]
        ino = self._catalog.lookup(above, name)
        assert ino is not None
        with self._opened(parent) as directory:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=directory)
            # What is there already may be something else, and then nothing goes into it.
            os.close(os.open(name, placement.OPEN_DIRECTORY, dir_fd=directory))
        self._directories[path] = ino

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        """A descriptor of directory `path` below the new place, made when missing."""
        self._enter(path)
        with placement.opened_below(self._root, path) as fd:
            yield fd

    def _finish_directories(self) -> None:
        """Attributes from the deepest up; then everything lasts, on tape where that is a mount."""
        for path in sorted(self._directories, key=lambda path: path.count(b"/"), reverse=True):
            if not path:
                continue
            parent, _, name = path.rpartition(b"/")
            with self._opened(parent) as above, self._opened(path) as directory:
                self._set_attributes(self._catalog.inode(self._directories[path]), above, name)
                os.fsync(directory)
        os.fsync(self._root)

    # -- forgetting

    def forget_copied(self) -> None:
        """What was copied waits here no more: each file is again what the old tape says."""
        catalog = self._catalog
        inos, names = [*self._copied], list[tuple[int, bytes]]()
        for ino in self._copied:
            if self._is_foreign:
                catalog.delete_staged(ino)
                names += catalog.links(ino)
            elif self._view.has_inode(ino):
                self._as_on_tape(ino)
            else:
                names += self._remove(ino)
        for ino in sorted(self._new_directories, key=self._depth, reverse=True):
            if self._is_foreign:
                names += catalog.links(ino)
                inos.append(ino)
            elif not catalog.has_children(ino):
                names += self._remove(ino)
                inos.append(ino)
        inos += self._directories_with_other_times()
        catalog.flush()
        catalog.confirm(
            catalog.confirmed_sequence,
            catalog.epoch,
            extents=[],
            logged_inodes=inos,
            logged_dentries=names,
            hashes=[],
        )
        # Durable first: a catalog from before would look for what is deleted now.
        catalog.commit(durable=True)
        self._spool.sweep(set(catalog.staged_inos()))
        with catalog.snapshot() as snapshot:
            self.moved.changes_count = sum(snapshot.change_counts())

    def _depth(self, ino: int) -> int:
        return self._catalog.directory_path(ino).count(b"/")

    def _remove(self, ino: int) -> list[tuple[int, bytes]]:
        """A file that the tape never had; those of its names that the tape does not know.

        Where it had replaced something, that stays replaced: a change that the tape lacks.
        """
        catalog = self._catalog
        links = catalog.links(ino)
        for parent, name in links:
            catalog.unlink(parent, name)
            if stat.S_ISDIR(catalog.inode(ino).mode):
                above = catalog.inode(parent)
                above.nlink -= 1
                catalog.changed(above)
        catalog.remove_inode(ino)
        return [link for link in links if self._view.lookup(*link) is None]

    def _as_on_tape(self, ino: int) -> None:
        catalog, view = self._catalog, self._view
        catalog.delete_staged(ino)
        catalog.cut_extents(ino, 0)
        for extent in view.extents(ino):
            entry = ExtentEntry(ino, extent.offset, extent.length, extent.position, b"")
            whole = [(extent.offset, extent.offset + extent.length)]
            # Epoch 0: no change is taken for told.
            catalog.confirm(extent.sequence, 0, extents=[(entry, whole)])
        for name in catalog.xattrs(ino):
            catalog.remove_xattr(ino, name)
        for name, value in view.xattrs(ino).items():
            catalog.set_xattr(ino, name, value)
        self._take_attributes(ino)

    def _take_attributes(self, ino: int) -> None:
        inode, told = self._catalog.inode(ino), self._view.inode(ino)
        assert told is not None
        for name in ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns", "ctime_ns"):
            setattr(inode, name, getattr(told, name))
        inode.sha256, inode.xxh128 = told.sha256, told.xxh128
        self._catalog.changed(inode)

    def _directories_with_other_times(self) -> list[int]:
        """Directories on tape of which only the times changed, by what came and went in them."""
        found = []
        with self._catalog.snapshot() as snapshot:
            changed = list(snapshot.changed_inodes())
        for ino in changed:
            told = self._view.inode(ino)
            with suppress(NoSuchInode):
                inode = self._catalog.inode(ino)
                if told is None or not (stat.S_ISDIR(inode.mode) and stat.S_ISDIR(told.mode)):
                    continue
                same = (inode.mode, inode.uid, inode.gid) == (told.mode, told.uid, told.gid)
                if same and self._catalog.xattrs(ino) == self._view.xattrs(ino):
                    self._take_attributes(ino)
                    found.append(ino)
        return found


def _making(inode: Inode) -> bytes:
    """The name of a copy that is not whole yet."""
    return b".tapefs-moving-%d" % inode.ino
