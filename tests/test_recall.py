"""Data comes back: all of it with everything that belongs to it, proven, however often it takes."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import time
import tracemalloc
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from first_light_rig import (
    PROGRAMS,
    RSYNC,
    STUCK_S,
    Host,
    assert_same,
    deterministic_bytes,
    fingerprint,
    new_host,
    quiet,
)
from test_verify import change
from torn_rig import tape_file
from torture_tree import make_torture_tree
from tree_walk import below

from tapefs import cli, daemon
from tapefs.archive import placement, retrieval
from tapefs.archive.reading_order import TapeLayout
from tapefs.archive.retrieval import ORDER_NAME, Retrieved, retrieve
from tapefs.archive.retrieval_sources import MountSource
from tapefs.catalog import Item
from tapefs.daemon import unmounted
from tapefs.entries import Inode
from tapefs.errors import (
    DataMismatch,
    DriveBusy,
    ExitCode,
    MountpointUnusable,
    NotReady,
    SpoolFull,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20
REGULAR = stat.S_IFREG | 0o644


def nothing(_: dict[str, Any]) -> None:
    """Nobody watches."""


# -- with a kernel, a drive and the command


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A cartridge with a tree of everything, unmounted; and the tree, `host.root/tree`."""
    with new_host() as host:
        tree = host.root / "tree"
        make_torture_tree(tree)
        (tree / "d").mkdir()
        for number in range(9, -1, -1):
            (tree / f"d/small{number}").write_bytes(deterministic_bytes(f"s{number}", 3000))
        (tree / "d/big").write_bytes(deterministic_bytes("big", 5 * MIB + 7))
        host.format().mount("settle=0")
        quiet(*RSYNC, f"{tree}/", f"{host.mountpoint}/")
        host.umount()
        # The spool has nothing of it, but the volume is known here.
        host.forget()
        host.ok("generations", host.drive)
        yield host


@pytest.fixture
def out(tmp_path: Path) -> Path:
    directory = tmp_path / "out"
    directory.mkdir()
    return directory


