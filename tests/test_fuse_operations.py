"""The request handlers, asked without a kernel."""

from __future__ import annotations

import errno
import os
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from memory_contents import (
    VOLUME_UUID,
    CountingService,
    MemoryContents,
    new_catalog,
    new_operations,
)
from pyfuse3 import FUSEError

from tapefs.archive.tape_attributes import STATE, SYNC, VOLUME
from tapefs.archive.tree import reap_orphans
from tapefs.catalog import NoSuchInode
from tapefs.entries import ROOT_INO
from tapefs.errors import DriveGone
from tapefs.fuse.guard import answers, answers_later
from tapefs.fuse.inodes import Handle, InodeReferences, LookupCounts
from tapefs.fuse.operations import Operations
from tapefs.fuse.request_wait import TurnLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
    from pathlib import Path

    from pyfuse3 import RequestContext


def context(uid: int = 0, gid: int = 0) -> RequestContext:
    return cast("RequestContext", SimpleNamespace(uid=uid, gid=gid, pid=1, umask=0o22))


ROOT = context()
USER = context(1000, 1000)


class Rig:
    """Operations over a real catalog and content in memory."""

    def __init__(self, directory: Path) -> None:
        self.catalog = new_catalog(directory)
        self.contents = MemoryContents(self.catalog)
        self.service = CountingService()
        self.operations = new_operations(directory, self.catalog, self.contents, self.service)

    async def create(self, name: bytes, ctx: RequestContext = ROOT) -> tuple[int, int]:
        """A new open file: (inode number, handle)."""
        flags = os.O_CREAT | os.O_RDWR
        info, attributes = await self.operations.create(ROOT_INO, name, 0o644, flags, ctx)
        return attributes.st_ino, info.fh

    def exists(self, ino: int) -> bool:
        try:
            self.catalog.inode(ino)
        except NoSuchInode:
            return False
        return True


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.catalog.close(clean=True)


async def refused(errno_number: int, request: Coroutine[Any, Any, object]) -> None:
    with pytest.raises(FUSEError) as caught:
        await request
    assert errno.errorcode[caught.value.errno] == errno.errorcode[errno_number]


class TestGuard:
    @pytest.mark.parametrize(
        ("raised", "errno_number", "logged"),
        [
            (DriveGone("unplugged"), errno.ENODEV, False),
            (FUSEError(errno.EXDEV), errno.EXDEV, False),
            (RuntimeError("a bug"), errno.EIO, True),
            (ExceptionGroup("from a nursery", [FUSEError(errno.EXDEV)]), errno.EIO, True),
        ],
    )
    async def test_only_fuse_errors_leave(
        self,
        raised: Exception,
        errno_number: int,
        logged: bool,
        assert_logs: Callable[..., Any],
    ) -> None:
        @answers
        def now() -> None:
            raise raised

        @answers_later
        async def later() -> None:
            await trio.lowlevel.checkpoint()
            raise raised

        if logged:
            assert_logs("fuse.handler_failed handler=(now|later)", count=2)
        await refused(errno_number, now())
        await refused(errno_number, later())

    async def test_forget_lets_nothing_out(self, rig: Rig, assert_logs: Callable[..., Any]) -> None:
        def fail(ino: int) -> None:
            raise DriveGone("unplugged")

        ino, handle = await rig.create(b"a")
        await rig.operations.release(handle)
        await rig.operations.unlink(ROOT_INO, b"a", ROOT)
        rig.contents.discard = fail  # type: ignore[method-assign]
        with assert_logs("fuse.handler_failed handler=forget", count=1):
            await rig.operations.forget([(ino, 1)])
        assert rig.catalog.orphans() == [ino]

    async def test_cancellation_passes(self) -> None:
        @answers_later
        async def handler() -> None:
            await trio.sleep_forever()

        with trio.move_on_after(0) as scope:
            await handler()
        assert scope.cancelled_caught

    def test_every_handler_is_guarded(self) -> None:
        handlers = {
            name: value
            for name, value in vars(Operations).items()
            if callable(value) and not name.startswith("_") and name not in ("init", "finish")
        }
        assert len(handlers) == 27
        unguarded = [name for name, value in handlers.items() if not hasattr(value, "__wrapped__")]
        assert unguarded == []


