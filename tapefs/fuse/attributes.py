"""Inodes as stat(2) shows them."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyfuse3 import EntryAttributes

if TYPE_CHECKING:
    from tapefs.entries import Inode

# What stat(2) reports as the preferred size of a read or write.
IO_BYTES_PREFERRED: Final = 128 * 1024
# Names and attributes are ours alone to change, and we tell the kernel when we do.
CACHE_S: Final = 86_400.0

_PERMISSIONS: Final = 0o777


@dataclass(frozen=True, slots=True)
class Presentation:
    """Owner, group and permissions to show instead of those stored; None shows what is stored.

    With `umask` everything shows the permissions that it leaves of 0777, as on filesystems that
    store none. What is shown is what the kernel goes by.
    """

    uid: int | None = None
    gid: int | None = None
    umask: int | None = None

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
