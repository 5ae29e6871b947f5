"""Blocks of one length only, as Travan and old QIC drives have: records are several of them."""

from __future__ import annotations

import pytest
from tape_rig import RECORD_BYTES, Rig, Rigs, buffer, read_number, record, write_files

from tapefs.drive import PositionUnknown, TapeAddress, TapeDrive, TapePosition
from tapefs.errors import DriveFailed
from tapefs.geometry import Geometry
from tapefs.scsi import cdb as c
from tapefs.scsi.completion import Completion
from tapefs.scsi.sense import (
    EndOfData,
    EndOfMedium,
    FilemarkDetected,
    IncorrectLength,
    MediumError,
    Sense,
    SenseKey,
)

BLOCK_BYTES = 512
BLOCKS = RECORD_BYTES // BLOCK_BYTES


@pytest.fixture
def rig(rigs: Rigs) -> Rig:
    return rigs("travan")


async def test_a_record_is_one_command_and_several_blocks(rig: Rig) -> None:
    drive = await rig.open()
    await write_files(drive, 3, 2)
    assert await drive.position() == TapePosition(5 * BLOCKS + 2, 2, 0)
    assert rig.cartridge.object_count == 5 * BLOCKS + 2
    await drive.rewind()
    rig.wire.forget()
    assert [await read_number(drive) for _ in range(3)] == [0, 1, 2]
    assert rig.wire.log == [c.Read6(BLOCKS, fixed=True, block_bytes=BLOCK_BYTES)] * 3
    with pytest.raises(FilemarkDetected):
        await read_number(drive)
    assert await drive.position() == TapePosition(3 * BLOCKS + 1, 1, 0)
    statistics = drive.statistics()
    assert (statistics.blocks_written, statistics.bytes_written) == (5 * BLOCKS, 5 * RECORD_BYTES)
    assert (statistics.blocks_read, statistics.bytes_read) == (3 * BLOCKS, 3 * RECORD_BYTES)


async def test_what_is_no_number_of_blocks_is_not_sent(rig: Rig) -> None:
    drive = await rig.open()
    await drive.rewind()
    rig.wire.forget()
    for size_bytes in (0, BLOCK_BYTES - 4, BLOCK_BYTES + 4):
        with pytest.raises(ValueError, match="not blocks of 512"):
            await drive.write_block(record(1, size_bytes))
        with pytest.raises(ValueError, match="not blocks of 512"):
            await drive.read_block(buffer(size_bytes))
    assert not rig.wire.log


@pytest.mark.parametrize("closed", [True, False])
async def test_a_record_that_is_cut_short_is_none(rig: Rig, closed: bool) -> None:
    drive = await rig.open()
    await drive.rewind()
    await drive.write_block(record(1, RECORD_BYTES + 3 * BLOCK_BYTES))
    await drive.write_filemarks(int(closed))
    await drive.rewind()
    assert await read_number(drive) == 1
    with pytest.raises(FilemarkDetected if closed else EndOfData):
        await read_number(drive)
    end = TapePosition(BLOCKS + 4, 1, 0) if closed else TapePosition(BLOCKS + 3, 0, BLOCKS + 3)
    assert await drive.position() == end


@pytest.mark.parametrize("missing", [None, -1, BLOCKS + 1])
async def test_a_stop_without_a_sensible_residue_loses_the_block_number(
    rig: Rig, missing: int | None
) -> None:
    drive = await rig.open()
    await write_files(drive, 1)
    await drive.rewind()
    rig.wire.answer(c.Read6, Sense(filemark=True, information=missing))
    rig.wire.answer(c.ReadPosition, Completion(True, memoryview(bytes.fromhex("34") + bytes(19))))
    with pytest.raises(FilemarkDetected):
        await read_number(drive)
    assert await drive.position() == TapePosition(None, 1, 0)


