"""The emulated drive, judged by SSC-4: against a plain list of objects, and case by case."""

from __future__ import annotations

import os
import subprocess
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
import tap_reader
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tapefs.config import KIB, MIB
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.name import VirtualDriveName, open_cartridge
from tapefs.emulator.personality import PERSONALITIES, Personality
from tapefs.emulator.target import Target
from tapefs.emulator.transport import TargetTransport
from tapefs.errors import DriveGone, MediumFailed, NoDrive, UsageError
from tapefs.scsi import cdb as c
from tapefs.scsi.data import (
    BlockDescriptor,
    BlockLimits,
    DataCompressionPage,
    LogPage,
    LongPosition,
    ModeParameters,
    ShortPosition,
    StandardInquiry,
    SupportedPages,
    TapeAlert,
    TapeCapacity,
    UnitSerialNumber,
)
from tapefs.scsi.sense import OverlappedCommands, Sense, SenseKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tapefs.emulator.reply import TargetReply

    Make = Callable[..., Target]

CAPACITY_BYTES = 1 << 30
GOOD = None
FLUSH = c.WriteFilemarks6(0)
MARK = c.WriteFilemarks6(1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cartridge.tap"


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    """A powered-on drive with a blank cartridge, its first unit attention taken."""
    made: list[Target] = []

    def build(
        personality: str = "lto5", capacity_bytes: int = CAPACITY_BYTES, **changes: object
    ) -> Target:
        model = replace(PERSONALITIES[personality], **changes)  # type: ignore[arg-type]
        target = Target(VirtualCartridge.create(path, personality, capacity_bytes), model)
        made.append(target)
        assert run(target, c.TestUnitReady()) == Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
        return target

    yield build
    for target in made:
        if target.cartridge is not None:
            target.cartridge.close()


@pytest.fixture
def target(make: Make) -> Target:
    return make()


def run(target: Target, command: c.Command, data: bytes = b"") -> Sense | None:
    """Execute; None for GOOD, else the sense."""
    return outcome(target, command, data)[1]


def outcome(
    target: Target, command: c.Command, data: bytes = b""
) -> tuple[TargetReply, Sense | None]:
    reply = target.execute(command.pack(), data)
    if reply.good:
        return reply, GOOD
    reply = replace(reply, data_in=bytes(reply.data_in))
    sense = target.execute(c.RequestSense().pack())
    assert sense.good
    return reply, Sense.unpack(bytes(sense.data_in))


def ask(target: Target, command: c.Command) -> bytes:
    reply, sense = outcome(target, command)
    assert sense is GOOD
    return bytes(reply.data_in)


def write(target: Target, data: bytes) -> Sense | None:
    return run(target, c.Write6(len(data)), data)


def read(target: Target, length: int = 100, *, sili: bool = False) -> tuple[bytes, Sense | None]:
    reply, sense = outcome(target, c.Read6(length, sili=sili))
    return bytes(reply.data_in), sense


def position(target: Target) -> int:
    return ShortPosition.unpack(ask(target, c.ReadPosition())).block


def fill(target: Target, content: str) -> None:
    """Letters are one-letter records, dots are filemarks."""
    for letter in content:
        assert (run(target, MARK) if letter == "." else write(target, letter.encode())) is GOOD


def go(target: Target, block: int) -> None:
    assert run(target, c.Locate10(block)) is GOOD


# Against a model.


@dataclass
class Model:
    """A tape as a list: bytes are records, None is a filemark."""

    objects: list[bytes | None] = field(default_factory=list)
    at: int = 0

    def write(self, item: bytes | None) -> tuple[str, int]:
        self.objects[self.at :] = [item]
        self.at += 1
        return "good", 0

    def read(self) -> tuple[str, int] | tuple[str, bytes]:
        if self.at == len(self.objects):
            return "end of data", 100
        item = self.objects[self.at]
        self.at += 1
        return ("filemark", 100) if item is None else ("read", item)

    def space(self, count: int, *, marks: bool) -> tuple[str, int]:
        """Step by step, as the standard words it."""
        left = abs(count)
        while left:
            if count > 0:
                if self.at == len(self.objects):
                    return "end of data", left
                item = self.objects[self.at]
                self.at += 1
            else:
                if self.at == 0:
                    return "beginning", left
                self.at -= 1
                item = self.objects[self.at]
            if marks:
                left -= item is None
            elif item is None:
                return "filemark", left
            else:
                left -= 1
        return "good", 0

    def locate(self, block: int) -> tuple[str, int]:
        self.at = min(block, len(self.objects))
        return ("good", 0) if block == self.at else ("end of data", block - self.at)


def told(sense: Sense | None) -> tuple[str, int]:
    """A sense in the model's words."""
    if sense is None:
        return "good", 0
    assert sense.information is not None
    words = {
        (SenseKey.NO_SENSE, 0x0001): "filemark",
        (SenseKey.BLANK_CHECK, 0x0005): "end of data",
        (SenseKey.NO_SENSE, 0x0004): "beginning",
    }
    name = words[sense.key, sense.asc << 8 | sense.ascq]
    assert sense.filemark == (name == "filemark")
    assert sense.end_of_medium == (name == "beginning")
    return name, sense.information


def perform(target: Target, model: Model, name: str, number: int) -> None:
    if name == "write":
        data = os.urandom(number % 90 + 1)
        assert told(write(target, data)) == model.write(data)
    elif name == "mark":
        assert told(run(target, c.WriteFilemarks6(1, immediate=number < 0))) == model.write(None)
    elif name == "read":
        data, sense = read(target)
        expected = model.read()
        if expected[0] == "read":
            assert data == expected[1]
            if len(data) != 100:
                assert sense == Sense(incorrect_length=True, information=100 - len(data))
        else:
            assert (told(sense), data) == (expected, b"")
    elif name == "locate":
        command = c.Locate16 if number % 2 else c.Locate10
        assert told(run(target, command(abs(number)))) == model.locate(abs(number))
    else:
        marks = name == "space marks"
        code = c.SpaceCode.FILEMARKS if marks else c.SpaceCode.BLOCKS
        space = c.Space16 if number % 2 else c.Space6
        assert told(run(target, space(code, number))) == model.space(number, marks=marks)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "mark", "read", "locate", "space", "space marks"]),
        st.integers(-6, 6) | st.integers(-200, 200),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, buffer_bytes=st.sampled_from([0, 300, MIB]))
