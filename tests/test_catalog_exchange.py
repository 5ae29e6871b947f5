"""A catalog goes to another computer, which looks at every row, and writes by none of it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from test_shelf import Shell, a_volume, new_rig

from tapefs.archive import catalog_exchange, known_volumes
from tapefs.archive.catalogs import IMPORTED_NAME, VIEW_NAME
from tapefs.errors import DamagedTape, ExitCode, StateUnusable, TapefsError, UsageError
from tapefs.volume import sealed_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from volume_rig import Rig

    from tapefs.archive.known_volumes import KnownVolume


def nothing(_: dict[str, Any]) -> None:
    """Nobody watches."""


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = new_rig(tmp_path)
    await a_volume(rig)
    return rig


@pytest.fixture
async def exported(rig: Rig, tmp_path: Path) -> Path:
    path = tmp_path / "first.catalog"
    volume = known_volumes.find_volume(rig.state.parent, "RIG")
    catalog_exchange.export_catalog(volume, path, nothing)
    return path


def import_into(state: Path, path: Path) -> KnownVolume:
    return catalog_exchange.import_catalog(state, path, nothing)


async def test_another_computer_looks_into_a_cartridge(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, file = Shell(rig, capsys), tmp_path / "first.catalog"
    (header,) = [json.loads(here.run("catalog", "export", "RIG", str(file), "--json")[1])]
    assert (header["name"], header["generations"]) == ("RIG", 1)
    listed = [*here.lines("ls", "RIG:photos"), *here.lines("find", "*.nef")]
    rig.state = tmp_path / "elsewhere/volumes"
    there = Shell(rig, capsys)
    code, said, _ = there.run("catalog", "import", str(file))
    assert (code, said.startswith("volume 'RIG' (")) == (0, True)
    for entry in listed:
        entry["state"] = "migrated" if entry["state"] else None
    found = [*there.lines("ls", "RIG:photos"), *there.lines("find", "*.nef")]
    assert sorted(found, key=str) == sorted(listed, key=str)
    (volume,) = json.loads(there.run("volumes", "--json")[1])["volumes"]
    assert (volume["last_here_ns"], volume["files"]) == (None, 4)
    assert " never " in there.run("volumes")[1]
    assert json.loads(there.run("du", "RIG", "--json")[1].splitlines()[-1])["files"] == 4
    # And on to a third one; equal rows give equal bytes.
    again = tmp_path / "again.catalog"
    there.run("catalog", "export", "RIG", str(again))
    assert again.read_bytes() == file.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [
        "again.catalog", "cartridge.tap", "cartridge.tap.mam", "elsewhere", "first.catalog",
        "state",
    ]  # fmt: skip


async def test_a_mount_does_not_rely_on_it(rig: Rig, exported: Path, tmp_path: Path) -> None:
    """Of the right volume, and wrong in everything else: as if it had never been imported."""
    state = tmp_path / "elsewhere"
    lie = repacked(
        exported, tmp_path, "UPDATE dentry SET name = x'6c6965' WHERE name = x'6e6f746573'"
    )
    volume = import_into(state, lie)
    async with rig.mounted() as user:
        told = await user.snapshot()
    async with rig.mounted(state=state / "volumes") as user:
        assert await user.snapshot() == told
        await user.write("new", b"new")
    assert not (volume.directory / IMPORTED_NAME).exists()
    with pytest.raises(UsageError, match="made from its tape; 'tapefs ls"):
        import_into(state, exported)


async def test_only_a_newer_one_replaces_it(rig: Rig, exported: Path, tmp_path: Path) -> None:
    state, newer = tmp_path / "elsewhere", tmp_path / "newer"
    async with rig.mounted() as user:
        await user.write("new", b"new")
    volume = known_volumes.find_volume(rig.state.parent, "RIG")
    catalog_exchange.export_catalog(volume, newer, nothing)
    import_into(state, exported)
    import_into(state, newer)
    before = (import_into(state, newer).directory / IMPORTED_NAME).read_bytes()
    with pytest.raises(UsageError, match="a newer catalog of volume 'RIG' was imported before"):
        import_into(state, exported)
    found = import_into(state, newer)
    assert (found.directory / IMPORTED_NAME).read_bytes() == before
    assert os.listdir(found.directory) == [IMPORTED_NAME]


def repacked(exported: Path, directory: Path, *statements: str, **header: object) -> Path:
    """The exported catalog, changed by somebody who knows how it is sealed."""
    line, _, packed = exported.read_bytes().partition(b"\n")
    plain = directory / "plain.sqlite"
    plain.write_bytes(zstandard.ZstdDecompressor().stream_reader(packed).read())
    connection = sqlite3.connect(plain)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    data = plain.read_bytes()
    fields = sealed_json.unseal(line + b"\n")
    del fields["crc32c"]
    fields |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} | header
    path = directory / "changed.catalog"
    path.write_bytes(sealed_json.seal(fields) + zstandard.compress(data))
    return path


@pytest.mark.parametrize(
    ("statement", "header", "why"),
    [
        (
            "UPDATE dentry SET name = x'2e2e' WHERE name = x'6e6f746573'",
            {},
            "CHECK constraint failed",
        ),
        (
            "UPDATE dentry SET ino = 999 WHERE name = x'6e6f746573'",
            {},
            "names an inode that is not",
        ),
        ("UPDATE extent SET sequence = 77", {}, "has extents outside of any tape file"),
        ("CREATE TRIGGER t AFTER INSERT ON inode BEGIN DELETE FROM xattr; END", {}, "'t'"),
        ("UPDATE setting SET value = char(27) WHERE name = 'name'", {}, "no label says"),
        ("UPDATE setting SET value = 1000 WHERE name = 'record_bytes'", {}, ""),
        ("SELECT 1", {"volume": "00000000-0000-4000-8000-000000000000"}, "another volume"),
        ("SELECT 1", {"volume": "../../etc"}, "UUID is missing or malformed"),
        ("SELECT 1", {"sha256": "0" * 64}, "is not what was exported"),
        ("SELECT 1", {"bytes": 5}, "it holds more than it says"),
        ("SELECT 1", {"bytes": 1 << 40}, "is not what was exported"),
        ("SELECT 1", {"format": 2}, "it is no catalog of format 1"),
        ("SELECT 1", {"tapefs": "label"}, "it is no catalog of format 1"),
    ],
)
async def test_what_is_hostile_is_refused(
    exported: Path, tmp_path: Path, statement: str, header: dict[str, object], why: str
) -> None:
    state = tmp_path / "elsewhere"
    path = repacked(exported, tmp_path, statement, **header)
    with pytest.raises(DamagedTape, match="export it again with 'tapefs catalog export'") as said:
        import_into(state, path)
    assert why in str(said.value)
    assert str(said.value).isprintable()
    assert list(known_volumes.known_volumes(state)) == []
    assert not state.exists() or list((state / "volumes").glob("*")) == []


async def test_what_is_not_intact_is_refused(exported: Path, tmp_path: Path) -> None:
    """Bits flipped, cut short, or something else altogether: a sentence each time."""
    rng, sound, state = random.Random(1), exported.read_bytes(), tmp_path / "elsewhere"
    kinds: list[Callable[[], bytes]] = [
        lambda: flipped(sound, rng),
        lambda: sound[: rng.randrange(len(sound))],
        lambda: rng.randbytes(rng.randrange(5000)),
        lambda: sound[: sound.index(b"\n") + 1] + rng.randbytes(500),
    ]
    for _ in range(40):
        exported.write_bytes(rng.choice(kinds)())
        with pytest.raises(DamagedTape, match="is no catalog that can be imported"):
            import_into(state, exported)
    assert list(known_volumes.known_volumes(state)) == []


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


async def test_it_does_not_unpack_without_end(tmp_path: Path, exported: Path) -> None:
    line, _, _ = exported.read_bytes().partition(b"\n")
    exported.write_bytes(line + b"\n" + zstandard.compress(bytes(1 << 28)))
    with pytest.raises(DamagedTape, match="it holds more than it says"):
        import_into(tmp_path / "elsewhere", exported)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["export", "NONE", "{dir}/x"], ExitCode.USAGE, "'tapefs volumes' lists them"),
        (["export", "RIG", "{dir}/there"], ExitCode.USAGE, "exists already; name a file"),
        (["export", "RIG", "{dir}/none/x"], ExitCode.USAGE, "No such file or directory; name"),
        (["import", "{dir}/none"], ExitCode.USAGE, "No such file or directory; name another"),
        (["import", "{dir}"], ExitCode.USAGE, "Is a directory; name another file"),
        (["import", "{dir}/there"], ExitCode.DAMAGED_TAPE, "is no catalog that can be imported"),
    ],
)
async def test_mistakes(
    rig: Rig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: ExitCode,
    sentence: str,
) -> None:
    (tmp_path / "there").write_bytes(b"mine")
    found, out, err = Shell(rig, capsys).run(
        "catalog", *(word.format(dir=tmp_path) for word in words)
    )
    assert (found, out) == (code, "")
    assert sentence in err
    assert (tmp_path / "there").read_bytes() == b"mine"


async def test_a_disk_that_is_full(
    rig: Rig, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    volume = known_volumes.find_volume(rig.state.parent, "RIG")
    monkeypatch.setattr(catalog_exchange, "_write", full)
    with pytest.raises(UsageError, match="cannot be written: No space left"):
        catalog_exchange.export_catalog(volume, tmp_path / "other", nothing)
    monkeypatch.setattr("tapefs.archive.catalog_exchange.import_view", full_disk)
    with pytest.raises(StateUnusable, match="full"):
        import_into(tmp_path / "elsewhere", exported)
    assert not (tmp_path / "other").exists()
    assert not (volume.directory / VIEW_NAME).with_suffix(".new").exists()


def full_disk(*_: object) -> TapefsError:
    raise StateUnusable("the disk is full")
