"""Rows of the table about content: opening, reading, writing, sizes, holes, mapping, locks."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import resource
import signal
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from posix_calls import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    FILE_BYTES,
    Notes,
    content,
    fallocate,
    pattern,
    syncfs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def open_flags(at: Path, note: Notes) -> None:
    file, link, directory = at / "file", at / "link", at / "dir"
    note.use("EXCL on a file", file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    note.use("EXCL on a link", link, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    note.use("EXCL new", at / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    note.use("NOFOLLOW on a link", link, os.O_RDONLY | os.O_NOFOLLOW)
    note.use("PATH and NOFOLLOW on a link", link, os.O_PATH | os.O_NOFOLLOW)
    note.use("NOFOLLOW on a file", file, os.O_RDONLY | os.O_NOFOLLOW)
    note.use("DIRECTORY on a file", file, os.O_RDONLY | os.O_DIRECTORY)
    note.use("DIRECTORY on a directory", directory, os.O_RDONLY | os.O_DIRECTORY)
    note.use("writing a directory", directory, os.O_WRONLY)
    note.use("truncating a directory", directory, os.O_RDONLY | os.O_TRUNC)
    note.use("CREAT on a directory", directory, os.O_CREAT | os.O_RDONLY)
    note.use("missing", at / "absent", os.O_RDONLY)
    note.use("below a file", at / "file" / "below", os.O_RDONLY)
    note.use("a file with a slash", at / "file/.", os.O_RDONLY)
    note.use("NOATIME", file, os.O_RDONLY | os.O_NOATIME, lambda fd: os.read(fd, 9))
    note.use("reading write-only", file, os.O_WRONLY, lambda fd: os.read(fd, 1))
    note.use("writing read-only", file, os.O_RDONLY, lambda fd: os.write(fd, b"x"))
    (at / "dangling").symlink_to("made through a link")
    note.use("CREAT through a link", at / "dangling", os.O_CREAT | os.O_WRONLY)
    note("was made", lambda: sorted(os.listdir(at)))
    note.use("TRUNC read-only", at / "second", os.O_RDONLY | os.O_TRUNC)
    note("truncated", content, at / "second")
    note.use("TRUNC write", file, os.O_WRONLY | os.O_TRUNC, lambda fd: os.write(fd, b"short"))
    note("hard link follows", content, at / "hard")


def open_append(at: Path, note: Notes) -> None:
    flags = os.O_RDWR | os.O_APPEND
    note.use(
        "append",
        at / "file",
        flags,
        lambda fd: os.write(fd, b"one"),
        lambda fd: os.lseek(fd, 0, os.SEEK_CUR),
        lambda fd: os.lseek(fd, 5, os.SEEK_SET),
        lambda fd: os.write(fd, b"two"),
        lambda fd: os.pwrite(fd, b"three", 5),
        lambda fd: os.pread(fd, 30, FILE_BYTES - 9),
    )
    one, other = (os.open(at / "hard", flags) for _ in range(2))
    for number, fd in enumerate((one, other, one, other)):
        note(f"in turn {number}", os.write, fd, f"<{number}>".encode())
    os.close(one)
    os.close(other)
    note("content", content, at / "file")


def open_synchronous(at: Path, note: Notes) -> None:
    for name in ("O_SYNC", "O_DSYNC"):
        note.use(
            name,
            at / "file",
            os.O_RDWR | getattr(os, name),
            lambda fd: os.pwrite(fd, pattern("sync", 5000), 4000),
            os.fdatasync,
            os.fsync,
        )
    note.use("a directory", at / "dir", os.O_RDONLY, os.fsync, os.fdatasync)
    note("content", content, at / "file")


def open_direct(at: Path, note: Notes) -> None:
    block = mmap.mmap(-1, 8192)
    block.write(pattern("direct", 8192))
    into = mmap.mmap(-1, 8192)
    note.use(
        "aligned",
        at / "file",
        os.O_RDWR | os.O_DIRECT,
        lambda fd: os.pwrite(fd, block, 4096),
        lambda fd: os.preadv(fd, [into], 0),
        lambda fd: os.preadv(fd, [into], 65536),
        lambda fd: os.preadv(fd, [into], 131072),
    )
    note("read", lambda: into[:100])
    note("content", content, at / "file")


def open_unnamed(at: Path, note: Notes) -> None:
    note.use("TMPFILE", at, os.O_RDWR | os.O_TMPFILE, lambda fd: os.write(fd, b"unnamed"))
    note("listed", lambda: sorted(os.listdir(at)))


def overlapping_writes(at: Path, note: Notes) -> None:
    chance = random.Random(5)
    fd = os.open(at / "file", os.O_RDWR)
    other = os.open(at / "hard", os.O_RDWR)
    for number in range(60):
        offset = chance.randrange(FILE_BYTES + 20_000)
        data = pattern(f"write {number}", chance.randrange(1, 9_000))
        note(f"write {number}", os.pwrite, chance.choice((fd, other)), data, offset)
        offset = chance.randrange(FILE_BYTES + 30_000)
        note(f"read {number}", os.pread, chance.choice((fd, other)), 300, offset)
    note("vector", os.pwritev, fd, [b"a" * 100, b"", b"b" * 5000], 12_345)
    note("nothing", os.write, fd, b"")
    note("size while open", lambda: os.fstat(fd).st_size)
    os.close(fd)
    os.close(other)
    note("content", content, at / "file")


def truncations(at: Path, note: Notes) -> None:
    file = at / "file"
    for size in (50_001, 90_000, 35_000, 35_001, 4096, 0, 1, 131_072, 100_000):
        note(f"to {size}", os.truncate, file, size)
        note(f"then {size}", content, at / "hard")
    note("negative", os.truncate, file, -1)
    note("a directory", os.truncate, at / "dir", 1)
    note("missing", os.truncate, at / "absent", 1)
    note("a fifo", os.truncate, at / "fifo", 1)
    note.use("read-only", file, os.O_RDONLY, lambda fd: os.ftruncate(fd, 1))
    note.use(
        "open",
        at / "second",
        os.O_RDWR,
        lambda fd: os.ftruncate(fd, 500),
        lambda fd: os.write(fd, b"w" * 200),
        lambda fd: os.ftruncate(fd, 700),
        lambda fd: os.pread(fd, 9_000, 0),
        lambda fd: os.ftruncate(fd, 100),
        lambda fd: os.read(fd, 10),
        lambda fd: os.write(fd, b"behind the end"),
        lambda fd: os.pread(fd, 9_000, 0),
    )


def positions(at: Path, note: Notes) -> None:
    note.use(
        "file",
        at / "file",
        os.O_RDONLY,
        lambda fd: os.lseek(fd, -5, os.SEEK_END),
        lambda fd: os.read(fd, 100),
        lambda fd: os.read(fd, 100),
        lambda fd: os.lseek(fd, -1, os.SEEK_SET),
        lambda fd: os.lseek(fd, 1 << 40, os.SEEK_SET),
        lambda fd: os.read(fd, 100),
        lambda fd: os.pread(fd, 100, 1 << 40),
        lambda fd: os.lseek(fd, 0, 99),
        lambda fd: os.lseek(fd, 0, os.SEEK_DATA),
        lambda fd: os.lseek(fd, 1 << 30, os.SEEK_DATA),
        lambda fd: os.lseek(fd, 1 << 30, os.SEEK_HOLE),
        lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED),
        lambda fd: os.readv(fd, [bytearray(3), bytearray(0), bytearray(9)]),
    )
    note.use("fifo", at / "fifo", os.O_RDWR, lambda fd: os.lseek(fd, 0, os.SEEK_SET))


def sparse_files(at: Path, note: Notes) -> None:
    sparse = at / "sparse"
    size = 3 << 20
    fd = os.open(sparse, os.O_RDWR | os.O_CREAT)
    note("extend", os.ftruncate, fd, size)
    note("one island", os.pwrite, fd, b"island", 1 << 20)
    note("hole reads as zeros", lambda: os.pread(fd, 20, (1 << 20) - 10))
    note("SEEK_DATA", os.lseek, fd, 0, os.SEEK_DATA)
    note("SEEK_HOLE", os.lseek, fd, 1 << 20, os.SEEK_HOLE)
    note("SEEK_DATA in the last hole", os.lseek, fd, 2 << 20, os.SEEK_DATA)
    os.close(fd)
    note("content", content, sparse)


def allocations(at: Path, note: Notes) -> None:
    fd = os.open(at / "file", os.O_RDWR)
    page = 4096
    note("plain", fallocate, fd, 0, 0, 80 * 1024)
    note("keeping the size", fallocate, fd, FALLOC_FL_KEEP_SIZE, 0, 1 << 20)
    note("punch", fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page, page)
    note("punch and size", fallocate, fd, FALLOC_FL_PUNCH_HOLE, page, page)
    note("zero", fallocate, fd, FALLOC_FL_ZERO_RANGE, 2 * page, 100)
    note("collapse", fallocate, fd, FALLOC_FL_COLLAPSE_RANGE, 0, page)
    note("insert", fallocate, fd, FALLOC_FL_INSERT_RANGE, 0, page)
    note("no length", fallocate, fd, 0, 0, 0)
    note("unknown mode", fallocate, fd, 1 << 20, 0, 1)
    os.close(fd)
    note.use("read-only", at / "file", os.O_RDONLY, lambda fd: fallocate(fd, 0, 0, 1))


def posix_allocation(at: Path, note: Notes) -> None:
    """glibc writes a byte into each block where the filesystem has no fallocate(2)."""
    note.use("grow", at / "file", os.O_RDWR, lambda fd: os.posix_fallocate(fd, 60_000, 40_000))
    note("content", content, at / "file")


def copies_in_the_kernel(at: Path, note: Notes) -> None:
    source = os.open(at / "file", os.O_RDONLY)
    target = os.open(at / "second", os.O_RDWR)
    both = os.open(at / "file", os.O_RDWR)
    note("copy_file_range", os.copy_file_range, source, target, 30_000, 1_000, 2_000)
    note("past the end", os.copy_file_range, source, target, 9_000, 1 << 20, 0)
    note("overlapping", os.copy_file_range, both, both, 9_000, 1_000, 2_000)
    note("into itself", os.copy_file_range, both, both, 9_000, 1_000, 40_000)
    note("into a read-only one", os.copy_file_range, target, source, 9)
    note("sendfile", os.sendfile, target, source, 500, 20_000)
    note("where it stands", os.lseek, target, 0, os.SEEK_CUR)
    reader, writer = os.pipe()
    note("splice out", os.splice, source, writer, 4_000, 100)
    note("splice in", os.splice, reader, target, 4_000, None, 50)
    for fd in (reader, writer, source, target, both):
        os.close(fd)
    note("source", content, at / "file")
    note("target", content, at / "second")


def shared_mappings(at: Path, note: Notes) -> None:
    fd = os.open(at / "file", os.O_RDWR)
    with mmap.mmap(fd, 0) as shared:
        note("read", lambda: shared[30_000:30_050])
        shared[10:20] = b"through it"
        shared[FILE_BYTES - 5 : FILE_BYTES] = b"tail!"
        note("msync", shared.flush)
        note("read(2) sees it", os.pread, fd, 20, 5)
        note("write(2)", os.pwrite, fd, b"behind its back", 40_000)
        note("it sees write(2)", lambda: shared[39_999:40_020])
        note("truncate below", os.truncate, at / "hard", 65_000)
        shared[100:103] = b"end"
    os.close(fd)
    note("content", content, at / "hard")
    with (at / "second").open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as own:
        own[0:5] = b"alone"
        note("private", lambda: own[0:10])
    note("second", content, at / "second")
    read_only = os.open(at / "file", os.O_RDONLY)
    note("shared write of a read-only one", mmap.mmap, read_only, 10)
    os.close(read_only)


def unlinked_files(at: Path, note: Notes) -> None:
    fd = os.open(at / "second", os.O_RDWR)
    note("unlink", os.unlink, at / "second")
    note("links", lambda: os.fstat(fd).st_nlink)
    note("read", os.pread, fd, 100, 100)
    note("write", os.pwrite, fd, b"nobody will know", 9_000)
    note("truncate", os.ftruncate, fd, 9_005)
    note("read again", os.pread, fd, 20, 8_995)
    note("chmod", os.fchmod, fd, 0o600)
    note("set an attribute", os.setxattr, fd, "user.gone", b"soon")
    note("read the attribute", os.getxattr, fd, "user.gone")
    note("link back", os.link, f"/proc/self/fd/{fd}", at / "back", follow_symlinks=True)
    (at / "second").write_bytes(b"another one")
    note("still itself", os.pread, fd, 5, 0)
    os.close(fd)
    note("the other", content, at / "second")


def locks(at: Path, note: Notes) -> None:
    one, other = os.open(at / "file", os.O_RDWR), os.open(at / "file", os.O_RDWR)
    now = fcntl.LOCK_NB
    note("flock", fcntl.flock, one, fcntl.LOCK_EX | now)
    note("taken", fcntl.flock, other, fcntl.LOCK_EX | now)
    note("taken, shared", fcntl.flock, other, fcntl.LOCK_SH | now)
    note("downgrade", fcntl.flock, one, fcntl.LOCK_SH | now)
    note("share", fcntl.flock, other, fcntl.LOCK_SH | now)
    note("unlock", fcntl.flock, one, fcntl.LOCK_UN)
    note("upgrade", fcntl.flock, other, fcntl.LOCK_EX | now)
    set_one, get_one = 37, 36  # F_OFD_SETLK, F_OFD_GETLK
    first = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 100, 0)
    after = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 100, 0, 0)
    note("record lock", lambda: fcntl.fcntl(one, set_one, first) and None)
    note("record taken", lambda: fcntl.fcntl(other, set_one, first) and None)
    note("other record", lambda: fcntl.fcntl(other, set_one, after) and None)
    note("who has it", lambda: struct.unpack("hhqqi4x", fcntl.fcntl(other, get_one, first)))
    os.close(one)
    note("free again", lambda: fcntl.fcntl(other, set_one, first) and None)
    note("POSIX lock of a child", _lock_in_child, other)
    os.close(other)


def _lock_in_child(fd: int) -> int:
    """What a second process gets that wants a POSIX lock of ours: an errno, or 0."""
    fcntl.lockf(fd, fcntl.LOCK_UN)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)
    child = os.fork()
    if child == 0:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 25)
        except OSError as exc:
            os._exit(exc.errno or 0)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def controls(at: Path, note: Notes) -> None:
    """What is not POSIX, and local filesystems know: flags, maps, clones, syncfs(2)."""
    get_flags, clone, file_map = 0x80086601, 0x40049409, 0xC020660B
    fd, other = os.open(at / "file", os.O_RDWR), os.open(at / "second", os.O_RDWR)
    note("GETFLAGS", lambda: fcntl.ioctl(fd, get_flags, bytes(8)) and None)
    note("FICLONE", lambda: fcntl.ioctl(other, clone, fd) and None)
    note("FIEMAP", lambda: fcntl.ioctl(fd, file_map, bytes(64)) and None)
    note("a terminal's", lambda: fcntl.ioctl(fd, 0x5413, bytes(8)) and None)
    note("syncfs", syncfs, fd)
    os.close(fd)
    os.close(other)


def too_large(at: Path, note: Notes) -> None:
    far = (1 << 63) - 1
    fd = os.open(at / "file", os.O_RDWR)
    note("write at the end of all", os.pwrite, fd, b"x", far)
    size = os.fstat(fd).st_size
    note("truncate to all", os.ftruncate, fd, far)
    os.ftruncate(fd, size)
    with _file_size_limit(80_000):
        note("up to the limit", os.pwrite, fd, b"y" * 20_000, 70_000)
        note("at the limit", os.pwrite, fd, b"y", 80_000)
        note("truncate above", os.ftruncate, fd, 80_001)
    os.close(fd)
    note("content", content, at / "file")


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    """RLIMIT_FSIZE, without the signal."""
    had = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, had[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, had)
        signal.signal(signal.SIGXFSZ, handler)


ROWS = (
    open_flags,
    open_append,
    open_synchronous,
    open_direct,
    open_unnamed,
    overlapping_writes,
    truncations,
    positions,
    sparse_files,
    allocations,
    posix_allocation,
    copies_in_the_kernel,
    shared_mappings,
    unlinked_files,
    locks,
    controls,
    too_large,
)

# What a mount gives instead, by row and label; README.md, "What a mount does not do".
INSTEAD: dict[str, dict[str, object]] = {
    "open_unnamed": {"TMPFILE: open": "EOPNOTSUPP"},
    "sparse_files": {"SEEK_DATA": 0, "SEEK_HOLE": 3 << 20, "SEEK_DATA in the last hole": 2 << 20},
    "controls": {
        "GETFLAGS": "ENOTTY",
        "FICLONE": "EOPNOTSUPP",
        "FIEMAP": "EOPNOTSUPP",
    },
    # As on ext4; tmpfs takes it.
    "too_large": {"truncate to all": "EFBIG"},
    "allocations": dict.fromkeys(
        ("plain", "keeping the size", "punch", "zero", "collapse", "insert"), "EOPNOTSUPP"
    ),
}
