"""The emulated drive's write buffer: what it reported good and has not written yet.

This is what a power cut takes away, and why only a synchronising flush proves anything. Record
storage is recycled: a record is copied once, into memory that was in use before.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from tapefs.emulator import tap

if TYPE_CHECKING:
    from tapefs.emulator.medium import VirtualCartridge


# What one object costs beside its data, so that a flood of tiny records fills the buffer too.
_OBJECT_BYTES: Final = 128


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

    def oldest_span_bytes(self) -> int:
        """What the next `write_oldest` will add to the image. The buffer must not be empty."""
        item = self._items[0]
        return item * tap.WORD_BYTES if isinstance(item, int) else tap.record_span_bytes(len(item))

    def write_oldest(self, cartridge: VirtualCartridge) -> int:
        """Move the oldest record, or run of filemarks, to the end of `cartridge`; its span there.

        Raises MediumFailed, and then the buffer is as before.
        """
        item = self._items[0]
        span_bytes = self.oldest_span_bytes()
        if isinstance(item, int):
            cartridge.append_filemarks(item)
            self._count(-item, -item, 0, -span_bytes)
        else:
            cartridge.append_record(item)
            self._count(-1, 0, -len(item), -span_bytes)
            self._recycled.append(item)
        self._items.popleft()
        return span_bytes

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