class TestLifeOfAnUnlinkedFile:
    async def test_it_goes_with_the_last_lookup(self, rig: Rig) -> None:
        ino, handle = await rig.create(b"a")
        await rig.operations.write(handle, 0, b"data")
        await rig.operations.release(handle)
        await rig.operations.lookup(ROOT_INO, b"a", ROOT)
        await rig.operations.unlink(ROOT_INO, b"a", ROOT)
        await rig.operations.forget([(ino, 1)])
        assert rig.exists(ino)
        assert rig.contents.discarded == []
        await rig.operations.forget([(ino, 1)])
        assert not rig.exists(ino)
        assert rig.contents.discarded == [ino]

    async def test_release_may_come_after_forget(self, rig: Rig) -> None:
        ino, handle = await rig.create(b"a")
        await rig.operations.unlink(ROOT_INO, b"a", ROOT)
        await rig.operations.forget([(ino, 1)])
        await rig.operations.write(handle, 0, b"still there")
        assert await rig.operations.read(handle, 0, 5) == b"still"
        await rig.operations.release(handle)
        assert not rig.exists(ino)
        assert rig.contents.discarded == [ino]

    async def test_forget_alone_removes_nothing(self, rig: Rig) -> None:
        ino, handle = await rig.create(b"a")
        await rig.operations.release(handle)
        await rig.operations.forget([(ino, 1)])
        assert rig.exists(ino)

    async def test_the_end_of_the_mount_releases_and_reaps(self, rig: Rig) -> None:
        kept, _ = await rig.create(b"kept")
        gone, _ = await rig.create(b"gone")
        await rig.operations.unlink(ROOT_INO, b"gone", ROOT)
        await rig.operations.finish()
        assert rig.contents.open_counts == {}
        assert (rig.exists(kept), rig.exists(gone)) == (True, False)
        await rig.operations.finish()
        assert rig.contents.discarded == [gone]

    async def test_what_a_crash_left_is_reaped_at_start(self, rig: Rig) -> None:
        kept, _ = await rig.create(b"kept")
        gone, _ = await rig.create(b"gone")
        await rig.operations.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
        await rig.operations.unlink(ROOT_INO, b"gone", ROOT)
        await rig.operations.rmdir(ROOT_INO, b"directory", ROOT)
        rig.catalog.commit()
        assert reap_orphans(rig.catalog, CrashedContents(rig.contents)) == 2
        assert (rig.exists(kept), rig.exists(gone)) == (True, False)
        assert rig.contents.discarded == [gone]

    async def test_a_failed_create_leaves_no_name(self, rig: Rig) -> None:
        async def fail(ino: int, *, write: bool, truncate: bool) -> None:
            raise DriveGone("unplugged")

        rig.contents.open = fail  # type: ignore[method-assign]
        request = rig.operations.create(ROOT_INO, b"a", 0o644, os.O_RDWR, ROOT)
        await refused(errno.ENODEV, request)
        assert rig.catalog.children(ROOT_INO) == []
        assert rig.catalog.orphans() == []


class CrashedContents:
    """Content as it is at start: no file is open."""

    def __init__(self, contents: MemoryContents) -> None:
        contents.open_counts.clear()
        self.discard = contents.discard


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3)), max_size=60))
def test_lookup_counts_count(steps: list[tuple[int, int]]) -> None:
    counts, model = LookupCounts(), dict[int, int]()
    for ino, number in steps:
        if number == 3:
            assert counts.remove(ino, 2) == max(0, model.get(ino, 0) - 2)
            model[ino] = max(0, model.get(ino, 0) - 2)
        else:
            counts.add(ino)
            model[ino] = model.get(ino, 0) + 1
    assert sorted(counts) == sorted(ino for ino, count in model.items() if count)
    assert all(counts[ino] == count for ino, count in model.items())
    for ino, count in model.items():
        counts.remove(ino, count)
    assert counts.page_count == 0