def test_a_drive_is_a_list_of_objects_and_a_place_in_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], buffer_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("model") / "c.tap"
    model = Model()
    with VirtualCartridge.create(path, "lto5", CAPACITY_BYTES) as cartridge:
        target = Target(cartridge, replace(PERSONALITIES["lto5"], buffer_bytes=buffer_bytes))
        run(target, c.TestUnitReady())
        for name, number in steps:
            perform(target, model, name, number)
            assert position(target) == model.at
            long = LongPosition.unpack(ask(target, c.ReadPosition(c.PositionForm.LONG)))
            assert (long.block, long.file) == (model.at, model.objects[: model.at].count(None))
        assert run(target, FLUSH) is GOOD
    assert list(tap_reader.objects(path)) == model.objects


# Reading.


def test_lengths_that_differ_are_told_with_the_data(target: Target) -> None:
    assert write(target, b"0123456789") is GOOD
    go(target, 0)
    assert read(target, 16) == (b"0123456789", Sense(incorrect_length=True, information=6))
    go(target, 0)
    assert read(target, 4) == (b"0123", Sense(incorrect_length=True, information=-6))
    assert position(target) == 1, "behind the block, whose rest is lost"
    go(target, 0)
    assert read(target, 10) == (b"0123456789", GOOD)
    go(target, 0)
    assert read(target, 16, sili=True) == (b"0123456789", GOOD)
    go(target, 0)
    assert read(target, 4, sili=True) == (b"0123", GOOD)
    go(target, 0)
    assert read(target, 0) == (b"", GOOD)
    assert position(target) == 0


def test_reading_behind_what_was_just_written_meets_the_end_of_data(
    target: Target, path: Path
) -> None:
    fill(target, "ab")
    assert told(read(target)[1]) == ("end of data", 100)
    assert list(tap_reader.objects(path)) == [b"a", b"b"], "a drive that reads has stopped writing"
    assert write(target, b"c") is GOOD, "and that is where an append goes"
    go(target, 2)
    assert read(target, 1) == (b"c", GOOD)


def test_an_unreadable_block_is_passed(target: Target) -> None:
    fill(target, "abc")
    target.faults.unreadable[1] = 1
    go(target, 1)
    sense = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00, information=1)
    assert read(target, 1) == (b"", sense)
    assert read(target, 1) == (b"c", GOOD)
    go(target, 1)
    assert read(target, 1) == (b"b", GOOD), "it was to fail once"
    alerts = TapeAlert.from_page(LogPage.unpack(ask(target, c.LogSense(0x2E))))
    assert alerts.flags == {3, 5}
    alerts = TapeAlert.from_page(LogPage.unpack(ask(target, c.LogSense(0x2E))))
    assert not alerts.flags, "reading clears them"


def test_sequential_filemarks(target: Target) -> None:
    fill(target, "a.b..c...d")
    code = c.SpaceCode.SEQUENTIAL_FILEMARKS
    go(target, 0)
    assert run(target, c.Space6(code, 2)) is GOOD
    assert position(target) == 5
    assert run(target, c.Space6(code, 3)) is GOOD
    assert position(target) == 9
    assert run(target, c.Space6(code, -2)) is GOOD
    assert position(target) == 7
    assert told(run(target, c.Space6(code, 9)))[0] == "end of data"
    assert told(run(target, c.Space6(code, -4)))[0] == "beginning"


def test_locate_by_file_and_to_the_end(target: Target) -> None:
    fill(target, "a.b.c")
    for number, block in ((0, 0), (2, 4), (1, 2)):
        assert run(target, c.Locate16(number, destination=c.LocateDestination.FILE)) is GOOD
        assert position(target) == block
    missing = c.Locate16(5, destination=c.LocateDestination.FILE)
    assert told(run(target, missing)) == ("end of data", 3)
    go(target, 0)
    assert run(target, c.Locate16(0, destination=c.LocateDestination.END_OF_DATA)) is GOOD
    assert position(target) == 5
    go(target, 0)
    assert run(target, c.Space6(c.SpaceCode.END_OF_DATA)) is GOOD
    assert position(target) == 5


# The buffer.


def test_power_cut_loses_exactly_what_was_not_flushed(target: Target, path: Path) -> None:
    fill(target, "ab.")
    assert write(target, b"lost") is GOOD
    assert run(target, c.WriteFilemarks6(1, immediate=True)) is GOOD
    short = ShortPosition.unpack(ask(target, c.ReadPosition()))
    assert (short.block, short.last_block) == (5, 3)
    assert (short.buffered_blocks, short.buffered_bytes) == (2, 4)
    target.power_cut()
    assert list(tap_reader.objects(path)) == [b"a", b"b", None]
    assert run(target, c.TestUnitReady()) == Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
    assert position(target) == 0


@pytest.mark.parametrize(
    "command",
    [
        FLUSH,
        MARK,
        c.Rewind(),
        c.Locate10(0),
        c.Space6(c.SpaceCode.BLOCKS, -1),
        c.Space6(c.SpaceCode.END_OF_DATA),
        c.LoadUnload(load=False),
        c.Erase6(),
    ],
    ids=lambda command: str(command.name),
)
def test_what_brings_the_buffer_to_the_disk(
    target: Target, path: Path, monkeypatch: pytest.MonkeyPatch, command: c.Command
) -> None:
    assert write(target, b"kept") is GOOD
    assert list(tap_reader.objects(path)) == []
    synced: list[list[bytes | None]] = []
    real = os.fdatasync

    def counted(fd: int) -> None:
        synced.append(list(tap_reader.objects(path)))
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    assert run(target, command) is GOOD
    assert synced
    assert synced[-1][0] == b"kept", "written before it was synced"


