"""The archiver: takes settled files from the spool to tape, in bursts that let the drive stream.

One task runs here. A segment is: a moment of the catalog (`Burst`), written by the `TapeWriter` up
to a synchronising filemark; then the tape view learns its journal, and only then are the files'
ranges clean and may leave the spool (P7). What fails before that goes to tape again behind an end
of data that is proven anew; when that keeps failing, or the tape is full, it stays in the spool.
"""

from __future__ import annotations

import enum
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tapefs import telemetry
from tapefs.archive.burst import WHOLE_BYTES, Burst, Limits, Selection, select
from tapefs.archive.catalogs import foreign_to
from tapefs.archive.confirmation import Confirmation
from tapefs.archive.policy import burst_bytes
from tapefs.archive.resumption import leaves_in_doubt
from tapefs.archive.retry import Retry
from tapefs.archive.write_failure import Remedy, remedy
from tapefs.entries import TapeFileKind
from tapefs.errors import DriveGone, NotFinalized, TapefsError
from tapefs.volume.journal_file import read_entries
from tapefs.volume.segment import SegmentBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.contents import Contents
    from tapefs.archive.resumption import Away
    from tapefs.archive.scheduler import Scheduler
    from tapefs.archive.spool import Spool
    from tapefs.archive.tape_writer import TapeWriter
    from tapefs.catalog import Catalog, Snapshot
    from tapefs.config import Config
    from tapefs.entries import Entry

# The spool keeps clean files as a cache up to this share of it.
_CACHE_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class ArchiverStatistics:
    """What went to tape since the mount, and what is going."""

    segments: int
    checkpoints: int
    tape_bytes: int
    tape_s: float
    state: str
    current_bytes: int


