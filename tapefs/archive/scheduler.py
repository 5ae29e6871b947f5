"""The lane: one task owns the drive, one job runs at a time, everybody else waits.

This is what makes the failure of KB 817765 impossible. Nobody but the lane's task ever holds the
`TapeDrive`: a job is a function that receives it, runs to its end, and gives it back. A job once
started is never cancelled: when the task that waits for it is, the job still finishes and its
result is dropped. Between two jobs the policy decides who is next.

When a job leaves drive or cartridge in doubt (unplugged, reset, taken out), the lane is *away*: it
runs nothing until its lookout has found the same two again and proven them. Jobs with attempts left
wait for that; all others fail at once, with a sentence that says what happened.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import outcome
import trio

from tapefs import telemetry
from tapefs.archive.motion_model import tape_of
from tapefs.archive.policy import (
    Bounds,
    JobKind,
    LaneState,
    Pressure,
    Turns,
    Waiting,
    choose,
    holds_for_burst,
)
from tapefs.archive.resumption import Away, leaves_in_doubt, what_happened
from tapefs.errors import DriveGone, Fault, NotReady, TapefsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tapefs.archive.motion_model import MotionModel
    from tapefs.config import Config
    from tapefs.drive import TapeDrive

T = TypeVar("T")

_CLOSED: Final = "the drive is not served any more; mount the tape again"


# After a look that failed for another reason than that something is missing, the next one comes
# after so many times the usual pause: it may have moved the tape.
_PAUSES_AFTER_ERROR: Final = 15


# The lane waits this long at most for the next tape file of a burst, and looks this often.
_HOLD_S: Final = 5.0
_LOOK_S: Final = 0.1


class Lookout(Protocol):
    """Finds the drive again. `tapefs.archive.resumption.Resumption` is the one."""

    @property
    def wanted(self) -> str:
        """What it looks for, in words."""
        ...

    async def look(self) -> TapeDrive:
        """The drive with its cartridge, proven; raises TapefsError with what speaks against it."""
        ...


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """Counters since the start and what runs now.

    `since_s`, of trio's clock: when the running job began, or the last one ended. `recall_blocks`:
    where the recalls that wait start, in the order in which they came.
    """

    jobs_done: dict[str, int]
    running: str | None
    waiting: dict[str, int]
    since_s: float
    recall_blocks: tuple[int, ...]


@dataclass(eq=False, slots=True)
class _Job:
    waiting: Waiting
    work: Callable[[TapeDrive], Awaitable[Any]]
    done: trio.Event
    attempts_left: int
    # Waits while the lane is away.
    patient: bool
    result: outcome.Outcome[Any] | None = None
    abandoned: bool = False


class Scheduler:
    """Owns the drive and serves jobs one at a time.

    `spool_pressure` is asked before each choice how full the spool is, and `burst_follows` whether
    the archiver is going to have another job at once.
    `on_away` is told whenever the lane goes away, finds out more about why, or is back (None).
    `after_job` sees the drive when a job has ended; it must send it nothing.
    """

    def __init__(
        self,
        drive: TapeDrive,
        lookout: Lookout,
        config: Config,
        clock_ns: Callable[[], int] = time.time_ns,
        policy: Callable[[Sequence[Waiting], LaneState], int] = choose,
    ) -> None:
        self._drive = drive
        self._lookout = lookout
        self._config = config
        self._clock_ns = clock_ns
        self._policy = policy
        self.spool_pressure: Callable[[], Pressure] = lambda: Pressure.LOW
        self.burst_follows: Callable[[], bool] = lambda: False
        self.on_away: Callable[[Away | None], None] = lambda _: None
        self.after_job: Callable[[TapeDrive], None] = lambda _: None
        self._queue: list[_Job] = []
        self._arrived = trio.Event()
        self._running: _Job | None = None
        self._turns = Turns()
        self._since_s = 0.0
        self._done: dict[JobKind, int] = dict.fromkeys(JobKind, 0)
        self.head_block: int | None = None
        self.away: Away | None = None
        self._looked = trio.Event()
        self._closed = False

    @property
    def tape(self) -> MotionModel:
        """How the tape is laid out, as far as the drive tells: for `recall_order`."""
        return tape_of(*self.wraps)

    @property
    def wraps(self) -> tuple[tuple[int, ...], int]:
        """Where those that are full end, and how many there are; may be asked by any thread."""
        return self._drive.wrap_ends, self._drive.wrap_count

    def statistics(self) -> LaneStatistics:
        """What the lane has done and what it is doing."""
        waiting = {kind.value: 0 for kind in JobKind}
        for job in self._queue:
            waiting[job.waiting.kind.value] += 1
        running = self._running.waiting.kind.value if self._running else None
        done = {kind.value: count for kind, count in self._done.items()}
        blocks = (job.waiting.block for job in self._queue if job.waiting.kind is JobKind.RECALL)
        recall_blocks = tuple(block for block in blocks if block is not None)
        return LaneStatistics(done, running, waiting, self._since_s, recall_blocks)

    def others_waiting(self) -> bool:
        """True when a job is queued behind the running one. For jobs that may end early.

        Maintenance does not count: it has time.
        """
        return any(job.waiting.kind is not JobKind.MAINTENANCE for job in self._queue)

    async def submit(
        self,
        kind: JobKind,
        work: Callable[[TapeDrive], Awaitable[T]],
        *,
        block: int | None = None,
        attempts: int = 1,
    ) -> T:
        """Queue `work`, wait until it ran, return or raise what it did.

        With more than one of `attempts` the job waits while the lane is away, and is run again
        when the drive was lost under it. Cancellation while the job is queued removes it; once it
        runs, it runs to its end and only this wait is given up. May be called by any task. Raises
        DriveGone when the lane has been closed, or is away and the job has one attempt only.
        """
        if self._closed:
            raise DriveGone(_CLOSED)
        patient = attempts > 1
        if self.away is not None and not patient:
            raise DriveGone(self.away.sentence)
        job = _Job(self._turns.admit(kind, block), work, trio.Event(), attempts, patient)
        self._queue.append(job)
        self._arrived.set()
        try:
            await job.done.wait()
        finally:
            job.abandoned = True
            if job in self._queue:
                self._queue.remove(job)
        assert job.result is not None
        return cast("T", job.result.unwrap())

    async def is_back_at_once(self) -> bool:
        """Wait until the drive has been looked for once; whether the lane serves again."""
        if self.away is not None:
            await self._looked.wait()
        return self.away is None and not self._closed

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve jobs until cancelled. A job in progress is finished first."""
        self._since_s = trio.current_time()
        task_status.started()
        try:
            while True:
                await self._until_work()
                await trio.lowlevel.checkpoint_if_cancelled()
                if self.away is not None:
                    await self._bring_back(self.away)
                elif await self._may_choose():
                    await self._run_one(self._take_next())
        finally:
            self._closed = True
            self._looked.set()
            self._fail(list(self._queue), _CLOSED)

    async def _until_work(self) -> None:
        """Return when there is a job, or the drive or its cartridge is not there any more."""
        while not self._queue and self.away is None:
            self._arrived = trio.Event()
            with trio.move_on_after(self._config.drive_check_s) as pause:
                await self._arrived.wait()
            if pause.cancelled_caught:
                await self._check()

    async def _check(self) -> None:
        """Nobody wants the drive: see whether it is still there, so that status can tell."""
        try:
            if not await self._drive.test_ready():
                self._go_away(NotReady("the drive is not ready"))
        except TapefsError as error:
            self.head_block = None
            if leaves_in_doubt(error):
                self._go_away(error)
            else:
                telemetry.event(telemetry.DRIVE_CHECK_FAILED, logging.WARNING, reason=error)

    async def _may_choose(self) -> bool:
        """Wait while a burst holds the lane; false when nobody is in the queue any more."""
        with trio.move_on_after(_HOLD_S):
            while self.burst_follows() and holds_for_burst(self._waiting(), self._state()):
                self._arrived = trio.Event()
                with trio.move_on_after(_LOOK_S):
                    await self._arrived.wait()
        return bool(self._queue)

    def _waiting(self) -> list[Waiting]:
        return [job.waiting for job in self._queue]

    def _state(self) -> LaneState:
        config = self._config
        bounds = Bounds(
            config.recalls_before_archive,
            config.recall_turn_s,
            config.archives_before_recall,
            config.recall_overtaken_max,
        )
        return LaneState(self.head_block, self.spool_pressure(), self._turns, self.tape, bounds)

    def _take_next(self) -> _Job:
        job = self._queue.pop(self._policy(self._waiting(), self._state()))
        self._turns.take(job.waiting, self.head_block, (left.waiting for left in self._queue))
        return job

    async def _run_one(self, job: _Job) -> None:
        kind = job.waiting.kind
        self._running, self._since_s = job, trio.current_time()
        try:
            with trio.CancelScope(deadline=math.inf, shield=True):
                # The waiter gets whatever the job raised; the lane itself must survive it.
                job.result = await outcome.acapture(job.work, self._drive)
        finally:
            began_s, self._running, self._since_s = self._since_s, None, trio.current_time()
            self._turns.ended(job.waiting, self._since_s - began_s)
            self._done[kind] += 1
            if not self._is_asked_again(job):
                job.done.set()
        self.after_job(self._drive)

    def _is_asked_again(self, job: _Job) -> bool:
        """Whether the job goes back to the queue, because the drive was lost under it."""
        error = job.result.error if isinstance(job.result, outcome.Error) else None
        if not isinstance(error, TapefsError) or not leaves_in_doubt(error):
            return False
        self._go_away(error)
        job.attempts_left -= 1
        if job.attempts_left < 1 or job.abandoned:
            return False
        self._queue.insert(0, job)
        return True

    # -- away

    def _go_away(self, error: TapefsError) -> None:
        telemetry.event(
            telemetry.DRIVE_AWAY, logging.WARNING, kind=type(error).__name__, reason=error
        )
        self.head_block = None
        self._looked = trio.Event()
        away = Away(self._clock_ns(), what_happened(error), self._lookout.wanted)
        self._note_away(away)
        self._fail([job for job in self._queue if not job.patient], away.sentence)

    def _note_away(self, away: Away | None) -> None:
        self.away = away
        self.on_away(away)

    def _fail(self, jobs: list[_Job], reason: str) -> None:
        """These jobs of the queue are not going to be run."""
        for job in jobs:
            self._queue.remove(job)
            job.result = outcome.Error(DriveGone(reason))
            job.done.set()

    async def _bring_back(self, away: Away) -> None:
        """Look until drive and cartridge are there; a look at a time, and nothing in between."""
        pause_s = self._config.drive_poll_s
        while True:
            try:
                self._drive = await self._lookout.look()
                break
            except TapefsError as error:
                finding = str(error)
                known = leaves_in_doubt(error) or error.fault is Fault.OPERATOR
            except Exception as exc:  # noqa: BLE001 - names and spool must outlive a bug here
                telemetry.LOGGER.exception(telemetry.DRIVE_REFUSED)
                finding, known = f"a bug kept the drive away ({exc!r}); the log says more", False
            if finding != away.finding:
                telemetry.event(telemetry.DRIVE_REFUSED, logging.WARNING, reason=finding)
                away = dataclasses.replace(away, finding=finding)
                self._note_away(away)
            self._looked.set()
            await trio.sleep(pause_s if known else pause_s * _PAUSES_AFTER_ERROR)
        telemetry.event(telemetry.DRIVE_BACK, drive=self._lookout.wanted)
        self._note_away(None)
        self._looked.set()
