"""Files recalled from all over a tape, by the real lane and policy, in virtual time."""

from __future__ import annotations

import functools
import stat
import statistics
from typing import TYPE_CHECKING, Final

from benchmarks import lane_simulation as lanes
from benchmarks.offline_orders import best_s, improved_order, merged_s
from benchmarks.row import MIB, Figure, Row
from tapefs.archive.policy import choose
from tapefs.archive.reading_order import TapeLayout, waiting_in_reading_order
from tapefs.catalog import Item, RecallOrder
from tapefs.entries import Inode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.row import Run
    from tapefs.archive.recall_order import Span

_READERS: Final = 8
_MERGES_KEPT: Final = 100
# So few files have an order of which is known that none is better.
_FEW: Final = 12
_FEW_SEEDS: Final = 5
_COMMAND: Final = "tapefs recall"


def _recall(make: Callable[[], lanes.Machine], file_bytes: int, run: Run) -> Mapping[str, float]:
    machine = make()
    count = run.size(1000, 40)
    files = lanes.random_files(machine, count, file_bytes, seed=1)
    known_s = lanes.order_s(machine, files, improved_order(machine, files))
    lists = [files[reader::_READERS] for reader in range(_READERS)]
    merged = merged_s(machine, lists, run.size(_MERGES_KEPT, 5))
    figures: dict[str, float] = {}
    for words, ahead, offline_s in (("all asked for", count, known_s), ("one each", 1, merged)):
        found = {
            policy: lanes.recall_all(machine, files, policy, _READERS, ahead=ahead)
            for policy in (lanes.fifo, choose)
        }
        figures[f"{words}: of the best order known"] = found[choose].total_s / offline_s
        if run.timeline is not None and ahead == 1:
            found[choose].draw(run.timeline)
        figures[f"{words}: FIFO"] = found[lanes.fifo].total_s / found[choose].total_s
    by_command_s = _by_command_s(machine, files, run.directory / "order.sqlite")
    figures[f"{_COMMAND}: of the best order known"] = by_command_s / known_s
    figures[f"{_COMMAND}: FIFO"] = lanes.order_s(machine, files, range(count)) / by_command_s
    figures["few files: of the best order there is"] = statistics.mean(
        _few(machine, file_bytes, run, seed) for seed in range(_FEW_SEEDS)
    )
    return figures


def _by_command_s(machine: lanes.Machine, files: Sequence[Span], path: Path) -> float:
    """How long the drive takes for the files in the order in which the command reads them."""
    order = RecallOrder.open(path)
    order.begin(
        Item(
            b"%d" % number,
            b"",
            Inode(number + 1, stat.S_IFREG | 0o644, size=(end - start) * lanes.RECORD_BYTES),
            start,
        )
        for number, (start, end) in enumerate(files)
    )
    layout = TapeLayout(0, machine.wrap_ends, machine.wrap_count, lanes.RECORD_BYTES)
    found = [int(item.path) for item in waiting_in_reading_order(order, layout)]
    order.close()
    return lanes.order_s(machine, files, found)


def _few(machine: lanes.Machine, file_bytes: int, run: Run, seed: int) -> float:
    files = lanes.random_files(machine, run.size(_FEW, 5), file_bytes, seed)
    path = run.directory / f"few {seed}.sqlite"
    return _by_command_s(machine, files, path) / best_s(machine, files)


def _row(
    name: str, make: Callable[[], lanes.Machine], file_bytes: int, fifo_least: float | None
) -> Row:
    return Row(
        name,
        f"1,000 random files of {file_bytes // MIB} MiB recalled by {_READERS} readers, in virtual "
        "time by the motion model; each asks for all at once, or for one at a time. The same by "
        "`tapefs recall`, and by it a dozen files, of which every order was tried",
        {
            "all asked for: of the best order known": Figure("x", at_most=1.1),
            "all asked for: FIFO": Figure("x its time", at_least=fifo_least),
            "one each: of the best order known": Figure("x", at_most=1.1),
            "one each: FIFO": Figure("x its time"),
            f"{_COMMAND}: of the best order known": Figure("x", at_most=1.1),
            f"{_COMMAND}: FIFO": Figure("x its time", at_least=fifo_least),
            "few files: of the best order there is": Figure("x", at_most=1.1),
        },
        functools.partial(_recall, make, file_bytes),
        in_every_place=False,
        varies=False,
    )


ROWS: Final = (
    _row("recall-lto8", lanes.lto8, 200 * MIB, 3.0),
    _row("recall-ait3", lanes.ait3, 4 * MIB, None),
)
