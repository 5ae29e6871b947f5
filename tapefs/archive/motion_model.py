"""How long the drive takes from one block to another: what the order of recalls is chosen by.

Pure: blocks in, seconds out. Of most tapes the layout is not known, or is a single track; then
places lie along the tape in the order of their blocks (`LinearTape`). An LTO tape runs to and fro:
its blocks lie on *wraps*, up the tape on even ones and down on odd ones, so that places far apart
in blocks may lie side by side. A drive that knows where its wraps end makes a `SerpentineTape`.
No figure here is a promise of any drive; orders are compared by them, nothing waits for them.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

# To stop, and to start towards somewhere else.
_START_S: Final = 2.0
# The whole tape of a single-track drive: AIT-3 54 s, AIT-1 40 s, DAT 80 s.
_FULL_SEARCH_S: Final = 60.0

# Of 512 KiB, on an AIT-3.
_BLOCK_COUNT: Final = 190_000

# Seconds of an LTO drive's locate, as CERN fitted them to measured ones (CTA's cost function for
# recommended access order, LTO-7 and LTO-8); its negative term for changing halves is left out.
_LOCATE_S: Final = 4.29
_WRAP_CHANGE_S: Final = 6.69
_BAND_CHANGE_S: Final = 3.2
_DIRECTION_CHANGE_S: Final = 5.22
# Back on the same wrap: past the place, and on to it again.
_STEP_BACK_S: Final = 11.32
# End to end, the same source: 0.0006192 s for each of 168,401 longitudinal positions.
_END_TO_END_S: Final = 104.3
_BANDS: Final = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies: on which wrap, and how far from the beginning of the tape (0 to 1)."""

    wrap: int
    along: float


class MotionModel(Protocol):
    """What is known of drive and tape."""

    @property
    def is_serpentine(self) -> bool:
        """Whether neighbours in blocks need not be neighbours on tape, and the other way round."""
        ...

    def place(self, block: int) -> Place:
        """Where `block` lies."""
        ...

    def locate_s(self, start: Place, end: Place) -> float:
        """About how many seconds it takes to get from one place to the other."""
        ...


@dataclass(frozen=True, slots=True)
class LinearTape:
    """A tape whose blocks lie along it one after the other, or of which nothing else is known.

    `block_count`: about where it ends. Seconds depend on it, the best order does not.
    """

    block_count: int = _BLOCK_COUNT
    start_s: float = _START_S
    full_search_s: float = _FULL_SEARCH_S
    is_serpentine = False

    def place(self, block: int) -> Place:
        """Where `block` lies, on the only wrap there is."""
        return Place(0, block / self.block_count)

    def locate_s(self, start: Place, end: Place) -> float:
        """Proportional to the distance, and what stopping and starting takes."""
        if start == end:
            return 0.0
        return self.start_s + abs(end.along - start.along) * self.full_search_s


class SerpentineTape:
    """An LTO tape, from the blocks at which its wraps end."""

    is_serpentine = True

    def __init__(
        self, wrap_ends: Sequence[int], wrap_count: int, end_to_end_s: float = _END_TO_END_S
    ) -> None:
        """`wrap_ends`: the block behind each wrap that is written to its end, ascending, at least
        one; wraps behind those are taken to be like their mean. `wrap_count` of the whole tape.
        """
        assert wrap_ends, "no wrap is known"
        self._ends = tuple(wrap_ends)
        self._mean_blocks = max(1.0, wrap_ends[-1] / len(wrap_ends))
        self._band_wraps = max(1, wrap_count // _BANDS)
        self._end_to_end_s = end_to_end_s

    def place(self, block: int) -> Place:
        """Where `block` lies, by interpolation within its wrap."""
        ends = self._ends
        wrap = bisect_left(ends, block + 1)
        if wrap < len(ends):
            start = ends[wrap - 1] if wrap else 0
            within = (block - start) / max(1, ends[wrap] - start)
        else:
            more, within = divmod((block - ends[-1]) / self._mean_blocks, 1.0)
            wrap += int(more)
        return Place(wrap, 1.0 - within if wrap % 2 else within)

    def locate_s(self, start: Place, end: Place) -> float:
        """The published cost of an LTO locate."""
        if start == end:
            return 0.0
        distance = end.along - start.along
        seconds = _LOCATE_S + abs(distance) * self._end_to_end_s
        if start.wrap == end.wrap:
            is_back = distance > 0.0 if start.wrap % 2 else distance < 0.0
            return seconds + _STEP_BACK_S if is_back else seconds
        seconds += _WRAP_CHANGE_S
        if (start.wrap ^ end.wrap) & 1:
            seconds += _DIRECTION_CHANGE_S
        if start.wrap // self._band_wraps != end.wrap // self._band_wraps:
            seconds += _BAND_CHANGE_S
        return seconds


@functools.lru_cache(maxsize=1)
def tape_of(wrap_ends: tuple[int, ...], wrap_count: int) -> MotionModel:
    """What to go by, where a drive tells these of its tape; `wrap_ends` empty when it does not."""
    return SerpentineTape(wrap_ends, wrap_count) if wrap_ends else LinearTape()
