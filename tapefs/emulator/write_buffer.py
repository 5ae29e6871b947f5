"""The emulated drive's write buffer: what it reported good and has not written yet.

This is what a power cut takes away, and why only a synchronising flush proves anything. Record
storage is recycled: a record is copied once, into memory that was in use before.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Final

from tapefs.emulator import tap

if TYPE_CHECKING:
    from tapefs.emulator.medium import VirtualCartridge


# What one object costs beside its data, so that a flood of tiny records fills the buffer too.
_OBJECT_BYTES: Final = 128
# Records that go to the medium together: a drive empties its buffer in runs, and whoever waits for
# the interpreter after each system call waits once for all of them.
_RUN_BYTES: Final = 4 << 20
_RUN_COUNT_MAX: Final = 64


class WriteBuffer:
    """Records and filemarks that follow, in order, after the last object on the cartridge.

    The bound is the caller's: it calls `write_oldest` until there is room, judged by
    `held_bytes`. `object_count`, `filemark_count` and `data_bytes` say what is in it;
    `span_bytes` what that will take in the image.
    """

    def __init__(self) -> None:
        self._items: deque[bytearray | int] = deque()
        self._recycled: list[bytearray] = []
        self.object_count = 0
        self.filemark_count = 0
        self.data_bytes = 0
        self.span_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def held_bytes(self) -> int:
        """Memory in use, roughly."""
        return self.data_bytes + _OBJECT_BYTES * len(self._items)

    def add_record(self, data: memoryview) -> None:
        """Take a copy of one record."""
        recycled = self._recycled
        slot = recycled.pop() if recycled else bytearray()
        if len(slot) != len(data):
            slot = bytearray(len(data))
        memoryview(slot)[:] = data
        self._items.append(slot)
        self._count(1, 0, len(data), tap.record_span_bytes(len(data)))

    def add_filemarks(self, count: int) -> None:
        """Take `count` filemarks, 1 or more."""
        self._items.append(count)
        self._count(count, count, 0, count * tap.WORD_BYTES)

    def run_length(self, room_bytes: int) -> int:
        """How many `write_oldest` can take at once where the medium has so much room: some
        records, or a run of filemarks as one. 0: the oldest does not fit. Not for an empty buffer.
        """
        oldest = self._items[0]
        if isinstance(oldest, int):
            return int(oldest * tap.WORD_BYTES <= room_bytes)
        count = span_bytes = 0
        for item in itertools.islice(self._items, _RUN_COUNT_MAX):
            if isinstance(item, int):
                break
            span_bytes += tap.record_span_bytes(len(item))
            if span_bytes > room_bytes or (count and span_bytes > _RUN_BYTES):
                break
            count += 1
        return count

    def write_oldest(self, cartridge: VirtualCartridge, length: int) -> None:
        """Move so many of the oldest, at most what `run_length` said, to the end of `cartridge`.

        Raises MediumFailed, and then the buffer is as before.
        """
        oldest = self._items[0]
        if isinstance(oldest, int):
            cartridge.append_filemarks(oldest)
            self._items.popleft()
            self._count(-oldest, -oldest, 0, -oldest * tap.WORD_BYTES)
            return
        records = [
            item for item in itertools.islice(self._items, length) if not isinstance(item, int)
        ]
        cartridge.append_records(records)
        for record in records:
            self._items.popleft()
            self._recycled.append(record)
            self._count(-1, 0, -len(record), -tap.record_span_bytes(len(record)))

    def discard(self) -> int:
        """Lose everything; how many bytes and filemarks that was (as INFORMATION counts them)."""
        lost = self.data_bytes + self.filemark_count
        self._items.clear()
        self._recycled.clear()
        self._count(-self.object_count, -self.filemark_count, -self.data_bytes, -self.span_bytes)
        return lost

    def _count(self, objects: int, filemarks: int, data_bytes: int, span_bytes: int) -> None:
        self.object_count += objects
        self.filemark_count += filemarks
        self.data_bytes += data_bytes
        self.span_bytes += span_bytes
