"""Recalls while files come in, in virtual time, beside a lane that serves in order of arrival."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Final

from benchmarks import lane_simulation as lanes
from benchmarks.mixed_simulation import Load, mixed
from benchmarks.row import GIB, MIB, Figure, Row
from tapefs.archive.policy import choose
from tapefs.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.lane_simulation import Machine, Policy
    from benchmarks.row import Run
    from benchmarks.timeline import Timeline

_DAY_S: Final = 6 * 3600.0
_HOUR_S: Final = 3600.0
_SEEDS: Final = 10
# As fast as nothing: recalls have the drive to themselves.
_NO_INGEST: Final = 1.0

_LTO8: Final = Load(150e6, 20 / 1800, 20, 200 * MIB, 64 * GIB, _DAY_S)
_AIT3: Final = Load(6e6, 60 / 1800, 60, 4 * MIB, 16 * GIB, _DAY_S)


@dataclasses.dataclass(slots=True)
class _Found:
    """Of all seeds together."""

    p95_s: float
    longest_s: float
    blocked_share: float
    longest_blocked_s: float


def _over_seeds(
    machine: Machine, load: Load, policy: Policy, count: int, timeline: Timeline | None = None
) -> _Found:
    latencies_s: list[float] = []
    blocked, longest_blocked_s = 0.0, 0.0
    for seed in range(1, count + 1):
        found = mixed(machine, load, policy, seed, timeline if seed == 1 else None)
        latencies_s += found.recalls.latencies_s
        blocked += found.loss(load) / count
        longest_blocked_s = max(longest_blocked_s, found.longest_blocked_s)
    latencies_s.sort()
    p95_s = latencies_s[int(0.95 * (len(latencies_s) - 1))]
    return _Found(p95_s, latencies_s[-1], blocked, longest_blocked_s)


def _measure(make: Callable[[], Machine], load: Load, run: Run) -> Mapping[str, float]:
    load = dataclasses.replace(load, duration_s=run.size(int(_DAY_S), int(_HOUR_S)))
    machine, count = make(), run.size(_SEEDS, 2)
    shipped = _over_seeds(machine, load, choose, count, run.timeline)
    fifo = _over_seeds(machine, load, lanes.fifo, count)
    alone = dataclasses.replace(load, ingest_bytes_per_s=_NO_INGEST)
    return {
        "recalls: p95": shipped.p95_s,
        "recalls: p95, FIFO": fifo.p95_s,
        "recalls: p95 of FIFO's": shipped.p95_s / fifo.p95_s,
        "recalls: p95 when nothing comes in": _over_seeds(machine, alone, choose, count).p95_s,
        "recalls: longest": shipped.longest_s,
        "writers blocked": 100 * shipped.blocked_share,
        "writers blocked, FIFO": 100 * fifo.blocked_share,
        "writers blocked, of FIFO's": (
            shipped.blocked_share / fifo.blocked_share if fifo.blocked_share else 0.0
        ),
        "writers blocked: longest": shipped.longest_blocked_s,
    }


def _row(name: str, words: str, make: Callable[[], Machine], load: Load) -> Row:
    seconds = Figure("s")
    share = Figure("% of the time", may_be_zero=True)
    # Until it is archiving's turn, and the first segment of that is on tape.
    longest = Config().recall_turn_s + 300
    return Row(
        name,
        f"half the rate of an {words} comes in for six hours, {load.spool_bytes // GIB} GiB of "
        f"spool, and each half hour {load.recalls_at_once} files of {load.file_bytes // MIB} MiB "
        f"are recalled at once; {_SEEDS} seeds, in virtual time by the motion model",
        {
            "recalls: p95": seconds,
            "recalls: p95, FIFO": seconds,
            "recalls: p95 of FIFO's": Figure("x", at_most=0.333),
            "recalls: p95 when nothing comes in": seconds,
            "recalls: longest": seconds,
            "writers blocked": share,
            "writers blocked, FIFO": share,
            "writers blocked, of FIFO's": Figure("x", at_most=0.333, may_be_zero=True),
            "writers blocked: longest": Figure("s", at_most=longest, may_be_zero=True),
        },
        functools.partial(_measure, make, load),
        in_every_place=False,
        varies=False,
    )


ROWS: Final = (
    _row("mixed-lto8", "LTO-8", lanes.lto8, _LTO8),
    _row("mixed-ait3", "AIT-3", lanes.ait3, _AIT3),
)
