"""A mount may end without a checkpoint: a closing will do, and the tape stays complete."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from catalog_rig import described, dump, new_view, segment
from crash_rig import logs_expected, scratch
from volume_rig import RECORD_BYTES, Rig
from volume_rig import dump as rows

from tapefs.archive.closing import closing_suffices
from tapefs.archive.generations import generations
from tapefs.archive.verify import Scope
from tapefs.catalog import TapeReader, TapeView
from tapefs.config import Config
from tapefs.entries import InodeEntry, LinkEntry, TapeFile, TapeFileKind
from tapefs.errors import DamagedTape, StateUnusable
from tapefs.volume.segment import SegmentBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tapefs.volume.segment import Place

MIB = 1 << 20
SEGMENT, CLOSING = TapeFileKind.SEGMENT, TapeFileKind.CLOSING
CHECKPOINT = TapeFileKind.CHECKPOINT
# As if every checkpoint were large.
CONFIG = Config(settle_s=0.0, idle_s=3600.0, commit_s=0.01, small_checkpoint_bytes=0)


@pytest.fixture
def place() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


def since(*journals: int) -> list[TapeFile]:
    """Tape files after the last checkpoint with journals of so many bytes."""
    return [TapeFile(at, SEGMENT, 0, 1, 1, index_bytes=size) for at, size in enumerate(journals, 9)]


def test_when_a_closing_suffices() -> None:
    config = Config(small_checkpoint_bytes=8 * MIB, checkpoint_segments=4)
    assert closing_suffices(100 * MIB, since(1000), config)
    # One as small as this is written each time, unless what changed makes it a larger one.
    assert not closing_suffices(8 * MIB - 1000, since(1000), config)
    assert closing_suffices(8 * MIB - 1000, since(1000, 1), config)
    # As much was written since as it would take.
    assert closing_suffices(100 * MIB, since(60 * MIB, 40 * MIB - 1), config)
    assert not closing_suffices(100 * MIB, since(60 * MIB, 40 * MIB), config)
    # Too many for whoever has to go from one to the next.
    assert closing_suffices(100 * MIB, since(1, 1, 1), config)
    assert not closing_suffices(100 * MIB, since(1, 1, 1, 1), config)
    salvaged = TapeFile(9, TapeFileKind.TORN, 0, 1, 0, crcs=b"crcs")
    assert not closing_suffices(100 * MIB, [salvaged], config)


class History:
    """A cartridge on which generations end in closings, and what each of them showed."""

    def __init__(self, directory: Path, config: Config = CONFIG) -> None:
        self.rig = Rig(directory, config=config)
        self.shown: list[dict[str, tuple[Any, ...]]] = []
        self.kinds: list[TapeFileKind] = []

    async def write(self, mounts: int = 4) -> History:
        """Mount so often, and change something each time."""
        await self.rig.format()
        for number in range(mounts):
            async with self.rig.mounted() as user:
                if number == 0:
                    user.mkdir("/d")
                    await user.write("/d/kept", b"kept" * 40_000)
                else:
                    user.rename(f"/d/file {number - 1}", f"/d/was {number - 1}")
                await user.write(f"/d/file {number}", b"%d" % number * 30_000)
                if number % 2:
                    # Then there is nothing left to write but the closing.
                    await user.sync()
                self.shown.append(await user.snapshot())
        async with self.rig.mounted(read_only=True) as user:
            self.kinds = [tape_file.kind for tape_file in user.volume.view.tape_files()]
        return self


async def test_only_the_first_mount_writes_a_checkpoint(place: Path) -> None:
    history = await History(place).write()
    assert history.kinds == [SEGMENT, CHECKPOINT, *[SEGMENT, CLOSING] * 3]
    async with history.rig.mounted() as user:
        assert [tape_file.kind for tape_file in user.volume.view.tape_files()] == history.kinds
    # A mount that changes nothing writes nothing.
    async with history.rig.mounted(read_only=True) as user:
        assert len(list(user.volume.view.tape_files())) == len(history.kinds)


async def test_a_checkpoint_is_due_after_so_many_tape_files(place: Path) -> None:
    config = replace(CONFIG, checkpoint_segments=4)
    history = await History(place, config).write(5)
    pairs = list(zip(history.kinds[::2], history.kinds[1::2], strict=True))
    assert pairs == [(SEGMENT, end) for end in (CHECKPOINT, CLOSING, CLOSING, CHECKPOINT, CLOSING)]


async def test_the_tape_alone_is_complete(place: Path) -> None:
    history = await History(place).write()
    rig = history.rig
    async with rig.mounted(read_only=True) as user:
        known = rows(user.volume.view)
    async with rig.mounted(state=place / "elsewhere") as user:
        assert rows(user.volume.view) == known
        assert await user.snapshot() == history.shown[-1]
        await user.write("/d/later", b"written by another host")
        expected = await user.snapshot()
    async with rig.mounted() as user:
        assert await user.snapshot() == expected


@pytest.mark.parametrize("from_tape_alone", [False, True])
async def test_each_generation_can_be_mounted(place: Path, from_tape_alone: bool) -> None:
    history = await History(place).write()
    state = place / "elsewhere" if from_tape_alone else None
    for number in (3, 1, 4, 2):
        async with history.rig.mounted(state=state, generation=number) as user:
            assert await user.snapshot() == history.shown[number - 1]


async def test_the_list_of_generations(place: Path) -> None:
    history = await History(place).write(3)
    async with history.rig.mounted(read_only=True) as user:
        found = list(generations(user.volume.view))
        files = list(user.volume.view.tape_files())
    assert [(one.number, one.sequence) for one in found] == [(1, 2), (2, 4), (3, 6)]
    assert [one.written_ns for one in found] == [files[at].written_ns for at in (1, 3, 5)]
    sizes = [files[at].record_count * RECORD_BYTES for at in (0, 2, 4)]
    assert [one.new_bytes for one in found] == sizes


async def test_what_a_damaged_checkpoint_said_is_in_the_journals(place: Path) -> None:
    history = await History(place).write()
    damage(history.rig, b"catalog-00000001.sqlite.zst")
    with logs_expected():
        async with history.rig.mounted(generation=3) as user:
            assert await user.snapshot() == history.shown[2]
        async with history.rig.mounted(state=place / "elsewhere") as user:
            assert await user.snapshot() == history.shown[-1]


async def test_what_nobody_can_read_names_the_way_out(place: Path) -> None:
    history = await History(place).write()
    damage(history.rig, b".tapefs/segments/00000003.ndjson")
    with (
        logs_expected(),
        pytest.raises(DamagedTape, match=r"generation 3 cannot be read.*mount another one"),
    ):
        async with history.rig.mounted(generation=3):
            pytest.fail("mounted")
    async with history.rig.mounted(generation=1) as user:
        assert await user.snapshot() == history.shown[0]


async def test_a_closing_is_verified_like_any_tape_file(place: Path) -> None:
    history = await History(place, replace(CONFIG, verify="after-write")).write(3)
    async with history.rig.mounted(read_only=True) as user:
        report = await user.volume.verifier.whole(Scope.EVERYTHING, lambda _: None)
    assert (report["damage"], report["tape_files_count"]) == ([], len(history.kinds))
    assert history.kinds[-1] is CLOSING
    # In the record that holds all of it, behind the opening header.
    damage(history.rig, b".tapefs/segments/00000006.sha256")
    async with history.rig.mounted(read_only=True) as user:
        with logs_expected(up_to=logging.ERROR):
            report = await user.volume.verifier.whole(Scope.EVERYTHING, lambda _: None)
    assert {place["tape_file"] for place in report["damage"]} == {6}


def damage(rig: Rig, member: bytes) -> None:
    """Spoil a byte of the data of one of tapefs's own members."""
    image = bytearray(rig.tap.read_bytes())
    image[image.index(member) + 512 + 64] ^= 1
    rig.tap.write_bytes(image)


