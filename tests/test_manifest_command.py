"""Lists of checksums are what the tools of the trade accept, and leave nothing out in silence."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import xxhash
from test_shelf import a_catalog, new_rig

from tapefs import cli
from tapefs.archive import manifest_formats
from tapefs.archive.fixity import Fixity
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    from volume_rig import Rig

FILES = {
    "a": b"a" * 9000,
    "d/b c": b"b" * 70_000,
    "d/e/ümläut ☃": b"u",
    "d/100%": b"percent",
    "d/quo\"ted,&<x>'": b"q",
    "d/back\\slash": b"\\",
    "empty": b"",
    "big": b"big" * 400_000,
    "patched": b"patched" * 500_000,
}
PATCH = b"new bytes"
ODD = {b"new\nline": b"n", b"no text \xff": b"x", b"cr\r": b"r"}


async def build(rig: Rig, tree: Path) -> None:
    await rig.format()
    async with rig.mounted() as user:
        user.mkdir("d")
        user.mkdir("d/e")
        for path, data in FILES.items():
            await user.write(path, data)
        user.tree.link(user.find("a").ino, *user.place("d/hard link"))
        user.tree.make(*user.place("link"), stat.S_IFLNK | 0o777, 0, 0, target=b"a")
        for name, data in ODD.items():
            inode = user.tree.make(user.find("d").ino, name, stat.S_IFREG | 0o644, 0, 0)
            await user.volume.contents.open(inode.ino, write=True)
            await user.volume.contents.write(inode.ino, 0, data)
            await user.volume.contents.release(inode.ino, write=True)
        await user.sync()
        user.evict_everything()
        await user.write("patched", PATCH, 1_000_000)
    (tree / "d/e").mkdir(parents=True)
    for path, data in FILES.items():
        (tree / path).write_bytes(data)
    with (tree / "patched").open("r+b") as file:
        file.seek(1_000_000)
        file.write(PATCH)
    os.link(tree / "a", tree / "d/hard link")
    (tree / "link").symlink_to("a")
    for name, data in ODD.items():
        Path(os.fsdecode(os.fsencode(tree / "d") + b"/" + name)).write_bytes(data)


class Archive:
    """The command in this process, and the tree that is on the tape."""

    def __init__(self, rig: Rig, capsys: pytest.CaptureFixture[bytes], tree: Path) -> None:
        self.tree = tree
        self._capsys = capsys
        self._state = str(rig.state.parent)
        self.reading = ("--read", "--drive", f"virtual:{rig.tap}")

    def manifest(self, *words: str | Path, code: ExitCode = ExitCode.OK) -> tuple[str, str]:
        self._capsys.readouterr()
        found = cli.main(["manifest", "--state-dir", self._state, *map(str, words)])
        out, err = (text.decode(errors="backslashreplace") for text in self._capsys.readouterr())
        assert found == code, err
        return out, err


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rig, Path]:
    directory = tmp_path_factory.mktemp("manifest")
    rig = new_rig(directory)
    trio.run(build, rig, directory / "tree")
    return rig, directory / "tree"


@pytest.fixture
def archive(built: tuple[Rig, Path], capsysbinary: pytest.CaptureFixture[bytes]) -> Archive:
    return Archive(built[0], capsysbinary, built[1])


def tool(*words: str | Path, cwd: Path) -> str:
    """Run a tool that must succeed; all that it says."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    said = done.stdout.decode(errors="backslashreplace")
    assert done.returncode == 0, said
    return said


def script(name: str) -> Path:
    """A program of the virtual environment."""
    return Path(sys.executable).parent / name


def without(tree: Path, directory: Path, *names: bytes) -> Path:
    """A copy of the tree without the symbolic link and these names in it."""
    shutil.copytree(tree, directory, symlinks=True)
    (directory / "link").unlink()
    for name in names:
        os.unlink(os.fsencode(directory / "d") + b"/" + name)
    return directory


