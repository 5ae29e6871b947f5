"""Appending tape files: records assembled in a worker thread, written by a job in the lane.

Nothing is written before the head's place was proven to be the end of data (P6). From the first
record until the tape view knows the new tape file, the end counts as unproven: whatever happens in
between, the tape is looked at again before the next append.
"""

from __future__ import annotations

import itertools
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio
import zstandard

from tapefs import telemetry
from tapefs.archive.closing import closing_suffices
from tapefs.archive.damage_report import log_damage
from tapefs.archive.policy import JobKind
from tapefs.archive.read_back import WrittenWrong, read_back
from tapefs.archive.recovery import settle_end
from tapefs.archive.resumption import leaves_in_doubt
from tapefs.errors import (
    DriveFailed,
    MediumFailed,
    NotFinalized,
    StateUnusable,
    TapefsError,
    WrongTape,
    leaves_of,
)
from tapefs.volume.record_feed import RecordFeed
from tapefs.volume.records import RecordBuffers
from tapefs.volume.segment import CheckpointBuilder, Place, SegmentBuilder
from tapefs.volume.session import VISIT_S, AppendProgress, append, go_to_end, prove_position
from tapefs.volume.tail import EarlierFile

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from trio.abc import Clock

    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.scheduler import Scheduler
    from tapefs.catalog import TapeView, Verifications
    from tapefs.config import Config
    from tapefs.drive import TapeAddress, TapeDrive
    from tapefs.entries import Entry, TapeFile
    from tapefs.volume.tail import Tail

# Batches of records that exist at one time: one is filled, one written, others wait.
_BATCHES: Final = 4
_ZSTD_LEVEL: Final = 3


@dataclass(frozen=True, slots=True)
class TapeWriterStatistics:
    """What went to tape since the mount; `current_bytes` of the tape file in progress."""

    checkpoints: int
    tape_bytes: int
    tape_s: float
    current_bytes: int


