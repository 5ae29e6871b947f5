"""Which job the lane takes next: a pure function, so that a simulation can judge it.

Control work (label, sync barriers, eject) goes first. Recalls waiting together are served in one
sweep by position, starting at the head. An archive burst waits while recalls are served, but no
longer than `recalls_before_archive` of them in a row, and not at all once the spool passes its
high water mark: then the burst goes first, because a full spool stops every writer. Maintenance
runs when nothing else wants the drive. So nobody starves: the bound is in the configuration.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.config import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

# A burst worth 27 s of the drive's rate costs under 10 % in stops of 3 s.
_BURST_S: Final = 27.0
_BURST_BYTES_START: Final = 2 * GIB
_BURST_BYTES_MIN: Final = 64 * MIB
# A rate taken over less than this is no rate.
_RATE_S_MIN: Final = 1.0


class JobKind(enum.Enum):
    """What a job wants the drive for."""

    CONTROL = "control"
    RECALL = "recall"
    ARCHIVE = "archive"
    MAINTENANCE = "maintenance"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job in the queue as the policy sees it. `block` is where it starts on tape, if it does."""

    kind: JobKind
    block: int | None = None


@dataclass(frozen=True, slots=True)
class LaneState:
    """What the choice depends on besides the queue."""

    head_block: int | None
    recalls_in_row: int
    spool_pressed: bool
    recalls_before_archive: int


def choose(queue: Sequence[Waiting], state: LaneState) -> int:
    """Index into `queue` (not empty, in order of arrival) of the job to run next."""
    assert queue, "nothing to choose from"
    by_kind: dict[JobKind, list[int]] = {kind: [] for kind in JobKind}
    for index, job in enumerate(queue):
        by_kind[job.kind].append(index)
    if by_kind[JobKind.CONTROL]:
        return by_kind[JobKind.CONTROL][0]
    recalls, archives = by_kind[JobKind.RECALL], by_kind[JobKind.ARCHIVE]
    if archives:
        exhausted = state.recalls_in_row >= state.recalls_before_archive
        if not recalls or state.spool_pressed or exhausted:
            return archives[0]
    if recalls:
        return _next_in_sweep(queue, recalls, state.head_block)
    return by_kind[JobKind.MAINTENANCE][0]


def _next_in_sweep(queue: Sequence[Waiting], recalls: list[int], head: int | None) -> int:
    """The nearest recall at or after the head; when there is none, the first on the tape."""

    def block(index: int) -> int:
        return queue[index].block or 0

    ahead = [index for index in recalls if head is None or block(index) >= head]
    return min(ahead or recalls, key=block)


def burst_bytes(written_bytes: int, written_s: float) -> int:
    """How much is worth starting the drive for, which has written so much in so many seconds."""
    if written_s < _RATE_S_MIN:
        return _BURST_BYTES_START
    return int(max(_BURST_BYTES_MIN, _BURST_S * written_bytes / written_s))