def test_sha256sum_checks_it(archive: Archive, tmp_path: Path) -> None:
    file = tmp_path / "list"
    said, _ = archive.manifest("RIG", "--output", file, *archive.reading)
    assert said.startswith(f"{file}: 13 files, ")
    assert "without 1 symbolic links, which have no content" in said
    checked = tool("sha256sum", "--check", "--strict", file, cwd=archive.tree)
    assert checked.count(": OK") == 13
    (tmp_path / "d").mkdir()
    out, _ = archive.manifest("RIG:d/e")
    assert out == f"{hashlib.sha256(b'u').hexdigest()}  ümläut ☃\n"
    assert archive.manifest("RIG:a")[0].endswith("  a\n")


def test_what_is_not_known_is_named_or_read(archive: Archive, tmp_path: Path) -> None:
    out, err = archive.manifest("RIG", code=ExitCode.INCOMPLETE)
    assert "  patched\n" not in out
    assert "tapefs: patched: no hash of it is known\n" in err
    assert err.splitlines()[-1] == (
        "tapefs: 1 files are not in the list, or without a checksum; they are named above, and "
        "--read computes what is not known"
    )
    for form in ("csv", "json", "hashdeep", "sha256sum"):
        out, err = archive.manifest("RIG", "--format", form, "--json", code=ExitCode.INCOMPLETE)
        events = [json.loads(line) for line in err.splitlines()]
        assert events[0]["event"] == ("lacking")
        listed = "patched" in out
        assert listed is (form in ("csv", "json"))
    digest = hashlib.sha256((archive.tree / "patched").read_bytes()).hexdigest()
    out, _ = archive.manifest("RIG:patched", *archive.reading)
    assert out == f"{digest}  patched\n"
    bag = tmp_path / "bag"
    bag.mkdir()
    _, err = archive.manifest(
        "RIG:d", "--format", "bagit", "--output", bag, code=ExitCode.INCOMPLETE
    )
    assert "no text \\xff: its name is no text (UTF-8), which this format needs" in err


def test_hashdeep_audits_it(archive: Archive, tmp_path: Path) -> None:
    tree = without(archive.tree, tmp_path / "tree", b"new\nline", b"cr\r")
    words = ("RIG", "--format", "hashdeep", "--output", tmp_path / "list", *archive.reading)
    _, err = archive.manifest(*words, code=ExitCode.INCOMPLETE)
    assert err.count("its name has a line break, which this format cannot hold") == 2
    audit = ("hashdeep", "-c", "sha256", "-r", "-l", "-vv", "-a", "-k", tmp_path / "list", ".")
    assert "Audit passed" in tool(*audit, cwd=tree)
    (tree / "a").write_bytes(b"A" * 9000)
    assert subprocess.run(
        list(map(str, audit)), cwd=tree, capture_output=True, check=False
    ).returncode


