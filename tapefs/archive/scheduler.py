"""The lane: one task owns the drive, one job runs at a time, everybody else waits.

This is what makes the failure of KB 817765 impossible. Nobody but the lane's task ever holds the
`TapeDrive`: a job is a function that receives it, runs to its end, and gives it back. A job once
started is never cancelled: when the task that waits for it is, the job still finishes and its
result is dropped. Between two jobs the policy decides who is next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import outcome
import trio

from tapefs.archive.policy import JobKind, LaneState, Waiting, choose
from tapefs.errors import DriveGone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tapefs.drive import TapeDrive

T = TypeVar("T")

_CLOSED: Final = "the drive is not served any more; mount the tape again"


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """Counters since the start and what runs now."""

    jobs_done: dict[str, int]
    running: str | None
    waiting: dict[str, int]


@dataclass(eq=False, slots=True)
class _Job:
    waiting: Waiting
    work: Callable[[TapeDrive], Awaitable[Any]]
    done: trio.Event
    result: outcome.Outcome[Any] | None = None


class Scheduler:
    """Owns the drive and serves jobs one at a time.

    `spool_pressed` is asked before each choice whether the spool is above its high water mark.
    """

    def __init__(
        self,
        drive: TapeDrive,
        *,
        recalls_before_archive: int,
        spool_pressed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._drive = drive
        self._recalls_before_archive = recalls_before_archive
        self.spool_pressed = spool_pressed
        self._queue: list[_Job] = []
        self._arrived = trio.Event()
        self._running: _Job | None = None
        self._recalls_in_row = 0
        self._done: dict[JobKind, int] = dict.fromkeys(JobKind, 0)
        self.head_block: int | None = None
        self._closed = False

    def statistics(self) -> LaneStatistics:
        """What the lane has done and what it is doing."""
        waiting = {kind.value: 0 for kind in JobKind}
        for job in self._queue:
            waiting[job.waiting.kind.value] += 1
        running = self._running.waiting.kind.value if self._running else None
        done = {kind.value: count for kind, count in self._done.items()}
        return LaneStatistics(done, running, waiting)

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
    ) -> T:
        """Queue `work`, wait until it ran, return or raise what it did.

        Cancellation while the job is still queued removes it; once it runs, it runs to its end
        and only this wait is given up. May be called by any task. Raises DriveGone when the lane
        has been closed.
        """
        if self._closed:
            raise DriveGone(_CLOSED)
        job = _Job(Waiting(kind, block), work, trio.Event())
        self._queue.append(job)
        self._arrived.set()
        try:
            await job.done.wait()
        finally:
            if job in self._queue:
                self._queue.remove(job)
        assert job.result is not None
        return cast("T", job.result.unwrap())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve jobs until cancelled. A job in progress is finished first."""
        task_status.started()
        try:
            while True:
                while not self._queue:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                await trio.lowlevel.checkpoint_if_cancelled()
                await self._run_one(self._take_next())
        finally:
            self._closed = True
            for job in self._queue:
                job.result = outcome.Error(DriveGone(_CLOSED))
                job.done.set()
            self._queue.clear()

    def _take_next(self) -> _Job:
        state = LaneState(
            head_block=self.head_block,
            recalls_in_row=self._recalls_in_row,
            spool_pressed=self.spool_pressed(),
            recalls_before_archive=self._recalls_before_archive,
        )
        index = choose([job.waiting for job in self._queue], state)
        return self._queue.pop(index)

    async def _run_one(self, job: _Job) -> None:
        kind = job.waiting.kind
        self._running = job
        try:
            with trio.CancelScope(deadline=math.inf, shield=True):
                # The waiter gets whatever the job raised; the lane itself must survive it.
                job.result = await outcome.acapture(job.work, self._drive)
        finally:
            self._running = None
            self._done[kind] += 1
            self._recalls_in_row = self._recalls_in_row + 1 if kind is JobKind.RECALL else 0
            job.done.set()