def test_references_of_an_inode_that_was_never_looked_up(rig: Rig) -> None:
    references = InodeReferences(rig.catalog, rig.contents)
    inode = rig.catalog.new_inode(stat.S_IFREG | 0o600, 0, 0)
    number = references.opened(Handle(inode.ino, write=True, privileged=True))
    references.unreferenced(inode.ino)
    assert rig.exists(inode.ino)
    assert references.closed(number)
    assert not rig.exists(inode.ino)


class TestAttributes:
    async def test_own_attributes(self, rig: Rig) -> None:
        ino, _ = await rig.create(b"a")
        get = rig.operations.getxattr
        assert await get(ino, STATE, ROOT) == b"staged"
        assert await get(ROOT_INO, VOLUME, ROOT) == str(VOLUME_UUID).encode()
        assert await rig.operations.listxattr(ino, ROOT) == []
        await refused(errno.ENODATA, get(ROOT_INO, STATE, ROOT))
        await refused(errno.ENODATA, get(ino, b"user.tapefs.other", ROOT))
        await refused(errno.EPERM, rig.operations.setxattr(ino, STATE, b"x", ROOT))
        await refused(errno.EPERM, rig.operations.removexattr(ino, STATE, ROOT))
        for name in (b"user.ltfs.startblock", b"user.tapefs.sync", b"user.tapefs.anything"):
            await refused(errno.EPERM, rig.operations.setxattr(ino, name, b"1", ROOT))
        await refused(errno.EOPNOTSUPP, rig.operations.setxattr(ino, b"system.nfs4_acl", b"", ROOT))

    async def test_a_hash_that_a_tool_for_ltfs_stored_counts(self, rig: Rig) -> None:
        ino, _ = await rig.create(b"a")
        name = b"user.ltfs.hash.sha256sum"
        await refused(errno.ENODATA, rig.operations.getxattr(ino, name, ROOT))
        await rig.operations.setxattr(ino, name, b"its own", ROOT)
        assert await rig.operations.getxattr(ino, name, ROOT) == b"its own"
        assert await rig.operations.listxattr(ino, ROOT) == [name]

    async def test_what_pretends_to_come_from_us_is_not_shown(self, rig: Rig) -> None:
        ino, _ = await rig.create(b"a")
        rig.catalog.set_xattr(ino, STATE, b"migrated")  # as a hostile tape could
        assert await rig.operations.getxattr(ino, STATE, ROOT) == b"staged"

    @pytest.mark.parametrize("name", SYNC)
    async def test_setting_sync_on_the_root_syncs(self, rig: Rig, name: bytes) -> None:
        await rig.operations.setxattr(ROOT_INO, name, b"1", ROOT)
        assert rig.service.sync_count == 1
        await refused(errno.ENODATA, rig.operations.getxattr(ROOT_INO, name, ROOT))

    async def test_capability_is_answered_from_memory_and_lost_by_writing(self, rig: Rig) -> None:
        name = b"security.capability"
        ino, handle = await rig.create(b"a")
        await refused(errno.ENODATA, rig.operations.getxattr(ino, name, ROOT))
        await rig.operations.setxattr(ino, name, b"\1", ROOT)
        assert await rig.operations.getxattr(ino, name, ROOT) == b"\1"
        await rig.operations.write(handle, 0, b"x")
        await refused(errno.ENODATA, rig.operations.getxattr(ino, name, ROOT))

        asked: list[bytes] = []
        rig.catalog.xattr = lambda _, name: asked.append(name)  # type: ignore[method-assign,assignment]
        await rig.operations.write(handle, 0, b"x")
        await refused(errno.ENODATA, rig.operations.getxattr(ino, name, ROOT))
        assert asked == []

    @pytest.mark.parametrize(("ctx", "left"), [(ROOT, 0o4755), (USER, 0o755)])
    async def test_writing_takes_setuid_unless_root_writes(
        self, rig: Rig, ctx: RequestContext, left: int
    ) -> None:
        ino, handle = await rig.create(b"a", ctx)
        rig.operations.tree.set_attributes(ino, mode=0o4755)
        await rig.operations.write(handle, 0, b"x")
        attributes = await rig.operations.getattr(ino, ROOT)
        assert stat.S_IMODE(attributes.st_mode) == left

    async def test_an_absent_name_may_be_cached(self, rig: Rig) -> None:
        assert (await rig.operations.lookup(ROOT_INO, b"none", ROOT)).st_ino == 0
        await refused(errno.ENAMETOOLONG, rig.operations.lookup(ROOT_INO, b"x" * 256, ROOT))
        await refused(errno.ENOENT, rig.operations.getattr(4711, ROOT))

    async def test_times_before_1970(self, rig: Rig) -> None:
        ino, _ = await rig.create(b"a")
        rig.operations.tree.set_attributes(ino, mtime_ns=-1, atime_ns=-(10**9))
        attributes = await rig.operations.getattr(ino, ROOT)
        assert (attributes.st_mtime_ns, attributes.st_atime_ns) == (-1, -(10**9))

    async def test_free_room(self, rig: Rig) -> None:
        rig.contents.capacity_bytes = 1 << 30
        _, handle = await rig.create(b"a")
        await rig.operations.write(handle, 0, bytes(8192))
        answer = await rig.operations.statfs(ROOT)
        assert answer.f_blocks * answer.f_frsize == 1 << 30
        assert (answer.f_blocks - answer.f_bavail) * answer.f_frsize == 8192
        assert answer.f_namemax == 255