def test_bagit_validates_it(archive: Archive, tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    bag.mkdir()
    # What bagit 1.9 itself cannot read back: a percent sign, which RFC 8493 wants encoded.
    tree = without(archive.tree, bag / "data", b"no text \xff")
    words = ("RIG", "--format", "bagit", "--output", bag, *archive.reading)
    archive.manifest(*words, code=ExitCode.INCOMPLETE)
    assert b"  data/d/100%25\n" in (bag / "manifest-sha256.txt").read_bytes()
    (tree / "d/100%").rename(tree / "d/100%25")
    tool(script("python3"), "-m", "bagit", "--validate", bag, cwd=tmp_path)
    info = (bag / "bag-info.txt").read_text()
    assert "External-Identifier: urn:uuid:" in info
    (tree / "big").write_bytes(b"gib" * 400_000)
    done = subprocess.run(
        [script("python3"), "-m", "bagit", "--validate", bag], capture_output=True, check=False
    )
    assert done.returncode
    _, err = archive.manifest("RIG", "--format", "bagit", "--output", bag, code=ExitCode.USAGE)
    assert "manifest-sha256.txt exists already, and is left alone" in err


def test_ascmhl_verifies_it(archive: Archive, tmp_path: Path) -> None:
    tree = without(archive.tree, tmp_path / "RIG", b"no text \xff")
    words = ("RIG", "--format", "mhl", "--output", tree, *archive.reading)
    archive.manifest(*words, code=ExitCode.INCOMPLETE)
    assert len(list((tree / "ascmhl").glob("0001_RIG_*.mhl"))) == 1
    tool(script("ascmhl-debug"), "verify", tree, cwd=tmp_path)
    tool(script("ascmhl"), "diff", tree, cwd=tmp_path)
    tool(script("ascmhl"), "info", tree, cwd=tmp_path)
    # The next generation is the tool's own; it verifies ours on the way.
    tool(script("ascmhl"), "create", tree, cwd=tmp_path)
    assert len(list((tree / "ascmhl").glob("*.mhl"))) == 2
    (tree / "big").write_bytes(b"gib" * 400_000)
    done = subprocess.run(
        [script("ascmhl-debug"), "verify", tree], capture_output=True, check=False
    )
    assert done.returncode
    _, err = archive.manifest("RIG", "--format", "mhl", "--output", tree, code=ExitCode.USAGE)
    assert "ascmhl exists already, and is left alone" in err


def test_the_chain_names_what_it_names(archive: Archive, tmp_path: Path) -> None:
    """ascmhl computes the same C4 ID; of the empty input SMPTE ST 2114 prints it."""
    empty = hashlib.sha512(b"").digest()
    assert manifest_formats.c4_id(empty) == (
        "c459dsjfscH38cYeXXYogktxf4Cd9ibshE3BHUo6a58hBXmRQdZrAkZzsWcbWtDg5oQstpDuni4Hirj75GEmTc1sFT"
    )
    assert manifest_formats.c4_id(bytes(64)) == "c4" + "1" * 88


def test_csv_and_json(archive: Archive, tmp_path: Path) -> None:
    out, _ = archive.manifest("RIG", "--format", "csv", *archive.reading)
    rows = {row["path"]: row for row in csv.DictReader(out.splitlines(keepends=True))}
    assert rows["d/quo\"ted,&<x>'"]["size_bytes"] == "1"
    assert rows["d/new\\x0aline"]["sha256"] == hashlib.sha256(b"n").hexdigest()
    out, _ = archive.manifest("RIG", "--format", "json", *archive.reading)
    documents = [json.loads(line) for line in out.splitlines()]
    assert {row["path"] for row in documents} == rows.keys()
    for row in documents:
        name = row["path"]
        if "\\x" not in name:
            data = (archive.tree / name).read_bytes()
            assert row["xxh128"] == xxhash.xxh3_128(data).hexdigest()
            assert (row["sha256"], row["size_bytes"]) == (
                hashlib.sha256(data).hexdigest(),
                len(data),
            )
    assert [row["path"] for row in documents] == sorted(
        rows, key=lambda path: path.replace("/", "\0")
    )


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["NONE"], ExitCode.USAGE, "'tapefs volumes' lists them"),
        (["RIG:none"], ExitCode.USAGE, "volume 'RIG' has no 'none'"),
        (["RIG", "--format", "md5sum"], ExitCode.USAGE, "invalid choice: 'md5sum'"),
        (["RIG", "--format", "bagit"], ExitCode.USAGE, "recall the files into DIR/data"),
        (["RIG", "--format", "mhl", "--output", "{dir}/no"], ExitCode.USAGE, "files into DIR"),
        (["RIG", "--output", "{dir}"], ExitCode.USAGE, "exists already, and is left alone"),
        (["RIG", "--output", "{dir}/no/x"], ExitCode.USAGE, "No such file or directory; name"),
        (["RIG", "--read"], ExitCode.NOT_READY, "is in no drive"),
    ],
)
def test_mistakes(
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: ExitCode,
    sentence: str,
) -> None:
    monkeypatch.setenv("TAPEFS_RUNTIME_DIR", str(tmp_path / "run"))
    filled = [word.format(dir=tmp_path) for word in words]
    out, err = archive.manifest(*filled, code=code)
    assert (out, sentence in err) == ("", True), err


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    peaks = []
    for count in (600, 6000):
        catalog, volume = a_catalog(tmp_path / str(count), count)
        catalog.close(clean=True)
        tracemalloc.start()
        with (tmp_path / "list").open("wb") as sink:
            Fixity(volume, b"").write(manifest_formats.JsonLines(sink), lambda _, __: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len((tmp_path / "list").read_bytes().splitlines()) == 6000
    assert peaks[1] < 3 * peaks[0]
