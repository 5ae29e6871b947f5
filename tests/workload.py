"""What a program does to a volume, with the oracle told of every step before it is taken."""

from __future__ import annotations

import dataclasses
import random
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from oracle import Content, Oracle, Photo, names_of, node_of, overwritten, resized, size_of

from tapefs.errors import TapefsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from volume_rig import User


def noise(seed: int, length: int) -> bytes:
    """Content without any repetition."""
    return random.Random(seed).randbytes(length)


class Program:
    """Uses one mount. Each method is one system call, or open, call and close."""

    def __init__(self, user: User, oracle: Oracle) -> None:
        self.user = user
        self.oracle = oracle

    def photo(self) -> Photo:
        """The tree now: names and attributes of the mount, content as the program wrote it."""
        catalog = self.user.volume.catalog
        before, photo = self.oracle.last, Photo()
        for parent, name, ino in names_of(self.user):
            photo.names[parent, name] = ino
            if ino not in photo.nodes:
                known = before.nodes.get(ino)
                content = known.content if known else ()
                photo.nodes[ino] = node_of(catalog.inode(ino), catalog.xattrs(ino), content)
        return photo

    def _took_place(self) -> None:
        self.oracle.history.append(self.photo())

    # -- names

    def create(self, path: str) -> int:
        """creat(2) of a name that is free."""
        inode = self.user.tree.make(*self.user.place(path), stat.S_IFREG | 0o644, 0, 0)
        self._took_place()
        return inode.ino

    def mkdir(self, path: str) -> None:
        """mkdir(2)."""
        self.user.mkdir(path)
        self._took_place()

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        self.user.tree.rmdir(*self.user.place(path))
        self._took_place()

    def symlink(self, path: str, target: bytes) -> None:
        """symlink(2)."""
        self.user.tree.make(*self.user.place(path), stat.S_IFLNK | 0o777, 0, 0, target=target)
        self._took_place()

    def rename(self, old: str, new: str) -> None:
        """rename(2)."""
        self.user.rename(old, new)
        self._took_place()

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        self.user.unlink(path)
        self._took_place()

    def link(self, old: str, new: str) -> None:
        """link(2)."""
        self.user.tree.link(self.user.find(old).ino, *self.user.place(new))
        self._took_place()

    def chmod(self, path: str, mode: int) -> None:
        """chmod(2)."""
        self.user.tree.set_attributes(self.user.find(path).ino, mode=mode)
        self._took_place()

    def set_xattr(self, path: str, value: bytes) -> None:
        """setxattr(2)."""
        self.user.tree.set_xattr(self.user.find(path).ino, b"user.note", value)
        self._took_place()

    # -- content

    def _announce(self, ino: int, content: Content) -> None:
        """A change of content is about to happen; when exactly, nobody outside can tell."""
        before = self.oracle.last
        node = dataclasses.replace(
            before.nodes[ino], size=size_of(content), mtime_ns=None, content=content
        )
        self.oracle.history.append(Photo(before.names, {**before.nodes, ino: node}))

    @contextmanager
    def _retracted_when_refused(self) -> Iterator[None]:
        """An error means that nothing changed."""
        try:
            yield
        except TapefsError:
            self.oracle.history.pop()
            raise

    def _happened(self, ino: int) -> None:
        """The change that was announced is done."""
        inode = self.user.volume.catalog.inode(ino)
        last = self.oracle.last
        node = dataclasses.replace(last.nodes[ino], mtime_ns=inode.mtime_ns)
        self.oracle.history[-1] = Photo(last.names, {**last.nodes, ino: node})

    async def write(self, path: str, data: bytes, offset: int = 0) -> None:
        """open(2), pwrite(2), close(2); the file is made when it is missing."""
        parent, name = self.user.place(path)
        ino = self.user.volume.catalog.lookup(parent, name)
        if ino is None:
            ino = self.create(path)
        contents = self.user.volume.contents
        await contents.open(ino, write=True)
        await self.write_open(ino, data, offset)
        await contents.release(ino, write=True)

    async def write_open(self, ino: int, data: bytes, offset: int) -> None:
        """pwrite(2) on a file that is open."""
        self._announce(ino, overwritten(self.oracle.last.nodes[ino].content, offset, data))
        with self._retracted_when_refused():
            await self.user.volume.contents.write(ino, offset, data)
        self._happened(ino)

    async def truncate(self, path: str, size: int) -> None:
        """truncate(2)."""
        ino = self.user.find(path).ino
        self._announce(ino, resized(self.oracle.last.nodes[ino].content, size))
        with self._retracted_when_refused():
            await self.user.volume.contents.truncate(ino, size)
        self._happened(ino)

    # -- promises

    async def fsync(self, path: str) -> None:
        """open(2), fsync(2), close(2)."""
        moment, ino = self.oracle.now, self.user.find(path).ino
        await self.user.fsync(path)
        self.oracle.fsynced(ino, moment)

    async def sync(self) -> None:
        """Everything to tape."""
        moment = self.oracle.now
        await self.user.sync()
        self.oracle.synced(moment)

    def commit(self) -> None:
        """What happens every tenth of a second by itself."""
        self.user.volume.catalog.commit()

    def evict(self) -> None:
        """What happens when the spool is full."""
        self.user.evict_everything()


