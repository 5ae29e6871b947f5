"""The namespace behaves as a local filesystem does; the local filesystem is the judge."""

from __future__ import annotations

import errno
import os
import stat
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_contents import new_catalog

from tapefs.archive import posix_acl
from tapefs.archive.tree import (
    NAME_BYTES_MAX,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    XATTR_VALUE_BYTES_MAX,
    Tree,
)
from tapefs.entries import ROOT_INO
from tapefs.errors import FilesystemError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


class Clock:
    """A clock that moves by one with each look."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1
        return self.now_ns


class Rig:
    """A tree over a real catalog, remembering what became unreferenced."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.catalog = new_catalog(directory)
        self.unreferenced: list[int] = []
        self.tree = Tree(self.catalog, self.unreferenced.append, clock_ns=self.clock)

    def file(self, name: bytes, parent: int = ROOT_INO, mode: int = FILE) -> int:
        return self.tree.make(parent, name, mode, 10, 20).ino

    def directory(self, name: bytes, parent: int = ROOT_INO) -> int:
        return self.file(name, parent, DIRECTORY)

    def names(self, directory: int = ROOT_INO) -> list[bytes]:
        return sorted(name for _, name, _ in self.catalog.children(directory, 0, 1000))

    def nlink(self, ino: int) -> int:
        return self.catalog.inode(ino).nlink


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.catalog.close(clean=True)


