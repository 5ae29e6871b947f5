"""The least filesystem that small files can be written into: names in memory, bytes in one file.

    python tests/benchmarks/least.py FILE MOUNTPOINT

Serves until it is unmounted. What is written goes to the end of FILE, whatever it belongs to. The
kernel is told the same as by tapefs, its requests are waited for the way tapefs does, and four of
them come for each small file: LOOKUP, CREATE, WRITE, RELEASE. Nothing can be read.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio
from pyfuse3 import ROOT_INODE, EntryAttributes, FileInfo, FUSEError

from tapefs.fuse.negotiation import Negotiation
from tapefs.fuse.request_wait import taking_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyfuse3 import RequestContext

CACHE_S: Final = 86_400.0


class Least(pyfuse3.Operations):
    """Directories are remembered, and names; of a file nothing else is."""

    enable_writeback_cache = False
    supports_dot_lookup = True
    enable_acl = True

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._names: dict[tuple[int, bytes], int] = {}
        self._directories = {int(ROOT_INODE)}
        self._last = int(ROOT_INODE)

    def _made(self, parent: int, name: bytes) -> int:
        self._last += 1
        self._names[parent, name] = self._last
        return self._last

    def _attributes(self, inode: int) -> EntryAttributes:
        answer = EntryAttributes()
        answer.st_ino = inode
        kind = stat.S_IFDIR if inode in self._directories else stat.S_IFREG
        answer.st_mode = kind | 0o755
        answer.entry_timeout = answer.attr_timeout = CACHE_S
        return answer

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = self._names.get((parent_inode, name))
        if inode is not None:
            return self._attributes(inode)
        absent = EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = CACHE_S
        return absent

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inodes are kept: a benchmark is over soon."""

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(inode)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENODATA)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        inode = self._made(parent_inode, name)
        self._directories.add(inode)
        return self._attributes(inode)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        inode = self._made(parent_inode, name)
        return FileInfo(fh=inode, direct_io=True, keep_cache=True), self._attributes(inode)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return os.write(self._fd, buf)

    async def release(self, fh: int) -> None:
        """A file that is closed is forgotten."""


async def _serve(operations: Least, mountpoint: str) -> None:
    with taking_turns(Negotiation()):
        pyfuse3.init(operations, mountpoint, {"fsname=least", "default_permissions"})
        try:
            await pyfuse3.main()
        finally:
            pyfuse3.close()


def main(file: str, mountpoint: str) -> None:
    """Serve `mountpoint`; what is written there becomes `file`."""
    with open(file, "wb", buffering=0) as stream:
        trio.run(_serve, Least(stream.fileno()), mountpoint)


if __name__ == "__main__":
    main(*sys.argv[1:])
