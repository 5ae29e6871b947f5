"""One command in flight: what happens without that rule, and that it holds.

The failure behind Microsoft KB 817765 (backup to a USB AIT drive ends in "An inconsistency was
encountered on the requested media") is commands that overlap on a transport without a queue. Here
it is brought about on purpose, with the guard taken off, to show that the emulated drive sees it,
names it, and does what a real drive does: record the intruder on tape, or stall.
"""

from __future__ import annotations

import random
import threading
from array import array
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from tape_server import TapeServer

from tapefs.drive import TapeDrive
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.emulator.wire_faults import Violation, ViolationKind
from tapefs.errors import DriveFailed
from tapefs.scsi.cdb import Read6, RequestSense, Rewind, TestUnitReady, Write6
from tapefs.scsi.command import Direction
from tapefs.scsi.sense import FilemarkDetected, Sense, SenseKey
from tapefs.usb.bot import (
    CommandBlock,
    Moved,
    Outcome,
    ReceiveData,
    Result,
    SendCommand,
    SendData,
    Step,
    transaction,
)
from tapefs.usb.device import UsbEndpoints, open_endpoints
from tapefs.usb.transport import BotTransport, OverlappedCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from log_police import Announcement

    from tapefs.emulator.device_server import DeviceServer
    from tapefs.scsi.command import Command

    AssertLogs = Callable[..., Announcement]

RECORD_BYTES = 4096
COMMAND_BYTES = 31
TASK_COUNT = 64


def record_of(number: int, size_bytes: int = RECORD_BYTES) -> array[int]:
    return array("B", bytes([number % 256]) * size_bytes)


# The failure, with the guard taken off.


class TwoThreads(EmulatedUsbBackend):
    """Lets a second thread's command in at a chosen moment of a first thread's command.

    The first command block opens the gate for the intruder; `hold` says which bulk transfer of the
    first thread waits until the intruder's command block is on the wire.
    """

    def __init__(self, server: DeviceServer, hold: str) -> None:
        super().__init__(server)
        self.hold = hold
        self.first_thread: int | None = None
        self.started = threading.Event()
        self.held = threading.Event()
        self.intruded = threading.Event()
        self.first_done = threading.Event()

    def bulk_write(self, *args: Any) -> int:
        is_command = len(args[3]) == COMMAND_BYTES
        if self.first_thread is None:
            self.first_thread = threading.get_ident()
            self.started.set()
            return super().bulk_write(*args)
        if threading.get_ident() == self.first_thread:
            if not is_command:
                self._let_intruder_in("data")
            return super().bulk_write(*args)
        if not is_command:
            return super().bulk_write(*args)
        assert self.held.wait(10)
        try:
            return super().bulk_write(*args)
        finally:
            self.intruded.set()
            assert self.first_done.wait(10)

    def bulk_read(self, *args: Any) -> int:
        if threading.get_ident() == self.first_thread:
            self._let_intruder_in("status")
        return super().bulk_read(*args)

    def _let_intruder_in(self, moment: str) -> None:
        if moment == self.hold and not self.intruded.is_set():
            self.held.set()
            assert self.intruded.wait(10)


async def overlap(backend: TwoThreads, intruder: Command, data: array[int] | None) -> list[bool]:
    """A WRITE in one thread, `intruder` in another, no guard; which of them claims success."""
    endpoints = open_endpoints("usb", backend, limiter=trio.CapacityLimiter(2))
    transport = BotTransport(endpoints, overlap_guard=False, settle_s=0)
    succeeded = [False, False]

    async def first() -> None:
        try:
            completion = await transport.execute(Write6(RECORD_BYTES), record_of(1))
            succeeded[0] = completion.good
        except DriveFailed:
            pass
        finally:
            backend.first_done.set()

    async def second() -> None:
        with suppress(DriveFailed):
            succeeded[1] = (await transport.execute(intruder, data)).good

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        assert await trio.to_thread.run_sync(backend.started.wait, 10)
        nursery.start_soon(second)
    return succeeded