def refused(errno_number: int, action: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(FilesystemError) as caught:
        action(*args, **kwargs)
    assert errno.errorcode[caught.value.errno_number] == errno.errorcode[errno_number]


class TestMake:
    def test_a_new_file_has_owner_mode_times_and_one_name(self, rig: Rig) -> None:
        inode = rig.tree.make(ROOT_INO, b"a", FILE, 1000, 1001)
        assert (inode.mode, inode.uid, inode.gid, inode.nlink) == (FILE, 1000, 1001, 1)
        assert inode.atime_ns == inode.mtime_ns == inode.ctime_ns == rig.clock.now_ns
        assert rig.tree.lookup(ROOT_INO, b"a") is inode

    def test_it_changes_the_directory(self, rig: Rig) -> None:
        rig.file(b"a")
        root = rig.catalog.inode(ROOT_INO)
        assert root.mtime_ns == root.ctime_ns == rig.clock.now_ns

    def test_each_type(self, rig: Rig) -> None:
        device = rig.tree.make(ROOT_INO, b"d", stat.S_IFBLK | 0o600, 0, 0, rdev=0x801)
        fifo = rig.tree.make(ROOT_INO, b"f", stat.S_IFIFO | 0o600, 0, 0, rdev=0x801)
        link = rig.tree.make(ROOT_INO, b"l", stat.S_IFLNK | 0o777, 0, 0, target=b"else/where")
        assert (device.rdev, fifo.rdev) == (0x801, 0)
        assert (link.target, link.size) == (b"else/where", 10)

    def test_a_setgid_directory_hands_down_its_group(self, rig: Rig) -> None:
        parent = rig.tree.make(ROOT_INO, b"p", DIRECTORY | stat.S_ISGID, 1, 77)
        child = rig.tree.make(parent.ino, b"d", DIRECTORY, 5, 6)
        file = rig.tree.make(parent.ino, b"f", FILE, 5, 6)
        assert (child.gid, file.gid) == (77, 77)
        assert child.mode & stat.S_ISGID
        assert not file.mode & stat.S_ISGID

    def test_refusals(self, rig: Rig) -> None:
        rig.file(b"a")
        removed = rig.directory(b"removed")
        rig.tree.rmdir(ROOT_INO, b"removed")
        refused(errno.EEXIST, rig.file, b"a")
        refused(errno.EEXIST, rig.file, b".")
        refused(errno.ENAMETOOLONG, rig.file, b"x" * (NAME_BYTES_MAX + 1))
        refused(errno.ENOENT, rig.file, b"b", removed)
        refused(errno.ENOTDIR, rig.file, b"b", rig.tree.lookup(ROOT_INO, b"a").ino)
        refused(errno.EINVAL, rig.file, b"b", mode=0o644)
        refused(errno.EPERM, rig.file, b".tapefs")
        link = {"target": b"x" * 4096}
        refused(errno.ENAMETOOLONG, rig.tree.make, 1, b"l", stat.S_IFLNK | 0o777, 0, 0, **link)
        assert rig.names() == [b"a"]

    def test_the_longest_name_and_any_byte(self, rig: Rig) -> None:
        rig.file(b"x" * NAME_BYTES_MAX)
        rig.file(b"\xff\xfe\n")
        rig.file(b".tapefs", rig.directory(b"below"))
        assert rig.names() == sorted([b"\xff\xfe\n", b"below", b"x" * NAME_BYTES_MAX])


class TestLinks:
    def test_a_second_name_is_the_same_inode(self, rig: Rig) -> None:
        ino = rig.file(b"a")
        assert rig.tree.link(ino, ROOT_INO, b"b").nlink == 2
        assert rig.catalog.inode(ino).ctime_ns == rig.clock.now_ns
        rig.tree.unlink(ROOT_INO, b"a")
        assert (rig.nlink(ino), rig.unreferenced) == (1, [])
        rig.tree.unlink(ROOT_INO, b"b")
        assert (rig.nlink(ino), rig.unreferenced) == (0, [ino])

    def test_refusals(self, rig: Rig) -> None:
        ino, directory = rig.file(b"a"), rig.directory(b"d")
        refused(errno.EPERM, rig.tree.link, directory, ROOT_INO, b"e")
        refused(errno.EEXIST, rig.tree.link, ino, ROOT_INO, b"d")
        refused(errno.EISDIR, rig.tree.unlink, ROOT_INO, b"d")
        refused(errno.ENOENT, rig.tree.unlink, ROOT_INO, b"none")
        rig.tree.unlink(ROOT_INO, b"a")
        refused(errno.ENOENT, rig.tree.link, ino, ROOT_INO, b"again")

    def test_directories_count_their_subdirectories(self, rig: Rig) -> None:
        directory = rig.directory(b"d")
        rig.directory(b"e", directory)
        rig.file(b"f", directory)
        assert (rig.nlink(ROOT_INO), rig.nlink(directory)) == (3, 3)
        refused(errno.ENOTEMPTY, rig.tree.rmdir, ROOT_INO, b"d")
        rig.tree.rmdir(directory, b"e")
        rig.tree.unlink(directory, b"f")
        rig.tree.rmdir(ROOT_INO, b"d")
        assert (rig.nlink(ROOT_INO), rig.nlink(directory)) == (2, 0)
        assert rig.unreferenced[-1] == directory

    def test_rmdir_refusals(self, rig: Rig) -> None:
        rig.file(b"a")
        refused(errno.ENOTDIR, rig.tree.rmdir, ROOT_INO, b"a")
        refused(errno.ENOENT, rig.tree.rmdir, ROOT_INO, b"none")
        refused(errno.EINVAL, rig.tree.rmdir, ROOT_INO, b".")


class TestRename:
    def test_between_directories(self, rig: Rig) -> None:
        ino, directory = rig.directory(b"a"), rig.directory(b"d")
        rig.tree.rename(ROOT_INO, b"a", directory, b"b")
        assert (rig.names(), rig.names(directory)) == ([b"d"], [b"b"])
        assert rig.tree.parent_of(ino) == directory
        assert (rig.nlink(ROOT_INO), rig.nlink(directory)) == (3, 3)
        touched = [rig.catalog.inode(number) for number in (ROOT_INO, directory, ino)]
        assert {inode.ctime_ns for inode in touched} == {rig.clock.now_ns}
        assert touched[0].mtime_ns == touched[1].mtime_ns == rig.clock.now_ns
        assert touched[2].mtime_ns < rig.clock.now_ns

    def test_over_a_file(self, rig: Rig) -> None:
        moved, replaced = rig.file(b"a"), rig.file(b"b")
        rig.tree.link(replaced, ROOT_INO, b"c")
        rig.tree.rename(ROOT_INO, b"a", ROOT_INO, b"b")
        assert rig.catalog.lookup(ROOT_INO, b"b") == moved
        assert (rig.nlink(replaced), rig.unreferenced) == (1, [])
        rig.tree.rename(ROOT_INO, b"b", ROOT_INO, b"c")
        assert rig.unreferenced == [replaced]
        assert rig.names() == [b"c"]

    def test_over_an_empty_directory(self, rig: Rig) -> None:
        moved, replaced = rig.directory(b"a"), rig.directory(b"b")
        rig.tree.rename(ROOT_INO, b"a", ROOT_INO, b"b")
        assert (rig.nlink(ROOT_INO), rig.nlink(moved), rig.nlink(replaced)) == (3, 2, 0)
        assert rig.unreferenced == [replaced]

    def test_two_names_of_one_file_both_stay(self, rig: Rig) -> None:
        ino = rig.file(b"a")
        rig.tree.link(ino, ROOT_INO, b"b")
        rig.tree.rename(ROOT_INO, b"a", ROOT_INO, b"b")
        assert rig.names() == [b"a", b"b"]

    def test_exchange(self, rig: Rig) -> None:
        file, directory, target = rig.file(b"f"), rig.directory(b"d"), rig.directory(b"t")
        rig.tree.rename(ROOT_INO, b"d", target, b"d")
        rig.tree.rename(ROOT_INO, b"f", target, b"d", RENAME_EXCHANGE)
        assert rig.catalog.lookup(ROOT_INO, b"f") == directory
        assert rig.catalog.lookup(target, b"d") == file
        assert (rig.nlink(ROOT_INO), rig.nlink(target)) == (4, 2)
        refused(errno.ENOENT, rig.tree.rename, 1, b"f", 1, b"none", RENAME_EXCHANGE)

    def test_refusals(self, rig: Rig) -> None:
        a, d = rig.directory(b"a"), rig.directory(b"d")
        inner = rig.directory(b"inner", a)
        rig.file(b"f")
        rename = rig.tree.rename
        refused(errno.EINVAL, rename, ROOT_INO, b"a", inner, b"x")
        refused(errno.EINVAL, rename, ROOT_INO, b"a", a, b"x")
        refused(errno.EINVAL, rename, a, b"inner", ROOT_INO, b"a", RENAME_EXCHANGE)
        refused(errno.ENOTEMPTY, rename, ROOT_INO, b"d", ROOT_INO, b"a")
        refused(errno.ENOTDIR, rename, ROOT_INO, b"d", ROOT_INO, b"f")
        refused(errno.EISDIR, rename, ROOT_INO, b"f", ROOT_INO, b"d")
        refused(errno.EEXIST, rename, ROOT_INO, b"f", ROOT_INO, b"d", RENAME_NOREPLACE)
        refused(errno.ENOENT, rename, ROOT_INO, b"none", ROOT_INO, b"x")
        refused(errno.EINVAL, rename, ROOT_INO, b"f", ROOT_INO, b"x", 4)
        refused(errno.ENAMETOOLONG, rename, ROOT_INO, b"f", ROOT_INO, b"x" * 256)
        refused(errno.EPERM, rename, ROOT_INO, b"f", ROOT_INO, b".tapefs")
        rig.tree.rmdir(ROOT_INO, b"d")
        refused(errno.ENOENT, rename, ROOT_INO, b"f", d, b"x")
        assert rig.names() == [b"a", b"f"]


class TestAttributes:
    def test_chmod_keeps_the_type_and_moves_ctime_only(self, rig: Rig) -> None:
        before = rig.tree.make(ROOT_INO, b"a", FILE, 0, 0).mtime_ns
        inode = rig.tree.set_attributes(rig.tree.lookup(ROOT_INO, b"a").ino, mode=0o4711)
        assert inode.mode == stat.S_IFREG | 0o4711
        assert (inode.mtime_ns, inode.ctime_ns) == (before, rig.clock.now_ns)

    @pytest.mark.parametrize(
        ("mode", "left"),
        [(0o6755, 0o755), (0o2745, 0o2745), (0o4644, 0o644), (0o1777, 0o1777)],
    )
    def test_chown_takes_privileges_from_a_file(self, rig: Rig, mode: int, left: int) -> None:
        ino = rig.file(b"a", mode=stat.S_IFREG | mode)
        inode = rig.tree.set_attributes(ino, uid=3)
        assert (inode.uid, inode.gid, stat.S_IMODE(inode.mode)) == (3, 20, left)

    def test_chown_leaves_a_directory_alone_and_an_explicit_mode_wins(self, rig: Rig) -> None:
        directory = rig.file(b"d", mode=DIRECTORY | stat.S_ISGID)
        assert rig.tree.set_attributes(directory, gid=3).mode == DIRECTORY | stat.S_ISGID
        file = rig.file(b"f")
        assert stat.S_IMODE(rig.tree.set_attributes(file, uid=1, mode=0o4755).mode) == 0o4755

    def test_times_are_set_as_given_and_clamped_to_what_can_be_stored(self, rig: Rig) -> None:
        ino = rig.file(b"a")
        inode = rig.tree.set_attributes(ino, atime_ns=-5, mtime_ns=1 << 70)
        assert (inode.atime_ns, inode.mtime_ns) == (-5, (1 << 63) - 1)
        assert inode.ctime_ns == rig.clock.now_ns
        rig.catalog.commit()

    def test_what_a_write_takes(self, rig: Rig) -> None:
        ino = rig.file(b"a", mode=stat.S_IFREG | 0o6755)
        rig.tree.set_xattr(ino, b"security.capability", b"\1")
        assert rig.tree.drop_privileges(ino, by_privileged=True)
        assert stat.S_IMODE(rig.catalog.inode(ino).mode) == 0o6755
        assert rig.tree.xattr_names(ino) == []
        assert rig.tree.drop_privileges(ino, by_privileged=False)
        assert stat.S_IMODE(rig.catalog.inode(ino).mode) == 0o755
        assert not rig.tree.drop_privileges(ino, by_privileged=False)

    def test_read_only_refuses_every_change(self, rig: Rig) -> None:
        ino, _ = rig.file(b"a"), rig.directory(b"d")
        rig.tree.read_only = True
        tree = rig.tree
        refused(errno.EROFS, rig.file, b"b")
        refused(errno.EROFS, tree.link, ino, ROOT_INO, b"b")
        refused(errno.EROFS, tree.unlink, ROOT_INO, b"a")
        refused(errno.EROFS, tree.rmdir, ROOT_INO, b"d")
        refused(errno.EROFS, tree.rename, ROOT_INO, b"a", ROOT_INO, b"b")
        refused(errno.EROFS, tree.set_attributes, ino, mode=0)
        refused(errno.EROFS, tree.set_xattr, ino, b"user.a", b"")
        refused(errno.EROFS, tree.remove_xattr, ino, b"user.a")
        assert tree.lookup(ROOT_INO, b"a").ino == ino


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
BASE = ((1, 6, NOBODY), (4, 4, NOBODY), (0x20, 0, NOBODY))
EXTENDED = ((1, 7, NOBODY), (2, 5, 1000), (4, 1, NOBODY), (0x10, 6, NOBODY), (0x20, 4, NOBODY))


class TestXattrs:
    def test_set_get_list_remove(self, rig: Rig) -> None:
        ino = rig.file(b"a")
        rig.tree.set_xattr(ino, b"user.b", b"\0\xff")
        rig.tree.set_xattr(ino, b"user.a", b"")
        assert rig.tree.xattr_names(ino) == [b"user.a", b"user.b"]
        assert (rig.tree.xattr(ino, b"user.a"), rig.tree.xattr(ino, b"user.b")) == (b"", b"\0\xff")
        assert rig.catalog.inode(ino).ctime_ns == rig.clock.now_ns
        rig.tree.remove_xattr(ino, b"user.a")
        refused(errno.ENODATA, rig.tree.xattr, ino, b"user.a")
        refused(errno.ENODATA, rig.tree.remove_xattr, ino, b"user.a")

    def test_limits(self, rig: Rig) -> None:
        ino = rig.file(b"a")
        largest = bytes(XATTR_VALUE_BYTES_MAX)
        refused(errno.E2BIG, rig.tree.set_xattr, ino, b"user.a", largest + b"\0")
        refused(errno.ERANGE, rig.tree.set_xattr, ino, b"user." + b"a" * 251, b"")
        for number in range(7):
            rig.tree.set_xattr(ino, b"user.%d" % number, largest)
        refused(errno.ENOSPC, rig.tree.set_xattr, ino, b"user.x", largest)
        rig.tree.set_xattr(ino, b"user.0", largest)  # replacing takes no room

    def test_an_access_acl_and_the_mode_agree(self, rig: Rig) -> None:
        ino = rig.file(b"a", mode=stat.S_IFREG | 0o4755)
        rig.tree.set_xattr(ino, posix_acl.ACCESS, acl(*EXTENDED))
        assert stat.S_IMODE(rig.catalog.inode(ino).mode) == 0o4764
        rig.tree.set_attributes(ino, mode=0o751)
        follows = ((1, 7, NOBODY), (2, 5, 1000), (4, 1, NOBODY), (16, 5, NOBODY), (32, 1, NOBODY))
        assert rig.tree.xattr(ino, posix_acl.ACCESS) == acl(*follows)

    def test_an_acl_that_says_no_more_than_the_mode_is_not_stored(self, rig: Rig) -> None:
        ino, directory = rig.file(b"a"), rig.directory(b"d")
        rig.tree.set_xattr(ino, posix_acl.ACCESS, acl(*EXTENDED))
        rig.tree.set_xattr(ino, posix_acl.ACCESS, acl(*BASE))
        assert rig.tree.xattr_names(ino) == []
        assert stat.S_IMODE(rig.catalog.inode(ino).mode) == 0o640
        rig.tree.set_xattr(directory, posix_acl.DEFAULT, acl(*BASE))
        assert rig.tree.xattr_names(directory) == [posix_acl.DEFAULT]
        rig.tree.set_xattr(directory, posix_acl.DEFAULT, acl())
        assert rig.tree.xattr_names(directory) == []
        refused(errno.EACCES, rig.tree.set_xattr, ino, posix_acl.DEFAULT, acl(*BASE))

    @pytest.mark.parametrize(
        ("value", "errno_number"),
        [
            (b"", errno.EINVAL),
            (struct.pack("<I", 3), errno.EOPNOTSUPP),
            (acl(*BASE)[:-1], errno.EINVAL),
            (acl(*BASE[:2]), errno.EINVAL),
            (acl(BASE[0], *BASE), errno.EINVAL),
            (acl(*BASE, (0x40, 7, 0)), errno.EINVAL),
            (acl(BASE[0], (2, 7, 5), *BASE[1:]), errno.EINVAL),  # a named user needs a mask
            (acl(BASE[0], (4, 8, NOBODY), BASE[2]), errno.EINVAL),
            (acl(BASE[1], BASE[0], BASE[2]), errno.EINVAL),
        ],
    )
    def test_what_is_not_an_acl(self, rig: Rig, value: bytes, errno_number: int) -> None:
        ino = rig.file(b"a")
        refused(errno_number, rig.tree.set_xattr, ino, posix_acl.ACCESS, value)
        assert stat.S_IMODE(rig.catalog.inode(ino).mode) == 0o644


def test_dot_and_dot_dot(rig: Rig) -> None:
    outer = rig.directory(b"a")
    inner = rig.directory(b"b", outer)
    assert rig.tree.lookup(inner, b".").ino == inner
    assert rig.tree.lookup(inner, b"..").ino == outer
    assert rig.tree.lookup(ROOT_INO, b"..").ino == ROOT_INO
    rig.tree.rmdir(outer, b"b")
    assert rig.tree.lookup(inner, b"..").ino == ROOT_INO


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["create", "mkdir", "symlink", "unlink", "rmdir"]), PATHS),
    st.tuples(st.sampled_from(["link", "rename"]), PATHS, PATHS),
)


