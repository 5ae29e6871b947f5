"""What a row of the table is, and what its function is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from benchmarks.sources import Sources
    from benchmarks.timeline import Timeline

MIB: Final = 1 << 20
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a row measures.

    `at_least` and `at_most` are what it is to reach, in its unit; with `only_on` there alone.
    `or_else` names figures of the row that will do instead. With `may_be_zero` nothing is a
    result too; of all others it is a row that measures nothing.
    """

    unit: str
    at_least: float | None = None
    at_most: float | None = None
    only_on: str | None = None
    or_else: tuple[str, ...] = ()
    may_be_zero: bool = False

    def wanted(self, place: str) -> str:
        """What is to be reached in `place`, for the table; empty when nothing is asked."""
        if self.only_on not in (None, place):
            return ""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def is_reached(self, place: str, value: float) -> bool:
        """Whether `value` is what is asked for in `place`."""
        if not self.wanted(place):
            return True
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0)


# What every row that mounts tapefs reports.
PEAK_MEMORY: Final = Figure("MiB", at_most=200)
RATIO: Final = "against the reference"
# 4,000 files a second, say, or nine tenths of what kernel and bindings allow.
OF_CEILING: Final = "against the ceiling"


@dataclass(slots=True)
class Run:
    """One run of one row.

    `directory` is empty, lies in the place that is measured, and is deleted afterwards. `sources`
    are made once and shared by all runs. `timeline` is there in the run that the picture shows.
    """

    directory: Path
    small: bool
    sources: Sources
    timeline: Timeline | None = None

    def size(self, whole: int, toy: int) -> int:
        """`whole`, or `toy` where only rot is looked for."""
        return toy if self.small else whole


@dataclass(frozen=True, slots=True)
class Row:
    """One line of work. `measure` returns a number for each name in `figures`."""

    name: str
    work: str
    figures: Mapping[str, Figure]
    measure: Callable[[Run], Mapping[str, float]] = field(repr=False)
    # False: the work touches no disk to speak of, so one place is as good as the other.
    in_every_place: bool = True
    # False: it comes out the same each time, and one run is enough.
    varies: bool = True
