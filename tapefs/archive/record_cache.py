"""Recalled records, shared by all readers: the last ones in memory, more of them on disk.

What is on tape never changes, so nothing here is ever out of date, and a hundred small files that
lie in one record are read with it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapefs.archive.record_store import RecordStore
    from tapefs.archive.whole_file_checks import Key


class RecordCache:
    """Records that were found right. For the trio thread, but for `keep`."""

    def __init__(self, count_max: int, store: RecordStore) -> None:
        """At most `count_max` records in memory; `store` keeps more of them on disk."""
        self._count_max = count_max
        self._records: OrderedDict[Key, memoryview] = OrderedDict()
        self._store = store

    @property
    def record_count(self) -> int:
        """How many records are in memory."""
        return len(self._records)

    def find(self, key: Key) -> memoryview | None:
        """The record, if it is in memory."""
        data = self._records.get(key)
        if data is not None:
            self._records.move_to_end(key)
        return data

    def fetch(self, key: Key, crc: bytes) -> memoryview | None:
        """The record, if it is in memory or, with this CRC-32C, on disk."""
        data = self.find(key)
        if data is None and (data := self._store.read(key, crc)) is not None:
            self.add(key, data)
        return data

    def add(self, key: Key, data: memoryview) -> None:
        """Take a record that was read and found right."""
        self._records[key] = data
        self._records.move_to_end(key)
        while len(self._records) > self._count_max:
            self._records.popitem(last=False)

    def keep(self, sequence: int, record: int, data: memoryview) -> None:
        """Put a copy of a record on disk while there is room for it. In a worker."""
        self._store.write((sequence, record), data)
