"""The namespace as POSIX.1-2017 and Linux have it, over the catalog: names, attributes, links.

Everything here is synchronous and runs in the trio thread, so one call is one critical section:
no other request sees it half done. A call either raises before it changes anything or does all of
its changes. Access permission is not checked here (the kernel does it, `default_permissions`);
what is checked is what makes sense: types, emptiness, existence, lengths, loops.

File content is not known here; `size` is whatever the content side wrote into the inode.
"""

from __future__ import annotations

import errno
import stat
import time
from typing import TYPE_CHECKING, Final, Protocol

from tapefs.archive import posix_acl
from tapefs.entries import ROOT_INO
from tapefs.errors import FilesystemError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.catalog import Catalog
    from tapefs.entries import Inode

NAME_BYTES_MAX: Final = 255
TARGET_BYTES_MAX: Final = 4095
XATTR_NAME_BYTES_MAX: Final = 255
XATTR_VALUE_BYTES_MAX: Final = 65536
# All of one inode's attributes together: what a pax header on tape has room for (1,000,000 bytes,
# docs/tape-format.md) once binary values are counted with the path and the rest.
XATTRS_BYTES_MAX: Final = 512 * 1024

# renameat2(2)
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

# Archive members below this name in the root describe the archive itself; a user's file there
# would collide with them when the tape is restored with tar.
RESERVED_ROOT_NAME: Final = b".tapefs"

_DEVICES: Final = frozenset((stat.S_IFCHR, stat.S_IFBLK))
_CREATABLE_TYPES: Final = _DEVICES | frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK)
)
_CAPABILITY: Final = b"security.capability"


class Discards(Protocol):
    """The one thing about file content that is needed here."""

    def discard(self, ino: int) -> None:
        """Forget the content of a file that nobody can reach any more."""


