"""Recalled records, shared by all readers: the last ones in memory, more of them on disk.

What is on tape never changes, so nothing here is ever out of date, and a hundred small files that
lie in one record are read with it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapefs.archive.record_store import RecordStore
    from tapefs.archive.stretch import Stretch
    from tapefs.archive.whole_file_checks import Key


class RecordCache:
    """Records that were found right. For the trio thread, but for `keep`."""

    def __init__(self, count_max: int, store: RecordStore) -> None:
        """At most `count_max` records in memory; `store` keeps more of them on disk."""
        self._count_max = count_max
        # Memory is let go of by the stretch, so that is what is forgotten.
        self._stretches: OrderedDict[Stretch, None] = OrderedDict()
        self._at: dict[Key, Stretch] = {}
        self._held_count = 0
        self._store = store

    @property
    def record_count(self) -> int:
        """How many records are in memory."""
        return len(self._at)

    def find(self, key: Key) -> Stretch | None:
        """The stretch that holds the record, if it is in memory."""
        stretch = self._at.get(key)
        if stretch is not None:
            self._stretches.move_to_end(stretch)
        return stretch

    def fetch(self, key: Key, crc: bytes) -> Stretch | None:
        """The stretch that holds the record, if it is in memory or, with this CRC-32C, on disk."""
        stretch = self.find(key)
        if stretch is None and (stretch := self._store.read(key, crc)) is not None:
            self.add(stretch)
        return stretch

    def add(self, stretch: Stretch) -> None:
        """Take records that were read and found right."""
        self._stretches[stretch] = None
        self._held_count += stretch.record_count
        for record in range(stretch.first, stretch.last + 1):
            self._at[stretch.sequence, record] = stretch
        while self._held_count > self._count_max and len(self._stretches) > 1:
            self._forget(self._stretches.popitem(last=False)[0])

    def keep(self, sequence: int, record: int, data: memoryview) -> None:
        """Put a copy of a record on disk while there is room for it. In a worker."""
        self._store.write((sequence, record), data)

    def _forget(self, stretch: Stretch) -> None:
        self._held_count -= stretch.record_count
        for record in range(stretch.first, stretch.last + 1):
            key = stretch.sequence, record
            if self._at[key] is stretch:
                del self._at[key]
