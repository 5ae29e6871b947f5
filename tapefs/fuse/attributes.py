"""Inodes as stat(2) shows them."""

from __future__ import annotations

import stat
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyfuse3 import EntryAttributes

from tapefs.entries import ROOT_INO

if TYPE_CHECKING:
    from uuid import UUID

    from tapefs.entries import Inode

# What stat(2) reports as the preferred size of a read or write.
IO_BYTES_PREFERRED: Final = 128 * 1024
# Names and attributes are ours alone to change, and we tell the kernel when we do.
CACHE_S: Final = 86_400.0

_PERMISSIONS: Final = 0o777


def inode_generation(volume_uuid: UUID) -> int:
    """The generation of every inode but the root: 32 bits, as the kernel keeps them, never 0."""
    return zlib.crc32(volume_uuid.bytes) or 1


@dataclass(frozen=True, slots=True)
class Presentation:
    """Owner, group and permissions to show instead of those stored; None shows what is stored.

    With `umask` everything shows the permissions that it leaves of 0777, as on filesystems that
    store none. What is shown is what the kernel goes by.
    """

    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    # With the number of an inode it names a file for ever, to NFS clients for example: numbers are
    # not given again within a volume, and this tells volumes apart.
    generation: int = 0

    def attributes(self, inode: Inode) -> EntryAttributes:
        """A new answer for `inode`."""
        attributes = EntryAttributes()
        self.fill(attributes, inode)
        return attributes

    def fill(self, attributes: EntryAttributes, inode: Inode) -> None:
        """Make `attributes` those of `inode`."""
        mode = inode.mode
        if self.umask is not None and not stat.S_ISLNK(mode):
            mode = mode & ~_PERMISSIONS | _PERMISSIONS & ~self.umask
        attributes.st_ino = inode.ino
        # The kernel has the root under generation 0, whatever is mounted.
        attributes.generation = 0 if inode.ino == ROOT_INO else self.generation
        attributes.entry_timeout = attributes.attr_timeout = CACHE_S
        attributes.st_mode = mode
        attributes.st_nlink = inode.nlink
        attributes.st_uid = inode.uid if self.uid is None else self.uid
        attributes.st_gid = inode.gid if self.gid is None else self.gid
        attributes.st_rdev = inode.rdev
        attributes.st_size = inode.size
        # A file on tape reports its blocks as well: zero would make tar and cp believe in a hole.
        attributes.st_blocks = (inode.size + 511) // 512
        attributes.st_blksize = IO_BYTES_PREFERRED
        attributes.st_atime_ns = inode.atime_ns
        attributes.st_mtime_ns = inode.mtime_ns
        attributes.st_ctime_ns = inode.ctime_ns