def test_the_buffer_is_bounded(make: Make, path: Path) -> None:
    target = make(buffer_bytes=10_000)
    for index in range(20):
        assert write(target, bytes([index]) * 1000) is GOOD
        short = ShortPosition.unpack(ask(target, c.ReadPosition()))
        assert short.buffered_bytes is not None
        assert short.buffered_bytes <= 10_000
    on_tape = list(tap_reader.objects(path))
    assert len(on_tape) >= 10
    assert on_tape == [bytes([index]) * 1000 for index in range(len(on_tape))]
    assert write(target, b"x" * 50_000) is GOOD, "larger than the buffer, but a block is a block"
    go(target, 20)
    assert read(target, 50_000) == (b"x" * 50_000, GOOD)


def test_tiny_records_fill_the_buffer_too(make: Make) -> None:
    target = make(buffer_bytes=10_000)
    for _ in range(1000):
        assert write(target, b"x") is GOOD
    short = ShortPosition.unpack(ask(target, c.ReadPosition()))
    assert short.buffered_blocks is not None
    assert short.buffered_blocks < 100, "each costs more host memory than its one byte"


def test_unbuffered_mode_writes_before_it_answers(target: Target, path: Path) -> None:
    unbuffered = ModeParameters(buffered_mode=0, descriptor=BlockDescriptor()).pack(select=True)
    assert run(target, c.ModeSelect6(len(unbuffered)), unbuffered) is GOOD
    assert write(target, b"at once") is GOOD
    assert list(tap_reader.objects(path)) == [b"at once"]


def test_the_senders_memory_is_not_kept(target: Target) -> None:
    data = array("B", b"before")
    assert target.execute(c.Write6(6).pack(), data).good
    data[:] = array("B", b"after!")
    go(target, 0)
    assert read(target, 6) == (b"before", GOOD)


def test_writing_in_the_middle_truncates(target: Target, path: Path) -> None:
    fill(target, "ab.cd.")
    go(target, 1)
    fill(target, "x")
    assert told(run(target, c.Locate10(6))) == ("end of data", 4)
    assert list(tap_reader.objects(path)) == [b"a", b"x"]


def test_erase_makes_this_the_end(target: Target, path: Path) -> None:
    fill(target, "ab.cd.")
    go(target, 3)
    assert run(target, c.Erase6(long=True)) is GOOD
    assert list(tap_reader.objects(path)) == [b"a", b"b", None]
    assert told(read(target)[1])[0] == "end of data"


def test_a_write_error_is_told_to_a_later_command(make: Make) -> None:
    target = make(buffer_bytes=3000)
    target.faults.unwritable[1] = 1
    senses = [write(target, bytes([i]) * 1000) for i in range(6)]
    failed = next(i for i, sense in enumerate(senses) if sense is not None)
    assert failed > 1, "block 1 itself was reported good"
    sense = senses[failed]
    assert sense is not None
    assert (sense.key, sense.asc, sense.deferred) == (SenseKey.MEDIUM_ERROR, 0x0C, True)
    assert sense.information == (failed - 1) * 1000, "everything from block 1 on but not this one"
    go(target, 1)
    assert told(run(target, c.Locate10(20)))[0] == "end of data"


def test_a_bad_block_ends_a_run_before_it(make: Make, path: Path) -> None:
    target = make()
    target.faults.unwritable[2] = 1
    for data in (b"a", b"b", b"c", b"d"):
        assert write(target, data) is GOOD
    sense = run(target, MARK)
    assert sense == Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00, information=3), "c, d and the mark"
    assert list(tap_reader.objects(path)) == [b"a", b"b"]


def test_the_buffer_goes_to_the_disk_in_runs(
    make: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real, calls = make(), os.pwritev, []

    def pwritev(fd: int, buffers: Sequence[bytes], offset: int) -> int:
        calls.append(offset)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    for index in range(100):
        assert write(target, bytes([index])) is GOOD
    assert run(target, MARK) is GOOD
    assert write(target, b"next") is GOOD
    assert run(target, MARK) is GOOD
    records = [bytes([index]) for index in range(100)]
    assert list(tap_reader.objects(path)) == [*records, None, b"next", None]
    assert len(calls) == 5, "a hundred in two, a mark, one, a mark"


def test_a_write_error_at_a_flush_is_about_the_flush(target: Target) -> None:
    fill(target, "ab")
    target.faults.unwritable[3] = 1
    assert write(target, b"c") is GOOD
    assert write(target, b"dd") is GOOD
    sense = run(target, MARK)
    assert sense == Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00, information=3)
    assert position(target) == 3
    fill(target, "d.")


