"""The torture tree goes in by every program that people copy with, and is the same from tape alone.

Each program copies it into a mount; the mount ends, the host forgets the tape, mounts it again, and
rsync finds nothing to do. Then GNU tar, without tapefs, restores it from what is on tape.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from first_light_rig import (
    RSYNC,
    assert_same,
    deterministic_bytes,
    fingerprint,
    new_host,
    quiet,
    restore_with_tar,
)
from torture_tree import make_torture_tree
from tree_walk import below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.fuse

Copy: TypeAlias = "Callable[[Path, Path], None]"


def copy_with_rsync(source: Path, into: Path) -> None:
    quiet(*RSYNC, "-S", source, f"{into}/")


def copy_with_cp(source: Path, into: Path) -> None:
    quiet("cp", "-a", source, into)


def copy_with_tar(source: Path, into: Path) -> None:
    """It keeps one name of a device or fifo, and no sockets."""
    options = ["--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]
    pack = ["tar", *options, "--sparse", "-cf", "-", source.name]
    unpack = ["tar", *options, "--delay-directory-restore", "--warning=no-timestamp", "-xpf", "-"]
    piped(pack, source.parent, unpack, into)


def copy_with_bsdtar(source: Path, into: Path) -> None:
    """It escapes odd names of attributes as well, adds fractions before 1970 where it should
    subtract them, and sets the time of a directory before the symlinks in it."""
    options = ["--acls", "--xattrs", "--numeric-owner"]
    binary = ["--format=pax", "--options=pax:hdrcharset=BINARY"]
    pack = ["bsdtar", *binary, *options, "-cf", "-", source.name]
    piped(pack, source.parent, ["bsdtar", *options, "-xpf", "-"], into)
    for path in below(into):
        if stat.S_ISDIR(path.lstat().st_mode):
            os.utime(path, ns=(10**18, 10**18))


def piped(pack: list[str], source: Path, unpack: list[str], into: Path) -> None:
    """Both must succeed; what the second has to say would be about where it writes."""
    with subprocess.Popen(pack, cwd=source, stdout=subprocess.PIPE) as packing:
        done = subprocess.run(
            unpack, cwd=into, stdin=packing.stdout, capture_output=True, check=False
        )
    assert (packing.returncode, done.returncode, done.stderr) == (0, 0, b"")


KEEP_ALL: tuple[Copy, ...] = (copy_with_rsync, copy_with_cp)
# What these two lose they lose on every filesystem: the mount must have what a local disk has.
LOSE_SOME: tuple[Copy, ...] = (copy_with_tar, copy_with_bsdtar)


@pytest.mark.parametrize("copy", KEEP_ALL + LOSE_SOME, ids=lambda copy: copy.__name__)
def test_a_copy_is_whole_from_tape_alone(copy: Copy) -> None:
    with new_host() as host:
        wanted, restored = host.root / "source" / "tree", host.root / "restored"
        wanted.parent.mkdir()
        make_torture_tree(wanted)
        if copy in LOSE_SOME:
            (wanted / "nodes" / "socket").unlink()
        host.format().mount()
        copy(wanted, host.mountpoint)
        if copy in LOSE_SOME:
            (host.root / "local").mkdir()
            copy(wanted, host.root / "local")
            wanted = host.root / "local" / "tree"
        host.umount()
        host.forget()
        host.mount()
        expected = fingerprint(wanted)
        assert_same(wanted, host.mountpoint / "tree")
        assert fingerprint(host.mountpoint / "tree") == expected
        host.umount()
        restore_with_tar(host.image, restored)
        expected.pop(b"nodes/socket", None)
        assert_same(wanted, restored / "tree", "--exclude=socket")
        assert fingerprint(restored / "tree") == expected


def test_the_largest_attributes_come_back() -> None:
    """64 KiB each, 300 KiB in all: more than most filesystems hold; tmpfs takes them of root."""
    values = {
        f"trusted.{number}": deterministic_bytes(f"attribute {number}", size)
        for number, size in enumerate((65_536, 65_535, 65_536, 65_536, 40_000, 0))
    }
    with new_host() as host, tempfile.TemporaryDirectory(dir="/dev/shm") as tmpfs:
        host.format().mount()
        for path in (host.mountpoint / "file", host.mountpoint / "directory" / "below"):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"content")
            for name, value in values.items():
                os.setxattr(path, name, value)
        host.umount()
        host.forget()
        host.mount()
        restored = Path(tmpfs) / "restored"
        restore_with_tar(host.image, restored)
        for root in (host.mountpoint, restored):
            for path in (root / "file", root / "directory" / "below"):
                assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == values


def test_what_lies_deeper_than_any_path_reaches_comes_back() -> None:
    """5,000 bytes of path. GNU tar cannot make it; the mount has it from tape."""
    name, levels = "d" * 249, 20
    with new_host() as host:
        host.format().mount()
        with at_the_bottom(host.mountpoint, name, levels, make=True) as directory:
            inside = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
            os.write(inside, b"far down")
            os.close(inside)
        host.umount()
        host.forget()
        host.mount()
        with at_the_bottom(host.mountpoint, name, levels, make=False) as directory:
            inside = os.open("file", os.O_RDONLY, dir_fd=directory)
            assert os.read(inside, 100) == b"far down"
            os.close(inside)
        assert host.tapefs("umount", host.mountpoint).code == 0
        assert host.tapefs("verify", host.drive).code == 0


@contextmanager
def at_the_bottom(root: Path, name: str, levels: int, *, make: bool) -> Iterator[int]:
    """A descriptor of the innermost of so many directories in each other."""
    directory = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        if make:
            os.mkdir(name, dir_fd=directory)
        below = os.open(name, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    try:
        yield directory
    finally:
        os.close(directory)
