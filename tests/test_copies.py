"""`tapefs find` by how many cartridges have a content, and how far it is from the beginning."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from test_shelf import ANYTHING, Shell, a_catalog, new_rig

from tapefs.archive import shelf
from tapefs.archive.catalogs import LIVE_NAME
from tapefs.archive.known_volumes import KnownVolume
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

    from volume_rig import Rig


async def a_cartridge(directory: Path, name: str, files: dict[str, bytes]) -> Rig:
    rig = new_rig(directory)
    rig.tap = directory / f"{name}.tap"
    rig.label = replace(rig.label, name=name)
    await rig.format()
    async with rig.mounted() as user:
        for path, data in files.items():
            await user.write(path, data)
        await user.sync()
        if "changed" in files:
            user.evict_everything()
            await user.write("changed", b"!", 1_000_000)
        await user.sync()
        if "waiting" in files:
            await user.write("waiting", b"?", 1)
            user.volume.catalog.commit()
            user.crash()
    return rig


@pytest.fixture
async def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Three cartridges, with 'x' on all of them and 'y' on two."""
    x, y = b"x" * 9000, b"y" * 70_000
    own = {"one": x, "one too": x, "two": y, "alone": b"1", "empty": b"", "changed": x * 333}
    await a_cartridge(tmp_path, "A", own)
    await a_cartridge(tmp_path, "B", {"uno": x, "due": y, "empty": b""})
    rig = await a_cartridge(tmp_path, "C", {"un": x, "seul": b"3", "seul aussi": b"3"})
    return Shell(rig, capsys)


async def test_what_other_cartridges_have(shell: Shell) -> None:
    found = {row["path"]: row["also_on"] for row in shell.lines("find", "--duplicates")}
    assert found == {
        "one": ["B", "C"],
        "one too": ["B", "C"],
        "two": ["B"],
        "uno": ["A", "C"],
        "due": ["A"],
        "un": ["A", "B"],
    }
    assert shell.found("*e*", "--size", "1K..", "--duplicates") == ["due", "one", "one too"]
    code, out, err = shell.run("find", "--duplicates")
    assert code == 0
    assert any(line.endswith(" A:/two  also on B") for line in out.splitlines())
    assert err.count(" has ") == 3
    assert "1 files have no known hash" in err


async def test_what_no_other_cartridge_is_known_to_have(shell: Shell) -> None:
    found = {row["path"]: row["also_on"] for row in shell.lines("find", "--single-copy")}
    # Twice on one cartridge is once when that is lost.
    assert found == {"alone": [], "changed": None, "seul": [], "seul aussi": []}
    code, out, err = shell.run("find", "--single-copy", "[ac]*")
    assert code == 0
    assert [line.rpartition("A:/")[2] for line in out.splitlines()] == [
        "alone",
        "changed  (its hash is not known)",
    ]
    assert "tapefs: A (" in err
    assert ") has 2, 2.9 MiB" in err
    code, out, err = shell.run("find", "--single-copy", "nothing")
    assert (code, out) == (0, "")
    assert "nothing like that is on any volume known here" in err
    code, _, err = shell.run("find", "--single-copy", "--duplicates")
    assert code == ExitCode.USAGE
    assert "not allowed with argument" in err


async def test_a_volume_that_cannot_be_read_counts_as_having_nothing(shell: Shell) -> None:
    state = shell._words[1]
    other = next(path for path in known(state) if path.name == "B")
    (other.directory / LIVE_NAME).write_bytes(b"rubbish")
    code, out, err = shell.run("find", "--single-copy", "two")
    assert code == ExitCode.STATE_UNUSABLE
    assert "A:/two" in out
    assert "1 volumes could not be read" in err


def known(state: str) -> list[KnownVolume]:
    from pathlib import Path  # noqa: PLC0415

    from tapefs.archive import known_volumes  # noqa: PLC0415

    return list(known_volumes.known_volumes(Path(state)))


async def test_where_it_is_and_how_far(shell: Shell) -> None:
    rows = {row["path"]: row for row in shell.lines("find")}
    assert (rows["empty"]["start_block"], rows["empty"]["winding_s"]) == (None, None)
    assert rows["two"]["start_block"] == 2
    assert rows["two"]["winding_s"] == 2.0
    volume = known(shell._words[1])[0]
    reach = shelf.Reach(volume)
    # A whole tape of a drive with a single track takes about a minute.
    assert [round(reach.wind_s(block)) for block in (2, 760_000, 1_520_000)] == [2, 32, 62]


async def test_a_file_that_waits_is_no_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await a_cartridge(tmp_path, "A", {"f": b"data"})
    rig = await a_cartridge(tmp_path, "B", {"f": b"data", "waiting": b"data"})
    found = Shell(rig, capsys).lines("find", "--single-copy")
    assert [(row["volume"], row["path"]) for row in found] == [("B", "waiting")]


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    peaks = []
    for count in (600, 6000):
        catalog, volume = a_catalog(tmp_path / str(count), count)
        catalog._database.execute("UPDATE inode SET sha256 = randomblob(32), size = 5")
        catalog.commit()
        catalog.close(clean=True)
        tracemalloc.start()
        with shelf.Copies([volume, KnownVolume(tmp_path / "none", "other", "")]) as copies:
            assert len(copies.problems) == 1
            for entry in shelf.find(volume, b"*", ANYTHING):
                assert copies.elsewhere(volume, entry) == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 3 * peaks[0]
