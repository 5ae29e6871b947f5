"""One run of a recall in the lane: records read in tape order, judged beside it, handed out.

While the drive reads a record, a worker judges those before: CRC-32C of each (P8), SHA-256 of the
files that were archived whole, and after that, when there is time, a copy for the store on disk. A
record reaches its readers when it has been judged. One whose checksum is wrong is read once more,
and with it what came after, so that files are hashed in order; the second time it is an error.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import crc32c
import outcome
import trio

from tapefs import telemetry
from tapefs.errors import DataMismatch, TapefsError
from tapefs.scsi.sense import EndOfData, FilemarkDetected, IncorrectLength
from tapefs.volume.session import VISIT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapefs.archive.recall_demand import RecallDemand
    from tapefs.archive.record_cache import RecordCache
    from tapefs.archive.scheduler import Scheduler
    from tapefs.archive.stretch import Stretch, StretchMemory
    from tapefs.archive.whole_file_checks import WholeFileCheck, WholeFileChecks
    from tapefs.drive import TapeDrive
    from tapefs.entries import TapeFile
    from tapefs.geometry import Geometry
    from tapefs.scsi.completion import DataBuffer

# Records that were read and are not judged yet, at most.
_UNJUDGED_MAX: Final = 48
# Records that are read into one piece of memory, judged and handed out together.
STRETCH_COUNT: Final = 8
# How many records are judged in one visit to a worker; one to the wire lasts VISIT_S, going by the
# last one. Between two visits of either thread passed 1.7 ms while a large file was read, for the
# event loop answers the kernel meanwhile: as long as 3 records took.
_JUDGED_COUNT: Final = 32
# Judged records that wait for a quiet moment to be copied to disk, at most.
_TO_KEEP_MAX: Final = 8


@dataclass(slots=True)
class RecallCounters:
    """Since the mount."""

    runs: int = 0
    records_read: int = 0
    mismatches: int = 0


@dataclass(frozen=True, slots=True)
class _Unjudged:
    """Records as the drive gave them, and how many of their bytes it said there were of each."""

    stretch: Stretch
    lengths: Sequence[int]
    crcs: bytes


class _Visit:
    """Records read without leaving the wire's thread in between; each stretch is taken at once.

    One of which the drive had nothing to report counts as whole; if it is not, the judge finds out.
    """

    def __init__(
        self,
        memory: StretchMemory,
        sequence: int,
        first: int,
        record_count: int,
        take: Callable[[Stretch], None],
    ) -> None:
        """`take` is called in the trio thread with each stretch but the last."""
        self._memory = memory
        self._left_count = record_count
        self._take = take
        self._token = trio.lowlevel.current_trio_token()
        self.taken_count = 0
        self.stretch = self._next(sequence, first)

    def more(self) -> Sequence[DataBuffer]:
        """`stretch` has been filled: what follows. In the thread of the wire."""
        if not self._left_count:
            return ()
        full = self.stretch
        self.taken_count += full.record_count
        self._token.run_sync_soon(self._take, full)
        self.stretch = self._next(full.sequence, full.last + 1)
        return self.stretch.records()

    def _next(self, sequence: int, first: int) -> Stretch:
        count = min(self._left_count, STRETCH_COUNT)
        self._left_count -= count
        return self._memory.stretch(sequence, first, count)


class RecallRun:
    """Reads one tape file from some record on, for as long as somebody wants more."""

    def __init__(
        self,
        tape_file: TapeFile,
        demand: RecallDemand,
        cache: RecordCache,
        checks: WholeFileChecks,
        scheduler: Scheduler,
        geometry: Geometry,
        memory: StretchMemory,
        counters: RecallCounters,
        duration_s: float,
    ) -> None:
        """While others wait for the drive, the run ends `duration_s` after its first record."""
        self._tape_file = tape_file
        self._sequence = tape_file.sequence
        self._demand = demand
        self._cache = cache
        self._checks = checks
        self._scheduler = scheduler
        self._geometry = geometry
        self._memory = memory
        self._counters = counters
        self._duration_s = duration_s
        self._ends_at = math.inf
        # What the drive reads next, or failed to read.
        self.record = self._first = 0
        # How long the last ones took, each.
        self._record_s = 0.0
        self._unjudged: deque[_Unjudged] = deque()
        # The same, without what the worker has already.
        self._to_judge: deque[_Unjudged] = deque()
        self._to_keep: deque[tuple[int, memoryview]] = deque(maxlen=_TO_KEEP_MAX)
        # A record that was not what was written; and those that were so once before.
        self._bad: int | None = None
        self._doubted: set[int] = set()
        # Nothing more is going to be read, or nothing that comes soon.
        self._ended = self._in_a_hurry = False
        self._arrived = trio.Event()
        self._judged = trio.Event()

    def will_bring(self, sequence: int, record: int) -> bool:
        """Whether a record that somebody waits for now comes without a run of its own."""
        start = self._unjudged[0].stretch.first if self._unjudged else self.record
        self._arrived.set()  # what nobody waited for may wait to be judged
        return sequence == self._sequence and start <= record <= start + self._demand.ahead_count

    async def read_from(self, drive: TapeDrive, first: int) -> None:
        """Read from record `first` on. For the lane's job.

        Raises DataMismatch, or what the drive says, about `record`.
        """
        self.record = self._first = first
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._judge)
            end = await outcome.acapture(self._read, drive)
            self._ended = True
            self._arrived.set()
        end.unwrap()

    # -- the drive's side

    async def _read(self, drive: TapeDrive) -> None:
        count = self._geometry.record_count(self._tape_file)
        while True:
            if self._bad is not None:
                self._go_back(self._bad)
            if self.record < count and await self._wants_more():
                await self._bring(drive)
            elif self._unjudged:
                self._in_a_hurry = True
                await self._judgement()
                self._in_a_hurry = False
            elif self._bad is None:
                return

    async def _wants_more(self) -> bool:
        # Whoever reads on is served also while others wait: to come back takes a long search.
        if trio.current_time() >= self._ends_at and self._scheduler.others_waiting():
            return False
        known_count = len(self._tape_file.crcs) // 4
        return await self._demand.wants_more(self._sequence, self._first, self.record, known_count)

    async def _bring(self, drive: TapeDrive) -> None:
        key = (self._sequence, self.record)
        if self._cache.find(key) is not None:
            self._demand.wake(key)
            self.record += 1
            return
        room_count = _UNJUDGED_MAX - self._unjudged_count
        if not room_count:
            await self._judgement()
            return
        in_time_count = max(1, int(VISIT_S / self._record_s)) if self._record_s else STRETCH_COUNT
        count = self._visit_count(min(room_count, in_time_count))
        visit = _Visit(self._memory, self._sequence, self.record, count, self._take_whole)
        started = trio.current_time()
        lengths, error = await self._read_records(drive, visit)
        self._record_s = (trio.current_time() - started) / count
        lengths = lengths[visit.taken_count :]
        if isinstance(error, FilemarkDetected | EndOfData | IncorrectLength):
            lengths.append(0)  # something stands there, but not this record
            error = None
        if lengths:
            self._take(visit.stretch.head(len(lengths)), lengths)
        if error is not None:
            raise error

    def _visit_count(self, count_max: int) -> int:
        """How many records from here on to read in one go: up to those that nobody needs yet."""
        wanted, count = self._demand.wanted, 0
        known_count = len(self._tape_file.crcs) // 4
        if self._scheduler.others_waiting():
            return 1
        while count < count_max:
            record = self.record + count
            key = (self._sequence, record)
            if self._cache.find(key) is not None:
                break
            ahead = self._demand.reads_ahead(self._sequence, self._first, record, known_count)
            if not ahead and key not in wanted:
                break
            count += 1
        return max(1, count)

    def _take_whole(self, stretch: Stretch) -> None:
        self._take(stretch, [self._geometry.record_bytes] * stretch.record_count)

    def _take(self, stretch: Stretch, lengths: Sequence[int]) -> None:
        if self._bad is not None:
            return  # it comes again, behind the one that was wrong
        crcs = self._tape_file.crcs[4 * stretch.first : 4 * (stretch.last + 1)]
        item = _Unjudged(stretch, lengths, crcs)
        self._unjudged.append(item)
        self._to_judge.append(item)
        self._arrived.set()
        self.record = stretch.last + 1
        # From the first record on: to get there may have taken longer.
        self._ends_at = min(self._ends_at, trio.current_time() + self._duration_s)

    async def _read_records(
        self, drive: TapeDrive, visit: _Visit
    ) -> tuple[list[int], TapefsError | None]:
        tape_file, scheduler = self._tape_file, self._scheduler
        address = self._geometry.record_address(
            tape_file.sequence, tape_file.first_block, self.record
        )
        at_block, scheduler.head_block = scheduler.head_block, None
        try:
            if at_block != address.block:
                await drive.locate(address)
        except (FilemarkDetected, EndOfData) as nothing_there:
            return [], nothing_there
        lengths, error = await drive.read_blocks(visit.stretch.records(), visit.more)
        if error is None:
            passed_count = self._geometry.blocks_per_record * len(lengths)
            scheduler.head_block = address.block + passed_count
        return lengths, error

    def _go_back(self, bad: int) -> None:
        self.record, self._bad = bad, None
        if bad in self._doubted:
            raise DataMismatch(
                f"record {bad} of tape file {self._sequence} is not what was written there"
            )
        self._doubted.add(bad)

    async def _judgement(self) -> None:
        """Wait until something more has been judged."""
        self._arrived.set()
        self._judged = trio.Event()
        await self._judged.wait()

    # -- the judge's side

    async def _judge(self) -> None:
        while True:
            if self._is_worth_a_visit():
                await self._visit_judge()
                self._judged.set()
            elif self._to_keep:
                await trio.to_thread.run_sync(
                    self._cache.keep, self._sequence, *self._to_keep.popleft()
                )
            elif self._ended:
                return
            else:
                self._arrived = trio.Event()
                await self._arrived.wait()

    @property
    def _unjudged_count(self) -> int:
        return sum(item.stretch.record_count for item in self._unjudged)

    def _is_worth_a_visit(self) -> bool:
        """Whether somebody waits for what is to be judged, or enough has come together."""
        if self._unjudged_count >= STRETCH_COUNT or self._ended or self._in_a_hurry:
            return bool(self._unjudged)
        return any(
            item.stretch.first <= record <= item.stretch.last
            for item in self._unjudged
            for sequence, record in self._demand.wanted
            if sequence == self._sequence
        )

    async def _visit_judge(self) -> None:
        first, last = self._unjudged[0].stretch.first, self._unjudged[-1].stretch.last
        checks = self._checks.take(self._sequence, first, last)
        token = trio.lowlevel.current_trio_token()

        def judge() -> None:
            """In a worker, for as long as records come, and not for ever."""
            left_count = _JUDGED_COUNT
            while left_count > 0 and self._to_judge:
                item = self._to_judge.popleft()
                good = _good_part(item, checks)
                token.run_sync_soon(self._note_judged, item, good)
                left_count -= item.stretch.record_count
                if good.record_count < item.stretch.record_count:
                    return

        try:
            await trio.to_thread.run_sync(judge)
        finally:
            self._checks.give_back(checks)

    def _note_judged(self, item: _Unjudged, good: Stretch) -> None:
        if good.record_count:
            self._cache.add(good)
        self._counters.records_read += good.record_count
        for record, data in enumerate(good.records(), good.first):
            self._to_keep.append((record, data))
            self._demand.wake((self._sequence, record))
        if good.record_count < item.stretch.record_count:
            self._note_mismatch(item, good.record_count)
        else:
            self._unjudged.popleft()
            self._judged.set()

    def _note_mismatch(self, item: _Unjudged, good_count: int) -> None:
        self._bad = item.stretch.first + good_count
        self._unjudged.clear()
        self._to_judge.clear()
        self._counters.mismatches += 1
        last_try = self._bad in self._doubted
        telemetry.event(
            telemetry.DATA_MISMATCH,
            logging.ERROR if last_try else logging.WARNING,
            tape_file=self._sequence,
            record=self._bad,
            length_bytes=item.lengths[good_count],
            again=not last_try,
        )


def _good_part(item: _Unjudged, checks: Sequence[WholeFileCheck]) -> Stretch:
    """The records that are right, up to the first that is not; those are hashed. In a worker."""
    good = item.stretch.head(_good_count(item))
    for check in checks:
        check.feed(good)
    return good


def _good_count(item: _Unjudged) -> int:
    """How many records are right before the first that is not."""
    for number, data in enumerate(item.stretch.records()):
        if item.lengths[number] != len(data):
            return number
        # Without letting go of the interpreter: to get it back takes longer than a checksum.
        crc = crc32c.crc32c(data, gil_release_mode=0).to_bytes(4, "big")
        if crc != item.crcs[4 * number : 4 * number + 4]:
            return number
    return item.stretch.record_count