class Shell:
    """`tapefs recall --json` in this process, into one directory."""

    def __init__(
        self,
        host: Host,
        out: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self._capsys = capsys
        self.tree, self.out = host.root / "tree", out
        for name in ("TAPEFS_STATE_DIR", "TAPEFS_RUNTIME_DIR"):
            monkeypatch.setenv(name, host.env[name])

    def run(self, *words: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self._capsys.readouterr()
        code = cli.main(["recall", *map(str, words)])
        found = self._capsys.readouterr()
        return code, found.out, found.err

    def fails(self, code: ExitCode, *words: str | Path) -> tuple[dict[str, Any], str]:
        """The document, and the sentence on standard error."""
        found, out, err = self.run("--json", "--to", self.out, *words)
        sentence = json.loads(err.splitlines()[-1])
        assert (found, sentence["event"]) == (code, "error"), err
        return json.loads(out or "{}"), sentence["message"]

    def ok(self, *words: str | Path) -> dict[str, Any]:
        """The document."""
        code, out, err = self.run("--json", "--to", self.out, *words)
        assert code == ExitCode.OK, (err, out[-800:])
        document: dict[str, Any] = json.loads(out)
        return document

    def has_everything(self) -> None:
        """Nothing is missing, nothing different, nothing left behind."""
        assert fingerprint(self.tree) == fingerprint(self.out)
        for path in below(self.tree):
            if stat.S_ISREG(path.lstat().st_mode):
                copy = self.out / path.relative_to(self.tree)
                assert copy.read_bytes() == path.read_bytes(), path


@pytest.fixture
def shell(
    host: Host,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    return Shell(host, out, capsys, monkeypatch)


pytestmark = pytest.mark.fuse


@pytest.mark.parametrize("way", ["drive", "mount", "volume in a mount", "volume in a drive"])
def test_everything_comes_back(host: Host, shell: Shell, way: str) -> None:
    places: dict[str, list[str | Path]] = {
        "drive": [host.drive],
        "mount": [host.mountpoint],
        "volume in a mount": ["FIRST"],
        "volume in a drive": ["FIRST:", "--drive", host.drive],
    }
    with host_mounted(host) if "mount" in way else nullcontext():
        found = shell.ok(*places[way])
    assert (found["damaged"], found["refused"], found["remarks"]) == ([], [], [])
    assert found["found_files"] == 0
    shell.has_everything()
    sparse = shell.out / "sparse"
    assert sparse.stat().st_blocks * 512 < sparse.stat().st_size / 2, "holes stay holes"
    if way == "drive":
        again = shell.ok(host.drive)
        assert (again["copied_files"], again["found_files"]) == (0, found["copied_files"])
        shell.has_everything()


@contextmanager
def host_mounted(host: Host) -> Iterator[None]:
    host.mount()
    yield
    host.umount()


def test_some_of_it_under_its_last_name(host: Host, shell: Shell) -> None:
    words = ["FIRST:/links/below/", "FIRST:d/small1", "--drive", host.drive]
    code, said, _ = shell.run(*words, "--to", shell.out)
    assert code == 0
    assert sorted(os.listdir(shell.out)) == ["below", "small1"]
    assert_same(shell.tree / "links/below", shell.out / "below")
    assert said.startswith(f"recalled 3 files (3.0 KiB) to {shell.out} in ")


def test_what_is_there_is_proven_by_its_content(host: Host, shell: Shell) -> None:
    shell.ok(host.drive)
    spoilt = shell.out / "d/big"
    status, data = spoilt.stat(), bytearray(spoilt.read_bytes())
    data[MIB] ^= 1
    spoilt.write_bytes(data)
    os.utime(spoilt, ns=(status.st_atime_ns, status.st_mtime_ns))
    (shell.out / "d/small7").write_bytes(b"mine")
    (shell.out / "nodes/disk").unlink()
    (shell.out / "nodes/disk").mkdir()
    found, sentence = shell.fails(ExitCode.INCOMPLETE, host.drive)
    rows = {row["path"]: row["reason"] for row in found["refused"]}
    assert rows.keys() == {"d/big", "d/small7", "nodes/disk"}
    assert set(rows.values()) == {"something else is there; --overwrite replaces it"}
    assert sentence.startswith("3 things are not in")
    assert spoilt.read_bytes() == data
    assert (shell.out / "d/small7").read_bytes() == b"mine"
    found, _ = shell.fails(ExitCode.INCOMPLETE, host.drive, "--overwrite")
    assert [row["path"] for row in found["refused"]] == ["nodes/disk"], "no directory is replaced"
    assert found["copied_files"] == 2
    (shell.out / "nodes/disk").rmdir()
    shell.ok(host.drive)
    shell.has_everything()


def test_damage_is_named_and_the_rest_comes(
    host: Host, shell: Shell, assert_logs: Callable[..., Any]
) -> None:
    assert_logs(r"data\.mismatch|recall\.failed")
    host.forget_recalled()
    sound = host.image.read_bytes()
    (record,) = {
        number
        for number, spot in enumerate(tape_file(sound, 1))
        if spot.data and deterministic_bytes("big", 5 * MIB + 7)[MIB : MIB + 4096] in spot.data
    }
    try:
        change(host.image, 1, record)
        found, sentence = shell.fails(ExitCode.DAMAGE_FOUND, host.drive)
        (row,) = found["damaged"]
        assert row["path"] == "d/big"
        assert f"record {record} of tape file 1" in row["reason"]
        assert "1 files could not be read as they were written" in sentence
        assert not (shell.out / "d/big").exists()
        with host_mounted(host):
            found, _ = shell.fails(ExitCode.DAMAGE_FOUND, host.mountpoint / "d/big")
            (row,) = found["damaged"]
            assert row["reason"].startswith("it cannot be read from the tape; 'tapefs status")
    finally:
        host.image.write_bytes(sound)
    shell.ok(host.drive)
    shell.has_everything()


def test_unplugged_in_the_middle_the_same_command_goes_on(
    host: Host, shell: Shell, tmp_path: Path, assert_logs: Callable[..., Any]
) -> None:
    assert_logs("drive|usb|recall|emulator")
    host.forget_recalled()
    plan = tmp_path / "plan"
    plan.write_text("command unplug command=READ(6) skip=16\n")
    _, sentence = shell.fails(ExitCode.UNPLUGGED, f"{host.drive}?faults={plan}")
    assert "connect the drive, with the cartridge, and run the same command again" in sentence
    there = [path for path in below(shell.out) if stat.S_ISREG(path.lstat().st_mode)]
    assert there, "some of it was recalled"
    assert not [path for path in there if path.name.startswith(".tapefs-recalling")]
    assert shell.ok(host.drive)["found_files"] > 0
    shell.has_everything()


def test_ctrl_c_leaves_nothing_half_done(host: Host, shell: Shell) -> None:
    out = shell.out
    process = subprocess.Popen(
        [PROGRAMS / "tapefs", "recall", host.drive, "--to", out],
        env=host.env,
        stderr=subprocess.PIPE,
    )
    deadline_s = time.monotonic() + STUCK_S
    while not (out / ORDER_NAME).exists() and time.monotonic() < deadline_s:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=STUCK_S)
    if process.returncode:  # it may have been done already
        assert process.returncode == ExitCode.INTERRUPTED, said
        assert b"is whole, and the same command goes on with the rest" in said
    names = [name for _, _, names in os.walk(out) for name in names]
    assert not [name for name in names if name.startswith(".tapefs-recalling")]
    shell.ok(host.drive)
    shell.has_everything()


def test_of_several_volumes_each_from_where_it_is(
    host: Host, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_host() as other:
        other.env["TAPEFS_STATE_DIR"] = str(host.state)
        other.format("SECOND").mount()
        monkeypatch.setenv("TAPEFS_RUNTIME_DIR", other.env["TAPEFS_RUNTIME_DIR"])
        (other.mountpoint / "second").write_bytes(b"2")
        found = shell.ok("FIRST:d/big", "SECOND:second", "--drive", host.drive)
        other.umount()
    assert (found["copied_files"], sorted(os.listdir(shell.out))) == (2, ["big", "second"])


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["FIRST"], ExitCode.USAGE, "only what is in a mount can be recalled without --to"),
        (["FIRST", "--to", "{out}/none"], ExitCode.MOUNTPOINT_UNUSABLE, "name one that exists"),
        (["FIRST", "--to", "{image}"], ExitCode.MOUNTPOINT_UNUSABLE, "Not a directory"),
        (["NONE:x", "--to", "{out}"], ExitCode.USAGE, "'tapefs volumes' lists them"),
        (["FIRST:none", "--to", "{out}"], ExitCode.USAGE, "volume 'FIRST' has no 'none'"),
        (["/none/x", "--to", "{out}"], ExitCode.USAGE, "/none/x is not in a mount of tapefs"),
        (["{out}", "--to", "{out}"], ExitCode.USAGE, "is not in a mount of tapefs; name a path"),
        (
            ["FIRST:d", "FIRST:d", "--to", "{out}"],
            ExitCode.USAGE,
            "two places are called 'd'; recall them one by one",
        ),
        (
            ["FIRST", "FIRST:d", "--to", "{out}"],
            ExitCode.USAGE,
            "two of the things to recall would get the same name",
        ),
        (["FIRST", "--to", "{out}", "--wait", "long"], ExitCode.USAGE, "invalid float value"),
        (["FIRST", "--to", "{out}", "--drive", "st0"], ExitCode.USAGE, "'st0' names no drive"),
        (
            ["virtual:{out}/none.tap", "--to", "{out}"],
            ExitCode.NO_DRIVE,
            "create it first or correct the name",
        ),
    ],
)
def test_mistakes(host: Host, shell: Shell, words: list[str], code: int, sentence: str) -> None:
    filled = [word.format(out=shell.out, image=host.image) for word in words]
    drive = [] if "--drive" in words else ["--drive", host.drive]
    found, _, said = shell.run(*drive, *filled)
    assert sentence in said
    assert found == code


