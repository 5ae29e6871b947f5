"""Recall: bytes that are only on tape, read in tape order, checked, shared by all readers.

A reader asks for a record and waits. The first record asked for starts a *run* in the lane: locate
once, then read record after record, handing each to whoever waits, for as long as somebody asks for
what lies within read-ahead. A reader need not wait for a whole file, and ten readers of one
directory cost one pass. Every record is checked against the CRC-32C the catalog knows (P8); a
mismatch is read once more, then it is an error that names the place, and never data. A file that
was archived in one piece is checked against its SHA-256 as it passes by.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import crc32c
import trio

from tapefs import telemetry
from tapefs.archive.policy import JobKind
from tapefs.archive.resumption import leaves_in_doubt
from tapefs.errors import DataMismatch, DriveBusy, NotReady, TapefsError
from tapefs.scsi.sense import EndOfData, FilemarkDetected, IncorrectLength

if TYPE_CHECKING:
    from tapefs.archive.scheduler import Scheduler
    from tapefs.catalog import TapeView
    from tapefs.config import Config
    from tapefs.drive import TapeAddress, TapeDrive
    from tapefs.entries import Extent, TapeFile
    from tapefs.geometry import Geometry

# How long a run waits at its end for the next request of a sequential reader.
_LINGER_S: Final = 0.02
# Files up to this size are hashed whole before the first byte is handed out.
_SMALL_FILE_BYTES: Final = 1 << 20
# Tape files whose record checksums are kept at hand.
_TAPE_FILES_KEPT: Final = 16
# Whole-file checks that may be under way, and results remembered.
_CHECKS_KEPT: Final = 64
_VERIFIED_KEPT: Final = 4096

Key = tuple[int, int]  # sequence of the tape file, number of the record in it


@dataclass(frozen=True, slots=True)
class RecallStatistics:
    """Counters since the mount."""

    runs: int
    records_read: int
    cache_hits: int
    mismatches: int
    waiting: int
    cached_records: int


class _WholeFileCheck:
    """SHA-256 of one archived extent, fed with records in tape order."""

    def __init__(self, extent: Extent, digest: bytes, record_bytes: int) -> None:
        self.extent = extent
        self._digest = digest
        self._sha256 = hashlib.sha256()
        self._record_bytes = record_bytes
        self.next_record = extent.position // record_bytes
        self.last_record = (extent.position + extent.length - 1) // record_bytes

    def update(self, record: int, data: memoryview) -> None:
        """Feed record number `record`, which must be `next_record`."""
        base = record * self._record_bytes
        start = max(self.extent.position - base, 0)
        end = min(self.extent.position + self.extent.length - base, self._record_bytes)
        self._sha256.update(data[start:end])
        self.next_record = record + 1

    @property
    def complete(self) -> bool:
        """Whether the last record has been fed."""
        return self.next_record > self.last_record

    def matches(self) -> bool:
        """Whether the bytes are those that were archived."""
        return self._sha256.digest() == self._digest


class RecallService:
    """Serves reads from tape. `run` must be running; `read` may be called by any task."""

    def __init__(
        self, scheduler: Scheduler, view: TapeView, geometry: Geometry, config: Config
    ) -> None:
        record_bytes = geometry.record_bytes
        self._scheduler = scheduler
        self._view = view
        self._geometry = geometry
        self._record_bytes = record_bytes
        self._config = config
        self._ahead = max(1, config.read_ahead_bytes // record_bytes)
        self._cache_count_max = max(2 * self._ahead, config.record_cache_bytes // record_bytes)
        self._cache: OrderedDict[Key, memoryview] = OrderedDict()
        self._wanted: dict[Key, trio.Event] = {}
        self._failed: dict[Key, TapefsError] = {}
        self._asked: set[Key] = set()
        self._run_at: Key | None = None
        self._furthest: dict[int, int] = {}
        self._demand = trio.Event()
        self._tape_files: OrderedDict[int, TapeFile] = OrderedDict()
        self._checks: OrderedDict[Key, _WholeFileCheck] = OrderedDict()
        self._verified: OrderedDict[Key, bool] = OrderedDict()
        self._send: trio.MemorySendChannel[Key]
        self._send, self._requests = trio.open_memory_channel[Key](config.waiting_recalls_max + 1)
        self._runs = self._records_read = self._hits = self._mismatches = self._waiting = 0

    def statistics(self) -> RecallStatistics:
        """Counters since the mount."""
        return RecallStatistics(
            self._runs,
            self._records_read,
            self._hits,
            self._mismatches,
            self._waiting,
            len(self._cache),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Turn requests into jobs for the lane until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            async for key in self._requests:
                nursery.start_soon(self._recall_run, key)

    async def read(
        self, extent: Extent, offset: int, length: int, digest: bytes | None = None
    ) -> bytes:
        """Bytes [offset, offset + length) of a file, which must lie inside `extent`.

        `digest` is the SHA-256 of the extent's bytes when it is known; then it is checked too.
        Raises DataMismatch when what the tape gives is not what was written, DriveBusy when too
        many reads wait already, NotReady after `recall_deadline_s`, or the drive's error.
        """
        if self._waiting >= self._config.waiting_recalls_max:
            raise DriveBusy("too many reads wait for the tape; try again later")
        self._waiting += 1
        try:
            with trio.fail_after(self._config.recall_deadline_s):
                if digest is not None:
                    await self._arm_check(extent, digest)
                start = extent.position + (offset - extent.offset)
                return await self._gather(extent.sequence, start, length)
        except trio.TooSlowError as exc:
            raise NotReady("the tape did not answer in time; see tapefs status") from exc
        finally:
            self._waiting -= 1

    # -- the reader's side

    async def _gather(self, sequence: int, start: int, length: int) -> bytes:
        size = self._record_bytes
        first, last = start // size, (start + length - 1) // size
        self._furthest[sequence] = last
        self._demand.set()
        pieces: list[memoryview] = []
        for record in range(first, last + 1):
            data = await self._record((sequence, record))
            base = record * size
            pieces.append(data[max(start - base, 0) : min(start + length - base, size)])
        return pieces[0].tobytes() if len(pieces) == 1 else b"".join(pieces)

    async def _record(self, key: Key) -> memoryview:
        if key in self._cache:
            self._hits += 1
            self._cache.move_to_end(key)
        while (data := self._cache.get(key)) is None:
            if key in self._failed:
                raise self._failed.pop(key)
            arrived = self._wanted.setdefault(key, trio.Event())
            self._demand.set()
            if not self._within_reach(key) and key not in self._asked:
                self._asked.add(key)
                self._send.send_nowait(key)
            await arrived.wait()
        return data

    def _within_reach(self, key: Key) -> bool:
        if self._run_at is None or self._run_at[0] != key[0]:
            return False
        return self._run_at[1] <= key[1] <= self._run_at[1] + self._ahead

    async def _arm_check(self, extent: Extent, digest: bytes) -> None:
        """Have the file's bytes hashed: small files at once, large ones in passing."""
        name = (extent.sequence, extent.position)
        known = self._verified.get(name)
        if known is False:
            raise self._mismatch()
        if known or name in self._checks or extent.length == 0:
            return
        if extent.length > _SMALL_FILE_BYTES:
            self._checks[name] = _WholeFileCheck(extent, digest, self._record_bytes)
            while len(self._checks) > _CHECKS_KEPT:
                self._checks.popitem(last=False)
            return
        try:
            data = await self._gather(extent.sequence, extent.position, extent.length)
        except DataMismatch:
            return  # some record of it is bad; what was asked for may lie in the good ones
        self._note_verified(name, hashlib.sha256(data).digest() == digest)
        if not self._verified[name]:
            raise self._mismatch()

    def _note_verified(self, name: Key, matches: bool) -> None:
        self._verified[name] = matches
        while len(self._verified) > _VERIFIED_KEPT:
            self._verified.popitem(last=False)

    def _mismatch(self) -> DataMismatch:
        self._mismatches += 1
        return DataMismatch("the file's SHA-256 is not the one it was archived with")

    # -- the lane's side

    async def _recall_run(self, key: Key) -> None:
        tape_file = self._tape_file(key[0])
        try:
            await self._scheduler.submit(
                JobKind.RECALL,
                lambda drive: self._serve(drive, tape_file, key[1]),
                block=self._address(tape_file, key[1]).block,
                attempts=self._config.recall_attempts_max,
            )
        except TapefsError as error:  # the drive was lost too often, or the lane is closed
            self._fail(key, error)
        except Exception as exc:  # noqa: BLE001 - other files must stay readable in spite of a bug
            telemetry.LOGGER.exception(telemetry.RECALL_FAILED)
            self._fail(key, TapefsError(f"a bug stopped a recall ({exc!r}); the log says more"))
        finally:
            self._asked.discard(key)
            self._wake(key)  # should it still be waited for, it can be asked for again now

    async def _serve(self, drive: TapeDrive, tape_file: TapeFile, first: int) -> None:
        """One run: read from record `first` on while somebody within reach wants more.

        Raises what leaves the drive in doubt; who waits, waits on then.
        """
        sequence, record = tape_file.sequence, first
        if (sequence, first) not in self._wanted:
            return
        if first >= tape_file.record_count:
            reason = f"tape file {sequence} has no record {first}; run 'tapefs rebuild'"
            self._fail((sequence, first), DataMismatch(reason))
            return
        self._runs += 1
        telemetry.event(telemetry.RECALL_STARTED, logging.DEBUG, tape_file=sequence, record=first)
        self._run_at = (sequence, first)
        try:
            while record < self._geometry.record_count(tape_file) and await self._wants_more(
                sequence, first, record
            ):
                if (sequence, record) not in self._cache:
                    await self._deposit(drive, tape_file, record)
                else:
                    self._wake((sequence, record))
                record += 1
                self._run_at = (sequence, record)
        except TapefsError as error:
            if leaves_in_doubt(error):
                raise  # the lane has this run again when the drive is back
            self._fail((sequence, record), error)
        finally:
            self._run_at = None
            for waiting in self._wanted.keys() - self._asked:
                self._wake(waiting)  # they look again, and ask for a run of their own

    def _fail(self, key: Key, error: TapefsError) -> None:
        """Nobody will bring `key`; who waits for it gets `error`. Read-ahead fails silently."""
        if key in self._wanted:
            telemetry.event(
                telemetry.RECALL_FAILED,
                logging.ERROR,
                tape_file=key[0],
                record=key[1],
                reason=error,
            )
            self._failed[key] = error
            self._wake(key)

    async def _wants_more(self, sequence: int, first: int, record: int) -> bool:
        """Whether the run that started at `first` goes on with `record`.

        Read-ahead grows with what a reader has taken, so that one small file recalled from the
        middle of a slow tape does not drag megabytes with it.
        """
        if any(
            seq == sequence and record <= at <= record + self._ahead for seq, at in self._wanted
        ):
            return True
        if self._scheduler.others_waiting():
            return False
        if self._reads_ahead(sequence, first, record):
            return True
        self._demand = trio.Event()
        with trio.move_on_after(_LINGER_S):
            await self._demand.wait()
        return self._reads_ahead(sequence, first, record)

    def _reads_ahead(self, sequence: int, first: int, record: int) -> bool:
        if 4 * record >= len(self._tape_file(sequence).crcs):
            return False  # behind what was salvaged: nobody could tell whether it is right
        furthest = self._furthest.get(sequence, -1)
        taken = furthest - first + 1
        return taken > 0 and record <= furthest + min(self._ahead, 2 * (taken - 1))

    async def _deposit(self, drive: TapeDrive, tape_file: TapeFile, record: int) -> None:
        sequence = tape_file.sequence
        data = await self._read_checked(drive, tape_file, record)
        self._records_read += 1
        await self._feed_checks(sequence, record, data)
        key = (sequence, record)
        self._cache[key] = data
        while len(self._cache) > self._cache_count_max:
            self._cache.popitem(last=False)
        self._wake(key)

    async def _read_checked(self, drive: TapeDrive, tape_file: TapeFile, record: int) -> memoryview:
        address = self._address(tape_file, record)
        buffer: array[int] = array("B", bytes(self._record_bytes))
        for last_try in (False, True):
            at_block, self._scheduler.head_block = self._scheduler.head_block, None
            try:
                if at_block != address.block:
                    await drive.locate(address)
                length = await drive.read_block(buffer)
            except (FilemarkDetected, EndOfData, IncorrectLength):
                length = 0  # something stands there, but not this record
            else:
                self._scheduler.head_block = address.block + self._geometry.blocks_per_record
            expected = int.from_bytes(tape_file.crcs[4 * record : 4 * record + 4], "big")
            data = memoryview(buffer)
            if length == self._record_bytes and crc32c.crc32c(data) == expected:
                return data
            self._mismatches += 1
            telemetry.event(
                telemetry.DATA_MISMATCH,
                logging.ERROR if last_try else logging.WARNING,
                tape_file=tape_file.sequence,
                record=record,
                length_bytes=length,
                again=not last_try,
            )
        raise DataMismatch(
            f"record {record} of tape file {tape_file.sequence} is not what was written there"
        )

    async def _feed_checks(self, sequence: int, record: int, data: memoryview) -> None:
        for name, check in list(self._checks.items()):
            if name[0] != sequence:
                continue
            if check.next_record < record <= check.last_record:
                del self._checks[name]  # read out of order: records are checked, the whole is not
            elif check.next_record == record:
                await trio.to_thread.run_sync(check.update, record, data)
                if check.complete:
                    del self._checks[name]
                    self._note_verified(name, check.matches())
                    if not self._verified[name]:
                        raise self._mismatch()

    def _wake(self, key: Key) -> None:
        event = self._wanted.pop(key, None)
        if event is not None:
            event.set()

    def _address(self, tape_file: TapeFile, record: int) -> TapeAddress:
        return self._geometry.record_address(tape_file.sequence, tape_file.first_block, record)

    def _tape_file(self, sequence: int) -> TapeFile:
        tape_file: Any = self._tape_files.get(sequence)
        if tape_file is None:
            tape_file = self._view.tape_file(sequence)
            self._tape_files[sequence] = tape_file
            while len(self._tape_files) > _TAPE_FILES_KEPT:
                self._tape_files.popitem(last=False)
        found: TapeFile = tape_file
        return found