def test_a_disk_that_fails_to_sync_is_a_write_error(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    assert write(target, b"a") is GOOD
    monkeypatch.setattr(os, "fdatasync", broken)
    sense = run(target, MARK)
    assert sense is not None
    assert (sense.key, sense.asc) == (SenseKey.MEDIUM_ERROR, 0x0C)


# The end of the tape.


def write_to_the_end(target: Target, length: int) -> tuple[int, int, Sense]:
    """Blocks that were good, blocks with early warning, and the sense that ended it."""
    good = warned = 0
    data = bytes(length)
    for _ in range(10_000):
        reply, sense = outcome(target, c.Write6(length), data)
        if sense is GOOD:
            assert not warned, "early warning comes with every write in the zone"
            good += 1
        elif sense.key is SenseKey.NO_SENSE:
            assert sense == Sense(asc=0, ascq=2, end_of_medium=True, information=0)
            assert reply.consumed_bytes == length
            warned += 1
        else:
            assert reply.consumed_bytes == 0
            return good, warned, sense
    raise AssertionError("the tape has no end")


def test_a_drive_that_writes_through_at_the_end_loses_only_the_last_block(
    make: Make, path: Path
) -> None:
    target = make("ait3", capacity_bytes=MIB, default_block_bytes=0)
    good, warned, sense = write_to_the_end(target, 1000)
    assert sense == Sense(
        SenseKey.VOLUME_OVERFLOW, 0x00, 0x02, end_of_medium=True, information=1000
    )
    assert good + warned == MIB // 1008
    assert warned == MIB // 20 // 1008
    assert len(list(tap_reader.objects(path))) == good + warned
    assert position(target) == good + warned
    assert path.stat().st_size <= MIB
    after = run(target, c.Write6(1000), bytes(1000))
    assert after is not None
    assert after.key is SenseKey.VOLUME_OVERFLOW
    small = run(target, MARK)
    assert small is not None
    assert small.key is SenseKey.NO_SENSE, "something smaller may still fit"


def test_a_drive_that_buffers_to_the_end_may_lose_blocks_it_accepted(
    make: Make, path: Path
) -> None:
    target = make("lto5", capacity_bytes=MIB, buffer_bytes=20_000)
    good, warned, sense = write_to_the_end(target, 1000)
    assert (sense.key, sense.end_of_medium) == (SenseKey.VOLUME_OVERFLOW, True)
    on_tape = len(list(tap_reader.objects(path)))
    assert on_tape == MIB // 1008
    lost = good + warned + 1 - on_tape
    assert lost > 1
    assert sense.information == lost * 1000
    assert position(target) == on_tape, "READ POSITION tells what is there"


def test_a_flush_at_the_end_tells_of_blocks_and_marks(make: Make) -> None:
    target = make("lto5", capacity_bytes=MIB)
    data = bytes(1000)
    for _ in range(MIB // 1008 + 3):
        run(target, c.Write6(1000), data)
    sense = run(target, MARK)
    assert sense == Sense(
        SenseKey.VOLUME_OVERFLOW, 0x00, 0x02, end_of_medium=True, information=3001
    )


def test_at_the_first_warning_everything_accepted_is_on_tape(make: Make, path: Path) -> None:
    target = make("lto5", capacity_bytes=MIB)
    count = 0
    while run(target, c.Write6(1000), bytes(1000)) is GOOD:
        count += 1
    assert len(list(tap_reader.objects(path))) == count + 1
    short = ShortPosition.unpack(ask(target, c.ReadPosition()))
    assert short.end
    assert not short.beginning
    assert run(target, FLUSH) is not GOOD, "flushing in the zone warns as well"
    go(target, 0)
    assert not ShortPosition.unpack(ask(target, c.ReadPosition())).end


def test_a_rewritten_tape_warns_again(make: Make, path: Path) -> None:
    target = make("lto5", capacity_bytes=MIB)
    for _ in range(2):
        assert run(target, c.Rewind()) is GOOD
        good = 0
        while run(target, c.Write6(1000), bytes(1000)) is GOOD:
            good += 1
        assert good == (MIB - MIB // 20) // 1008
        assert len(list(tap_reader.objects(path))) == good + 1


@pytest.mark.parametrize(("personality", "unit"), [("ait3", KIB), ("lto5", MIB)])
def test_remaining_capacity(make: Make, personality: str, unit: int) -> None:
    target = make(personality, capacity_bytes=100 * MIB, default_block_bytes=0)

    def capacity() -> TapeCapacity:
        page = LogPage.unpack(ask(target, c.LogSense(0x31)))
        found = TapeCapacity.from_page(page, unit)
        assert found is not None
        return found

    assert capacity() == TapeCapacity(95 * MIB, 95 * MIB)
    for _ in range(10):
        assert write(target, bytes(MIB)) is GOOD
    assert capacity().remaining_bytes == 85 * MIB - unit, "framing costs a little, rounded up"
    assert run(target, c.Rewind()) is GOOD
    assert capacity().remaining_bytes < 85 * MIB, "room is counted from the end of data"


def test_volume_statistics_and_chip(make: Make) -> None:
    target = make("lto5", capacity_bytes=1000 * MIB)
    assert write(target, bytes(MIB)) is GOOD
    statistics = TapeCapacity.from_statistics(LogPage.unpack(ask(target, c.LogSense(0x17))))
    assert statistics is not None
    assert statistics.total_bytes == 950 * MIB // 1_000_000 * 1_000_000
    assert statistics.remaining_bytes == (949 * MIB - 8) // 1_000_000 * 1_000_000
    assert run(target, FLUSH) is GOOD
    chip = ask(target, c.ReadAttribute(first=0x0009))
    assert chip[:4] == (len(chip) - 4).to_bytes(4, "big")
    assert chip[4:13] == bytes.fromhex("0009 80 0004 00000001"), "written once since it was made"


# State.


def test_any_other_command_clears_the_sense(target: Target) -> None:
    assert not target.execute(c.Read6(100).pack()).good
    assert target.execute(c.TestUnitReady().pack()).good
    sense = Sense.unpack(bytes(target.execute(c.RequestSense().pack()).data_in))
    assert sense == Sense()


def test_inquiry_is_answered_before_the_unit_attention(path: Path) -> None:
    with VirtualCartridge.create(path, "ait3", CAPACITY_BYTES) as cartridge:
        target = Target(cartridge)
        inquiry = StandardInquiry.unpack(ask(target, c.Inquiry()))
        assert (inquiry.vendor, inquiry.product) == ("SONY", "SDX-700C")
        assert (inquiry.device_type, inquiry.removable) == (1, True)
        assert run(target, c.TestUnitReady()) == Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
        assert run(target, c.TestUnitReady()) is GOOD
        target.reset()
        sense = ask(target, c.RequestSense())
        assert Sense.unpack(sense).key is SenseKey.UNIT_ATTENTION, "told by REQUEST SENSE itself"
        assert run(target, c.TestUnitReady()) is GOOD


def test_vital_product_data(target: Target) -> None:
    pages = SupportedPages.unpack(ask(target, c.Inquiry(True, 0x00, 96))).pages
    assert pages == (0x00, 0x80, 0x83, 0xB0)
    serial = UnitSerialNumber.unpack(ask(target, c.Inquiry(True, 0x80, 96))).serial
    assert serial == target.serial
    for page in pages:
        answer = ask(target, c.Inquiry(True, page, 255))
        assert answer[1] == page
        assert len(answer) == 4 + int.from_bytes(answer[2:4], "big")
    assert run(target, c.Inquiry(True, 0x99, 96)) == Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0)
    assert run(target, c.Inquiry(False, 0x80, 96)) == Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0)
    assert len(ask(target, c.Inquiry(allocation_bytes=5))) == 5


def test_unload_load_and_removal(target: Target) -> None:
    fill(target, "ab")
    assert run(target, c.PreventAllowMediumRemoval(True)) is GOOD
    refused = Sense(SenseKey.ILLEGAL_REQUEST, 0x53, 0x02)
    assert run(target, c.LoadUnload(load=False)) == refused
    assert run(target, c.PreventAllowMediumRemoval(False)) is GOOD
    assert run(target, c.LoadUnload(load=False)) is GOOD
    no_medium = Sense(SenseKey.NOT_READY, 0x3A, 0x00)
    for command in (c.TestUnitReady(), c.Rewind(), c.ReadPosition(), c.LogSense(0x31), FLUSH):
        assert run(target, command) == no_medium
    assert run(target, c.LogSense(0x2E)) is GOOD, "alerts are about the drive"
    assert run(target, c.LoadUnload(load=True)) is GOOD
    assert run(target, c.TestUnitReady()) == Sense(SenseKey.UNIT_ATTENTION, 0x28, 0x00)
    assert position(target) == 0
    assert read(target, 1) == (b"a", GOOD)
    assert run(target, c.LoadUnload(load=True)) is GOOD
    assert position(target) == 0, "already loaded: rewound"


def test_another_cartridge(target: Target, tmp_path: Path) -> None:
    fill(target, "a")
    first = target.eject()
    assert first is not None
    assert target.cartridge is None
    assert run(target, c.LoadUnload(load=True)) == Sense(SenseKey.NOT_READY, 0x3A, 0x00)
    with VirtualCartridge.create(tmp_path / "other.tap", "lto5", CAPACITY_BYTES) as other:
        target.insert(other)
        assert run(target, c.TestUnitReady()) == Sense(SenseKey.UNIT_ATTENTION, 0x28, 0x00)
        assert told(read(target)[1]) == ("end of data", 100)
        with pytest.raises(ValueError, match="in the drive already"):
            target.insert(first)
        assert target.eject() is other
    target.insert(first)
    run(target, c.TestUnitReady())
    assert read(target, 1) == (b"a", GOOD)


def test_becoming_ready_takes_some_polls(path: Path) -> None:
    with VirtualCartridge.create(path, "lto5", CAPACITY_BYTES) as cartridge:
        target = Target(cartridge, becoming_ready_polls=2)
        answers = [run(target, c.TestUnitReady()) for _ in range(4)]
        codes = [sense.code if sense else "good" for sense in answers]
        assert codes == ["6/29/00", "2/04/01", "2/04/01", "good"]


def test_reset_forgets_modes_and_rewinds_but_keeps_the_buffer(target: Target) -> None:
    fill(target, "ab")
    parameters = ModeParameters(buffered_mode=1, descriptor=BlockDescriptor(0, 0, 1024))
    wanted = parameters.pack(select=True)
    assert run(target, c.ModeSelect6(len(wanted)), wanted) is GOOD
    assert write(target, b"c") is GOOD
    target.reset()
    assert run(target, c.TestUnitReady()) == Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
    modes = ModeParameters.unpack(ask(target, c.ModeSense6()))
    assert modes.descriptor is not None
    assert modes.descriptor.block_bytes == 0
    assert position(target) == 0
    go(target, 2)
    assert read(target, 1) == (b"c", GOOD)


def test_write_protection(make: Make, path: Path) -> None:
    target = make()
    fill(target, "a.")
    cartridge = target.eject()
    assert cartridge is not None
    cartridge.close()
    path.chmod(0o444)
    with VirtualCartridge.open(path) as protected:
        target.insert(protected)
        run(target, c.TestUnitReady())
        assert ModeParameters.unpack(ask(target, c.ModeSense6())).write_protected
        assert read(target, 1) == (b"a", GOOD)
        refused = Sense(SenseKey.DATA_PROTECT, 0x27, 0x00)
        assert write(target, b"b") == refused
        assert run(target, MARK) == refused
        assert run(target, c.Erase6()) == refused
        assert run(target, FLUSH) is GOOD, "there is nothing to flush"
        target.eject()
    assert list(tap_reader.objects(path)) == [b"a", None]


# Modes and limits.


def test_fixed_blocks(make: Make) -> None:
    target = make("ait3")
    assert BlockLimits.unpack(ask(target, c.ReadBlockLimits())) == BlockLimits(2, 0xFFFFFE, 1)
    modes = ModeParameters.unpack(ask(target, c.ModeSense6()))
    assert modes.descriptor == BlockDescriptor(0x32, 0, 512), "as these drives come up"
    data = os.urandom(512 * 3)
    assert target.expects(c.Write6(3, fixed=True).pack()) == (c.Direction.OUT, 1536)
    assert run(target, c.Write6(3, fixed=True), data) is GOOD
    assert position(target) == 3
    assert run(target, MARK) is GOOD
    assert run(target, c.Write6(10), b"variable!!") is GOOD
    go(target, 0)
    reply, sense = outcome(target, c.Read6(5, fixed=True))
    assert (bytes(reply.data_in), told(sense)) == (data, ("filemark", 2))
    reply, sense = outcome(target, c.Read6(2, fixed=True))
    assert sense == Sense(incorrect_length=True, information=2)
    assert reply.data_in == b""
    go(target, 0)
    assert ask(target, c.Read6(2, fixed=True)) == data[:1024]
    bad = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
    assert run(target, c.Read6(1, fixed=True, sili=True)) == bad
    assert run(target, c.Read6(1 << 20, fixed=True)) == bad, "more than the drive can hold"


def test_fixed_mode_needs_a_length(target: Target) -> None:
    bad = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
    assert run(target, c.Read6(1, fixed=True)) == bad
    assert run(target, c.Write6(1, fixed=True), b"x") == bad


def test_fixed_blocks_at_the_end_are_counted_in_blocks(make: Make, path: Path) -> None:
    target = make("ait3", capacity_bytes=MIB)
    data = bytes(512 * 100)
    sense: Sense | None = None
    accepted = 0
    while True:
        reply, sense = outcome(target, c.Write6(100, fixed=True), data)
        if sense is not GOOD and sense.key is not SenseKey.NO_SENSE:
            break
        assert reply.consumed_bytes == len(data)
        accepted += 100
    on_tape = len(list(tap_reader.objects(path)))
    assert on_tape == MIB // 520
    assert sense.information == accepted + 100 - on_tape
    assert reply.consumed_bytes == (on_tape - accepted) * 512


def test_a_drive_with_one_block_length(make: Make) -> None:
    target = make("travan")
    assert BlockLimits.unpack(ask(target, c.ReadBlockLimits())).fixed_only
    bad_cdb = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
    assert run(target, c.Write6(512), bytes(512)) == bad_cdb
    assert read(target)[1] == bad_cdb
    variable = ModeParameters(buffered_mode=1, descriptor=BlockDescriptor()).pack(select=True)
    bad_parameter = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x00)
    assert run(target, c.ModeSelect6(len(variable)), variable) == bad_parameter
    assert run(target, c.Write6(2, fixed=True), bytes(1024)) is GOOD


