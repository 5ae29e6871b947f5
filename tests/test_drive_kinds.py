"""A whole volume on drives that lack things: any block length, a position, a word from SPACE."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from array import array
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from torn_rig import spots, tape_file
from volume_rig import RECORD_BYTES, Rig, dump

from tapefs.archive.verify import Scope
from tapefs.emulator.cartridge_memory import memory_path
from tapefs.entries import TapeFileKind
from tapefs.errors import BlankTape, DamagedTape, ForeignTape
from tapefs.volume.session import read_label, write_label

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tape_rig import Rigs
    from volume_rig import User

KINDS = ("travan", "plain", "tgt")
BLOCK_BYTES = 512
BLOCKS = RECORD_BYTES // BLOCK_BYTES


def content(seed: int, length: int) -> bytes:
    return Random(seed).randbytes(length)


@pytest.fixture(params=KINDS)
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Rig:
    rig = Rig(tmp_path, request.param)
    await rig.format()
    return rig


@pytest.fixture
async def fixed(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, "travan")
    await rig.format()
    return rig


async def fill(user: User) -> None:
    """Three segments and what lies between them."""
    user.mkdir("a")
    await user.write("a/small", b"small")
    await user.write("a/large", content(1, 300_000))
    await user.sync()
    await user.write("a/large", b"changed", 150_000)
    await user.write("b", content(2, 70_000))
    await user.sync()
    user.rename("b", "a/c")
    await user.sync()


async def test_everything_comes_back(rig: Rig) -> None:
    async with rig.mounted() as user:
        await fill(user)
        user.evict_everything()
        assert await user.read("a/c") == content(2, 70_000)
        await user.write("d", b"behind a recall")
        wanted = await user.snapshot()
    async with rig.mounted() as user:
        user.evict_everything()
        assert await user.snapshot() == wanted
        kept = dump(user.volume.view)
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.snapshot() == wanted
    assert (await rig.tape_dump())[:4] == kept[:4]


async def test_a_crash_costs_nothing(rig: Rig) -> None:
    async with rig.mounted() as user:
        await fill(user)
        await user.write("late", content(3, 5000))
        await user.fsync("late")
        wanted = await user.snapshot()
        kept = dump(user.volume.view)
        user.crash()
    # No checkpoint was written: every tape file is learned from its tail.
    assert await rig.tape_dump() == kept
    async with rig.mounted() as user:
        assert await user.snapshot() == wanted
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.snapshot() == wanted


# Blocks of fixed length


def append_blocks(tap: Path, blocks: list[bytes]) -> None:
    """What a drive that lost power had put on tape behind everything else."""
    image = tap.read_bytes()
    word = BLOCK_BYTES.to_bytes(4, "little")
    tap.write_bytes(image[: spots(image)[-1].end] + b"".join(word + b + word for b in blocks))


def blocks_of(rig: Rig, sequence: int) -> list[bytes]:
    return [spot.data for spot in tape_file(rig.tap.read_bytes(), sequence) if spot.data]


async def test_all_blocks_have_one_length(fixed: Rig) -> None:
    async with fixed.mounted() as user:
        await fill(user)
        files = list(user.volume.view.tape_files())
    records = [spot.data for spot in spots(fixed.tap.read_bytes()) if spot.data is not None]
    assert {len(data) for data in records} == {BLOCK_BYTES}
    assert len(blocks_of(fixed, 0)) == 20
    start = 21
    for file in files:
        assert (file.first_block, file.kind) == (start, TapeFileKind.SEGMENT)
        assert len(blocks_of(fixed, file.sequence)) == file.record_count * BLOCKS
        start += file.record_count * BLOCKS + 1


async def torn_within_a_record(rig: Rig, block_count: int | None) -> dict[str, tuple[object, ...]]:
    """A volume of whose last segment only `[:block_count]` of the blocks got on tape."""
    async with rig.mounted() as user:
        await fill(user)
        for number in range(4):
            await user.write(f"new{number}", content(number, 100_000))
            await user.fsync(f"new{number}")
        wanted = await user.snapshot()
        state = rig.directory / "before"
        shutil.copytree(user.directory, state)
        await user.sync()
        sequence = user.volume.view.expected_end().file - 1
        user.crash()
    data = blocks_of(rig, sequence)[:block_count]
    image = rig.tap.read_bytes()
    rig.tap.write_bytes(image[: tape_file(image, sequence)[0].start])
    append_blocks(rig.tap, data)
    directory = rig.state / str(rig.label.volume_uuid)
    shutil.rmtree(directory)
    state.rename(directory)
    return wanted


@pytest.mark.parametrize("block_count", [1, BLOCKS - 1, BLOCKS, 3 * BLOCKS + 5])
async def test_a_segment_torn_within_a_record(fixed: Rig, block_count: int) -> None:
    wanted = await torn_within_a_record(fixed, block_count)
    async with fixed.mounted() as user:
        assert await user.snapshot() == wanted
        torn = [f for f in user.volume.view.tape_files() if f.kind is TapeFileKind.TORN]
        assert [file.record_count for file in torn] == [block_count]
    async with fixed.mounted() as user:
        kept = dump(user.volume.view)
    shutil.rmtree(fixed.state)
    async with fixed.mounted() as user:
        assert await user.snapshot() == wanted
    assert (await fixed.tape_dump())[:4] == kept[:4]


async def test_salvage_from_a_segment_torn_within_a_record(fixed: Rig) -> None:
    wanted = await torn_within_a_record(fixed, -3)
    shutil.rmtree(fixed.state)
    for _ in range(2):
        async with fixed.mounted() as user:
            (torn,) = (f for f in user.volume.view.tape_files() if f.kind is TapeFileKind.TORN)
            assert torn.salvaged
            assert len(torn.crcs) == 4 * (torn.record_count // BLOCKS)
            found = await user.snapshot()
        new = [path for path in found if path.startswith("/new")]
        assert len(new) == 3
        assert all(found[path][8] == wanted[path][8] for path in found)
        shutil.rmtree(fixed.state)


async def test_a_whole_segment_with_something_behind_it_is_none(fixed: Rig) -> None:
    wanted = await torn_within_a_record(fixed, None)
    append_blocks(fixed.tap, [b"x" * BLOCK_BYTES] * 3)
    shutil.rmtree(fixed.state)
    async with fixed.mounted() as user:
        found = await user.snapshot()
        last = user.volume.view.last_tape_file()
        assert last is not None
        assert (last.kind, last.record_count % BLOCKS) == (TapeFileKind.TORN, 3)
    assert {p: v[8] for p, v in found.items()} == {p: v[8] for p, v in wanted.items()}


async def test_a_torn_segment_is_seen_without_writing(fixed: Rig) -> None:
    await torn_within_a_record(fixed, BLOCKS + 1)
    before = fixed.tap.read_bytes()
    async with fixed.mounted(read_only=True) as user:
        assert await user.read("a/small") == b"small"
    assert fixed.tap.read_bytes() == before


async def test_another_program_closed_the_torn_segment(fixed: Rig) -> None:
    wanted = await torn_within_a_record(fixed, BLOCKS + 7)
    image = fixed.tap.read_bytes()
    fixed.tap.write_bytes(image + bytes(4))
    async with fixed.mounted() as user:
        assert await user.snapshot() == wanted
    shutil.rmtree(fixed.state)
    async with fixed.mounted() as user:
        assert await user.snapshot() == wanted


async def test_gnu_tar_reads_it(fixed: Rig, tmp_path: Path) -> None:
    async with fixed.mounted() as user:
        await fill(user)
    label = b"".join(blocks_of(fixed, 0))
    with tarfile.open(fileobj=io.BytesIO(label)) as archive:
        member = archive.extractfile("README.txt")
        assert member is not None
        readme = member.read().decode()
    assert "mt -f /dev/nst0 setblk 512  " in readme
    out = tmp_path / "out"
    out.mkdir()
    for sequence in (1, 2):
        data = b"".join(blocks_of(fixed, sequence))
        await trio.run_process(["tar", "-b", "128", "-xpf", "-"], stdin=data, cwd=out)
    changed = content(1, 300_000)
    assert (out / "a/large").read_bytes() == changed[:150_000] + b"changed" + changed[150_007:]
    assert (out / "b").read_bytes() == content(2, 70_000)


async def test_a_drive_of_any_blocks_reads_and_appends(fixed: Rig) -> None:
    async with fixed.mounted() as user:
        await fill(user)
        wanted = await user.snapshot()
    shutil.rmtree(fixed.state)
    use_other_drive(fixed, "lto5")
    async with fixed.mounted() as user:
        assert user.target.personality.name == "lto5"
        assert await user.snapshot() == wanted
        await user.write("more", b"more")
    records = [spot.data for spot in spots(fixed.tap.read_bytes()) if spot.data is not None]
    assert {len(data) for data in records} == {BLOCK_BYTES}
    use_other_drive(fixed, "travan")
    async with fixed.mounted() as user:
        assert await user.read("more") == b"more"


def use_other_drive(rig: Rig, personality: str) -> None:
    """From now on the cartridge is in a drive of another kind."""
    path = memory_path(rig.tap)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"personality": personality}))


async def test_first_records_that_are_no_label(rigs: Rigs) -> None:
    drive = await rigs("travan").open()
    with pytest.raises(BlankTape):
        await read_label(drive)
    for blocks, marks in ((0, 1), (3, 1), (30, 1)):
        await drive.rewind()
        for _ in range(blocks):
            await drive.write_block(array("B", b"x" * BLOCK_BYTES))
        await drive.write_filemarks(marks)
        with pytest.raises(ForeignTape):
            await read_label(drive)


async def test_a_label_that_lies_about_its_blocks(rigs: Rigs, tmp_path: Path) -> None:
    drive = await rigs("lto5").open()
    await write_label(drive, Rig(tmp_path, "travan").label)
    with pytest.raises(DamagedTape, match="the tape has blocks of 0"):
        await read_label(drive)


async def test_verifying_what_a_drive_of_fixed_blocks_has_written(
    fixed: Rig, assert_logs: Callable[..., object]
) -> None:
    assert_logs(r"verify\.damage tape_file=2 position=131072 length=65536", 1)
    async with fixed.mounted() as user:
        await fill(user)
        block = user.volume.view.tape_file(2).first_block + 2 * BLOCKS  # type: ignore[union-attr]
        user.target.faults.unreadable[block + 5] = 1000
        report = await user.volume.verifier.whole(Scope.EVERYTHING, lambda _: None)
        (place,) = report["damage"]
        assert (place["tape_file"], place["first_record"], place["last_record"]) == (2, 2, 2)
        assert place["first_block"] == block
        user.target.faults.unreadable.clear()
        report = await user.volume.verifier.whole(Scope.EVERYTHING, lambda _: None)
        assert (report["damage"], report["tape_files_count"]) == ([], 3)
