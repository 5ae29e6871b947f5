"""Filling records: bytes in, whole records out, each with its CRC-32C.

Buffers are `array('B')` of exactly one record, because that is what the USB layer hands to libusb
without a copy. They go round: the drive gives a buffer back when the record is written.
"""

from __future__ import annotations

from array import array
from collections import deque
from queue import Empty, SimpleQueue
from typing import Final

import crc32c

Record = array  # of one record's bytes, typecode 'B'


def _crc32c(record: memoryview) -> bytes:
    # Without letting go of the interpreter: 512 KiB take 25 us, less than it takes to get it back
    # from the thread that gives records to the drive.
    return crc32c.crc32c(record, gil_release_mode=0).to_bytes(4, "big")


class RecordBuffers:
    """A pool of record buffers that two threads share: one fills, the other writes."""

    def __init__(self, record_bytes: int) -> None:
        self.record_bytes: Final = record_bytes
        self._free: SimpleQueue[array[int]] = SimpleQueue()

    def take(self) -> array[int]:
        """A buffer, with whatever its last user left in it."""
        try:
            return self._free.get_nowait()
        except Empty:
            return array("B", bytes(self.record_bytes))

    def give_back(self, record: array[int]) -> None:
        """The record has been written; its buffer may be filled again."""
        self._free.put(record)


class RecordPacker:
    """Packs a tape file's bytes into records. One thread at a time.

    `position` is the number of bytes packed so far, `crcs` the CRC-32C of each full record, four
    bytes big-endian each.
    """

    def __init__(self, buffers: RecordBuffers) -> None:
        self._buffers = buffers
        self.record_bytes = buffers.record_bytes
        self.position = 0
        self.crcs = bytearray()
        self._fill = 0
        self._full: list[array[int]] = []
        self._record = buffers.take()
        self._view = memoryview(self._record)
        # Those that follow, where `spaces` has given them out already.
        self._following: deque[array[int]] = deque()

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`."""
        length = len(data)
        if length <= self.record_bytes - self._fill:
            self._view[self._fill : self._fill + length] = data
            self.advance(length)
            return
        rest = memoryview(data)
        while rest:
            (space,) = self.spaces(len(rest), 1)
            space[:] = rest[: len(space)]
            rest = rest[len(space) :]
            self.advance(len(space))

    def spaces(self, wanted: int, record_count: int) -> list[memoryview]:
        """Where the next bytes go, record by record: up to `wanted`, 1 or more, and no further
        than so many records, this one included."""
        found = [self._view[self._fill : min(self._fill + wanted, self.record_bytes)]]
        wanted -= len(found[0])
        while wanted and len(found) < record_count:
            if len(self._following) < len(found):
                self._following.append(self._buffers.take())
            view = memoryview(self._following[len(found) - 1])
            found.append(view[: min(wanted, self.record_bytes)])
            wanted -= len(found[-1])
        return found

    def advance(self, length: int) -> None:
        """`length` bytes of the first that `spaces` gave, and `advance` has not had, are filled."""
        self._fill += length
        self.position += length
        if self._fill == self.record_bytes:
            self.crcs += _crc32c(self._view)
            self._full.append(self._record)
            following = self._following
            self._record = following.popleft() if following else self._buffers.take()
            self._view = memoryview(self._record)
            self._fill = 0

    def take_full(self) -> list[array[int]]:
        """The records that became full since the last call."""
        full, self._full = self._full, []
        return full

    def finish(self) -> None:
        """Nothing follows. The last byte must have ended a record exactly."""
        assert self._fill == 0, "a tape file ends with a whole record"
        self._buffers.give_back(self._record)
