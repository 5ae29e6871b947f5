"""Real mounts: what programs see through the kernel. Content is in memory, the catalog is real.

The trio thread of the test serves the mount, so it must never touch it: clients run in worker
threads or in processes of their own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pytest
import trio
import trio.testing
from memory_contents import (
    VOLUME_UUID,
    CountingService,
    MemoryContents,
    new_catalog,
    new_operations,
)
from tree_walk import below

from tapefs.entries import ROOT_INO
from tapefs.errors import MountpointUnusable, NoFuse
from tapefs.fuse import mountpoint as mountpoint_module
from tapefs.fuse.mountpoint import detach_dead_mount, mount_at, prepare_mountpoint, require_fuse
from tapefs.fuse.negotiation import KERNEL_BACKGROUND_MAX
from tapefs.fuse.session import mount_options, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.fuse

P = ParamSpec("P")
T = TypeVar("T")
USER = 12345
# A mount that is stuck would take the test run with it; reached in a failing case only.
STUCK_S = 30.0
NOBODY = 0xFFFFFFFF  # the id in ACL entries that have none


class Mount:
    """A served mount and what stands behind it."""

    def __init__(self, state: Path, path: Path) -> None:
        self.path = path
        self.catalog = new_catalog(state)
        self.contents = MemoryContents(self.catalog)
        self.service = CountingService()
        self.operations = new_operations(state, self.catalog, self.contents, self.service)
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.scope = trio.CancelScope()

    async def serve(self, **kwargs: Any) -> None:
        options = mount_options("test volume", allow_other=False, read_only=False)
        try:
            with self.scope:
                await serve(self.operations, self.path, options, self.ready.set, **kwargs)
        finally:
            self.ended.set()

    async def umount(self) -> int:
        # close_fds: this process serves the mount. Its child would close what it inherits of a file
        # in there and wait for an answer, while Python, in vfork, waits for the child.
        done = await trio.run_process(
            ["umount", self.path], check=False, capture_stderr=True, close_fds=False
        )
        return done.returncode

    def ino(self, name: bytes) -> int:
        ino = self.catalog.lookup(ROOT_INO, name)
        assert ino is not None
        return ino


@pytest.fixture
def empty_directory() -> Iterator[Path]:
    """A directory that other users can reach too."""
    path = Path(tempfile.mkdtemp(prefix="tapefs-test-"))
    path.chmod(0o755)
    yield path
    path.rmdir()


@pytest.fixture
def unserved(tmp_path: Path, empty_directory: Path) -> Iterator[Mount]:
    mount = Mount(tmp_path, empty_directory)
    yield mount
    mount.catalog.close(clean=True)


@pytest.fixture
async def mount(unserved: Mount, nursery: trio.Nursery) -> AsyncIterator[Mount]:
    nursery.start_soon(unserved.serve)
    await unserved.ready.wait()
    yield unserved
    if not unserved.ended.is_set():
        assert await unserved.umount() == 0
    await unserved.ended.wait()
    assert unserved.contents.open_counts == {}


def connection_of(mount: Mount) -> Path:
    """What the kernel shows of its end of a mount."""
    found = mount_at(mount.path)
    assert found is not None
    connections = Path("/sys/fs/fuse/connections")
    if mount_at(connections) is None:
        # systemd does it at boot; a container's /sys has none.
        subprocess.run(["mount", "-t", "fusectl", "fusectl", connections], check=True)
    return connections / found.device.partition(":")[2]


async def client(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `action` in a thread, as a program beside the daemon would."""
    with trio.fail_after(STUCK_S):
        return await trio.to_thread.run_sync(
            partial(action, *args, **kwargs), abandon_on_cancel=True
        )


async def shell(script: str, *, user: int | None = None) -> str:
    """Output of a shell script, which must succeed and say nothing on standard error."""
    run = partial(subprocess.run, ["bash", "-euc", script], capture_output=True, text=True)
    done = await client(run, user=user, group=user, extra_groups=None if user is None else [])
    assert (done.returncode, done.stderr) == (0, ""), script
    return str(done.stdout)


async def python(script: str) -> str:
    """Output of a Python program (for what would hold this process's interpreter lock)."""
    done = await trio.run_process(
        [sys.executable, "-c", textwrap.dedent(script)], capture_stdout=True, capture_stderr=True
    )
    assert done.stderr == b""
    return bytes(done.stdout).decode()


