"""The real lane and policy in virtual time, on a tape of which only the motion is modelled.

A workload comes from a seed. Other policies, to compare with, take the place of the shipped one.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import trio

from benchmarks.timeline import Sample, Timeline
from benchmarks.virtual_time import in_virtual_time
from tapefs.archive.motion_model import LinearTape, SerpentineTape
from tapefs.archive.policy import JobKind, LaneState, Waiting, choose
from tapefs.archive.scheduler import Scheduler
from tapefs.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapefs.archive.motion_model import MotionModel
    from tapefs.archive.recall_order import Span

    Policy = Callable[[Sequence[Waiting], LaneState], int]

RECORD_BYTES: Final = 512 << 10
# As long as a run of the real recall waits for what a reader asks next.
_LINGER_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Machine:
    """A drive with a full tape in it: `tape` is how long it really takes from place to place."""

    name: str
    tape: MotionModel
    block_count: int
    rate_bytes_per_s: float
    wrap_ends: tuple[int, ...] = ()
    wrap_count: int = 1
    stop_s: float = 3.0

    def transfer_s(self, block_count: int) -> float:
        """To read or write so many records."""
        return block_count * RECORD_BYTES / self.rate_bytes_per_s


def lto8(uneven: float = 0.0, told_error: float = 0.0, seed: int = 0) -> Machine:
    """12 TB on 208 wraps; wraps differ by up to `uneven`, the drive's word by `told_error`."""
    dice = random.Random(seed)
    wrap_count, block_count = 208, 12 * 10**12 // RECORD_BYTES
    shares = [1 + uneven * dice.uniform(-1, 1) for _ in range(wrap_count)]
    ends, at = [], 0.0
    for share in shares:
        at += share * block_count / sum(shares)
        ends.append(int(at))
    told = tuple(int(end * (1 + told_error)) for end in ends)
    tape = SerpentineTape(ends, wrap_count)
    return Machine("LTO-8", tape, ends[-1], 300e6, told, wrap_count)


def ait3() -> Machine:
    """100 GB on a single track."""
    block_count = 100 * 10**9 // RECORD_BYTES
    tape = LinearTape(block_count, start_s=2.0, full_search_s=54.0)
    return Machine("AIT-3", tape, block_count, 12e6)


def fifo(queue: Sequence[Waiting], _state: LaneState) -> int:
    """Arrival order, whatever it is."""
    assert queue
    return 0


def block_order(queue: Sequence[Waiting], state: LaneState) -> int:
    """Always up the tape, and from its beginning again; archiving as in `choose`."""
    chosen = choose(queue, state)
    if queue[chosen].kind is not JobKind.RECALL:
        return chosen
    recalls = [i for i, job in enumerate(queue) if job.kind is JobKind.RECALL]
    ahead = [i for i in recalls if (queue[i].block or 0) >= (state.head_block or 0)]
    return min(ahead or recalls, key=lambda i: queue[i].block or 0)


def nearest_first(queue: Sequence[Waiting], state: LaneState) -> int:
    """The fewest seconds away by the model; archiving as in `choose`."""
    chosen = choose(queue, state)
    if queue[chosen].kind is not JobKind.RECALL:
        return chosen
    recalls = [i for i, job in enumerate(queue) if job.kind is JobKind.RECALL]
    head = state.tape.place(state.head_block or 0)
    return min(
        recalls, key=lambda i: state.tape.locate_s(head, state.tape.place(queue[i].block or 0))
    )


POLICIES: Final[dict[str, Policy]] = {
    "FIFO": fifo,
    "block order": block_order,
    "nearest first": nearest_first,
    "shipped": choose,
}