class TapeWriter:
    """Appends tape files to the mounted volume. For the archiver's task only."""

    def __init__(
        self,
        view: TapeView,
        scheduler: Scheduler,
        account: CapacityAccount,
        config: Config,
        work: Path,
        clock_ns: Callable[[], int],
        verifications: Verifications,
    ) -> None:
        self.view = view
        self.settings = view.settings
        self.work = work
        self.buffers = RecordBuffers(self.settings.record_bytes)
        self._scheduler = scheduler
        self._account = account
        self._config = config
        self._clock_ns = clock_ns
        self._verifications = verifications
        self._end_unproven = False
        # Early warning came, or the physical end: room for a checkpoint, and nothing else.
        self.is_near_end = False
        # Time stamp of the tape file that was begun last.
        self._written_ns = 0
        self._progress = AppendProgress()
        self._checkpoints = self._tape_bytes = 0
        self._tape_s = 0.0

    def statistics(self) -> TapeWriterStatistics:
        """What went to tape since the mount, and what is going."""
        current = self._progress.records_written * self.settings.record_bytes
        return TapeWriterStatistics(self._checkpoints, self._tape_bytes, self._tape_s, current)

    def had_early_warning(self) -> bool:
        """Whether the tape file in progress has met early warning. May be asked by any thread."""
        return self._progress.early_warning

    def next_place(self, *, ends_generation: bool = False) -> Place:
        """Where the next tape file goes, and what it says of those before it."""
        view, self._written_ns = self.view, self._clock_ns()
        last, previous = view.last_tape_file(), view.last_checkpoint()
        since = tuple(
            EarlierFile(
                file.sequence, file.first_block, file.record_count, file.kind, file.salvaged
            )
            for file in view.files_since_checkpoint()
        )
        return Place(
            volume_uuid=self.settings.volume_uuid,
            record_bytes=self.settings.record_bytes,
            sequence=last.sequence + 1 if last else 1,
            first_block=view.expected_end().block,
            checkpoint_block=previous.first_block if previous else 0,
            since_checkpoint=since,
            generation=view.generation_count() + ends_generation,
            written_ns=self._written_ns,
        )

    async def append(self, records: Iterator[array[int]], start: TapeAddress) -> None:
        """Write a whole tape file at `start`; flushed when this returns.

        To be followed by `learn`. Raises WrongTape when the end of data is elsewhere, the drive's
        errors, and StateUnusable when a local file cannot be read.
        """
        self._progress = AppendProgress()
        feed, clock = RecordFeed(_BATCHES - 2), trio.lowlevel.current_clock()
        count = max(1, self._config.record_queue_count // _BATCHES)

        async def assemble() -> None:
            # Nobody takes them any more: the job has failed, and `submit` raises why.
            with suppress(trio.BrokenResourceError):
                try:
                    while batch := await trio.to_thread.run_sync(
                        _assemble, records, count, feed, clock
                    ):
                        await feed.put(batch)
                    feed.finish()
                except OSError as exc:
                    raise StateUnusable(f"the spool cannot be read: {exc}") from exc
                finally:
                    feed.end()

        self._end_unproven = True
        progress = self._progress
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(assemble)
                await self._scheduler.submit(
                    JobKind.ARCHIVE, lambda drive: self._write(drive, feed, start)
                )
        except BaseExceptionGroup as group:
            raise _root_cause(group) from group
        finally:
            self.is_near_end |= progress.early_warning
        self._progress = AppendProgress()

    async def _write(self, drive: TapeDrive, feed: RecordFeed, start: TapeAddress) -> None:
        scheduler = self._scheduler
        with closing(feed):
            if scheduler.head_block == start.block:
                await prove_position(drive, start.block)
            else:
                scheduler.head_block = None
                await go_to_end(drive, start)
            scheduler.head_block = None
            started = trio.current_time()
            await append(drive, feed, self.buffers, self._progress)
            # The drive's rate: without what was spent waiting for the lane, and searching.
            self._tape_s += trio.current_time() - started
            self._account.counts_twice = True
            geometry = self.settings.geometry
            self._tape_bytes += self._progress.records_written * geometry.record_bytes
            self._progress, progress = AppendProgress(), self._progress
            blocks = progress.records_written * geometry.blocks_per_record
            scheduler.head_block = end_block = start.block + blocks + 1
            end_bytes = geometry.bytes_before(end_block)
            await measure_room(drive, self._account, self._config, end_bytes)

    async def read_back(self, tape_file: TapeFile) -> None:
        """With `verify=after-write`: see that `tape_file`, just appended, is on tape as it is.

        The result is noted. Raises WrittenWrong; until `prove_end` nothing can be appended then.
        """
        if self._config.verify != "after-write":
            return
        scheduler, geometry = self._scheduler, self.settings.geometry
        before = self.view.last_tape_file()
        try:
            await scheduler.submit(
                JobKind.ARCHIVE,
                lambda drive: read_back(drive, scheduler, tape_file, before, geometry),
            )
        except WrittenWrong as exc:
            self._verifications.add_damage([exc.damage], self._clock_ns())
            log_damage(exc.damage)
            raise
        self._verifications.note(tape_file, (), self._clock_ns())

    async def learn(self, tape_file: TapeFile, entries: Iterable[Entry]) -> None:
        """The tape file is on tape: let the tape view know what it says."""
        # First: `must_prove_end` may be called meanwhile, and must last.
        self._end_unproven = False
        try:
            await trio.to_thread.run_sync(self.view.apply, tape_file, entries)
        except BaseException:
            self._end_unproven = True
            raise
        self._account.inode_count = self.view.inode_count_max

    async def prove_end(self, is_foreign: Callable[[Tail], bool]) -> bool:
        """After a failure: find out what is on tape before writing again. True if it was needed.

        Raises WrongTape, before the view learns of it, when a tape file is another host's.
        """
        if not self._end_unproven:
            return False
        scheduler = self._scheduler

        def admit(tail: Tail) -> None:
            if is_foreign(tail):
                raise WrongTape(
                    "this tape was written by another host while it was out of the drive; unmount "
                    "it, and mount it with another --state-dir to read it"
                )

        async def job(drive: TapeDrive) -> None:
            scheduler.head_block = None
            # What is in a tape file of ours that was not learnt is still dirty here.
            await settle_end(
                drive,
                self.view,
                self.work,
                lambda _: None,
                is_dispensable=lambda tail: tail.written_ns == self._written_ns,
                admit=admit,
            )
            scheduler.head_block = self.view.expected_end().block
            end_bytes = self.settings.geometry.bytes_before(scheduler.head_block)
            await measure_room(drive, self._account, self._config, end_bytes)
            # In here: once the job is over, the drive may go before this task runs again.
            self._end_unproven = False

        await scheduler.submit(JobKind.ARCHIVE, job)
        return True

    def must_prove_end(self) -> None:
        """Something failed: do not believe anything about the tape's end any more."""
        self._end_unproven = True

    def closing_suffices(self) -> bool:
        """Whether a closing serves whoever will have the tape alone, instead of a checkpoint."""
        last = self.view.last_checkpoint()
        return last is not None and closing_suffices(
            last.record_count * self.settings.record_bytes,
            self.view.files_since_checkpoint(),
            self._config,
        )

    async def write_closing(self) -> None:
        """Append a segment without entries, which ends a generation."""
        place = self.next_place(ends_generation=True)
        builder = SegmentBuilder(place, self.buffers, self.work, closes=True)
        try:
            await self.append(builder.finish(), place.start)
            await self.read_back(builder.tape_file())
        finally:
            self._account.counts_twice = False
            builder.abandon()
        await self.learn(builder.tape_file(), ())
        telemetry.event(
            telemetry.GENERATION_CLOSED, sequence=place.sequence, generation=place.generation
        )

    async def write_checkpoint(self) -> None:
        """Append a complete, compressed copy of the tape view."""
        copy, packed = self.work / "catalog.sqlite", self.work / "catalog.sqlite.zst"
        try:
            await trio.to_thread.run_sync(self._pack_view, copy, packed)
            place = self.next_place(ends_generation=True)
            builder = CheckpointBuilder(place, self.buffers)
            await self.append(builder.records(packed), place.start)
            await self.read_back(builder.tape_file())
        finally:
            self._account.counts_twice = False
            copy.unlink(missing_ok=True)
            packed.unlink(missing_ok=True)
        await self.learn(builder.tape_file(), ())
        self._checkpoints += 1
        telemetry.event(
            telemetry.CHECKPOINT_COMMITTED, sequence=place.sequence, generation=place.generation
        )

    def _pack_view(self, copy: Path, packed: Path) -> None:
        copy.unlink(missing_ok=True)
        self.view.export(copy)
        size = copy.stat().st_size
        with copy.open("rb") as source, packed.open("wb") as target:
            zstandard.ZstdCompressor(level=_ZSTD_LEVEL).copy_stream(source, target, size=size)

    async def rewind(self) -> None:
        """Bring the tape back to its beginning, when the lane is free."""
        scheduler = self._scheduler

        async def job(drive: TapeDrive) -> None:
            scheduler.head_block = None
            await drive.rewind()

        await scheduler.submit(JobKind.CONTROL, job)


async def measure_room(
    drive: TapeDrive, account: CapacityAccount, config: Config, end_bytes: int
) -> None:
    """Ask the drive how much it can take behind its end of data, before which `end_bytes` stand.

    Where it does not know, the mount option or the kind of the medium says it. A drive that
    refuses the question leaves the account as it is. Raises what leaves the drive in doubt.
    """
    remaining_bytes: int | None = None
    if config.capacity_bytes is not None:
        account.total_bytes = config.capacity_bytes
    else:
        try:
            capacity = await drive.capacity()
            remaining_bytes = capacity.remaining_bytes if capacity else None
            if capacity is None and account.total_bytes is None:
                account.total_bytes = await drive.nominal_capacity_bytes()
        except (DriveFailed, MediumFailed) as exc:
            if leaves_in_doubt(exc):
                raise
    account.measured(end_bytes, remaining_bytes)


def _assemble(
    records: Iterator[array[int]], count: int, feed: RecordFeed, clock: Clock
) -> list[array[int]]:
    """Fill `feed`, `count` records at a time; returns those that it has no room for, or none at
    the end. In a worker, which comes back now and then, so that it can be cancelled."""
    until_s = clock.current_time() + VISIT_S
    while batch := list(itertools.islice(records, count)):
        if clock.current_time() >= until_s or not feed.offer(batch):
            return batch
    return []


def _root_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that made the others happen: the assembler's before the stream that just ended."""
    flat = leaves_of(group)
    own = [exc for exc in flat if not isinstance(exc, trio.Cancelled)]
    known = [exc for exc in own if isinstance(exc, TapefsError) and type(exc) is not NotFinalized]
    bugs = [exc for exc in own if not isinstance(exc, TapefsError)]
    return (bugs or known or own or flat)[0]
