"""The archiver: takes settled files from the spool to tape, in bursts that let the drive stream.

One task runs here, and decides when; `Migration` does it. What fails goes to tape again behind
an end of data that is proven anew; when that keeps failing, or the tape is full, it stays in the
spool.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tapefs import telemetry
from tapefs.archive.migration import Migration
from tapefs.archive.policy import burst_bytes, burst_share_bytes
from tapefs.archive.resumption import leaves_in_doubt
from tapefs.archive.retry import Retry
from tapefs.archive.write_failure import Remedy, remedy
from tapefs.errors import DriveGone, NotFinalized, TapefsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.contents import Contents
    from tapefs.archive.resumption import Away
    from tapefs.archive.scheduler import Scheduler
    from tapefs.archive.spool import Spool
    from tapefs.archive.tape_writer import TapeWriter
    from tapefs.catalog import Catalog
    from tapefs.config import Config


# What still comes in now and then holds up what waits for tape for so many times `idle_s` at most.
_IDLES_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class ArchiverStatistics:
    """What went to tape since the mount, and what is going."""

    segments: int
    checkpoints: int
    tape_bytes: int
    tape_s: float
    state: str
    current_bytes: int


class _Request:
    """Somebody waits until everything is on tape."""

    def __init__(self, *, finalize: bool) -> None:
        self.finalize = finalize
        self.done = trio.Event()
        self.error: TapefsError | None = None


class Archiver:
    """Migrates files. `run` must be running; the rest may be called by any task."""

    def __init__(
        self,
        catalog: Catalog,
        lane: Scheduler,
        writer: TapeWriter,
        contents: Contents,
        spool: Spool,
        account: CapacityAccount,
        config: Config,
        clock_ns: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._lane = lane
        self._writer = writer
        self._contents = contents
        self._admission = contents.admission
        self._spool = spool
        self._account = account
        self._config = config
        self._requests: list[_Request] = []
        self._woken = trio.Event()
        # Since when something waits for tape.
        self._waiting_since: float | None = None
        self._retry = Retry(config.settle_s)
        self.migration = Migration(catalog, writer, contents, spool, account, config, clock_ns)
        self._works = False
        # From how many bytes on a burst is worth it, by what was written to tape so far.
        self._worth_bytes = self._burst_bytes()
        lane.spool_pressure = self.migration.spool_pressure
        lane.burst_follows = lambda: self._works or self._due()
        lane.on_away = self._drive_is_away
        contents.admission.wake_archiver = self.wake
        contents.sync_to_tape = self.sync

    def statistics(self) -> ArchiverStatistics:
        """What went to tape since the mount, and what is going."""
        tape = self._writer.statistics()
        written = (tape.checkpoints, tape.tape_bytes, tape.tape_s)
        return ArchiverStatistics(
            self.migration.segments, *written, self.migration.state, tape.current_bytes
        )

    def close(self) -> None:
        """Let go of the tape view. `run` must have ended."""
        self._writer.view.close()

    def wake(self) -> None:
        """There may be something to do. Called for every file that is written: while something
        waits already and is not enough for a burst, one more changes nothing."""
        earlier = self._retry.called()
        if earlier or self._waiting_since is None or self._retry.overdue or self._is_enough():
            self._woken.set()

    def _look(self) -> None:
        """Something has to be decided anew."""
        self._retry.called()
        self._woken.set()

    def _drive_is_away(self, away: Away | None) -> None:
        self._writer.must_prove_end()
        self._admission.tape_is_stuck(away.sentence if away else None)
        self._look()

    async def sync(self) -> None:
        """Return when everything accepted before this call is on tape, flushed (P3).

        Raises what kept it from getting there; at once when the drive is away.
        """
        await self._request(finalize=False)

    async def finalize(self) -> None:
        """Everything on tape, then a checkpoint, then rewind. For the end of a mount."""
        await self._request(finalize=True)

    async def _request(self, *, finalize: bool) -> None:
        request = _Request(finalize=finalize)
        self._requests.append(request)
        self._look()
        await request.done.wait()
        if request.error is not None:
            raise request.error

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; a segment in progress is finished first."""
        task_status.started()
        while True:
            await trio.lowlevel.checkpoint()  # when the lane has ended, nothing below waits
            await self._until_work()
            with trio.CancelScope(shield=True):
                await self._work_off()

    async def _until_work(self) -> None:
        while not self._requests and not self._due():
            self._woken = trio.Event()
            with trio.move_on_after(self._tick_s()):
                await self._woken.wait()

    def _tick_s(self) -> float:
        """When to look again unless `wake` is called before: at the next moment that counts."""
        if self._account.pending_count == 0 or self._admission.closed_reason or self._lane.away:
            return math.inf
        moments = [] if self._retry.at is None else [self._retry.at]
        if self._waiting_since is not None:
            moments.append(self._due_at(self._waiting_since))
        now = trio.current_time()
        return min((moment - now for moment in moments if moment > now), default=math.inf)

    def _due(self) -> bool:
        """Whether a burst should start without being asked for."""
        if self._admission.closed_reason or self._lane.away or self._retry.holds_back:
            return False
        if self.migration.spool_pressed():
            return True
        # Whoever still writes to a file calls when it is closed.
        in_use = 0 if self.migration.takes_open_files() else self._contents.dirty_in_use_count()
        if self._account.pending_count <= in_use:
            self._waiting_since = None
            return False
        if self._waiting_since is None:
            self._waiting_since = trio.current_time()
        if self._retry.overdue:
            return True
        if self._is_enough():
            return True
        return trio.current_time() >= self._due_at(self._waiting_since)

    def _due_at(self, waiting_since: float) -> float:
        """When what waits goes to tape although it is no burst: when nothing has come for a while.

        Less than the drive takes would otherwise go to tape in pieces, with a stop for each.
        """
        idle_s = self._config.idle_s
        quiet_at = max(waiting_since, self._retry.called_at) + idle_s
        return min(quiet_at, waiting_since + _IDLES_MAX * idle_s)

    def _is_enough(self) -> bool:
        """Whether so much waits that a burst is worth it, or needed."""
        enough = self._account.pending_bytes >= self._worth_bytes
        return enough or self.migration.spool_pressed()

    def _burst_bytes(self) -> int:
        worth_bytes = self._config.burst_bytes
        if worth_bytes is None:
            tape = self._writer.statistics()
            worth_bytes = burst_bytes(tape.tape_bytes, tape.tape_s)
        return min(worth_bytes, burst_share_bytes(self._spool.limit_bytes, self._config))

    async def _work_off(self) -> None:
        self._works = True
        requests, self._requests = self._requests, []
        segments_before = self.migration.segments
        error: TapefsError | None = TapefsError("the archiver was broken off; see the log")
        try:
            error = await self._migrate(
                everything=bool(requests), finalize=any(request.finalize for request in requests)
            )
        finally:
            self._works = False
            self.migration.state = "idle"
            self._waiting_since = None
            self._worth_bytes = self._burst_bytes()
            if error is None:
                wrote = self.migration.segments > segments_before
                self._retry.succeeded(wrote=wrote, full=self.migration.does_not_fit)
                if self._admission.closed_reason is None and self._lane.away is None:
                    self._admission.tape_is_stuck(None)
            elif not leaves_in_doubt(error):
                self._retry.failed()
            for request in requests:
                request.error = error
                request.done.set()

    async def _migrate(self, *, everything: bool, finalize: bool) -> TapefsError | None:
        """Bring to tape what there is; after a failure again, as long as that promises anything.

        Returns what kept it from getting there.
        """
        while True:
            if not await self._lane.is_back_at_once():
                return self._missed(finalize=finalize)
            self.migration.does_not_fit = False
            try:
                if self._admission.closed_reason is None:
                    await self.migration.drain(everything=everything)
                await self.migration.close_when_near_end()
                if finalize:
                    await self.migration.finish_volume()
            except TapefsError as exc:
                error = exc
            except Exception as exc:  # noqa: BLE001 - names, spool and reads must outlive a bug here
                telemetry.LOGGER.exception(telemetry.SEGMENT_FAILED)
                error = TapefsError(f"a bug stopped the archiver ({exc!r}); the log says more")
            else:
                return self._what_is_left() if everything else None
            if not self._goes_on_after(error, everything=everything):
                return error

    def _missed(self, *, finalize: bool) -> TapefsError | None:
        """The drive is away: the error for whoever wants something of it."""
        reason = self._lane.away.sentence if self._lane.away else "the drive is not served any more"
        unfinished = finalize and self._admission.read_only_reason is None
        if self._catalog.owes_tape() or (unfinished and not self.migration.is_ended()):
            self._retry.overdue = True
            return DriveGone(reason)
        if finalize:
            self.migration.remarks.append(f"the tape could not be rewound: {reason}")
        return None

    def _what_is_left(self) -> NotFinalized | None:
        """After everything was to go to tape: why something did not, if so."""
        reason = self._admission.closed_reason
        if reason is None and self.migration.does_not_fit:
            reason = "the cartridge has less room than was expected, and not everything fits"
        if reason is None or not self._catalog.owes_tape():
            return None
        return NotFinalized(
            f"{reason}; {self._account.pending_count} files ({self._account.pending_bytes} bytes) "
            "wait in the spool, and 'tapefs spool list' names them"
        )

    def _goes_on_after(self, error: TapefsError, *, everything: bool) -> bool:
        """Take note of a failure; true when what is left to be done should be tried."""
        telemetry.event(
            telemetry.SEGMENT_FAILED, logging.ERROR, kind=type(error).__name__, reason=error
        )
        self._writer.must_prove_end()
        if leaves_in_doubt(error):
            self._retry.lost(self.migration.segments)
            # Whoever waits need not know of a loss that is over after one look.
            return everything and not self._retry.holds_back
        failures_in_row = self.migration.failures_in_row + 1
        found = remedy(error, failures_in_row, self._config.write_attempts_max)
        if found is Remedy.WAIT:
            self._admission.tape_is_stuck(f"the tape cannot be written: {error}")
            return False
        self.migration.failures_in_row = failures_in_row
        if found is Remedy.WRITE_NO_MORE:
            if self._admission.read_only_reason is not None:
                return False
            telemetry.event(telemetry.VOLUME_READ_ONLY, logging.ERROR, reason=error)
            self._admission.close_read_only(f"the tape cannot be written: {error}")
        self.migration.at_end = found is Remedy.AT_END
        return True
