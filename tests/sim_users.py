"""People who use a mount at the same time, come and go, and check everything that they are told.

They ask the request handlers as the kernel would, with lookup counts, handles and FORGET.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import trio
from oracle import Content, size_of
from pyfuse3 import FUSEError
from sim_model import Mismatch, Model, Place
from workload import noise

from tapefs.archive import tape_attributes
from tapefs.archive.tree import RENAME_EXCHANGE, RENAME_NOREPLACE
from tapefs.entries import ROOT_INO

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Coroutine

    from pyfuse3 import RequestContext

    from tapefs.fuse.operations import Operations

_ROOT = cast("RequestContext", SimpleNamespace(uid=0, gid=0, pid=1, umask=0o22))
_HOUR_S = 3600.0
_NOTE = b"user.note"
_STATES = (b"staged", b"resident", b"premigrated", b"migrated")
# What a drive, a cable or a full volume may be the reason of.
_TROUBLE = frozenset(
    (errno.EIO, errno.ENODEV, errno.ENOSPC, errno.EROFS, errno.EAGAIN, errno.ENOMEDIUM)
)
# No tree grows beyond that.
_NAMES_MAX = 50
_BYTES_MAX = 3_000_000


class Company:
    """What the users of one mount have in common.

    `excused` tells whether something may go wrong now; `tell` writes the diary.
    """

    def __init__(
        self,
        operations: Operations,
        model: Model,
        evict: Callable[[], None],
        excused: Callable[[], bool],
        tell: Callable[..., None],
    ) -> None:
        self.operations = operations
        self.model = model
        self.evict = evict
        self.excused = excused
        self.tell = tell
        self.steps = Counter[str]()
        self._morning = trio.Event()
        # The pwrite(2) that each user is in.
        self.writing: dict[int, tuple[int, int, bytes]] = {}

    async def open_now_and_then(self, rng: random.Random) -> None:
        """Call everybody to work at the same time, with long pauses; until cancelled."""
        while True:
            await trio.sleep(rng.expovariate(1 / (72 * _HOUR_S)))
            morning, self._morning = self._morning, trio.Event()
            morning.set()

    async def opens(self) -> None:
        """Return when work begins."""
        await self._morning.wait()

    def world_ends(self) -> None:
        """Tell the model what may have happened without anybody having been told."""
        for ino, offset, data in self.writing.values():
            self.model.may_be_written(ino, offset, data)


class User:
    """One of them."""

    def __init__(self, number: int, company: Company, rng: random.Random) -> None:
        self._number = number
        self._company = company
        self._operations = company.operations
        self._model = company.model
        self._rng = rng
        # Open files: handle to inode; lookups that the kernel has not forgotten.
        self._handles: dict[int, int] = {}
        self._lookups = Counter[int]()
        self._steps: list[Callable[[], Awaitable[None]]] = [
            *[self.create] * 4,
            *[self.write] * 8,
            *[self.truncate] * 2,
            *[self.read] * 6,
            *[self.rename] * 5,
            *[self.unlink] * 3,
            self.link,
            *[self.mkdir] * 2,
            self.rmdir,
            self.symlink,
            self.chmod,
            self.utimens,
            self.set_xattr,
            self.remove_xattr,
            *[self.fsync] * 3,
            self.fsync_directory,
            self.sync,
            self.statfs,
            self.ask_state,
            *[self.open] * 2,
            *[self.close] * 3,
            *[self.press] * 2,
        ]

    async def live(self) -> None:
        """Come when the others come, work for a while, go; until cancelled."""
        while True:
            await self._company.opens()
            await trio.sleep(self._rng.uniform(0, 10))
            for _ in range(self._rng.randrange(1, 25)):
                step = self._rng.choice(self._steps)
                self._company.steps[step.__name__] += 1
                # What may fail for a good reason has been checked where it failed.
                with suppress(FUSEError):
                    await step()
                await trio.sleep(self._rng.choice((0.0, 0.0, 0.05, 0.5, 5.0)))
            if self._rng.random() < 0.8:
                while self._handles:
                    await self.close()
                await self._forget(list(self._lookups))
            else:
                nodes = self._model.nodes
                await self._forget([ino for ino in self._lookups if not nodes[ino].nlink])

    async def _forget(self, inodes: list[int]) -> None:
        """The kernel does not know these any more; at once, where they have no name."""
        self._company.tell(self._number, "forgets", inodes)
        await self._operations.forget([(ino, self._lookups.pop(ino)) for ino in inodes])

    # -- asking

    async def _ask(self, expected: int, request: Coroutine[Any, Any, Any]) -> Any:
        """The answer; None when the request is refused as it should be. Raises FUSEError when it
        failed because of something that may go wrong, and Mismatch for anything else.
        """
        name = getattr(request, "__qualname__", "")
        try:
            answer = await request
        except FUSEError as exc:
            self._company.tell(self._number, name, "refused", exc.errno)
            if exc.errno == expected:
                return None
            if exc.errno in _TROUBLE and self._company.excused():
                raise
            raise Mismatch(f"{name} failed with {os.strerror(exc.errno)}") from exc
        if expected:
            raise Mismatch(f"{name} did not fail with {os.strerror(expected)}")
        self._company.tell(self._number, name)
        return answer

    async def _look_up(self, place: Place) -> int:
        """The inode behind a name, as the kernel asks for it before anything else."""
        attributes = await self._ask(0, self._operations.lookup(*place, _ROOT))
        ino: int = attributes.st_ino
        if ino != self._model.names[place]:
            raise Mismatch(f"{place} is {ino}, not {self._model.names[place]}")
        self._lookups[ino] += 1
        return ino

    # -- choosing

    def _file(self) -> Place | None:
        return self._one_of(self._model.of_type(stat.S_IFREG))

    def _any(self) -> Place | None:
        return self._one_of(list(self._model.names))

    def _one_of(self, places: list[Place]) -> Place | None:
        return self._rng.choice(places) if places else None

    def _new_place(self) -> Place:
        """Mostly free."""
        parent = self._rng.choice(self._model.directories())
        return parent, b"n%d" % self._rng.randrange(25)

    def _is_large(self) -> bool:
        model = self._model
        sizes = (model.nodes[ino].size for ino in set(model.names.values()))
        return len(model.names) >= _NAMES_MAX or sum(sizes) > _BYTES_MAX

    # -- names

    async def create(self) -> None:
        """open(2) with O_CREAT and O_EXCL; stays open."""
        place = self._new_place()
        if self._is_large():
            await self.unlink()
            return
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        if self._model.refuse_new_name(place):
            return  # the kernel knows the name, and opens what is there
        try:
            info, attributes = await self._ask(
                0, self._operations.create(*place, 0o644, flags, _ROOT)
            )
        except FUSEError:
            self._model.touched(place[0])
            raise
        ino = attributes.st_ino
        self._model.made(place, ino, stat.S_IFREG | 0o644)
        self._lookups[ino] += 1
        self._handles[info.fh] = ino
        await self._write_to(info.fh)

    async def _make(self, request: Coroutine[Any, Any, Any], place: Place, mode: int, *more: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN202
        attributes = await self._ask(self._model.refuse_new_name(place), request)
        if attributes is not None:
            self._model.made(place, attributes.st_ino, mode, *more)
            self._lookups[attributes.st_ino] += 1

    async def mkdir(self) -> None:
        """mkdir(2)."""
        place = self._new_place()
        if len(self._model.directories()) < 8:
            request = self._operations.mkdir(*place, 0o755, _ROOT)
            await self._make(request, place, stat.S_IFDIR | 0o755)

    async def symlink(self) -> None:
        """symlink(2)."""
        place, target = self._new_place(), b"../n%d" % self._rng.randrange(25)
        request = self._operations.symlink(*place, target, _ROOT)
        await self._make(request, place, stat.S_IFLNK | 0o777, target)

    async def link(self) -> None:
        """link(2)."""
        if (old := self._any()) is None:
            return
        place, ino = self._new_place(), await self._look_up(old)
        expected = self._model.refuse_link(ino, place)
        if await self._ask(expected, self._operations.link(ino, *place, _ROOT)):
            self._model.linked(ino, place)
            self._lookups[ino] += 1

    async def unlink(self) -> None:
        """unlink(2)."""
        await self._remove(self._operations.unlink, self._model.refuse_unlink)

    async def rmdir(self) -> None:
        """rmdir(2)."""
        await self._remove(self._operations.rmdir, self._model.refuse_rmdir)

    async def _remove(
        self, request: Callable[..., Coroutine[Any, Any, Any]], refuse: Callable[[Place], int]
    ) -> None:
        if (place := self._any()) is None:
            return
        await self._look_up(place)
        expected = refuse(place)
        await self._ask(expected, request(*place, _ROOT))
        if not expected:
            self._model.removed(place)

    async def rename(self) -> None:
        """renameat2(2), over something or not."""
        if (old := self._any()) is None:
            return
        new = self._any() if self._rng.random() < 0.4 else None
        new = new or self._new_place()
        flags = self._rng.choice((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))
        await self._look_up(old)
        expected = self._model.refuse_rename(old, new, flags)
        await self._ask(expected, self._operations.rename(*old, *new, flags, _ROOT))
        if not expected:
            self._model.renamed(old, new, flags)

    # -- attributes

    async def _set(self, ino: int, **values: int) -> None:
        """setattr with some fields."""
        chosen = ("mode", "size", "atime", "mtime", "ctime", "uid", "gid")
        fields = SimpleNamespace(**{f"update_{name}": False for name in chosen})
        attributes = SimpleNamespace()
        for name, value in values.items():
            setattr(fields, f"update_{name.removeprefix('st_').removesuffix('_ns')}", True)
            setattr(attributes, name, value)
        request = self._operations.setattr(
            ino, cast("Any", attributes), cast("Any", fields), None, _ROOT
        )
        await self._ask(0, request)

    async def chmod(self) -> None:
        """chmod(2)."""
        if (place := self._file()) is not None:
            ino, mode = await self._look_up(place), self._rng.choice((0o600, 0o644, 0o750))
            await self._set(ino, st_mode=mode)
            self._model.chmodded(ino, mode)

    async def utimens(self) -> None:
        """utimensat(2), into the past."""
        if (place := self._any()) is not None:
            ino, moment = await self._look_up(place), self._rng.randrange(10**18)
            await self._set(ino, st_mtime_ns=moment)
            self._model.set_time(ino, moment)

    async def set_xattr(self) -> None:
        """setxattr(2)."""
        if (place := self._any()) is not None:
            ino, value = await self._look_up(place), self._rng.randbytes(9)
            await self._ask(0, self._operations.setxattr(ino, _NOTE, value, _ROOT))
            self._model.set_xattr(ino, _NOTE, value)

    async def remove_xattr(self) -> None:
        """removexattr(2)."""
        if (place := self._any()) is not None:
            ino = await self._look_up(place)
            has_it = _NOTE in dict(self._model.nodes[ino].xattrs)
            expected = 0 if has_it else errno.ENODATA
            await self._ask(expected, self._operations.removexattr(ino, _NOTE, _ROOT))
            if has_it:
                self._model.set_xattr(ino, _NOTE, None)

    async def statfs(self) -> None:
        """df."""
        answer = await self._ask(0, self._operations.statfs(_ROOT))
        if not 0 <= answer.f_bfree <= answer.f_blocks:
            raise Mismatch(f"{answer.f_bfree} of {answer.f_blocks} blocks are free")

    async def ask_state(self) -> None:
        """Where is it?"""
        if (place := self._file()) is not None:
            ino = await self._look_up(place)
            state = await self._ask(0, self._operations.getxattr(ino, tape_attributes.STATE, _ROOT))
            if state not in _STATES:
                raise Mismatch(f"the state of a file is {state}")

    # -- content

    async def open(self) -> None:
        """open(2), sometimes with O_TRUNC."""
        if (place := self._file()) is None or len(self._handles) > 4:
            return
        ino = await self._look_up(place)
        truncates = self._rng.random() < 0.2
        flags = os.O_RDWR | (os.O_TRUNC if truncates else 0)
        try:
            info = await self._ask(0, self._operations.open(ino, flags, _ROOT))
        except FUSEError:
            self._model.unchanged(ino)
            return
        if truncates:
            self._model.truncated(ino, 0)
        self._handles[info.fh] = ino

    async def close(self) -> None:
        """close(2) of the file that has been open longest."""
        if self._handles:
            handle = next(iter(self._handles))
            del self._handles[handle]
            await self._ask(0, self._operations.release(handle))

    async def write(self) -> None:
        """pwrite(2) to an open file."""
        if not self._handles:
            await self.open()
        if self._handles:
            await self._write_to(self._rng.choice(list(self._handles)))

    async def _write_to(self, handle: int) -> None:
        if self._is_large():
            return
        ino, rng = self._handles[handle], self._rng
        size = self._model.nodes[ino].size
        length = rng.choice((1, 700, 5_000, 66_000, 150_000, 400_000))
        offset = rng.choice((0, size, size, size // 2, size + rng.randrange(70_000)))
        data = noise(rng.getrandbits(30), length)
        self._company.writing[self._number] = (ino, offset, data)
        self._company.tell(self._number, "writes", ino, offset, length)
        try:
            await self._ask(0, self._operations.write(handle, offset, data))
        except FUSEError:
            self._model.unchanged(ino)
        else:
            self._model.written(ino, offset, data)
        finally:
            del self._company.writing[self._number]

    async def truncate(self) -> None:
        """truncate(2)."""
        if (place := self._file()) is None:
            return
        ino = await self._look_up(place)
        size = self._model.nodes[ino].size
        wanted = self._rng.choice((0, size // 2, max(0, size - 1), size + 30_000))
        self._company.tell(self._number, "truncates", ino, size, wanted)
        try:
            await self._set(ino, st_size=wanted)
        except FUSEError:
            self._model.unchanged(ino)
        else:
            self._model.truncated(ino, wanted)

    async def read(self) -> None:
        """pread(2): every byte is one that was there while the read lasted."""
        if (place := self._file()) is None:
            return
        ino = await self._look_up(place)
        try:
            info = await self._ask(0, self._operations.open(ino, os.O_RDONLY, _ROOT))
        except FUSEError:
            return
        size, oracle = self._model.nodes[ino].size, self._model.oracle
        offset = self._rng.choice((0, 0, size // 2, self._rng.randrange(size + 1)))
        length, moment = self._rng.choice((4096, 131_072, 1 << 20)), oracle.now
        self._company.tell(self._number, "reads", ino, offset, length)
        try:
            data = await self._ask(0, self._operations.read(info.fh, offset, length))
        except FUSEError:
            data = None
        if data is not None:
            versions = [photo.nodes[ino].content for photo in oracle.history[moment:]]
            _compare(bytes(data), offset, length, versions)
        await self._ask(0, self._operations.release(info.fh))

    async def press(self) -> None:
        """The spool is full: clean content goes."""
        self._company.tell(self._number, "presses")
        self._company.evict()
        await self.read()

    # -- promises

    async def fsync(self) -> None:
        """fsync(2)."""
        if not self._handles:
            await self.open()
        if not self._handles:
            return
        handle = self._rng.choice(list(self._handles))
        ino, moment = self._handles[handle], self._model.oracle.now
        if await self._kept(self._operations.fsync(handle, False)):
            self._model.oracle.fsynced(ino, moment)

    async def fsync_directory(self) -> None:
        """fsync(2) of a directory."""
        directories = self._model.directories()[1:]
        if directories:
            ino, moment = self._rng.choice(directories), self._model.oracle.now
            if await self._kept(self._operations.fsyncdir(ino, False)):
                self._model.oracle.fsynced(ino, moment)

    async def sync(self) -> None:
        """Everything to tape."""
        moment = self._model.oracle.now
        if await self._kept(self._operations.fsyncdir(ROOT_INO, False)):
            self._model.oracle.synced(moment)

    async def _kept(self, request: Coroutine[Any, Any, Any]) -> bool:
        try:
            await self._ask(0, request)
        except FUSEError:
            return False
        return True


def _compare(data: bytes, offset: int, length: int, versions: list[Content]) -> None:
    """`data` was read while the file went through `versions`."""
    slices = {b"".join(version)[offset : offset + length] for version in versions}
    if data in slices:
        return
    if len(slices) == 1:
        (expected,) = slices
        at = next(i for i, (x, y) in enumerate(zip(data, expected, strict=False)) if x != y)
        shown, wanted = data[at : at + 8], expected[at : at + 8]
        raise Mismatch(f"a read at {offset} gave from {at} on {shown!r}, not {wanted!r}")
    sizes = [min(max(size_of(version) - offset, 0), length) for version in versions]
    if not min(sizes) <= len(data) <= max(sizes):
        raise Mismatch(f"{len(data)} bytes were read where there were {sorted(set(sizes))}")
    ordered = sorted(slices)
    for at, byte in enumerate(data):
        if all(at < len(piece) and piece[at] != byte for piece in ordered):
            raise Mismatch(f"byte {offset + at} was never there")
