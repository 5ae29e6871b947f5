"""Orders that nobody can find who has to go on while he looks: what an order is judged by."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Final

from tapefs.archive.recall_order import recall_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.lane_simulation import Machine
    from tapefs.archive.motion_model import Place
    from tapefs.archive.recall_order import Span

# Places that a file might be moved behind, by how near they are.
_NEIGHBOURS: Final = 10
_SEGMENT_MAX: Final = 3
_ROUNDS_MAX: Final = 30


def improved_order(machine: Machine, files: Sequence[Span]) -> list[int]:
    """The shipped order for files that are all known, after up to three files in a row were moved
    elsewhere for as long as that saved anything (or-opt).
    """
    place, locate_s = machine.tape.place, machine.tape.locate_s
    starts = [place(start) for start, _ in files]
    ends = [place(end) for _, end in files]
    head = place(0)
    order = recall_order(files, 0, machine.tape)
    step: list[list[float]] = [[locate_s(end, start) for start in starts] for end in ends]
    step.append([locate_s(head, start) for start in starts])
    return _Tour(order, step).improved()


def best_s(machine: Machine, files: Sequence[Span]) -> float:
    """What the best of all orders takes from the beginning of the tape; for a dozen files."""
    place, locate_s = machine.tape.place, machine.tape.locate_s
    starts = [place(start) for start, _ in files]
    steps = [[locate_s(place(end), start) for start in starts] for _, end in files]
    # By the set of files read, as bits, and the last of them: the least seconds of motion.
    ways = {(1 << n, n): locate_s(place(0), start) for n, start in enumerate(starts)}
    for _ in range(len(files) - 1):
        further: dict[tuple[int, int], float] = {}
        for (read, last), seconds in ways.items():
            for n, step_s in enumerate(steps[last]):
                if not read >> n & 1:
                    key = (read | 1 << n, n)
                    further[key] = min(seconds + step_s, further.get(key, math.inf))
        ways = further
    return min(ways.values()) + sum(machine.transfer_s(end - start) for start, end in files)


class _Tour:
    """A way through all places that begins at the head, which is number -1."""

    def __init__(self, order: Sequence[int], step: list[list[float]]) -> None:
        self._count = count = len(order)
        self._step = step
        # Behind the last one is `count`, to which every way is free.
        self._next = dict(zip([-1, *order], [*order, count], strict=True))
        self._before = {b: a for a, b in self._next.items()}
        self._near = [self._nearest(to) for to in range(count)]

    def _nearest(self, to: int) -> list[int]:
        others = (at for at in range(-1, self._count) if at != to)
        return heapq.nsmallest(_NEIGHBOURS, others, key=lambda at: self._step[at][to])

    def improved(self) -> list[int]:
        """Move segments until nothing is saved any more."""
        for _ in range(_ROUNDS_MAX):
            if not sum(self._move_from(first) for first in range(self._count)):
                break
        order, at = [], self._next[-1]
        while at != self._count:
            order.append(at)
            at = self._next[at]
        return order

    def _cost(self, at: int, to: int) -> float:
        return 0.0 if to == self._count else self._step[at][to]

    def _move_from(self, first: int) -> bool:
        """Move the best of the segments that begin with `first`."""
        segment: list[int] = []
        last = first
        while last != self._count and len(segment) < _SEGMENT_MAX:
            segment.append(last)
            before, behind = self._before[first], self._next[last]
            freed = self._cost(before, first) + self._cost(last, behind)
            freed -= self._cost(before, behind)
            saved, at = max(
                (
                    (freed - self._added(at, first, last), at)
                    for at in self._near[first]
                    if at not in segment and at != before
                ),
                default=(0.0, -1),
            )
            if saved > 1e-9:
                self._link(before, behind)
                self._link(last, self._next[at])
                self._link(at, first)
                return True
            last = behind
        return False

    def _added(self, at: int, first: int, last: int) -> float:
        following = self._next[at]
        added = self._cost(at, first) + self._cost(last, following)
        return added - self._cost(at, following)

    def _link(self, a: int, b: int) -> None:
        self._next[a], self._before[b] = b, a


def merged_s(machine: Machine, lists: Sequence[Sequence[Span]], width: int) -> float:
    """Seconds for files of which each reader asks for the next when it has the last, by the best
    merge that a search finds which knows all lists and keeps `width` ways at each step.
    """
    place, locate_s = machine.tape.place, machine.tape.locate_s
    places = [[(place(start), place(end)) for start, end in files] for files in lists]
    counts = [len(files) for files in lists]
    front = [(0.0, place(0), (0,) * len(lists))]
    for _ in range(sum(counts)):
        ways: dict[tuple[int, tuple[int, ...]], tuple[float, Place, tuple[int, ...]]] = {}
        for seconds, head, taken in front:
            for reader, number in enumerate(taken):
                if number == counts[reader]:
                    continue
                start, end = places[reader][number]
                now_taken = (*taken[:reader], number + 1, *taken[reader + 1 :])
                way = (seconds + locate_s(head, start), end, now_taken)
                known = ways.get((reader, now_taken))
                if known is None or way[0] < known[0]:
                    ways[reader, now_taken] = way
        front = sorted(ways.values(), key=lambda way: way[0])[:width]
    read_s = sum(machine.transfer_s(end - start) for files in lists for start, end in files)
    return front[0][0] + read_s
