"""The reference: a directory served through pyfuse3 as it is, as simply as that can be done.

    python tests/benchmarks/pass_through.py DIRECTORY MOUNTPOINT [hashing]

Serves until it is unmounted. The kernel is told the same as by tapefs: names and attributes may be
kept, files that are only written bypass the page cache. It knows what `cp`, `rsync`, `ls`, `find`
and `du` ask for, and nothing else. With `hashing` a thread hashes what is written, in the order in
which it comes, and what is read is read ahead by a thread, checked and hashed there: for one file
that is written or read from front to back. Little of it is held in memory at a time, since the
least program is to keep to the row's bound on memory too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import crc32c
import pyfuse3
import trio
from pyfuse3 import ROOT_INODE, EntryAttributes, FileInfo, FUSEError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyfuse3 import ReaddirToken, RequestContext, SetattrFields

CACHE_S: Final = 86_400.0
# As tapefs asks the kernel for.
READ_AHEAD_KIB: Final = 1024
_PIECE_BYTES: Final = 1 << 20
_PIECES_MAX: Final = 16
# Writes, of a mebibyte at most, that wait to be hashed.
_UNHASHED_COUNT: Final = 64


class ReadAhead:
    """A file read from front to back by a thread, with CRC-32C and SHA-256 of everything."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._room = threading.Semaphore(_PIECES_MAX)
        # The last pieces, by number; and how many came.
        self._pieces: dict[int, bytes] = {}
        self._count = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        sha256, position, data = hashlib.sha256(), 0, b"-"
        while data:
            self._room.acquire()
            data = os.pread(self._fd, _PIECE_BYTES, position)
            crc32c.crc32c(data)
            sha256.update(data)
            position += len(data)
            self._queue.put(data)

    def read(self, off: int, size: int) -> bytes:
        number, within = divmod(off, _PIECE_BYTES)
        found = self._piece(number)
        if within == 0 and size >= len(found):
            return found
        data = found[within : within + size]
        if len(data) < size and len(found) == _PIECE_BYTES:
            data += self._piece(number + 1)[: size - len(data)]
        return data

    def _piece(self, number: int) -> bytes:
        while self._count <= number:
            self._pieces[self._count] = self._queue.get()
            self._pieces.pop(self._count - _PIECES_MAX, None)
            self._count += 1
            self._room.release()
        return self._pieces[number]