def refused(errno_number: int, action: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(OSError, match=r"Errno") as caught:
        action(*args, **kwargs)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[errno_number]


def write(path: Path, data: bytes, flags: int = os.O_CREAT) -> int:
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def make_torture_tree(root: Path) -> None:
    """Everything that a backup must keep."""
    root.mkdir()
    (root / "empty").touch()
    (root / "text").write_bytes(b"some text\n" * 1000)
    (root / "large").write_bytes(os.urandom(3_000_001))
    with (root / "sparse").open("wb") as file:
        file.seek(1_000_000)
        file.write(b"end")
    for mode in (0o000, 0o4755, 0o2755, 0o2644, 0o6711, 0o1644):
        path = root / f"mode{mode:o}"
        path.touch()
        os.chown(path, 1000 + mode % 7, 2000)
        path.chmod(mode)
    (root / "deep").mkdir(mode=0o2775)
    os.chown(root / "deep", 0, 777)
    (root / "deep").chmod(0o2775)
    inner = root / "deep" / "er"
    inner.mkdir()
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    os.link(root / "text", inner / "hard link")
    os.link(root / "text", root / "hard link 2")
    (root / "symlink").symlink_to("deep/er/nowhere")
    os.link(root / "symlink", inner / "linked symlink", follow_symlinks=False)
    os.lchown(root / "symlink", 5, 6)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 300))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    for name in (b"\xff not utf-8 \xfe", b"new\nline", b"x" * 255, "ümläut".encode(), b"-rf"):
        Path(os.fsdecode(os.fsencode(inner) + b"/" + name)).write_bytes(name)
    os.setxattr(root / "text", "user.comment", b"\0binary\xff")
    os.setxattr(root / "deep", "user.directory", b"yes")
    os.setxattr(root / "text", "trusted.secret", b"root only")
    subprocess.run(["setfacl", "-m", "u:1000:rwx,g:2000:r--", root / "large"], check=True)
    subprocess.run(["setfacl", "-m", "d:u:1000:rwx", root / "deep"], check=True)
    for path in reversed(below(root)):
        moment = 1_000_000_000_123_456_789 + len(os.fsencode(path)) * 1_000_000_007
        os.utime(path, ns=(moment, moment), follow_symlinks=False)


def fingerprint(root: Path) -> dict[bytes, tuple[object, ...]]:
    """What must be equal in a copy, by relative path."""
    found: dict[bytes, tuple[object, ...]] = {}
    first_name: dict[int, bytes] = {}
    for path in below(root):
        status = path.lstat()
        name = os.fsencode(path.relative_to(root))
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
        is_directory = stat.S_ISDIR(status.st_mode)
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            status.st_rdev,
            None if is_directory else status.st_size,
            status.st_mtime_ns,
            first_name.setdefault(status.st_ino, name),
            content,
            attributes,
        )
    return found


@pytest.fixture(scope="module")
def torture_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("torture") / "source"
    make_torture_tree(root)
    return root


class TestCopying:
    async def test_rsync_keeps_everything_and_finds_nothing_to_do_again(
        self, mount: Mount, torture_tree: Path
    ) -> None:
        rsync = f"rsync -aHAX --devices --specials '{torture_tree}/' '{mount.path}/copy/'"
        await shell(rsync)
        assert await client(fingerprint, mount.path / "copy") == fingerprint(torture_tree)
        assert await shell(f"{rsync} --checksum --itemize-changes") == ""

    async def test_cp_keeps_everything(self, mount: Mount, torture_tree: Path) -> None:
        await shell(f"cp -a '{torture_tree}' '{mount.path}/copy'")
        assert await client(fingerprint, mount.path / "copy") == fingerprint(torture_tree)

    async def test_tar_writes_and_reads_back(self, mount: Mount, torture_tree: Path) -> None:
        options = "--xattrs --xattrs-include='*' --acls --exclude=socket --format=pax"
        await shell(
            f"mkdir '{mount.path}/copy'; tar {options} -C '{torture_tree}' -c . |"
            f" tar {options} -C '{mount.path}/copy' -xp"
        )
        expected = fingerprint(torture_tree)
        del expected[b"socket"]
        assert await client(fingerprint, mount.path / "copy") == expected

    async def test_mv_keeps_everything_both_within_and_into_the_mount(
        self, mount: Mount, torture_tree: Path, tmp_path: Path
    ) -> None:
        expected = fingerprint(torture_tree)
        await shell(
            f"cp -a '{torture_tree}' '{tmp_path}/moving'; mv '{tmp_path}/moving' '{mount.path}/in'"
            f"; mkdir '{mount.path}/sub'; mv '{mount.path}/in' '{mount.path}/sub/again'"
        )
        assert await client(fingerprint, mount.path / "sub" / "again") == expected

    async def test_rm_leaves_nothing(self, mount: Mount, torture_tree: Path) -> None:
        await shell(f"cp -a '{torture_tree}' '{mount.path}/copy'; rm -r '{mount.path}/copy'")
        assert await mount.umount() == 0
        await mount.ended.wait()
        assert mount.catalog.children(ROOT_INO) == []
        assert mount.catalog.inode(ROOT_INO).nlink == 2
        assert mount.catalog.orphans() == []
        assert mount.contents.data == {}


