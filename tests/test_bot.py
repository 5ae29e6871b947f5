"""Bulk-Only Transport, host end by itself, and both ends against each other in the 13 cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.emulator.bot_device import BotDevice
from tapefs.emulator.reply import TargetReply
from tapefs.emulator.wire_faults import Babble, LessData, Stall, ViolationKind
from tapefs.scsi.command import Direction
from tapefs.usb.bot import (
    ClearHalt,
    CommandBlock,
    Moved,
    Outcome,
    Pipe,
    ProtocolError,
    ReceiveData,
    ReceiveStatus,
    Result,
    SendCommand,
    SendData,
    StatusBlock,
    Step,
    Trouble,
    pad_cdb,
    transaction,
)

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

NONE, IN, OUT = Direction.NONE, Direction.IN, Direction.OUT
STALLED, OVERFLOWED = Trouble.STALLED, Trouble.OVERFLOWED
TAG = 0x11223344
TEST_UNIT_READY = bytes(6)
SENT = Moved(31)


def block(direction: Direction = NONE, length_bytes: int = 0) -> CommandBlock:
    return CommandBlock(TAG, b"\x12\0\0\0\x24\0", direction, length_bytes)


def status(residue_bytes: int = 0, status_code: int = 0, tag: int = TAG) -> Moved:
    return Moved(13, StatusBlock(tag, residue_bytes, status_code).pack())


def play(command: CommandBlock, *outcomes: Outcome) -> tuple[list[Step], Result]:
    """Run a transaction with these outcomes, all of which must be asked for."""
    steps = transaction(command)
    asked = [next(steps)]
    for index, outcome in enumerate(outcomes):
        try:
            asked.append(steps.send(outcome))
        except StopIteration as done:
            assert index == len(outcomes) - 1, "the transaction ended early"
            return asked, done.value
    pytest.fail(f"the transaction asks for more: {asked[-1]}")


def refused(command: CommandBlock, *outcomes: Outcome) -> str:
    """Run a transaction that must end in ProtocolError; returns its sentence."""
    with pytest.raises(ProtocolError) as caught:
        play(command, *outcomes)
    return str(caught.value)


# What is on the wire.


def test_command_block_layout() -> None:
    packed = CommandBlock(TAG, b"\x08\0\x01\x02\x03\0", IN, 0x00010203).pack()
    assert packed.hex() == "555342434433221103020100800006080001020300" + "00" * 10
    assert CommandBlock(1, TEST_UNIT_READY, OUT, 5).pack()[12] == 0


def test_status_block_layout() -> None:
    assert StatusBlock(TAG, 0x102, 1).pack().hex() == "55534253443322110201000001"


@given(
    st.integers(0, 2**32 - 1),
    st.binary(min_size=1, max_size=16),
    st.sampled_from([IN, OUT]),
    st.integers(1, 2**32 - 1),
    st.integers(0, 15),
)
def test_command_block_round_trip(
    tag: int, cdb: bytes, direction: Direction, length_bytes: int, lun: int
) -> None:
    command = CommandBlock(tag, cdb, direction, length_bytes, lun)
    assert CommandBlock.unpack(command.pack()) == command


@given(st.binary(max_size=64))
def test_bytes_that_are_no_block_are_refused_and_nothing_else_happens(data: bytes) -> None:
    for kind in (CommandBlock, StatusBlock):
        try:
            understood = kind.unpack(data)
        except ProtocolError:
            continue
        assert understood.pack() == data or kind is CommandBlock


@pytest.mark.parametrize("size", [0, 17])
def test_a_cdb_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        CommandBlock(1, bytes(size), NONE, 0).pack()


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 0x54), (12, 0x81), (13, 0x10), (14, 0), (14, 17)]
)
def test_a_command_block_that_is_not_meaningful_is_refused(offset: int, value: int) -> None:
    data = bytearray(block().pack())
    data[offset] = value
    with pytest.raises(ProtocolError):
        CommandBlock.unpack(bytes(data))


@pytest.mark.parametrize(("subclass", "size"), [(1, 6), (2, 12), (3, 12), (4, 12), (5, 12), (6, 6)])
def test_cdbs_are_padded_for_atapi(subclass: int, size: int) -> None:
    assert pad_cdb(b"\x12\x34\0\0\0\0", subclass) == b"\x12\x34".ljust(size, b"\0")
    assert len(pad_cdb(bytes(16), subclass)) == 16


# The host end alone.


def test_no_data() -> None:
    asked, result = play(block(), SENT, status())
    assert asked == [SendCommand(block().pack()), ReceiveStatus()]
    assert result == Result(passed=True, residue_bytes=0, received_bytes=0, overrun=False)


def test_data_out() -> None:
    asked, result = play(block(OUT, 512), SENT, Moved(512), status(status_code=1))
    assert asked[1:] == [SendData(512), ReceiveStatus()]
    assert not result.passed


def test_data_in_may_be_short() -> None:
    asked, result = play(block(IN, 96), SENT, Moved(36, bytes(13)), status(60))
    assert asked[1:] == [ReceiveData(96), ReceiveStatus()]
    assert result.valid_bytes(96) == 36


@pytest.mark.parametrize("outcome", [STALLED, OVERFLOWED, Moved(0), Moved(30)])
def test_a_command_block_that_is_not_taken_needs_recovery(outcome: Outcome) -> None:
    assert "command block" in refused(block(), outcome)


def test_a_stall_of_data_in_is_cleared_and_the_status_follows() -> None:
    asked, result = play(block(IN, 96), SENT, STALLED, Moved(), status(96, 1))
    assert asked[1:] == [ReceiveData(96), ClearHalt(Pipe.IN), ReceiveStatus()]
    assert not result.passed
    assert result.valid_bytes(96) == 0


def test_a_stall_of_data_out_is_cleared_and_the_residue_tells() -> None:
    asked, result = play(block(OUT, 96), SENT, STALLED, Moved(), status(90, 1))
    assert asked[1:] == [SendData(96), ClearHalt(Pipe.OUT), ReceiveStatus()]
    assert result.residue_bytes == 90


def test_data_out_that_stops_short_needs_recovery() -> None:
    assert "part of the data" in refused(block(OUT, 96), SENT, Moved(64))
    assert "part of the data" in refused(block(OUT, 96), SENT, OVERFLOWED)


def test_a_stalled_status_is_asked_for_once_more() -> None:
    asked, result = play(block(), SENT, STALLED, Moved(), status())
    assert asked[1:] == [ReceiveStatus(), ClearHalt(Pipe.IN), ReceiveStatus()]
    assert result.passed
    assert "stalled" in refused(block(), SENT, STALLED, Moved(), STALLED)


def test_a_zero_length_packet_before_the_status_is_skipped_once() -> None:
    assert play(block(), SENT, Moved(0), status())[1].passed
    assert play(block(), SENT, Moved(0), STALLED, Moved(), status())[1].passed
    assert "0 bytes" in refused(block(), SENT, Moved(0), Moved(0))


def test_a_status_in_place_of_data_is_the_status() -> None:
    for length in (6, 96, 512):
        asked, result = play(block(IN, length), SENT, status(length, 1))
        assert asked[1:] == [ReceiveData(length)]
        assert not result.passed
        assert result.valid_bytes(length) == 0


def test_data_that_only_looks_like_a_status_is_data() -> None:
    strange = status(tag=TAG + 1)
    assert play(block(IN, 96), SENT, strange, status(83))[1].valid_bytes(96) == 13
    assert play(block(IN, 13), SENT, status(), status())[1].valid_bytes(13) == 13


def test_too_much_data_is_told_but_the_wire_is_in_step() -> None:
    assert play(block(IN, 96), SENT, OVERFLOWED, status())[1].overrun
    assert play(block(IN, 6), SENT, Moved(64, bytes(13)), status())[1].overrun


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        (status(tag=TAG - 1), "tag"),
        (Moved(13, b"USBX" + status().head[4:]), "signature"),
        (Moved(12, status().head[:12]), "12 bytes"),
        (status(status_code=2), "phase error"),
        (status(status_code=3), "reserved"),
        (status(status_code=255), "reserved"),
        (OVERFLOWED, "overflowed"),
    ],
)
def test_a_status_that_cannot_be_believed_needs_recovery(outcome: Outcome, sentence: str) -> None:
    assert sentence in refused(block(), SENT, outcome)


@pytest.mark.parametrize(
    ("received", "residue", "trusted", "valid"),
    [
        (100, 0, True, 100),
        (60, 40, True, 60),
        (100, 40, True, 60),  # padded
        (60, 0, True, 60),  # a bridge that never reports a residue
        (100, 100, False, 100),  # one that always does
        (None, 40, True, 60),
        (None, 0, True, 0),  # a stall, yet nothing missing: that contradicts itself
        (None, 40, False, 0),
    ],
)
def test_the_more_careful_witness_decides(
    received: int | None, residue: int, trusted: bool, valid: int
) -> None:
    result = Result(passed=True, residue_bytes=residue, received_bytes=received, overrun=False)
    assert result.valid_bytes(100, trust_residue=trusted) == valid


def test_a_residue_beyond_the_length_is_capped() -> None:
    assert play(block(OUT, 96), SENT, Moved(96), status(2**32 - 1))[1].residue_bytes == 96


OUTCOMES = st.one_of(
    st.sampled_from([SENT, Moved(), Moved(96, bytes(13)), STALLED, OVERFLOWED]),
    st.builds(status, st.integers(0, 200), st.integers(0, 3), st.sampled_from([TAG, TAG + 1])),
    st.binary(max_size=13).map(lambda head: Moved(len(head), head)),
)


@given(st.sampled_from([(NONE, 0), (IN, 96), (OUT, 96)]), st.lists(OUTCOMES, min_size=9))
def test_whatever_the_drive_does_a_transaction_ends(
    expected: tuple[Direction, int], outcomes: list[Outcome]
) -> None:
    def steps() -> Iterator[Step]:
        run = transaction(block(*expected))
        yield next(run)
        for outcome in outcomes:
            try:
                yield run.send(outcome)
            except (StopIteration, ProtocolError):
                return
        pytest.fail("nine steps are more than any transaction has")

    asked = list(steps())
    assert sum(isinstance(step, SendCommand) for step in asked) == 1
    assert sum(isinstance(step, (SendData, ReceiveData)) for step in asked) <= 1


# Both ends.


@dataclass
class Intent:
    """A device server that moves what it is told to, whatever the CDB says."""

    direction: Direction
    length_bytes: int
    executed: list[bytes] = field(default_factory=list)

    def expects(self, cdb: bytes) -> tuple[Direction, int]:
        return (NONE, 0) if cdb == TEST_UNIT_READY else (self.direction, self.length_bytes)

    def execute(self, cdb: bytes, data_out: bytes | memoryview | array[int]) -> TargetReply:
        self.executed.append(bytes(data_out))
        if cdb == TEST_UNIT_READY:
            return TargetReply(good=True)
        if self.direction is IN:
            return TargetReply(good=True, data_in=b"\xdd" * self.length_bytes)
        return TargetReply(good=True, consumed_bytes=len(data_out))

    def class_reset(self) -> None:
        pass

    def reset(self) -> None:
        self.executed.append(b"reset")

    def power_cut(self) -> None:
        self.executed.append(b"power cut")


def carry(device: BotDevice, command: CommandBlock) -> tuple[Result, bytes]:
    """The plainest host there is: do each step, read in whole packets."""
    received = bytearray(-(-command.length_bytes // 512) * 512)

    def move(step: Step) -> Outcome:
        try:
            if isinstance(step, SendCommand):
                return Moved(device.bulk_out(step.block))
            if isinstance(step, SendData):
                return Moved(device.bulk_out(b"\xcc" * step.length_bytes))
            if isinstance(step, ClearHalt):
                device.clear_halt(step.pipe)
                return Moved()
            into = received if isinstance(step, ReceiveData) else bytearray(13)
            count = device.bulk_in(memoryview(into))
            return Moved(count, bytes(into[:13]))
        except Stall:
            return STALLED
        except Babble:
            return OVERFLOWED

    steps = transaction(command)
    step = next(steps)
    while True:
        try:
            step = steps.send(move(step))
        except StopIteration as done:
            return done.value, bytes(received)


CASES = [
    (1, (NONE, 0), (NONE, 0), 0),
    (2, (NONE, 0), (IN, 8), None),
    (3, (NONE, 0), (OUT, 8), None),
    (4, (IN, 96), (NONE, 0), 96),
    (4, (IN, 1024), (NONE, 0), 1024),
    (5, (IN, 96), (IN, 36), 60),
    (5, (IN, 1024), (IN, 512), 512),
    (6, (IN, 36), (IN, 36), 0),
    (6, (IN, 1024), (IN, 1024), 0),
    (7, (IN, 36), (IN, 96), None),
    (7, (IN, 512), (IN, 1024), None),
    (8, (IN, 36), (OUT, 36), None),
    (9, (OUT, 36), (NONE, 0), 36),
    (10, (OUT, 36), (IN, 36), None),
    (11, (OUT, 96), (OUT, 36), 60),
    (12, (OUT, 96), (OUT, 96), 0),
    (13, (OUT, 36), (OUT, 96), None),
]


@pytest.mark.parametrize("less_data", LessData)
@pytest.mark.parametrize(("case", "host", "drive", "residue"), CASES)
def test_the_thirteen_cases(
    case: int,
    host: tuple[Direction, int],
    drive: tuple[Direction, int],
    residue: int | None,
    less_data: LessData,
) -> None:
    server = Intent(*drive)
    device = BotDevice(server, less_data=less_data)
    if residue is None:
        with pytest.raises(ProtocolError, match="phase error"):
            carry(device, block(*host))
        kinds = [violation.kind for violation in device.violations]
        assert kinds == [ViolationKind.DATA_DISAGREEMENT]
        assert f"case {case}:" in device.violations[0].sentence
        # Only where the device cannot know better beforehand may it have executed anything.
        assert bool(server.executed) is (case == 7)
    else:
        result, received = carry(device, block(*host))
        assert (result.passed, result.residue_bytes, result.overrun) == (True, residue, False)
        assert device.violations == []
        if host[0] is IN:
            assert result.valid_bytes(host[1]) == drive[1]
            assert received[: drive[1]] == b"\xdd" * drive[1]
        else:
            assert server.executed == [b"\xcc" * drive[1]]
    device.class_reset()
    device.clear_halt(Pipe.IN)
    device.clear_halt(Pipe.OUT)
    ready = CommandBlock(TAG, TEST_UNIT_READY, NONE, 0)
    assert carry(device, ready)[0].passed, "reset recovery must bring the device back"


def test_an_invalid_command_block_stalls_both_pipes_until_reset_recovery() -> None:
    device = BotDevice(Intent(NONE, 0))
    with pytest.raises(Stall):
        device.bulk_out(bytes(31))
    for pipe in Pipe:
        device.clear_halt(pipe)
    with pytest.raises(Stall):
        device.bulk_out(block().pack())
    with pytest.raises(Stall):
        device.bulk_in(memoryview(bytearray(13)))
    device.class_reset()
    with pytest.raises(Stall):  # BOT 1.0 §3.1: the reset leaves the halts to be cleared
        device.bulk_out(block().pack())
    for pipe in Pipe:
        device.clear_halt(pipe)
    assert carry(device, block())[0].passed
    assert [each.kind for each in device.violations] == [ViolationKind.INVALID_COMMAND_BLOCK]


def test_a_foreign_lun_and_a_short_cdb_for_atapi_are_invalid() -> None:
    for device, command in (
        (BotDevice(Intent(NONE, 0)), CommandBlock(1, TEST_UNIT_READY, NONE, 0, lun=1)),
        (BotDevice(Intent(NONE, 0), subclass=0x03), CommandBlock(1, TEST_UNIT_READY, NONE, 0)),
    ):
        with pytest.raises(Stall):
            device.bulk_out(command.pack())
        assert device.violations[0].kind is ViolationKind.INVALID_COMMAND_BLOCK


def test_data_in_several_transfers_is_one_data_stage() -> None:
    server = Intent(OUT, 1536)
    device = BotDevice(server)
    device.bulk_out(CommandBlock(TAG, b"\x0a\0\0\x06\0\0", OUT, 1536).pack())
    for _ in range(3):
        assert device.bulk_out(bytes(512)) == 512
    assert server.executed == [bytes(1536)]
    into = memoryview(bytearray(13))
    assert device.bulk_in(into) == 13
    assert StatusBlock.unpack(bytes(into)) == StatusBlock(TAG, 0, 0)
    assert device.violations == []


def test_a_read_in_pieces_gets_everything_and_a_closing_empty_packet() -> None:
    device = BotDevice(Intent(IN, 1024))
    device.bulk_out(block(IN, 2048).pack())
    into = memoryview(bytearray(512))
    assert [device.bulk_in(into) for _ in range(3)] == [512, 512, 0]
    assert device.bulk_in(into) == 13
    assert StatusBlock.unpack(bytes(into[:13])) == StatusBlock(TAG, 1024, 0)


def test_a_buffer_smaller_than_the_packet_overflows() -> None:
    device = BotDevice(Intent(IN, 36))
    device.bulk_out(block(IN, 36).pack())
    with pytest.raises(Babble):
        device.bulk_in(memoryview(bytearray(6)))
