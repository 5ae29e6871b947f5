"""File content in memory: what the mount tests use in place of spool and tape."""

from __future__ import annotations

import enum
import errno
import stat
import time
from typing import TYPE_CHECKING
from uuid import UUID

import trio

from tapefs.archive.tape_attributes import TapeAttributes
from tapefs.catalog import Catalog, TapeView, VolumeSettings
from tapefs.errors import FilesystemError, VolumeFull
from tapefs.fuse.operations import Operations

if TYPE_CHECKING:
    from pathlib import Path

VOLUME_UUID = UUID(int=7)


class MemoryState(enum.Enum):
    """The one state that content in memory can be in."""

    STAGED = "staged"


class MemoryContents:
    """Satisfies `tapefs.fuse.operations.Contents`. Records what was asked of it.

    `gates[ino]`, where set, makes reads of that file wait, as for the tape.
    """

    def __init__(self, catalog: Catalog, capacity_bytes: int = 1 << 40) -> None:
        self.catalog = catalog
        self.capacity_bytes = capacity_bytes
        self.data: dict[int, bytearray] = {}
        self.open_counts: dict[int, int] = {}
        self.synced: list[int] = []
        self.discarded: list[int] = []
        self.gates: dict[int, trio.Event] = {}
        self._waiting_count = 0
        self._waiting_changed = trio.Event()

    async def open(self, ino: int, *, write: bool, truncate: bool) -> None:
        if stat.S_ISDIR(self.catalog.inode(ino).mode):
            raise FilesystemError(errno.EISDIR)
        if truncate:
            await self.truncate(ino, 0)
        self.open_counts[ino] = self.open_counts.get(ino, 0) + 1

    async def release(self, ino: int, *, write: bool) -> None:
        self.open_counts[ino] -= 1
        assert self.open_counts[ino] >= 0, "released more often than opened"
        if not self.open_counts[ino]:
            del self.open_counts[ino]

    async def read(self, ino: int, offset: int, length: int) -> bytes:
        if ino in self.gates:
            self._waiting_count += 1
            self._waiting_changed.set()
            self._waiting_changed = trio.Event()
            await self.gates[ino].wait()
        return bytes(self.data.get(ino, b"")[offset : offset + length])

    async def wait_until_reads_wait(self, count: int) -> None:
        """Returns when `count` reads have come to a gate."""
        while self._waiting_count < count:
            await self._waiting_changed.wait()

    async def write(self, ino: int, offset: int, data: bytes) -> int:
        content = self.data.setdefault(ino, bytearray())
        end = offset + len(data)
        if end > self.capacity_bytes:
            raise VolumeFull("the tape is full")
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset:end] = data
        self._changed(ino, len(content))
        return len(data)

    async def truncate(self, ino: int, size: int) -> None:
        content = self.data.setdefault(ino, bytearray())
        del content[size:]
        content.extend(bytes(size - len(content)))
        self._changed(ino, size)

    async def fsync(self, ino: int) -> None:
        self.synced.append(ino)

    def discard(self, ino: int) -> None:
        assert ino not in self.open_counts, "discarded while open"
        self.data.pop(ino, None)
        self.discarded.append(ino)

    def state(self, ino: int) -> MemoryState:
        return MemoryState.STAGED

    def statfs(self) -> tuple[int, int]:
        return self.capacity_bytes, self.capacity_bytes - sum(map(len, self.data.values()))

    def _changed(self, ino: int, size: int) -> None:
        inode = self.catalog.inode(ino)
        inode.size = size
        inode.mtime_ns = inode.ctime_ns = time.time_ns()
        self.catalog.changed(inode)


class CountingService:
    """Satisfies `tapefs.fuse.operations.Service`."""

    def __init__(self) -> None:
        self.sync_count = 0

    async def sync(self) -> None:
        self.sync_count += 1


def new_catalog(directory: Path) -> Catalog:
    """The live catalog of an empty volume, in `directory`."""
    volume = VolumeSettings(VOLUME_UUID, "test", 512 * 1024, 1_700_000_000_000_000_000)
    view = TapeView.create(directory / "tape.sqlite", volume)
    view.close()
    return Catalog.create_from(directory / "tape.sqlite", directory / "live.sqlite")


def new_operations(
    directory: Path, catalog: Catalog, contents: MemoryContents, service: CountingService
) -> Operations:
    """The handlers over `new_catalog(directory)`."""
    view = TapeView.open(directory / "tape.sqlite")
    return Operations(catalog, contents, service, TapeAttributes(catalog, view, contents))