class Scope(enum.Enum):
    """Which files a burst takes: settled ones, also those still in use, or simply all."""

    SETTLED = "settled"
    PRESSED = "pressed"
    EVERYTHING = "everything"


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
        self._view = writer.view
        self._contents = contents
        self._admission = contents.admission
        self._spool = spool
        self._account = account
        self._config = config
        self._clock_ns = clock_ns
        self._requests: list[_Request] = []
        self._woken = trio.Event()
        # Since when something waits for tape.
        self._waiting_since: float | None = None
        self._retry = Retry(config.settle_s)
        self._confirmation = Confirmation(catalog, contents)
        self._failures_in_row = 0
        # The last failure was one that the end of the tape gives.
        self._at_end = False
        # Something accepted does not fit into what room the drive says there is.
        self._does_not_fit = False
        self._segments = 0
        self._state = "idle"
        # What the user should know although everything is on tape.
        self.remarks: list[str] = []
        lane.spool_pressed = self.spool_pressed
        lane.on_away = self._drive_is_away
        contents.admission.wake_archiver = self.wake
        contents.sync_to_tape = self.sync

    def statistics(self) -> ArchiverStatistics:
        """What went to tape since the mount, and what is going."""
        tape = self._writer.statistics()
        written = (tape.checkpoints, tape.tape_bytes, tape.tape_s)
        return ArchiverStatistics(self._segments, *written, self._state, tape.current_bytes)

    def close(self) -> None:
        """Let go of the tape view. `run` must have ended."""
        self._view.close()

    def wake(self) -> None:
        """There may be something to do."""
        self._retry.called()
        self._woken.set()

    def _drive_is_away(self, away: Away | None) -> None:
        self._writer.must_prove_end()
        self._admission.tape_is_stuck(away.sentence if away else None)
        self.wake()

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
        self.wake()
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
            moments.append(self._waiting_since + self._config.idle_s)
        now = trio.current_time()
        return min((moment - now for moment in moments if moment > now), default=math.inf)

    def _due(self) -> bool:
        """Whether a burst should start without being asked for."""
        if self._admission.closed_reason or self._lane.away or self._retry.holds_back:
            return False
        if self.spool_pressed():
            return True
        # Whoever still writes to a file calls when it is closed.
        in_use = 0 if self._takes_open_files() else self._contents.dirty_in_use_count()
        if self._account.pending_count <= in_use:
            self._waiting_since = None
            return False
        if self._waiting_since is None:
            self._waiting_since = trio.current_time()
        if self._retry.overdue:
            return True
        if self._account.pending_bytes >= self._burst_bytes():
            return True
        return trio.current_time() >= self._waiting_since + self._config.idle_s

    def spool_pressed(self) -> bool:
        """Whether the spool is above its high water mark with content that tape must take."""
        high = self._config.spool_high_water
        return self._spool.pressure() > high and self._dirty_share() > high / 4

    def _takes_open_files(self) -> bool:
        """Whether files go to tape in parts while they are written.

        From half way to the high water mark on, so that the drive runs while writers still do.
        """
        return self._dirty_share() > self._config.spool_high_water / 2

    def _dirty_share(self) -> float:
        return self._account.pending_bytes / self._spool.limit_bytes

    def _burst_bytes(self) -> int:
        worth_bytes = self._config.burst_bytes
        if worth_bytes is None:
            tape = self._writer.statistics()
            worth_bytes = burst_bytes(tape.tape_bytes, tape.tape_s)
        return min(worth_bytes, self._spool.limit_bytes // 4)

    async def _work_off(self) -> None:
        requests, self._requests = self._requests, []
        segments_before = self._segments
        error: TapefsError | None = TapefsError("the archiver was broken off; see the log")
        try:
            error = await self._migrate(
                everything=bool(requests), finalize=any(request.finalize for request in requests)
            )
        finally:
            self._state = "idle"
            self._waiting_since = None
            if error is None:
                wrote = self._segments > segments_before
                self._retry.succeeded(wrote=wrote, full=self._does_not_fit)
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
            self._does_not_fit = False
            try:
                if self._admission.closed_reason is None:
                    await self._drain(everything=everything)
                await self._close_when_near_end()
                if finalize:
                    await self._finish_volume()
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
        if self._catalog.owes_tape() or (unfinished and not self._ends_in_checkpoint()):
            self._retry.overdue = True
            return DriveGone(reason)
        if finalize:
            self.remarks.append(f"the tape could not be rewound: {reason}")
        return None

    def _what_is_left(self) -> NotFinalized | None:
        """After everything was to go to tape: why something did not, if so."""
        reason = self._admission.closed_reason
        if reason is None and self._does_not_fit:
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
            self._retry.lost(self._segments)
            # Whoever waits need not know of a loss that is over after one look.
            return everything and not self._retry.holds_back
        failures_in_row = self._failures_in_row + 1
        found = remedy(error, failures_in_row, self._config.write_attempts_max)
        if found is Remedy.WAIT:
            self._admission.tape_is_stuck(f"the tape cannot be written: {error}")
            return False
        self._failures_in_row = failures_in_row
        if found is Remedy.WRITE_NO_MORE:
            if self._admission.read_only_reason is not None:
                return False
            telemetry.event(telemetry.VOLUME_READ_ONLY, logging.ERROR, reason=error)
            self._admission.close_read_only(f"the tape cannot be written: {error}")
        self._at_end = found is Remedy.AT_END
        return True

    # -- segments

    async def _drain(self, *, everything: bool) -> None:
        """Write segments until nothing admitted is left, or the end of the tape is near."""
        scope = Scope.EVERYTHING if everything else Scope.SETTLED
        written = await self._drain_scope(scope)
        if not written and self.spool_pressed():
            # Nothing is settled, but writers wait for room: take what there is.
            await self._drain_scope(Scope.PRESSED)

    async def _drain_scope(self, scope: Scope) -> bool:
        """Write segments until nothing is left in this scope; false if there was nothing."""
        after_ino, more, written = 0, True, False
        while more:
            await self._prove_end()
            if self._writer.is_near_end:
                break
            after_ino, more = await self._one_segment(after_ino, scope)
            written |= after_ino > 0
        return written

    async def _one_segment(self, after_ino: int, scope: Scope) -> tuple[int, bool]:
        contents = self._contents
        epoch = self._catalog.close_epoch()
        limits = self._limits(scope)
        # No await between the end of the epoch, the snapshot and the note that a burst began.
        snapshot = self._catalog.snapshot()
        contents.begin_burst()
        try:
            selection = await self._archive_snapshot(snapshot, limits, after_ino, epoch)
        finally:
            contents.end_burst()
            await trio.to_thread.run_sync(snapshot.close)
        contents.evict(int(self._spool.limit_bytes * _CACHE_SHARE))
        await self._checkpoint_when_due()
        return (selection.inos[-1] if selection.inos else 0), selection.cut_short

    async def _archive_snapshot(
        self, snapshot: Snapshot, limits: Limits, after_ino: int, epoch: int
    ) -> Selection:
        selection = await trio.to_thread.run_sync(select, snapshot, limits, after_ino)
        self._contents.narrow_burst(selection.inos)
        burst = Burst(
            snapshot, selection, limits, self._spool, self._view.has_inode, self._view.lookup
        )
        burst.ends_early = self._writer.had_early_warning
        self._does_not_fit |= selection.does_not_fit
        if not selection.inos and not limits.everything:
            return selection
        if await trio.to_thread.run_sync(burst.is_empty):
            self._confirmation.unsaid(burst, self._last_sequence(), epoch)
        else:
            await self._write_segment(burst, selection, epoch)
        return selection

    def _limits(self, scope: Scope) -> Limits:
        pressed = scope is Scope.PRESSED
        settle_ns = 0 if pressed else int(self._config.settle_s * 1e9)
        part_bytes_min = min(self._config.part_bytes_min, self._spool.limit_bytes // 8)
        return Limits(
            bytes_max=self._config.segment_bytes_max,
            members_max=self._config.segment_members_max,
            room_bytes=self._account.tight_room_bytes(WHOLE_BYTES),
            cut_bytes_max=self._config.early_warning_room_bytes,
            settled_before_ns=self._clock_ns() - settle_ns,
            everything=scope is Scope.EVERYTHING,
            parts_of_open=pressed or self._takes_open_files(),
            part_bytes_min=1 if pressed else part_bytes_min,
            open_for_writing=self._contents.open_for_writing(),
        )

    async def _write_segment(self, burst: Burst, selection: Selection, epoch: int) -> None:
        self._state, writer = "writing", self._writer
        place = writer.next_place()
        self._catalog.begin_segment(place.written_ns)
        builder = SegmentBuilder(place, writer.buffers, writer.work)
        telemetry.event(
            telemetry.SEGMENT_STARTED,
            sequence=place.sequence,
            files=len(selection.inos),
            content_bytes=selection.content_bytes,
        )

        def entries() -> Iterator[Entry]:
            return read_entries(builder.journal_path, place.volume_uuid, place.sequence)

        try:
            await writer.append(burst.records(builder), place.start)
            tape_file = builder.tape_file()
            self._state = "verifying"
            await writer.read_back(tape_file)
            self._state = "indexing"
            await writer.learn(tape_file, entries())
            await self._confirmation.segment(place.sequence, entries(), epoch, burst.vacated_names)
            self._confirmation.unsaid(burst, place.sequence, epoch)
        finally:
            self._account.counts_twice = False
            builder.abandon()
        self._segments += 1
        self._failures_in_row = 0
        telemetry.event(
            telemetry.SEGMENT_COMMITTED,
            sequence=place.sequence,
            records=tape_file.record_count,
            entries=burst.entry_count,
        )

    def _last_sequence(self) -> int:
        last = self._view.last_tape_file()
        return last.sequence if last else 0

    async def _prove_end(self) -> None:
        """After a failure: agree with the tape again, and ask the drive how much room is left."""
        state, self._state = self._state, "positioning"
        if not await self._writer.prove_end(foreign_to(self._catalog)):
            self._state = state
            return
        # A segment of ours whose success was not heard of: its files are still dirty here and go
        # to tape once more, so there is nothing to learn from it.
        self._catalog.set_confirmed_sequence(self._last_sequence())
        if self._at_end and not self._account.is_known_to_have_room():
            self._writer.is_near_end = True

    # -- checkpoints, and the end

    async def _checkpoint_when_due(self) -> None:
        due = len(self._view.files_since_checkpoint()) >= self._config.checkpoint_segments
        # The room for the last one is reserved; one in between must not take it.
        if due and self._account.free_bytes() and not self._writer.is_near_end:
            await self._prove_end()
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        self._state = "checkpoint"
        await self._writer.write_checkpoint()
        self._failures_in_row = 0

    async def _close_when_near_end(self) -> None:
        """Behind early warning there is room for a checkpoint, and for nothing else."""
        if self._writer.is_near_end and self._admission.closed_reason is None:
            self._admission.close_full()
            self._catalog.set_end_reached()
            telemetry.event(telemetry.VOLUME_FULL, waiting=self._account.pending_count)
        if self._admission.full_reason is not None:
            await self._last_checkpoint()

    async def _last_checkpoint(self) -> None:
        """The catalog goes to tape, unless it is there, or nothing may be written any more."""
        if self._admission.read_only_reason is not None:
            return
        await self._prove_end()
        if not self._ends_in_checkpoint():
            await self._checkpoint()

    def _ends_in_checkpoint(self) -> bool:
        """Whether nothing was written since the last checkpoint, or ever."""
        last = self._view.last_tape_file()
        return last is None or last.kind is TapeFileKind.CHECKPOINT

    async def _finish_volume(self) -> None:
        await self._last_checkpoint()
        if not self._ends_in_checkpoint():
            self.remarks.append(
                "the last checkpoint could not be written; a mount elsewhere takes longer, "
                "because it reads the segments' own journals"
            )
        await self.rewind()

    async def rewind(self) -> None:
        """Bring the tape back to its beginning, when the lane is free; a failure is a remark."""
        self._state = "rewinding"
        try:
            await self._writer.rewind()
        except TapefsError as error:
            telemetry.event(telemetry.REWIND_FAILED, logging.WARNING, reason=error)
            self.remarks.append(f"the tape could not be rewound: {error}")
