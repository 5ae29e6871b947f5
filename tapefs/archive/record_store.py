"""Recalled records on disk, while there is room: what was read once need not be read from tape.

One sparse file per tape file, each record where it stands in the tape file, under `recalled/`. A
hole is a record that is not here; so the files themselves say what they hold, and they outlive the
mount. Nothing is made durable and nothing in here is believed: a record counts if it has the
checksum that the tape view knows. So neither a crash nor power loss can make it wrong, and it may
be thrown away at any time, before anything in the spool is.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, OrderedDict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import crc32c

from tapefs import telemetry
from tapefs.archive.spool import CACHE_SHARE, punch
from tapefs.archive.stretch import Stretch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tapefs.archive.spool import Spool
    from tapefs.archive.whole_file_checks import Key


class RecordStore:
    """Records of one volume, the longest unused thrown away first. `write` is for a worker."""

    def __init__(self, directory: Path, record_bytes: int, spool: Spool) -> None:
        """Find out what `directory` holds; it is made when there is something to keep."""
        self._directory = directory
        self._record_bytes = record_bytes
        self._spool = spool
        # The records that are here, the one used last at the end; and how many per tape file.
        self._keys: OrderedDict[Key, None] = OrderedDict()
        self._counts: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._broken = False
        for path in _tape_files(directory):
            for record in _records_in(path, record_bytes):
                self._add((int(path.name), record))
        self.shrink()

    @property
    def used_bytes(self) -> int:
        """How much disk the records take."""
        return len(self._keys) * self._record_bytes

    def read(self, key: Key, crc: bytes) -> Stretch | None:
        """The record if it is here with this CRC-32C (big-endian), else None."""
        if key not in self._keys:
            return None
        stretch, whole = Stretch.fresh(*key, 1, self._record_bytes), False
        data = stretch.data
        with suppress(OSError), _opened(self._path(key[0]), os.O_RDONLY) as fd:
            whole = os.preadv(fd, [data], key[1] * self._record_bytes) == len(data)
        with self._lock:
            if not whole or crc32c.crc32c(data).to_bytes(4, "big") != crc:
                self._drop(key)
                return None
            if key in self._keys:
                self._keys.move_to_end(key)
        return stretch

    def write(self, key: Key, data: memoryview) -> None:
        """Keep a copy of a record that was found right, if there is room or can be made."""
        with self._lock:
            if self._broken or key in self._keys:
                return
            self._shrink_to(self._room_bytes() - len(data))
            if self.used_bytes + len(data) > self._room_bytes():
                return
        try:
            self._directory.mkdir(exist_ok=True)
            with _opened(self._path(key[0]), os.O_WRONLY | os.O_CREAT) as fd:
                whole = os.pwrite(fd, data, key[1] * self._record_bytes) == len(data)
        except OSError as exc:
            self._broken = True
            telemetry.event(telemetry.RECALLED_NOT_KEPT, logging.WARNING, reason=exc.strerror)
            return
        if whole:
            with self._lock:
                self._add(key)

    def shrink(self) -> None:
        """Throw away what takes room that the spool has use for. Costs nothing where it has not."""
        if self._keys and self.used_bytes > self._share_bytes():
            with self._lock:
                self._shrink_to(self._share_bytes())

    def clear(self) -> bool:
        """Throw everything away: the disk is full. False when there was nothing."""
        with self._lock:
            had_any = bool(self._keys)
            self._shrink_to(0)
        return had_any

    def _share_bytes(self) -> int:
        """What the spool leaves of the share of it that may hold what is on tape as well."""
        return int(self._spool.limit_bytes * CACHE_SHARE) - self._spool.used_bytes

    def _room_bytes(self) -> int:
        """What the records may take in all: what the spool may yet need stays free on disk."""
        disk = os.statvfs(self._directory.parent)
        free_bytes = disk.f_bavail * disk.f_frsize
        promised_bytes = self._spool.limit_bytes - self._spool.used_bytes
        return min(self._share_bytes(), self.used_bytes + free_bytes - promised_bytes)

    # -- under the lock

    def _add(self, key: Key) -> None:
        self._keys[key] = None
        self._counts[key[0]] += 1

    def _shrink_to(self, target_bytes: int) -> None:
        while self._keys and self.used_bytes > target_bytes:
            self._drop(next(iter(self._keys)))

    def _drop(self, key: Key) -> None:
        if key not in self._keys:
            return
        del self._keys[key]
        sequence, record = key
        self._counts[sequence] -= 1
        # Somebody else may have removed it, or the filesystem cannot make holes: then the record
        # takes its room a while longer.
        with suppress(OSError):
            if self._counts[sequence]:
                start = record * self._record_bytes
                with _opened(self._path(sequence), os.O_WRONLY) as fd:
                    punch(fd, start, start + self._record_bytes)
            else:
                del self._counts[sequence]
                self._path(sequence).unlink()

    def _path(self, sequence: int) -> Path:
        return self._directory / str(sequence)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _tape_files(directory: Path) -> list[Path]:
    """The files of records, the one changed last at the end; none where they cannot be had."""
    with suppress(OSError):
        files = [path for path in directory.iterdir() if path.name.isdigit()]
        return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))
    return []


def _records_in(path: Path, record_bytes: int) -> Iterator[int]:
    """The records of which a file has every byte, as far as its filesystem tells."""
    position = 0
    with suppress(OSError), _opened(path, os.O_RDONLY) as fd:
        while True:  # up to ENXIO, behind the last byte
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = os.lseek(fd, start, os.SEEK_HOLE)
            yield from range(-(-start // record_bytes), position // record_bytes)
