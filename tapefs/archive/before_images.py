"""What a file was while it is copied to tape, although somebody writes over it.

A file whose hashes are taken beside the copy, or were when it arrived, goes to tape as those bytes,
or its hashes would be wrong. Who writes over what has not been read yet first puts the old bytes
aside, in a local file without a name; they are read from there.
"""

from __future__ import annotations

import enum
import errno
import os
import tempfile
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from tapefs.archive.ranges import RangeSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# Bytes put aside at a time.
_PIECE_BYTES = 1 << 20


class Reader(enum.Enum):
    """Who reads the file; each from its beginning to its end."""

    COPY = "copy"
    HASH = "hash"


class BeforeImages:
    """The old bytes of the one spool file that is copied now.

    `preserve` is for the trio thread, `begin` and `end` for the worker that copies.
    """

    def __init__(self, directory: Path) -> None:
        """`directory` is where the bytes are put aside."""
        self._directory = directory
        # One for each reader, so that they do not wait for each other; who changes anything takes
        # both, in this order.
        self._locks = {reader: threading.Lock() for reader in Reader}
        self._ino: int | None = None
        # What has not been read yet: from here, for each reader, to there.
        self._starts = dict.fromkeys(Reader, 0)
        self._end = 0
        self._aside = RangeSet()
        self._file: IO[bytes] | None = None
        # Why some old bytes of the file that was copied last could not be put aside, if so.
        self.failure: OSError | None = None

    def begin(self, ino: int, length: int, hashed_bytes: int) -> None:
        """The first `length` bytes of `ino` stay as they are now for who reads them.

        Of these, `hashed_bytes` need not be hashed any more.
        """
        with self._locks[Reader.COPY], self._locks[Reader.HASH]:
            assert self._ino is None, "two files are copied at once"
            self._ino, self._end, self.failure = ino, length, None
            self._starts = {Reader.COPY: 0, Reader.HASH: hashed_bytes}

    def is_copied(self, ino: int) -> bool:
        """Whether `ino` is the file of `begin`. For the worker that copies."""
        return ino == self._ino

    def end(self) -> None:
        """Nothing more is read. What was put aside is gone."""
        with self._locks[Reader.COPY], self._locks[Reader.HASH]:
            self._ino, self._aside = None, RangeSet()
            if self._file is not None:
                self._file.close()
                self._file = None

    def preserve(self, ino: int, fd: int, start: int, end: int) -> None:
        """Bytes [start, end) of `ino`, open at `fd`, are about to change.

        Where there is no room to put them aside, the copy gets the new ones: its hash shows it.
        """
        if ino != self._ino:
            return
        with self._locks[Reader.COPY], self._locks[Reader.HASH]:
            if ino != self._ino:
                return
            unread = max(start, min(self._starts.values())), min(end, self._end)
            changing = RangeSet([unread])
            for first, last in changing.without(self._aside):
                try:
                    self._put_aside(fd, first, last)
                except OSError as exc:
                    self.failure = exc
                    return
                self._aside.add(first, last)

    def _put_aside(self, fd: int, start: int, end: int) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
        while start < end:
            data = os.pread(fd, min(end - start, _PIECE_BYTES), start)
            if os.pwrite(self._file.fileno(), data, start) != len(data) or not data:
                raise OSError(errno.EIO, "a local file gave or took only a part")
            start += len(data)

    @contextmanager
    def reading(
        self, reader: Reader, ino: int, spaces: Sequence[memoryview], offset: int
    ) -> Iterator[None]:
        """Inside, fill `spaces` with the bytes of `ino` from `offset` on; old ones are put in
        afterwards. A reader reads in order: what is in front of `offset` it will not ask for again.
        """
        with self._locks[reader]:
            yield
            if ino != self._ino:
                return
            for space in spaces:
                self._starts[reader] = end = offset + len(space)
                for start, stop in self._aside.within(offset, end):
                    assert self._file is not None, "what was put aside is in a file"
                    os.preadv(self._file.fileno(), [space[start - offset : stop - offset]], start)
                offset = end
