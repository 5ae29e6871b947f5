"""Commands over an emulated wire, through pyusb: what arrives, what fails, and what follows."""

from __future__ import annotations

import ctypes
import threading
from array import array
from typing import TYPE_CHECKING, Any

import pytest
import trio
from tape_server import TapeServer
from usb_rig import NOT_READY, RECORD, RECORD_BYTES, Rig

from tapefs.emulator.fault_queue import FaultPoint
from tapefs.emulator.reply import TargetReply
from tapefs.emulator.usb import EmulatedUsbBackend, UsbIdentity
from tapefs.emulator.wire_faults import FaultEffect, LessData
from tapefs.errors import DriveFailed, DriveGone
from tapefs.scsi.cdb import (
    Inquiry,
    Read6,
    ReadBlockLimits,
    RequestSense,
    Rewind,
    TestUnitReady,
    Write6,
)
from tapefs.scsi.sense import Sense
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport, OverlappedCommand

if TYPE_CHECKING:
    from collections.abc import Callable

    from log_police import Announcement

    from tapefs.scsi.command import Command
    from tapefs.scsi.completion import DataBuffer

    AssertLogs = Callable[..., Announcement]


@pytest.fixture
def rig() -> Rig:
    return Rig()


# What arrives.


async def test_no_data(rig: Rig) -> None:
    completion = await rig.transport.execute(TestUnitReady())
    assert completion.good
    assert completion.sense is None
    assert bytes(completion.data) == b""


@pytest.mark.parametrize("kind", [array, memoryview])
async def test_a_record_goes_out_and_comes_back_without_a_copy(rig: Rig, kind: type) -> None:
    """From an array and to one, or from and to somewhere in the memory of another object."""

    def buffer(content: bytes) -> DataBuffer:
        return (
            array("B", content)
            if kind is array
            else memoryview(bytearray(b"..." + content + b"...."))[3:-4]
        )

    record = buffer(RECORD.tobytes())
    await rig.transport.execute(Write6(RECORD_BYTES), record)
    assert _address(rig.server.last_data) == _address(record)
    into = buffer(bytes(RECORD_BYTES))
    completion = await rig.transport.execute(Read6(RECORD_BYTES), into)
    assert memoryview(into) == RECORD
    assert _address(completion.data) == _address(into)
    assert len(completion.data) == RECORD_BYTES


def _address(data: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


@pytest.mark.parametrize("speed", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 6, 13, 31, 36, 511, 512, 513, 1024, 10240])
async def test_records_of_any_size_at_any_speed(size: int, speed: int) -> None:
    rig = Rig(identity=UsbIdentity(speed=speed))
    data = RECORD.tobytes() * 3
    await rig.transport.execute(Write6(size), data[:size])
    for target in (None, array("B", bytes(size)), array("B", bytes(size + 5))):
        rig.server.next_read = 0
        completion = await rig.transport.execute(Read6(size), target)
        assert completion.good
        assert completion.data == data[:size]
        assert target is None or completion.data.obj is target
    assert rig.device.violations == []