def test_a_cartridge_that_is_in_no_drive(host: Host, shell: Shell) -> None:
    with new_host() as other:
        other.format("OTHER")
        _, said = shell.fails(ExitCode.NOT_READY, "FIRST", "--drive", other.drive)
        assert said.startswith("the cartridge of volume 'FIRST' (")
        assert "holds 'OTHER'); insert it and run the same command again" in said
    _, said = shell.fails(ExitCode.NOT_READY, "FIRST")
    assert "or name its drive with --drive" in said


def test_a_cartridge_is_asked_for_and_waited_for(
    host: Host, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmounted, "_POLL_S", 0.01)
    slot, wrong, asked = out / "slot.tap", out / "wrong.tap", list[str]()
    drive = f"virtual:{slot}"
    trio.run(daemon.format_tape, f"virtual:{wrong}", "WRONG", None, False, nothing)

    def insert(image: Path) -> None:
        for suffix in ("", ".mam"):
            shutil.copy(f"{image}{suffix}", f"{slot}{suffix}")

    uuid = trio.run(daemon.list_generations, host.drive, out / "state", nothing)["volume"]

    def person(event: dict[str, Any]) -> None:
        asked.append(event["message"])
        if len(asked) == 1:
            insert(wrong)
        if len(asked) == 3:
            insert(host.image)

    assert daemon.find_cartridge(uuid, "FIRST", [drive], 60.0, person) == drive
    assert asked[0].startswith("insert the cartridge of volume 'FIRST' (")
    assert "cannot be used: " in asked[0]
    assert f"{drive} holds 'WRONG'" in asked[1]
    with pytest.raises(NotReady, match="is in no drive"):
        daemon.find_cartridge(uuid.replace("-", "0"), "ELSE", [drive], 0.05, nothing)


