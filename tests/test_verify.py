"""Verification: every kind of damage is found and named, nothing sound is called damaged."""

from __future__ import annotations

import random
import shutil
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import crc32c
import pytest
from torn_rig import cut, spots, tape_file
from volume_rig import RECORD_BYTES, Rig, User

from tapefs.archive import verify_reading
from tapefs.archive.record_reader import RecordReader
from tapefs.archive.verify import Scope
from tapefs.daemon import commands
from tapefs.volume.tail import find_tail

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.archive.record_reader import RecordRead, Wanted
    from tapefs.drive import TapeDrive

MIB = 1 << 20
Report = dict[str, Any]


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def silent(_event: dict[str, Any]) -> None:
    """Nobody watches."""


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    # As the daemon lays its state directory out.
    rig.state = tmp_path / "state" / "volumes"
    await rig.format()
    return rig


@pytest.fixture
def damage_logged(assert_logs: Callable[..., Any]) -> None:
    """Damage is in the log as well; so are the checkpoints that cannot be used because of it."""
    assert_logs(r"verify\.damage|catalog\.roll_forward")


@pytest.fixture
def blocks_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks that verifications ask the drive for, in order."""
    blocks: list[int] = []
    honest = RecordReader._attempt

    async def attempt(
        self: RecordReader, drive: TapeDrive, wanted: Wanted, into: array[int]
    ) -> RecordRead:
        blocks.append(wanted.address.block)
        return await honest(self, drive, wanted, into)

    monkeypatch.setattr(RecordReader, "_attempt", attempt)
    return blocks


async def fill(user: User) -> None:
    """Two segments: small and large files, a name that is no UTF-8, a part, what goes again."""
    user.mkdir("d")
    for number in range(20):
        await user.write(f"d/small{number:02d}", content(number, 100 + number))
    await user.write("large", content(50, 5 * RECORD_BYTES + 7))
    await user.write("d/middle", content(51, 2 * RECORD_BYTES))
    await user.sync()
    user.evict_everything()
    await user.write("large", content(52, RECORD_BYTES), offset=6 * RECORD_BYTES)
    await user.write("second", content(53, 3 * RECORD_BYTES))
    user.unlink("d/small03")
    await user.sync()


@pytest.fixture
async def filled(rig: Rig) -> Rig:
    """Tape files 1 and 2 are segments, 3 is a checkpoint."""
    async with rig.mounted() as user:
        await fill(user)
    return rig


async def unmounted(rig: Rig, scope: Scope = Scope.EVERYTHING) -> Report:
    """Verify as `tapefs verify DRIVE` does."""
    state = rig.state.parent
    return await commands.verify(f"virtual:{rig.tap}", state, scope.value, silent)


def change(tap: Path, sequence: int, record: int, at: int = 1000) -> None:
    """Flip one bit of a record, as nobody would notice without a checksum."""
    image = bytearray(tap.read_bytes())
    spot = tape_file(bytes(image), sequence)[record]
    image[spot.start + 4 + at] ^= 0x10
    tap.write_bytes(image)


def records_of(tap: Path, sequence: int) -> list[bytes]:
    found = [spot.data for spot in tape_file(tap.read_bytes(), sequence)]
    return [data for data in found if data is not None]


def places(report: Report) -> list[tuple[int, str, int, int]]:
    return [
        (place["tape_file"], place["kind"], place["first_record"], place["last_record"])
        for place in report["damage"]
    ]


def record_total(rig: Rig) -> int:
    """Records behind the label."""
    return sum(spot.data is not None for spot in spots(rig.tap.read_bytes())) - 1


# -- nothing is wrong


@pytest.mark.parametrize("personality", ["lto5", "ait3", "plain"])
async def test_a_sound_volume_is_sound_and_every_record_is_read(
    tmp_path: Path, personality: str
) -> None:
    rig = Rig(tmp_path, personality)
    await rig.format()
    async with rig.mounted() as user:
        await fill(user)
        report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        assert (report["damage_count"], report["tape_files_count"]) == (0, 2)
        assert await user.read("second") == content(53, 3 * RECORD_BYTES)
    async with rig.mounted() as user:
        report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        assert (report["damage_count"], report["records_count"]) == (0, record_total(rig))
        assert report["tape_files_count"] == 3


async def test_an_unmounted_cartridge_is_verified_with_and_without_its_catalog(filled: Rig) -> None:
    report = await unmounted(filled)
    assert (report["damage_count"], report["records_count"]) == (0, record_total(filled))
    image = filled.tap.read_bytes()
    shutil.rmtree(filled.state)
    report = await unmounted(filled)
    assert (report["damage_count"], report["records_count"]) == (0, record_total(filled))
    assert filled.tap.read_bytes() == image
    # The catalog that verify made serves a mount.
    async with filled.mounted() as user:
        assert await user.read("second") == content(53, 3 * RECORD_BYTES)


async def test_many_members_and_a_torn_tape_file_are_sound(rig: Rig) -> None:
    async with rig.mounted() as user:
        for number in range(700):
            await user.write(f"f{number}", content(number, number * 13 % 3000))
        await user.sync()
        await user.write("g", content(1, 3 * RECORD_BYTES))
        await user.sync()
    # As a crash would leave it: tape file 2 without its last records and without a filemark.
    rig.tap.write_bytes(cut(rig.tap.read_bytes(), 2, 2, closed=False))
    shutil.rmtree(rig.state)
    report = await unmounted(rig)
    assert report["damage_count"] == 0
    assert report["tape_files_count"] == 1


@pytest.mark.usefixtures("damage_logged")
async def test_a_torn_tape_file_that_was_salvaged_is_verified_as_far_as_it_counts(
    rig: Rig,
) -> None:
    async with rig.mounted() as user:
        await user.write("whole", content(1, 2 * RECORD_BYTES))
        await user.write("torn", content(2, 4 * RECORD_BYTES))
        await user.sync()
    rig.tap.write_bytes(cut(rig.tap.read_bytes(), 1, 4, closed=True))
    shutil.rmtree(rig.state)
    report = await unmounted(rig)
    assert (report["damage_count"], report["tape_files_count"]) == (0, 1)
    change(rig.tap, 1, 1)
    report = await unmounted(rig)
    assert places(report) == [(1, "mismatch", 1, 1)]
    assert [file["path"] for file in report["damaged_files"]] == ["whole"]


# -- damage


@dataclass
class Kinds:
    """A record of each kind in a filled volume, by tape file and number."""

    rig: Rig
    found: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tails = {n: find_tail(records_of(self.rig.tap, n)[-1]) for n in (1, 2, 3)}
        manifest = tails[1].manifest
        assert manifest is not None
        self.found = {
            "header": (1, 0),
            "member": (1, 3),
            "manifest": (1, manifest.position // RECORD_BYTES),
            "journal": (1, tails[1].index.position // RECORD_BYTES),
            "tail": (2, tails[2].record_count - 1),
            "catalog": (3, tails[3].index.position // RECORD_BYTES),
            "last": (3, tails[3].record_count - 1),
        }


KINDS = ("header", "member", "manifest", "journal", "tail", "catalog", "last")


@pytest.mark.usefixtures("damage_logged")
@pytest.mark.parametrize(
    ("host", "kind"),
    [("same", kind) for kind in KINDS] + [("new", kind) for kind in KINDS if kind != "last"],
)
async def test_a_changed_bit_is_found_in_every_kind_of_record(
    filled: Rig, kind: str, host: str
) -> None:
    sequence, record = Kinds(filled).found[kind]
    # In the data of the checkpoint's one record, in the padding behind its tail, anywhere.
    change(filled.tap, sequence, record, {"catalog": 4000, "last": RECORD_BYTES - 1}.get(kind, 700))
    if host == "new":
        shutil.rmtree(filled.state)
    report = await unmounted(filled)
    assert (report["damage_count"] >= 1, report["torn_tape_files_count"]) == (True, 0)
    assert (sequence, record) in [
        (s, r) for s, _, first, last in places(report) for r in range(first, last + 1)
    ]
    # Nothing sound is called damaged beside it.
    assert {s for s, *_ in places(report)} == {sequence}


async def test_a_new_host_takes_a_checkpoint_without_its_tail_for_a_torn_one(filled: Rig) -> None:
    """Nobody there can tell; and nothing was in it that the segments do not say."""
    change(filled.tap, *Kinds(filled).found["last"], at=RECORD_BYTES - 1)
    shutil.rmtree(filled.state)
    report = await unmounted(filled)
    assert (report["damage_count"], report["torn_tape_files_count"]) == (0, 1)


@pytest.mark.usefixtures("damage_logged")
@pytest.mark.parametrize("kind", KINDS)
async def test_an_unreadable_record_is_passed_over_and_named(filled: Rig, kind: str) -> None:
    sequence, record = Kinds(filled).found[kind]
    async with filled.mounted() as user:
        block = user.volume.view.tape_file(sequence)
        assert block is not None
        user.target.faults.unreadable[block.first_block + record] = 1000
        report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        user.target.faults.unreadable.clear()
    assert places(report) == [(sequence, "unreadable", record, record)]
    assert report["damage"][0]["first_block"] == block.first_block + record
    assert report["records_count"] == record_total(filled) - 1


@pytest.mark.usefixtures("damage_logged")
async def test_the_report_names_files_and_their_byte_ranges(filled: Rig) -> None:
    async with filled.mounted() as user:
        catalog = user.volume.catalog
        extents = catalog.extents(user.find("large").ino)
        first = extents[0]
        start_record = first.position // RECORD_BYTES
        tape = user.volume.view.tape_file(first.sequence)
        assert tape is not None
        # Records 2 and 3 of the file's own, which is in tape file 1 first.
        for record in (start_record + 2, start_record + 3):
            change(filled.tap, first.sequence, record)
        report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
    base = (start_record + 2) * RECORD_BYTES - first.position
    assert report["damaged_files"] == [
        {"path": "large", "ranges": [(base, base + 2 * RECORD_BYTES)]}
    ]
    assert places(report) == [(1, "mismatch", start_record + 2, start_record + 3)]


@pytest.mark.usefixtures("damage_logged")
async def test_what_is_damaged_but_deleted_is_damage_without_a_file(rig: Rig) -> None:
    async with rig.mounted() as user:
        await user.write("gone", content(1, 3 * RECORD_BYTES))
        await user.sync()
        user.unlink("gone")
    change(rig.tap, 1, 1)
    report = await unmounted(rig)
    assert (report["damage_count"], report["damaged_files_count"]) == (1, 0)


@pytest.mark.usefixtures("damage_logged")
async def test_a_damaged_label_is_found(filled: Rig) -> None:
    async with filled.mounted() as user:
        image = bytearray(filled.tap.read_bytes())
        at = image.index(b'"created"')
        image[at + 15] ^= 1
        filled.tap.write_bytes(image)
        report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
    assert places(report) == [(0, "unreadable", 0, 0)]


@pytest.mark.usefixtures("damage_logged")
async def test_records_that_are_missing_doubled_or_swapped_are_found(filled: Rig) -> None:
    sound = filled.tap.read_bytes()
    second, third = tape_file(sound, 1)[1:3]
    one, two = sound[second.start : second.end], sound[third.start : third.end]
    before, behind = sound[: second.start], sound[third.end :]
    for image in (before + two + one + behind, before + one + one + behind):
        filled.tap.write_bytes(image)
        report = await unmounted(filled)
        assert (1, "mismatch") in [place[:2] for place in places(report)]
        assert report["damaged_files_count"] >= 1


@pytest.mark.usefixtures("damage_logged")
async def test_bytes_that_were_wrong_before_their_record_was_checksummed(rig: Rig) -> None:
    """What a writer's memory changed before the checksum was made: only the members' hashes see."""
    async with rig.mounted() as user:
        await user.write("a", content(1, 3 * RECORD_BYTES))
        await user.write("b", content(2, 3 * RECORD_BYTES))
        await user.sync()
        view = user.volume.view
        tape = view.tape_file(1)
        assert tape is not None
        # The record and its checksum in the catalog change together; the journal stays.
        change(rig.tap, 1, 1)
        changed = records_of(rig.tap, 1)[1]
        crcs = bytearray(tape.crcs)
        crcs[4:8] = crc32c.crc32c(changed).to_bytes(4, "big")
        with sqlite3.connect(view.path) as connection:
            connection.execute("UPDATE tape_file SET crcs = ? WHERE sequence = 1", (bytes(crcs),))
        connection.close()
        report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
    assert places(report) == [(1, "contradiction", 0, 3)]  # all records of the file
    assert [file["path"] for file in report["damaged_files"]] == ["a"]


@pytest.mark.usefixtures("damage_logged")
async def test_a_long_unreadable_stretch_is_given_up_but_the_rest_is_read(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_reading, "_UNREADABLE_ROW_MAX", 3)
    async with rig.mounted() as user:
        await user.write("a", content(1, 12 * RECORD_BYTES))
        await user.sync()
        await user.write("b", content(2, RECORD_BYTES))
        await user.sync()
        first = user.volume.view.tape_file(1)
        assert first is not None
        for block in range(first.first_block + 2, first.first_block + first.record_count + 1):
            user.target.faults.unreadable[block] = 1000
        report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        tried = first.record_count - sum(
            count == 1000
            for block, count in user.target.faults.unreadable.items()
            if block < first.first_block + first.record_count + 1
        )
        user.target.faults.unreadable.clear()
    assert tried <= 2 + 4
    assert places(report) == [(1, "unreadable", 2, first.record_count - 1)]
    assert report["tape_files_count"] == 2


async def test_a_record_that_is_right_at_the_second_attempt_is_no_damage(
    filled: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, lies = crc32c.crc32c, iter([True])
    monkeypatch.setattr(crc32c, "crc32c", lambda data: 0 if next(lies, False) else honest(data))
    async with filled.mounted() as user:
        report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
    assert (report["damage_count"], report["records_reread_count"]) == (0, 1)


# -- one file or tree


async def test_a_file_or_tree_is_read_in_tape_order_and_no_record_twice(
    filled: Rig, blocks_read: list[int]
) -> None:
    blocks = blocks_read
    async with filled.mounted() as user:
        verifier = user.volume.verifier
        report = await verifier.content(user.find("d").ino, b"d", silent)
        assert report["damage_count"] == 0
        assert blocks == sorted(set(blocks))
        assert len(blocks) == report["records_count"] > 2
        blocks.clear()
        report = await verifier.content(user.find("large").ino, b"large", silent)
        extents = user.volume.catalog.extents(user.find("large").ino)
        assert {extent.sequence for extent in extents} == {1, 2}
        wanted = {
            (extent.sequence, record)
            for extent in extents
            for record in range(
                extent.position // RECORD_BYTES,
                (extent.position + extent.length - 1) // RECORD_BYTES + 1,
            )
        }
        assert len(blocks) == len(wanted)
        assert report["damage_count"] == 0
        # That proves nothing about whole tape files.
        first = user.volume.view.tape_file(1)
        assert first is not None
        assert not user.volume.verifications.verified_ns(first)


@pytest.mark.usefixtures("damage_logged")
async def test_damage_in_one_file_is_found_by_path(filled: Rig) -> None:
    async with filled.mounted() as user:
        extent = user.volume.catalog.extents(user.find("second").ino)[0]
        record = extent.position // RECORD_BYTES + 1
        change(filled.tap, extent.sequence, record)
        sound = await user.volume.verifier.content(user.find("d/middle").ino, b"d/middle", silent)
        assert sound["damage_count"] == 0
        report = await user.volume.verifier.content(user.find("second").ino, b"second", silent)
        assert places(report) == [(2, "mismatch", record, record)]
        assert [file["path"] for file in report["damaged_files"]] == ["second"]
        # It stays noted, and the tape file counts as not verified.
        assert [d.sequence for d in user.volume.verifications.damages()] == [2]
