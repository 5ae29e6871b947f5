"""Blocks and filemarks through the drive, up to the end of the tape and over it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from tape_rig import (
    MIB,
    RECORD_BYTES,
    Rigs,
    Wire,
    buffer,
    read_number,
    record,
    write_files,
)

from tapefs.drive import (
    PositionUnknown,
    TapeAddress,
    TapeDrive,
    TapePosition,
)
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.target import Target
from tapefs.emulator.transport import TargetTransport
from tapefs.errors import DriveFailed, VolumeFull
from tapefs.scsi import cdb as c
from tapefs.scsi.completion import Completion
from tapefs.scsi.sense import (
    DeferredError,
    EndOfData,
    EndOfMedium,
    FilemarkDetected,
    IncorrectLength,
    MediumError,
    PowerOnReset,
    Sense,
    SenseKey,
    WriteProtectedCondition,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from log_police import Announcement


# Reading and writing


async def test_what_is_written_is_read(rigs: Rigs, personality: str) -> None:
    drive = await rigs(personality).open()
    await write_files(drive, 3, 2)
    await drive.rewind()
    assert [await read_number(drive) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(FilemarkDetected):
        await read_number(drive)
    assert [await read_number(drive) for _ in range(2)] == [100, 101]
    with pytest.raises(FilemarkDetected):
        await read_number(drive)
    for _ in range(2):
        with pytest.raises(EndOfData):
            await read_number(drive)
    assert await drive.position() == TapePosition(7, 2, 0)
    statistics = drive.statistics()
    assert (statistics.blocks_written, statistics.blocks_read) == (5, 5)
    assert (statistics.bytes_written, statistics.bytes_read) == (5 * 4096, 5 * 4096)
    assert statistics.filemarks_written == 2


async def test_no_position_command_is_sent_for_records(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, 5)
    await drive.rewind()
    await read_number(drive)
    kinds = (c.Rewind, c.Write6, c.WriteFilemarks6, c.Read6)
    assert rig.wire.log == rig.wire.sent(*kinds)
    assert len(rig.wire.log) == 9


async def test_a_short_block_has_its_length(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    await drive.write_block(record(7, 1000))
    await drive.write_filemarks(0)
    await drive.rewind()
    into = buffer()
    assert await drive.read_block(into) == 1000
    assert into[:1000] == record(7, 1000)
    assert await drive.position() == TapePosition(1, 0, 1)


async def test_sense_outranks_what_the_wire_counted(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    into = buffer()
    short = Sense(incorrect_length=True, information=96)
    rig.wire.answer(c.Read6, Completion(False, memoryview(into), 0, short))
    assert await drive.read_block(into) == 4000
    # Without INFORMATION the wire's count is all there is.
    silent = Sense(incorrect_length=True)
    rig.wire.answer(c.Read6, Completion(False, memoryview(into)[:500], 3596, silent))
    assert await drive.read_block(into) == 500
    # A full buffer and a wrong length can only mean that the block is longer.
    rig.wire.answer(c.Read6, Completion(False, memoryview(into), 0, silent))
    with pytest.raises(IncorrectLength):
        await drive.read_block(into)
    # A block that did not arrive is not made up.
    rig.wire.answer(c.Read6, Completion(False, memoryview(into)[:100], 0, short))
    with pytest.raises(DriveFailed, match="sent only 100"):
        await drive.read_block(into)


@pytest.mark.parametrize("information", [None, 0])
async def test_a_block_that_is_too_long_is_passed_and_reported(
    rigs: Rigs, information: int | None
) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, 2)
    await drive.rewind()
    into = buffer(1000)
    if information == 0:
        # Some drives leave INFORMATION zero; position and outcome must be the same.
        await TargetTransport.execute(rig.wire, c.Space6(c.SpaceCode.BLOCKS, 1))
        rig.wire.answer(c.Read6, Sense(incorrect_length=True, information=0))
    with pytest.raises(IncorrectLength) as caught:
        await drive.read_block(into)
    if information is None:
        assert caught.value.sense.information == 1000 - RECORD_BYTES
    assert await drive.position() == TapePosition(1, 0, 1)
    assert await read_number(drive) == 1


async def test_a_read_error_makes_the_position_unknown(rigs: Rigs, personality: str) -> None:
    rig = rigs(personality)
    drive = await rig.open()
    await write_files(drive, 4)
    rig.target.faults.unreadable[1] = 1
    await drive.rewind()
    await read_number(drive)
    with pytest.raises(MediumError):
        await read_number(drive)
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))
    await drive.locate(TapeAddress(1, 0, 1))
    assert await read_number(drive) == 1


async def test_a_recovered_error_is_a_success_and_is_counted(
    rigs: Rigs, assert_logs: Callable[..., Announcement]
) -> None:
    assert_logs(r"drive\.advice .*cleaning", 1)
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    rig.wire.answer(c.Write6, Sense(SenseKey.RECOVERED_ERROR, 0x0C))
    assert not (await drive.write_block(record(0))).early_warning
    rig.wire.answer(c.Read6, Completion(False, memoryview(buffer()), 0, Sense(asc=0, ascq=0x17)))
    assert await drive.read_block(buffer()) == RECORD_BYTES
    assert drive.statistics().recovered_errors == 2


async def test_flush_makes_a_power_cut_harmless(rigs: Rigs, personality: str) -> None:
    rig = rigs(personality)
    drive = await rig.open()
    await drive.rewind()
    await drive.write_block(record(1))
    await drive.write_filemarks(0)
    await drive.write_block(record(2))
    rig.target.power_cut()
    with pytest.raises(PowerOnReset):
        await drive.write_block(record(3))
    await drive.wait_ready(10.0)
    await drive.rewind()
    assert await read_number(drive) == 1
    with pytest.raises(EndOfData):
        await read_number(drive)


async def test_filemarks_never_end_before_the_data_is_on_tape(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, 1)
    await drive.write_filemarks(0)
    marks = rig.wire.sent(c.WriteFilemarks6)
    assert marks == [c.WriteFilemarks6(1), c.WriteFilemarks6(0)]
    assert all(mark.pack()[1] == 0 for mark in marks)


async def test_a_write_protected_tape(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, 2)
    rig.cartridge.close()
    rig.cartridge.path.chmod(0o444)
    rig.cartridge = VirtualCartridge.open(rig.cartridge.path)
    rig.target = Target(rig.cartridge)
    rig.wire = Wire(rig.target)
    drive = await rig.open()
    assert drive.write_protected
    await drive.rewind()
    assert await read_number(drive) == 0
    with pytest.raises(WriteProtectedCondition):
        await drive.write_block(record(0))
    # The refusal moved nothing.
    assert await drive.position() == TapePosition(1, 0, 1)
    assert await read_number(drive) == 1


async def test_write_protection_found_while_writing_is_remembered(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    rig.wire.answer(c.Write6, Sense(SenseKey.DATA_PROTECT, 0x27))
    with pytest.raises(WriteProtectedCondition):
        await drive.write_block(record(0))
    assert drive.write_protected


# Several blocks at once


async def numbers_on_tape(drive: TapeDrive) -> list[int]:
    await drive.rewind()
    found = []
    with contextlib.suppress(EndOfData):
        while True:
            found.append(await read_number(drive))
    return found


async def test_blocks_written_together_are_blocks_like_others(rigs: Rigs, personality: str) -> None:
    drive = await rigs(personality).open()
    await drive.rewind()
    count, outcome = await drive.write_blocks([record(number) for number in range(5)])
    assert (count, outcome.early_warning) == (5, False)
    assert drive.statistics().blocks_written == 5
    assert drive.statistics().bytes_written == 5 * RECORD_BYTES
    if drive.capabilities.read_position:
        assert (await drive.position()).block == 5
    await drive.write_filemarks(0)
    assert await numbers_on_tape(drive) == [0, 1, 2, 3, 4]


async def test_what_only_informs_does_not_write_a_block_twice(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    told = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01)
    rig.wire.answer(c.Write6, None, told, None, told, told)
    assert (await drive.write_blocks([record(number) for number in range(4)]))[0] == 4
    assert await numbers_on_tape(drive) == [0, 1, 2, 3]


async def test_early_warning_ends_a_batch_behind_the_block_that_met_it(
    rigs: Rigs, personality: str
) -> None:
    drive = await rigs(personality, capacity_bytes=8 * MIB).open()
    await drive.rewind()
    blocks = [record(1, 65536) for _ in range(7)]
    written = 0
    while True:
        count, outcome = await drive.write_blocks(blocks)
        written += count
        if outcome.early_warning:
            break
        assert count == 7
    assert (await drive.position()).early_warning
    if drive.capabilities.read_position:
        assert (await drive.position()).block == written
    alone = await rigs(personality, capacity_bytes=8 * MIB).open()
    await alone.rewind()
    for _ in range(written - 1):
        assert not (await alone.write_block(blocks[0])).early_warning
    assert (await alone.write_block(blocks[0])).early_warning


async def test_the_blocks_before_a_refusal_are_counted(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    rig.wire.answer(c.Write6, None, None, Sense(SenseKey.DATA_PROTECT, 0x27))
    with pytest.raises(WriteProtectedCondition):
        await drive.write_blocks([record(number) for number in range(5)])
    assert len(rig.wire.sent(c.Write6)) == 3
    assert drive.statistics().blocks_written == 2
    assert await drive.position() == TapePosition(2, 0, 2)
    assert await numbers_on_tape(drive) == [0, 1]


async def test_a_batch_in_which_a_block_fails_leaves_the_position_unknown(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    for failure in (Sense(SenseKey.MEDIUM_ERROR, 0x0C), DriveFailed("the wire broke")):
        await drive.rewind()
        rig.wire.forget()
        rig.wire.answer(c.Write6, None, failure)
        with pytest.raises((MediumError, DriveFailed)):
            await drive.write_blocks([record(number) for number in range(3)])
        assert len(rig.wire.sent(c.Write6)) == 2
        with pytest.raises(PositionUnknown):
            await drive.write_blocks([record(0)])


# The end of the tape


async def fill(drive: TapeDrive) -> tuple[int, int, VolumeFull]:
    """Write until the hard end: records written in all, records with early warning, the error."""
    await drive.rewind()
    block = record(1, 65536)
    written = warned = 0
    while True:
        try:
            outcome = await drive.write_block(block)
        except EndOfMedium as error:
            return written, warned, error
        written += 1
        warned += outcome.early_warning


async def test_early_warning_is_success_and_the_hard_end_is_not(
    rigs: Rigs, personality: str
) -> None:
    rig = rigs(personality, capacity_bytes=8 * MIB)
    drive = await rig.open()
    written, warned, error = await fill(drive)
    assert 0 < warned < written
    assert isinstance(error, EndOfMedium)
    missing = error.sense.information
    assert missing is not None
    assert missing >= 65536
    # What was not reported missing is on tape; a drive may lose what it had in its buffer.
    lost = missing // 65536 - 1
    await drive.rewind()
    for _ in range(written - lost):
        assert await drive.read_block(buffer(65536)) == 65536
    with pytest.raises(EndOfData):
        await drive.read_block(buffer(65536))


async def test_after_the_hard_end_nothing_is_written_blindly(rigs: Rigs, personality: str) -> None:
    rig = rigs(personality, capacity_bytes=8 * MIB)
    drive = await rig.open()
    await fill(drive)
    with pytest.raises(PositionUnknown):
        await drive.write_filemarks(1)
    if not drive.capabilities.read_position:
        assert await drive.position() == TapePosition()
    end = await drive.space_to_end_of_data()
    assert end.block == rig.cartridge.object_count
    assert end.early_warning or personality in ("plain", "tgt")


async def test_early_warning_stands_until_the_head_leaves(rigs: Rigs, personality: str) -> None:
    drive = await rigs(personality, capacity_bytes=8 * MIB).open()
    await drive.rewind()
    while not (await drive.write_block(record(1, 65536))).early_warning:
        assert not (await drive.position()).early_warning
    assert (await drive.position()).early_warning
    assert (await drive.write_filemarks(1)).early_warning
    await drive.rewind()
    assert not (await drive.position()).early_warning


async def test_early_warning_with_something_left_over_is_the_hard_end(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    left = Sense(asc=0, ascq=2, end_of_medium=True, information=4096)
    rig.wire.answer(c.Write6, left)
    with pytest.raises(EndOfMedium) as caught:
        await drive.write_block(record(0))
    assert caught.value.sense.information == 4096


async def test_an_earlier_block_that_is_lost_raises_and_is_not_repeated(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    rig.wire.answer(c.Write6, Sense(SenseKey.MEDIUM_ERROR, 0x0C, deferred=True))
    with pytest.raises(DeferredError) as caught:
        await drive.write_block(record(0))
    assert isinstance(caught.value.condition, MediumError)
    assert len(rig.wire.sent(c.Write6)) == 1
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))


async def test_a_deferred_success_means_the_command_was_not_executed(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    rig.wire.answer(c.Write6, Sense(SenseKey.RECOVERED_ERROR, 0x0C, deferred=True))
    await drive.write_block(record(5))
    assert len(rig.wire.sent(c.Write6)) == 2
    await drive.rewind()
    assert await read_number(drive) == 5