@pytest.mark.parametrize("ten", [False, True])
def test_mode_select_is_all_or_nothing(make: Make, ten: bool) -> None:
    target = make("ait3")

    def select(parameters: bytes) -> Sense | None:
        length = len(parameters)
        return run(target, c.ModeSelect10(length) if ten else c.ModeSelect6(length), parameters)

    def modes() -> ModeParameters:
        sense = c.ModeSense10(0x3F, allocation_bytes=255) if ten else c.ModeSense6(0x3F, 0, 255)
        return ModeParameters.unpack(ask(target, sense), ten=ten)

    def wanted(pages: bytes = b"", density: int = 0x7F, block_bytes: int = 0) -> bytes:
        descriptor = BlockDescriptor(density, 0, block_bytes)
        return ModeParameters(buffered_mode=1, descriptor=descriptor, pages=pages).pack(
            ten=ten, select=True
        )

    before = modes()
    assert before.buffered_mode == 1
    bad = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x00)
    assert select(wanted(density=0x99)) == bad
    assert select(wanted(block_bytes=513)) == bad, "this drive writes even lengths"
    assert select(wanted(pages=bytes((0x1D, 4, 0, 0, 0, 0)))) == bad
    assert select(wanted(pages=bytes((0x0F, 2, 0, 0)))) == bad
    short = Sense(SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00)
    assert select(wanted()[:-1]) == short
    assert select(wanted(pages=b"\x0f")) == short
    assert select(wanted(pages=b"\x0f\x0e\0")) == short
    assert modes() == before
    assert select(wanted(DataCompressionPage(enabled=False, capable=True).pack())) is GOOD
    after = modes()
    assert after.descriptor == BlockDescriptor(0x32, 0, 0)
    page = after.page(0x0F)
    assert page is not None
    assert not DataCompressionPage.unpack(page).enabled
    assert select(b"") is GOOD
    assert modes() == after