class TestOpenFiles:
    async def test_what_the_kernel_forgets_while_somebody_walks_is_forgotten_here(
        self, mount: Mount
    ) -> None:
        """As when memory runs short: inodes come and go under a walk, and none of it adds up."""
        counts = mount.operations.references.lookups

        def make() -> int:
            for number in range(600):
                path = mount.path / f"d{number % 40}"
                path.mkdir(exist_ok=True)
                write(path / f"f{number}", b"x", os.O_CREAT | os.O_EXCL)
            fd = os.open(mount.path / "gone", os.O_RDWR | os.O_CREAT)
            os.write(fd, b"still here")
            (mount.path / "gone").unlink()
            return fd

        fd = await client(make)
        gone = next(iter(mount.catalog.orphans()))
        await shell(
            f"for n in 1 2; do find '{mount.path}' -ls | wc -l; done >'{mount.path}/walked' &"
            " walk=$!; while kill -0 $walk 2>/dev/null;"
            " do echo 2 >/proc/sys/vm/drop_caches; sleep 0.02; done; wait $walk"
        )
        assert await client((mount.path / "walked").read_bytes) == b"642\n" * 2
        assert counts[gone] > 0
        assert await client(os.pread, fd, 100, 0) == b"still here"
        with trio.fail_after(STUCK_S):
            while sum(1 for _ in counts) > 60:
                await shell("echo 2 >/proc/sys/vm/drop_caches")
        assert counts.page_count <= 3
        assert len((await shell(f"find '{mount.path}' -type f")).split()) == 601
        await client(os.close, fd)
        with trio.fail_after(STUCK_S):
            while mount.catalog.orphans():
                await shell("echo 2 >/proc/sys/vm/drop_caches")
        assert counts[gone] == 0

    async def test_an_unlinked_file_lives_until_it_is_closed(self, mount: Mount) -> None:
        def use() -> None:
            with (mount.path / "a").open("w+b") as file:
                (mount.path / "a").unlink()
                file.write(b"still here")
                file.flush()
                assert os.fstat(file.fileno()).st_nlink == 0
                os.fchmod(file.fileno(), 0o600)
                assert os.pread(file.fileno(), 100, 6) == b"here"
                refused(errno.ENOENT, os.stat, mount.path / "a")

        await client(use)
        assert await mount.umount() == 0
        await mount.ended.wait()
        assert mount.contents.discarded == [2]
        assert mount.catalog.orphans() == []

    async def test_a_file_replaced_by_rename_lives_until_it_is_closed(self, mount: Mount) -> None:
        def use() -> None:
            write(mount.path / "old", b"old content")
            write(mount.path / "new", b"new content")
            fd = os.open(mount.path / "old", os.O_RDONLY)
            (mount.path / "new").rename(mount.path / "old")
            assert os.pread(fd, 100, 0) == b"old content"
            os.close(fd)
            assert (mount.path / "old").read_bytes() == b"new content"

        await client(use)
        assert len(mount.contents.data) <= 2

    async def test_append_exclusive_truncate(self, mount: Mount) -> None:
        path = mount.path / "a"

        def use() -> None:
            write(path, b"one", os.O_CREAT | os.O_EXCL)
            refused(errno.EEXIST, write, path, b"", os.O_CREAT | os.O_EXCL)
            write(path, b"two", os.O_APPEND)
            one, other = (os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2))
            for number in range(4):
                os.write(other if number % 2 else one, b"%d" % number)
            os.close(one)
            os.close(other)
            assert path.read_bytes() == b"onetwo0123"
            os.truncate(path, 4)
            assert path.read_bytes() == b"onet"
            os.truncate(path, 6)
            assert path.read_bytes() == b"onet\0\0"
            write(path, b"new", os.O_TRUNC)
            assert path.read_bytes() == b"new"
            fd = os.open(path, os.O_RDONLY | os.O_TRUNC)
            os.close(fd)
            assert path.stat().st_size == 0

        await client(use)

    async def test_reading_and_writing_by_turns_through_different_files(self, mount: Mount) -> None:
        path = mount.path / "a"

        def use() -> None:
            reader = os.open(path, os.O_RDONLY | os.O_CREAT)
            direct, cached = os.open(path, os.O_WRONLY), os.open(path, os.O_RDWR)
            for number in range(20):
                os.pwrite(cached if number % 2 else direct, b"%04d" % number, number * 3000)
                assert os.pread(reader, 4, number * 3000) == b"%04d" % number
                os.pwrite(direct if number % 2 else cached, b"%04d" % (number + 1), 0)
                assert os.pread(reader, 4, 0) == b"%04d" % (number + 1)
            for fd in (reader, direct, cached):
                os.close(fd)

        await client(use)

    async def test_memory_mappings(self, mount: Mount) -> None:
        out = await python(f"""
            import mmap
            with open({str(mount.path / "a")!r}, "w+b") as file:
                file.truncate(10000)
                with mmap.mmap(file.fileno(), 0) as view:
                    view[5000:5005] = b"mmap!"
                    view.flush()
                file.seek(5000)
                print(file.read(5).decode(), end="")
            """)
        assert out == "mmap!"
        assert mount.contents.data[mount.ino(b"a")][5000:5005] == b"mmap!"

    async def test_locks_and_poll(self, mount: Mount) -> None:
        def use() -> None:
            with (mount.path / "a").open("w+b") as one, (mount.path / "a").open("rb") as other:
                fcntl.flock(one, fcntl.LOCK_EX)
                refused(errno.EAGAIN, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.lockf(one, fcntl.LOCK_EX, 10)
                assert select.select([one], [one], [], 10)[:2] == ([one], [one])

        await client(use)

    async def test_fsync_reaches_content_directory_and_tape(self, mount: Mount) -> None:
        await shell(f"cd '{mount.path}'; mkdir d; echo x > a; sync a; sync d; sync '{mount.path}'")
        assert mount.contents.synced == [mount.ino(b"a"), mount.ino(b"d")]
        assert mount.service.sync_count == 1

    async def test_a_write_that_does_not_fit_is_enospc(self, mount: Mount) -> None:
        mount.contents.capacity_bytes = 1000
        await client(refused, errno.ENOSPC, write, mount.path / "a", bytes(1001))


class TestErrors:
    async def test_errnos_of_names(self, mount: Mount, tmp_path: Path) -> None:
        def use() -> None:
            d, f = mount.path / "d", mount.path / "f"
            (d / "full").mkdir(parents=True)
            (mount.path / "empty").mkdir()
            f.touch()
            (tmp_path / "elsewhere").touch()
            refused(errno.ENOTEMPTY, d.rmdir)
            refused(errno.ENOTDIR, f.rmdir)
            refused(errno.EISDIR, d.unlink)
            refused(errno.EISDIR, os.open, d, os.O_WRONLY)
            refused(errno.EISDIR, os.truncate, d, 0)
            refused(errno.EEXIST, f.mkdir)
            refused(errno.ENOTDIR, os.stat, f / "below")
            refused(errno.ENOENT, os.stat, mount.path / "none")
            refused(errno.ENAMETOOLONG, (mount.path / ("x" * 256)).touch)
            refused(errno.EXDEV, os.rename, tmp_path / "elsewhere", mount.path / "here")
            refused(errno.EXDEV, os.link, tmp_path / "elsewhere", mount.path / "here")
            refused(errno.EPERM, os.link, d, mount.path / "here")
            refused(errno.EEXIST, os.link, f, d)
            refused(errno.EEXIST, os.symlink, "x", f)
            refused(errno.ENOTEMPTY, os.rename, mount.path / "empty", d)
            refused(errno.ENOTDIR, os.rename, d, f)
            refused(errno.EISDIR, os.rename, f, d)
            refused(errno.EINVAL, os.rename, d, d / "full" / "self")
            refused(errno.ENOTDIR, os.listdir, f)
            refused(errno.EINVAL, os.readlink, f)
            refused(errno.ENOTSUP, os.setxattr, f, "system.nfs4_acl", b"")
            refused(errno.EPERM, os.setxattr, f, "user.tapefs.state", b"staged")
            os.chdir(mount.path / "empty")
            (mount.path / "empty").rmdir()
            refused(errno.ENOENT, os.mkdir, "child")
            refused(errno.ENOENT, os.open, "child", os.O_CREAT | os.O_WRONLY)
            os.chdir("/")

        await client(use)

    async def test_renameat2_flags(self, mount: Mount) -> None:
        out = await python(f"""
            import ctypes, errno, os
            os.chdir({str(mount.path)!r})
            libc = ctypes.CDLL(None, use_errno=True)
            def rename(old, new, flags):
                done = libc.renameat2(-100, old, -100, new, flags)
                print(errno.errorcode[ctypes.get_errno()] if done else "ok")
                ctypes.set_errno(0)
            open("a", "w").write("a")
            os.makedirs("b/below")
            rename(b"a", b"b", 1)
            rename(b"a", b"c", 1)
            rename(b"c", b"b", 2)
            rename(b"c", b"none", 2)
            print(sorted(os.listdir()), os.listdir("c"), open("b").read(), os.stat(".").st_nlink)
            """)
        assert out.split("\n") == [
            "EEXIST", "ok", "ok", "ENOENT", "['b', 'c'] ['below'] a 3", ""
        ]  # fmt: skip

    async def test_a_failing_handler_is_eio_and_the_mount_lives_on(
        self, mount: Mount, assert_logs: Callable[..., Any]
    ) -> None:
        def fail(ino: int) -> None:
            raise ZeroDivisionError

        await client(write, mount.path / "a", b"x")
        mount.contents.state = fail  # type: ignore[method-assign,assignment]
        assert_logs("fuse.handler_failed handler=getxattr", count=1)
        await client(refused, errno.EIO, os.getxattr, mount.path / "a", "user.tapefs.state")
        assert await client((mount.path / "a").read_bytes) == b"x"


class TestAttributes:
    async def test_times_follow_the_rules(self, mount: Mount) -> None:
        path, link = mount.path / "a", mount.path / "b"

        def moved(action: Callable[[], object], of: Path) -> str:
            """Which of the times `action` moves, as letters."""
            before = of.lstat()
            while time.time_ns() <= before.st_ctime_ns:  # the kernel's clock is coarse
                pass
            action()
            after = of.lstat()
            return "".join(
                letter
                for letter in "amc"
                if getattr(before, f"st_{letter}time_ns") < getattr(after, f"st_{letter}time_ns")
            )

        def use() -> None:
            root = mount.path
            assert moved(path.touch, root) == "mc"
            assert moved(lambda: write(path, b"text"), path) == "mc"
            assert moved(lambda: write(path, b"text"), root) == ""
            assert moved(lambda: write(path, b""), path) == ""
            assert moved(path.read_bytes, path) == ""
            assert moved(lambda: path.chmod(0o600), path) == "c"
            assert moved(lambda: os.chown(path, 1, 1), path) == "c"
            assert moved(lambda: os.truncate(path, 2), path) == "mc"
            assert moved(lambda: os.setxattr(path, "user.a", b""), path) == "c"
            assert moved(lambda: os.removexattr(path, "user.a"), path) == "c"
            assert moved(lambda: os.link(path, link), path) == "c"
            assert moved(link.unlink, path) == "c"
            assert moved(lambda: path.rename(link), link.parent) == "mc"
            assert moved(lambda: link.rename(path), root) == "mc"
            assert moved(lambda: os.listdir(root), root) == ""
            os.utime(path, ns=(1, 2))
            assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1, 2)
            assert moved(lambda: os.utime(path), path) == "amc"

        await client(use)

    async def test_umask_and_setgid_directories(self, mount: Mount) -> None:
        await shell(
            f"cd '{mount.path}'; umask 027; touch f; mkdir d; chgrp 55 d; chmod g+s d; touch d/f;"
            f" mkdir d/d; [ $(stat -c %a:%g f d d/f d/d | paste -sd,) ="
            " 640:0,2750:55,640:55,2750:55 ]"
        )

    async def test_setuid_goes_when_another_user_writes_or_owners_change(
        self, mount: Mount
    ) -> None:
        async def mode_after(action: str, user: int | None = None, mode: str = "6777") -> str:
            await shell(f"cd '{mount.path}'; rm -f f; echo 12345 > f; chmod {mode} f")
            await shell(f"cd '{mount.path}'; {action}", user=user)
            return (await shell(f"stat -c %a '{mount.path}/f'")).strip()

        assert await mode_after("echo x >> f") == "6777"
        assert await mode_after("echo x >> f", USER) == "777"
        assert await mode_after("echo x 1<> f", USER) == "777"
        assert await mode_after("exec 3<> f; echo x >&3", USER) == "777"
        assert await mode_after("truncate -s 1 f", USER) == "777"
        assert await mode_after(": > f", USER) == "777"
        assert await mode_after("echo x >> f", USER, mode="2767") == "2767"
        assert await mode_after("chown 5 f") == "777"
        assert await mode_after("chgrp 5 f", mode="6767") == "2767"
        assert await mode_after(f"chown {USER} f; chmod 4755 f") == "4755"

    async def test_capabilities_go_with_a_write(self, mount: Mount) -> None:
        for redirection in (">>", "<>", "1<>"):
            listed = await shell(
                f"cd '{mount.path}'; rm -f f; cp /bin/true f; setcap cap_net_raw+ep f; getcap f;"
                f" exec 3{redirection[-2:]} f; echo x >&3; exec 3>&-; getcap f"
            )
            assert listed == "f cap_net_raw=ep\n"

    async def test_permissions_hold_for_other_users(self, mount: Mount) -> None:
        await shell(
            f"cd '{mount.path}'; echo s > secret; chmod 600 secret; mkdir -m 1777 tmp;"
            " echo m > tmp/mine"
        )
        script = (
            f"cd '{mount.path}'; ! cat secret 2>/dev/null; ! touch new 2>/dev/null;"
            " ! rm -f tmp/mine 2>/dev/null; ! chown 0 tmp 2>/dev/null; ! mkdir d 2>/dev/null;"
            " ! chmod 777 secret 2>/dev/null; echo ok > tmp/yours; stat -c %u tmp/yours"
        )
        assert await shell(script, user=USER) == f"{USER}\n"

    async def test_xattr_flags_and_sizes(self, mount: Mount) -> None:
        path = mount.path / "a"

        def use() -> None:
            path.touch()
            os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
            refused(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
            refused(errno.ENODATA, os.setxattr, path, "user.b", b"2", os.XATTR_REPLACE)
            os.setxattr(path, "user.a", bytes(65536), os.XATTR_REPLACE)
            assert os.getxattr(path, "user.a") == bytes(65536)
            assert os.listxattr(path) == ["user.a"]
            assert os.getxattr(path, "user.tapefs.state") == b"staged"
            assert os.getxattr(mount.path, "user.tapefs.volume").decode() == str(VOLUME_UUID)
            refused(errno.ENODATA, os.removexattr, path, "user.b")

        await client(use)

    async def test_acls_and_modes_move_together_as_on_the_local_filesystem(
        self, mount: Mount, tmp_path: Path
    ) -> None:
        script = (
            "touch f; chmod 640 f; setfacl -m u:5:rwx f; stat -c %a f; chmod 651 f;"
            " getfacl -nc f; setfacl -x u:5 f; stat -c %a f; setfacl -m m::r f; getfacl -nc f;"
            " setfacl -b f; stat -c %a f; getfattr -d -m - f; setfacl -m g::rwx f; stat -c %a f;"
            " mkdir d; setfacl -m d:u:5:r d; getfacl -nc d; setfacl -k d; getfattr -d -m - d"
        )
        ours = await shell(f"cd '{mount.path}'; {script}")
        assert ours == await shell(f"cd '{tmp_path}'; {script}")

    async def test_an_acl_change_is_enforced_at_once_although_attributes_are_cached(
        self, mount: Mount
    ) -> None:
        path = mount.path / "f"
        await shell(f"echo secret > '{path}'; chmod 600 '{path}'; stat '{path}'")
        await shell(f"! cat '{path}' 2>/dev/null", user=USER)
        opened = struct.pack("<I" + 3 * "HHI", 2, 1, 6, NOBODY, 4, 0, NOBODY, 32, 4, NOBODY)
        await client(os.setxattr, path, "system.posix_acl_access", opened)
        assert await shell(f"cat '{path}'", user=USER) == "secret\n"

    async def test_acls_are_inherited_as_on_the_local_filesystem(
        self, mount: Mount, tmp_path: Path
    ) -> None:
        script = (
            "umask 0; mkdir d; setfacl -m d:u:5:rw,d:g:6:r,d:m::rw d; touch d/f; mkdir d/e;"
            " mkfifo -m 640 d/p; ln -s x d/l; touch d/e/f; mkdir d/b; setfacl -bk d/b; touch d/b/f;"
            " setfacl -k d; setfacl -m d:u::rwx,d:g::rx,d:o::- d; touch d/n;"
            " find d ! -type l | sort | xargs getfacl -np; stat -c '%a %n' d d/*"
        )
        ours = await shell(f"cd '{mount.path}'; {script}")
        assert ours == await shell(f"cd '{tmp_path}'; {script}")

    async def test_acls_are_enforced(self, mount: Mount) -> None:
        path = mount.path / "f"
        await shell(f"echo secret > '{path}'; chmod 600 '{path}'")
        await shell(f"! cat '{path}' 2>/dev/null", user=USER)
        await shell(f"setfacl -m u:{USER}:r '{path}'")
        assert await shell(f"cat '{path}'", user=USER) == "secret\n"
        await shell(f"! (echo x >> '{path}') 2>/dev/null", user=USER)
        await shell(f"setfacl -m m::- '{path}'")
        await shell(f"! cat '{path}' 2>/dev/null", user=USER)
        await shell(f"setfacl -m m::r '{path}'")
        assert await shell(f"cat '{path}'", user=USER) == "secret\n"
        await shell(f"setfacl -b '{path}'")
        await shell(f"! cat '{path}' 2>/dev/null", user=USER)

    async def test_df_shows_the_volume(self, mount: Mount) -> None:
        mount.contents.capacity_bytes = 1 << 30
        out = await shell(f"df -B1 --output=source,size,avail '{mount.path}' | tail -1")
        assert out.split() == ["tapefs:test_volume", str(1 << 30), str(1 << 30)]


class TestLargeDirectory:
    COUNT = 10_000

    async def test_listing_while_it_changes(self, mount: Mount) -> None:
        """Names that exist all the while come exactly once."""
        for number in range(self.COUNT):
            mount.operations.tree.make(ROOT_INO, b"%05d" % number, stat.S_IFREG | 0o644, 0, 0)

        def use() -> list[str]:
            seen: list[str] = []
            with os.scandir(mount.path) as entries:
                for count, entry in enumerate(entries):
                    seen.append(entry.name)
                    if count % 100 == 50 and count < self.COUNT:
                        (mount.path / entry.name).unlink(missing_ok=True)
                        (mount.path / f"new{count}").touch()
                    if count % 100 == 51 and count < self.COUNT:
                        (mount.path / entry.name).rename(mount.path / f"renamed{count}")
            return seen

        seen = await client(use)
        assert len(seen) == len(set(seen))
        now = {name.decode() for _, name, _ in mount.catalog.children(ROOT_INO, 0, 20_000)}
        stayed = {name for name in now if name.isdigit()}
        assert len(stayed) > self.COUNT * 0.9
        assert stayed <= set(seen)
        first = sorted(await client(os.listdir, mount.path))
        assert first == sorted(now)

    async def test_dot_entries_and_seeking(self, mount: Mount) -> None:
        await shell(f"mkdir -p '{mount.path}/d/e'; touch '{mount.path}'/d/f{{1..200}}")
        out = await python(f"""
            import ctypes
            libc = ctypes.CDLL(None)
            for name in ("opendir", "readdir"):
                getattr(libc, name).restype = ctypes.c_void_p
            libc.telldir.restype = ctypes.c_long
            stream = ctypes.c_void_p(libc.opendir({str(mount.path / "d")!r}.encode()))
            def read():
                entry = libc.readdir(stream)
                return entry and ctypes.string_at(entry + 19)
            names, places = [], [libc.telldir(stream)]
            while (name := read()) is not None:
                names.append(name)
                places.append(libc.telldir(stream))
            assert b"." in names and b".." in names and len(names) == len(set(names)) == 203
            for index in (150, 0, 1, 2, 77, 202):
                libc.seekdir(stream, ctypes.c_long(places[index]))
                assert read() == names[index], index
            print("ok")
            """)
        assert out == "ok\n"


class TestLifeOfAMount:
    async def test_an_external_umount_ends_it_normally(self, mount: Mount) -> None:
        await client(write, mount.path / "a", b"x")
        assert await mount.umount() == 0
        await mount.ended.wait()
        assert mount_at(mount.path) is None
        assert not mount.scope.cancelled_caught

    async def test_a_busy_mount_stays(self, mount: Mount) -> None:
        fd = await client(os.open, mount.path / "a", os.O_CREAT | os.O_WRONLY)
        assert await mount.umount() != 0
        assert await client(os.write, fd, b"alive") == 5
        await client(os.close, fd)

    async def test_cancellation_unmounts_with_files_open_and_a_read_waiting(
        self, mount: Mount, autojump_end_grace: None
    ) -> None:
        await client(write, mount.path / "a", b"x")
        fd = await client(os.open, mount.path / "a", os.O_RDWR)
        mount.contents.gates[mount.ino(b"a")] = trio.Event()
        answers: list[int | None] = []

        async def read() -> None:
            try:
                await client(os.pread, fd, 1, 0)
            except OSError as exc:
                answers.append(exc.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await mount.contents.wait_until_reads_wait(1)
            mount.scope.cancel()
        await mount.ended.wait()
        assert answers[0] in (errno.ENOTCONN, errno.ECONNABORTED)
        assert mount_at(mount.path) is None
        assert mount.contents.open_counts == {}
        with pytest.raises(OSError, match="Errno"):
            await client(os.write, fd, b"x")
        await client(os.close, fd)

    async def test_cancellation_lets_requests_under_way_finish(self, mount: Mount) -> None:
        await client(write, mount.path / "a", b"content")
        ino = mount.ino(b"a")
        mount.contents.gates[ino] = trio.Event()
        fd = await client(os.open, mount.path / "a", os.O_RDONLY)
        answers: list[bytes] = []

        async def read() -> None:
            answers.append(await client(os.pread, fd, 7, 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await mount.contents.wait_until_reads_wait(1)
            mount.scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            mount.contents.gates[ino].set()
        await mount.ended.wait()
        assert answers == [b"content"]
        await client(os.close, fd)

    async def test_many_waiting_reads_stop_nobody_else(self, mount: Mount) -> None:
        """The kernel's default of 12 background requests would stop the thirteenth reader."""
        waiting_count = 40
        mount_dir = mount.path
        assert 12 < waiting_count < KERNEL_BACKGROUND_MAX

        def prepare() -> None:
            for number in range(waiting_count):
                write(mount_dir / f"{number}", b"slow", os.O_CREAT | os.O_EXCL)
            write(mount_dir / "resident", b"quick")

        await client(prepare)
        gate = trio.Event()
        for number in range(waiting_count):
            mount.contents.gates[mount.ino(b"%d" % number)] = gate
        answers: list[bytes] = []
        limiter = trio.CapacityLimiter(waiting_count)

        async def read(number: int) -> None:
            path = mount_dir / f"{number}"
            answers.append(await trio.to_thread.run_sync(path.read_bytes, limiter=limiter))

        async with trio.open_nursery() as nursery:
            for number in range(waiting_count):
                nursery.start_soon(read, number)
            try:
                with trio.fail_after(STUCK_S):
                    await mount.contents.wait_until_reads_wait(waiting_count)
                    assert await client((mount_dir / "resident").read_bytes) == b"quick"
                    assert len(await client(os.listdir, mount_dir)) == waiting_count + 1
            finally:
                gate.set()
        assert answers == [b"slow"] * waiting_count

    async def test_the_kernel_agreed_to_what_libfuse_does_not_ask_for(self, mount: Mount) -> None:
        for limit in ("max_background", "congestion_threshold"):
            assert int((connection_of(mount) / limit).read_text()) == KERNEL_BACKGROUND_MAX
        # A umask that the kernel had taken off already would not be back.
        await shell(f"cd '{mount.path}'; umask 0; mkdir d; setfacl -m d:u:5:rwx d")
        modes = await shell(f"cd '{mount.path}'; umask 077; touch d/a b; stat -c %a d/a b")
        assert modes.split() == ["666", "600"]

    async def test_an_aborted_connection_ends_it_and_leaves_no_dead_mount(
        self, mount: Mount
    ) -> None:
        await client((connection_of(mount) / "abort").write_text, "1")
        await mount.ended.wait()
        assert mount_at(mount.path) is None

    async def test_an_error_while_announcing_readiness_unmounts(self, unserved: Mount) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        options = mount_options("v", allow_other=False, read_only=True)
        with pytest.RaisesGroup(ZeroDivisionError):
            await serve(unserved.operations, unserved.path, options, fail)
        assert mount_at(unserved.path) is None


@pytest.fixture
def autojump_end_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests under way get no time when the mount is cancelled."""
    monkeypatch.setattr("tapefs.fuse.session.END_GRACE_S", 0.0)


DAEMON = """
import os, sys, trio
from pathlib import Path
sys.path.insert(0, {tests!r})
from memory_contents import CountingService, MemoryContents, new_catalog, new_operations
from tapefs.fuse.session import mount_options, serve

async def main():
    catalog = new_catalog(Path({state!r}))
    operations = new_operations(
        Path({state!r}), catalog, MemoryContents(catalog), CountingService()
    )
    options = mount_options("killed", allow_other=False, read_only=False)
    await serve(operations, Path({path!r}), options, lambda: os.write(1, b"ready\\n"))

trio.run(main)
"""


@asynccontextmanager
async def killed_at_the_end(command: list[str]) -> AsyncIterator[trio.Process]:
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with process.stdout:
        try:
            yield process
        finally:
            process.kill()
            await process.wait()


class TestMountpoint:
    async def test_a_dead_mount_of_ours_is_cleared(
        self, empty_directory: Path, tmp_path: Path, unserved: Mount, nursery: trio.Nursery
    ) -> None:
        (tmp_path / "killed").mkdir()
        script = DAEMON.format(
            tests=str(Path(__file__).parent),
            state=str(tmp_path / "killed"),
            path=str(empty_directory),
        )
        command = [sys.executable, "-c", script]
        async with killed_at_the_end(command) as daemon:
            assert daemon.stdout is not None
            assert await daemon.stdout.receive_some() == b"ready\n"
            with pytest.raises(MountpointUnusable, match=r"already mounted .*umount"):
                prepare_mountpoint(empty_directory)
        refused(errno.ENOTCONN, os.listdir, empty_directory)
        nursery.start_soon(unserved.serve)
        await unserved.ready.wait()
        await client(write, empty_directory / "a", b"x")
        assert await unserved.umount() == 0
        await unserved.ended.wait()
        assert not detach_dead_mount(empty_directory)

    def test_unusable_places(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(MountpointUnusable, match=r"none does not exist; create"):
            prepare_mountpoint(tmp_path / "none")
        with pytest.raises(MountpointUnusable, match=r"file is not a directory"):
            prepare_mountpoint(tmp_path / "file")
        with pytest.raises(MountpointUnusable, match=r"/proc already carries a mount \(proc"):
            prepare_mountpoint(Path("/proc"))

    def test_an_automount_point_is_a_place_to_mount_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place, table = tmp_path.resolve() / "waited-for", tmp_path / "mountinfo"
        place.mkdir()
        waiting = f"35 24 0:29 / {place} rw,relatime shared:9 - autofs systemd-1 rw\n"
        table.write_text(waiting)
        monkeypatch.setattr(mountpoint_module, "_MOUNTINFO", table)
        assert prepare_mountpoint(place) == place

        looked = []

        def look(path: Path) -> os.stat_result:
            # Whom the automount does not know brings about its mount.
            looked.append(path)
            table.write_text(f"{waiting}36 35 0:30 / {place} rw - fuse.tapefs tapefs:A rw\n")
            return os.stat(path)

        monkeypatch.setattr(Path, "stat", look)
        with pytest.raises(MountpointUnusable, match=r"a tape is already mounted .*tapefs:A"):
            prepare_mountpoint(place)
        assert looked == [place]

    def test_symlinks_and_full_directories_will_do(self, tmp_path: Path) -> None:
        (tmp_path / "with blank\n").mkdir()
        (tmp_path / "with blank\n" / "file").touch()
        (tmp_path / "link").symlink_to("with blank\n")
        assert prepare_mountpoint(tmp_path / "link") == tmp_path.resolve() / "with blank\n"

    def test_names_that_mountinfo_escapes(self, tmp_path: Path) -> None:
        place = tmp_path / "with blank\n\\"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "some source", place], check=True)
        try:
            found = mount_at(place.resolve())
        finally:
            subprocess.run(["umount", place], check=True)
        assert found is not None
        assert (found.filesystem_type, found.source) == ("tmpfs", "some source")

    def test_what_must_be_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        require_fuse(allow_other=True)
        monkeypatch.setattr(mountpoint_module, "FUSE_CONFIGURATION", tmp_path / "fuse.conf")
        monkeypatch.setattr(os, "geteuid", lambda: USER)
        with pytest.raises(NoFuse, match="user_allow_other"):
            require_fuse(allow_other=True)
        (tmp_path / "fuse.conf").write_text("#user_allow_other\n")
        with pytest.raises(NoFuse, match="user_allow_other"):
            require_fuse(allow_other=True)
        (tmp_path / "fuse.conf").write_text("mount_max = 5\n user_allow_other \n")
        require_fuse(allow_other=True)
        monkeypatch.setattr(shutil, "which", lambda _: None)
        with pytest.raises(NoFuse, match="fuse3"):
            require_fuse(allow_other=False)
        monkeypatch.setattr(mountpoint_module, "FUSE_DEVICE", tmp_path / "none")
        with pytest.raises(NoFuse, match="modprobe fuse"):
            require_fuse(allow_other=False)

    def test_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert mount_options("a,b ü", allow_other=False, read_only=False) == {
            "fsname=tapefs:a_b__", "subtype=tapefs", "default_permissions", "allow_other", "rw"
        }  # fmt: skip
        monkeypatch.setattr(os, "geteuid", lambda: USER)
        assert "allow_other" not in mount_options("v", allow_other=False, read_only=False)
        assert {"allow_other", "ro"} <= mount_options("v", allow_other=True, read_only=True)