def test_with_a_mount(host: Host, shell: Shell) -> None:
    # What earlier tests have recalled is near.
    for kept in (host.state / "volumes").glob("*/recalled"):
        shutil.rmtree(kept)
    with host_mounted(host):
        _, said = shell.fails(ExitCode.USAGE, host.mountpoint / "d", "--to", host.mountpoint)
        assert said.endswith("is on the same tape; name a directory on a disk with --to")
        _, said = shell.fails(ExitCode.USAGE, host.mountpoint / "none")
        assert f"'ls {host.mountpoint}' shows what does" in said
        code, out, _ = shell.run("--json", host.mountpoint / "d", host.mountpoint / "large")
        found = json.loads(out)
        assert (code, found["copied_files"], found["to"]) == (0, 12, None)
        read_count = host.status()["since_mount"]["records_read"]
        quiet("cmp", host.mountpoint / "d/big", shell.tree / "d/big")
        assert host.status()["since_mount"]["records_read"] == read_count > 10
        # The drive is in use, but by a mount that can be asked.
        assert shell.ok(host.drive)["copied_files"] > 20
        path = host.mountpoint / "d/small9"
        source = MountSource(host.mountpoint, "volume")
        (item,) = source.items(b"d/small9", b"small9")
        data = path.read_bytes()
        with pytest.raises(retrieval.NotGiven, match="was changed while"), source.opened(item):
            path.write_bytes(data)


# -- without


class Shelf:
    """A source of files that are made up; what is read is noted."""

    volume = "volume"

    def __init__(self, files: dict[bytes, bytes], *, hashed: bool = True) -> None:
        self.files = files
        self.hashed = hashed
        self.read: list[bytes] = []
        self.damaged: set[bytes] = set()
        self.after_read: Callable[[], None] = lambda: None
        self.tape: TapeLayout | None = None
        self.stride = 1

    def items(self, origin: bytes, path: bytes) -> Iterator[Item]:
        # The tape has them backwards.
        for number, (name, data) in enumerate(self.files.items()):
            digest = hashlib.sha256(data).digest() if self.hashed else None
            inode = Inode(100 + number, REGULAR, os.getuid(), os.getgid(), size=len(data))
            inode.sha256, inode.mtime_ns = digest, 10**18
            yield Item(name, name, inode, 10_000 - number * self.stride)

    def layout(self) -> TapeLayout | None:
        return self.tape

    def xattrs(self, item: Item) -> dict[bytes, bytes]:
        return {}

    @contextmanager
    def opened(self, item: Item) -> Iterator[Callable[[int, int], bytes]]:
        self.read.append(item.origin)
        if item.origin in self.damaged:
            raise DataMismatch("record 1 is not what was written there")
        yield lambda offset, length: self.files[item.origin][offset : offset + length]
        self.after_read()