async def test_a_closing_of_another_host_is_nothing_foreign(place: Path) -> None:
    history = await History(place).write(2)
    rig = history.rig
    async with rig.mounted() as user:
        await user.write("/on tape", b"a segment, and then the power fails")
        await user.sync()
        await user.write("/waiting", b"accepted")
        await user.fsync("/waiting")
        user.crash()
    # Another host closes what this one could not.
    async with rig.mounted(state=place / "elsewhere") as user:
        pass
    async with rig.mounted() as user:
        last = user.volume.view.last_tape_file()
        assert last is not None
        assert last.kind is CLOSING
        assert await user.read("/waiting") == b"accepted"


async def test_a_closing_that_changes_files_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SegmentBuilder.__init__

    def forged(builder: SegmentBuilder, place: Place, *rest: Any, closes: bool = False) -> None:
        honest(builder, place, *rest, closes=closes)
        if closes:
            builder.log(InodeEntry(77, 0o100644, 0, 0, 0, 0, 0, 0, 0))
            builder.log(LinkEntry(1, b"smuggled", 77))

    history = await History(place).write(1)
    monkeypatch.setattr(SegmentBuilder, "__init__", forged)
    async with history.rig.mounted() as user:
        await user.write("/more", b"more")
    shutil.rmtree(history.rig.state)
    with pytest.raises(DamagedTape, match="only closes, but changes files"):
        async with history.rig.mounted():
            pytest.fail("mounted")


