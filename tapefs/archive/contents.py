"""File content: what a read returns and where a write goes.

A file's bytes are in up to three places. Bytes in the spool (`resident`) win. Bytes that must go to
tape (`dirty`) but are not in the spool are holes: zeros. Everything else comes from the extents on
tape, through the recall service. A write lands in the spool and makes its range resident and dirty;
when a segment that holds the range is committed, the range is clean (still resident: a cache).

Called from the trio thread only. Between two awaits the state of a file is consistent with what the
catalog will be told at the next `save`.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Literal

import trio

from tapefs import telemetry
from tapefs.archive.admission import Admission
from tapefs.archive.arrival import Arrivals
from tapefs.archive.in_flight import InFlight
from tapefs.archive.open_file import FileState as FileState
from tapefs.archive.open_file import OpenFile, Place, Recall, clean_state
from tapefs.archive.ranges import END_OF_FILE, RangeSet
from tapefs.archive.spool import punch
from tapefs.catalog import Staged
from tapefs.errors import DataMismatch, FilesystemError, MediumFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from tapefs.archive.admission import Recalled
    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.spool import Spool
    from tapefs.catalog import Catalog
    from tapefs.config import Config
    from tapefs.entries import Extent, Inode

# The archiver looks up once for so many bytes written to a file, and when it is closed.
_WAKE_BYTES = 4 << 20
_FILE_BYTES_MAX = END_OF_FILE // 2
# Clean files looked at in one eviction step.
_EVICT_BATCH = 256


class Contents:
    """Reads, writes and truncates files; knows what is in the spool and what must go to tape."""

    def __init__(
        self,
        catalog: Catalog,
        spool: Spool,
        recall: Recall,
        account: CapacityAccount,
        config: Config,
        clock_ns: Callable[[], int],
        recalled: Recalled | None = None,
    ) -> None:
        """`recalled` is what gives way to the spool."""
        self._catalog = catalog
        self._spool = spool
        self._recall = recall
        self._account = account
        self._config = config
        self._clock_ns = clock_ns
        self._files: dict[int, OpenFile] = {}
        self._in_flight = InFlight()
        # False while a catalog that comes back after power loss may call dirty what is clean now.
        self._clean_is_durable = True
        self.admission = Admission(account, spool, config, recalled)
        self.admission.evict = self.evict
        self.arrivals = Arrivals(spool, self.admission.make_room_on_disk, config.unhashed_bytes)
        # Set by whoever builds the archive: returns when all is on tape.
        self.sync_to_tape: Callable[[], Awaitable[None]] | None = None
        files, dirty_bytes, resident_bytes = catalog.staged_totals()
        account.pending_bytes, account.pending_count = dirty_bytes, files
        spool.used_bytes = resident_bytes
        # A size must never be committed without the ranges that go with it.
        catalog.before_commit = self.save_all

    # -- opening and closing

    async def open(self, ino: int, *, write: bool, truncate: bool = False) -> None:
        """Note one more user of `ino`. Pair with `release`. Raises FilesystemError, VolumeFull."""
        if write:
            self.admission.check_writable()
        file = self._file(ino)
        file.opens += 1
        file.writers += write
        if truncate:
            try:
                await self.truncate(ino, 0)
            except BaseException:
                await self.release(ino, write=write)
                raise

    async def release(self, ino: int, *, write: bool) -> None:
        """One user fewer; the last one's departure lets the file settle."""
        file = self._files.get(ino)
        if file is None:  # discarded while open
            return
        file.opens -= 1
        file.writers -= write
        if write and file.dirty:
            self.admission.wake_archiver()
        if file.opens == 0:
            self._close(file)

    def open_for_writing(self) -> frozenset[int]:
        """The files that some handle may still write to."""
        return frozenset(ino for ino, file in self._files.items() if file.writers)

    def in_use(self) -> Iterator[tuple[int, OpenFile]]:
        """Every file that is open, by its number. For looking at, without an await between."""
        return iter(self._files.items())

    def dirty_in_use_count(self) -> int:
        """How many files with content for tape some handle may still write to."""
        return sum(1 for file in self._files.values() if file.writers and file.dirty)

    def is_open_for_writing(self, ino: int) -> bool:
        """Whether some handle may still write to `ino`."""
        file = self._files.get(ino)
        return file is not None and file.writers > 0

    # -- reading

    async def read(self, ino: int, offset: int, length: int) -> bytes | memoryview:
        """Up to `length` bytes at `offset`, short only at the end of the file.

        Raises the recall's errors (DataMismatch, DriveGone, ...) when tape is needed.
        """
        file = self._file(ino)
        end = min(offset + length, file.inode.size)
        if offset >= end:
            return b""
        if file.resident.covers(offset, end):
            return self._read_spool(file, offset, end)
        pieces: list[bytes | memoryview] = []
        while offset < end:
            stop, source = self._source_at(file, offset, end)
            if source is Place.HOLE:
                pieces.append(bytes(stop - offset))
            elif source is Place.SPOOL:
                pieces.append(self._read_spool(file, offset, stop))
            else:
                pieces.append(await self._recall_piece(file.inode, source, offset, stop))
            offset = stop
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _recall_piece(
        self, inode: Inode, extent: Extent, offset: int, stop: int
    ) -> bytes | memoryview:
        digest = inode.sha256 if extent.length == inode.size else None
        try:
            return await self._recall.read(extent, offset, stop - offset, digest)
        except (DataMismatch, MediumFailed) as error:
            names = self._catalog.links(inode.ino)
            path = self._catalog.path_of(*names[0]) if names else b""
            telemetry.event(
                telemetry.DATA_MISMATCH,
                logging.ERROR,
                path=os.fsdecode(path),
                ino=inode.ino,
                byte_range=f"{offset}-{stop}",
                tape_file=extent.sequence,
                reason=error,
            )
            raise

    def _source_at(
        self, file: OpenFile, offset: int, end: int
    ) -> tuple[int, Extent | Literal[Place.SPOOL, Place.HOLE]]:
        """Where the byte at `offset` comes from, and up to where the same holds."""
        here = file.resident.within(offset, end)
        if here and here[0][0] == offset:
            return here[0][1], Place.SPOOL
        stop = here[0][0] if here else end
        holes = file.dirty.within(offset, stop)
        if holes and holes[0][0] == offset:
            return holes[0][1], Place.HOLE
        stop = holes[0][0] if holes else stop
        extent = file.extent
        if extent is None or not extent.offset <= offset < extent.offset + extent.length:
            extents = self._catalog.extents(file.inode.ino, offset, stop - offset)
            extent = extents[0] if extents else None
        if extent is None or extent.offset > offset:
            return (extent.offset if extent else stop), Place.HOLE
        file.extent = extent
        return min(stop, extent.offset + extent.length), extent

    def _read_spool(self, file: OpenFile, offset: int, end: int) -> bytes:
        data = os.pread(self._fd(file), end - offset, offset)
        while len(data) < end - offset:
            more = os.pread(file.fd, end - offset - len(data), offset + len(data))
            data += more or bytes(end - offset - len(data))
        return data

    # -- changing

    async def write(self, ino: int, offset: int, data: bytes) -> int:
        """Put `data` at `offset`; all of it or an error. Waits while the spool is full, and for
        milliseconds while too much of a large file is not hashed.

        Raises VolumeFull (ENOSPC) before the cartridge could overflow, SpoolFull when the spool is
        full and the tape cannot take anything, FilesystemError(EROFS, EFBIG).
        """
        file = self._file(ino)
        end = offset + len(data)
        if end > _FILE_BYTES_MAX:
            raise FilesystemError(errno.EFBIG)
        inode = file.inode
        if self.arrivals.is_behind(ino, len(data)):
            await self.arrivals.wait_for_hashing()
        await self.admission.admit(end - min(offset, inode.size), end - offset)
        start = min(offset, inode.size)  # others may have written while we waited
        self._spool.keep(ino)
        self._fd(file)
        self.arrivals.put(file, offset, data)
        self._mark(file, start, offset, end)
        inode.size = max(inode.size, end)
        self._content_changed(file)
        return len(data)

    async def truncate(self, ino: int, size: int) -> None:
        """Set the size of `ino`; new bytes are zeros. Raises as `write` does."""
        self.admission.check_writable()
        if size > _FILE_BYTES_MAX:
            raise FilesystemError(errno.EFBIG)
        file = self._file(ino)
        inode = file.inode
        if size > inode.size:
            await self.admission.admit(size - inode.size, 0)
        if size != inode.size:
            self.arrivals.forget(ino)
        if size > inode.size:
            self._mark(file, inode.size, size, size)
        elif size < inode.size:
            self._cut(file, size)
        inode.size = size
        self._content_changed(file)
        if file.opens == 0:
            self._close(file)

    def _mark(self, file: OpenFile, hole_start: int, start: int, end: int) -> None:
        """[hole_start, start) became a hole, [start, end) was written to the spool."""
        dirty_before, resident_before = file.dirty.total_bytes, file.resident.total_bytes
        was_clean = not file.dirty
        file.dirty.add(hole_start, end)
        file.resident.add(start, end)
        self._account.pending_bytes += file.dirty.total_bytes - dirty_before
        self._account.pending_count += was_clean and bool(file.dirty)
        more = file.dirty.total_bytes // _WAKE_BYTES > dirty_before // _WAKE_BYTES
        if more or (was_clean and file.dirty):
            self.admission.wake_archiver()
        self._spool.used_bytes += file.resident.total_bytes - resident_before
        self._in_flight.note(file.inode.ino, hole_start, end)

    def _cut(self, file: OpenFile, size: int) -> None:
        dirty_before, resident_before = file.dirty.total_bytes, file.resident.total_bytes
        was_dirty = bool(file.dirty)
        file.dirty.remove(size, END_OF_FILE)
        file.resident.remove(size, END_OF_FILE)
        # The spool file itself stays as it is: until the catalog is committed, a crash brings the
        # old size back, and with it the old bytes. Nothing outside the ranges is ever read.
        if resident_before and not file.resident and file.fd < 0:
            self._spool.remove(file.inode.ino)
        self._catalog.cut_extents(file.inode.ino, size)
        file.extent = None
        self._account.pending_bytes += file.dirty.total_bytes - dirty_before
        self._account.pending_count -= was_dirty and not file.dirty
        self._spool.used_bytes += file.resident.total_bytes - resident_before
        self._in_flight.note(file.inode.ino, size, END_OF_FILE)

    def _content_changed(self, file: OpenFile) -> None:
        inode = file.inode
        now = self._clock_ns()
        inode.mtime_ns = inode.ctime_ns = file.touched_ns = now
        inode.sha256 = inode.xxh128 = None
        file.unsaved = True
        self._catalog.changed(inode)

    def discard(self, ino: int) -> None:
        """The inode is gone for good: forget its content. The caller removes it from the catalog.

        Not an error when nothing of it is here.
        """
        file = self._files.pop(ino, None)
        row = None if file else self._catalog.load_staged(ino)
        if file is None and row is None:
            return
        if file is None:
            file = OpenFile(self._catalog.inode(ino), row)
        self._account.pending_bytes -= file.dirty.total_bytes
        self._account.pending_count -= bool(file.dirty)
        self._spool.used_bytes -= file.resident.total_bytes
        self._in_flight.note(ino, 0, END_OF_FILE)
        self.arrivals.forget(ino)
        if file.fd >= 0:
            os.close(file.fd)
        self._spool.remove(ino)
        self._catalog.delete_staged(ino)
        self.admission.room_was_made()

    # -- making it last

    async def fsync(self, ino: int) -> None:
        """Bytes, name and metadata of `ino` survive kill -9 and power loss from here on (P2).

        With `fsync=tape` they are on tape and flushed when this returns.
        """
        if self.sync_to_tape is not None and self._config.fsync == "tape":
            await self.sync_to_tape()
            return
        file = self._files.get(ino)
        if file is not None and file.resident:
            # Others may have written it and closed it again: open it here if need be.
            await trio.to_thread.run_sync(os.fdatasync, self._fd(file))
        await self.commit_durably()

    async def commit_durably(self) -> None:
        """All metadata so far survives power loss when this returns."""
        self._spool.sync_directories()
        self._catalog.commit()
        await trio.to_thread.run_sync(self._catalog.sync_log)

    def save(self, file: OpenFile) -> None:
        """Hand the file's ranges to the catalog (in its open transaction)."""
        file.unsaved = False
        resident, dirty = file.resident.as_pairs(), file.dirty.as_pairs()
        self._save_ranges(Staged(file.inode.ino, resident, dirty, file.touched_ns))

    def _save_ranges(self, staged: Staged) -> None:
        if staged.resident or staged.dirty:
            self._catalog.save_staged(staged)
        else:
            self._catalog.delete_staged(staged.ino)

    def save_all(self) -> None:
        """Hand the ranges of all open files that changed to the catalog."""
        for file in self._files.values():
            if file.unsaved:
                self.save(file)

    # -- the archiver's side

    def begin_burst(self) -> None:
        """From here on, remember what is written to any file. To be called with the snapshot."""
        self._in_flight.begin()
        self._spool.pin()

    def narrow_burst(self, inos: Iterable[int]) -> None:
        """Only these files go to tape in this burst; the others need not be remembered."""
        self._in_flight.narrow(inos)

    def confirm(self, ino: int, archived: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Ranges of `ino` are on tape, flushed. Returns those that were not written since.

        These are clean now; the caller tells the catalog that tape holds them, and then
        `clean_is_durable`. May be called between `begin_burst` and `end_burst` only.
        """
        self._clean_is_durable = False
        self.arrivals.forget(ino)  # from now on it goes to tape in parts
        file = self._files.get(ino)
        row = self._catalog.load_staged(ino) if file is None else None
        if row is not None and row.dirty == archived and self._in_flight.is_unchanged(ino):
            # Nearly every file: closed, and all of it in this segment.
            self._account.pending_bytes -= sum(end - start for start, end in archived)
            self._account.pending_count -= 1
            self._save_ranges(Staged(ino, row.resident, [], row.touched_ns))
            return archived
        keep = self._in_flight.unchanged(ino, archived)
        if file is None:
            if row is not None:
                dirty = RangeSet(row.dirty)
                self._clean(dirty, keep)
                left = Staged(ino, row.resident, dirty.as_pairs(), row.touched_ns)
                self._save_ranges(left)
        else:
            # The caller tells the catalog at once where the bytes stand now.
            file.extent = None
            self._clean(file.dirty, keep)
            self.save(file)
        return keep.as_pairs()

    def _clean(self, dirty: RangeSet, keep: RangeSet) -> None:
        before, was_dirty = dirty.total_bytes, bool(dirty)
        for start, end in keep:
            dirty.remove(start, end)
        self._account.pending_bytes += dirty.total_bytes - before
        self._account.pending_count -= was_dirty and not dirty

    def is_unchanged(self, ino: int) -> bool:
        """Whether the file is what it was when the burst began, content and size. May be called
        between `begin_burst` and `end_burst` only, of a file of that burst."""
        return self._in_flight.is_unchanged(ino)

    def clean_is_durable(self) -> None:
        """Also after power loss the catalog will say that all ranges confirmed so far are clean.

        Until then no byte of an open file leaves the spool.
        """
        self._clean_is_durable = True

    def end_burst(self) -> None:
        """The burst is over, committed or failed."""
        self._in_flight.end()
        self._spool.unpin()

    def evict(self, target_bytes: int) -> None:
        """Drop clean content until the spool holds at most `target_bytes`, as far as it can."""
        while self._spool.used_bytes > target_bytes:
            # Files in use stay in the list, so ask for that many more.
            rows = self._catalog.clean_staged(_EVICT_BATCH + len(self._files))
            closed = [row for row in rows if row.ino not in self._files]
            for row in closed:
                self._drop_clean(row)
                if self._spool.used_bytes <= target_bytes:
                    break
            if not closed:
                break
        # The bytes go at once here, so the catalog that is found after a crash must not need them;
        # and a burst may be about to read them, of a file that goes to tape whole.
        may_go = self._clean_is_durable and not self._spool.pinned
        if self._spool.used_bytes > target_bytes and may_go:
            for file in self._files.values():
                self._punch_clean(file)
        self.admission.room_was_made()

    # -- asking

    def state(self, ino: int) -> FileState:
        """Where the bytes of `ino` are."""
        file = self._files.get(ino)
        row = None if file else self._catalog.load_staged(ino)
        dirty = bool(file.dirty if file else row and row.dirty)
        if dirty:
            touched = file.touched_ns if file else row.touched_ns if row else 0
            settling = self._clock_ns() - touched < self._config.settle_s * 1e9
            writing = self.is_open_for_writing(ino)
            return FileState.STAGED if writing or settling else FileState.RESIDENT
        resident = file.resident if file else RangeSet(row.resident if row else ())
        return clean_state(resident, self._catalog.inode(ino).size)

    def statfs(self) -> tuple[int, int]:
        """Total and free bytes, as df shows them."""
        free = self._account.free_bytes()
        total = self._account.total_bytes
        return (total if total is not None else free + self._account.written_bytes), free

    # -- inside

    def _file(self, ino: int) -> OpenFile:
        file = self._files.get(ino)
        if file is None:
            file = OpenFile(self._catalog.inode(ino), self._catalog.load_staged(ino))
            self._files[ino] = file
        return file

    def _fd(self, file: OpenFile) -> int:
        if file.fd < 0:
            file.fd = self._spool.open(file.inode.ino, is_new=not file.resident)
        return file.fd

    def _close(self, file: OpenFile) -> None:
        if file.unsaved:
            self.save(file)
        self.arrivals.complete(file.inode.ino)
        if file.fd >= 0:
            os.close(file.fd)
            file.fd = -1
            if not file.resident:
                # Not before: what is written through a descriptor of a deleted file is lost.
                self._spool.remove(file.inode.ino)
        del self._files[file.inode.ino]

    def _drop_clean(self, row: Staged) -> None:
        self._spool.used_bytes -= RangeSet(row.resident).total_bytes
        self._catalog.delete_staged(row.ino)
        self._spool.remove(row.ino)

    def _punch_clean(self, file: OpenFile) -> None:
        clean = file.resident.without(file.dirty)
        if not clean:
            return
        fd = self._fd(file)
        for start, end in clean:
            punch(fd, start, end)
            file.resident.remove(start, end)
        self._spool.used_bytes -= clean.total_bytes
        file.unsaved = True