EVERYTHING = [(b"", b"")]


def noted(shelf: Shelf) -> list[bytes]:
    read, shelf.read = shelf.read, []
    return read


def test_in_the_order_of_the_tape(out: Path) -> None:
    shelf = Shelf({b"%d" % number: b"x" for number in range(1200)})
    assert retrieve(shelf, EVERYTHING, out, nothing).files_count == 1200
    assert shelf.read == [b"%d" % number for number in range(1199, -1, -1)]


def test_by_the_motion_of_the_tape_where_it_is_known(out: Path) -> None:
    shelf = Shelf({b"%d" % number: b"x" for number in range(40)})
    shelf.stride, ends = 100, tuple(range(150, 10_001, 150))
    shelf.tape = TapeLayout(8_000, ends, len(ends), 512 << 10)
    assert retrieve(shelf, EVERYTHING, out, nothing).files_count == 40
    blocks = [10_000 - 100 * int(name) for name in shelf.read]
    assert abs(blocks[0] - 8_000) < 1000, "it begins near the head"
    assert sorted(blocks) == list(range(6_100, 10_001, 100))
    assert blocks != sorted(blocks)


@pytest.mark.parametrize("hashed", [True, False])
def test_what_was_finished_is_not_read_again(out: Path, *, hashed: bool) -> None:
    shelf = Shelf({b"%d" % number: b"data %d" % number for number in range(5)}, hashed=hashed)

    def give_up() -> None:
        if len(shelf.read) == 3:
            raise KeyboardInterrupt

    shelf.after_read = give_up
    with pytest.raises(KeyboardInterrupt):
        retrieve(shelf, EVERYTHING, out, nothing)
    assert sorted(os.listdir(out)) == [ORDER_NAME, "3", "4"]
    (out / "3").write_bytes(b"dat4 3")
    shelf.after_read = lambda: None
    noted(shelf)
    found = retrieve(shelf, EVERYTHING, out, nothing)
    assert (found.found_count, found.files_count) == (1, 3)
    assert [path for path, _ in found.refused] == [b"3"]
    assert noted(shelf) == [b"2", b"1", b"0"]
    # The way without the proofs: the tape has to tell.
    (out / ORDER_NAME).write_bytes(b"rubbish")
    found = retrieve(shelf, EVERYTHING, out, nothing)
    assert (found.found_count, found.refused_count) == (4, 1)
    assert len(noted(shelf)) == (0 if hashed else 5)
    found = retrieve(shelf, EVERYTHING, out, nothing, overwrites=True)
    assert (found.files_count, found.found_count) == (1, 4)
    assert sorted(os.listdir(out)) == ["0", "1", "2", "3", "4"]


def test_a_hash_that_is_not_the_catalogs_keeps_a_file_from_its_name(out: Path) -> None:
    shelf = Shelf({b"f": b"what was written"})
    items = list(shelf.items(b"", b""))
    shelf.files[b"f"] = b"what is read now"
    shelf.items = lambda origin, path: iter(items)  # type: ignore[method-assign]
    found = retrieve(shelf, EVERYTHING, out, nothing)
    assert found.damaged == [(b"f", "its SHA-256 is not the one it was archived with")]
    assert os.listdir(out) == [ORDER_NAME]


