"""Segments and checkpoints, one after the other, as somebody else decides.

A segment is: a moment of the catalog (`Burst`), written by the `TapeWriter` up to a synchronising
filemark; then the tape view learns its journal, and only then are the files' ranges clean and may
leave the spool (P7).
"""

from __future__ import annotations

import enum
import logging
from contextlib import closing
from typing import TYPE_CHECKING

import trio

from tapefs import telemetry
from tapefs.archive.brake import Forecast
from tapefs.archive.burst import WHOLE_BYTES, Burst
from tapefs.archive.catalogs import foreign_to
from tapefs.archive.confirmation import Confirmation
from tapefs.archive.policy import Pressure, segment_bytes
from tapefs.archive.selection import Limits, Selection, select
from tapefs.archive.spool import CACHE_SHARE
from tapefs.errors import SpoolMismatch, TapefsError
from tapefs.volume.journal_file import JournalEntries
from tapefs.volume.segment import SegmentBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.contents import Contents
    from tapefs.archive.spool import Spool
    from tapefs.archive.tape_writer import TapeWriter
    from tapefs.catalog import Catalog, Snapshot
    from tapefs.config import Config


class Scope(enum.Enum):
    """Which files a burst takes: settled ones, also those still in use, or simply all."""

    SETTLED = "settled"
    PRESSED = "pressed"
    EVERYTHING = "everything"


