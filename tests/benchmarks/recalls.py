"""Files recalled from all over a tape, by the real lane and policy, in virtual time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from benchmarks import lane_simulation as lanes
from benchmarks.offline_orders import improved_order, merged_s
from benchmarks.row import MIB, Figure, Row
from tapefs.archive.policy import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.row import Run

_READERS: Final = 8
_MERGES_KEPT: Final = 100


def _recall(make: Callable[[], lanes.Machine], file_bytes: int, run: Run) -> Mapping[str, float]:
    machine = make()
    count = run.size(1000, 40)
    files = lanes.random_files(machine, count, file_bytes, seed=1)
    best_s = lanes.order_s(machine, files, improved_order(machine, files))
    lists = [files[reader::_READERS] for reader in range(_READERS)]
    merged = merged_s(machine, lists, run.size(_MERGES_KEPT, 5))
    figures: dict[str, float] = {}
    for words, ahead, offline_s in (("all asked for", count, best_s), ("one each", 1, merged)):
        total_s = {
            policy: lanes.recall_all(machine, files, policy, _READERS, ahead=ahead).total_s
            for policy in (lanes.fifo, choose)
        }
        figures[f"{words}: of the best order known"] = total_s[choose] / offline_s
        figures[f"{words}: FIFO"] = total_s[lanes.fifo] / total_s[choose]
    return figures


def _row(
    name: str, make: Callable[[], lanes.Machine], file_bytes: int, fifo_least: float | None
) -> Row:
    return Row(
        name,
        f"1,000 random files of {file_bytes // MIB} MiB recalled by {_READERS} readers, in virtual "
        "time by the motion model; each asks for all at once, or for one at a time",
        {
            "all asked for: of the best order known": Figure("x", at_most=1.1),
            "all asked for: FIFO": Figure("x its time", at_least=fifo_least),
            "one each: of the best order known": Figure("x", at_most=1.1),
            "one each: FIFO": Figure("x its time"),
        },
        functools.partial(_recall, make, file_bytes),
        in_every_place=False,
        varies=False,
    )


ROWS: Final = (
    _row("recall-lto8", lanes.lto8, 200 * MIB, 3.0),
    _row("recall-ait3", lanes.ait3, 4 * MIB, None),
)