# -- catalogs of before there were closings


@pytest.fixture
def old_view(tmp_path: Path) -> Path:
    """A tape view in layout 1: with a segment and its checkpoint."""
    with contextlib.closing(new_view(tmp_path)) as view:
        view.apply(segment(1), [described(2), LinkEntry(1, b"f", 2)])
        view.apply(segment(2, CHECKPOINT), ())
    path = tmp_path / "tape.sqlite"
    to_layout_1(path)
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE INDEX tape_file_checkpoint ON tape_file (sequence) WHERE kind = 'checkpoint'"
    )
    connection.close()
    return path


def to_layout_1(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE older (
            sequence INTEGER PRIMARY KEY CHECK (sequence >= 1),
            kind TEXT NOT NULL CHECK (kind IN ('segment', 'checkpoint', 'torn')),
            first_block INTEGER NOT NULL, record_count INTEGER NOT NULL,
            written_ns INTEGER NOT NULL, crcs BLOB NOT NULL) STRICT;
        INSERT INTO older SELECT sequence, kind, first_block, record_count, written_ns, crcs
        FROM tape_file;
        DROP TABLE tape_file;
        ALTER TABLE older RENAME TO tape_file;
        PRAGMA user_version = 1;
        VACUUM;
        """
    )
    connection.close()


def test_an_older_view_is_brought_up_to_date(old_view: Path, tmp_path: Path) -> None:
    with pytest.raises(StateUnusable, match="layout 1 of an older tapefs; mount its volume once"):
        TapeReader.open_for_reading(old_view)
    before = dump(old_view)
    with contextlib.closing(TapeView.open(old_view)) as view:
        assert view.generation_count() == 1
        view.apply(replace(segment(3, CLOSING), index_bytes=90), ())
        assert view.generation_count() == 2
    after = dump(old_view)
    assert after.pop("tape_file")[:2] == [(*row, 0) for row in before.pop("tape_file")]
    assert after == before
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    new_view(fresh).close()
    assert schema(old_view) == schema(fresh / "tape.sqlite")


def schema(path: Path) -> list[Any]:
    connection = sqlite3.connect(path)
    statement = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    found = connection.execute(statement).fetchall()
    connection.close()
    return found


def test_an_update_that_is_cut_short_changes_nothing(old_view: Path) -> None:
    connection = sqlite3.connect(old_view)
    connection.execute("UPDATE tape_file SET crcs = x'00'")
    connection.commit()
    before = list(connection.iterdump())
    connection.close()
    with pytest.raises(StateUnusable, match=r"is damaged .*run 'tapefs rebuild'"):
        TapeView.open(old_view)
    connection = sqlite3.connect(old_view)
    assert list(connection.iterdump()) == before
    connection.close()


def test_the_catalog_in_an_older_checkpoint_is_read(old_view: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    with contextlib.closing(TapeView.open(old_view)) as view:
        view.export(copy)
        expected = dump(view.path)
    to_layout_1(copy)
    with contextlib.closing(TapeView.import_checkpoint(copy, tmp_path / "new.sqlite")) as view:
        assert dump(view.path) == expected
