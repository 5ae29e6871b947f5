"""The archiver: takes settled files from the spool to tape, in bursts that let the drive stream.

One task runs here. A segment is: a moment of the catalog (`Burst`), records assembled in a worker
thread, written by a job in the lane, a synchronising filemark; then the tape view learns the
segment's journal, and only then are the files' ranges clean and may leave the spool (P7). If
anything fails before the filemark, the files are still dirty and go to tape again.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio
import zstandard

from tapefs import telemetry
from tapefs.archive.burst import Burst, Limits, Selection, select
from tapefs.archive.policy import JobKind
from tapefs.archive.recovery import settle_end
from tapefs.config import GIB, MIB
from tapefs.entries import ExtentEntry, InodeEntry, LinkEntry, TapeFileKind, UnlinkEntry
from tapefs.errors import (
    MediumFailed,
    NotFinalized,
    StateUnusable,
    TapefsError,
    VolumeFull,
    WriteProtected,
    WrongTape,
)
from tapefs.volume.journal_file import read_entries
from tapefs.volume.records import RecordBuffers
from tapefs.volume.segment import CheckpointBuilder, Place, SegmentBuilder
from tapefs.volume.session import AppendProgress, append, go_to_end
from tapefs.volume.tail import EarlierFile

if TYPE_CHECKING:
    from array import array
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.contents import Contents
    from tapefs.archive.scheduler import Scheduler
    from tapefs.archive.spool import Spool
    from tapefs.catalog import Catalog, Snapshot, TapeView, VolumeSettings
    from tapefs.config import Config
    from tapefs.drive import TapeDrive
    from tapefs.entries import TapeFile

# Entries confirmed between two looks at the event loop.
_CONFIRM_BATCH: Final = 400
# Records filled per visit to the worker thread.
_RECORDS_PER_HOP: Final = 4
# A burst worth 27 s of the drive's rate costs under 10 % in stops of 3 s.
_BURST_S: Final = 27.0
_BURST_BYTES_START: Final = 2 * GIB
_BURST_BYTES_MIN: Final = 64 * MIB
# After a failure the archiver tries again by itself after this time.
_RETRY_S: Final = 60.0
_ZSTD_LEVEL: Final = 3
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
        view: TapeView,
        contents: Contents,
        spool: Spool,
        scheduler: Scheduler,
        account: CapacityAccount,
        settings: VolumeSettings,
        config: Config,
        work: Path,
        clock_ns: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._view = view
        self._contents = contents
        self._spool = spool
        self._scheduler = scheduler
        self._account = account
        self._settings = settings
        self._config = config
        self._work = work
        self._clock_ns = clock_ns
        self._buffers = RecordBuffers(settings.record_bytes)
        self._requests: list[_Request] = []
        self._woken = trio.Event()
        # Since when something waits for tape; when to try again after a failure.
        self._waiting_since: float | None = None
        self._retry_at: float | None = None
        self._end_unproven = False
        self._segments = self._checkpoints = self._tape_bytes = 0
        self._tape_s = 0.0
        self._state = "idle"
        self._progress = AppendProgress()
        contents.wake_archiver = self.wake
        contents.sync_to_tape = self.sync

    def statistics(self) -> ArchiverStatistics:
        """What went to tape since the mount, and what is going."""
        current = self._progress.records_written * self._settings.record_bytes
        return ArchiverStatistics(
            self._segments, self._checkpoints, self._tape_bytes, self._tape_s, self._state, current
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
        return max(0.05, min(1.0, self._config.settle_s, self._config.idle_s))

    def _due(self) -> bool:
        """Whether a burst should start without being asked for."""
        if self._contents.read_only_reason is not None:
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
        return trio.current_time() - self._waiting_since >= self._config.idle_s

    def spool_pressed(self) -> bool:
        """Whether the spool is above its high water mark with content that tape must take."""
        dirty_share = self._account.pending_bytes / self._spool.limit_bytes
        high = self._config.spool_high_water
        return self._spool.pressure() > high and dirty_share > high / 4

    def burst_bytes(self) -> int:
        """How much is worth starting the drive for."""
        ceiling = self._spool.limit_bytes // 4
        if self._config.burst_bytes is not None:
            return min(self._config.burst_bytes, ceiling)
        if self._tape_s < 1.0:
            return min(_BURST_BYTES_START, ceiling)
        rate = self._tape_bytes / self._tape_s
        return int(min(max(_BURST_BYTES_MIN, _BURST_S * rate), ceiling))

    async def _work_off(self) -> None:
        requests, self._requests = self._requests, []
        error: TapefsError | None = None
        try:
            await self._drain(everything=bool(requests))
            if any(request.finalize for request in requests):
                await self._finish_volume()
        except TapefsError as exc:
            error = exc
            self._note_failure(exc)
        finally:
            self._state = "idle"
            self._waiting_since = None
            self._retry_at = None if error is None else trio.current_time() + _RETRY_S
            if error is None and self._contents.tape_stuck_reason is not None:
                self._contents.tape_is_stuck(None)
            for request in requests:
                request.error = error
                request.done.set()

    def _note_failure(self, error: TapefsError) -> None:
        telemetry.event(
            telemetry.SEGMENT_FAILED, logging.ERROR, kind=type(error).__name__, reason=error
        )
        self._end_unproven = True
        reason = f"the tape cannot be written: {error}"
        if isinstance(error, MediumFailed | VolumeFull | WriteProtected | WrongTape):
            telemetry.event(telemetry.VOLUME_READ_ONLY, logging.ERROR, reason=error)
            self._contents.read_only_reason = reason
        self._contents.tape_is_stuck(reason)

    # -- segments

    async def _drain(self, *, everything: bool) -> None:
        """Write segments until nothing admitted is left."""
        if everything and self._contents.read_only_reason is not None:
            if self._catalog.owes_tape():
                raise NotFinalized(self._contents.read_only_reason)
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
        if self._end_unproven:
            await self._prove_end()
        contents = self._contents
        contents.save_all()
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
            snapshot, selection, limits, self._spool, self._view.has_inode, self._view.has_link
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
            parts_of_open=pressed or self.spool_pressed(),
            part_bytes_min=1 if pressed else part_bytes_min,
            open_for_writing=self._contents.open_for_writing(),
        )

    def _place(self, *, checkpoint: bool) -> Place:
        last = self._view.last_tape_file()
        previous = self._view.last_checkpoint()
        since = tuple(
            EarlierFile(file.sequence, file.first_block, file.record_count, file.kind)
            for file in self._view.files_since_checkpoint()
        )
        return Place(
            volume_uuid=self._settings.volume_uuid,
            record_bytes=self._settings.record_bytes,
            sequence=last.sequence + 1 if last else 1,
            first_block=self._view.expected_end_block(),
            checkpoint_block=previous.first_block if previous else 0,
            since_checkpoint=since,
            generation=self._view.checkpoint_count() + checkpoint,
            written_ns=self._clock_ns(),
        )

    async def _write_segment(self, burst: Burst, selection: Selection, epoch: int) -> None:
        self._state = "writing"
        place = self._place(checkpoint=False)
        self._catalog.begin_segment(place.written_ns)
        builder = SegmentBuilder(place, self._buffers, self._work)
        telemetry.event(
            telemetry.SEGMENT_STARTED,
            sequence=place.sequence,
            files=len(selection.inos),
            content_bytes=selection.content_bytes,
        )
        try:
            await self._append(burst.records(builder), place.first_block)
            tape_file = builder.tape_file()
            self._state = "indexing"
            await self._learn(tape_file, builder.journal_path)
            await self._confirm(tape_file, builder.journal_path, epoch)
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

    async def _append(self, records: Iterator[array[int]], first_block: int) -> None:
        """Assemble in a thread, write in the lane, both at once. Returns when flushed."""
        started = trio.current_time()
        self._progress = AppendProgress()
        send, receive = trio.open_memory_channel["array[int] | None"](
            self._config.record_queue_count
        )
        scheduler = self._scheduler

        async def job(drive: TapeDrive) -> None:
            async with receive:
                if scheduler.head_block != first_block:
                    scheduler.head_block = None
                    await go_to_end(drive, first_block)
                scheduler.head_block = None
                await append(drive, _until_complete(receive), self._buffers, self._progress)
                scheduler.head_block = first_block + self._progress.records_written + 1

        async def assemble() -> None:
            async with send:
                try:
                    while batch := await trio.to_thread.run_sync(_take, records):
                        for record in batch:
                            await send.send(record)
                except OSError as exc:
                    raise StateUnusable(f"the spool cannot be read: {exc}") from exc
                await send.send(None)

        self._end_unproven = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(assemble)
                await scheduler.submit(JobKind.ARCHIVE, job)
        except BaseExceptionGroup as group:
            raise _root_cause(group) from group
        self._end_unproven = False
        written = self._progress.records_written * self._settings.record_bytes
        self._tape_bytes += written
        self._tape_s += trio.current_time() - started
        self._account.written_bytes += written
        if self._progress.early_warning:
            self._account.total_bytes = self._account.written_bytes

    async def _learn(self, tape_file: TapeFile, journal: Path) -> None:
        entries = read_entries(journal, self._settings.volume_uuid, tape_file.sequence)
        await trio.to_thread.run_sync(self._view.apply, tape_file, entries)
        self._account.inode_count = self._view.next_ino

    async def _confirm(self, tape_file: TapeFile, journal: Path, epoch: int) -> None:
        """Tell contents and catalog what is on tape now, a few files at a time."""
        batch = _Confirmed()
        entries = read_entries(journal, self._settings.volume_uuid, tape_file.sequence)
        for number, entry in enumerate(entries, 1):
            batch.add(entry, self._contents)
            if number % _CONFIRM_BATCH == 0:
                self._hand_over(batch, tape_file.sequence, epoch)
                batch = _Confirmed()
                await trio.lowlevel.checkpoint()
        self._hand_over(batch, tape_file.sequence, epoch)
        self._catalog.set_confirmed_sequence(tape_file.sequence)
        self._catalog.commit()

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
        """Something failed while writing: find out what is on tape before writing again."""
        self._state = "positioning"
        scheduler = self._scheduler

        async def job(drive: TapeDrive) -> None:
            scheduler.head_block = None
            await settle_end(drive, self._view, self._work, self._clock_ns(), lambda _: None)

        await scheduler.submit(JobKind.ARCHIVE, job)
        last = self._view.last_tape_file()
        if last is not None:
            # A segment of ours whose success was not heard of: its files are still dirty here
            # and go to tape once more, so there is nothing to learn from it.
            self._catalog.set_confirmed_sequence(last.sequence)
        self._end_unproven = False

    # -- checkpoints

    async def _checkpoint_when_due(self) -> None:
        if len(self._view.files_since_checkpoint()) >= self._config.checkpoint_segments:
            await self._write_checkpoint()

    async def _finish_volume(self) -> None:
        last = self._view.last_tape_file()
        finished = last is None or last.kind is TapeFileKind.CHECKPOINT
        if not finished and self._contents.read_only_reason is None:
            await self._write_checkpoint()
        await self.rewind()

    async def rewind(self) -> None:
        """Bring the tape back to its beginning, when the lane is free."""
        self._state = "rewinding"
        scheduler = self._scheduler

        async def job(drive: TapeDrive) -> None:
            scheduler.head_block = None
            await drive.rewind()

        await scheduler.submit(JobKind.CONTROL, job)

    async def _write_checkpoint(self) -> None:
        self._state = "checkpoint"
        copy, packed = self._work / "catalog.sqlite", self._work / "catalog.sqlite.zst"
        try:
            await trio.to_thread.run_sync(self._pack_catalog, copy, packed)
            place = self._place(checkpoint=True)
            builder = CheckpointBuilder(place, self._buffers)
            await self._append(builder.records(packed), place.first_block)
        finally:
            copy.unlink(missing_ok=True)
            packed.unlink(missing_ok=True)
        await trio.to_thread.run_sync(self._view.apply, builder.tape_file(), ())
        self._checkpoints += 1
        telemetry.event(
            telemetry.CHECKPOINT_COMMITTED, sequence=place.sequence, generation=place.generation
        )

    def _pack_catalog(self, copy: Path, packed: Path) -> None:
        copy.unlink(missing_ok=True)
        self._view.export(copy)
        with copy.open("rb") as source, packed.open("wb") as target:
            size = copy.stat().st_size
            zstandard.ZstdCompressor(level=_ZSTD_LEVEL).copy_stream(source, target, size=size)


class _Confirmed:
    """What one batch of journal entries confirms."""

    def __init__(self) -> None:
        self.extents: list[tuple[ExtentEntry, list[tuple[int, int]]]] = []
        self.inodes: list[int] = []
        self.names: list[tuple[int, bytes]] = []
        self.hashes: list[tuple[int, bytes | None, bytes | None]] = []

    def add(self, entry: object, contents: Contents) -> None:
        """Take note of one entry; content ranges become clean."""
        if isinstance(entry, ExtentEntry):
            archived = [(entry.offset, entry.offset + entry.length)]
            self.extents.append((entry, contents.confirm(entry.ino, archived)))
        elif isinstance(entry, InodeEntry):
            self.inodes.append(entry.ino)
            if entry.sha256 is not None:
                self.hashes.append((entry.ino, entry.sha256, entry.xxh128))
        elif isinstance(entry, LinkEntry | UnlinkEntry):
            self.names.append((entry.parent, entry.name))


async def _until_complete(
    receive: trio.MemoryReceiveChannel[array[int] | None],
) -> AsyncIterator[array[int]]:
    """Records up to the sentinel. A stream that just ends was not assembled to its end."""
    async for record in receive:
        if record is None:
            return
        yield record
    raise NotFinalized("the segment could not be assembled; see the log, and try sync again")


def _take(records: Iterator[array[int]]) -> list[array[int]]:
    batch: list[array[int]] = []
    for record in records:
        batch.append(record)
        if len(batch) == _RECORDS_PER_HOP:
            break
    return batch


def _root_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that made the others happen: the drive's before the assembler's broken pipe."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        exc = pending.pop()
        if isinstance(exc, BaseExceptionGroup):
            pending.extend(exc.exceptions)
        else:
            flat.append(exc)
    own = [exc for exc in flat if not isinstance(exc, trio.BrokenResourceError | trio.Cancelled)]
    known = [exc for exc in own if isinstance(exc, TapefsError) and type(exc) is not NotFinalized]
    return (known or own or flat)[0]