def test_no_symbolic_link_leads_out(out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (out / "d").symlink_to("../elsewhere")
    shelf = Shelf({b"d/f": b"x", b"g": b"y"})
    found = retrieve(shelf, EVERYTHING, out, nothing)
    assert [path for path, _ in found.refused] == [b"d/f"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (out / "g").read_bytes() == b"y"


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        (errno.ENOSPC, SpoolFull, "is full; make room, then run the same command again"),
        (errno.EIO, MountpointUnusable, "look after its disk, then run the same command again"),
    ],
)
def test_a_disk_that_takes_nothing_more(
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[Exception],
    sentence: str,
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(placement, "write_at", full)
    with pytest.raises(kind, match=sentence):
        retrieve(Shelf({b"f": b"x"}), EVERYTHING, out, nothing)
    assert os.listdir(out) == [ORDER_NAME]


def test_what_the_disk_says_at_the_end_counts(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def syncfs(_: int) -> int:
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(retrieval, "_LIBC", Library)
    with pytest.raises(MountpointUnusable, match="does not keep what is put there"):
        retrieve(Shelf({b"f": b"x"}), EVERYTHING, out, nothing)


def test_a_name_the_disk_refuses_does_not_keep_the_others(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = placement.made_whole

    def refusing(directory: int, making: bytes, name: bytes, *, replaces: bool) -> Any:
        if name == b"a:b":
            raise OSError(errno.EINVAL, "Invalid argument")
        return make(directory, making, name, replaces=replaces)

    monkeypatch.setattr(placement, "made_whole", refusing)
    found = retrieve(Shelf({b"a:b": b"x", b"c": b"y"}), EVERYTHING, out, nothing)
    assert (found.files_count, found.refused) == (1, [(b"a:b", "Invalid argument")])


def test_what_cannot_be_kept_is_said_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chown", refused)
    found = retrieve(Shelf({b"%d" % n: b"x" for n in range(3)}), EVERYTHING, out, nothing)
    sentence = "the owner of 2 and 2 others could not be set; run the command as root for that"
    assert found.remarked() == [sentence]
    both = Retrieved()
    both.add(found)
    both.add(found)
    assert both.remarked() == [sentence.replace("2 others", "5 others")]


def test_memory_does_not_grow_with_the_number_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "LISTED_MAX", 10)
    peaks = []
    for count in (600, 6000):
        shelf = Endless(count)
        target = tmp_path / str(count)
        target.mkdir()
        tracemalloc.start()
        found = retrieve(shelf, EVERYTHING, target, nothing)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.refused_count == count
    assert peaks[1] < 2 * peaks[0]


class Endless(Shelf):
    """So many files, none of which can be read: what is tested is what is kept of them."""

    def __init__(self, count: int) -> None:
        super().__init__({})
        self._count = count

    def items(self, origin: bytes, path: bytes) -> Iterator[Item]:
        for number in range(self._count):
            name = b"%d" % number
            yield Item(name, name, Inode(number, REGULAR, size=1), number)

    @contextmanager
    def opened(self, item: Item) -> Iterator[Callable[[int, int], bytes]]:
        yield lambda offset, length: b""


def test_two_things_for_one_name(out: Path) -> None:
    shelf = Shelf({b"f": b"x"})
    with pytest.raises(UsageError, match="would get the same name"):
        retrieve(shelf, EVERYTHING * 2, out, nothing)
    with retrieval.destination(out), pytest.raises(DriveBusy):
        retrieve(shelf, EVERYTHING, out, nothing)


class Linked(Shelf):
    """One thing with two names, `a` and `b`."""

    def __init__(self, mode: int) -> None:
        super().__init__({b"a": b"content"})
        self.mode = mode

    def items(self, origin: bytes, path: bytes) -> Iterator[Item]:
        (item,) = super().items(origin, path)
        if not stat.S_ISREG(self.mode):
            item.inode.mode, item.inode.size, item.inode.sha256 = self.mode, 0, None
        item.inode.nlink = 2
        for name in (b"a", b"b"):
            yield replace(item, origin=name, path=name)


@pytest.mark.parametrize("mode", [REGULAR, stat.S_IFIFO | 0o600], ids=["file", "fifo"])
@pytest.mark.parametrize("missing", ["a", "b"])
def test_one_of_two_names_is_missing(out: Path, mode: int, missing: str) -> None:
    """What still has the other name is the same, and is given both."""
    shelf = Linked(mode)
    assert retrieve(shelf, EVERYTHING, out, nothing).is_complete
    (out / missing).unlink()
    found = retrieve(shelf, EVERYTHING, out, nothing)
    assert found.refused == []
    assert (out / "a").samefile(out / "b")


def test_something_else_with_the_second_name_stays(out: Path) -> None:
    (out / "b").write_bytes(b"mine")
    found = retrieve(Linked(REGULAR), EVERYTHING, out, nothing)
    assert [path for path, _ in found.refused] == [b"b"]
    assert (out / "b").read_bytes() == b"mine"
