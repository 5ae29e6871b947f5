"""Finding places on tape and knowing where the head stands, with and without the drive's help."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from tape_rig import PERSONALITIES, Rigs, read_number, record, write_files

from tapefs.drive import PositionMismatch, PositionUnknown, TapeAddress, TapeDrive, TapePosition
from tapefs.emulator.transport import TargetTransport
from tapefs.scsi import cdb as c
from tapefs.scsi.completion import Completion
from tapefs.scsi.data import LongPosition, ShortPosition
from tapefs.scsi.sense import (
    BeginningOfMedium,
    EndOfData,
    FilemarkDetected,
    IllegalRequest,
    MediumError,
    Sense,
    SenseKey,
)

# Three tape files of 3, 2 and 4 records; block numbers of the filemarks are 3, 6 and 11.
COUNTS = (3, 2, 4)
END = TapePosition(12, 3, 0)


def address(file: int, number: int) -> TapeAddress:
    return TapeAddress(sum(COUNTS[:file]) + file + number, file, number)


@pytest.mark.parametrize("start", [(0, 0), (1, 1), (2, 4)])
async def test_locate_from_anywhere_to_anywhere(
    rigs: Rigs, personality: str, start: tuple[int, int]
) -> None:
    drive = await rigs(personality).open()
    await write_files(drive, *COUNTS)
    for file, count in enumerate(COUNTS):
        for number in range(count):
            await drive.locate(address(*start))
            await drive.locate(address(file, number))
            where = address(file, number)
            assert await drive.position() == TapePosition(
                where.block, file, number, beginning=where.block == 0
            )
            assert await read_number(drive) == 100 * file + number


async def test_locate_with_nothing_known(rigs: Rigs, personality: str) -> None:
    rig = rigs(personality)
    await write_files(await rig.open(), *COUNTS)
    drive = await rig.open()
    await drive.locate(address(1, 1))
    assert await read_number(drive) == 101


async def test_locate_sends_nothing_when_the_head_is_there(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await drive.locate(address(1, 0))
    rig.wire.forget()
    await drive.locate(address(1, 0))
    assert not rig.wire.log
    assert drive.statistics().locates == 1


async def test_a_drive_without_locate_is_asked_once(rigs: Rigs) -> None:
    rig = rigs("plain")
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await drive.locate(address(1, 0))
    assert len(rig.wire.sent(c.Locate10)) == 1
    await drive.wait_ready(10.0)
    await drive.locate(address(1, 0))
    assert len(rig.wire.sent(c.Locate10)) == 1
    rig.wire.forget()
    # Forward within reach of relative motion: no rewind, no LOCATE.
    await drive.locate(address(2, 2))
    assert rig.wire.log == [
        c.Space6(c.SpaceCode.FILEMARKS, 1),
        c.Space6(c.SpaceCode.BLOCKS, 2),
    ]
    await drive.locate(address(2, 1))
    assert rig.wire.log[2:] == [c.Space6(c.SpaceCode.BLOCKS, -1)]


async def test_a_refused_locate_does_not_lose_the_position(rigs: Rigs) -> None:
    rig = rigs("plain")
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await drive.rewind()
    rig.wire.forget()
    await drive.locate(address(1, 0))
    expected: list[c.Command] = [c.Locate10(4), c.Space6(c.SpaceCode.FILEMARKS, 1)]
    assert rig.wire.log == expected


async def test_a_locate_that_worked_once_may_not_be_refused(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await drive.locate(address(1, 0))
    rig.wire.answer(c.Locate10, Sense(SenseKey.ILLEGAL_REQUEST, 0x24))
    with pytest.raises(IllegalRequest):
        await drive.locate(address(2, 0))


async def test_blocks_beyond_32_bits_take_the_wide_command(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    with pytest.raises(EndOfData):
        await drive.locate(TapeAddress(1 << 32, 1, 0))
    assert rig.wire.log == [c.Locate16(1 << 32)]


async def test_locate_beyond_the_end_leaves_the_position_unknown(
    rigs: Rigs, personality: str
) -> None:
    drive = await rigs(personality).open()
    await write_files(drive, *COUNTS)
    for beyond in (TapeAddress(20, 5, 0), TapeAddress(13, 3, 1)):
        with pytest.raises(EndOfData):
            await drive.locate(beyond)
        with pytest.raises(PositionUnknown):
            await drive.write_block(record(0))


async def test_locate_across_a_filemark_is_never_taken_for_arrival(rigs: Rigs) -> None:
    drive = await rigs("plain").open()
    await write_files(drive, *COUNTS)
    with pytest.raises(FilemarkDetected):
        await drive.locate(TapeAddress(7, 1, 3))
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))


async def test_end_of_data_is_found_and_can_be_appended_to(rigs: Rigs, personality: str) -> None:
    rig = rigs(personality)
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await drive.locate(address(0, 1))
    end = await drive.space_to_end_of_data()
    assert end.block == END.block
    await drive.write_block(record(777))
    await drive.write_filemarks(1)
    drive = await rig.open()
    end = await drive.space_to_end_of_data()
    assert end.block == 14
    await drive.space_filemarks(-1)
    await drive.space_blocks(-1)
    assert await read_number(drive) == 777


async def test_end_of_data_behind_a_torn_file(rigs: Rigs, personality: str) -> None:
    rig = rigs(personality)
    drive = await rig.open()
    await write_files(drive, 3, 2)
    await drive.write_block(record(1))
    await drive.write_block(record(2))
    await drive.write_filemarks(0)
    await drive.rewind()
    end = await drive.space_to_end_of_data()
    assert end.block == 9
    if not drive.capabilities.read_position:
        assert end == TapePosition(9, 2, 2)
    # How many records are torn off is what lies between the end and the last filemark.
    await drive.space_filemarks(-1)
    assert (await drive.position()).block == 6


async def test_end_of_data_of_a_blank_tape(rigs: Rigs, personality: str) -> None:
    drive = await rigs(personality).open()
    assert await drive.space_to_end_of_data() == TapePosition(0, 0, 0, beginning=True)


async def test_end_of_data_when_spacing_says_blank_check(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    for sense in (Sense(SenseKey.BLANK_CHECK, 0, 5), Sense(SenseKey.NO_SENSE, 0, 5)):
        rig.wire.answer(c.Space6, sense)
        assert (await drive.space_to_end_of_data()).block == 12


async def test_a_filemark_is_no_end_of_data(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    rig.wire.answer(c.Space6, Sense(filemark=True))
    with pytest.raises(FilemarkDetected):
        await drive.space_to_end_of_data()
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))


async def test_end_of_data_when_read_position_knows_nothing(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    rig.wire.answer(c.ReadPosition, Completion(True, memoryview(LongPosition().pack())))
    assert await drive.space_to_end_of_data() == END


# A drive that tells nothing: no READ POSITION to believe, SPACE without residue.


async def test_without_residues_the_blocks_are_read_over(rigs: Rigs) -> None:
    rig = rigs("plain")
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await drive.rewind()
    rig.wire.answer(c.Space6, Sense(asc=0, ascq=1, filemark=True))
    assert await drive.space_to_end_of_data() == END
    assert drive.capabilities.space_tells is False
    # 9 records, 3 filemarks, and the end.
    assert len(rig.wire.sent(c.Read6)) == 13


async def test_a_drive_that_runs_over_filemarks_is_not_believed(rigs: Rigs) -> None:
    rig = rigs("tgt")
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await drive.rewind()
    with pytest.raises(EndOfData):
        await drive.space_blocks(100)
    assert await drive.position() == TapePosition()
    assert await drive.space_to_end_of_data() == END
    await drive.locate(address(1, 1))
    await drive.space_blocks(1)
    # It may stand behind filemark 1 now, or far beyond.
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))


@pytest.mark.parametrize("name", ["plain", "tgt"])
async def test_counting_starts_from_a_place_that_is_known(rigs: Rigs, name: str) -> None:
    rig = rigs(name)
    await write_files(await rig.open(), *COUNTS)
    drive = await rig.open()
    assert await drive.space_to_end_of_data(near=address(2, 0)) == END
    assert len(rig.wire.sent(c.Read6)) == (6 if name == "tgt" else 0)
    rig.wire.forget()
    # The end is where it was last seen: nothing lies between.
    assert await drive.space_to_end_of_data(near=address(3, 0)) == END
    assert len(rig.wire.sent(c.Read6, c.Space6)) <= 3


@pytest.mark.parametrize("name", ["plain", "tgt"])
async def test_a_place_that_is_not_there_is_not_taken_for_granted(rigs: Rigs, name: str) -> None:
    rig = rigs(name)
    await write_files(await rig.open(), *COUNTS)
    drive = await rig.open()
    assert await drive.space_to_end_of_data(near=TapeAddress(30, 4, 0)) == END


async def test_passing_tape_files(rigs: Rigs, personality: str) -> None:
    rig = rigs(personality)
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await drive.write_block(record(1))
    await drive.rewind()
    assert [await drive.pass_tape_file() for _ in COUNTS] == [4, 7, 12]
    assert await read_number(drive) == 1
    with pytest.raises(EndOfData):
        await drive.pass_tape_file()
    await drive.locate(address(1, 1))
    assert await drive.pass_tape_file() == 7


async def test_passing_a_tape_file_needs_a_place_to_start(rigs: Rigs) -> None:
    drive = await rigs("plain").open()
    with pytest.raises(PositionUnknown):
        await drive.pass_tape_file()


@pytest.mark.parametrize("standard", PERSONALITIES[:-1])
async def test_spacing_forward_and_backward(rigs: Rigs, standard: str) -> None:
    drive = await rigs(standard).open()
    await write_files(drive, *COUNTS)
    await drive.rewind()
    await drive.space_filemarks(2)
    assert await read_number(drive) == 200
    await drive.space_blocks(2)
    assert await read_number(drive) == 203
    await drive.space_blocks(-3)
    assert await read_number(drive) == 201
    await drive.space_filemarks(-1)
    with pytest.raises(FilemarkDetected):
        await read_number(drive)
    assert await read_number(drive) == 200
    await drive.space_filemarks(-2)
    await drive.space_blocks(-1)
    assert await read_number(drive) == 2
    await drive.space_blocks(0)
    await drive.space_filemarks(0)
    with pytest.raises(FilemarkDetected):
        await drive.space_blocks(1)
    assert await read_number(drive) == 100


@pytest.mark.parametrize("standard", PERSONALITIES[:-1])
async def test_spacing_that_meets_a_mark_knows_where_it_stands(rigs: Rigs, standard: str) -> None:
    drive = await rigs(standard).open()
    await write_files(drive, *COUNTS)
    await drive.rewind()
    with pytest.raises(FilemarkDetected):
        await drive.space_blocks(10)
    assert await drive.position() == TapePosition(4, 1, 0)
    await drive.space_blocks(1)
    with pytest.raises(FilemarkDetected):
        await drive.space_blocks(-5)
    assert await drive.position() == TapePosition(3, 0, None)
    with pytest.raises(BeginningOfMedium):
        await drive.space_blocks(-5)
    assert await drive.position() == TapePosition(0, 0, 0, beginning=True)
    await drive.space_filemarks(2)
    with pytest.raises(BeginningOfMedium):
        await drive.space_filemarks(-5)
    assert await drive.position() == TapePosition(0, 0, 0, beginning=True)
    with pytest.raises(EndOfData):
        await drive.space_filemarks(5)
    position = await drive.position()
    assert position.file == 3
    assert position.block in (12, None)
    await drive.locate(address(2, 0))
    with pytest.raises(FilemarkDetected):
        await drive.space_blocks(9)
    with pytest.raises(EndOfData):
        await drive.space_blocks(9)
    assert await drive.position() == END


async def test_a_residue_with_the_wrong_sign_is_understood(rigs: Rigs) -> None:
    rig = rigs("plain")
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await drive.locate(address(1, 1))
    rig.wire.answer(c.Space6, Sense(asc=0, ascq=1, filemark=True, information=-4))
    with pytest.raises(FilemarkDetected):
        await drive.space_blocks(-5)
    assert (await drive.position()).block == 3


async def test_a_failed_motion_makes_the_position_unknown(rigs: Rigs, personality: str) -> None:
    rig = rigs(personality)
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    lost = Sense(SenseKey.MEDIUM_ERROR, 0x3B)
    rig.wire.answer(c.Rewind, lost)
    with pytest.raises(MediumError):
        await drive.rewind()
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))
    assert (await drive.position()).file in (3, None)
    await drive.rewind()
    rig.wire.answer(c.Space6, lost)
    with pytest.raises(MediumError):
        await drive.space_blocks(1)
    with pytest.raises(PositionUnknown):
        await drive.write_filemarks(1)


async def test_a_tape_that_was_moved_unseen_is_noticed(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    await TargetTransport.execute(rig.wire, c.Rewind())
    with pytest.raises(PositionMismatch, match="block 0 instead of 12"):
        await drive.position()
    with pytest.raises(PositionUnknown):
        await drive.write_block(record(0))
    assert await drive.position() == TapePosition(0, 0, 0, beginning=True)


async def test_a_drive_that_does_not_know_is_not_believed(rigs: Rigs) -> None:
    rig = rigs()
    rig.wire.answer(c.ReadPosition, Sense(SenseKey.ILLEGAL_REQUEST, 0x24))
    drive = await rig.open()
    await write_files(drive, *COUNTS)
    # What one known target answers, whatever happens.
    answer = Completion(True, memoryview(bytes.fromhex("14" + "00" * 19)))
    rig.wire.answer(c.ReadPosition, answer)
    assert await drive.position() == END
    wrong = Completion(True, memoryview(ShortPosition(block=3).pack()))
    rig.wire.answer(c.ReadPosition, wrong)
    with pytest.raises(PositionMismatch):
        await drive.position()


# Any sequence of actions, against a list


class Model:
    """What the tape must hold and where the head must be: a list of numbers, None a filemark."""

    def __init__(self) -> None:
        self.objects: list[int | None] = []
        self.head = 0

    def write(self, *objects: int | None) -> None:
        self.objects[self.head :] = objects
        self.head = len(self.objects)

    @property
    def file(self) -> int:
        return self.objects[: self.head].count(None)

    @property
    def address(self) -> TapeAddress:
        return self.address_of(self.head)

    def address_of(self, block: int) -> TapeAddress:
        before = self.objects[:block]
        in_file = before[::-1].index(None) if None in before else block
        return TapeAddress(block, before.count(None), in_file)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "mark", "read", "rewind", "locate", "end"]), st.integers(0)
    ),
    max_size=25,
)


async def act(drive: TapeDrive, model: Model, action: str, number: int) -> None:
    if action == "write":
        await drive.write_block(record(number % 1000))
        model.write(number % 1000)
    elif action == "mark":
        await drive.write_filemarks(number % 3)
        if number % 3:
            model.write(*[None] * (number % 3))
    elif action == "rewind":
        await drive.rewind()
        model.head = 0
    elif action == "locate":
        model.head = number % (len(model.objects) + 1)
        await drive.locate(model.address)
    elif action == "end":
        model.head = len(model.objects)
        assert (await drive.space_to_end_of_data()).block == model.head
    else:
        await read_one(drive, model)


async def read_one(drive: TapeDrive, model: Model) -> None:
    if model.head == len(model.objects):
        with pytest.raises(EndOfData):
            await read_number(drive)
        return
    expected = model.objects[model.head]
    model.head += 1
    if expected is None:
        with pytest.raises(FilemarkDetected):
            await read_number(drive)
    else:
        assert await read_number(drive) == expected


@pytest.mark.parametrize("personality", PERSONALITIES)
@given(actions=ACTIONS)
@settings(max_examples=40, deadline=None)
def test_any_sequence_of_actions(personality: str, actions: list[tuple[str, int]]) -> None:
    async def run(directory: Path) -> None:
        with contextlib.closing(Rigs(directory)) as rigs:
            drive = await rigs(personality).open()
            await drive.rewind()
            model = Model()
            for action, number in actions:
                await act(drive, model, action, number)
                position = await drive.position()
                assert position.block == model.head
                assert position.file in (model.file, None)
                assert position.block_in_file in (model.address.block_in_file, None)

    with tempfile.TemporaryDirectory() as directory:
        trio.run(run, Path(directory))
