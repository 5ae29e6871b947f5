"""Generations: any checkpoint is mounted again, and gives back what was deleted or overwritten."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from crash_rig import logs_expected
from first_light_rig import Host, new_host
from volume_rig import RECORD_BYTES, Rig

from tapefs.archive.generations import generations
from tapefs.errors import DamagedTape, FilesystemError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class History:
    """A cartridge with three generations and what each of them showed."""

    def __init__(self, directory: Path) -> None:
        self.rig = Rig(directory)
        self.shown: list[dict[str, tuple[Any, ...]]] = []

    async def write(self) -> History:
        """Make the three generations."""
        await self.rig.format()
        async with self.rig.mounted() as user:
            user.mkdir("/d")
            await user.write("/d/kept", b"kept" * 40_000)
            await user.write("/d/deleted", b"deleted" * 30_000)
            await user.write("/changed", b"first" * 50_000)
            await self._note(user)
        async with self.rig.mounted() as user:
            user.unlink("/d/deleted")
            await user.write("/changed", b"SECOND", offset=100_000)
            user.rename("/d/kept", "/d/moved")
            await self._note(user)
        async with self.rig.mounted() as user:
            await user.truncate("/changed", 10)
            await user.write("/d/new", b"new")
            await self._note(user)
        return self

    async def _note(self, user: Any) -> None:
        await user.sync()
        self.shown.append(await user.snapshot())


@pytest.mark.parametrize("from_tape_alone", [False, True])
async def test_every_generation_shows_what_was_there(tmp_path: Path, from_tape_alone: bool) -> None:
    history = await History(tmp_path).write()
    state = tmp_path / "elsewhere" if from_tape_alone else None
    # Not in order: each stands for itself.
    for number in (2, 1, 3, 1):
        async with history.rig.mounted(state=state, generation=number) as user:
            assert await user.snapshot() == history.shown[number - 1]
    async with history.rig.mounted(state=state) as user:
        assert await user.snapshot() == history.shown[-1]


async def test_a_generation_changes_neither_tape_nor_todays_catalog(tmp_path: Path) -> None:
    history = await History(tmp_path).write()
    rig = history.rig
    before = rig.tap.read_bytes()
    async with rig.mounted(generation=1) as user:
        assert not user.volume.writable
        with pytest.raises(FilesystemError, match="mounted read-only"):
            await user.write("/d/kept", b"no")
        await user.read("/d/deleted")
    assert rig.tap.read_bytes() == before
    async with rig.mounted() as user:
        assert await user.snapshot() == history.shown[-1]
        await user.write("/d/later", b"later")
        await user.sync()
        expected = await user.snapshot()
    async with rig.mounted(state=tmp_path / "elsewhere") as user:
        assert await user.snapshot() == expected


async def test_what_waits_for_tape_outlives_a_look_at_the_past(tmp_path: Path) -> None:
    history = await History(tmp_path).write()
    async with history.rig.mounted() as user:
        await user.write("/waiting", b"accepted")
        await user.fsync("/waiting")
        user.crash()
    async with history.rig.mounted(generation=1) as user:
        assert await user.snapshot() == history.shown[0]
    async with history.rig.mounted() as user:
        assert await user.read("/waiting") == b"accepted"


async def test_the_list(tmp_path: Path) -> None:
    history = await History(tmp_path).write()
    async with history.rig.mounted(read_only=True) as user:
        found = list(generations(user.volume.view))
        files = list(user.volume.view.tape_files())
    # One segment, then its checkpoint, three times.
    assert [(one.number, one.sequence) for one in found] == [(1, 2), (2, 4), (3, 6)]
    assert [one.written_ns for one in found] == [files[at].written_ns for at in (1, 3, 5)]
    assert [one.new_bytes for one in found] == [
        files[at].record_count * RECORD_BYTES for at in (0, 2, 4)
    ]


@pytest.mark.parametrize("number", [-1, 0, 4, 1 << 40])
async def test_a_generation_that_never_was(tmp_path: Path, number: int) -> None:
    history = await History(tmp_path).write()
    with pytest.raises(UsageError, match="it has 1 to 3"):
        async with history.rig.mounted(generation=number):
            pytest.fail("mounted")


async def test_without_its_checkpoint_a_generation_is_in_the_journals(tmp_path: Path) -> None:
    history = await History(tmp_path).write()
    spoil(history.rig, b"catalog-00000001.sqlite.zst")
    with logs_expected():
        async with history.rig.mounted(generation=1) as user:
            assert await user.snapshot() == history.shown[0]


async def test_a_generation_that_cannot_be_read_names_the_way_out(tmp_path: Path) -> None:
    history = await History(tmp_path).write()
    rig = history.rig
    spoil(rig, b"catalog-00000001.sqlite.zst")
    spoil(rig, b"segments/00000001.ndjson")
    with (
        logs_expected(),
        pytest.raises(DamagedTape, match=r"generation 1 cannot be read.*mount another one"),
    ):
        async with rig.mounted(generation=1):
            pytest.fail("mounted")
    async with rig.mounted(generation=2) as user:
        assert await user.snapshot() == history.shown[1]


def spoil(rig: Rig, member: bytes) -> None:
    """Change a byte of the data of one of tapefs's own members."""
    image = bytearray(rig.tap.read_bytes())
    image[image.index(member) + 512 + 64] ^= 1
    rig.tap.write_bytes(image)


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


@pytest.mark.fuse
def test_a_deleted_file_comes_back_through_the_commands(host: Host) -> None:
    host.mount()
    (host.mountpoint / "thesis.tex").write_text("all of it")
    host.ok("umount", host.mountpoint)
    host.mount()
    (host.mountpoint / "thesis.tex").write_text("oops")
    listed = json.loads(host.ok("generations", "--json", host.mountpoint))
    assert [row["number"] for row in listed["generations"]] == [1]
    host.ok("umount", host.mountpoint)

    listed = json.loads(host.ok("generations", "--json", host.drive))
    assert [row["number"] for row in listed["generations"]] == [1, 2]
    assert "tape file" in host.ok("generations", host.drive)

    host.mount("", "--generation", "1")
    assert (host.mountpoint / "thesis.tex").read_text() == "all of it"
    with pytest.raises(OSError, match="Read-only"):
        (host.mountpoint / "thesis.tex").write_text("no")
    assert json.loads(host.ok("status", "--json", host.mountpoint))["generation"] == 1
    host.ok("umount", host.mountpoint)

    host.mount()
    assert (host.mountpoint / "thesis.tex").read_text() == "oops"
    assert json.loads(host.ok("status", "--json", host.mountpoint))["generation"] is None
    host.ok("umount", host.mountpoint)
    refused = host.tapefs("mount", "--generation", "9", host.drive, host.mountpoint)
    assert refused.code == 2
    assert "has no generation 9; it has 1 to 2" in refused.stderr.splitlines()[-1]