@pytest.fixture(params=["plain server", "tape drive"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeviceServer]:
    """What stands behind the wire, ready: the test's own server, or the whole emulated drive."""
    if request.param == "plain server":
        yield TapeServer()
        return
    with closing(VirtualCartridge.create(tmp_path / "a.tap", "lto5", 1 << 30)) as cartridge:
        target = Target(cartridge)
        until_good(target, TestUnitReady())
        yield target


def until_good(server: DeviceServer, command: Command) -> bytes:
    """Execute `command` behind the wire's back, past unit attentions; returns its data."""
    for _ in range(5):
        reply = server.execute(command.pack(), b"")
        if reply.good:
            return bytes(reply.data_in)
    pytest.fail(f"{command.name} stays refused")


async def test_a_command_in_the_middle_of_data_is_recorded_on_tape(
    server: DeviceServer, assert_logs: AssertLogs
) -> None:
    assert_logs("usb.reset_recovery|usb.port_reset|drive.gone")
    backend = TwoThreads(server, hold="data")
    succeeded = await overlap(backend, Write6(RECORD_BYTES), record_of(2))
    violation = backend.device.violations[0]
    assert violation.kind is ViolationKind.COMMAND_INSIDE_DATA
    assert "WRITE(6)" in violation.sentence
    assert not all(succeeded)
    # The consequence: the intruder's command block stands where the user's data should.
    until_good(server, Rewind())
    record = until_good(server, Read6(RECORD_BYTES))
    assert record[:4] == b"USBC"
    assert record[COMMAND_BYTES:] == bytes([1]) * (RECORD_BYTES - COMMAND_BYTES)


async def test_a_status_poll_before_the_status_stalls_the_drive(assert_logs: AssertLogs) -> None:
    assert_logs("usb.reset_recovery|usb.port_reset|drive.gone")
    backend = TwoThreads(server := TapeServer(), hold="status")
    succeeded = await overlap(backend, TestUnitReady(), None)
    violation = backend.device.violations[0]
    assert violation.kind is ViolationKind.COMMAND_BEFORE_STATUS
    assert "WRITE(6)" in violation.sentence
    # The consequence: the record is on tape, and its writer was told that it failed.
    assert server.records == [record_of(1).tobytes()]
    assert succeeded[0] is False


class OneHopPerStep:
    """A host as one would write it at first: every transfer awaited by itself, nobody excluded."""

    def __init__(self, endpoints: UsbEndpoints) -> None:
        self.endpoints = endpoints
        self.tag = 0

    async def execute(self, command: Command, into: array[int] | None = None) -> Result:
        self.tag += 1
        direction, length_bytes = command.direction, command.transfer_length_bytes
        steps = transaction(CommandBlock(self.tag, command.pack(), direction, length_bytes))
        step = next(steps)
        while True:
            outcome = await self.endpoints.run(partial(self.move, step, into))
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                result: Result = done.value
                return result

    def move(self, step: Step, into: array[int] | None) -> Outcome:
        if isinstance(step, SendCommand):
            return Moved(self.endpoints.send(array("B", step.block), 1))
        assert not isinstance(step, SendData)
        target = into if isinstance(step, ReceiveData) and into else array("B", bytes(13))
        return Moved(self.endpoints.receive(target, 1), target[:13].tobytes())


async def test_a_poll_between_a_failure_and_its_sense_loses_the_sense() -> None:
    backend = EmulatedUsbBackend(server := TapeServer())
    host = OneHopPerStep(open_endpoints("usb", backend))
    server.refuse = [Sense(SenseKey.MEDIUM_ERROR, 0x0C)]
    failed = trio.Event()
    polled = trio.Event()
    sense: list[Sense] = []

    async def writer() -> None:
        assert not (await host.execute(Rewind())).passed
        failed.set()
        await polled.wait()
        report = array("B", bytes(512))
        await host.execute(RequestSense(), report)
        sense.append(Sense.unpack(report[:18].tobytes()))

    async def poller() -> None:
        await failed.wait()
        await host.execute(TestUnitReady())
        polled.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        nursery.start_soon(poller)
    (violation,) = backend.device.violations
    assert violation.kind is ViolationKind.SENSE_DISCARDED
    assert "TEST UNIT READY" in violation.sentence
    assert sense == [Sense(SenseKey.NO_SENSE)], "the medium error is lost without a trace"


class Noticed(list[Violation]):
    """Violations that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def append(self, violation: Violation) -> None:
        super().append(violation)
        self.event.set()


async def test_two_threads_on_the_pipes_at_one_time_are_seen() -> None:
    inside, violations = threading.Event(), Noticed()

    class Slow(TapeServer):
        def execute(self, *args: Any) -> Any:
            inside.set()
            assert violations.event.wait(10)
            return super().execute(*args)

    device = EmulatedUsbBackend(Slow()).device
    device.violations = violations
    command = CommandBlock(1, TestUnitReady().pack(), Direction.NONE, 0).pack()
    into = memoryview(bytearray(13))

    def read_too_early() -> None:
        assert inside.wait(10)
        device.bulk_in(into)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, device.bulk_out, command)
        nursery.start_soon(trio.to_thread.run_sync, read_too_early)
    assert [each.kind for each in violations] == [ViolationKind.CONCURRENT_TRANSFERS]


# The rule holds.


async def test_a_drive_opened_written_and_read_through_the_whole_wire(tmp_path: Path) -> None:
    with closing(VirtualCartridge.create(tmp_path / "a.tap", "lto5", 1 << 30)) as cartridge:
        backend = EmulatedUsbBackend(Target(cartridge))
        drive = await TapeDrive.open(BotTransport(open_endpoints("usb", backend)))
        await drive.rewind()
        for number in range(8):
            await drive.write_block(record_of(number))
        await drive.write_filemarks(1)
        await drive.rewind()
        into = array("B", bytes(RECORD_BYTES))
        for number in range(8):
            assert await drive.read_block(into) == RECORD_BYTES
            assert into == record_of(number)
        with pytest.raises(FilemarkDetected):
            await drive.read_block(into)
        await drive.aclose()
    assert backend.device.violations == []


class FifoLane:
    """The least a scheduler must do: one caller at a time, in the order of asking."""

    def __init__(self, transport: BotTransport) -> None:
        self._transport = transport
        self._turn = trio.StrictFIFOLock()

    async def execute(self, command: Command, data: array[int] | None = None) -> Any:
        async with self._turn:
            return await self._transport.execute(command, data)


async def test_sixty_four_tasks_through_one_lane() -> None:
    backend = EmulatedUsbBackend(server := TapeServer())
    lane = FifoLane(BotTransport(open_endpoints("usb", backend)))
    rng = random.Random(1)
    order: list[int] = []
    reads: list[tuple[int, int]] = []
    written = trio.Event()

    async def task(number: int) -> None:
        # Records of different sizes, so that what a read says of its length tells which it was.
        assert (await lane.execute(TestUnitReady())).good
        completion = await lane.execute(Write6(1000 + number), record_of(number, 1000 + number))
        assert completion.good
        order.append(number)
        if len(order) == TASK_COUNT:
            written.set()
        await written.wait()
        into = array("B", bytes(RECORD_BYTES))
        completion = await lane.execute(Read6(RECORD_BYTES), into)
        assert completion.sense is not None
        reads.append((into[0], RECORD_BYTES - completion.sense.information))

    async def poll() -> None:
        while True:
            with trio.move_on_after(rng.random() / 1000):
                assert (await lane.execute(TestUnitReady())).good

    async with trio.open_nursery() as polls:
        for _ in range(4):
            polls.start_soon(poll)
        async with trio.open_nursery() as nursery:
            for number in range(TASK_COUNT):
                nursery.start_soon(task, number)
        polls.cancel_scope.cancel()
    assert backend.device.violations == []
    assert server.records == [record_of(n, 1000 + n).tobytes() for n in order]
    assert sorted(reads) == [(number, 1000 + number) for number in range(TASK_COUNT)]
    assert server.executed.count("READ(6)") == server.executed.count("REQUEST SENSE") == TASK_COUNT


async def test_without_a_lane_the_guard_lets_one_through_and_refuses_the_others() -> None:
    backend = EmulatedUsbBackend(server := TapeServer())
    transport = BotTransport(open_endpoints("usb", backend))
    refused: list[str] = []
    written: list[int] = []

    async def task(number: int) -> None:
        try:
            await transport.execute(Write6(RECORD_BYTES), record_of(number))
            written.append(number)
        except OverlappedCommand as exc:
            refused.append(str(exc))

    async with trio.open_nursery() as nursery:
        for number in range(TASK_COUNT):
            nursery.start_soon(task, number)
    assert len(written) + len(refused) == TASK_COUNT
    assert refused
    assert backend.device.violations == []
    assert server.records == [record_of(number).tobytes() for number in written]


async def test_even_without_guard_and_lane_the_one_thread_keeps_commands_whole() -> None:
    backend = EmulatedUsbBackend(server := TapeServer())
    transport = BotTransport(open_endpoints("usb", backend), overlap_guard=False)

    async def task(number: int) -> None:
        completion = await transport.execute(Write6(RECORD_BYTES), record_of(number))
        assert completion.good

    async with trio.open_nursery() as nursery:
        for number in range(TASK_COUNT):
            nursery.start_soon(task, number)
    assert backend.device.violations == []
    assert sorted(server.records) == [record_of(n).tobytes() for n in range(TASK_COUNT)]


async def test_the_guard_is_free_again_after_every_kind_of_end() -> None:
    backend = EmulatedUsbBackend(server := TapeServer())
    transport = BotTransport(open_endpoints("usb", backend), settle_s=0)
    server.refuse = [Sense(SenseKey.NOT_READY, 0x3A)]
    assert not (await transport.execute(Rewind())).good
    with pytest.raises(ValueError, match="bytes"):
        await transport.execute(Write6(5), b"")
    with trio.CancelScope() as scope:
        scope.cancel()
        await transport.execute(Rewind())
    assert (await transport.execute(TestUnitReady())).good
