"""What the drive does when something happens that nobody asked for."""

from __future__ import annotations

import pytest
from tape_rig import (
    Rigs,
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
from tapefs.errors import DriveFailed, DriveGone, MalformedData
from tapefs.scsi import cdb as c
from tapefs.scsi.completion import Completion
from tapefs.scsi.data import ModeParameters
from tapefs.scsi.sense import (
    AbortedCommand,
    CheckCondition,
    EndOfData,
    MediumChanged,
    NoMedium,
    PowerOnReset,
    Sense,
    SenseKey,
    UnitAttention,
)


def loaded(drive: TapeDrive) -> bool:
    return drive.medium_loaded


@pytest.mark.parametrize(
    ("sense", "error"),
    [
        (Sense(SenseKey.UNIT_ATTENTION, 0x28), MediumChanged),
        (Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x02), PowerOnReset),
        (Sense(SenseKey.NOT_READY, 0x3A), NoMedium),
    ],
)
async def test_doubt_about_the_medium_stays_until_somebody_looks(
    rigs: Rigs, sense: Sense, error: type[CheckCondition]
) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, 2)
    rig.wire.answer(c.Rewind, sense)
    with pytest.raises(error):
        await drive.rewind()
    assert not loaded(drive)
    rig.wire.forget()
    for _ in range(2):
        with pytest.raises(error, match="REWIND"):
            await drive.rewind()
        with pytest.raises(error):
            await drive.locate(TapeAddress(3, 1, 0))
        with pytest.raises(PositionUnknown):
            await drive.write_block(record(0))
    assert not rig.wire.log
    await drive.wait_ready(10.0)
    assert loaded(drive)
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))
    await drive.rewind()
    assert await read_number(drive) == 0


async def test_a_changed_cartridge_is_never_written(rigs: Rigs) -> None:
    rig, other = rigs(), rigs()
    drive = await rig.open()
    await write_files(drive, 2)
    rig.target.eject()
    rig.target.insert(other.cartridge)
    with pytest.raises(MediumChanged):
        await drive.write_block(record(9))
    with pytest.raises(MediumChanged):
        await drive.space_to_end_of_data()
    assert other.cartridge.object_count == 0


async def test_a_change_is_also_seen_by_asking(rigs: Rigs) -> None:
    rig, other = rigs(), rigs()
    drive = await rig.open()
    rig.target.eject()
    assert not await drive.test_ready()
    rig.target.insert(other.cartridge)
    with pytest.raises(MediumChanged):
        await drive.test_ready()


async def test_changed_modes_are_set_again_and_the_block_is_written_once(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    fixed = ModeParameters(buffered_mode=1).pack()
    rig.wire.answer(c.Write6, Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01))
    rig.wire.answer(c.ModeSense6, Completion(True, memoryview(fixed)))
    await drive.write_block(record(4))
    assert [type(command) for command in rig.wire.log[1:]] == [
        c.Write6, c.ModeSense6, c.ModeSelect6, c.ModeSense6, c.Write6,
    ]  # fmt: skip
    await drive.rewind()
    assert await read_number(drive) == 4
    with pytest.raises(EndOfData):
        await read_number(drive)


async def test_setting_modes_again_does_not_start_over_within_itself(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    changed = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01)
    rig.wire.answer(c.Write6, changed)
    rig.wire.answer(c.ModeSense6, *[changed] * 5)
    await drive.write_block(record(0))
    assert len(rig.wire.sent(c.ModeSense6)) == 6


async def test_modes_that_never_settle_end_somewhere(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    changed = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01)
    rig.wire.answer(c.Write6, *[changed] * 100)
    with pytest.raises(UnitAttention):
        await drive.write_block(record(0))
    assert len(rig.wire.sent(c.Write6)) == 10


async def test_an_attention_that_only_informs_is_passed_over(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    rig.wire.answer(c.Write6, Sense(SenseKey.UNIT_ATTENTION, 0x5A, 0x01))
    await drive.write_block(record(0))
    assert await drive.position() == TapePosition(1, 0, 1)
    assert drive.statistics().unit_attentions == 1


async def test_a_command_that_moves_the_tape_is_never_sent_twice(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, 3)
    aborted = Sense(SenseKey.ABORTED_COMMAND, 0x47)
    rig.wire.answer(c.Read6, aborted)
    rig.wire.answer(c.Write6, aborted)
    rig.wire.answer(c.WriteFilemarks6, aborted)
    rig.wire.answer(c.Space6, aborted)
    rig.wire.forget()
    for action in (
        lambda: drive.read_block(buffer()),
        lambda: drive.write_block(record(0)),
        lambda: drive.write_filemarks(1),
        lambda: drive.space_filemarks(1),
    ):
        await drive.rewind()
        with pytest.raises(AbortedCommand):
            await action()
        with pytest.raises(PositionUnknown):
            await drive.write_block(record(0))
    assert len(rig.wire.sent(c.Read6, c.Write6, c.WriteFilemarks6, c.Space6)) == 4


async def test_a_command_that_moves_nothing_is_sent_again_but_not_for_ever(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    aborted = Sense(SenseKey.ABORTED_COMMAND, 0x47)
    rig.wire.answer(c.ReadPosition, aborted, aborted)
    assert (await drive.position()).block == 0
    rig.wire.answer(c.ReadPosition, *[aborted] * 3)
    with pytest.raises(AbortedCommand):
        await drive.position()
    overlapped = Sense(SenseKey.ABORTED_COMMAND, 0x4E)
    rig.wire.forget()
    rig.wire.answer(c.ReadPosition, overlapped)
    with pytest.raises(AbortedCommand, match="overlapped"):
        await drive.position()
    assert len(rig.wire.log) == 1


async def test_a_failed_wire_makes_the_position_unknown(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    rig.wire.answer(c.Write6, DriveFailed("the CSW never came; try again"))
    with pytest.raises(DriveFailed, match="CSW"):
        await drive.write_block(record(0))
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))
    assert len(rig.wire.sent(c.Write6)) == 1


async def test_an_unplugged_drive_is_gone(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    rig.wire.unplug()
    with pytest.raises(DriveGone):
        await drive.rewind()
    await drive.aclose()


async def test_a_failure_without_sense_is_a_failure(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    rig.wire.answer(c.Rewind, Completion(False))
    with pytest.raises(MalformedData, match="without saying why"):
        await drive.rewind()