async def test_fsync_of_the_root_is_sync(rig: Rig) -> None:
    made = await rig.operations.mkdir(ROOT_INO, b"d", 0o755, ROOT)
    await rig.operations.fsyncdir(made.st_ino, False)
    assert (rig.contents.synced, rig.service.sync_count) == ([made.st_ino], 0)
    await rig.operations.fsyncdir(ROOT_INO, False)
    assert (rig.contents.synced, rig.service.sync_count) == ([made.st_ino], 1)


async def test_a_volume_that_became_read_only_refuses_open_files_too(rig: Rig) -> None:
    ino, handle = await rig.create(b"a")
    await rig.operations.write(handle, 0, b"before")
    rig.operations.tree.read_only = True
    await refused(errno.EROFS, rig.operations.write(handle, 0, b"after!"))
    await refused(errno.EROFS, rig.operations.open(ino, os.O_WRONLY, ROOT))
    await refused(errno.EROFS, rig.operations.open(ino, os.O_TRUNC, ROOT))
    assert await rig.operations.read(handle, 0, 6) == b"before"


@pytest.fixture
async def turn_lock() -> AsyncIterator[TurnLock]:
    lock = TurnLock()
    trio.lowlevel.add_instrument(lock)
    yield lock
    trio.lowlevel.remove_instrument(lock)


async def test_the_turn_lock_hands_over_in_order_and_survives_cancellation(
    turn_lock: TurnLock,
) -> None:
    order = list[int]()

    async def take(number: int) -> None:
        async with turn_lock:
            order.append(number)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        await turn_lock.__aenter__()
        for number in range(3):
            nursery.start_soon(take, number)
            await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as scope:
            await take(99)
        assert scope.cancelled_caught
        await turn_lock.__aexit__(None, None, None)
    await take(3)
    assert order == [0, 1, 2, 3]


async def test_who_had_the_last_turn_has_the_next_unless_it_waits(turn_lock: TurnLock) -> None:
    order = list[str]()

    async def take_two(name: str, between: Callable[[], Awaitable[None]]) -> None:
        for _ in range(2):
            async with turn_lock:
                order.append(name)
            await between()

    async def at_once() -> None:
        pass

    async with trio.open_nursery() as nursery, turn_lock:
        for name, between in (
            ("waits", trio.lowlevel.checkpoint),
            ("does not", at_once),
            ("ends", at_once),
        ):
            nursery.start_soon(take_two, name, between)
            await trio.testing.wait_all_tasks_blocked()
    assert order == ["waits", "does not", "does not", "ends", "ends", "waits"]
