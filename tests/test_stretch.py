"""Records in one piece of memory: their parts, their memory, and the cache that forgets them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import pytest

from tapefs.archive.record_cache import RecordCache
from tapefs.archive.stretch import Stretch, StretchMemory

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD_BYTES = 64
COUNT = 8


def stretch(first: int, count: int, sequence: int = 1) -> Stretch:
    """Each byte is that of its place in the tape file, cut to eight bits."""
    base = first * RECORD_BYTES
    data = bytes((base + at) % 251 for at in range(count * RECORD_BYTES))
    return Stretch(sequence, first, memoryview(data), RECORD_BYTES)


def test_parts_are_those_of_the_tape_file() -> None:
    whole = stretch(0, 12).data
    three = stretch(4, 3)
    base, end = 4 * RECORD_BYTES, 7 * RECORD_BYTES
    for start in range(base, end + 1):
        for stop in range(start, end + 100, 7):
            assert three.part(start, stop) == whole[start : min(stop, end)]
    assert three.part(base - 50, base + 1) == whole[base : base + 1], "what is before is not in it"
    assert (three.first, three.last, three.record_count) == (4, 6, 3)
    assert three.records() == [whole[n * RECORD_BYTES :][:RECORD_BYTES] for n in (4, 5, 6)]
    head = three.head(2)
    assert (head.sequence, head.first, head.last) == (1, 4, 5)
    assert head.data == three.data[: 2 * RECORD_BYTES]


def address(data: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


@pytest.mark.parametrize("count", [COUNT // 2 + 1, COUNT])
def test_memory_is_used_again_when_nobody_can_see_it_any_more(count: int) -> None:
    memory = StretchMemory(RECORD_BYTES, COUNT)
    first = memory.stretch(1, 0, count)
    place = address(first.data)
    seen = first.part(70, 80)[2:4]
    seen[:] = b"ab"
    del first
    second = memory.stretch(1, count, count)
    second.data[:] = bytes(len(second.data))
    assert seen.tobytes() == b"ab", "a reader still looks at it"
    assert address(second.data) != place
    del seen
    third = memory.stretch(1, 2 * count, count)
    assert address(third.data) == place
    assert third.record_count == count


def test_a_short_stretch_takes_no_more_memory_than_it_needs() -> None:
    memory = StretchMemory(RECORD_BYTES, COUNT)
    short = memory.stretch(1, 0, COUNT // 2)
    assert len(short.data) == COUNT // 2 * RECORD_BYTES
    assert memoryview(short.data.obj).nbytes == len(short.data)


class NoStore:
    """There is nothing on disk."""

    def read(self, _key: tuple[int, int], _crc: bytes) -> None:
        return None


def cache(count_max: int) -> RecordCache:
    store: Any = NoStore()
    return RecordCache(count_max, store)


def held(cache: RecordCache, records: range) -> Mapping[int, Stretch]:
    found = {record: cache.find((1, record)) for record in records}
    return {record: stretch for record, stretch in found.items() if stretch is not None}


def test_the_stretch_that_nobody_asked_for_longest_is_forgotten_whole() -> None:
    records = cache(12)
    for first in (0, 4, 8):
        records.add(stretch(first, 4))
    assert records.record_count == 12
    assert records.find((1, 2)) is not None
    records.add(stretch(12, 1))
    assert records.record_count == 9, "all of a stretch goes, as its memory does"
    assert set(held(records, range(20))) == {0, 1, 2, 3, 8, 9, 10, 11, 12}


def test_a_record_read_twice_is_the_later_one_until_that_is_forgotten() -> None:
    records = cache(6)
    old, new = stretch(0, 4), stretch(2, 2)
    records.add(old)
    records.add(new)
    assert held(records, range(4)) == {0: old, 1: old, 2: new, 3: new}
    records.find((1, 2))
    records.add(stretch(10, 4))
    assert held(records, range(4)) == {2: new, 3: new}
    assert records.record_count == 6


def test_what_came_last_stays_however_large_it_is() -> None:
    records = cache(2)
    records.add(stretch(0, 1))
    records.add(stretch(1, 8))
    assert list(held(records, range(20))) == list(range(1, 9))