async def first_mount(program: Program) -> None:
    """Everything a filesystem does, in an order that makes trouble likely."""
    for directory in ("a", "a/b", "gone"):
        program.mkdir(directory)
    await program.write("a/kept", noise(1, 70_000))
    await program.fsync("a/kept")
    await program.write("a/late", noise(2, 3_000))
    program.commit()
    await program.write("a/kept", noise(3, 5_000), 10_000)
    # The way editors save: a new file over the old one.
    await program.write("config", noise(4, 9_000))
    await program.fsync("config")
    await program.write("config.new", noise(5, 9_500))
    await program.fsync("config.new")
    program.rename("config.new", "config")
    await program.write("short", noise(6, 20_000))
    program.commit()
    await program.truncate("short", 100)
    await program.write("short", noise(7, 4_000), 8_000)
    program.commit()
    program.unlink("a/late")
    await program.sync()
    await second_day(program)


async def second_day(program: Program) -> None:
    """Changes to what is on tape."""
    program.link("a/kept", "hard")
    program.rename("a/b", "c")
    await program.write("c/in-moved", noise(8, 30_000))
    program.rmdir("gone")
    program.symlink("points", b"a/kept")
    program.set_xattr("config", b"\0\1")
    program.chmod("short", 0o600)
    await program.fsync("hard")
    await program.write("config", noise(9, 2_000), 9_000)
    await program.write("a/kept", noise(10, 1_000), 69_500)
    await program.sync()
    program.evict()
    await program.write("a/kept", noise(11, 500), 1_000)
    await program.truncate("config", 5_000)
    await program.write("fresh", noise(12, 100_000))
    await program.write("c/in-moved", noise(13, 60_000))
    program.commit()
    program.unlink("hard")
    program.rename("fresh", "a/kept")
    await program.write("never-synced", noise(14, 10))
    await program.truncate("never-synced", 70_000)


async def second_mount(program: Program) -> None:
    """After an unmount: old content, new names."""
    program.evict()
    program.rename("c/in-moved", "in-moved")
    program.rmdir("c")
    await program.write("in-moved", noise(15, 100), 59_950)
    await program.fsync("in-moved")
    program.unlink("short")
    await program.write("short", noise(16, 200_000))
    await program.sync()
    program.unlink("config")
    await program.write("last", noise(17, 1_000))
    await program.fsync("last")
    await program.truncate("last", 10)


async def changes_while_archiving(program: Program) -> None:
    """System calls, one after the other, while a segment is being written."""
    contents, held_open = program.user.volume.contents, program.create("held-open")
    await contents.open(held_open, write=True)
    for number in range(4):
        await program.write_open(held_open, noise(25 + number, 30_000), number * 30_000)
        await trio.lowlevel.checkpoint()
        await program.write("busy", noise(20 + number, 40_000), number * 25_000)
        await program.write(f"new-{number}", noise(30 + number, 50_000))
        program.rename(f"new-{number}", "replaced")
        if number == 1:
            await program.fsync("busy")
        if number == 2:
            await program.truncate("busy", 30_000)
            program.unlink("victim")
    await contents.release(held_open, write=True)


async def large_file(program: Program, size_mib: int) -> None:
    """A file larger than the spool, written in one go and then patched."""
    ino = program.create("large")
    contents = program.user.volume.contents
    await contents.open(ino, write=True)
    for number in range(size_mib):
        await program.write_open(ino, noise(100 + number, 1 << 20), number << 20)
    await program.write_open(ino, noise(99, 100_000), 1_000_000)
    await contents.release(ino, write=True)