class Tree:
    """Names and attributes of one mounted volume.

    `on_unreferenced(ino)` is called when an inode lost its last name; whoever holds the
    references to open files decides when the inode itself goes. While `read_only` is true every
    change raises FilesystemError(EROFS); it may be set at any time. All errors are
    FilesystemError with the errno of the Linux manual pages.
    """

    def __init__(
        self,
        catalog: Catalog,
        on_unreferenced: Callable[[int], None],
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        read_only: bool = False,
    ) -> None:
        self.catalog = catalog
        self.read_only = read_only
        self._on_unreferenced = on_unreferenced
        # Raises when the volume takes no changes any more, whoever may make them.
        self.require_open: Callable[[], None] = lambda: None
        self._clock_ns = clock_ns

    def lookup(self, parent: int, name: bytes) -> Inode:
        """As `find`. Raises ENOENT when there is none."""
        inode = self.find(parent, name)
        if inode is None:
            raise FilesystemError(errno.ENOENT)
        return inode

    def find(self, parent: int, name: bytes) -> Inode | None:
        """The inode that `parent` names `name`, or None; `.` and `..` too."""
        ino = self._number(parent, name)
        return None if ino is None else self.catalog.inode(ino)

    def _number(self, parent: int, name: bytes) -> int | None:
        if name == b".":
            return parent
        if name == b"..":
            return self.parent_of(parent)
        if len(name) > NAME_BYTES_MAX:
            raise FilesystemError(errno.ENAMETOOLONG)
        return self.catalog.lookup(parent, name)

    def parent_of(self, directory: int) -> int:
        """Inode number of the directory that holds `directory`; the root is its own parent.

        A directory that was removed while in use has the root as its parent.
        """
        if directory == ROOT_INO or self.catalog.inode(directory).nlink == 0:
            return ROOT_INO
        return self.catalog.parent_of(directory)

    def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        umask: int = 0,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """Create a file of any type; `mode` carries the type.

        In a directory with the setgid bit the new file gets the directory's group and a new
        directory gets the bit; in one with a default ACL it inherits that, in any other `umask` is
        taken off its mode. Raises EEXIST, ENOENT
        (the parent was removed), ENAMETOOLONG, EINVAL (unknown type), EPERM (reserved name).
        """
        file_type = stat.S_IFMT(mode)
        if file_type not in _CREATABLE_TYPES:
            raise FilesystemError(errno.EINVAL)
        if target is not None and len(target) > TARGET_BYTES_MAX:
            raise FilesystemError(errno.ENAMETOOLONG)
        directory = self._writable_directory(parent, name)
        if self.catalog.lookup(parent, name) is not None:
            raise FilesystemError(errno.EEXIST)
        is_directory = file_type == stat.S_IFDIR
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if is_directory:
                mode |= stat.S_ISGID
        now_ns = self._clock_ns()
        if file_type not in _DEVICES:
            rdev = 0
        default_acl = self.catalog.xattr(parent, posix_acl.DEFAULT) if target is None else None
        if default_acl is None:
            mode &= ~umask
        inode = self.catalog.new_inode(mode, uid, gid, now_ns=now_ns, rdev=rdev, target=target)
        self.catalog.link(parent, name, inode.ino)
        self._inherit_acl(default_acl, inode)
        if is_directory:
            directory.nlink += 1
        self._touch_directory(directory, now_ns)
        return inode

    def _inherit_acl(self, default: bytes | None, inode: Inode) -> None:
        if default is None:
            return
        access = posix_acl.inherited(default, inode.mode & 0o777)
        if self._says_something(inode, posix_acl.ACCESS, access):
            self.catalog.set_xattr(inode.ino, posix_acl.ACCESS, access)
        if stat.S_ISDIR(inode.mode):
            self.catalog.set_xattr(inode.ino, posix_acl.DEFAULT, default)
        self.catalog.changed(inode)

    def link(self, ino: int, new_parent: int, new_name: bytes) -> Inode:
        """Give a file one more name. Raises EPERM (directory), EEXIST, ENOENT (already removed)."""
        directory = self._writable_directory(new_parent, new_name)
        if self.catalog.lookup(new_parent, new_name) is not None:
            raise FilesystemError(errno.EEXIST)
        inode = self.catalog.inode(ino)
        if stat.S_ISDIR(inode.mode):
            raise FilesystemError(errno.EPERM)
        if inode.nlink == 0:
            raise FilesystemError(errno.ENOENT)
        now_ns = self._clock_ns()
        self.catalog.link(new_parent, new_name, ino)
        inode.nlink += 1
        inode.ctime_ns = now_ns
        self.catalog.changed(inode)
        self._touch_directory(directory, now_ns)
        return inode

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name from a file. Raises ENOENT, EISDIR (use `rmdir`)."""
        self._refuse_when_read_only()
        inode = self.lookup(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise FilesystemError(errno.EISDIR)
        now_ns = self._clock_ns()
        self.catalog.unlink(parent, name)
        self._touch_directory(self.catalog.inode(parent), now_ns)
        self._lose_name(inode, now_ns)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. Raises ENOENT, ENOTDIR, ENOTEMPTY, EINVAL (`.`)."""
        self._refuse_when_read_only()
        if name == b".":
            raise FilesystemError(errno.EINVAL)
        inode = self.lookup(parent, name)
        self._require_empty_directory(inode)
        now_ns = self._clock_ns()
        directory = self.catalog.inode(parent)
        self.catalog.unlink(parent, name)
        directory.nlink -= 1
        self._touch_directory(directory, now_ns)
        self._lose_name(inode, now_ns)

    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """Move a name, replacing what had the new one; renameat2(2) with NOREPLACE or EXCHANGE.

        Two names of the same file: nothing happens, as POSIX wants. Raises ENOENT, EEXIST,
        ENOTDIR, EISDIR, ENOTEMPTY, EINVAL (below itself, unknown flag), ENAMETOOLONG, EPERM.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FilesystemError(errno.EINVAL)
        self._writable_directory(new_parent, new_name)
        moved = self.lookup(old_parent, old_name)
        replaced_ino = self.catalog.lookup(new_parent, new_name)
        replaced = None if replaced_ino is None else self.catalog.inode(replaced_ino)
        if replaced is None:
            if flags == RENAME_EXCHANGE:
                raise FilesystemError(errno.ENOENT)
        elif flags == RENAME_NOREPLACE:
            raise FilesystemError(errno.EEXIST)
        elif replaced.ino == moved.ino:
            return
        self._refuse_loop(moved, new_parent)
        if flags == RENAME_EXCHANGE:
            assert replaced is not None
            self._exchange((old_parent, old_name, moved), (new_parent, new_name, replaced))
            return
        if replaced is not None:
            self._require_replaceable(moved, replaced)
        self._move((old_parent, old_name), (new_parent, new_name), moved, replaced)

    def _move(
        self, old: tuple[int, bytes], new: tuple[int, bytes], moved: Inode, replaced: Inode | None
    ) -> None:
        now_ns = self._clock_ns()
        self.catalog.unlink(*old)
        self.catalog.link(*new, moved.ino)
        source, destination = self.catalog.inode(old[0]), self.catalog.inode(new[0])
        if stat.S_ISDIR(moved.mode):
            source.nlink -= 1
            destination.nlink += 1
        if replaced is not None and stat.S_ISDIR(replaced.mode):
            destination.nlink -= 1
        self._touch_directory(source, now_ns)
        self._touch_directory(destination, now_ns)
        moved.ctime_ns = now_ns
        self.catalog.changed(moved)
        if replaced is not None:
            self._lose_name(replaced, now_ns)

    def _exchange(self, one: tuple[int, bytes, Inode], other: tuple[int, bytes, Inode]) -> None:
        one_parent, one_name, one_inode = one
        other_parent, other_name, other_inode = other
        self._refuse_loop(other_inode, one_parent)
        now_ns = self._clock_ns()
        self.catalog.link(one_parent, one_name, other_inode.ino)
        self.catalog.link(other_parent, other_name, one_inode.ino)
        source, destination = self.catalog.inode(one_parent), self.catalog.inode(other_parent)
        balance = stat.S_ISDIR(other_inode.mode) - stat.S_ISDIR(one_inode.mode)
        source.nlink += balance
        destination.nlink -= balance
        self._touch_directory(source, now_ns)
        self._touch_directory(destination, now_ns)
        for inode in (one_inode, other_inode):
            inode.ctime_ns = now_ns
            self.catalog.changed(inode)

    def set_attributes(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Inode:
        """chmod, chown and utimensat in one; ctime becomes now. Type bits of `mode` are ignored.

        A change of owner or group takes setuid and (where the group may execute) setgid from
        anything but a directory, unless `mode` is given as well. chmod keeps an access ACL
        consistent with the permission bits. Times beyond what 64-bit nanoseconds hold (the years
        1677 to 2262) are clamped, as Linux does for a filesystem with limits.
        """
        self._refuse_when_read_only()
        inode = self.catalog.inode(ino)
        if uid is not None or gid is not None:
            inode.uid = inode.uid if uid is None else uid
            inode.gid = inode.gid if gid is None else gid
            if not stat.S_ISDIR(inode.mode):
                inode.mode = _without_set_id(inode.mode)
        if mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(mode)
            self._follow_mode_in_acl(inode)
        if atime_ns is not None:
            inode.atime_ns = _storable_ns(atime_ns)
        if mtime_ns is not None:
            inode.mtime_ns = _storable_ns(mtime_ns)
        inode.ctime_ns = self._clock_ns()
        self.catalog.changed(inode)
        return inode

    def drop_privileges(self, ino: int, *, by_privileged: bool) -> bool:
        """What writing to a file takes from it: its capabilities, and setuid and setgid bits
        unless the writer may set them anyway (root). True when there was something to take.

        The kernel leaves this to us for direct I/O, and everywhere when libfuse agreed to
        FUSE_HANDLE_KILLPRIV; otherwise it has done it already and nothing is left to take.
        """
        inode = self.catalog.inode(ino)
        bare_mode = inode.mode if by_privileged else _without_set_id(inode.mode)
        has_capability = self.catalog.xattr(ino, _CAPABILITY) is not None
        if bare_mode == inode.mode and not has_capability:
            return False
        if has_capability:
            self.catalog.remove_xattr(ino, _CAPABILITY)
        inode.mode = bare_mode
        inode.ctime_ns = self._clock_ns()
        self.catalog.changed(inode)
        return True

    def xattr(self, ino: int, name: bytes) -> bytes:
        """Value of one extended attribute. Raises ENODATA."""
        value = self.catalog.xattr(ino, name)
        if value is None:
            raise FilesystemError(errno.ENODATA)
        return value

    def xattr_names(self, ino: int) -> list[bytes]:
        """Names of all stored extended attributes, sorted."""
        return sorted(self.catalog.xattrs(ino))

    def set_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Store an extended attribute; ctime becomes now.

        An access ACL also sets the permission bits, and is not stored when it says no more than
        they do. Raises ERANGE (name too long), E2BIG (value too long), ENOSPC (all attributes
        together exceed what a header on tape can hold), EINVAL (not an ACL).
        """
        self._refuse_when_read_only()
        if not 0 < len(name) <= XATTR_NAME_BYTES_MAX:
            raise FilesystemError(errno.ERANGE)
        if len(value) > XATTR_VALUE_BYTES_MAX:
            raise FilesystemError(errno.E2BIG)
        others = sum(len(k) + len(v) for k, v in self.catalog.xattrs(ino).items() if k != name)
        if others + len(name) + len(value) > XATTRS_BYTES_MAX:
            raise FilesystemError(errno.ENOSPC)
        inode = self.catalog.inode(ino)
        if self._says_something(inode, name, value):
            self.catalog.set_xattr(ino, name, value)
        elif self.catalog.xattr(ino, name) is not None:
            self.catalog.remove_xattr(ino, name)
        inode.ctime_ns = self._clock_ns()
        self.catalog.changed(inode)

    def remove_xattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute; ctime becomes now. Raises ENODATA, but not for an ACL:
        having none is what was asked for."""
        self._refuse_when_read_only()
        if self.catalog.xattr(ino, name) is None:
            if name in (posix_acl.ACCESS, posix_acl.DEFAULT):
                return
            raise FilesystemError(errno.ENODATA)
        inode = self.catalog.inode(ino)
        self.catalog.remove_xattr(ino, name)
        inode.ctime_ns = self._clock_ns()
        self.catalog.changed(inode)

    def _says_something(self, inode: Inode, name: bytes, value: bytes) -> bool:
        """Whether the attribute is to be stored; an access ACL sets the permission bits first."""
        if name not in (posix_acl.ACCESS, posix_acl.DEFAULT):
            return True
        if posix_acl.is_empty(value):
            return False
        acl = posix_acl.parse(value)
        if name == posix_acl.ACCESS:
            inode.mode = (inode.mode & ~0o777) | acl.permission_bits
            return acl.is_extended
        if not stat.S_ISDIR(inode.mode):
            raise FilesystemError(errno.EACCES)
        return True

    def _follow_mode_in_acl(self, inode: Inode) -> None:
        value = self.catalog.xattr(inode.ino, posix_acl.ACCESS)
        if value is not None:
            changed = posix_acl.with_permission_bits(value, inode.mode & 0o777)
            self.catalog.set_xattr(inode.ino, posix_acl.ACCESS, changed)

    def _refuse_when_read_only(self) -> None:
        if self.read_only:
            raise FilesystemError(errno.EROFS)
        self.require_open()

    def _writable_directory(self, parent: int, name: bytes) -> Inode:
        """The directory `parent`, after checking that it may take `name`."""
        self._refuse_when_read_only()
        if len(name) > NAME_BYTES_MAX:
            raise FilesystemError(errno.ENAMETOOLONG)
        if name in (b".", b".."):
            raise FilesystemError(errno.EEXIST)
        if name == RESERVED_ROOT_NAME and parent == ROOT_INO:
            raise FilesystemError(errno.EPERM)
        directory = self.catalog.inode(parent)
        if not stat.S_ISDIR(directory.mode):
            raise FilesystemError(errno.ENOTDIR)
        if directory.nlink == 0:
            raise FilesystemError(errno.ENOENT)
        return directory

    def _touch_directory(self, directory: Inode, now_ns: int) -> None:
        directory.mtime_ns = directory.ctime_ns = now_ns
        self.catalog.changed(directory)

    def _lose_name(self, inode: Inode, now_ns: int) -> None:
        inode.nlink = 0 if stat.S_ISDIR(inode.mode) else inode.nlink - 1
        inode.ctime_ns = now_ns
        self.catalog.changed(inode)
        if inode.nlink == 0:
            self._on_unreferenced(inode.ino)

    def _require_empty_directory(self, inode: Inode) -> None:
        if not stat.S_ISDIR(inode.mode):
            raise FilesystemError(errno.ENOTDIR)
        if self.catalog.has_children(inode.ino):
            raise FilesystemError(errno.ENOTEMPTY)

    def _require_replaceable(self, moved: Inode, replaced: Inode) -> None:
        if stat.S_ISDIR(moved.mode):
            self._require_empty_directory(replaced)
        elif stat.S_ISDIR(replaced.mode):
            raise FilesystemError(errno.EISDIR)

    def _refuse_loop(self, moved: Inode, new_parent: int) -> None:
        """A directory cannot become its own descendant."""
        if not stat.S_ISDIR(moved.mode):
            return
        ancestor = new_parent
        while ancestor != ROOT_INO:
            if ancestor == moved.ino:
                raise FilesystemError(errno.EINVAL)
            ancestor = self.catalog.parent_of(ancestor)


def reap(catalog: Catalog, contents: Discards, ino: int) -> None:
    """Remove an inode that has no name and no user, with its content."""
    if stat.S_ISREG(catalog.inode(ino).mode):
        contents.discard(ino)
    catalog.remove_inode(ino)


def reap_orphans(catalog: Catalog, contents: Discards) -> int:
    """Remove the inodes that were unlinked but still in use when the daemon died; how many.

    To be called before a mount is served.
    """
    orphans = list(catalog.orphans())
    for ino in orphans:
        reap(catalog, contents, ino)
    return len(orphans)


def _without_set_id(mode: int) -> int:
    # setgid without group execute is a locking mark, not a privilege: Linux leaves it alone.
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def _storable_ns(time_ns: int) -> int:
    return max(-(1 << 63), min(time_ns, (1 << 63) - 1))
