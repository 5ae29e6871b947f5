"""Rows of the table about names and attributes: links, renames, types, owners, times, xattrs."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from typing import TYPE_CHECKING

from posix_calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    USER,
    UTIME_NOW,
    UTIME_OMIT,
    DirectoryStream,
    Notes,
    as_user,
    bind_socket,
    content,
    pattern,
    renameat2,
    umask,
    utimensat,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def shape(path: Path) -> tuple[str, int, int, int, int]:
    """Type and permissions, links, owner, group, device number."""
    status = path.lstat()
    mode = stat.filemode(status.st_mode)
    return mode, status.st_nlink, status.st_uid, status.st_gid, status.st_rdev


def below(at: Path) -> list[str]:
    """All names, with what is behind each."""
    return sorted(f"{path.relative_to(at)} {shape(path)[:2]}" for path in at.rglob("*"))


def renames(at: Path, note: Notes) -> None:
    file, second, directory = at / "file", at / "second", at / "dir"
    note("NOREPLACE, taken", renameat2, file, second, RENAME_NOREPLACE)
    note("NOREPLACE, itself", renameat2, file, file, RENAME_NOREPLACE)
    note("NOREPLACE, free", renameat2, file, at / "free", RENAME_NOREPLACE)
    note("EXCHANGE, missing", renameat2, second, at / "absent", RENAME_EXCHANGE)
    note("EXCHANGE, files", renameat2, at / "free", second, RENAME_EXCHANGE)
    note("EXCHANGE, file and directory", renameat2, second, directory, RENAME_EXCHANGE)
    note("after these", below, at)
    note("EXCHANGE with what is below", renameat2, second, second / "inner", RENAME_EXCHANGE)
    note("both", renameat2, second, directory, RENAME_EXCHANGE | RENAME_NOREPLACE)
    note("unknown flag", renameat2, second, directory, 1 << 10)
    note("another name of the same", os.rename, directory, at / "hard")
    note("both stay", below, at)
    note("directory over file", os.rename, second, at / "free")
    note("file over directory", os.rename, at / "free", second)
    note("directory over empty", os.rename, second, at / "empty")
    note("directory below itself", os.rename, at / "empty", at / "empty" / "it")
    note("missing", os.rename, at / "absent", at / "free")
    note("into a missing directory", os.rename, at / "free", at / "absent" / "free")
    note("dot", os.rename, at / "empty" / ".", at / "new")
    note("dot dot", os.rename, at / "empty" / "..", at / "new")
    (at / "full").mkdir()
    (at / "full" / "x").touch()
    note("directory over full", os.rename, at / "empty", at / "full")
    note("link over file", os.rename, at / "link", at / "free")
    note("a slash behind a file", os.rename, f"{at / 'hard'}", f"{at / 'free'}/")
    note("at the end", below, at)


def renames_over_open_files(at: Path, note: Notes) -> None:
    replaced, moved = os.open(at / "second", os.O_RDWR), os.open(at / "file", os.O_RDWR)
    note("rename", os.rename, at / "file", at / "second")
    note("links of both", lambda: [os.fstat(fd).st_nlink for fd in (replaced, moved)])
    note("replaced", os.pread, replaced, 200, 0)
    note("write the replaced", os.pwrite, replaced, b"lost", 0)
    note("write the moved", os.pwrite, moved, b"kept", 100)
    note("replaced again", os.pread, replaced, 200, 0)
    os.close(replaced)
    os.close(moved)
    note("content", content, at / "second")


def directories(at: Path, note: Notes) -> None:
    note("links of a new one", lambda: shape(at / "empty")[1])
    for name in ("a", "b", "c"):
        note(f"mkdir {name}", os.mkdir, at / "empty" / name)
    note("links with three below", lambda: shape(at / "empty")[1])
    note("mkdir, taken", os.mkdir, at / "empty")
    note("mkdir over a link", os.mkdir, at / "link")
    note("mkdir below a file", os.mkdir, at / "file" / "x")
    note("mkdir below nothing", os.mkdir, at / "absent" / "x")
    note("move one out", os.rename, at / "empty" / "c", at / "c")
    note("links with two below", lambda: shape(at / "empty")[1])
    note("rmdir, full", os.rmdir, at / "empty")
    note("rmdir dot", os.rmdir, at / "empty" / ".")
    note("rmdir dot dot", os.rmdir, at / "empty" / "a" / "..")
    note("rmdir a file", os.rmdir, at / "file")
    note("unlink a directory", os.unlink, at / "empty")
    note("rmdir", os.rmdir, at / "empty" / "a")
    note("links with one below", lambda: shape(at / "empty")[1])
    (at / "spare").mkdir()
    inside = os.open(at / "c", os.O_RDONLY)
    note("rmdir in use", os.rmdir, at / "c")
    note("links of the removed", lambda: os.fstat(inside).st_nlink)
    note("list the removed", os.listdir, inside)
    note("make in the removed", lambda: os.mkdir("new", dir_fd=inside))
    os.close(inside)
    below_empty = at / "empty" / "b"
    note(
        "exchange with another directory's", renameat2, at / "second", below_empty, RENAME_EXCHANGE
    )
    note("links of both directories", lambda: [shape(path)[1] for path in (at / "empty", at)])
    note("and back", renameat2, at / "second", below_empty, RENAME_EXCHANGE)
    note("links as before", lambda: [shape(path)[1] for path in (at / "empty", at)])
    note("replace another directory's", os.rename, below_empty, at / "spare")
    note("links then", lambda: [shape(path)[1] for path in (at / "empty", at)])
    same = os.path.samestat((at / "dir" / "..").stat(), at.stat())
    note("dot dot leads back", lambda: same)


def links(at: Path, note: Notes) -> None:
    note("link", os.link, at / "file", at / "dir" / "third")
    note("count", lambda: [shape(at / name)[1] for name in ("file", "hard", "dir/third")])
    note("taken", os.link, at / "file", at / "second")
    note("a directory", os.link, at / "dir", at / "again")
    note("a link itself", lambda: os.link(at / "link", at / "link 2", follow_symlinks=False))
    note("what it is", shape, at / "link 2")
    note("a fifo", os.link, at / "fifo", at / "fifo 2")
    note("missing", os.link, at / "absent", at / "x")
    note("other filesystem", os.link, "/proc/self/status", at / "x")
    note("rename to another", os.rename, "/proc/self/status", at / "x")
    os.unlink(at / "file")
    note("one fewer", lambda: [shape(at / name)[1] for name in ("hard", "dir/third")])
    note("content", content, at / "dir" / "third")


def _size(path: Path) -> int:
    return path.lstat().st_size


def symbolic_links(at: Path, note: Notes) -> None:
    for length in (1, 59, 60, 1000, 4094, 4095, 4096, 5000):
        target, link = "t" * length, at / f"link {length}"
        note(f"make {length}", os.symlink, target, link)
        note(f"read {length}", os.readlink, link)
        note(f"size {length}", _size, link)
    note("nothing", os.symlink, "", at / "nothing")
    note("any bytes", os.symlink, b"\xff\n\x01", os.fsencode(at) + b"/bytes")
    note("read bytes", os.readlink, os.fsencode(at) + b"/bytes")
    note("taken", os.symlink, "x", at / "file")
    note("read a file", os.readlink, at / "file")
    note("mode", shape, at / "link 1")
    os.symlink("one", at / "two")
    os.symlink("two", at / "one")
    note("loop", os.open, at / "one", os.O_RDONLY)
    note("loop on the way", os.stat, at / "one" / "x")
    note("followed", content, at / "link")
    note("chown itself", os.lchown, at / "link", 5, 6)
    note("owners", lambda: [shape(at / name)[2:4] for name in ("link", "file")])


def _make(path: bytes) -> None:
    os.close(os.open(path, os.O_CREAT))


def long_and_odd_names(at: Path, note: Notes) -> None:
    here = os.fsencode(at) + b"/"
    chosen = [bytes(value for value in range(1, 256) if value != 0x2F), b"x" * 255, b"\xff\xfe"]
    chosen += [b"new\nline", b"...", b" ", b"-", "é".encode() * 127, b"\\", b"tapefs", b".hidden"]
    for name in chosen:
        note(f"make {name[:20]!r}", _make, here + name)
    note("listed", lambda: sorted(os.listdir(here)))
    long = here + b"x" * 256
    note("256, make", os.open, long, os.O_CREAT)
    note("256, stat", os.stat, long)
    note("256, mkdir", os.mkdir, long)
    note("256, symlink", os.symlink, b"x", long)
    note("256, link", os.link, here + b"file", long)
    note("256, rename", os.rename, here + b"file", long)
    note("256, unlink", os.unlink, long)
    note("long path", os.stat, here + b"a/" * 2500)
    kept = _down(os.open(here, os.O_RDONLY), 19)
    deeper = _down(os.dup(kept), 5)
    note("deeper than PATH_MAX", lambda: os.close(os.open("x", os.O_CREAT, dir_fd=deeper)))
    note("listed there", os.listdir, deeper)
    os.close(deeper)
    note("removed again", lambda: shutil.rmtree(_LONG, dir_fd=kept))
    os.close(kept)


_LONG = "d" * 200


def _down(directory: int, levels: int) -> int:
    """Make directories below each other; closes `directory`, returns the last one, open."""
    for _ in range(levels):
        os.mkdir(_LONG, dir_fd=directory)
        below = os.open(_LONG, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    return directory


def node_types(at: Path, note: Notes) -> None:
    note("fifo", os.mkfifo, at / "new fifo", 0o640)
    note("socket", bind_socket, at / "socket")
    note("character", os.mknod, at / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    note("block", os.mknod, at / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    note("regular", os.mknod, at / "regular", stat.S_IFREG | 0o604)
    note("taken", os.mknod, at / "file", stat.S_IFREG)
    note("directory", os.mknod, at / "directory", stat.S_IFDIR | 0o755)
    for name in ("new fifo", "socket", "null", "disk", "regular"):
        note(f"{name} is", shape, at / name)
    note.use("open the socket", at / "socket", os.O_RDWR)
    note.use("use the device", at / "null", os.O_RDWR, lambda fd: os.write(fd, b"x"))
    note.use(
        "through the fifo",
        at / "new fifo",
        os.O_RDWR | os.O_NONBLOCK,
        lambda fd: os.write(fd, b"through"),
        lambda fd: os.read(fd, 100),
    )
    with as_user():
        note("node of a user", os.mknod, at / "mine", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def permission_bits(at: Path, note: Notes) -> None:
    file, directory = at / "file", at / "dir"
    for mode in (0o7777, 0o4755, 0o2755, 0o2745, 0o1644, 0o0, 0o644):
        note(f"chmod {mode:o}", os.chmod, file, mode)
        note(f"is {mode:o}", shape, file)
    note("chmod directory", os.chmod, directory, 0o3777)
    os.chown(directory, 0, 777)
    (directory / "new").touch()
    (directory / "below").mkdir()
    note("inherited group", shape, directory / "new")
    note("inherited bit", shape, directory / "below")
    with umask(0o077):
        (at / "masked").touch()
        (at / "masked directory").mkdir()
    note("umask", lambda: [shape(at / name)[0] for name in ("masked", "masked directory")])
    at.chmod(0o755)
    (directory / "of root").touch()
    with as_user(), umask(0o022):
        (directory / "of user").touch()
        note("sticky, of another", os.unlink, directory / "of root")
        note("sticky, rename", os.rename, directory / "of root", directory / "x")
        note("sticky, own", os.unlink, directory / "of user")
        note("chmod of another's", os.chmod, file, 0o777)
        note("chown", os.chown, file, USER, USER)
        note("write of another's", os.open, file, os.O_WRONLY)
        note("make where one may not", os.mkdir, at / "mine")
        note("truncate of another's", os.truncate, file, 1)
        note("times of another's", os.utime, file, (1, 1))
    file.chmod(0o640)
    os.chown(file, 0, 4321)
    with as_user(groups=(4321,)):
        note("by a supplementary group", lambda: os.close(os.open(file, os.O_RDONLY)))
    with as_user():
        note("without the group", os.open, file, os.O_RDONLY)


def owners_and_set_id(at: Path, note: Notes) -> None:
    file = at / "file"

    def armed(mode: int) -> None:
        os.chown(file, USER, USER)
        os.chmod(file, mode)

    for mode in (0o6755, 0o6745, 0o4711):
        armed(mode)
        note(f"chown of {mode:o}", os.chown, file, 1000, 1001)
        note(f"then {mode:o}", shape, file)
        armed(mode)
        note(f"chgrp of {mode:o}", os.chown, file, -1, 1002)
        note(f"group {mode:o}", shape, file)
        armed(mode)
        note(f"no change of {mode:o}", os.chown, file, -1, -1)
        note(f"same {mode:o}", shape, file)
        armed(mode)
        with as_user():
            note.use(f"write {mode:o}", file, os.O_WRONLY, lambda fd: os.write(fd, b"x"))
        note(f"written {mode:o}", shape, file)
        armed(mode)
        with as_user():
            note(f"truncate {mode:o}", os.truncate, file, 60_000)
        note(f"truncated {mode:o}", shape, file)
        armed(mode)
        note.use(f"root writes {mode:o}", file, os.O_WRONLY, lambda fd: os.write(fd, b"x"))
        note(f"written by root {mode:o}", shape, file)
    os.chmod(at / "dir", 0o6755)
    note("chown of a directory", os.chown, at / "dir", 1, 2)
    note("keeps its bits", shape, at / "dir")
    note("large ids", os.chown, file, 3_000_000_000, 4_294_967_294)
    note("large ids are", shape, file)
    armed(0o644)
    with as_user():
        note("setgid of a foreign group", lambda: _set_foreign_group_id(file))
    note("is not set", shape, file)
    with as_user():
        note("give away", os.chown, file, 1, -1)
        note("into a foreign group", os.chown, file, -1, 4321)
    with as_user(groups=(4321,)):
        note("into a group of one's own", os.chown, file, -1, 4321)
    note("at the end", shape, file)


def _set_foreign_group_id(file: Path) -> None:
    os.seteuid(0)
    os.chown(file, USER, 999)
    os.seteuid(USER)
    os.chmod(file, 0o2755)


def times(at: Path, note: Notes) -> None:
    file = at / "file"

    def both() -> tuple[int, int]:
        status = file.lstat()
        return status.st_atime_ns, status.st_mtime_ns

    for seconds in (0, 1, -1, -1_000_000_000, 2**31, 2**32, 9_000_000_000):
        note(f"set {seconds}", utimensat, file, (seconds, 999_999_999), (seconds, 1))
        note(f"is {seconds}", both)
    utimensat(file, (10_000_000_000, 0), (-10_000_000_000, 0))
    note("beyond 64 bits", both)
    utimensat(file, (3, 4), (5, 6))
    note("OMIT atime", utimensat, file, (5, UTIME_OMIT), (7, 8))
    note("left atime", both)
    note("OMIT both", utimensat, file, (5, UTIME_OMIT), (7, UTIME_OMIT))
    note("left both", both)
    note("NOW and OMIT", utimensat, file, (5, UTIME_NOW), (7, UTIME_OMIT))
    note("moved one", lambda: (both()[0] > 10**18, both()[1]))
    note("too many nanoseconds", utimensat, file, (5, 10**9), (7, 8))
    utimensat(file, (5, 6), (7, 8))
    utimensat(at / "link", (11, 12), (13, 14))
    note("of a link", lambda: (at / "link").lstat().st_mtime_ns)
    note("not of its target", both)
    note("missing", os.utime, at / "absent")
    file.chmod(0o666)
    with as_user():
        note("now, by one who may write", os.utime, file)
        note("some time, by the same", os.utime, file, (1, 1))


def time_of_the_last_access(at: Path, note: Notes) -> None:
    file = at / "file"
    os.utime(file, ns=(10**9, 2 * 10**9))
    note("read", lambda: len(file.read_bytes()) > 0)
    note("moved", lambda: file.stat().st_atime_ns != 10**9)


def times_that_follow(at: Path, note: Notes) -> None:
    """Which of mtime and ctime each call moves, for the file and for its directory."""
    file, old = at / "file", 10**9
    (at / "dir" / "away").touch()

    def moved(path: Path) -> tuple[bool, bool]:
        status = path.stat()
        return status.st_mtime_ns != old, status.st_ctime_ns != before[path]

    fd = os.open(file, os.O_RDWR)
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: os.pwrite(fd, b"x", 5),
        "write nothing": lambda: os.pwrite(fd, b"", 5),
        "truncate to the same": lambda: os.ftruncate(fd, os.fstat(fd).st_size),
        "truncate path to the same": lambda: os.truncate(file, file.stat().st_size),
        "truncate": lambda: os.ftruncate(fd, 60_000),
        "chmod": lambda: os.chmod(file, 0o600),
        "chown": lambda: os.chown(file, 1, 1),
        "setxattr": lambda: os.setxattr(file, "user.x", b"x"),
        "removexattr": lambda: os.removexattr(file, "user.x"),
        "link": lambda: os.link(file, at / "linked"),
        "rename": lambda: os.rename(at / "linked", at / "renamed"),
        "unlink": lambda: os.unlink(at / "renamed"),
        "mkdir": lambda: os.mkdir(at / "made"),
        "rmdir": lambda: os.rmdir(at / "made"),
        "failed mkdir": lambda: (at / "dir").mkdir(exist_ok=True),
        "read": lambda: os.pread(fd, 10, 0),
        "open with O_TRUNC": lambda: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC)),
        "again": lambda: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC)),
    }
    for label, call in calls.items():
        os.utime(file, ns=(old, old))
        os.utime(at, ns=(old, old))
        before = {path: path.stat().st_ctime_ns for path in (file, at)}
        # Local filesystems stamp with the time of the last timer tick, up to 10 ms ago.
        _wait_for_another_tick(at / "dir" / "away")
        call()
        note(f"file: {label}", moved, file)
        note(f"directory: {label}", moved, at)
    os.close(fd)


def _wait_for_another_tick(path: Path) -> None:
    os.utime(path)
    first = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == first:
        os.utime(path)


def extended_attributes(at: Path, note: Notes) -> None:
    file = at / "file"
    create, replace = os.XATTR_CREATE, os.XATTR_REPLACE
    note("kept", os.getxattr, file, "user.kept")
    note("REPLACE, absent", os.setxattr, file, "user.a", b"1", replace)
    note("CREATE, absent", os.setxattr, file, "user.a", b"1", create)
    note("CREATE, there", os.setxattr, file, "user.a", b"2", create)
    note("REPLACE, there", os.setxattr, file, "user.a", b"3", replace)
    note("is", os.getxattr, file, "user.a")
    for size in (0, 1, 255, 3000):
        note(f"set {size}", os.setxattr, file, "user.sized", pattern("value", size))
        note(f"get {size}", os.getxattr, file, "user.sized")
    note("value too large", os.setxattr, file, "user.large", b"x" * 65_537)
    note("long name", os.setxattr, file, "user." + "n" * 250, b"x")
    note("name too long", os.setxattr, file, "user." + "n" * 251, b"x")
    note("no name", os.setxattr, file, "user.", b"x")
    note("binary name", os.setxattr, file, b"user.\xff\n", b"\0\xff")
    note("trusted", os.setxattr, file, "trusted.t", b"root's")
    note("security", os.setxattr, file, "security.s", b"label")
    note("no namespace", os.setxattr, file, "unknown", b"x")
    note("another namespace", os.setxattr, file, "other.x", b"x")
    note("another of the system's", os.setxattr, file, "system.other", b"x")
    note("get another of the system's", os.getxattr, file, "system.other")
    note("get another namespace", os.getxattr, file, "other.x")
    note("remove another namespace", os.removexattr, file, "other.x")
    note("list", lambda: sorted(os.listxattr(file)))
    note("absent", os.getxattr, file, "user.absent")
    note("remove", os.removexattr, file, "user.a")
    note("remove again", os.removexattr, file, "user.a")
    note("through the hard link", os.getxattr, at / "hard", "user.sized")
    for name in ("link", "fifo"):
        path = at / name
        set_to = os.setxattr
        note(f"user. on {name}", set_to, path, "user.x", b"x", follow_symlinks=False)
        note(f"trusted. on {name}", set_to, path, "trusted.x", b"x", follow_symlinks=False)
        note(f"list {name}", os.listxattr, path, follow_symlinks=False)
    note("on a directory", os.setxattr, at / "dir", "user.d", b"d")
    file.chmod(0o644)
    with as_user():
        note("by another", os.setxattr, file, "user.x", b"x")
        note("trusted, by another", os.setxattr, file, "trusted.x", b"x")
        note("read by another", os.getxattr, file, "user.sized")
        note("read trusted by another", os.getxattr, file, "trusted.t")
        note("list by another", lambda: sorted(os.listxattr(file)))
    (at / "dir").chmod(0o1777)
    with as_user():
        note("on a sticky directory", os.setxattr, at / "dir", "user.x", b"x")


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF


def access_lists(at: Path, note: Notes) -> None:
    file, directory = at / "file", at / "dir"
    access, default = "system.posix_acl_access", "system.posix_acl_default"
    base = ((1, 6, NOBODY), (2, 4, USER), (4, 4, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY))
    note("none yet", os.getxattr, file, access)
    note("set", os.setxattr, file, access, _acl(*base))
    note("get", os.getxattr, file, access)
    note("mode follows", shape, file)
    with as_user():
        note("granted", lambda: os.close(os.open(file, os.O_RDONLY)))
        note("not granted", os.open, file, os.O_WRONLY)
    with as_user(USER + 1):
        note("somebody else", os.open, file, os.O_RDONLY)
    note("chmod", os.chmod, file, 0o600)
    note("mask follows", os.getxattr, file, access)
    with as_user():
        note("masked", os.open, file, os.O_RDONLY)
    note("default on a file", os.setxattr, file, default, _acl(*base))
    note("without a mask", os.setxattr, file, access, _acl(*base[:3], base[4]))
    note("broken", os.setxattr, file, access, b"\2\0\0\0x")
    note("another version", os.setxattr, file, access, b"\3\0\0\0")
    note("listed", lambda: sorted(os.listxattr(file)))
    note("minimal", os.setxattr, file, access, _acl(base[0], base[2], base[4]))
    note("gone", os.getxattr, file, access)
    note("mode of the minimal", shape, file)
    note("default", os.setxattr, directory, default, _acl(*base))
    (directory / "new").touch(0o666)
    (directory / "below").mkdir()
    for name in ("new", "below"):
        note(f"{name}: access", os.getxattr, directory / name, access)
        note(f"{name}: default", os.getxattr, directory / name, default)
        note(f"{name}: mode", shape, directory / name)
    with umask(0o077):
        (directory / "masked").touch(0o666)
    note("umask and default", shape, directory / "masked")
    os.unlink(directory / "masked")
    note("remove the default", os.removexattr, directory, default)
    note("removed", os.getxattr, directory, default)
    note("remove what is not there", os.removexattr, directory, default)


def directory_streams(at: Path, note: Notes) -> None:
    crowd = at / "crowd"
    crowd.mkdir()
    for number in range(200):
        (crowd / f"{number:03d}").touch()
    stream = DirectoryStream(crowd)
    first = [stream.read() for _ in range(70)]
    position = stream.tell()
    rest = stream.rest()
    note("every name once", lambda: sorted([*first, *rest]))
    stream.seek(position)
    note("seekdir", lambda: stream.rest() == rest)
    stream.rewind()
    note("rewinddir", lambda: stream.rest() == [*first, *rest])
    for name in rest[::2]:
        if name not in (b".", b".."):
            os.unlink(os.fsencode(crowd) + b"/" + name)
    stream.rewind()
    start = [stream.read() for _ in range(50)]
    for number in range(200, 240):
        (crowd / f"{number:03d}").touch()
    seen = [*start, *stream.rest()]
    left = {os.fsencode(name) for name in os.listdir(crowd)}
    old = {name for name in left if name < b"200"}
    note("nothing twice while it changes", lambda: len(seen) == len(set(seen)))
    note("nothing old is missed", lambda: old <= set(seen))
    note("nothing is made up", lambda: set(seen) - {b".", b".."} <= left)
    stream.close()
    kinds = {entry.name: (entry.is_dir(), entry.is_symlink()) for entry in os.scandir(at)}
    note("types", lambda: sorted(kinds.items()))
    note("numbers", lambda: all(e.inode() == os.lstat(e).st_ino for e in os.scandir(at)))


def filesystem_figures(at: Path, note: Notes) -> None:
    figures = os.statvfs(at)
    note("longest name", lambda: figures.f_namemax)
    note("free is part of all", lambda: 0 < figures.f_bavail <= figures.f_bfree < figures.f_blocks)
    note("block", lambda: figures.f_frsize > 0 and figures.f_bsize > 0)
    note("longest path", os.pathconf, at, "PC_PATH_MAX")
    note("pathconf name", os.pathconf, at, "PC_NAME_MAX")


ROWS = (
    renames,
    renames_over_open_files,
    directories,
    links,
    symbolic_links,
    long_and_odd_names,
    node_types,
    permission_bits,
    owners_and_set_id,
    times,
    time_of_the_last_access,
    times_that_follow,
    extended_attributes,
    access_lists,
    directory_streams,
    filesystem_figures,
)

# What a mount gives instead, by row and label; README.md, "What a mount does not do".
INSTEAD: dict[str, dict[str, object]] = {
    # 64 bits of nanoseconds: from 1677 to 2262.
    "times": {"beyond 64 bits": ((1 << 63) - 1, -(1 << 63))},
    "node_types": {"use the device: open": "EACCES"},
    "time_of_the_last_access": {"moved": False},
}