class Migration:
    """Brings files and the catalog to tape. For the archiver's task only, but for what it shows.

    `state` is a word for what it does. `segments` counts those since the mount, `failures_in_row`
    the attempts at a tape file since the last one that succeeded. `at_end`: the last failure was
    one that the end of the tape gives. `does_not_fit`: something accepted is larger than what room
    the drive says there is. `remarks` are what the user should know although everything is on tape.
    """

    def __init__(
        self,
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
        self._confirmation = Confirmation(catalog, contents)
        self._forecast = Forecast()
        contents.admission.next_room_s = self._next_room_s
        self.state = "idle"
        self.segments = 0
        self.failures_in_row = 0
        self.at_end = False
        self.does_not_fit = False
        self.remarks: list[str] = []

    def spool_pressed(self) -> bool:
        """Whether the spool is above its high water mark with content that tape must take."""
        return self.spool_pressure() is Pressure.HIGH

    def spool_pressure(self) -> Pressure:
        """How full the spool is with content that tape must take; cached content counts as well."""
        high = self._config.spool_high_water
        if self._dirty_share() <= high / 4:
            return Pressure.LOW
        return Pressure.HIGH if self._spool.pressure() > high else Pressure.SOME

    def takes_open_files(self) -> bool:
        """Whether files go to tape in parts while they are written.

        From half way to the high water mark on, so that the drive runs while writers still do.
        """
        return self._dirty_share() > self._config.spool_high_water / 2

    def _dirty_share(self) -> float:
        return self._account.pending_bytes / self._spool.limit_bytes

    async def drain(self, *, everything: bool) -> None:
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
        limits, segments_before = self._limits(scope), self.segments
        # No await between the end of the epoch, the snapshot and the note that a burst began.
        snapshot = self._catalog.snapshot()
        contents.begin_burst()
        try:
            selection = await self._archive_snapshot(snapshot, limits, after_ino, epoch)
        finally:
            contents.end_burst()
            self._forecast.end(trio.current_time(), committed=self.segments > segments_before)
            await trio.to_thread.run_sync(snapshot.close)
        contents.evict(int(self._spool.limit_bytes * CACHE_SHARE))
        await self._checkpoint_when_due()
        return (selection.inos[-1] if selection.inos else 0), selection.cut_short

    async def _archive_snapshot(
        self, snapshot: Snapshot, limits: Limits, after_ino: int, epoch: int
    ) -> Selection:
        selection = await trio.to_thread.run_sync(select, snapshot, limits, after_ino)
        self._contents.narrow_burst(selection.inos)
        burst = Burst(
            snapshot,
            selection,
            limits,
            self._spool,
            self._contents.arrivals,
            self._view.has_inode,
            self._view.lookup,
        )
        burst.ends_early = self._writer.had_early_warning
        self.does_not_fit |= selection.does_not_fit
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
            bytes_max=self._segment_bytes_max(),
            members_max=self._config.segment_members_max,
            room_bytes=self._account.tight_room_bytes(WHOLE_BYTES),
            cut_bytes_max=self._config.early_warning_room_bytes,
            settled_before_ns=self._clock_ns() - settle_ns,
            everything=scope is Scope.EVERYTHING,
            parts_of_open=pressed or self.takes_open_files(),
            part_bytes_min=1 if pressed else part_bytes_min,
            open_for_writing=self._contents.open_for_writing(),
        )

    def _segment_bytes_max(self) -> int:
        tape = self._writer.statistics()
        return self._config.segment_bytes_max or segment_bytes(tape.tape_bytes, tape.tape_s)

    async def _write_segment(self, burst: Burst, selection: Selection, epoch: int) -> None:
        self.state, writer = "writing", self._writer
        self._forecast.begin(selection.content_bytes, trio.current_time())
        place = writer.next_place()
        self._catalog.begin_segment(place.written_ns)
        builder = SegmentBuilder(place, writer.buffers, writer.work)
        telemetry.event(
            telemetry.SEGMENT_STARTED,
            sequence=place.sequence,
            files=len(selection.inos),
            content_bytes=selection.content_bytes,
        )
        entries = JournalEntries(builder.journal_path, place.volume_uuid, place.sequence)
        try:
            # Closed in any case: it holds a local file, and what keeps that as it was.
            with closing(burst.records(builder)) as records:
                await writer.append(records, place.start)
            tape_file = builder.tape_file()
            self.state = "verifying"
            await writer.read_back(tape_file)
            self.state = "indexing"
            await writer.learn(tape_file, entries)
            await self._confirmation.segment(place.sequence, entries, epoch, burst.vacated_names)
            self._confirmation.unsaid(burst, place.sequence, epoch)
        except SpoolMismatch as exc:
            self.remarks.append(str(exc))
            raise
        finally:
            self._account.counts_twice = False
            builder.abandon()
        self.segments += 1
        self.failures_in_row = 0
        telemetry.event(
            telemetry.SEGMENT_COMMITTED,
            sequence=place.sequence,
            records=tape_file.record_count,
            entries=burst.entry_count,
        )

    def _next_room_s(self) -> float | None:
        now = trio.current_time()
        self._forecast.progress(self._writer.statistics().current_bytes, now)
        return self._forecast.next_room_s(now)

    def _last_sequence(self) -> int:
        last = self._view.last_tape_file()
        return last.sequence if last else 0

    async def _prove_end(self) -> None:
        """After a failure: agree with the tape again, and ask the drive how much room is left."""
        state, self.state = self.state, "positioning"
        if not await self._writer.prove_end(foreign_to(self._catalog)):
            self.state = state
            return
        # A segment of ours whose success was not heard of: its files are still dirty here and go
        # to tape once more, so there is nothing to learn from it.
        self._catalog.set_confirmed_sequence(self._last_sequence())
        if self.at_end and not self._account.is_known_to_have_room():
            self._writer.is_near_end = True

    # -- checkpoints, and the end

    async def _checkpoint_when_due(self) -> None:
        due = len(self._view.files_since_checkpoint()) >= self._config.checkpoint_segments
        # The room for the last one is reserved; one in between must not take it.
        if due and self._account.free_bytes() and not self._writer.is_near_end:
            await self._prove_end()
            await self._checkpoint(complete=True)

    async def _checkpoint(self, *, complete: bool) -> None:
        self.state = "checkpoint"
        if not complete and self._writer.closing_suffices():
            await self._writer.write_closing()
        else:
            await self._writer.write_checkpoint()
        self.failures_in_row = 0

    async def close_when_near_end(self) -> None:
        """Behind early warning there is room for a checkpoint, and for nothing else."""
        if self._writer.is_near_end and self._admission.closed_reason is None:
            self._admission.close_full()
            self._catalog.set_end_reached()
            telemetry.event(telemetry.VOLUME_FULL, waiting=self._account.pending_count)
        if self._admission.full_reason is not None:
            await self._end_generation()

    async def _end_generation(self) -> None:
        """What is on tape can be mounted again as it is now, unless nothing may be written."""
        if self._admission.read_only_reason is not None:
            return
        await self._prove_end()
        if not self.is_ended():
            await self._checkpoint(complete=self._admission.full_reason is not None)

    def is_ended(self) -> bool:
        """Whether nothing was written since the end of the last generation, or ever."""
        last = self._view.last_tape_file()
        return last is None or last.ends_generation

    async def finish_volume(self) -> None:
        await self._end_generation()
        if not self.is_ended():
            self.remarks.append(
                "the last checkpoint could not be written; a mount elsewhere takes longer, "
                "because it reads the segments' own journals"
            )
        await self.rewind()

    async def rewind(self) -> None:
        """Bring the tape back to its beginning, when the lane is free; a failure is a remark."""
        self.state = "rewinding"
        try:
            await self._writer.rewind()
        except TapefsError as error:
            telemetry.event(telemetry.REWIND_FAILED, logging.WARNING, reason=error)
            self.remarks.append(f"the tape could not be rewound: {error}")
