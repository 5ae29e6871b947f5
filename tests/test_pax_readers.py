"""Archives as tapefs writes them, read by the programs that must still read them in twenty years.

GNU tar, bsdtar and Python's tarfile have to restore every kind of member and say nothing on
stderr: a warning for each file would hide the one that matters.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tapefs.entries import TapeFileKind
from tapefs.volume.label import README, Label, encode_label
from tapefs.volume.manifest import encode_manifest_line
from tapefs.volume.names import manifest_path, part_path
from tapefs.volume.notes import MemberNote, encode_note
from tapefs.volume.pax import (
    Member,
    MemberKind,
    TapeFileHead,
    global_header,
    member_header,
    pad_length,
)
from tapefs.volume.tail import MemberSpan, Tail, encode_tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

VOLUME = UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")
RECORD_BYTES = 64 * 1024
ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}
IS_ROOT = os.geteuid() == 0
OWNER = (0, 0) if IS_ROOT else (os.geteuid(), os.getegid())
MTIME_NS = 1_672_628_645_123_456_789
GIB = 2**30
# What GNU tar needs to be told to restore everything; see the README on the tape.
GNU_OPTIONS = ("--xattrs", "--xattrs-include=*", "--acls")


@dataclass(frozen=True)
class Content:
    """A member and its data."""

    member: Member
    data: bytes = b""


def file(path: bytes, data: bytes = b"content\n", **attributes: Any) -> Content:
    note = encode_note(MemberNote(12345, None, hashlib.sha256(data).digest()))
    member = Member(path, size=len(data), uid=OWNER[0], gid=OWNER[1], mtime_ns=MTIME_NS)
    return Content(replace(member, comment=note, **attributes), data)


def other(path: bytes, kind: MemberKind, **attributes: Any) -> Content:
    member = Member(path, kind, uid=OWNER[0], gid=OWNER[1], mtime_ns=MTIME_NS)
    return Content(replace(member, **attributes))


def body(contents: Iterable[Content]) -> bytes:
    return b"".join(
        member_header(each.member) + each.data + bytes(pad_length(len(each.data)))
        for each in contents
    )


def tape_file(contents: Iterable[Content]) -> bytes:
    """A tape file with its opening header, a manifest and its tail, as one byte string."""
    contents = list(contents)
    lines = [
        encode_manifest_line(hashlib.sha256(each.data).digest(), each.member.path)
        for each in contents
        if each.member.kind is MemberKind.FILE
    ]
    contents.append(file(manifest_path(1), b"".join(lines)))
    head = TapeFileHead(VOLUME, 1, TapeFileKind.SEGMENT)
    start = global_header(head) + body(contents)
    span = MemberSpan(0, 0, bytes(32))
    tail = Tail(VOLUME, 1, TapeFileKind.SEGMENT, 2, 0, span, span, written_ns=MTIME_NS)
    return start + encode_tail(tail, len(start), RECORD_BYTES)


def run(*command: str | Path, cwd: Path | None = None) -> bytes:
    """Stdout of a command that must succeed without a word on stderr."""
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, cwd=cwd, check=False)
    assert done.stderr == b""
    assert done.returncode == 0
    return done.stdout


def gnu_tar(archive: Path, target: Path) -> None:
    run("tar", *GNU_OPTIONS, "-b", "128", "-xpf", archive, "-C", target)


def bsdtar(archive: Path, target: Path) -> None:
    run("bsdtar", "--xattrs", "--acls", "-xpf", archive, "-C", target)


def python_tarfile(archive: Path, target: Path) -> None:
    code = (
        "import sys, tarfile\n"
        "with tarfile.open(sys.argv[1]) as opened:\n"
        # Python 3.11.2, which is Debian 12's, has no filters yet, and trusts.
        "    opened.extraction_filter = getattr(tarfile, 'fully_trusted_filter', None)\n"
        "    opened.extractall(sys.argv[2])"
    )
    run(sys.executable, "-W", "error", "-c", code, archive, target)


READERS = [gnu_tar, bsdtar, python_tarfile]


@pytest.fixture(params=READERS, ids=lambda reader: reader.__name__)
def extract(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Iterable[Content]], Path]:
    """Writes a tape file of the given members, has one reader extract it, returns where."""

    def extract_with(contents: Iterable[Content]) -> Path:
        archive, target = tmp_path / "archive", tmp_path / "tree"
        archive.write_bytes(tape_file(contents))
        target.mkdir()
        request.param(archive, target)
        return target

    return extract_with


def place(tree: Path, path: bytes) -> bytes:
    return os.path.join(os.fsencode(tree), path)


def read(tree: Path, path: bytes) -> bytes:
    with open(place(tree, path), "rb") as opened:
        return opened.read()


def tree_of(directory: Path) -> set[bytes]:
    """Relative paths of everything that is no directory, without tapefs's own files."""
    base = os.fsencode(directory)
    found = set()
    for folder, _, names in os.walk(base):
        found |= {os.path.relpath(os.path.join(folder, name), base) for name in names}
    return {path for path in found if not path.startswith(b".tapefs/")}


