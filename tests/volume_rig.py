"""A whole mounted volume without a kernel: tree, contents, archiver, lane, emulated drive.

`Rig` is the shelf: a cartridge and a state directory. `async with rig.mounted() as user` is one
mount; leaving the block finalizes, `user.crash()` ends it as kill -9 and a power cut of the drive
would.
"""

from __future__ import annotations

import shutil
import stat
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from tapefs.archive.catalogs import make_directory
from tapefs.archive.mounted import MountedVolume, closing_volume, open_volume
from tapefs.archive.tree import Tree
from tapefs.config import Config
from tapefs.daemon.drives import opened
from tapefs.drive import TapeDrive
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.personality import personality_named
from tapefs.emulator.target import Target
from tapefs.emulator.transport import TargetTransport
from tapefs.entries import ROOT_INO, Inode
from tapefs.volume.label import Label
from tapefs.volume.session import read_label, write_label

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tapefs.catalog import TapeView
    from tapefs.daemon.drives import Connect
    from tapefs.drive import Transport

RECORD_BYTES = 64 * 1024


class Crash(Exception):
    """The daemon's process ends here, without a word."""


class User:
    """What a program sees of a mounted volume, by paths."""

    def __init__(
        self,
        volume: MountedVolume,
        target: Target,
        directory: Path,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.volume = volume
        self.target = target
        self.directory = directory
        self.tree = Tree(volume.catalog, self._unreferenced, clock_ns=clock_ns)

    def _unreferenced(self, ino: int) -> None:
        self.volume.contents.discard(ino)
        self.volume.catalog.remove_inode(ino)

    def find(self, path: str) -> Inode:
        """The inode at `path`."""
        ino = ROOT_INO
        for name in filter(None, path.split("/")):
            ino = self.tree.lookup(ino, name.encode()).ino
        return self.volume.catalog.inode(ino)

    def place(self, path: str) -> tuple[int, bytes]:
        """Directory and name of `path`."""
        directory, _, name = path.rpartition("/")
        return self.find(directory).ino, name.encode()

    def mkdir(self, path: str) -> Inode:
        """Make a directory."""
        return self.tree.make(*self.place(path), stat.S_IFDIR | 0o755, 0, 0)

    async def write(self, path: str, data: bytes, offset: int = 0) -> int:
        """Write `data` into the file at `path`, made when missing; closed again."""
        parent, name = self.place(path)
        ino = self.volume.catalog.lookup(parent, name)
        if ino is None:
            ino = self.tree.make(parent, name, stat.S_IFREG | 0o644, 0, 0).ino
        contents = self.volume.contents
        await contents.open(ino, write=True)
        for start in range(0, len(data), 1 << 20):
            await contents.write(ino, offset + start, data[start : start + (1 << 20)])
        await contents.release(ino, write=True)
        return ino

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read from the file at `path`."""
        inode = self.find(path)
        contents = self.volume.contents
        await contents.open(inode.ino, write=False)
        try:
            size = inode.size - offset if length is None else length
            pieces = [
                await contents.read(inode.ino, at, min(1 << 17, offset + size - at))
                for at in range(offset, offset + size, 1 << 17)
            ]
            return b"".join(pieces)
        finally:
            await contents.release(inode.ino, write=False)

    async def fsync(self, path: str) -> None:
        """fsync(2) of the file at `path`."""
        ino = self.find(path).ino
        contents = self.volume.contents
        await contents.open(ino, write=True)
        await contents.fsync(ino)
        await contents.release(ino, write=True)

    async def truncate(self, path: str, size: int) -> None:
        """truncate(2)."""
        await self.volume.contents.truncate(self.find(path).ino, size)

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        self.tree.unlink(*self.place(path))

    def rename(self, old: str, new: str) -> None:
        """rename(2)."""
        self.tree.rename(*self.place(old), *self.place(new))

    def evict_everything(self) -> None:
        """Drop every clean byte from the disk, so that reads need the tape."""
        self.volume.contents.evict(0)
        self.volume.store.clear()

    def crash(self) -> None:
        """End the mount as kill -9 and a power cut of the drive would."""
        raise Crash

    async def sync(self) -> None:
        """Everything to tape."""
        await self.volume.archiver.sync()

    async def snapshot(self) -> dict[str, tuple[Any, ...]]:
        """The whole tree: path to kind, attributes and content."""
        found: dict[str, tuple[Any, ...]] = {}
        catalog = self.volume.catalog
        stack = [("", ROOT_INO)]
        while stack:
            path, directory = stack.pop()
            for _, name, ino in catalog.children(directory, 0, 1 << 30):
                inode = catalog.inode(ino)
                full = f"{path}/{name.decode()}"
                content: bytes | None = None
                if stat.S_ISDIR(inode.mode):
                    stack.append((full, ino))
                elif stat.S_ISREG(inode.mode):
                    content = await self.read(full)
                found[full] = (
                    inode.mode,
                    inode.uid,
                    inode.gid,
                    inode.nlink,
                    inode.size,
                    inode.mtime_ns,
                    inode.target,
                    catalog.xattrs(ino),
                    content,
                )
        return found


class Rig:
    """One cartridge, one drive model, one state directory."""

    def __init__(
        self,
        directory: Path,
        personality: str = "lto5",
        capacity_bytes: int = 1 << 30,
        config: Config | None = None,
    ) -> None:
        self.directory = directory
        self.tap = directory / "cartridge.tap"
        self.state = directory / "state"
        self.personality = personality
        self.capacity_bytes = capacity_bytes
        self.config = config or Config(settle_s=0.0, idle_s=3600.0, commit_s=0.01)
        kind = personality_named(personality)
        block_bytes = kind.block_bytes_max if kind.fixed_only else 0
        self.label = Label(uuid.uuid4(), "RIG", RECORD_BYTES, time.time_ns(), block_bytes)
        # How commands get to the drive; asked anew when the drive is opened again.
        self.wire: Callable[[Target], Transport] = TargetTransport
        # What kind of drive the cartridge is put into.
        self.make_target: Callable[[VirtualCartridge], Target] = Target
        # How the drive is opened, when that takes more than a wire.
        self.connection: Callable[[Target], Connect] | None = None
        self.clock_ns: Callable[[], int] = time.time_ns
        self.boot_id = "first"

    async def format(self) -> None:
        """Make the cartridge and its label."""
        with VirtualCartridge.create(self.tap, self.personality, self.capacity_bytes) as cartridge:
            drive = await TapeDrive.open(TargetTransport(Target(cartridge)))
            await write_label(drive, self.label)

    @asynccontextmanager
    async def mounted(
        self,
        *,
        state: Path | None = None,
        config: Config | None = None,
        read_only: bool = False,
        generation: int | None = None,
    ) -> AsyncIterator[User]:
        """Mount; finalize when the block ends, unless it raised."""
        directory = make_directory((state or self.state) / str(self.label.volume_uuid))
        with VirtualCartridge.open(self.tap) as cartridge:
            target = self.make_target(cartridge)
            connect = self.connection(target) if self.connection else self._connect(target)
            crashed = directory.with_name("crashed")
            async with opened("rig", connect, virtual=True) as holder:
                volume = await open_volume(
                    holder.drive,
                    await read_label(holder.drive),
                    directory,
                    config or self.config,
                    lambda _: None,
                    boot_id=self.boot_id,
                    clock_ns=self.clock_ns,
                    read_only_reason="mounted read-only"
                    if read_only or generation is not None
                    else None,
                    reopen=holder.reopen,
                    generation=generation,
                )
                with closing_volume(volume):
                    async with trio.open_nursery() as nursery:
                        await nursery.start(volume.run)
                        try:
                            yield User(volume, target, directory, self.clock_ns)
                            await volume.finalize()
                        except Crash:
                            # What a dead process leaves on disk, before anything is closed in
                            # order, and a drive without power.
                            shutil.copytree(directory, crashed)
                            target.power_cut()
                        nursery.cancel_scope.cancel()
            if crashed.exists():
                shutil.rmtree(directory)
                crashed.rename(directory)

    def _connect(self, target: Target) -> Connect:
        return lambda: TapeDrive.open(self.wire(target))

    async def tape_dump(self) -> list[Any]:
        """What the tape alone says, as rows: a view rebuilt from nothing."""
        scratch = self.directory / f"scratch-{time.monotonic_ns()}"
        async with self.mounted(state=scratch, read_only=True) as user:
            return dump(user.volume.view)


def dump(view: TapeView) -> list[Any]:
    """Every row of a tape view except cookies, which are local."""
    import sqlite3  # noqa: PLC0415 - tests look behind the catalog on purpose

    connection = sqlite3.connect(view.path)
    queries = [
        "SELECT * FROM inode ORDER BY ino",
        "SELECT parent, name, ino FROM dentry ORDER BY parent, name",
        "SELECT * FROM xattr ORDER BY ino, name",
        "SELECT * FROM extent ORDER BY ino, offset",
        "SELECT * FROM tape_file ORDER BY sequence",
        "SELECT * FROM setting ORDER BY name",
    ]
    rows = [connection.execute(query).fetchall() for query in queries]
    connection.close()
    return rows