class Walker:
    """Paths to inodes as the kernel does it, so that a Tree can be compared with os.*"""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.tree = rig.tree

    def split(self, path: str) -> tuple[int, bytes]:
        *parents, name = path.encode().split(b"/")
        ino = ROOT_INO
        for parent in parents:
            inode = self.tree.lookup(ino, parent)
            if stat.S_ISLNK(inode.mode):
                raise FilesystemError(errno.ENOENT)  # all of them dangle
            if not stat.S_ISDIR(inode.mode):
                raise FilesystemError(errno.ENOTDIR)
            ino = inode.ino
        return ino, name

    def do(self, step: tuple[str, ...]) -> None:
        word, where = step[0], self.split(step[1])
        if word == "create":
            self.tree.make(*where, FILE, 0, 0)
        elif word == "mkdir":
            self.tree.make(*where, DIRECTORY, 0, 0)
        elif word == "symlink":
            self.tree.make(*where, stat.S_IFLNK | 0o777, 0, 0, target=b"dangling")
        elif word == "link":
            inode = self.tree.lookup(*where)
            self.tree.link(inode.ino, *self.split(step[2]))
        elif word == "rename":
            self.tree.rename(*where, *self.split(step[2]))
        else:
            (self.tree.unlink if word == "unlink" else self.tree.rmdir)(*where)

    def listing(self, ino: int = ROOT_INO, prefix: str = "") -> dict[str, tuple[int, int]]:
        found = {}
        for _, name, child in self.rig.catalog.children(ino, 0, 1000):
            inode = self.rig.catalog.inode(child)
            path = prefix + name.decode()
            found[path] = (stat.S_IFMT(inode.mode), inode.nlink)
            if stat.S_ISDIR(inode.mode):
                found |= self.listing(child, path + "/")
        return found


