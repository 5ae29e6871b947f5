"""Sets of byte ranges: which bytes of a file are in the spool, and which are not on tape yet.

A `RangeSet` keeps disjoint, sorted, half-open ranges. Nearly every file has one range, and nearly
every change extends the last one; those cases take constant time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Stands for "to the end of the file, wherever that is": larger than any file offset.
END_OF_FILE: Final = 1 << 63


class RangeSet:
    """A set of byte offsets stored as disjoint, sorted, half-open ranges [start, end)."""

    __slots__ = ("_ends", "_starts", "total_bytes")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total_bytes = 0
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"RangeSet({list(self)!r})"

    def copy(self) -> RangeSet:
        """An independent copy."""
        twin = RangeSet()
        twin._starts = self._starts.copy()
        twin._ends = self._ends.copy()
        twin.total_bytes = self.total_bytes
        return twin

    def add(self, start: int, end: int) -> None:
        """Put [start, end) into the set, joining it with what it touches."""
        if start >= end:
            return
        if not self._ends or start > self._ends[-1]:
            self._starts.append(start)
            self._ends.append(end)
            self.total_bytes += end - start
            return
        if start == self._ends[-1]:
            self._ends[-1] = end
            self.total_bytes += end - start
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
            self.total_bytes -= sum(self._ends[low:high]) - sum(self._starts[low:high])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]
        self.total_bytes += end - start

    def remove(self, start: int, end: int) -> None:
        """Take [start, end) out of the set."""
        if start >= end or not self._starts:
            return
        low = bisect_right(self._ends, start)
        high = bisect_left(self._starts, end)
        if low >= high:
            return
        first, last = self._starts[low], self._ends[high - 1]
        self.total_bytes -= sum(self._ends[low:high]) - sum(self._starts[low:high])
        starts: list[int] = []
        ends: list[int] = []
        if first < start:
            starts.append(first)
            ends.append(start)
        if end < last:
            starts.append(end)
            ends.append(last)
        self._starts[low:high] = starts
        self._ends[low:high] = ends
        self.total_bytes += sum(ends) - sum(starts)

    def covers(self, start: int, end: int) -> bool:
        """True when every byte of [start, end) is in the set."""
        if start >= end:
            return True
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and self._ends[index] >= end

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of the set inside [start, end), in order."""
        low = bisect_right(self._ends, start)
        high = bisect_left(self._starts, end)
        return [(max(start, self._starts[i]), min(end, self._ends[i])) for i in range(low, high)]

    def without(self, other: RangeSet) -> RangeSet:
        """A new set: the bytes of this one that are not in `other`."""
        result = self.copy()
        for start, end in other:
            result.remove(start, end)
        return result

    def as_pairs(self) -> list[tuple[int, int]]:
        """The ranges as a list, for storage."""
        return list(self)