def test_mode_sense_forms(target: Target) -> None:
    bad = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
    assert run(target, c.ModeSense6(0x2A)) == bad
    assert run(target, c.ModeSense6(0x10, subpage=1)) == bad
    saved = c.ModeSense6(0x10, control=c.PageControl.SAVED)
    assert run(target, saved) == Sense(SenseKey.ILLEGAL_REQUEST, 0x39, 0x00)
    assert len(ask(target, c.ModeSense6(0))) == 12
    assert len(ask(target, c.ModeSense6(0, no_block_descriptor=True))) == 4
    changeable = c.ModeSense6(0x0F, 0, 255, c.PageControl.CHANGEABLE)
    mask = ModeParameters.unpack(ask(target, changeable)).page(0x0F)
    assert mask == bytes((0x0F, 14, 0x80)) + bytes(13)


def test_lengths_outside_the_limits_are_refused(make: Make) -> None:
    target = make("ait3", default_block_bytes=0)
    bad = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
    assert write(target, b"odd") == bad
    assert write(target, b"even") is GOOD
    assert write(target, b"") is GOOD
    assert position(target) == 1
    assert run(target, c.WriteFilemarks6(0, immediate=True)) == bad
    assert run(target, c.WriteFilemarks6(1 << 20)) == bad
    assert run(target, c.Locate10(0, partition=1)) == bad
    assert run(target, c.Space6(c.SpaceCode.SETMARKS, 1)) == bad
    assert run(target, c.LoadUnload(load=True, eot=True)) == bad
    assert run(target, c.LogSense(0x31, subpage=1)) == bad
    assert run(target, c.LogSelect(parameter_list_bytes=4), bytes(4)) == bad


def test_less_data_than_the_command_says_is_not_recorded(target: Target) -> None:
    assert run(target, c.Write6(10), b"short") == Sense(SenseKey.ABORTED_COMMAND, 0x4B, 0x00)
    assert position(target) == 0


# What drives lack.

OPTIONAL: list[tuple[c.Command, Callable[[Personality], bool]]] = [
    (c.Locate10(0), lambda p: p.has_locate),
    (c.Locate16(0), lambda p: p.has_wide_addresses),
    (c.Space16(c.SpaceCode.END_OF_DATA), lambda p: p.has_wide_addresses),
    (c.ReadPosition(), lambda p: p.has_read_position),
    (c.ReadAttribute(), lambda p: p.has_attributes),
]