NAMES = [
    b"plain.txt",
    b"directory/sub directory/file",
    "grün/日本語.txt".encode(),
    b"not utf-8 \xff\xfe\x80",
    b"latin-1 \xe9t\xe9/f\xefle",
    b"new\nline",
    b"carriage\rreturn\r",
    b"back\\slash",
    b"  spaces at both ends  ",
    b"-option",
    b"*star",
    b"~tilde",
    b"=equals%25",
    b"tab\tbell\x07delete\x7f",
    b"n" * 255,
    "語".encode() * 85,
    b"p" * 100,
    b"q" * 101,
    b"d" * 49 + b"/" + b"e" * 50,
    b"d" * 60 + b"/" + b"f" * 60,
    b"/".join([b"deep%03d" % depth + b"." * 200 for depth in range(18)]) + b"/file",
    b"\xff" * 255,
]


def test_names_come_back_as_they_were(extract: Callable[[Iterable[Content]], Path]) -> None:
    tree = extract(file(name, b"data of " + name) for name in NAMES)
    assert tree_of(tree) == set(NAMES)
    for name in NAMES:
        assert read(tree, name) == b"data of " + name
    checked = run("sha256sum", "--strict", "-c", ".tapefs/segments/00000001.sha256", cwd=tree)
    assert checked.count(b"OK\n") == len(NAMES)


def test_sizes_around_blocks_and_records(
    extract: Callable[[Iterable[Content]], Path],
) -> None:
    sizes = [0, 1, 511, 512, 513, RECORD_BYTES - 1, RECORD_BYTES, RECORD_BYTES + 1]
    content = {b"%d" % size: os.urandom(size) for size in sizes}
    tree = extract(file(path, data) for path, data in content.items())
    assert {path: read(tree, path) for path in content} == content


def test_links_of_every_length(extract: Callable[[Iterable[Content]], Path]) -> None:
    long_path = b"/".join([b"long" * 40] * 6)
    targets = {
        b"short": b"x",
        b"hundred": b"t" * 100,
        b"hundred and one": b"../" * 33 + b"ab",
        b"longest": b"u/" * 2047 + b"v",
        b"absolute": b"/etc/passwd",
        b"unicode": "ziel/日本".encode(),
        b"not utf-8": b"ziel/\xff\xfe",
        b"new line": b"a\nb",
        b"name \xff too": b"target \xfe too",
    }
    tree = extract(
        [
            file(b"original", b"shared"),
            file(long_path, b"shared over a long path"),
            file(b"odd \xff", b"shared under an odd name"),
            other(b"second", MemberKind.HARD_LINK, linkpath=b"original"),
            other(b"third", MemberKind.HARD_LINK, linkpath=long_path),
            other(b"fourth", MemberKind.HARD_LINK, linkpath=b"odd \xff"),
            *(
                other(name, MemberKind.SYMLINK, linkpath=target, mode=0o777)
                for name, target in targets.items()
            ),
        ]
    )
    for name, target in targets.items():
        assert os.readlink(place(tree, name)) == target
    for first, second in (
        (b"original", b"second"),
        (long_path, b"third"),
        (b"odd \xff", b"fourth"),
    ):
        assert os.path.samefile(place(tree, first), place(tree, second))


