"""Reading for a verification through the lane: in slices that give way to everybody else.

A plan says which record comes next and takes what was read; this reads, at streaming speed: while
the drive reads one record, the one before is judged in a worker thread.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, Protocol

import outcome
import trio

from tapefs.archive.policy import JobKind
from tapefs.archive.record_reader import Outcome, RecordRead, RecordReader, Wanted
from tapefs.entries import DamageKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.archive.scheduler import Scheduler
    from tapefs.archive.tape_file_check import TapeFileCheck
    from tapefs.drive import TapeAddress, TapeDrive
    from tapefs.entries import TapeFile
    from tapefs.geometry import Geometry

# Records read in one job of the lane, when nobody else wants the drive.
_SLICE_RECORDS: Final = 64
# After somebody else used the drive, it must have been idle for this long: who reads a file asks
# for its next piece soon, and going to and fro costs minutes on a real tape.
_QUIET_S: Final = 2.0
# Who never stops asking is interrupted after this time all the same.
_GIVE_WAY_MAX_S: Final = 60.0
# After so many records in a row that cannot be read, the rest of the tape file is given up: a drive
# tries each of them for a minute or longer.
_UNREADABLE_ROW_MAX: Final = 32

DAMAGE_OF: Final = {
    Outcome.MISMATCH: DamageKind.MISMATCH,
    Outcome.UNREADABLE: DamageKind.UNREADABLE,
    Outcome.ENDED: DamageKind.MISSING,
}


class Plan(Protocol):
    """Which records are read, and what for."""

    def wanted(self) -> Wanted | None:
        """The next record, None at the end. In the trio thread."""

    def note(self, wanted: Wanted, read: RecordRead) -> None:
        """How reading it went, at once, so that `wanted` can go on. In the trio thread."""

    def take(self, wanted: Wanted, read: RecordRead, data: memoryview) -> None:
        """Judge the record; `data` counts only if it is good. In a worker, in order."""


class LaneReading:
    """Reads for one verification. `read_bytes` and `record_count` count what was read."""

    def __init__(
        self, scheduler: Scheduler, geometry: Geometry, progressed: Callable[[], None]
    ) -> None:
        self._scheduler = scheduler
        self._progressed = progressed
        self.reader = RecordReader(scheduler, geometry)
        self.record_count = 0
        self._buffers = [array("B", bytes(geometry.record_bytes)) for _ in range(2)]
        self._pending: tuple[Wanted, RecordRead, array[int]] | None = None
        self._stopped = self._interrupted = False

    async def run(self, plan: Plan) -> None:
        """Read all that `plan` wants. Raises what keeps the drive from reading at all.

        When cancelled, a slice under way ends after its current record.
        """
        try:
            while (wanted := plan.wanted()) is not None:
                await self._scheduler.submit(
                    JobKind.MAINTENANCE,
                    lambda drive: self._slice(drive, plan),
                    block=wanted.address.block,
                )
                if self._interrupted:
                    await self._give_way()
            if self._pending is not None:
                await self._judge(plan, *self._pending)
                self._pending = None
        except BaseException:
            self._stopped = True
            raise

    async def _slice(self, drive: TapeDrive, plan: Plan) -> None:
        self._interrupted = False
        for _ in range(_SLICE_RECORDS):
            wanted = plan.wanted()
            if wanted is None or self._stopped:
                return
            read, buffer = await self._read_while_judging(drive, plan, wanted)
            plan.note(wanted, read)
            self._pending = (wanted, read, buffer)
            self.record_count += read.outcome in (Outcome.GOOD, Outcome.MISMATCH)
            self._progressed()
            if self._scheduler.others_waiting():
                self._interrupted = True
                return

    async def _read_while_judging(
        self, drive: TapeDrive, plan: Plan, wanted: Wanted
    ) -> tuple[RecordRead, array[int]]:
        pending, self._pending = self._pending, None
        self._buffers.reverse()
        buffer = self._buffers[0]  # the other one is being judged
        judged: list[outcome.Outcome[None]] = []

        async def judge() -> None:
            if pending is not None:
                judged.append(await outcome.acapture(self._judge, plan, *pending))

        # Both errors are kept apart from the nursery, whose groups nobody expects.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(judge)
            read = await outcome.acapture(self.reader.read, drive, wanted, buffer)
        for result in judged:
            result.unwrap()
        return read.unwrap(), buffer

    async def _judge(
        self, plan: Plan, wanted: Wanted, read: RecordRead, buffer: array[int]
    ) -> None:
        await trio.to_thread.run_sync(plan.take, wanted, read, memoryview(buffer))

    async def _give_way(self) -> None:
        """Return when the others seem to be done."""
        began_s = trio.current_time()
        while trio.current_time() - began_s < _GIVE_WAY_MAX_S:
            before = self._scheduler.statistics().jobs_done
            await trio.sleep(_QUIET_S)
            now = self._scheduler.statistics()
            if now.jobs_done == before and now.running is None:
                return


class TapeFilePlan:
    """All records of one tape file in order, and the filemark behind them.

    `known` is None for a tape file that the catalog does not know: it goes as far as it goes.
    `filemark_block` is where a filemark ended it.
    """

    def __init__(
        self, check: TapeFileCheck, start: TapeAddress, known: TapeFile | None, geometry: Geometry
    ) -> None:
        self._check = check
        self._geometry = geometry
        self._start = start
        self._known = known
        # Of a salvaged torn tape file only the records count whose checksums are known.
        self._limit = len(known.crcs) // 4 if known and known.salvaged else None
        self._next = 0
        self._unreadable_row = 0
        self._ended = False
        self.filemark_block: int | None = None

    def wanted(self) -> Wanted | None:
        """See `Plan`."""
        if self._ended or self._next == self._limit:
            return None
        start, record = self._start, self._next
        crc = self._known.crcs[4 * record : 4 * record + 4] if self._known else b""
        address = self._geometry.record_address(start.file, start.block, record)
        return Wanted(record, address, int.from_bytes(crc, "big") if crc else None)

    def note(self, wanted: Wanted, read: RecordRead) -> None:
        """See `Plan`."""
        unreadable = read.outcome is Outcome.UNREADABLE
        self._unreadable_row = self._unreadable_row + 1 if unreadable else 0
        self._next += 1
        self._ended = read.outcome is Outcome.ENDED or self._unreadable_row > _UNREADABLE_ROW_MAX
        if self._known is not None:
            self._ended |= self._next > self._known.record_count
        if read.filemark_block is not None:
            self.filemark_block = read.filemark_block

    def take(self, wanted: Wanted, read: RecordRead, data: memoryview) -> None:
        """See `Plan`."""
        record = wanted.record
        if self._known is not None and record == self._known.record_count:
            if read.outcome is not Outcome.ENDED:
                self._check.damages.add(
                    record * len(data), 0, DamageKind.MISSING, "no filemark is read behind it"
                )
        elif read.outcome is Outcome.GOOD:
            self._check.feed(data)
        elif read.outcome is not Outcome.ENDED:
            self._check.skip(DAMAGE_OF[read.outcome], read.reason)
        elif self._known is not None:
            missing = self._known.record_count - record
            self._check.skip(DamageKind.MISSING, read.reason, missing)

    def give_up_rest(self) -> None:
        """After the last record: what was not even tried counts as unreadable."""
        count = (self._known.record_count if self._known else 0) if self._limit is None else 0
        rest = count - self._check.record_count
        if rest > 0:
            reason = f"it stands behind {_UNREADABLE_ROW_MAX} records that cannot be read"
            self._check.skip(DamageKind.UNREADABLE, reason, rest)