async def test_reads_ask_for_whole_packets_and_never_for_one_too_many(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[array[int]] = []
    receive = rig.endpoints.receive

    def spy(into: array[int], timeout_s: float) -> int:
        asked.append(into)
        return receive(into, timeout_s)

    monkeypatch.setattr(rig.endpoints, "receive", spy)
    for size, posted in ((6, 512), (512, 512), (513, 1024), (RECORD_BYTES, RECORD_BYTES)):
        rig.server.records.append(bytes(size))
        into = array("B", bytes(size))
        await rig.transport.execute(Read6(size), into)
        assert [len(each) for each in asked] == [posted, 13]
        assert (asked[0] is into) is (size == posted), "whole packets go to the caller's own array"
        asked.clear()


@pytest.mark.parametrize("less_data", LessData)
async def test_a_short_record_is_cut_to_what_arrived(rig: Rig, less_data: LessData) -> None:
    rig.device.less_data = less_data
    rig.server.records.append(b"short record")
    into = array("B", b"\xff" * RECORD_BYTES)
    completion = await rig.transport.execute(Read6(RECORD_BYTES), into)
    assert not completion.good
    assert completion.sense is not None
    assert completion.sense.incorrect_length
    assert completion.sense.information == RECORD_BYTES - 12
    assert bytes(completion.data) == b"short record"
    assert completion.residue_bytes == RECORD_BYTES - 12


@pytest.mark.parametrize("less_data", LessData)
async def test_a_failure_brings_its_sense_in_the_same_hop(
    rig: Rig, less_data: LessData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.device.less_data = less_data
    rig.server.refuse = [NOT_READY, NOT_READY]
    hops: list[object] = []
    run = rig.endpoints.run

    async def counted(work: Callable[[], object]) -> object:
        hops.append(work)
        return await run(work)

    monkeypatch.setattr(rig.endpoints, "run", counted)
    for command in (Rewind(), Read6(RECORD_BYTES)):
        completion = await rig.transport.execute(command)
        assert not completion.good
        assert completion.sense == NOT_READY
        assert bytes(completion.data) == b""
    assert len(hops) == 2
    assert rig.server.executed == ["REWIND", "REQUEST SENSE", "READ(6)", "REQUEST SENSE"]
    assert rig.device.violations == []


async def test_commands_given_together_take_one_hop_and_end_at_the_first_failure(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops: list[object] = []
    run = rig.endpoints.run

    async def counted(work: Callable[[], object]) -> object:
        hops.append(work)
        if len(hops) == 2:
            rig.server.refuse = [NOT_READY]
        return await run(work)

    monkeypatch.setattr(rig.endpoints, "run", counted)
    write = (Write6(RECORD_BYTES), RECORD)
    ends = await rig.transport.execute_each([write, write, (Rewind(), None)])
    assert [end.good for end in ends] == [True, True, True]
    ends = await rig.transport.execute_each([write, (Rewind(), None)])
    assert [end.sense for end in ends] == [NOT_READY]
    assert len(hops) == 2
    assert rig.server.executed[3:] == ["WRITE(6)", "REQUEST SENSE"]
    assert rig.server.records == [RECORD.tobytes()] * 2
    assert rig.device.violations == []


async def test_every_command_has_a_tag_of_its_own(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags: list[bytes] = []
    take = rig.device.bulk_out

    def spy(data: array[int]) -> int:
        tags.append(bytes(data[4:8]))
        return take(data)

    monkeypatch.setattr(rig.device, "bulk_out", spy)
    rig.server.refuse = [NOT_READY]
    await rig.transport.execute(Rewind())
    await rig.transport.execute(Rewind())
    assert len(set(tags)) == len(tags) == 3


@pytest.mark.parametrize("subclass", [2, 3, 4, 5])
async def test_atapi_flavours_get_twelve_bytes(subclass: int) -> None:
    rig = Rig(subclass=subclass)
    rig.server.refuse = [NOT_READY]
    completion = await rig.transport.execute(TestUnitReady())
    assert completion.sense == NOT_READY, "REQUEST SENSE must be padded as well"
    await rig.write()
    assert rig.device.violations == []


async def test_data_that_does_not_fit_its_command_is_refused_before_the_wire(rig: Rig) -> None:
    wrong: list[tuple[Command, array[int] | bytes | None]] = [
        (Write6(10), None),
        (Write6(10), b"123"),
        (Read6(10), array("B", b"123")),
        (Read6(10), bytes(10)),
    ]
    for command, data in wrong:
        with pytest.raises(ValueError, match="10 bytes"):
            await rig.transport.execute(command, data)
    assert rig.device.command_count == 0
    await rig.write()


# Drives and bridges with odd habits, none of which may cost anything.


@pytest.mark.parametrize(
    ("point", "effect"),
    [
        (FaultPoint.STATUS, FaultEffect.EMPTY),
        (FaultPoint.STATUS, FaultEffect.STALL),
        (FaultPoint.STATUS, FaultEffect.ZERO_RESIDUE),
    ],
)
async def test_habits_that_do_no_harm(rig: Rig, point: FaultPoint, effect: FaultEffect) -> None:
    rig.server.records.append(RECORD.tobytes())
    rig.plan(point, effect)
    completion = await rig.transport.execute(Read6(RECORD_BYTES))
    assert completion.good
    assert completion.data == RECORD.tobytes()
    assert rig.server.reset_count == 0


async def test_data_left_out_means_no_data(rig: Rig) -> None:
    rig.plan(FaultPoint.DATA, FaultEffect.SKIP_DATA)
    completion = await rig.transport.execute(ReadBlockLimits())
    assert bytes(completion.data) == b""
    assert completion.residue_bytes == 6


async def test_a_stall_of_the_data_is_survived_in_both_directions(rig: Rig) -> None:
    rig.server.records.append(RECORD.tobytes())
    rig.plan(FaultPoint.DATA, FaultEffect.STALL)
    completion = await rig.transport.execute(Read6(RECORD_BYTES))
    assert bytes(completion.data) == b""
    assert completion.residue_bytes == RECORD_BYTES
    rig.plan(FaultPoint.DATA, FaultEffect.STALL)
    completion = await rig.transport.execute(Write6(RECORD_BYTES), RECORD)
    assert not completion.good
    assert completion.residue_bytes == RECORD_BYTES
    await rig.write()


async def test_a_bridge_that_always_misreports_the_residue_is_found_out(rig: Rig) -> None:
    rig.plan(FaultPoint.STATUS, FaultEffect.FULL_RESIDUE)
    assert (await rig.transport.execute(Inquiry())).residue_bytes == 0
    rig.server.records.append(RECORD.tobytes())
    rig.plan(FaultPoint.STATUS, FaultEffect.FULL_RESIDUE)
    assert len((await rig.transport.execute(Read6(RECORD_BYTES))).data) == RECORD_BYTES


async def test_a_residue_is_believed_until_the_inquiry_says_otherwise(rig: Rig) -> None:
    rig.server.records.append(RECORD.tobytes())
    await rig.transport.execute(Inquiry())
    rig.plan(FaultPoint.STATUS, FaultEffect.FULL_RESIDUE)
    assert len((await rig.transport.execute(Read6(RECORD_BYTES))).data) == 0


async def test_more_data_than_asked_for_is_an_error_without_a_reset(rig: Rig) -> None:
    rig.plan(FaultPoint.DATA, FaultEffect.BABBLE)
    with pytest.raises(DriveFailed, match="more data"):
        await rig.transport.execute(Read6(RECORD_BYTES))
    assert rig.server.reset_count == 0
    await rig.write()


# Sense that does not come.


async def test_a_failure_without_sense_is_named(rig: Rig) -> None:
    rig.server.refuse = [NOT_READY, NOT_READY]
    rig.server.execute = _failing_sense(rig.server)  # type: ignore[method-assign]
    with pytest.raises(DriveFailed, match="does not say why"):
        await rig.transport.execute(Rewind())


async def test_garbled_sense_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.server.refuse = [NOT_READY]
    monkeypatch.setattr(Sense, "pack", lambda _self: bytes(18))
    with pytest.raises(DriveFailed, match="garbled"):
        await rig.transport.execute(Rewind())


def _failing_sense(server: TapeServer) -> Callable[..., TargetReply]:
    execute = server.execute

    def failing(cdb: bytes, data_out: bytes) -> TargetReply:
        reply = execute(cdb, data_out)
        return TargetReply(good=False) if cdb[0] == RequestSense().pack()[0] else reply

    return failing


# Cancellation, closing, overlap.


class SlowBackend(EmulatedUsbBackend):
    """Holds the first data transfer until told to go on, and says when it has begun."""

    def __init__(self, server: TapeServer) -> None:
        super().__init__(server)
        self.begun = trio.Event()
        self.go_on = threading.Event()

    def bulk_write(self, *args: Any) -> int:
        if len(args[3]) == RECORD_BYTES and not self.begun.is_set():
            trio.from_thread.run_sync(self.begun.set)
            assert self.go_on.wait(30)
        return super().bulk_write(*args)


async def test_cancellation_waits_for_the_end_of_the_command() -> None:
    backend = SlowBackend(server := TapeServer())
    server.refuse = [NOT_READY]
    transport = BotTransport(open_endpoints("usb", backend))
    sense: list[Sense | None] = []

    async def write() -> None:
        sense.append((await transport.execute(Write6(RECORD_BYTES), RECORD)).sense)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await backend.begun.wait()
        nursery.cancel_scope.cancel()
        backend.go_on.set()
    assert sense == [NOT_READY], "the caller must still learn how the command ended"
    assert server.executed == ["WRITE(6)", "REQUEST SENSE"]
    assert (await transport.execute(TestUnitReady())).good
    assert backend.device.violations == []


async def test_cancelled_beforehand_means_nothing_was_sent(rig: Rig) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await rig.transport.execute(Rewind())
    assert scope.cancelled_caught
    assert rig.device.command_count == 0
    await rig.write()


async def test_recovery_is_not_cut_short_by_cancellation(rig: Rig, assert_logs: AssertLogs) -> None:
    assert_logs("usb.reset_recovery", count=1)
    rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE)
    run, scope = rig.endpoints.run, trio.CancelScope()

    async def run_then_cancel(work: Callable[[], Any]) -> Any:
        try:
            return await run(work)
        finally:
            scope.cancel()

    rig.endpoints.run = run_then_cancel  # type: ignore[method-assign]
    with scope, pytest.raises(DriveFailed, match="was reset"):
        await rig.transport.execute(Rewind())
    await rig.write()


async def test_a_second_command_is_refused_before_it_reaches_the_wire() -> None:
    backend = SlowBackend(server := TapeServer())
    transport = BotTransport(open_endpoints("usb", backend))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.execute, Write6(RECORD_BYTES), RECORD)
        await backend.begun.wait()
        with pytest.raises(OverlappedCommand, match=r"TEST UNIT READY .* WRITE\(6\)"):
            await transport.execute(TestUnitReady())
        backend.go_on.set()
    assert server.executed == ["WRITE(6)"]
    assert backend.device.violations == []


async def test_a_closed_transport_sends_nothing_more(rig: Rig) -> None:
    await rig.transport.aclose()
    await rig.transport.aclose()
    with pytest.raises(DriveGone, match="closed"):
        await rig.transport.execute(TestUnitReady())
    rig.connect()
    await rig.write()
