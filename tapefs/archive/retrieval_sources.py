"""Where data is got back from: a mount, as by any program; or a volume open in this process."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tapefs.archive.reading_order import TapeLayout
from tapefs.archive.retrieval import CHANGED, NotGiven
from tapefs.archive.shelf import clean_path, no_such_path
from tapefs.archive.tape_attributes import LAYOUT
from tapefs.catalog import Item, ShelfCatalog
from tapefs.entries import Inode, printable
from tapefs.errors import DriveBusy, DriveGone, MediumFailed, NotMounted, NotReady, TapefsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    from tapefs.archive.mounted import MountedVolume
    from tapefs.archive.retrieval import ReadAt
    from tapefs.catalog import Named

    # Runs an async function, with what it needs, where the volume lives; returns what it returns.
    Ask: TypeAlias = Callable[..., Any]


class MountSource:
    """The mount at `mountpoint` of the volume `volume`, through the kernel.

    What is in the spool counts, as for any program. Satisfies `retrieval.Source`.
    """

    def __init__(self, mountpoint: Path, volume: str) -> None:
        self.volume = volume
        self._root = os.fsencode(mountpoint)

    def items(self, origin: bytes, path: bytes) -> Iterator[Item]:
        """See `retrieval.Source`. Raises NotGiven for what cannot be looked at."""
        levels = [iter([(origin, path)])]
        while levels:
            place = next(levels[-1], None)
            if place is None:
                levels.pop()
                continue
            with self._translated(place[0]):
                item = self._item(*place)
                if item.path:
                    yield item
                if stat.S_ISDIR(item.inode.mode):
                    levels.append(self._children(item))

    def layout(self) -> TapeLayout | None:
        """See `retrieval.Source`."""
        return TapeLayout.unpack(_xattr(self._root, LAYOUT))

    def xattrs(self, item: Item) -> dict[bytes, bytes]:
        """See `retrieval.Source`."""
        place = self._place(item.origin)
        with self._translated(item.origin):
            names = map(os.fsencode, os.listxattr(place, follow_symlinks=False))
            return {name: os.getxattr(place, name, follow_symlinks=False) for name in names}

    @contextmanager
    def opened(self, item: Item) -> Iterator[ReadAt]:
        """See `retrieval.Source`."""

        def read_at(offset: int, length: int) -> bytes:
            with self._translated(item.origin):
                data = os.pread(fd, length, offset)
                while data and len(data) < length:
                    more = os.pread(fd, length - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
                return data

        with self._translated(item.origin):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._place(item.origin), flags)
        try:
            yield read_at
            with self._translated(item.origin):
                now = os.fstat(fd)
            if (now.st_size, now.st_mtime_ns) != (item.inode.size, item.inode.mtime_ns):
                raise NotGiven(CHANGED)
        finally:
            os.close(fd)

    def _place(self, origin: bytes) -> bytes:
        return os.path.join(self._root, origin) if origin else self._root

    def _children(self, item: Item) -> Iterator[tuple[bytes, bytes]]:
        with self._translated(item.origin), os.scandir(self._place(item.origin)) as entries:
            for entry in entries:
                yield os.path.join(item.origin, entry.name), os.path.join(item.path, entry.name)

    def _item(self, origin: bytes, path: bytes) -> Item:
        place = self._place(origin)
        found = os.lstat(place)
        inode = Inode(
            found.st_ino,
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_nlink,
            found.st_size,
            found.st_rdev,
            found.st_atime_ns,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )
        block = b""
        if stat.S_ISLNK(inode.mode):
            inode.target = os.readlink(place)
        elif stat.S_ISREG(inode.mode):
            block = _xattr(place, b"user.tapefs.start-block")
            inode.sha256 = bytes.fromhex(_xattr(place, b"user.tapefs.sha256").decode()) or None
            inode.xxh128 = bytes.fromhex(_xattr(place, b"user.tapefs.xxh128").decode()) or None
        return Item(path, origin, inode, int(block or 0))

    @contextmanager
    def _translated(self, origin: bytes) -> Iterator[None]:
        """Turn what the kernel says about `origin` into what it means."""
        try:
            yield
        except OSError as exc:
            raise _meaning(exc, printable(origin), os.fsdecode(self._root)) from exc


def _xattr(place: bytes, name: bytes) -> bytes:
    with suppress(OSError):
        return os.getxattr(place, name, follow_symlinks=False)
    return b""


def _meaning(exc: OSError, what: str, mountpoint: str) -> TapefsError:
    status = f"'tapefs status {mountpoint}' and the log of the mount say more"
    if exc.errno == errno.EIO:
        return MediumFailed(f"it cannot be read from the tape; {status}")
    if exc.errno in (errno.ENODEV, errno.ENXIO):
        return DriveGone(f"the drive is away; {status}")
    if exc.errno == errno.ENOMEDIUM:
        wanted = _xattr(os.fsencode(mountpoint), b"user.tapefs.problem").decode()
        return NotReady(wanted or f"the cartridge is not in the drive; {status}")
    if exc.errno in (errno.EAGAIN, errno.EBUSY):
        return DriveBusy("too many programs read from the tape; run the same command again later")
    if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return NotMounted(f"the mount at {mountpoint} has ended; mount the tape again")
    if exc.errno in (errno.ENOENT, errno.ESTALE):
        return NotGiven(CHANGED)
    return NotGiven(f"{what} cannot be read: {exc.strerror}")


class VolumeSource:
    """A volume that is open in this process, whose trio loop `ask` reaches from this thread.

    Satisfies `retrieval.Source`.
    """

    def __init__(self, volume: MountedVolume, ask: Ask) -> None:
        self.volume = str(volume.label.volume_uuid)
        self._volume = volume
        self._ask = ask

    def items(self, origin: bytes, path: bytes) -> Iterator[Item]:
        """See `retrieval.Source`. Raises UsageError when there is no such path."""
        volume = self._volume
        first_blocks: dict[int, int] = self._ask(self._first_blocks)
        with ShelfCatalog.open(volume.catalog.path, volume.view.path) as catalog:
            clean = clean_path(origin)
            found = catalog.at(clean)
            if found is None:
                raise no_such_path(volume.label.name, clean)
            levels: list[Iterator[tuple[bytes, bytes, Named]]] = [iter([(clean, path, found)])]
            while levels:
                entry = next(levels[-1], None)
                if entry is None:
                    levels.pop()
                    continue
                item = self._item(catalog, first_blocks, *entry)
                if item.path:
                    yield item
                if stat.S_ISDIR(item.inode.mode):
                    levels.append(_children_of(catalog, item))

    def layout(self) -> TapeLayout | None:
        """See `retrieval.Source`."""
        return TapeLayout.of(self._volume.scheduler, self._volume.label.geometry)

    def xattrs(self, item: Item) -> dict[bytes, bytes]:
        """See `retrieval.Source`."""
        found: dict[bytes, bytes] = self._ask(self._xattrs, item.inode.ino)
        return found

    @contextmanager
    def opened(self, item: Item) -> Iterator[ReadAt]:
        """See `retrieval.Source`."""
        yield lambda offset, length: self._ask(self._read, item.inode.ino, offset, length)

    def _item(
        self,
        catalog: ShelfCatalog,
        first_blocks: dict[int, int],
        origin: bytes,
        path: bytes,
        named: Named,
    ) -> Item:
        extent = catalog.first_extent(named.inode.ino) if stat.S_ISREG(named.inode.mode) else None
        first_block = first_blocks.get(extent.sequence) if extent else None
        if extent is None or first_block is None:
            return Item(path, origin, named.inode)
        block = self._volume.label.geometry.extent_address(extent, first_block).block
        return Item(path, origin, named.inode, block, extent.position)

    async def _first_blocks(self) -> dict[int, int]:
        return {file.sequence: file.first_block for file in self._volume.view.tape_files()}

    async def _xattrs(self, ino: int) -> dict[bytes, bytes]:
        return self._volume.catalog.xattrs(ino)

    async def _read(self, ino: int, offset: int, length: int) -> bytes | memoryview:
        contents = self._volume.contents
        await contents.open(ino, write=False)
        try:
            return await contents.read(ino, offset, length)
        finally:
            await contents.release(ino, write=False)


def _children_of(catalog: ShelfCatalog, item: Item) -> Iterator[tuple[bytes, bytes, Named]]:
    for child in catalog.listing(item.inode.ino):
        yield (
            os.path.join(item.origin, child.name),
            os.path.join(item.path, child.name),
            child,
        )