def test_modes_owners_and_times(extract: Callable[[Iterable[Content]], Path]) -> None:
    owner: dict[str, Any] = {"uid": 4_294_967_294, "gid": 4_294_967_290} if IS_ROOT else {}
    members = [
        file(b"set-id", mode=0o6755),
        file(b"nothing", mode=0o000),
        file(b"owned", **owner),
        file(b"owned by 2^21", **({**owner, "uid": 2**21} if IS_ROOT else {})),
        other(b"sticky", MemberKind.DIRECTORY, mode=0o1777),
        other(b"d" * 100, MemberKind.DIRECTORY, mode=0o2750),
        other("verzeichnis-ü".encode(), MemberKind.DIRECTORY, mode=0o700),
        file(b"whole second", mtime_ns=1_600_000_000_000_000_000),
        file(b"one nanosecond", mtime_ns=1_600_000_000_000_000_001),
    ]
    tree = extract(members)
    for member in (each.member for each in members):
        status = os.lstat(place(tree, member.path))
        assert (status.st_uid, status.st_gid) == (member.uid, member.gid)
        assert stat.S_IMODE(status.st_mode) == member.mode
        assert stat.S_ISDIR(status.st_mode) == (member.kind is MemberKind.DIRECTORY)
        # tarfile holds times as floats.
        assert abs(status.st_mtime_ns - member.mtime_ns) < 1000


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_times_to_the_nanosecond(program: str, tmp_path: Path) -> None:
    times_ns = [0, 1, 999_999_999, MTIME_NS, 8**11 * 10**9, -1_000_000_000, -(10**18)]
    if program == "tar":  # libarchive adds the fraction of a negative time instead of taking it off
        times_ns += [-1, -500_000_000, -(10**18) - 1]
    members = [file(b"t%d" % time_ns, mtime_ns=time_ns) for time_ns in times_ns]
    archive = tmp_path / "archive"
    archive.write_bytes(tape_file(members))
    # The one remark that GNU tar makes about a time before 1970 or after today is its own.
    quiet = ["--warning=no-timestamp"] if program == "tar" else []
    run(program, *quiet, "-xpf", archive, "-C", tmp_path)
    for time_ns in times_ns:
        assert (tmp_path / f"t{time_ns}").stat().st_mtime_ns == time_ns


