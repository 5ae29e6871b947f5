"""In which order places on tape are read: the order that takes the least time, nearly.

Pure. On a single track, or where the layout is not known, a sweep over the tape is the best there
is. On a serpentine tape the nearest place goes first, where near is what the drive reaches soon,
and of some that are near the one that has another near it. Over a thousand random files that was
within a tenth of a lower bound of what any order takes; docs/scheduling.md has the figures.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapefs.archive.motion_model import MotionModel, Place

# So many of the nearest places are compared by what lies near them, ...
_COMPARED: Final = 16
# ... which counts that much: the place after the next may be another by then. More than this made
# short lists slower.
_NEXT_WEIGHT: Final = 0.15
# So many places on either side along the tape are looked at when all are known beforehand.
_WITHIN_REACH: Final = 48
# So few are tried in every order.
_SEARCHED_MAX: Final = 10
# Behind so many there are enough on each wrap for block order to be as good.
_NEAREST_COUNT_MAX: Final = 4000
# Places with so few blocks between them are read in one go: to stop and go takes longer.
_SKIPPED_BLOCKS: Final = 8

# First block, and the block behind the last one.
Span = tuple[int, int]


def recall_order(spans: Sequence[Span], head_block: int | None, tape: MotionModel) -> list[int]:
    """Indexes of `spans` in the order in which to read them, each once.

    Everything is known beforehand: nobody starves and nothing has to be fair. `head_block` is where
    the head stands, None if nobody knows. May take seconds of CPU for thousands of spans.
    """
    chains = _chains(spans)
    places = [(tape.place(spans[chain[0]][0]), tape.place(spans[chain[-1]][1])) for chain in chains]
    head = tape.place(head_block or 0)
    if len(chains) <= _SEARCHED_MAX:
        best = _shortest(head, places, tape)
    else:
        orders = [list(range(len(chains))), list(reversed(range(len(chains))))]
        if tape.is_serpentine and len(chains) <= _NEAREST_COUNT_MAX:
            orders.append(_nearest_first(head, places, tape))
        best = min(orders, key=lambda order: _total_s(head, places, order, tape))
    return [index for number in best for index in chains[number]]


def next_recall(head: Place, waiting: Sequence[Place], tape: MotionModel) -> int:
    """Index into `waiting` (not empty) of the place to go to now, on a serpentine tape."""
    locate_s = tape.locate_s
    costs = [locate_s(head, place) for place in waiting]
    nearest = heapq.nsmallest(_COMPARED, range(len(waiting)), key=costs.__getitem__)

    def cost_with_next(index: int) -> float:
        place = waiting[index]
        onwards = (locate_s(place, waiting[other]) for other in nearest if other != index)
        return costs[index] + _NEXT_WEIGHT * min(onwards, default=0.0)

    return min(nearest, key=cost_with_next)


def _chains(spans: Sequence[Span]) -> list[list[int]]:
    """Spans that follow each other without a stop, in block order."""
    chains: list[list[int]] = []
    end = None
    for index in sorted(range(len(spans)), key=spans.__getitem__):
        start = spans[index][0]
        if end is None or start > end + _SKIPPED_BLOCKS:
            chains.append([])
            end = spans[index][1]
        chains[-1].append(index)
        end = max(end, spans[index][1])
    return chains


def _shortest(head: Place, places: Sequence[tuple[Place, Place]], tape: MotionModel) -> list[int]:
    """The best order there is, by the best ways to have read each set of places and end at one."""
    count = len(places)
    steps = [[tape.locate_s(behind, start) for start, _ in places] for _, behind in places]
    # By the set of places read, as bits, and the last of them: seconds, and the order.
    ways: dict[tuple[int, int], tuple[float, tuple[int, ...]]]
    ways = {(1 << n, n): (tape.locate_s(head, places[n][0]), (n,)) for n in range(count)}
    for _ in range(count - 1):
        further: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (read, last), (seconds, order) in ways.items():
            for n in range(count):
                if read >> n & 1:
                    continue
                way = (seconds + steps[last][n], (*order, n))
                key = (read | 1 << n, n)
                further[key] = min(way, further.get(key, way))
        ways = further
    return list(min(ways.values(), default=(0.0, ()))[1])


def _nearest_first(
    head: Place, places: Sequence[tuple[Place, Place]], tape: MotionModel
) -> list[int]:
    left = sorted((start.along, number) for number, (start, _) in enumerate(places))
    order: list[int] = []
    while left:
        middle = bisect_left(left, (head.along, -1))
        first = max(0, middle - _WITHIN_REACH)
        reached = [number for _, number in left[first : middle + _WITHIN_REACH]]
        chosen = next_recall(head, [places[number][0] for number in reached], tape)
        order.append(reached[chosen])
        del left[first + chosen]
        head = places[reached[chosen]][1]
    return order


def _total_s(
    head: Place,
    places: Sequence[tuple[Place, Place]],
    order: Sequence[int],
    tape: MotionModel,
) -> float:
    """What the motion between the places takes."""
    if not order:
        return 0.0
    between = sum(tape.locate_s(places[a][1], places[b][0]) for a, b in pairwise(order))
    return tape.locate_s(head, places[order[0]][0]) + between