def do_locally(root: Path, step: tuple[str, ...]) -> None:
    word, paths = step[0], [root / path for path in step[1:]]
    if word == "create":
        os.close(os.open(paths[0], os.O_CREAT | os.O_EXCL, 0o644))
    elif word == "mkdir":
        paths[0].mkdir()
    elif word == "symlink":
        paths[0].symlink_to("dangling")
    elif word == "link":
        os.link(paths[0], paths[1], follow_symlinks=False)
    else:
        getattr(os, word)(*paths)


def local_listing(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(root))] = (stat.S_IFMT(status.st_mode), status.st_nlink)
    return found


def outcome(action: Callable[[], None]) -> int:
    try:
        action()
    except OSError as exc:
        return exc.errno or -1
    except FilesystemError as exc:
        return exc.errno_number
    return 0


@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_the_same_steps_have_the_same_outcome_on_the_local_filesystem(
    steps: list[tuple[str, ...]],
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "local"
        local.mkdir()
        rig = Rig(Path(scratch))
        walker = Walker(rig)
        for step in steps:
            ours = outcome(lambda step=step: walker.do(step))  # type: ignore[misc]
            theirs = outcome(lambda step=step: do_locally(local, step))  # type: ignore[misc]
            assert errno.errorcode.get(ours) == errno.errorcode.get(theirs), step
            assert walker.listing() == local_listing(local), step
        assert rig.nlink(ROOT_INO) == local.stat().st_nlink
        rig.catalog.close(clean=True)
