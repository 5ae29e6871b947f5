"""POSIX words in, archive words out: the requests of the kernel, answered.

No handler lets anything but FUSEError out (`tapefs.fuse.guard`), opens a nursery, or touches the
tape by itself. Names and attributes come from the catalog and never wait; content comes from
`Contents`, which may wait for the tape in `read`, and for room in `write`.

The kernel may cache names, attributes and data for as long as it likes: every change passes
through it. What we change behind its back (bits that a write takes away) is invalidated.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final, Protocol, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, StatvfsData

from tapefs.archive import posix_acl, tape_attributes
from tapefs.archive.tree import NAME_BYTES_MAX, Tree
from tapefs.entries import ROOT_INO
from tapefs.errors import FilesystemError
from tapefs.fuse.attributes import CACHE_S, Presentation
from tapefs.fuse.guard import answers, answers_later, unanswered
from tapefs.fuse.inodes import Handle, InodeReferences

if TYPE_CHECKING:
    import enum
    from collections.abc import Sequence

    from pyfuse3 import ReaddirToken, RequestContext, SetattrFields

    from tapefs.archive.tape_attributes import TapeAttributes
    from tapefs.catalog import Catalog
    from tapefs.entries import Inode

# The unit of statvfs(3).
STATFS_BLOCK_BYTES: Final = 4096
# The kernel asks for 300 entries at a time (seen with Linux 6.18), older ones for 25 (4 KiB).
READDIR_BATCH_COUNT: Final = 64

_CAPABILITY: Final = b"security.capability"
# Nobody else sees their names (xattr(7)); the kernel itself keeps their values from others.
_XATTRS_OF_ROOT: Final = b"trusted."
_XATTR_NAMESPACES: Final = (b"user.", _XATTRS_OF_ROOT, b"security.")
_ACL_NAMES: Final = (posix_acl.ACCESS, posix_acl.DEFAULT)
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
# Offsets in a directory stream: 1 and 2 follow `.` and `..`, cookies of entries count on from 2.
_AFTER_DOT: Final = 1
_AFTER_DOT_DOT: Final = 2


class Contents(Protocol):
    """What the mount needs of file content. Every method may raise TapefsError.

    `size`, `mtime_ns` and `ctime_ns` of the inode are kept right by whoever implements this.
    """

    async def open(self, ino: int, *, write: bool, truncate: bool) -> None:
        """A file was opened; with `truncate` its content is dropped. Never waits for the tape."""

    async def release(self, ino: int, *, write: bool) -> None:
        """One open file is closed for good; once for each `open`."""

    async def read(self, ino: int, offset: int, length: int) -> bytes | memoryview:
        """Exactly `length` bytes, fewer only at the end of the file. May wait for the tape."""

    async def write(self, ino: int, offset: int, data: bytes) -> int:
        """Take all of `data`; returns its length. May wait for room in the spool."""

    async def truncate(self, ino: int, size: int) -> None:
        """Cut or extend with zeros; the file need not be open."""

    async def fsync(self, ino: int) -> None:
        """Returns when content, attributes and names of the inode are durable. `ino` may be a
        directory: then there is no content, and the names in it are what counts."""

    def discard(self, ino: int) -> None:
        """Drop all content of a file that nobody can reach any more."""

    def state(self, ino: int) -> enum.Enum:
        """Where the content is; the value is one of the words that `user.tapefs.state` shows."""

    def statfs(self) -> tuple[int, int]:
        """Capacity and free room of the volume in bytes."""


class Service(Protocol):
    """What the mount needs of the daemon."""

    async def sync(self) -> object:
        """Returns when everything that was written is on tape, flushed and indexed."""


class Operations(pyfuse3.Operations):
    """The request handlers of one mount. All run in the trio thread."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    # The kernel asks for ACLs, keeps them, and enforces them.
    enable_acl = True

    def __init__(
        self,
        catalog: Catalog,
        contents: Contents,
        service: Service,
        tape: TapeAttributes,
        shown: Presentation = Presentation(),  # noqa: B008 - immutable
    ) -> None:
        super().__init__()
        self.references = InodeReferences(catalog, contents)
        self.tree = Tree(catalog, self.references.unreferenced)
        # Set when the kernel and we have agreed on the protocol, before the first request.
        self.initialized = trio.Event()
        self._catalog = catalog
        self._contents = contents
        self._service = service
        self._tape_attributes = tape
        self._shown = shown
        # Open files known to have no security.capability: the kernel asks before each write.
        self._without_capability: set[int] = set()

    def init(self) -> None:
        self.initialized.set()

    async def finish(self) -> None:
        """After the mount ended: close what is still open, reap what was unlinked. Idempotent.

        What fails is logged, and left to `reap_orphans` at the next start.
        """
        for number in self.references.open_handles():
            with contextlib.suppress(FUSEError):
                await self.release(number)
        await self._forget_everything()

    @unanswered
    def _forget_everything(self) -> None:
        self.references.kernel_is_gone()

    # -- names ------------------------------------------------------------------------------

    @answers
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = self.tree.find(parent_inode, name)
        if inode is None:
            absent = EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = CACHE_S
            return absent
        self.references.lookups.add(inode.ino)
        return self._shown.attributes(inode)

    @unanswered
    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self.references.forget(ino, count)

    @answers
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        target = self._catalog.inode(inode).target
        if target is None:
            raise FilesystemError(errno.EINVAL)
        return target

    @answers
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._made(self._make(parent_inode, name, mode, ctx, rdev))

    @answers
    def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._made(self._make(parent_inode, name, mode, ctx))

    @answers
    def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return self._made(self.tree.make(parent_inode, name, mode, ctx.uid, ctx.gid, target=target))

    @answers
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return self._made(self.tree.link(inode, new_parent_inode, new_name))

    @answers
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.tree.unlink(parent_inode, name)

    @answers
    def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.tree.rmdir(parent_inode, name)

    @answers
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self.tree.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    def _make(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext, rdev: int = 0
    ) -> Inode:
        # The kernel leaves the umask to us (`Negotiation`); taking it off twice does no harm.
        return self.tree.make(parent, name, mode, ctx.uid, ctx.gid, umask=ctx.umask, rdev=rdev)

    def _made(self, inode: Inode) -> EntryAttributes:
        self.references.lookups.add(inode.ino)
        return self._shown.attributes(inode)

    # -- directories ------------------------------------------------------------------------

    @answers
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        # The handle is the inode number: a directory stream has no state of its own here.
        return inode

    @answers
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        position = start_id
        if position < _AFTER_DOT:
            if not self._reply_dot(token, b".", fh, _AFTER_DOT):
                return
            position = _AFTER_DOT
        if position < _AFTER_DOT_DOT:
            if not self._reply_dot(token, b"..", self.tree.parent_of(fh), _AFTER_DOT_DOT):
                return
            position = _AFTER_DOT_DOT
        # Counted at the end: when something fails on the way, the kernel gets no entry at all.
        for ino in self._reply_entries(token, fh, position - _AFTER_DOT_DOT):
            self.references.lookups.add(ino)

    def _reply_dot(self, token: ReaddirToken, name: bytes, ino: int, position: int) -> bool:
        return pyfuse3.readdir_reply(
            token, name, self._shown.attributes(self._catalog.inode(ino)), position
        )

    def _reply_entries(self, token: ReaddirToken, directory: int, after_cookie: int) -> list[int]:
        replied: list[int] = []
        attributes = EntryAttributes()
        while True:
            entries = self._catalog.entries(directory, after_cookie, READDIR_BATCH_COUNT)
            for after_cookie, name, inode, _ in entries:
                self._shown.fill(attributes, inode)
                position = after_cookie + _AFTER_DOT_DOT
                if not pyfuse3.readdir_reply(token, name, attributes, position):
                    return replied
                replied.append(inode.ino)
            if len(entries) < READDIR_BATCH_COUNT:
                return replied

    @answers
    def releasedir(self, fh: int) -> None:
        """Nothing is held for an open directory."""

    @answers_later
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        # The kernel passes no syncfs(2) to FUSE: fsync of the root stands for it.
        if fh == ROOT_INO:
            await self._service.sync()
        else:
            await self._contents.fsync(fh)

    # -- attributes -------------------------------------------------------------------------

    @answers
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._shown.attributes(self._catalog.inode(inode))

    @answers_later
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if fields.update_size:
            self._refuse_when_read_only()
            await self._contents.truncate(inode, attr.st_size)
            self._drop_privileges(inode, by_privileged=ctx.uid == 0)
        mode = attr.st_mode if fields.update_mode else None
        uid = attr.st_uid if fields.update_uid else None
        gid = attr.st_gid if fields.update_gid else None
        atime_ns = attr.st_atime_ns if fields.update_atime else None
        mtime_ns = attr.st_mtime_ns if fields.update_mtime else None
        if (mode, uid, gid, atime_ns, mtime_ns) != (None, None, None, None, None):
            self.tree.set_attributes(
                inode, mode=mode, uid=uid, gid=gid, atime_ns=atime_ns, mtime_ns=mtime_ns
            )
        return self._shown.attributes(self._catalog.inode(inode))

    @answers
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        total_bytes, free_bytes = self._contents.statfs()
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = STATFS_BLOCK_BYTES
        answer.f_blocks = total_bytes // STATFS_BLOCK_BYTES
        answer.f_bfree = answer.f_bavail = free_bytes // STATFS_BLOCK_BYTES
        answer.f_namemax = NAME_BYTES_MAX
        return answer

    # -- extended attributes ----------------------------------------------------------------

    @answers
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name == _CAPABILITY:
            return self._capability(inode)
        _require_known_namespace(name)
        stored = None
        if not tape_attributes.is_reserved(name):
            stored = self._catalog.xattr(inode, name)
        value = self._tape_attributes.value(inode, name) if stored is None else stored
        if value is None:
            raise FilesystemError(errno.ENODATA)
        return value

    def _capability(self, ino: int) -> bytes:
        if ino in self._without_capability:
            raise FUSEError(errno.ENODATA)
        value = self._catalog.xattr(ino, _CAPABILITY)
        if value is None:
            if self.references.is_open(ino):
                self._without_capability.add(ino)
            raise FUSEError(errno.ENODATA)
        return value

    @answers
    def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        names = self.tree.xattr_names(inode)
        if ctx.uid == 0:
            return names
        return [name for name in names if not name.startswith(_XATTRS_OF_ROOT)]

    @answers_later
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if name in tape_attributes.SYNC and inode == ROOT_INO:
            await self._service.sync()
            return
        if tape_attributes.is_reserved(name):
            raise FilesystemError(errno.EPERM)
        _require_known_namespace(name)
        if name == _CAPABILITY:
            self._without_capability.discard(inode)
        self.tree.set_xattr(inode, name, value)
        if name == posix_acl.ACCESS:
            _invalidate_attributes(inode)

    @answers
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        if tape_attributes.is_reserved(name):
            raise FilesystemError(errno.EPERM)
        _require_known_namespace(name)
        self.tree.remove_xattr(inode, name)

    # -- open files -------------------------------------------------------------------------

    @answers_later
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        inode = self._make(parent_inode, name, mode, ctx)
        try:
            await self._contents.open(inode.ino, write=_writes(flags), truncate=False)
        except BaseException:
            self.tree.unlink(parent_inode, name)
            raise
        self._without_capability.add(inode.ino)
        return self._opened(inode.ino, flags, ctx), self._made(inode)

    @answers_later
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        truncate = bool(flags & os.O_TRUNC)
        if truncate or _writes(flags):
            self._refuse_when_read_only()
        await self._contents.open(inode, write=_writes(flags), truncate=truncate)
        if truncate:
            self._drop_privileges(inode, by_privileged=ctx.uid == 0)
        return self._opened(inode, flags, ctx)

    def _opened(self, ino: int, flags: int, ctx: RequestContext) -> FileInfo:
        number = self.references.opened(Handle(ino, _writes(flags), privileged=ctx.uid == 0))
        # Who can only write cannot mmap(2), and gains nothing from a copy in the page cache.
        direct_io = flags & os.O_ACCMODE == os.O_WRONLY
        return FileInfo(fh=number, direct_io=direct_io, keep_cache=True)

    @answers_later
    async def read(self, fh: int, off: int, size: int) -> bytes:
        data = await self._contents.read(self.references.handle(fh).ino, off, size)
        return cast("bytes", data)  # whatever has its bytes in a row will do

    @answers_later
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self.references.handle(fh)
        self._refuse_when_read_only()
        written = await self._contents.write(handle.ino, off, buf)
        if handle.ino not in self._without_capability or not handle.privileged:
            self._drop_privileges(handle.ino, by_privileged=handle.privileged)
        return written

    # No handler for FLUSH: nothing is held back until close(2), and once told so the kernel saves
    # the request.

    @answers_later
    async def release(self, fh: int) -> None:
        await self._close(fh)

    @answers_later
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._contents.fsync(self.references.handle(fh).ino)

    async def _close(self, number: int) -> None:
        handle = self.references.handle(number)
        try:
            await self._contents.release(handle.ino, write=handle.write)
        finally:
            if self.references.closed(number):
                self._without_capability.discard(handle.ino)

    def _refuse_when_read_only(self) -> None:
        if self.tree.read_only:
            raise FilesystemError(errno.EROFS)

    def _drop_privileges(self, ino: int, *, by_privileged: bool) -> None:
        """Take what a write takes; the kernel left it to us and does not know."""
        known_bare = ino in self._without_capability
        if known_bare and (by_privileged or not self._catalog.inode(ino).mode & _SET_ID):
            return
        if self.tree.drop_privileges(ino, by_privileged=by_privileged):
            _invalidate_attributes(ino)
        if self.references.is_open(ino):
            self._without_capability.add(ino)


def _writes(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY


def _require_known_namespace(name: bytes) -> None:
    """The errno of local filesystems for names outside what xattr(7) knows."""
    if name in _XATTR_NAMESPACES:
        raise FilesystemError(errno.EINVAL)
    if not name.startswith(_XATTR_NAMESPACES) and name not in _ACL_NAMES:
        raise FilesystemError(errno.EOPNOTSUPP)


def _invalidate_attributes(ino: int) -> None:
    """Attributes changed in a way that the kernel cannot know from the request. Does not block:
    without a writeback cache there is nothing to wait for."""
    # The kernel may not cache the inode, or the mount may have ended: nothing to invalidate then.
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_inode(ino, attr_only=True)
