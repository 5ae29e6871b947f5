"""A tree of everything that a backup must keep and some lose; made by root, on ext4, XFS or Btrfs.

Odd names, long paths, all types, links, owners, modes, times, extended attributes of all
namespaces, ACLs, capabilities, holes. Nothing here imports tapefs.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from first_light_rig import MIB, deterministic_bytes, quiet
from tree_walk import below

if TYPE_CHECKING:
    from collections.abc import Iterator

# Below the root of the tree; leaves room in PATH_MAX for where the tree is, and for the suffix that
# rsync gives a file while it writes it.
DEEP_PATH_BYTES: Final = 3800
TARGET_BYTES: Final = (1, 59, 60, 100, 101, 255, 256, 1000, 4000, 4094, 4095)


def make_torture_tree(root: Path) -> None:
    """Everything, below the new directory `root`."""
    root.mkdir(mode=0o750)
    _make_odd_names(root / "names")
    _make_deep_path(root / "deep")
    _make_links(root / "links")
    _make_nodes(root / "nodes")
    _make_modes(root / "modes")
    _make_attributes(root / "attributes")
    _make_access_lists(root / "lists")
    _make_holes(root / "holes")
    (root / "empty").touch()
    (root / "empty directory").mkdir()
    (root / "large").write_bytes(deterministic_bytes("large", 5 * MIB + 1))
    with (root / "sparse").open("wb") as file:
        file.seek(3 * MIB + 5)
        file.write(b"after the hole")
        file.truncate(7 * MIB)
    _set_times(root)


def odd_names() -> Iterator[bytes]:
    """Names that something might stumble over, none of more than 255 bytes."""
    every_byte = bytes(value for value in range(1, 256) if value != ord("/"))
    yield every_byte
    yield every_byte[::-1]
    yield from (b"\xff not utf-8 \xfe", b"new\nline", b"\n", b"x" * 255, "ümläut ☃".encode())
    yield from (b"-rf", b"-", b"--delete", b" ", b"  ", b"trailing ", b"trailing.", b"...", b".. ")
    yield from (b"back\\slash", b"\\", b"\\n", b"\\012", b'"quoted"', b"'quoted'", b"tab\there")
    yield from (b"*?[a]", b"%d%s%n", b"a=b", b"~", b"~root", b"#", b"$HOME", b"`id`", b";id", b"&")
    yield from (b".hidden", b"colon:name", b"host::module", b"cr\r", b"\x01\x7f", b"\x1b[31m")
    yield from ("é".encode() * 127, "é".encode(), "e\u0301".encode(), b"\xed\xa0\x80", b"\xc0\xaf")
    yield from (b"tapefs", b"PaxHeader", b"@LongLink", b"name.tapefs-part-0-1", b"lost+found")


def _make_odd_names(root: Path) -> None:
    root.mkdir()
    for name in odd_names():
        _below(root, name).write_bytes(name)
        directory = _below(root, name[:250] + b".dir")
        directory.mkdir()
        (directory / "inside").write_bytes(name)


def _below(directory: Path, name: bytes) -> Path:
    return Path(os.fsdecode(os.fsencode(directory) + b"/" + name))


def _make_deep_path(root: Path) -> None:
    """Directories in each other, with something in each, as deep as full paths reach."""
    root.mkdir()
    path, length = root, len("deep")
    for level in range(200):
        name = f"{level:02d}" + "deep" * (level % 55)
        length += 1 + len(name)
        if length + len("/file") > DEEP_PATH_BYTES:
            break
        path /= name
        path.mkdir()
        (path / "file").write_text(f"level {level}")
    (path / "link").symlink_to("file")


def _make_links(root: Path) -> None:
    root.mkdir()
    (root / "one").write_bytes(b"one file, three names\n")
    (root / "below").mkdir()
    os.link(root / "one", root / "two")
    os.link(root / "one", root / "below" / "three")
    (root / "many").write_bytes(b"many names")
    for number in range(60):
        os.link(root / "many", root / "below" / f"many {number}")
    targets = [
        "one",
        "/etc/passwd",
        "nowhere/at all",
        "../links/below",
        "\udcff\udcfe",
        "new\nline",
    ]
    targets += [".", "..", "symlink 8", "-rf", " ", "trailing/", "//double//slash"]
    targets += ["t" * length for length in TARGET_BYTES]
    for number, target in enumerate(targets):
        (root / f"symlink {number}").symlink_to(target)
    os.lchown(root / "symlink 0", 5, 6)
    os.link(root / "symlink 0", root / "below" / "linked symlink", follow_symlinks=False)


def _make_nodes(root: Path) -> None:
    root.mkdir()
    os.mkfifo(root / "fifo", 0o640)
    os.link(root / "fifo", root / "fifo again")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 300))
    os.mknod(root / "largest", stat.S_IFCHR | 0o600, os.makedev(4095, (1 << 20) - 1))
    os.mknod(root / "none", stat.S_IFCHR | 0o000, 0)
    os.link(root / "null", root / "null again")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    for name in ("fifo", "disk"):
        os.chown(root / name, 1234, 4321)
        os.setxattr(root / name, "trusted.node", name.encode())
    quiet("setfacl", "-m", "u:1000:rw", root / "largest")


def _make_modes(root: Path) -> None:
    root.mkdir()
    for mode in (0o000, 0o4755, 0o2755, 0o2644, 0o6711, 0o1644, 0o7777, 0o777, 0o4000):
        path = root / f"mode {mode:o}"
        path.write_bytes(b"x")
        os.chown(path, 1000 + mode % 7, 3_000_000_000)
        path.chmod(mode)
    for mode in (0o1777, 0o2775, 0o500, 0o000, 0o7000, 0o111):
        path = root / f"directory {mode:o}"
        path.mkdir()
        (path / "inside").write_bytes(b"in a directory that not everybody may enter or change")
        (path / "below").mkdir()
        os.chown(path, 2_500_000, 777)
        path.chmod(mode)


def _make_attributes(root: Path) -> None:
    root.mkdir()
    noted = root / "noted"
    noted.write_bytes(b"has attributes")
    os.setxattr(noted, "user.comment", b"\0binary\xff\n=")
    os.setxattr(noted, "user.empty", b"")
    # ext4 has room for about 4,000 bytes.
    os.setxattr(noted, "user.large", deterministic_bytes("xattr", 2500))
    os.setxattr(noted, "trusted.secret", b"root only")
    os.setxattr(noted, "security.tapefs", b"\0label\0")
    crowded = root / "crowded"
    crowded.write_bytes(b"has many")
    for number in range(40):
        os.setxattr(crowded, f"user.number {number}", f"{number}\n".encode())
    os.setxattr(crowded, b"user." + b"n" * 250, b"a long name")
    os.setxattr(crowded, b"user.\xff\xfe\n=%", b"an odd name")
    able = root / "able"
    able.write_bytes(b"#!/bin/true\n")
    able.chmod(0o755)
    quiet("setcap", "cap_net_raw,cap_net_bind_service=ep", able)
    (root / "directory").mkdir()
    os.setxattr(root / "directory", "user.directory", b"yes")
    os.setxattr(root / "directory", "security.tapefs", b"labelled")
    (root / "link").symlink_to("noted")
    os.setxattr(root / "link", "trusted.link", b"of the link", follow_symlinks=False)


def _make_access_lists(root: Path) -> None:
    root.mkdir()
    granted, shared, locked = root / "granted", root / "shared", root / "locked"
    granted.write_bytes(b"has a list")
    quiet("setfacl", "-m", "u:1000:rwx,g:2000:r--,m::r-x", granted)
    shared.mkdir()
    quiet("setfacl", "-m", "u:1001:rwx,d:u:1000:rwx,d:g:2000:r-x", shared)
    # What is made in there inherits, as when the tree is copied.
    (shared / "inherits").write_bytes(b"from the default")
    (shared / "below").mkdir()
    quiet("setfacl", "-b", "-k", shared / "below")
    (shared / "below" / "bare").write_bytes(b"no list")
    locked.write_bytes(b"nobody by the mask")
    quiet("setfacl", "-m", ",".join(f"u:{3_000_000 + n}:rw" for n in range(30)) + ",m::---", locked)
    (root / "default only").mkdir()
    quiet("setfacl", "-d", "-m", "u::rwx,g::---,o::---", root / "default only")
    (root / "default only").chmod(0o2711)


def _make_holes(root: Path) -> None:
    root.mkdir()
    for name, islands, size in (
        ("only a hole", (), 2 * MIB + 1),
        ("first", (MIB,), MIB + 4096),
        ("last", (0,), 3 * MIB),
        ("comb", range(0, 4 * MIB, 256 * 1024), 4 * MIB),
        ("less than a block", (5000,), 5005),
    ):
        with (root / name).open("wb") as file:
            for offset in islands:
                file.seek(offset)
                file.write(b"data\n")
            file.truncate(size)


def _set_times(root: Path) -> None:
    moments = {
        "empty": -1_000_000_000_123_456_789,  # 1938
        "large": 9_200_000_000_999_999_999,  # 2261; tapefs keeps times from 1677 to 2262
        "sparse": 1,
        "empty directory": 946_684_799_999_999_999,
        "names/-rf": -1,
        "names/~": 0,
        "nodes/fifo": -2_147_483_648_000_000_000 + 1,  # 1901, where ext4 begins
        "links/symlink 0": 4_294_967_296_000_000_001,  # 2106
        "deep/00": 2_147_483_648_000_000_000,  # 2038
    }
    found = below(root)
    assert all((root / name) in found for name in moments)
    for number, path in enumerate(reversed(found)):
        moment = 1_000_000_000_123_456_789 + number * 1_000_000_007
        moment = moments.get(str(path.relative_to(root)), moment)
        os.utime(path, ns=(moment, moment), follow_symlinks=False)
