"""Files come in all the time while others are recalled: the real lane and policy, and an archiver
and a spool of which only the amounts are modelled.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.lane_simulation import RECORD_BYTES, Lane, Outcome, random_files
from benchmarks.timeline import Sample
from benchmarks.virtual_time import in_virtual_time
from tapefs.archive.policy import JobKind, Pressure, burst_bytes, burst_share_bytes, segment_bytes
from tapefs.config import Config

if TYPE_CHECKING:
    from benchmarks.lane_simulation import Machine, Policy
    from benchmarks.timeline import Timeline
    from tapefs.archive.recall_order import Span

_TICK_S: Final = 1.0
_SAMPLE_S: Final = 5.0
_CONFIG = Config(drive_check_s=1e9)


@dataclass(frozen=True, slots=True)
class Load:
    """What comes: bytes in a steady stream, and at random moments somebody who recalls so many
    files at once. `spool_bytes` of room.

    With `in_bursts` the archiver waits until a burst is worth while, as the real one does;
    without, it writes whatever there is.
    """

    ingest_bytes_per_s: float
    recalls_per_s: float
    recalls_at_once: int
    file_bytes: int
    spool_bytes: int
    duration_s: float
    in_bursts: bool = True


@dataclass(slots=True)
class Mixed:
    """What came of it."""

    recalls: Outcome
    blocked_s: float = 0.0
    longest_blocked_s: float = 0.0
    accepted_bytes: float = 0.0

    def loss(self, load: Load) -> float:
        """Which share of the time writers could not go on."""
        return self.blocked_s / load.duration_s


class _Spool:
    def __init__(self, load: Load, found: Mixed) -> None:
        self.load, self.found = load, found
        self.pending_bytes = self.tape_bytes = 0.0

    def pressure(self) -> Pressure:
        """As `Migration.spool_pressure` has it."""
        high, share = Config().spool_high_water, self.pending_bytes / self.load.spool_bytes
        return Pressure((share > high / 4) + (share > high))

    async def fill(self) -> None:
        more, found, blocked_s = self.load.ingest_bytes_per_s * _TICK_S, self.found, 0.0
        while True:
            await trio.sleep(_TICK_S)
            if self.pending_bytes + more > self.load.spool_bytes:
                blocked_s += _TICK_S
                found.blocked_s += _TICK_S
                found.longest_blocked_s = max(found.longest_blocked_s, blocked_s)
            else:
                blocked_s = 0.0
                self.pending_bytes += more
                found.accepted_bytes += more


async def _archive(lane: Lane, spool: _Spool, end_block: int) -> None:
    machine = lane.machine
    rate, load = machine.rate_bytes_per_s, spool.load
    spool_share = burst_share_bytes(load.spool_bytes, _CONFIG)
    worth = min(float(burst_bytes(int(rate * 60), 60.0)), spool_share)
    if load.in_bursts:
        lane.scheduler.burst_follows = lambda: spool.pending_bytes >= worth
    most = float(segment_bytes(int(rate * 60), 60.0))
    while True:
        if spool.pending_bytes < (worth if load.in_bursts else RECORD_BYTES):
            await trio.sleep(_TICK_S)
            continue
        size = 0.0

        async def segment(_drive: object) -> None:
            nonlocal size, end_block
            size = min(spool.pending_bytes, most)
            await lane.move(end_block)
            left, piece = int(size // RECORD_BYTES), int(rate * _SAMPLE_S // RECORD_BYTES)
            while left:
                await lane.transfer(min(left, piece))
                spool.tape_bytes += min(left, piece) * RECORD_BYTES
                left -= min(left, piece)
            await trio.sleep(machine.stop_s)
            end_block = lane.scheduler.head_block or end_block

        await lane.scheduler.submit(JobKind.ARCHIVE, segment)
        spool.pending_bytes -= size


async def _draw(lane: Lane, spool: _Spool, timeline: Timeline) -> None:
    while True:
        running = lane.scheduler.statistics().running
        amounts = int(spool.found.accepted_bytes), int(spool.tape_bytes)
        state, block = running or "standing", lane.scheduler.head_block
        timeline.samples.append(Sample(trio.current_time(), state, *amounts, block))
        await trio.sleep(_SAMPLE_S)


def mixed(
    machine: Machine, load: Load, policy: Policy, seed: int, timeline: Timeline | None = None
) -> Mixed:
    """Let it run. Whoever waits at the end has waited that long at least."""

    async def recalls(lane: Lane, waited: trio.Nursery, files: list[Span]) -> None:
        dice = random.Random(seed + 1)
        while files:
            await trio.sleep(dice.expovariate(load.recalls_per_s / load.recalls_at_once))
            for _ in range(min(load.recalls_at_once, len(files))):
                waited.start_soon(lane.recall, files.pop())

    found = Mixed(Outcome())

    async def work() -> Outcome:
        # The tape is half full.
        end_block = machine.block_count // 2
        count = int(load.duration_s * load.recalls_per_s)
        half = [
            (start // 2, start // 2 + end - start)
            for start, end in random_files(machine, count, load.file_bytes, seed)
        ]
        spool = _Spool(load, found)
        async with trio.open_nursery() as nursery:
            lane = Lane(machine, policy, nursery, _CONFIG)
            lane.outcome = found.recalls
            lane.scheduler.spool_pressure = spool.pressure
            await nursery.start(lane.scheduler.run)
            async with trio.open_nursery() as background:
                background.start_soon(spool.fill)
                background.start_soon(_archive, lane, spool, end_block)
                if timeline is not None:
                    background.start_soon(_draw, lane, spool, timeline)
                with trio.move_on_after(load.duration_s):
                    async with trio.open_nursery() as waited:
                        await recalls(lane, waited, half)
                        await trio.sleep_forever()
                background.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        return found.recalls

    in_virtual_time(work)
    return found