def test_fifos_and_devices_are_listed(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(
        tape_file(
            [
                other(b"pipe", MemberKind.FIFO),
                other(b"null", MemberKind.CHARACTER_DEVICE, rdev=os.makedev(1, 3), mode=0o666),
                other(b"disk", MemberKind.BLOCK_DEVICE, rdev=os.makedev(259, 1_048_575)),
            ]
        )
    )
    for program in ("tar", "bsdtar"):
        listing = run(program, "-tvf", archive).decode().splitlines()
        assert [line[0] for line in listing[:3]] == ["p", "c", "b"]
        assert " 1,3 " in listing[1]
        assert " 259,1048575 " in listing[2]
    with tarfile.open(archive) as opened:
        pipe, null, disk, *_ = opened.getmembers()
    assert pipe.isfifo()
    assert null.ischr()
    assert (null.devmajor, null.devminor) == (1, 3)
    assert disk.isblk()
    assert (disk.devmajor, disk.devminor) == (259, 1_048_575)


def test_fifos_are_made(extract: Callable[[Iterable[Content]], Path]) -> None:
    tree = extract([other(b"pipe", MemberKind.FIFO, mode=0o620)])
    status = os.lstat(place(tree, b"pipe"))
    assert stat.S_ISFIFO(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o620


@pytest.mark.parametrize("reader", [gnu_tar, bsdtar], ids=["gnu_tar", "bsdtar"])
def test_extended_attributes(reader: Callable[[Path, Path], None], tmp_path: Path) -> None:
    xattrs = {
        b"user.text": b"value",
        b"user.empty": b"",
        b"user.binary": bytes(range(256)),
        b"user.lines": b"\n17 path=/evil\n\0\n",
        b"user.large": b"L" * 3000,
        "user.grün".encode(): b"1",
    }
    if IS_ROOT:
        xattrs |= {b"trusted.tag": b"\0\1", b"security.mark": b"label\0"}
    if reader is gnu_tar:  # GNU tar's way to escape them; libarchive has none
        xattrs |= {b"user.a=b": b"equals", b"user.100%": b"percent", b"user.%3D": b"both"}
    members = [file(b"file", xattrs=xattrs), other(b"directory", MemberKind.DIRECTORY, mode=0o755)]
    members[1] = replace(members[1], member=replace(members[1].member, xattrs={b"user.d": b"dir"}))
    archive, tree = tmp_path / "archive", tmp_path / "tree"
    archive.write_bytes(tape_file(members))
    tree.mkdir()
    reader(archive, tree)
    assert {
        os.fsencode(name): os.getxattr(tree / "file", name) for name in os.listxattr(tree / "file")
    } == xattrs
    assert os.getxattr(tree / "directory", "user.d") == b"dir"


def binary_acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACL = binary_acl(
    (0x01, 6, NOBODY), (0x02, 7, 1000), (0x02, 4, 2_000_000_000), (0x04, 4, NOBODY),
    (0x08, 5, 100), (0x10, 7, NOBODY), (0x20, 0, NOBODY),
)  # fmt: skip


@pytest.mark.parametrize("reader", [gnu_tar, bsdtar], ids=["gnu_tar", "bsdtar"])
def test_access_control_lists(reader: Callable[[Path, Path], None], tmp_path: Path) -> None:
    access, default = b"system.posix_acl_access", b"system.posix_acl_default"
    members = [
        file(b"file", mode=0o670, xattrs={access: ACL}),
        other(b"dir", MemberKind.DIRECTORY, mode=0o770, xattrs={access: ACL, default: ACL}),
        file(b"dir/file", mode=0o644),
        file(b"invalid", xattrs={access: b"not an ACL"}),
    ]
    archive, tree = tmp_path / "archive", tmp_path / "tree"
    archive.write_bytes(tape_file(members))
    tree.mkdir()
    reader(archive, tree)
    assert os.getxattr(tree / "file", access) == ACL
    assert os.getxattr(tree / "dir", access) == ACL
    assert os.getxattr(tree / "dir", default) == ACL
    assert os.listxattr(tree / "invalid") == []


def test_files_beyond_eight_gib(tmp_path: Path) -> None:
    """The data is a hole: 9 GiB that take no room and no time."""
    size = 9 * GIB + 5
    archive = tmp_path / "archive"
    big = Member(b"big", size=size, mtime_ns=MTIME_NS, comment=b"tapefs ino=5")
    with archive.open("wb") as opened:
        header = member_header(big)
        opened.write(header)
        opened.seek(len(header) + size + pad_length(size))
        opened.write(body([file(b"after")]) + bytes(1024))
    for program in ("tar", "bsdtar"):
        lines = run(program, "-tvf", archive).decode().splitlines()
        assert [line.split()[-1] for line in lines] == ["big", "after"]
        assert str(size) in lines[0].split()
    with tarfile.open(archive) as opened_tar:
        assert [(each.name, each.size) for each in opened_tar] == [("big", size), ("after", 8)]


def test_size_stands_in_the_ustar_field_as_well() -> None:
    """For readers that know no pax: busybox and toybox."""
    header = member_header(Member(b"big", size=9 * GIB))
    ustar = header[-512:]
    assert ustar[124:136] == b"\x80" + (9 * GIB).to_bytes(11, "big")


def test_parts_join_with_the_readme_s_commands(
    extract: Callable[[Iterable[Content]], Path], tmp_path: Path
) -> None:
    data = os.urandom(5000)
    paths = [part_path(b"sub dir/movie 1", 7, offset, 1)[0] for offset in (0, 2000, 4100)]
    parts = [data[:2000], data[2000:4100], data[4100:]]
    attributes = {"mode": 0o640, "mtime_ns": 1_600_000_000_000_000_000}
    tree = extract(file(path, part, **attributes) for path, part in zip(paths, parts, strict=True))
    joined = b"".join(read(tree, path) for path in sorted(paths))
    assert joined == data
    script = README[README.index("  find . -name") : README.index("4. WHAT")]
    run("sh", "-c", script, cwd=tree)
    assert tree_of(tree) == {b"sub dir/movie 1"}
    assert read(tree, b"sub dir/movie 1") == data
    status = os.stat(place(tree, b"sub dir/movie 1"))
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_mtime_ns == 1_600_000_000_000_000_000


def test_changed_parts_go_over_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    path, _ = part_path(b"file", 7, 4, 2)
    (tmp_path / os.fsdecode(path)).write_bytes(b"XY")
    script = README[README.index("  find . -name") : README.index("4. WHAT")]
    run("sh", "-c", script, cwd=tmp_path)
    assert (tmp_path / "file").read_bytes() == b"0123XY6789"


def test_parts_of_the_longest_names(extract: Callable[[Iterable[Content]], Path]) -> None:
    names = [b"a" * 255, b"a" * 254 + b"b", "語".encode() * 85]
    paths = [part_path(name, 100 + index, 0, 1)[0] for index, name in enumerate(names)]
    tree = extract(file(path, path) for path in paths)
    assert tree_of(tree) == set(paths)


@pytest.mark.parametrize("room_bytes", [512, 1024, 1536, 2048, 2560, 4096, 30_000 // 512 * 512])
def test_filler_before_the_tail_is_silent(
    room_bytes: int, extract: Callable[[Iterable[Content]], Path]
) -> None:
    """The tail's header fills up the record in which the tail has no room."""
    empty_bytes = len(tape_file_start([file(b"f", b"")]))
    data = b"z" * (2 * RECORD_BYTES - empty_bytes - room_bytes)
    assert (len(tape_file_start([file(b"f", data)])) + room_bytes) % RECORD_BYTES == 0
    tree = extract([file(b"f", data)])
    assert read(tree, b"f") == data
    assert (tree / ".tapefs/segments/00000001.tail").stat().st_size > 0


def tape_file_start(contents: Iterable[Content]) -> bytes:
    """Everything before the tail."""
    contents = list(contents)
    line = encode_manifest_line(bytes(32), contents[0].member.path)
    head = TapeFileHead(VOLUME, 1, TapeFileKind.SEGMENT)
    return global_header(head) + body([*contents, file(manifest_path(1), line)])


def test_label_explains_itself_to_a_bare_tar(tmp_path: Path) -> None:
    label = tmp_path / "label"
    label.write_bytes(encode_label(Label(VOLUME, "Band Nr. 7 ü", 512 * 1024, MTIME_NS)))
    assert run("tar", "tf", label) == b"README.txt\ntapefs-label.json\n"
    readme = run("bsdtar", "-xOf", label, "README.txt").decode()
    assert "Band Nr. 7 ü" in readme
    assert "tar -b 1024 " in readme
    assert "@" not in readme
    with tarfile.open(label) as opened:
        assert opened.getnames() == ["README.txt", "tapefs-label.json"]


def test_python_finds_the_note_of_each_member(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(
        tape_file([file(b"a", b"1"), file("ü".encode(), b"2"), file(b"\xff", b"3")])
    )
    with tarfile.open(archive) as opened:
        notes = [each.pax_headers["comment"] for each in opened][:3]
    assert notes == [
        f"tapefs ino=12345 sha256={hashlib.sha256(data).hexdigest()}" for data in (b"1", b"2", b"3")
    ]
