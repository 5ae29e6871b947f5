"""The lane over the whole wire: real scheduler, real transport, emulated USB drive."""

from __future__ import annotations

import functools
import random
from array import array
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tapefs.archive.policy import JobKind, Pressure
from tapefs.archive.scheduler import Lookout, Scheduler
from tapefs.config import Config
from tapefs.drive import TapeAddress, TapeDrive
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.errors import DriveGone, MediumFailed
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BLOCK_BYTES = 4096
BLOCKS = 40
CONFIG = Config(recalls_before_archive=4, drive_poll_s=0.0)


def block(number: int) -> array[int]:
    return array("B", random.Random(number).randbytes(BLOCK_BYTES))


class NoLookout:
    """For a drive that is never lost."""

    wanted = "nothing"

    async def look(self) -> TapeDrive:
        raise AssertionError("the drive was never away")


@asynccontextmanager
async def lane(
    tmp_path: Path, lookout: Lookout | None = None, config: Config = CONFIG
) -> AsyncIterator[tuple[Scheduler, EmulatedUsbBackend]]:
    with VirtualCartridge.create(tmp_path / "x.tap", "lto5", 1 << 24) as cartridge:
        backend = EmulatedUsbBackend(Target(cartridge))
        drive = await TapeDrive.open(BotTransport(open_endpoints("usb", backend)))
        scheduler = Scheduler(drive, lookout or NoLookout(), config)
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            yield scheduler, backend
            nursery.cancel_scope.cancel()
        await drive.aclose()


async def fill(drive: TapeDrive) -> None:
    await drive.rewind()
    for number in range(BLOCKS):
        await drive.write_block(block(number))
    await drive.write_filemarks(1)


async def test_64_tasks_hammering_never_overlap(tmp_path: Path) -> None:
    dice = random.Random(1)

    async def read_one(drive: TapeDrive, number: int) -> bytes:
        buffer = array("B", bytes(BLOCK_BYTES))
        await drive.locate(TapeAddress(number, 0, number))
        await drive.read_block(buffer)
        return buffer.tobytes()

    async def reader(scheduler: Scheduler, numbers: list[int]) -> None:
        for number in numbers:
            job = functools.partial(read_one, number=number)
            data = await scheduler.submit(JobKind.RECALL, job, block=number)
            assert data == block(number).tobytes()

    async def poller(scheduler: Scheduler, kind: JobKind) -> None:
        for _ in range(5):
            assert await scheduler.submit(kind, lambda drive: drive.test_ready())
            await scheduler.submit(kind, lambda drive: drive.health())

    async with lane(tmp_path) as (scheduler, backend):
        await scheduler.submit(JobKind.ARCHIVE, fill)
        async with trio.open_nursery() as nursery:
            for _ in range(56):
                numbers = [dice.randrange(BLOCKS) for _ in range(4)]
                nursery.start_soon(reader, scheduler, numbers)
            for kind in (*JobKind, *JobKind):
                nursery.start_soon(poller, scheduler, kind)
        assert backend.device.violations == []
        assert sum(scheduler.statistics().jobs_done.values()) == 1 + 56 * 4 + 8 * 10


async def test_the_waiter_gets_what_the_job_raised_and_the_lane_lives_on(tmp_path: Path) -> None:
    async def fail(drive: TapeDrive) -> None:
        raise MediumFailed("a hole in the tape")

    async with lane(tmp_path) as (scheduler, _):
        with pytest.raises(MediumFailed, match="hole"):
            await scheduler.submit(JobKind.RECALL, fail)
        assert await scheduler.submit(JobKind.CONTROL, lambda drive: drive.test_ready())


async def test_a_started_job_outlives_its_waiter(tmp_path: Path) -> None:
    finished: list[bool] = []
    started = trio.Event()

    async def slow(drive: TapeDrive) -> None:
        started.set()
        await fill(drive)
        finished.append(await drive.test_ready())

    async with lane(tmp_path) as (scheduler, backend):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.submit, JobKind.ARCHIVE, slow)
            await started.wait()
            nursery.cancel_scope.cancel()
        assert await scheduler.submit(JobKind.CONTROL, lambda drive: drive.test_ready())
        assert finished == [True]
        assert backend.device.violations == []


async def test_recalls_are_served_along_the_tape(tmp_path: Path) -> None:
    """Ten blocks a wrap: block 10 lies beside 9, block 19 beside 0."""
    served: list[int] = []

    async def serve(drive: TapeDrive, number: int) -> None:
        served.append(number)
        scheduler.head_block = number
        if len(served) == 1:
            drive.wrap_ends, drive.wrap_count = (10, 20, 30), 4
            await all_are_here.wait()

    all_are_here = trio.Event()
    async with lane(tmp_path) as (scheduler, _), trio.open_nursery() as nursery:
        for number in (0, 9, 2, 19, 12, 10):
            job = functools.partial(serve, number=number)
            submit = functools.partial(scheduler.submit, block=number)
            nursery.start_soon(submit, JobKind.RECALL, job)
            await trio.testing.wait_all_tasks_blocked()
        all_are_here.set()
        await scheduler.submit(JobKind.MAINTENANCE, lambda drive: drive.test_ready())
        assert served == [0, 2, 19, 12, 9, 10]


async def test_a_waiting_job_leaves_with_its_waiter(tmp_path: Path) -> None:
    ran: list[str] = []
    release = trio.Event()

    async def hold(drive: TapeDrive) -> None:
        await release.wait()

    async def never(drive: TapeDrive) -> None:
        ran.append("never")

    async with lane(tmp_path) as (scheduler, _), trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.submit, JobKind.ARCHIVE, hold)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await scheduler.submit(JobKind.CONTROL, never)
        release.set()
        await scheduler.submit(JobKind.MAINTENANCE, lambda drive: drive.test_ready())
        assert ran == []


async def test_a_closed_lane_answers_everybody(tmp_path: Path) -> None:
    async with lane(tmp_path) as (scheduler, _):
        pass
    assert scheduler.statistics().running is None
    with trio.move_on_after(1) as scope, pytest.raises(DriveGone):
        await scheduler.submit(JobKind.CONTROL, lambda drive: drive.test_ready())
    assert not scope.cancelled_caught


async def test_recalls_keep_the_drive_for_their_turn_while_the_spool_is_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Idle:
        """A drive of which nothing is asked."""

        wrap_ends: tuple[int, ...] = ()
        wrap_count = 1

    drive: Any = Idle()
    config = Config(drive_check_s=1e9, recall_turn_s=100.0)
    scheduler, order = Scheduler(drive, NoLookout(), config), []
    scheduler.spool_pressure = lambda: Pressure.HIGH

    async def run(kind: JobKind) -> None:
        async def job(_: TapeDrive) -> None:
            order.append(kind)
            await trio.sleep(40)

        await scheduler.submit(kind, job, block=1)

    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        async with trio.open_nursery() as waited:
            for kind in [*[JobKind.RECALL] * 5, *[JobKind.ARCHIVE] * 3]:
                waited.start_soon(run, kind)
        nursery.cancel_scope.cancel()
    recall, archive = [JobKind.RECALL], [JobKind.ARCHIVE]
    # Three recalls have had it for 120 s; archiving then has a turn of two, and what is left.
    assert order == 3 * recall + 2 * archive + 2 * recall + archive