async def test_other_stops_lose_the_position(rig: Rig) -> None:
    drive = await rig.open()
    await write_files(drive, 2)
    short = Completion(True, memoryview(bytes(RECORD_BYTES - BLOCK_BYTES)))
    recovered = Completion(False, short.data, 0, Sense(SenseKey.RECOVERED_ERROR, 0x17))
    for answer, error in (
        (Completion(False, sense=Sense(incorrect_length=True, information=3)), IncorrectLength),
        (Completion(False, sense=Sense(SenseKey.MEDIUM_ERROR, 0x11, information=3)), MediumError),
        (short, DriveFailed),
        (recovered, Exception),
    ):
        await drive.rewind()
        rig.wire.answer(c.Read6, answer)
        with pytest.raises(error):
            await read_number(drive)
        with pytest.raises(PositionUnknown):
            await drive.write_block(record(0))


async def test_a_recovered_read_counts(rig: Rig) -> None:
    drive = await rig.open()
    await write_files(drive, 2)
    await drive.rewind()
    whole = memoryview(record(7))
    recovered = Completion(False, whole, 0, Sense(SenseKey.RECOVERED_ERROR, 0x17))
    rig.wire.answer(c.Read6, recovered)
    assert await drive.read_block(buffer()) == RECORD_BYTES


async def test_the_hard_end_within_a_record(rigs: Rigs) -> None:
    rig = rigs("travan", 1 << 20)
    drive = await rig.open()
    await drive.rewind()
    warned = 0
    error: EndOfMedium | None = None
    while error is None:
        try:
            warned += (await drive.write_block(record(warned))).early_warning
        except EndOfMedium as exc:
            error = exc
    assert warned
    assert error.sense.information
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))
    # What is on tape is where the drive says that it is, a torn record included.
    end = await drive.space_to_end_of_data()
    assert end.block == rig.cartridge.object_count


@pytest.mark.parametrize("count", [1, 5])
async def test_finding_places_and_the_end(rig: Rig, count: int) -> None:
    geometry = Geometry(RECORD_BYTES, BLOCK_BYTES)
    drive = await rig.open()
    await write_files(drive, 2, count, 3)
    for file, first_block in ((2, (2 + count) * BLOCKS + 2), (1, 2 * BLOCKS + 1), (0, 0)):
        await drive.locate(geometry.record_address(file, first_block, 1 if file == 2 else 0))
        assert await read_number(drive) == 100 * file + (file == 2)
    assert (await drive.space_to_end_of_data()).block == (5 + count) * BLOCKS + 3


async def test_long_ways_take_more_than_one_motion(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapefs.drive.motion.SPACE_COUNT_MAX", 10)
    drive = await rig.open()
    await write_files(drive, 4)
    await drive.rewind()
    await drive.locate(TapeAddress(3 * BLOCKS, 0, 3 * BLOCKS))
    assert [command.count for command in rig.wire.log if isinstance(command, c.Space6)] == [
        10,
        10,
        4,
    ]
    assert await read_number(drive) == 3
    await drive.locate(TapeAddress(BLOCKS, 0, BLOCKS))
    assert await read_number(drive) == 1


async def test_counting_without_any_help(rigs: Rigs) -> None:
    """A drive put to fixed blocks that has no place to tell, nor how far it got."""
    rig = rigs("tgt")
    drive = await rig.open()
    await drive.select_block_bytes(BLOCK_BYTES)
    await write_files(drive, 2, 1)
    await drive.rewind()
    assert await drive.space_to_end_of_data() == TapePosition(3 * BLOCKS + 2, 2, 0)


async def test_changed_modes_are_set_to_the_length_in_use(rig: Rig) -> None:
    drive = await rig.open()
    await drive.rewind()
    rig.wire.answer(c.Write6, Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01))
    await drive.write_block(record(4))
    await drive.rewind()
    assert await read_number(drive) == 4


async def test_the_length_is_chosen_anew_for_another_medium(rigs: Rigs) -> None:
    rig = rigs("lto5")
    drive = await rig.open()
    await drive.select_block_bytes(1024)
    assert drive.block_bytes == 1024
    await drive.wait_ready(1.0)
    assert drive.block_bytes == 0
    await write_files(drive, 1)
    assert isinstance(drive, TapeDrive)
