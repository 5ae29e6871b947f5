"""Recall: bytes that are only on tape, read in tape order, checked, shared by all readers.

A reader asks for a record and waits. The first record asked for starts a *run* in the lane
(`recall_run.py`): locate once, then read record after record, handing each to whoever waits, for as
long as somebody asks for what lies within read-ahead. A reader need not wait for a whole file, and
ten readers of one directory cost one pass. Every record is checked against the CRC-32C that the
tape view knows (P8); a mismatch is read once more, then it is an error that names the place, and
never data. A file that was archived in one piece is checked against its SHA-256 as it passes by.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tapefs import telemetry
from tapefs.archive.policy import JobKind
from tapefs.archive.recall_demand import RecallDemand
from tapefs.archive.recall_run import STRETCH_COUNT, RecallCounters, RecallRun
from tapefs.archive.record_cache import RecordCache
from tapefs.archive.resumption import leaves_in_doubt
from tapefs.archive.stretch import StretchMemory
from tapefs.archive.whole_file_checks import Key, WholeFileChecks
from tapefs.errors import DataMismatch, DriveBusy, RecallTooLate, TapefsError

if TYPE_CHECKING:
    from tapefs.archive.record_store import RecordStore
    from tapefs.archive.scheduler import Scheduler
    from tapefs.archive.stretch import Stretch
    from tapefs.catalog import TapeView
    from tapefs.config import Config
    from tapefs.drive import TapeDrive
    from tapefs.entries import Extent, TapeFile
    from tapefs.geometry import Geometry

# Files up to this size are hashed whole before the first byte is handed out.
_SMALL_FILE_BYTES: Final = 1 << 20
# Tape files whose record checksums are kept at hand.
_TAPE_FILES_KEPT: Final = 16


@dataclass(frozen=True, slots=True)
class RecallStatistics:
    """Counters since the mount; `kept_bytes` is what recalled records take on disk."""

    runs: int
    records_read: int
    cache_hits: int
    mismatches: int
    waiting: int
    cached_records: int
    kept_bytes: int


class RecallService:
    """Serves reads from tape. `run` must be running; `read` may be called by any task."""

    def __init__(
        self,
        scheduler: Scheduler,
        view: TapeView,
        geometry: Geometry,
        store: RecordStore,
        config: Config,
    ) -> None:
        record_bytes = geometry.record_bytes
        self._scheduler = scheduler
        self._view = view
        self._geometry = geometry
        self._record_bytes = record_bytes
        self._config = config
        self._store = store
        ahead_count = max(1, config.read_ahead_bytes // record_bytes)
        cache_count = max(2 * ahead_count, config.record_cache_bytes // record_bytes)
        self._cache = RecordCache(cache_count, store)
        self._demand = RecallDemand(ahead_count)
        self._checks = WholeFileChecks(record_bytes)
        self._memory = StretchMemory(record_bytes, STRETCH_COUNT)
        # Records for which a run was asked, and the run that the lane is at.
        self._asked: set[Key] = set()
        self._run: RecallRun | None = None
        self._tape_files: OrderedDict[int, TapeFile] = OrderedDict()
        self._send: trio.MemorySendChannel[Key]
        self._send, self._requests = trio.open_memory_channel[Key](config.waiting_recalls_max + 1)
        self._counters = RecallCounters()
        self._hits = self._waiting = 0

    def statistics(self) -> RecallStatistics:
        """Counters since the mount."""
        done = self._counters
        return RecallStatistics(
            done.runs,
            done.records_read,
            self._hits,
            done.mismatches,
            self._waiting,
            self._cache.record_count,
            self._store.used_bytes,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Turn requests into jobs for the lane until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            async for key in self._requests:
                nursery.start_soon(self._recall_run, key)

    async def read(
        self, extent: Extent, offset: int, length: int, digest: bytes | None = None
    ) -> bytes | memoryview:
        """Bytes [offset, offset + length) of a file, which must lie inside `extent`.

        `digest` is the SHA-256 of the extent's bytes when it is known; then it is checked too.
        Raises DataMismatch when what the tape gives is not what was written, DriveBusy when too
        many reads wait already, RecallTooLate after `recall_deadline_s`, or the drive's error.
        """
        if self._waiting >= self._config.waiting_recalls_max:
            raise DriveBusy("too many reads wait for the tape; try again later")
        self._waiting += 1
        try:
            with trio.fail_after(self._config.recall_deadline_s):
                start = extent.position + (offset - extent.offset)
                if digest is None or extent.length == 0:
                    return await self._gather(extent.sequence, start, length)
                return await self._read_hashed(extent, start, length, digest)
        except trio.TooSlowError as exc:
            raise RecallTooLate("the tape did not answer in time; see tapefs status") from exc
        finally:
            self._waiting -= 1

    async def _read_hashed(
        self, extent: Extent, start: int, length: int, digest: bytes
    ) -> bytes | memoryview:
        """Have the file's bytes hashed: small files at once, large ones in passing."""
        verdict = self._checks.verdict(extent)
        if verdict is None and extent.length <= _SMALL_FILE_BYTES:
            await self._hash_at_once(extent, digest)
        elif verdict is None:
            self._checks.arm(extent, digest)
        data = await self._gather(extent.sequence, start, length)
        ends = start + length == extent.position + extent.length
        await self._checks.catch_up(extent, self._cache.find, to_the_end=ends)
        if self._checks.verdict(extent) is False:
            self._counters.mismatches += 1
            raise DataMismatch("the file's SHA-256 is not the one it was archived with")
        return data

    async def _hash_at_once(self, extent: Extent, digest: bytes) -> None:
        try:
            data = await self._gather(extent.sequence, extent.position, extent.length)
        except DataMismatch:
            return  # some record of it is bad; what was asked for may lie in the good ones
        matches = hashlib.sha256(data).digest() == digest
        self._checks.note((extent.sequence, extent.position), matches=matches)

    async def _gather(self, sequence: int, start: int, length: int) -> bytes | memoryview:
        size, end = self._record_bytes, start + length
        self._demand.announce(sequence, (end - 1) // size)
        pieces: list[memoryview] = []
        while start < end:
            stretch = await self._stretch((sequence, start // size))
            pieces.append(stretch.part(start, end))
            start += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _stretch(self, key: Key) -> Stretch:
        """What holds the record."""
        crc = self._tape_file(key[0]).crcs[4 * key[1] : 4 * key[1] + 4]
        found = self._cache.fetch(key, crc)
        self._hits += found is not None
        while found is None:
            arrived = self._demand.arrival(key)
            on_its_way = self._run is not None and self._run.will_bring(*key)
            if not on_its_way and key not in self._asked:
                self._asked.add(key)
                self._send.send_nowait(key)
            await arrived.wait()
            found = self._cache.find(key)
        return found

    # -- the lane's side

    async def _recall_run(self, key: Key) -> None:
        try:
            tape_file = self._tape_file(key[0])
            address = self._geometry.record_address(key[0], tape_file.first_block, key[1])
            await self._scheduler.submit(
                JobKind.RECALL,
                lambda drive: self._serve(drive, tape_file, key[1]),
                block=address.block,
                attempts=self._config.recall_attempts_max,
            )
        except TapefsError as error:  # the drive was lost too often, or the lane is closed
            self._fail(key, error)
        except Exception as exc:  # noqa: BLE001 - other files must stay readable in spite of a bug
            telemetry.LOGGER.exception(telemetry.RECALL_FAILED)
            self._fail(key, TapefsError(f"a bug stopped a recall ({exc!r}); the log says more"))
        finally:
            self._asked.discard(key)
            self._demand.wake(key)  # should it still be waited for, it can be asked for again now

    async def _serve(self, drive: TapeDrive, tape_file: TapeFile, first: int) -> None:
        """One run: read from record `first` on while somebody within reach wants more.

        Raises what leaves the drive in doubt; who waits, waits on then.
        """
        sequence = tape_file.sequence
        if (sequence, first) not in self._demand.wanted:
            return
        if first >= tape_file.record_count:
            reason = f"tape file {sequence} has no record {first}; run 'tapefs rebuild'"
            self._fail((sequence, first), DataMismatch(reason))
            return
        self._counters.runs += 1
        telemetry.event(telemetry.RECALL_STARTED, logging.DEBUG, tape_file=sequence, record=first)
        run = self._run = RecallRun(
            tape_file,
            self._demand,
            self._cache,
            self._checks,
            self._scheduler,
            self._geometry,
            self._memory,
            self._counters,
            self._config.recall_run_s,
        )
        try:
            await run.read_from(drive, first)
        except TapefsError as error:
            if leaves_in_doubt(error):
                raise  # the lane has this run again when the drive is back
            self._fail((sequence, run.record), error)
        finally:
            self._run = None
            for waiting in self._demand.wanted.keys() - self._asked:
                self._demand.wake(waiting)  # they look again, and ask for a run of their own

    def _fail(self, key: Key, error: TapefsError) -> None:
        """Nobody will bring `key`; who waits for it gets `error`. Read-ahead fails silently."""
        if self._demand.fail(key, error):
            telemetry.event(
                telemetry.RECALL_FAILED,
                logging.ERROR,
                tape_file=key[0],
                record=key[1],
                reason=error,
            )

    def _tape_file(self, sequence: int) -> TapeFile:
        tape_file = self._tape_files.get(sequence) or self._view.tape_file(sequence)
        if tape_file is None:
            raise DataMismatch(f"there is no tape file {sequence}; run 'tapefs rebuild'")
        self._tape_files[sequence] = tape_file
        while len(self._tape_files) > _TAPE_FILES_KEPT:
            self._tape_files.popitem(last=False)
        return tape_file
