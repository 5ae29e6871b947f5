"""What was ever mounted here stays searchable, in use or not, and nobody is disturbed by that."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from catalog_rig import DIRECTORY, make_file, new_live
from first_light_rig import PROGRAMS, STUCK_S, Host, new_host
from volume_rig import Rig

from tapefs import cli
from tapefs.archive import known_volumes, shelf, waiting
from tapefs.archive.catalogs import LIVE_NAME, VERIFIED_NAME, VIEW_NAME
from tapefs.archive.known_volumes import KnownVolume
from tapefs.archive.open_file import FileState
from tapefs.catalog import Catalog, Wanted, remove_database
from tapefs.catalog.shelf import PAGE_ROWS
from tapefs.cli.shelf import entry_text
from tapefs.cli.terminal import time_text
from tapefs.entries import Inode, printable
from tapefs.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

ODD = b"odd \xff\n\x1b[31m\\"
ANYTHING = Wanted()


def new_rig(directory: Path) -> Rig:
    rig = Rig(directory)
    rig.state = directory / "state" / "volumes"
    return rig


async def a_volume(rig: Rig) -> str:
    """A volume with some files, unmounted; its UUID."""
    await rig.format()
    async with rig.mounted() as user:
        user.mkdir("photos")
        user.mkdir("photos/2019")
        await user.write("photos/2019/one.nef", b"1" * 5000)
        await user.write("photos/two.nef", b"2" * 70_000)
        await user.write("notes", b"n")
        user.tree.link(user.find("notes").ino, *user.place("photos/notes too"))
        user.tree.make(*user.place("link"), stat.S_IFLNK | 0o777, 0, 0, target=b"photos")
        user.tree.set_attributes(user.find("notes").ino, mtime_ns=10**18)
        await user.sync()
        user.evict_everything()
    return str(rig.label.volume_uuid)


class Shell:
    """The commands in this process, on the state directory of a rig."""

    def __init__(self, rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
        self._words = ["--state-dir", str(rig.state.parent)]
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self._capsys.readouterr()
        code = cli.main([*words, *self._words])
        out, err = self._capsys.readouterr()
        return code, out, err

    def lines(self, *words: str) -> list[dict[str, Any]]:
        """The JSON lines of a command that must succeed in silence."""
        code, out, err = self.run(*words, "--json")
        assert (code, err) == (ExitCode.OK, "")
        return [json.loads(line) for line in out.splitlines()]

    def paths(self, *words: str) -> list[str]:
        """The paths in them."""
        return [line["path"] for line in self.lines(*words)]

    def found(self, *words: str) -> list[str]:
        """What `tapefs find` finds, sorted."""
        return sorted(self.paths("find", *words))


async def test_a_volume_keeps_its_name_while_its_view_is_written(tmp_path: Path) -> None:
    rig = new_rig(tmp_path)
    await rig.format()
    async with rig.mounted() as user:
        await user.write("f", b"x")
        await user.sync()
        # As `TapeView.apply` does for as long as a journal is.
        with user.volume.view._writer.transaction():
            (found,) = waiting.volumes(rig.state.parent)
        assert found.name == rig.label.name
        user.crash()


@pytest.mark.parametrize("only_view", [False, True])
async def test_the_questions_of_a_shelf(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], only_view: bool
) -> None:
    rig = new_rig(tmp_path)
    uuid = await a_volume(rig)
    if only_view:
        remove_database(rig.state / uuid / LIVE_NAME)
    shell = Shell(rig, capsys)
    name = rig.label.name
    assert shell.paths("ls", name) == ["link", "notes", "photos"]
    assert shell.paths("ls", f"{uuid[:6]}:/photos/") == [
        "photos/2019",
        "photos/notes too",
        "photos/two.nef",
    ]
    (notes,) = shell.lines("ls", f"{name}:photos/../notes")
    assert notes["sha256"] == hashlib.sha256(b"n").hexdigest()
    assert (notes["size_bytes"], notes["mtime_ns"], notes["state"]) == (1, 10**18, "migrated")
    assert (notes["volume"], notes["uuid"], notes["waiting_bytes"]) == (name, uuid, 0)
    assert [line["target"] for line in shell.lines("ls", f"{name}:link")] == ["photos"]

    assert shell.found("*.nef") == ["photos/2019/one.nef", "photos/two.nef"]
    assert shell.found("/photos/*") == [
        "photos/2019",
        "photos/2019/one.nef",
        "photos/notes too",
        "photos/two.nef",
    ]
    assert shell.found("--size", "5K..") == ["photos/two.nef"]
    assert shell.found("--size", "2..5000") == ["photos/2019/one.nef"]
    assert shell.found("--size", "..1") == ["notes", "photos/notes too"]
    assert shell.found("--size", "5000") == ["photos/2019/one.nef"]
    assert shell.found("--size", "9999999P..") == shell.found("--newer", "9990-01-01") == []
    digest = hashlib.sha256(b"n").hexdigest().upper()
    assert shell.found("--sha256", digest) == ["notes", "photos/notes too"]
    moment = dt.datetime.fromtimestamp(10**9, dt.UTC)
    assert "notes" not in shell.found("--newer", moment.isoformat())
    earlier = (moment - dt.timedelta(seconds=1)).isoformat()
    assert "notes" in shell.found("--newer", earlier)

    sums = {line["path"]: (line["files"], line["size_bytes"], line["tape_bytes"])
            for line in shell.lines("du", name)}  # fmt: skip
    assert sums == {"photos": (3, 75_001, 75_001), "": (4, 75_001, 75_001)}
    assert [line["size_bytes"] for line in shell.lines("du", f"{name}:notes")] == [1]

    code, out, _ = shell.run("volumes", "--json")
    (volume,) = json.loads(out)["volumes"]
    assert (code, volume["name"], volume["files"]) == (ExitCode.OK, name, 4)
    assert (volume["size_bytes"], volume["generations"]) == (75_001, 1)
    assert volume["used_bytes"] > 75_001
    assert (volume["waiting_files"], volume["proven_good_ns"]) == (0, None)


async def test_what_people_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig = new_rig(tmp_path)
    uuid = await a_volume(rig)
    shell, name = Shell(rig, capsys), rig.label.name
    _, out, err = shell.run("find", "two*")
    assert out.startswith("-rw-r--r--")
    assert out.endswith(f"migrated    {name}:/photos/two.nef\n")
    assert err == f"tapefs: insert {name} ({uuid[:8]}) for 1, about 2 s of winding\n"
    assert "nothing like that" in shell.run("find", "nothing")[2]
    assert "link -> photos\n" in shell.run("ls", name)[1]
    assert "/photos\n" in shell.run("du", name)[1]
    assert "never verified" in shell.run("volumes")[1]
    shutil.rmtree(rig.state)
    assert "no volume is known" in shell.run("volumes")[1]


async def test_what_waits_is_told_and_when_a_volume_was_proven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = new_rig(tmp_path)
    await a_volume(rig)
    async with rig.mounted() as user:
        for tape_file in list(user.volume.view.tape_files()):
            user.volume.verifications.note(tape_file, [], 2 * 10**18)
        await user.write("new", b"n" * 100)
        await user.fsync("new")
        # Asked while everything is open.
        shell = Shell(rig, capsys)
        states = {line["path"]: line["state"] for line in shell.lines("ls", rig.label.name)}
        assert states == {"link": None, "new": "resident", "notes": "migrated", "photos": None}
        assert shell.lines("ls", f"{rig.label.name}:new")[0]["waiting_bytes"] == 100
        assert [line["waiting_bytes"] for line in shell.lines("du", rig.label.name)] == [0, 100]
        (volume,) = json.loads(shell.run("volumes", "--json")[1])["volumes"]
        assert (volume["waiting_files"], volume["waiting_bytes"]) == (1, 100)
        assert volume["proven_good_ns"] == 2 * 10**18
        assert "1 files, 100 B" in shell.run("volumes")[1]
        user.crash()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ls", "NONE"], "is called 'NONE'; 'tapefs volumes' lists them"),
        (["ls", ""], "'tapefs volumes' lists them"),
        (["ls", "RIG:photos/none"], "volume 'RIG' has no 'photos/none'"),
        (["ls", "RIG:link/2019"], "volume 'RIG' has no 'link/2019'"),
        (["du", "RIG:none"], "volume 'RIG' has no 'none'"),
        (["find", "--size", "big"], "--size big is no range of sizes; write it like"),
        (["find", "--size", "1..x"], "--size 1..x is no range of sizes; write it like"),
        (["find", "--newer", "yesterday"], "--newer yesterday is no time; write it like"),
        (["find", "--sha256", "abc"], "that has 64 hexadecimal digits"),
    ],
)
async def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    rig = new_rig(tmp_path)
    await a_volume(rig)
    code, out, err = Shell(rig, capsys).run(*words)
    assert (code, out) == (ExitCode.USAGE, "")
    assert sentence in err


async def test_a_volume_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = new_rig(tmp_path)
    uuid = await a_volume(rig)
    other = rig.state / "00000000-0000-4000-8000-000000000000"
    other.mkdir()
    for name in (LIVE_NAME, VIEW_NAME):
        (other / name).write_bytes(b"rubbish" * 1000)
    (rig.state / uuid / VERIFIED_NAME).write_bytes(b"rubbish" * 1000)
    shell = Shell(rig, capsys)
    for words, found in ((["find", "*.nef"], "two.nef"), (["volumes"], rig.label.name)):
        code, out, err = shell.run(*words)
        assert code == ExitCode.STATE_UNUSABLE
        assert found in out
        assert "1 volumes could not be read and are missing here" in err
        assert str(other) in err


async def test_a_volume_that_was_never_mounted_has_no_spool(tmp_path: Path) -> None:
    rig = new_rig(tmp_path)
    uuid = await a_volume(rig)
    remove_database(rig.state / uuid / LIVE_NAME)
    for wanted in (rig.label.name, uuid, uuid[:5]):
        assert known_volumes.find_volume(rig.state.parent, wanted).uuid == uuid
    with pytest.raises(UsageError, match="never mounted"):
        waiting.find_volume(rig.state.parent, uuid)
    assert list(waiting.volumes(rig.state.parent)) == []


def a_catalog(directory: Path, files_count: int) -> tuple[Catalog, KnownVolume]:
    """A live catalog with so many files in one directory, in use."""
    directory.mkdir()
    catalog = Catalog.open(new_live(directory))
    parent = catalog.new_inode(DIRECTORY, 0, 0, now_ns=1)
    catalog.link(1, b"d", parent.ino)
    for number in range(files_count):
        make_file(catalog, b"%06d" % number, parent.ino)
    catalog.commit()
    return catalog, KnownVolume(directory, "uuid", "a:b")


def test_every_name_comes_once_however_many_there_are(tmp_path: Path) -> None:
    count = 2 * PAGE_ROWS
    catalog, volume = a_catalog(tmp_path / "v", count)
    expected = [b"d/%06d" % number for number in range(count)]
    assert [entry.path for entry in shelf.listing(volume, b"d")] == expected
    assert [entry.path for entry in shelf.find(volume, b"0*", ANYTHING)] == expected
    catalog.close(clean=True)


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    peaks = []
    for count in (2 * PAGE_ROWS, 40 * PAGE_ROWS):
        catalog, volume = a_catalog(tmp_path / str(count), count)
        catalog.close(clean=True)
        tracemalloc.start()
        assert sum(1 for _ in shelf.listing(volume, b"d")) == count
        assert sum(1 for _ in shelf.find(volume, b"*", ANYTHING)) == count + 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Twenty times the files. What Python had free before it counted makes both figures vary.
    assert peaks[1] < 4 * peaks[0]


def test_who_reads_slowly_does_not_keep_the_log_from_being_folded(tmp_path: Path) -> None:
    catalog, volume = a_catalog(tmp_path / "v", 2 * PAGE_ROWS)
    for rows in (shelf.listing(volume, b"d"), shelf.find(volume, b"*", ANYTHING)):
        next(rows)
        catalog.remove_inode(make_file(catalog, b"other").ino)
        catalog.commit()
        connection = sqlite3.connect(volume.live_path)
        # Waits for no reader; the first figure would be 1 if one was in the way.
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        connection.close()
        catalog.unlink(1, b"other")
        assert sum(1 for _ in rows) >= 2 * PAGE_ROWS - 1
    catalog.close(clean=True)


@pytest.mark.parametrize("words", [["ls", "RIG"], ["find"], ["find", "--json"], ["du", "RIG"]])
async def test_who_has_read_enough_may_go(tmp_path: Path, words: list[str]) -> None:
    rig = new_rig(tmp_path)
    await a_volume(rig)
    done = run_for_nobody([*words, "--state-dir", str(rig.state.parent)])
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")


def run_for_nobody(words: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run `tapefs WORDS...` into a pipe that nobody reads from."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [PROGRAMS / "tapefs", *words],
            stdout=writing,
            stderr=subprocess.PIPE,
            # Output that is buffered goes out at the end only.
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            timeout=STUCK_S,
            check=False,
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (None, "-rw-r--r--     0     0              5 WHEN resident    name"),
        (100, "-rw-r--r--     0     0              5 WHEN resident    name"),
        (80, "-rw-r--r--              5 WHEN resident    name"),
        (60, "             5 DAY resident    name"),
    ],
)
def test_a_narrow_terminal_gets_less_of_a_file(columns: int | None, line: str) -> None:
    inode = Inode(2, stat.S_IFREG | 0o644, size=5, mtime_ns=10**18)
    text = entry_text(shelf.ShelfEntry(b"name", inode, FileState.RESIDENT, 0), "name", columns)
    when = time_text(inode.mtime_ns)
    assert text == line.replace("WHEN", when).replace("DAY", when.partition(" ")[0])


async def test_names_of_volumes_may_hold_colons(tmp_path: Path) -> None:
    rig = new_rig(tmp_path)
    rig.label = replace(rig.label, name="a:b")
    await rig.format()
    async with rig.mounted() as user:
        user.mkdir("c:d")
    for text, path in (("a:b", b""), ("a:b:", b""), ("a:b:c:d", b"c:d")):
        volume, found = known_volumes.split_place(rig.state.parent, text)
        assert (volume.name, found) == ("a:b", path)


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


@pytest.mark.fuse
def test_through_the_commands_mounted_and_not(host: Host) -> None:
    host.mount("settle=0")
    (host.mountpoint / "d").mkdir()
    Path(os.fsdecode(os.fsencode(host.mountpoint / "d") + b"/" + ODD)).write_bytes(b"x" * 5000)
    host.ok("sync", host.mountpoint)
    shown = printable(b"d/" + ODD)
    for mounted in (True, False):
        if not mounted:
            host.umount()
        (line,) = host.ok("find", "odd*", "--json").splitlines()
        assert json.loads(line)["path"] == shown == "d/odd \\xff\\x0a\\x1b[31m\\x5c"
        assert f"FIRST:/{shown}\n" in host.ok("find", "odd*")
        assert host.ok("ls", "FIRST:d").endswith(f" {printable(ODD)}\n")
        assert host.ok("ls", f"FIRST:d/{os.fsdecode(ODD)}").endswith(f" {printable(ODD)}\n")
        (volume,) = json.loads(host.ok("volumes", "--json"))["volumes"]
        assert (volume["files"], volume["generations"]) == (1, 0 if mounted else 1)
        assert json.loads(host.ok("du", "FIRST", "--json").splitlines()[-1])["size_bytes"] == 5000
    # Whoever asked left nothing that keeps the next mount from its catalog.
    host.mount()
    assert (host.mountpoint / "d").is_dir()
    host.umount()