class PassThrough(pyfuse3.Operations):
    """Every inode is a name in its parent directory; hard links are not known."""

    enable_writeback_cache = False

    def __init__(self, root: bytes, *, hashing: bool) -> None:
        super().__init__()
        self._names: dict[int, tuple[int, bytes]] = {ROOT_INODE: (0, root)}
        self._inodes: dict[tuple[int, bytes], int] = {}
        self._listings: dict[int, list[bytes]] = {}
        self._last = int(ROOT_INODE)
        self._sha256 = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1) if hashing else None
        self._unhashed = threading.BoundedSemaphore(_UNHASHED_COUNT)
        self._ahead: dict[int, ReadAhead] = {}

    def _path(self, inode: int, name: bytes | None = None) -> bytes:
        parts = [] if name is None else [name]
        while inode:
            inode, part = self._names[inode]
            parts.append(part)
        return b"/".join(reversed(parts))

    def _inode(self, parent: int, name: bytes) -> int:
        inode = self._inodes.get((parent, name))
        if inode is None:
            self._last = inode = self._last + 1
            self._inodes[parent, name] = inode
            self._names[inode] = (parent, name)
        return inode

    def _gone(self, parent: int, name: bytes) -> None:
        inode = self._inodes.pop((parent, name), None)
        if inode is not None:
            del self._names[inode]

    def _attributes(self, inode: int, found: os.stat_result) -> EntryAttributes:
        answer = EntryAttributes()
        answer.st_ino = inode
        answer.st_mode, answer.st_nlink, answer.st_rdev = (
            found.st_mode,
            found.st_nlink,
            found.st_rdev,
        )
        answer.st_uid, answer.st_gid, answer.st_size = found.st_uid, found.st_gid, found.st_size
        answer.st_blksize, answer.st_blocks = found.st_blksize, found.st_blocks
        answer.st_atime_ns, answer.st_mtime_ns = found.st_atime_ns, found.st_mtime_ns
        answer.st_ctime_ns = found.st_ctime_ns
        answer.generation = 0
        answer.entry_timeout = answer.attr_timeout = CACHE_S
        return answer

    def _entry(self, parent: int, name: bytes) -> EntryAttributes:
        found = os.lstat(self._path(parent, name))
        return self._attributes(self._inode(parent, name), found)

    # -- names

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            return self._entry(parent_inode, name)
        except FileNotFoundError:
            absent = EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = CACHE_S
            return absent

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inodes are kept: a benchmark is over soon."""

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        os.mkdir(self._path(parent_inode, name), mode)
        return self._entry(parent_inode, name)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        os.unlink(self._path(parent_inode, name))
        self._gone(parent_inode, name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        os.rmdir(self._path(parent_inode, name))
        self._gone(parent_inode, name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        os.rename(self._path(parent_inode_old, name_old), self._path(parent_inode_new, name_new))
        self._gone(parent_inode_new, name_new)
        inode = self._inodes.pop((parent_inode_old, name_old))
        self._inodes[parent_inode_new, name_new] = inode
        self._names[inode] = (parent_inode_new, name_new)

    # -- directories

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self._listings[inode] = os.listdir(self._path(inode))
        return inode

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        directory = self._path(fh)
        names = self._listings[fh]
        for number in range(start_id, len(names)):
            found = os.lstat(directory + b"/" + names[number])
            attributes = self._attributes(self._inode(fh, names[number]), found)
            if not pyfuse3.readdir_reply(token, names[number], attributes, number + 1):
                return

    async def releasedir(self, fh: int) -> None:
        """The listing stays until the next opendir."""

    # -- attributes

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(inode, os.lstat(self._path(inode)))

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        path = self._path(inode)
        if fields.update_size:
            os.truncate(path, attr.st_size)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(attr.st_mode))
        if fields.update_uid or fields.update_gid:
            uid = attr.st_uid if fields.update_uid else -1
            os.lchown(path, uid, attr.st_gid if fields.update_gid else -1)
        if fields.update_atime or fields.update_mtime:
            before = os.lstat(path)
            atime_ns = attr.st_atime_ns if fields.update_atime else before.st_atime_ns
            mtime_ns = attr.st_mtime_ns if fields.update_mtime else before.st_mtime_ns
            os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
        return self._attributes(inode, os.lstat(path))

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENODATA)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return ()

    # -- open files

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        fd = os.open(self._path(parent_inode, name), flags | os.O_CREAT, mode)
        return _opened(fd, flags), self._entry(parent_inode, name)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        fd = os.open(self._path(inode), flags)
        if self._hasher and flags & os.O_ACCMODE == os.O_RDONLY:
            self._ahead[fd] = ReadAhead(fd)
        return _opened(fd, flags)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        ahead = self._ahead.get(fh)
        return ahead.read(off, size) if ahead else os.pread(fh, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        if self._hasher:
            self._unhashed.acquire()
            self._hasher.submit(self._hash, buf)
        return os.pwrite(fh, buf, off)

    def _hash(self, buf: bytes) -> None:
        self._sha256.update(buf)
        self._unhashed.release()

    async def flush(self, fh: int) -> None:
        """Nothing is held back."""

    async def release(self, fh: int) -> None:
        os.close(fh)


def _opened(fd: int, flags: int) -> FileInfo:
    direct_io = flags & os.O_ACCMODE == os.O_WRONLY
    return FileInfo(fh=fd, direct_io=direct_io, keep_cache=True)


def main(directory: str, mountpoint: str, hashing: str = "") -> None:
    """Serve `directory` at `mountpoint`."""
    os.umask(0)
    operations = PassThrough(os.fsencode(Path(directory).resolve()), hashing=bool(hashing))
    pyfuse3.init(operations, mountpoint, {"fsname=pass-through", "default_permissions"})
    try:
        trio.run(_serve, Path(mountpoint))
    finally:
        pyfuse3.close()


async def _serve(mountpoint: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        number = await trio.to_thread.run_sync(os.stat, mountpoint)
        device = f"{os.major(number.st_dev)}:{os.minor(number.st_dev)}"
        with suppress(OSError):
            Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))


if __name__ == "__main__":
    main(*sys.argv[1:])