@pytest.mark.parametrize("personality", PERSONALITIES.values(), ids=PERSONALITIES.keys())
def test_each_personality_does_what_it_says(make: Make, personality: Personality) -> None:
    target = make(personality.name)
    unknown = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
    for command, has in OPTIONAL:
        assert run(target, command) == (GOOD if has(personality) else unknown), command.name
        expected = (command.direction, command.transfer_length_bytes)
        none = (c.Direction.NONE, 0)
        assert target.expects(command.pack()) == (expected if has(personality) else none)
    for log_command in (c.LogSense(0x00), c.LogSelect()):
        assert (run(target, log_command) == unknown) is not personality.has_log_pages
    listed = ask(target, c.LogSense(0x00))[4:] if personality.has_log_pages else b""
    assert (0x31 in listed) == bool(personality.capacity_log_unit_bytes)
    assert (0x2E in listed) == personality.has_tape_alert
    for page in listed:
        answer = ask(target, c.LogSense(page))
        assert answer[0] == page
        assert len(answer) == 4 + int.from_bytes(answer[2:4], "big")
    assert ask(target, c.ReportDensitySupport())[4] == personality.density_code
    for command in (c.Reserve6(), c.Release6(), c.SendDiagnostic(), c.ReportLuns()):
        assert run(target, command) is GOOD


def test_long_position_may_be_missing(make: Make) -> None:
    target = make("lto5", has_long_position=False)
    bad = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
    assert run(target, c.ReadPosition(c.PositionForm.LONG)) == bad


def test_a_drive_may_keep_its_buffer_to_itself(make: Make) -> None:
    target = make("dat72")
    assert write(target, b"ab") is GOOD
    answer = ShortPosition.unpack(ask(target, c.ReadPosition()))
    assert (answer.block, answer.last_block) == (1, 1)


def test_a_drive_that_only_appends(make: Make) -> None:
    target = make("slr", default_block_bytes=0)
    for _ in range(4):
        assert write(target, b"ab") is GOOD
    go(target, 2)
    error = Sense(SenseKey.MEDIUM_ERROR, 0x50, 0x00)
    assert write(target, b"cd") == error
    assert run(target, MARK) == error
    go(target, 4)
    assert write(target, b"ef") is GOOD
    go(target, 1)
    assert write(target, b"gh") is GOOD
    go(target, 0)
    assert write(target, b"ij") is GOOD
    assert position(target) == 1
    assert read(target)[1] == Sense(SenseKey.BLANK_CHECK, 0x00, 0x05, information=100)


@pytest.mark.parametrize(
    ("page", "allocation", "fine"),
    [(0, 12, True), (0, 4, False), (0, 255, False), (0x10, 255, True), (0x10, 28, True),
     (0x10, 12, True), (0x10, 4, True), (0x10, 20, False)],
)  # fmt: skip
def test_sony_is_strict_about_allocations(
    make: Make, page: int, allocation: int, fine: bool
) -> None:
    sense = run(make("ait3"), c.ModeSense6(page, allocation_bytes=allocation))
    assert sense == (GOOD if fine else Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00))


def test_early_warning_may_be_a_bit_and_nothing_else(make: Make) -> None:
    target = make("lto5", capacity_bytes=MIB, bare_early_warning=True, buffer_bytes=0)
    senses = [write(target, bytes(61_000)) for _ in range(17)]
    assert senses == [GOOD] * 16 + [Sense(end_of_medium=True)]


def test_the_first_load_may_take_long(make: Make) -> None:
    target = make("lto9")
    first = target.busy_s
    assert first > 2000
    assert run(target, c.LoadUnload(load=False)) is GOOD
    assert run(target, c.LoadUnload(load=True)) is GOOD
    assert target.busy_s - first < 60


def test_extended_position(target: Target) -> None:
    fill(target, "ab.")
    assert write(target, b"cd") is GOOD
    answer = ask(target, c.ReadPosition(c.PositionForm.EXTENDED))
    assert answer == bytes.fromhex(
        "00 00 001c 00000001 0000000000000004 0000000000000003 0000000000000002"
    )


def test_unknown_and_padded_command_blocks(target: Target) -> None:
    for cdb in (b"", b"\xc1" + bytes(9), b"\x0b" + bytes(5), b"\x08\0"):
        assert not target.execute(cdb).good
        sense = Sense.unpack(bytes(target.execute(c.RequestSense().pack()).data_in))
        assert sense.code == "5/20/00"
        assert target.expects(cdb) == (c.Direction.NONE, 0)
    assert target.execute(c.TestUnitReady().pack().ljust(12, b"\0")).good
    space = bytearray(c.Space6(c.SpaceCode.BLOCKS).pack())
    space[1] = 0x0C
    assert not target.execute(bytes(space)).good
    sense = Sense.unpack(bytes(target.execute(c.RequestSense().pack()).data_in))
    assert sense.code == "5/24/00"


