"""The archiver: takes settled files from the spool to tape, in bursts that let the drive stream.

One task runs here. A segment is: a moment of the catalog (`Burst`), written by the `TapeWriter` up
to a synchronising filemark; then the tape view learns the segment's journal, and only then are the
files' ranges clean and may leave the spool (P7). If anything fails before the filemark, the files
are still dirty and go to tape again.
"""

from __future__ import annotations

import enum
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tapefs import telemetry
from tapefs.archive.burst import Burst, Limits, Selection, select
from tapefs.config import GIB, MIB
from tapefs.entries import ExtentEntry, InodeEntry, TapeFileKind
from tapefs.errors import (
    Fault,
    MediumFailed,
    NotFinalized,
    TapefsError,
    VolumeFull,
    WriteProtected,
    WrongTape,
)
from tapefs.volume.journal_file import read_entries
from tapefs.volume.segment import SegmentBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.contents import Contents
    from tapefs.archive.spool import Spool
    from tapefs.archive.tape_writer import TapeWriter
    from tapefs.catalog import Catalog, Snapshot
    from tapefs.config import Config
    from tapefs.entries import Entry

# Entries confirmed between two looks at the event loop.
_CONFIRM_BATCH: Final = 400
# A burst worth 27 s of the drive's rate costs under 10 % in stops of 3 s.
_BURST_S: Final = 27.0
_BURST_BYTES_START: Final = 2 * GIB
_BURST_BYTES_MIN: Final = 64 * MIB
# After a look that found nothing ready, although something waits, the next one comes after this.
_LOOK_AGAIN_S: Final = 1.0
# After a failure the archiver tries again by itself after this time.
_RETRY_S: Final = 60.0
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
        *,
        catalog: Catalog,
        writer: TapeWriter,
        contents: Contents,
        spool: Spool,
        account: CapacityAccount,
        config: Config,
        clock_ns: Callable[[], int],
    ) -> None:
        self._catalog = catalog
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
        # Since when something waits for tape; when to try again after a failure.
        self._waiting_since: float | None = None
        self._retry_at: float | None = None
        self._segments = 0
        self._state = "idle"
        contents.admission.wake_archiver = self.wake
        contents.sync_to_tape = self.sync

    def statistics(self) -> ArchiverStatistics:
        """What went to tape since the mount, and what is going."""
        tape = self._writer.statistics()
        return ArchiverStatistics(
            self._segments,
            tape.checkpoints,
            tape.tape_bytes,
            tape.tape_s,
            self._state,
            tape.current_bytes,
        )

    def close(self) -> None:
        """Let go of the tape view. `run` must have ended."""
        self._view.close()

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    async def sync(self) -> None:
        """Return when everything accepted before this call is on tape, flushed (P3).

        Raises what kept it from getting there.
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
        if self._account.pending_count == 0 or self._admission.read_only_reason is not None:
            return math.inf
        now = trio.current_time()
        moments = [self._retry_at or now, (self._waiting_since or now) + self._config.idle_s]
        return min((moment - now for moment in moments if moment > now), default=0.0)

    def _due(self) -> bool:
        """Whether a burst should start without being asked for."""
        if self._admission.read_only_reason is not None:
            return False
        if self._retry_at is not None and trio.current_time() < self._retry_at:
            return False
        if self._account.pending_count == 0:
            self._waiting_since = None
            return False
        if self._waiting_since is None:
            self._waiting_since = trio.current_time()
        if self.spool_pressed() or self._account.pending_bytes >= self.burst_bytes():
            return True
        return trio.current_time() >= self._waiting_since + self._config.idle_s

    def spool_pressed(self) -> bool:
        """Whether the spool is above its high water mark with content that tape must take."""
        high = self._config.spool_high_water
        return self._spool.pressure() > high and self._dirty_share() > high / 4

    def _dirty_share(self) -> float:
        return self._account.pending_bytes / self._spool.limit_bytes

    def burst_bytes(self) -> int:
        """How much is worth starting the drive for."""
        ceiling = self._spool.limit_bytes // 4
        if self._config.burst_bytes is not None:
            return min(self._config.burst_bytes, ceiling)
        tape = self._writer.statistics()
        if tape.tape_s < 1.0:
            return min(_BURST_BYTES_START, ceiling)
        rate = tape.tape_bytes / tape.tape_s
        return int(min(max(_BURST_BYTES_MIN, _BURST_S * rate), ceiling))

    async def _work_off(self) -> None:
        requests, self._requests = self._requests, []
        error: TapefsError | None = None
        segments_before = self._segments
        try:
            await self._drain(everything=bool(requests))
            if any(request.finalize for request in requests):
                await self._finish_volume()
        except TapefsError as exc:
            error = exc
            self._note_failure(exc)
        except Exception as exc:  # noqa: BLE001 - names, spool and reads must outlive a bug here
            telemetry.LOGGER.exception(telemetry.SEGMENT_FAILED)
            error = TapefsError(f"a bug stopped the archiver ({exc!r}); the log says more")
            self._note_failure(error)
        finally:
            self._state = "idle"
            self._waiting_since = None
            self._retry_at = None
            if error is not None:
                self._retry_at = trio.current_time() + _RETRY_S
            elif self._segments == segments_before:
                # What waits is open or unsettled: look again later, not at once.
                self._retry_at = trio.current_time() + _LOOK_AGAIN_S
            if error is None and self._admission.stuck_reason is not None:
                self._admission.tape_is_stuck(None)
            for request in requests:
                request.error = error
                request.done.set()

    def _note_failure(self, error: TapefsError) -> None:
        telemetry.event(
            telemetry.SEGMENT_FAILED, logging.ERROR, kind=type(error).__name__, reason=error
        )
        self._writer.must_prove_end()
        reason = f"the tape cannot be written: {error}"
        hopeless = isinstance(error, MediumFailed | VolumeFull | WriteProtected | WrongTape)
        if hopeless or error.fault is Fault.BUG:
            telemetry.event(telemetry.VOLUME_READ_ONLY, logging.ERROR, reason=error)
            self._admission.read_only_reason = reason
        self._admission.tape_is_stuck(reason)

    # -- segments

    async def _drain(self, *, everything: bool) -> None:
        """Write segments until nothing admitted is left."""
        if everything and self._admission.read_only_reason is not None:
            if self._catalog.owes_tape():
                raise NotFinalized(self._admission.read_only_reason)
            return
        scope = Scope.EVERYTHING if everything else Scope.SETTLED
        written = await self._drain_scope(scope)
        if not written and self.spool_pressed():
            # Nothing is settled, but writers wait for room: take what there is.
            await self._drain_scope(Scope.PRESSED)

    async def _drain_scope(self, scope: Scope) -> bool:
        """Write segments until nothing is left in this scope; false if there was nothing."""
        after_ino, more, written = 0, True, False
        while more:
            after_ino, more = await self._one_segment(after_ino, scope)
            written |= after_ino > 0
        return written

    async def _one_segment(self, after_ino: int, scope: Scope) -> tuple[int, bool]:
        await self._prove_end()
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
        if not selection.inos and not limits.everything:
            return selection
        if await trio.to_thread.run_sync(burst.is_empty):
            self._settle_unsaid(burst, epoch)
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
            settled_before_ns=self._clock_ns() - settle_ns,
            everything=scope is Scope.EVERYTHING,
            # Half way to the high water mark, so that the drive runs while writers still do.
            parts_of_open=pressed or self._dirty_share() > self._config.spool_high_water / 2,
            part_bytes_min=1 if pressed else part_bytes_min,
            open_for_writing=self._contents.open_for_writing(),
        )

    async def _write_segment(self, burst: Burst, selection: Selection, epoch: int) -> None:
        self._state = "writing"
        writer = self._writer
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
            await writer.append(burst.records(builder), place.first_block)
            self._state = "indexing"
            tape_file = builder.tape_file()
            await writer.learn(tape_file, entries())
            await self._confirm(place.sequence, entries(), epoch, burst.vacated_names)
            self._settle_unsaid(burst, epoch)
        finally:
            builder.abandon()
        self._segments += 1
        telemetry.event(
            telemetry.SEGMENT_COMMITTED,
            sequence=place.sequence,
            records=tape_file.record_count,
            entries=burst.entry_count,
        )

    async def _confirm(
        self, sequence: int, entries: Iterator[Entry], epoch: int, untold: set[tuple[int, bytes]]
    ) -> None:
        """Tell contents and catalog what is on tape now, a few files at a time.

        Of the names `untold` the journal does not say everything: they stay noted.
        """
        batch = _Confirmed(untold)
        for number, entry in enumerate(entries, 1):
            batch.add(entry, self._contents)
            if number % _CONFIRM_BATCH == 0:
                self._hand_over(batch, sequence, epoch)
                batch = batch.next_batch()
                await trio.lowlevel.checkpoint()
        self._hand_over(batch, sequence, epoch)
        self._catalog.set_confirmed_sequence(sequence)
        self._catalog.commit()
        # Durable before anything leaves the spool: a catalog from before would look for it there.
        await trio.to_thread.run_sync(self._catalog.sync_log)

    def _hand_over(self, batch: _Confirmed, sequence: int, epoch: int) -> None:
        with self._catalog.transaction():
            self._catalog.confirm(
                sequence,
                epoch,
                extents=batch.extents,
                logged_inodes=batch.inodes,
                logged_dentries=batch.names,
                hashes=batch.hashes,
            )

    def _settle_unsaid(self, burst: Burst, epoch: int) -> None:
        """Changes that cancelled out before tape heard of them are no changes any more."""
        last = self._view.last_tape_file()
        with self._catalog.transaction():
            self._catalog.confirm(
                last.sequence if last else 0,
                epoch,
                extents=[],
                logged_inodes=burst.gone_inodes,
                logged_dentries=burst.gone_names,
                hashes=[],
            )

    async def _prove_end(self) -> None:
        if not await self._writer.prove_end():
            return
        last = self._view.last_tape_file()
        if last is not None:
            # A segment of ours whose success was not heard of: its files are still dirty here
            # and go to tape once more, so there is nothing to learn from it.
            self._catalog.set_confirmed_sequence(last.sequence)

    # -- checkpoints

    async def _checkpoint_when_due(self) -> None:
        if len(self._view.files_since_checkpoint()) >= self._config.checkpoint_segments:
            self._state = "checkpoint"
            await self._writer.write_checkpoint()

    async def _finish_volume(self) -> None:
        last = self._view.last_tape_file()
        finished = last is None or last.kind is TapeFileKind.CHECKPOINT
        if not finished and self._admission.read_only_reason is None:
            await self._prove_end()
            self._state = "checkpoint"
            await self._writer.write_checkpoint()
        await self.rewind()

    async def rewind(self) -> None:
        """Bring the tape back to its beginning, when the lane is free."""
        self._state = "rewinding"
        await self._writer.rewind()


class _Confirmed:
    """What one batch of journal entries confirms."""

    def __init__(self, untold: set[tuple[int, bytes]]) -> None:
        self._untold = untold
        self.extents: list[tuple[ExtentEntry, list[tuple[int, int]]]] = []
        self.inodes: list[int] = []
        self.names: list[tuple[int, bytes]] = []
        self.hashes: list[tuple[int, bytes | None, bytes | None]] = []
        self._whole: InodeEntry | None = None

    def add(self, entry: Entry, contents: Contents) -> None:
        """Take note of one entry; content ranges become clean.

        The hashes of a whole file count if its one extent, which follows its inode in the
        journal, is still the content: attributes may have changed meanwhile.
        """
        if isinstance(entry, ExtentEntry):
            archived = (entry.offset, entry.offset + entry.length)
            kept = contents.confirm(entry.ino, [archived])
            self.extents.append((entry, kept))
            whole = self._whole
            if whole is not None and whole.ino == entry.ino and kept == [(0, whole.size)]:
                self.hashes.append((entry.ino, whole.sha256, whole.xxh128))
        elif isinstance(entry, InodeEntry):
            self.inodes.append(entry.ino)
            self._whole = entry if entry.sha256 is not None else None
        elif (entry.parent, entry.name) not in self._untold:
            self.names.append((entry.parent, entry.name))

    def next_batch(self) -> _Confirmed:
        """An empty batch that goes on where this one ended."""
        following = _Confirmed(self._untold)
        following._whole = self._whole
        return following