def random_files(machine: Machine, count: int, file_bytes: int, seed: int) -> list[Span]:
    """Extents anywhere on the tape."""
    dice = random.Random(seed)
    blocks = max(1, file_bytes // RECORD_BYTES)
    starts = (dice.randrange(machine.block_count - blocks) for _ in range(count))
    return [(start, start + blocks) for start in starts]


@dataclass(slots=True)
class Outcome:
    """What a workload took."""

    total_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    head: list[tuple[float, int]] = field(default_factory=list)

    def p95_s(self) -> float:
        """The latency that one in twenty exceeds."""
        return sorted(self.latencies_s)[int(0.95 * (len(self.latencies_s) - 1))]

    def draw(self, timeline: Timeline) -> None:
        """Show the head's way."""
        timeline.samples += [Sample(at_s, "recall", 0, 0, block) for at_s, block in self.head]


class _NoDrive:
    """What the lane asks of a drive that does nothing by itself."""

    def __init__(self, machine: Machine) -> None:
        self.wrap_ends, self.wrap_count = machine.wrap_ends, machine.wrap_count

    async def test_ready(self) -> bool:
        return True


class _NoLookout:
    wanted = "nothing"

    async def look(self) -> Any:
        raise AssertionError("the drive was never away")


class Lane:
    """The real scheduler over a machine. Runs, and what it is asked for, in `runs`."""

    def __init__(
        self, machine: Machine, policy: Policy, runs: trio.Nursery, config: Config | None = None
    ) -> None:
        self.machine = machine
        self._runs = runs
        self.outcome = Outcome()
        drive: Any = _NoDrive(machine)
        self.scheduler = Scheduler(
            drive, _NoLookout(), config or Config(drive_check_s=1e9), policy=policy
        )
        self.scheduler.head_block = 0

    async def move(self, block: int) -> None:
        """In a job: the head goes there."""
        tape, head = self.machine.tape, self.scheduler.head_block or 0
        await trio.sleep(tape.locate_s(tape.place(head), tape.place(block)))
        self._stands_at(block)

    async def transfer(self, block_count: int) -> None:
        """In a job: so many records are read or written."""
        await trio.sleep(self.machine.transfer_s(block_count))
        self._stands_at((self.scheduler.head_block or 0) + block_count)

    def _stands_at(self, block: int) -> None:
        self.scheduler.head_block = block
        self.outcome.head.append((trio.current_time(), block))

    async def recall(self, span: Span) -> None:
        """Somebody reads a file."""
        asked = trio.current_time()
        has_all = trio.Event()

        async def job(_drive: object) -> None:
            await self.move(span[0])
            await self.transfer(span[1] - span[0])
            has_all.set()
            await trio.sleep(_LINGER_S)

        self._runs.start_soon(
            functools.partial(self.scheduler.submit, block=span[0]), JobKind.RECALL, job
        )
        try:
            await has_all.wait()
        finally:
            # Who still waits when it is over has waited that long at least.
            self.outcome.latencies_s.append(trio.current_time() - asked)


def recall_all(
    machine: Machine, files: Sequence[Span], policy: Policy, readers: int, *, ahead: int
) -> Outcome:
    """`readers` share the files; each has `ahead` reads under way."""

    async def reader(lane: Lane, mine: list[Span]) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(min(ahead, len(mine))):
                nursery.start_soon(one_after_the_other, lane, mine)

    async def one_after_the_other(lane: Lane, mine: list[Span]) -> None:
        while mine:
            await lane.recall(mine.pop(0))

    async def work() -> Outcome:
        async with trio.open_nursery() as nursery:
            lane = Lane(machine, policy, nursery)
            await nursery.start(lane.scheduler.run)
            async with trio.open_nursery() as waited:
                for number in range(readers):
                    waited.start_soon(reader, lane, list(files[number::readers]))
            lane.outcome.total_s = trio.current_time()
            nursery.cancel_scope.cancel()
        return lane.outcome

    return in_virtual_time(work)


def order_s(machine: Machine, files: Sequence[Span], order: Sequence[int]) -> float:
    """What it takes to read the files in this order, from the beginning of the tape."""
    place, locate_s = machine.tape.place, machine.tape.locate_s
    way = [(0, 0), *(files[index] for index in order)]
    motion_s = sum(locate_s(place(a[1]), place(b[0])) for a, b in pairwise(way))
    return motion_s + sum(machine.transfer_s(end - start) for start, end in files)
