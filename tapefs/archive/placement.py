"""Putting files into a directory of somebody else, whole and with everything that belongs to them.

Nothing here follows a symbolic link on its way, so what is put into a directory stays in it,
whoever made the names. Blocking; for one thread at a time. Everything raises OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from tapefs.entries import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tapefs.entries import Inode

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ZEROS: Final = bytes(4096)
# Attributes that some filesystems, and users other than root, cannot have.
_REFUSED_XATTRS: Final = frozenset((errno.ENOTSUP, errno.EPERM))


@contextmanager
def opened_below(root: int, path: bytes) -> Iterator[int]:
    """A descriptor of the directory `path` below the directory `root`."""
    fd = os.dup(root)
    try:
        for name in filter(None, path.split(b"/")):
            below = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def status_of(directory: int, name: bytes) -> os.stat_result | None:
    """What `directory` calls `name`, not followed, or None."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


@contextmanager
def made_whole(
    directory: int, making: bytes, name: bytes, *, replaces: bool = False
) -> Iterator[int]:
    """A descriptor of a new file that gets its `name` when the block ends well.

    Until then it is called `making`; what has the right name is whole. When the block fails it is
    gone. Raises FileExistsError when something has taken the name, unless it `replaces` that.
    """
    # One that is left over may by now have another name, so it is not written into.
    remove_name(directory, making)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(making, flags, 0o600, dir_fd=directory)
    try:
        yield fd
        if replaces:
            os.rename(making, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            _give_free_name(directory, making, name)
    finally:
        os.close(fd)
        remove_name(directory, making)


def remove_name(directory: int, name: bytes) -> None:
    """Take `name` away from what has it in `directory`, if anything has."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _give_free_name(directory: int, making: bytes, name: bytes) -> None:
    try:
        os.link(making, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # No hard links there, so nothing that gives a name only if it is free.
        if status_of(directory, name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from exc
        os.rename(making, name, src_dir_fd=directory, dst_dir_fd=directory)


def write_at(fd: int, offset: int, data: bytes) -> None:
    """All of `data` at `offset`."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def write_without_zeros(fd: int, offset: int, data: bytes) -> None:
    """`data` at `offset` of a file that is zeros there: whole pages of zeros stay holes."""
    page = len(_ZEROS)
    start: int | None = None
    for at in range(0, len(data), page):
        if data[at : at + page] == _ZEROS:
            if start is not None:
                write_at(fd, offset + start, data[start:at])
            start = None
        elif start is None:
            start = at
    if start is not None:
        write_at(fd, offset + start, data[start:])


def make_node(inode: Inode, directory: int, name: bytes) -> None:
    """The symbolic link, fifo, socket or device node that `inode` is, without attributes."""
    if stat.S_ISLNK(inode.mode):
        os.symlink(inode.target or b"", name, dir_fd=directory)
    else:
        os.mknod(name, inode.mode, inode.rdev, dir_fd=directory)


def is_directory(directory: int, name: bytes) -> bool:
    """Whether `name` is there and a directory, not a link to one."""
    there = status_of(directory, name)
    return there is not None and stat.S_ISDIR(there.st_mode)


def is_same_node(inode: Inode, directory: int, name: bytes, there: os.stat_result) -> bool:
    """Whether what has the `name` already is the node that `make_node` would make."""
    if stat.S_IFMT(there.st_mode) != stat.S_IFMT(inode.mode):
        return False
    if stat.S_ISLNK(inode.mode):
        return os.readlink(name, dir_fd=directory) == inode.target
    return there.st_rdev == inode.rdev


def set_attributes(
    inode: Inode,
    xattrs: Mapping[bytes, bytes],
    directory: int,
    name: bytes,
    remark: Callable[[str], None],
) -> None:
    """Owner, extended attributes, permissions and times of `inode` for `name`.

    `remark` is told what this user or this filesystem cannot keep: a sentence with `{}` where the
    name belongs.
    """
    place = f"/proc/self/fd/{directory}/".encode() + name
    try:
        os.chown(name, inode.uid, inode.gid, dir_fd=directory, follow_symlinks=False)
    except PermissionError:
        remark("the owner of {} could not be set; run the command as root for that")
    for key, value in xattrs.items():
        try:
            os.setxattr(place, key, value, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in _REFUSED_XATTRS:
                raise
            key_text = printable(key).replace("{", "{{").replace("}", "}}")
            remark(f"attribute {key_text} of {{}} could not be set there")
    if not stat.S_ISLNK(inode.mode):
        os.chmod(name, stat.S_IMODE(inode.mode), dir_fd=directory)
    times = (inode.atime_ns, inode.mtime_ns)
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
