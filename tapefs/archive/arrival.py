"""Bytes on their way into the spool, hashed while they arrive.

SHA-256 takes longer than all else that is done to a byte on its way to tape, and while a large file
arrives, a second core has nothing to do. So a thread hashes what is appended to a file, in order.
Who writes faster than that waits for it (`wait_for_hashing`): what is left would be read again and
hashed while the drive is fed. With state and cartridge in memory that wait saves processor time
(2.51 s per GiB instead of 2.62) and all ends a little sooner; with both on a disk all ends a tenth
later. What is written over, cut or extended by a hole is not hashed here at all: then, and for
small files, the hash is taken when they go to tape.

Nothing rests on that bookkeeping being right. With the SHA-256 an xxh128 is taken of the same
bytes, and when the file is copied to tape, another one of what is copied. Only where the two agree
does the SHA-256 count (`KnownHashes`). Whoever writes over the file meanwhile does not disturb the
copy (`BeforeImages`), so what else can make them differ is a spool that does not give back what
was written to it. That is more than a hash taken from the spool can find.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio
import xxhash

from tapefs.archive.before_images import BeforeImages, Reader
from tapefs.errors import SpoolFull, SpoolMismatch
from tapefs.volume.hashing import KnownHashes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tapefs.archive.open_file import OpenFile
    from tapefs.archive.spool import Spool
    from tapefs.entries import Inode

# Files are hashed on arrival from this size on: less costs more to note than to hash.
FROM_BYTES: Final = 1 << 20
# What could not be kept up with is read from the spool in pieces of this size.
_READ_BYTES: Final = 1 << 20
# Files of which the hash is known or under way; the oldest are forgotten.
_FILES_MAX: Final = 4096


class _Hash:
    """SHA-256 and xxh128 of the first `hashed` bytes of a file of which `end` were appended."""

    __slots__ = ("end", "hashed", "ino", "is_copied", "is_void", "sha256", "xxh128")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.end = self.hashed = 0
        # The bytes are not those any more that were to be hashed, or cannot be read.
        self.is_void = False
        # The file is copied to tape: nothing is added to it any more, and it looks as it was.
        self.is_copied = False
        self.sha256 = hashlib.sha256()
        self.xxh128 = xxhash.xxh3_128()

    def update(self, data: bytes | memoryview) -> None:
        self.sha256.update(data)
        self.xxh128.update(data)
        self.hashed += len(data)


class Arrivals:
    """Puts bytes into spool files. For the trio thread, but for `copying`."""

    def __init__(
        self, spool: Spool, make_room_on_disk: Callable[[], bool], unhashed_bytes_max: int
    ) -> None:
        """At most `unhashed_bytes_max` wait in memory to be hashed; what has no room there is read
        from the spool later."""
        self._spool = spool
        self._make_room_on_disk = make_room_on_disk
        self._unhashed_bytes_max = unhashed_bytes_max
        self._unhashed_bytes = 0
        self._is_closed = False
        # Over these, and over who decides that a hash has come to its end; told when much was
        # hashed.
        self._lock = threading.Condition()
        self._hashes: OrderedDict[int, _Hash] = OrderedDict()
        self.images = BeforeImages(spool.directory)
        # Its thread is started by the first file that is large enough.
        self._hasher = ThreadPoolExecutor(1, "arrival")
        # What that thread reads into.
        self._buffer: memoryview | None = None

    def close(self) -> None:
        """Nothing arrives any more, and nobody waits."""
        with self._lock:
            self._is_closed = True
            self._lock.notify_all()
        self._hasher.shutdown(cancel_futures=True)

    def is_behind(self, ino: int, length: int) -> bool:
        """Whether so many bytes more of `ino` would have to be read again to be hashed."""
        return self._unhashed_bytes + length > self._unhashed_bytes_max and ino in self._hashes

    async def wait_for_hashing(self) -> None:
        """Return when most of what may wait to be hashed has been: in milliseconds."""
        await trio.to_thread.run_sync(self._wait_for_hashing)

    def _wait_for_hashing(self) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._is_closed or self._has_much_room())

    def _has_much_room(self) -> bool:
        # Each wait costs two ways between threads, so it is for much.
        return self._unhashed_bytes <= self._unhashed_bytes_max // 4

    def put(self, file: OpenFile, offset: int, data: bytes) -> None:
        """Write all of `data` to the open spool file of `file`. Raises SpoolFull."""
        ino, size, end = file.inode.ino, file.inode.size, offset + len(data)
        found = self._hashes.get(ino)
        if found is not None and offset != found.end:
            self.forget(ino)  # before the bytes change, so that no hash of new ones counts
            found = None
        self.images.preserve(ino, file.fd, offset, end)
        self._write(file.fd, offset, data)
        if offset == size and offset < FROM_BYTES <= end and file.resident.covers(0, offset):
            found = self._begin(ino)
        if found is not None:
            self._append(found, offset, data)

    def _write(self, fd: int, offset: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(fd, data[done:] if done else data, offset + done)
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                if not self._make_room_on_disk():
                    raise SpoolFull("the disk that holds the spool is full") from exc

    def forget(self, ino: int) -> None:
        """What is in the spool of `ino` is not, or soon will not be, what was hashed."""
        found = self._hashes.pop(ino, None)
        if found is not None:
            found.is_void = True

    def complete(self, ino: int) -> None:
        """Nobody writes to `ino` any more: hash what is left of it."""
        found = self._hashes.get(ino)
        if found is not None and found.hashed < found.end:
            self._hasher.submit(self._hash, found, found.end, b"")

    def knows(self, ino: int) -> bool:
        """Whether hashes of the file were begun. For a worker too."""
        return ino in self._hashes

    @contextmanager
    def copying(self, inode: Inode) -> Iterator[KnownHashes | None]:
        """Inside, the file is copied to tape whole: its hashes, if they were begun.

        Then `images` shows the file as it was when it was hashed. For a worker, one at a time.
        """
        found = self._hashes.get(inode.ino)
        if found is None:
            yield None
            return
        self.images.begin(inode.ino, inode.size, found.hashed)
        try:
            # What was written before `begin` has made the hash void, and all later is preserved.
            if not self._has_ended(found, inode.size):
                self.images.end()
                yield None
                return
            digests = self._hasher.submit(self._finish, found)
            yield KnownHashes(digests.result)
        except SpoolMismatch:
            self.forget(inode.ino)  # next time it goes to tape as it is then
            raise
        finally:
            self.images.end()

    def _has_ended(self, found: _Hash, size: int) -> bool:
        """Whether the hash is going to be that of `size` bytes; nothing is added to it then."""
        with self._lock:
            found.is_copied = found.end == size and not found.is_void
            return found.is_copied

    def _begin(self, ino: int) -> _Hash:
        self.forget(ino)
        found = self._hashes[ino] = _Hash(ino)
        if len(self._hashes) > _FILES_MAX:
            self._hashes.popitem(last=False)[1].is_void = True
        return found

    def _append(self, found: _Hash, offset: int, data: bytes) -> None:
        length = len(data)
        with self._lock:
            if found.is_copied:
                self._hashes.pop(found.ino, None)
                return
            found.end = offset + length
            if self._unhashed_bytes + length > self._unhashed_bytes_max:
                return  # read from the spool, before what comes next
            self._unhashed_bytes += length
        self._hasher.submit(self._hash, found, offset, data)

    # -- in the hashing thread

    def _hash(self, found: _Hash, offset: int, data: bytes) -> None:
        try:
            if found.hashed < offset:
                self._catch_up(found, offset)
            if found.hashed == offset and (found.is_copied or not found.is_void):
                found.update(data)
        finally:
            with self._lock:
                self._unhashed_bytes -= len(data)
                if self._has_much_room():
                    self._lock.notify_all()

    def _catch_up(self, found: _Hash, end: int) -> None:
        """Hash up to `end` what is in the spool; less where that fails, or is not wanted."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(_READ_BYTES))
        with suppress(OSError), self._spool.reading(found.ino) as fd:
            while found.hashed < end and (found.is_copied or not found.is_void):
                piece = self._buffer[: end - found.hashed]
                with self.images.reading(Reader.HASH, found.ino, [piece], found.hashed):
                    length = os.preadv(fd, [piece], found.hashed)
                if length != len(piece):
                    break
                found.update(piece)

    def _finish(self, found: _Hash) -> tuple[bytes, bytes] | None:
        self._catch_up(found, found.end)
        if found.hashed != found.end:
            return None
        return found.sha256.digest(), found.xxh128.digest()