@settings(max_examples=200, deadline=None)
@given(cdb=st.binary(max_size=16), data=st.binary(max_size=64))
def test_no_command_block_brings_the_drive_down(
    tmp_path_factory: pytest.TempPathFactory, cdb: bytes, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "c.tap"
    with VirtualCartridge.create(path, "lto5", MIB) as cartridge:
        target = Target(cartridge)
        target.execute(c.TestUnitReady().pack())
        direction, length = target.expects(cdb)
        reply = target.execute(cdb, data)
        if direction is not c.Direction.IN:
            assert not len(reply.data_in)
            assert reply.consumed_bytes <= len(data)
        else:
            assert len(reply.data_in) <= length
        sense = target.execute(c.RequestSense().pack())
        assert reply.good or Sense.unpack(bytes(sense.data_in)) != Sense()


# The in-process transport.


async def test_transport_fetches_the_sense_and_fills_the_callers_buffer(target: Target) -> None:
    transport = TargetTransport(target)
    data = array("B", b"0123456789")
    assert (await transport.execute(c.Write6(10), data)).good
    assert (await transport.execute(MARK)).good
    assert (await transport.execute(c.Rewind())).good
    into = array("B", bytes(20))
    completion = await transport.execute(c.Read6(16), into)
    assert not completion.good
    assert completion.sense == Sense(incorrect_length=True, information=6)
    assert (bytes(completion.data), completion.residue_bytes) == (b"0123456789", 6)
    assert into.tobytes() == b"0123456789" + bytes(10)
    completion = await transport.execute(c.ReadBlockLimits())
    assert len(completion.data) == 6
    for command, wrong in ((c.Write6(10), data[:9]), (c.Read6(30), into)):
        with pytest.raises(ValueError, match="bytes"):
            await transport.execute(command, wrong)


async def test_transport_takes_no_second_command(
    make: Make, autojump_clock: trio.testing.MockClock
) -> None:
    transport = TargetTransport(make("ait3", default_block_bytes=0), paced=True)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.execute, c.Write6(12_000_000), bytes(12_000_000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OverlappedCommands, match="overlapped"):
            await transport.execute(c.TestUnitReady())
        nursery.cancel_scope.cancel()
    assert trio.current_time() - started == pytest.approx(1.0), "what was sent is not cancelled"
    assert (await transport.execute(c.TestUnitReady())).good


async def test_transport_when_the_cable_is_pulled(target: Target, path: Path) -> None:
    transport = TargetTransport(target)
    assert (await transport.execute(c.Write6(4), b"data")).good
    transport.unplug()
    with pytest.raises(DriveGone, match="unplugged"):
        await transport.execute(FLUSH)
    again = TargetTransport(target)
    assert (await again.execute(FLUSH)).good, "the drive kept its power"
    assert list(tap_reader.objects(path)) == [b"data"]
    await again.aclose()
    with pytest.raises(DriveGone):
        await again.execute(FLUSH)


def test_motion_costs_time(make: Make) -> None:
    target = make("lto5", capacity_bytes=80 * 100 * KIB)

    def cost(command: c.Command, data: bytes = b"") -> float:
        before = target.busy_s
        run(target, command, data)
        return target.busy_s - before

    assert cost(c.Write6(1_400_000), bytes(1_400_000)) == pytest.approx(0.01)
    assert cost(FLUSH) == PERSONALITIES["lto5"].stop_s
    assert cost(FLUSH) == 0
    half_wrap = 50 * KIB
    run(target, c.Rewind())
    for _ in range(20):
        run(target, c.Write6(half_wrap - 8), bytes(half_wrap - 8))
    run(target, FLUSH)
    go(target, 1)
    start_s = PERSONALITIES["lto5"].motion_start_s
    assert cost(c.Locate10(1)) == 0
    assert cost(c.Locate10(3)) == pytest.approx(start_s + 6.7), "the same place, next wrap"
    assert cost(c.Locate10(2)) == pytest.approx(start_s + 50), "half a tape length"


# Names.


def test_names(path: Path) -> None:
    plain = VirtualDriveName.parse(f"virtual:{path}")
    assert (plain.path, plain.personality, plain.capacity_bytes) == (path, None, None)
    full = VirtualDriveName.parse(f"virtual:{path}?personality=ait3&capacity=4G")
    assert full.personality == PERSONALITIES["ait3"]
    assert full.capacity_bytes == 4 << 30
    odd = VirtualDriveName.parse("virtual:what?.tap?capacity=2M")
    assert odd.path.name == "what?.tap"
    assert VirtualDriveName.matches("virtual:x")
    assert not VirtualDriveName.matches("usb:SERIAL")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("usb", "no virtual drive"),
        ("virtual:", "names no file"),
        ("virtual:?capacity=4G", "names no file"),
        ("virtual:a\0b", "names no file"),
        ("virtual:x?colour=red", "no option 'colour'"),
        ("virtual:x?personality=vhs", "choose one of: ait1, ait3"),
        ("virtual:x?capacity=lots", "is not a size"),
        ("virtual:x?capacity=4K", "at least 1M"),
        ("virtual:x?capacity=4G&capacity=5G", "given twice"),
    ],
)
def test_names_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VirtualDriveName.parse(text)


def test_cartridges_by_name(path: Path) -> None:
    name = VirtualDriveName.parse(f"virtual:{path}?personality=ait3&capacity=4M")
    with pytest.raises(NoDrive):
        open_cartridge(name, create=False)
    with open_cartridge(name, create=True) as cartridge:
        assert cartridge.memory.personality == "ait3"
        assert cartridge.memory.capacity_bytes == 4 * MIB
    with open_cartridge(name, create=True) as cartridge:
        assert Target(cartridge).personality.name == "ait3"
    with open_cartridge(VirtualDriveName.parse(f"virtual:{path}"), create=False) as cartridge:
        assert cartridge.memory.capacity_bytes == 4 * MIB
    for option in ("personality=lto5", "capacity=5M"):
        with pytest.raises(UsageError, match="leave the option out"):
            open_cartridge(VirtualDriveName.parse(f"virtual:{path}?{option}"), create=False)
    with open_cartridge(name, create=False) as cartridge:
        cartridge.memory.personality = "unheard-of"
        with pytest.raises(UsageError, match="no personality is called"):
            Target(cartridge)


# The whole way round.


def test_gnu_tar_reads_what_the_drive_recorded(target: Target, path: Path, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    made = subprocess.run(
        ["tar", "-b", "128", "-c", "-C", tmp_path, "file"], capture_output=True, check=True
    )
    for start in range(0, len(made.stdout), 64 * KIB):
        assert write(target, made.stdout[start : start + 64 * KIB]) is GOOD
    assert run(target, MARK) is GOOD
    archive = tmp_path / "archive.tar"
    with archive.open("wb") as file:
        tap_reader.write_tape_file(path, 0, file)
    read_back = subprocess.run(["tar", "-xOf", archive, "file"], capture_output=True, check=True)
    assert (read_back.stdout, read_back.stderr) == (content, b"")


def test_a_chip_that_cannot_be_written_stops_the_load(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with VirtualCartridge.create(path, "lto5", CAPACITY_BYTES) as cartridge:
        monkeypatch.setattr("tapefs.emulator.cartridge_memory.save", broken)
        with pytest.raises(MediumFailed, match="make room"):
            Target(cartridge)
