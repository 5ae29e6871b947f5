"""Which job the lane takes next: a pure function, so that a simulation can judge it.

Control work (label, sync barriers, eject) goes first. Recalls waiting together are served in the
order of least motion: on a single track, and where the layout of the tape is not known, in sweeps
to and fro; on a serpentine tape that is known, the nearest first. An archive burst waits while
recalls are served, and the spool takes what comes meanwhile: to go to the end of data and back
costs more than to serve a recall. When its turn comes it keeps the drive until most of the spool
is on tape. Maintenance runs when nothing else wants it.

Nobody starves; the bounds are in the configuration. An archive burst waits for no more than
`recalls_before_archive` recalls in a row, and with the spool above its high water mark for no
longer than `recall_turn_s`. A recall is overtaken by no more than `recall_overtaken_max` others
that came in after a later one had been served, and by no more than `archives_before_recall` jobs
of archiving in a row, however full the spool is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.archive.recall_order import next_recall
from tapefs.config import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tapefs.archive.motion_model import MotionModel
    from tapefs.config import Config

# Rates are measured with the stop of 3 s at the end: a burst of 36 s is one of 33 s and the stop,
# by which 8 % are lost.
_BURST_S: Final = 36.0
_BURST_BYTES_START: Final = 2 * GIB
_BURST_BYTES_MIN: Final = 64 * MIB
_SEGMENT_S: Final = 120.0
_SEGMENT_BYTES_MIN: Final = 256 * MIB
# A rate taken over less than this is no rate.
_RATE_S_MIN: Final = 1.0


class JobKind(enum.Enum):
    """What a job wants the drive for."""

    CONTROL = "control"
    RECALL = "recall"
    ARCHIVE = "archive"
    MAINTENANCE = "maintenance"


class Pressure(enum.IntEnum):
    """How full the spool is with what tape must take: HIGH above its high water mark."""

    LOW = 0
    SOME = 1
    HIGH = 2


@dataclass(slots=True)
class Waiting:
    """A job in the queue as the policy sees it. `block` is where it starts on tape, if it does.

    `round` is how many recalls had been served when it came, `overtaken` how many of a later
    round have been served since.
    """

    kind: JobKind
    block: int | None = None
    round: int = 0
    overtaken: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Beyond these nobody waits for others."""

    recalls_before_archive: int
    recall_turn_s: float
    archives_before_recall: int
    recall_overtaken_max: int


@dataclass(slots=True)
class Turns:
    """Who had the lane so far, as far as the next choice depends on it."""

    recalls_served: int = 0
    recalls_in_row: int = 0
    # How long those have had the drive.
    recalls_s: float = 0.0
    archives_in_row: int = 0
    # Which way the sweep goes; None when it may begin either way.
    sweeps_up: bool | None = None

    def admit(self, kind: JobKind, block: int | None = None) -> Waiting:
        """A job has come."""
        return Waiting(kind, block, self.recalls_served)

    def take(self, job: Waiting, head_block: int | None, left: Iterable[Waiting]) -> None:
        """`job` was chosen, the head stands at `head_block`, and `left` goes on waiting."""
        is_recall = job.kind is JobKind.RECALL
        self.recalls_in_row = self.recalls_in_row + 1 if is_recall else 0
        self.archives_in_row = self.archives_in_row + 1 if job.kind is JobKind.ARCHIVE else 0
        if not is_recall:
            self.recalls_s = 0.0
            return
        self.recalls_served += 1
        others = [other for other in left if other.kind is JobKind.RECALL]
        for other in others:
            other.overtaken += other.round < job.round
        if not others or job.block is None or head_block is None:
            self.sweeps_up = None
        elif job.block != head_block:
            self.sweeps_up = job.block > head_block

    def ended(self, job: Waiting, seconds: float) -> None:
        """The job that was taken last has had the drive for so long."""
        if job.kind is JobKind.RECALL:
            self.recalls_s += seconds


@dataclass(frozen=True, slots=True)
class LaneState:
    """What the choice depends on besides the queue. `tape` is what is known of its layout."""

    head_block: int | None
    pressure: Pressure
    turns: Turns
    tape: MotionModel
    bounds: Bounds


def choose(queue: Sequence[Waiting], state: LaneState) -> int:
    """Index into `queue` (not empty, in order of arrival) of the job to run next."""
    assert queue, "nothing to choose from"
    by_kind: dict[JobKind, list[int]] = {kind: [] for kind in JobKind}
    for index, job in enumerate(queue):
        by_kind[job.kind].append(index)
    if by_kind[JobKind.CONTROL]:
        return by_kind[JobKind.CONTROL][0]
    recalls, archives = by_kind[JobKind.RECALL], by_kind[JobKind.ARCHIVE]
    if archives and (not recalls or _archive_goes_first(state)):
        return archives[0]
    if recalls:
        return _choose_recall(queue, recalls, state)
    return by_kind[JobKind.MAINTENANCE][0]


def holds_for_burst(queue: Sequence[Waiting], state: LaneState) -> bool:
    """Whether to wait for the next tape file of a burst rather than serve who is in `queue`.

    Between two of them the archiver needs a moment; a recall there costs two long searches.
    """
    return _presses(state) and all(
        job.kind in (JobKind.RECALL, JobKind.MAINTENANCE) for job in queue
    )


def _presses(state: LaneState) -> bool:
    """Whether archiving, whose turn it is, goes on before anybody else: until most is on tape."""
    return state.pressure > 0 and (
        0 < state.turns.archives_in_row < state.bounds.archives_before_recall
    )


def _archive_goes_first(state: LaneState) -> bool:
    """Whether archiving comes before the recalls that wait as well."""
    turns, bounds = state.turns, state.bounds
    is_over = turns.recalls_s >= bounds.recall_turn_s and state.pressure is Pressure.HIGH
    return is_over or _presses(state) or turns.recalls_in_row >= bounds.recalls_before_archive


def _choose_recall(queue: Sequence[Waiting], recalls: list[int], state: LaneState) -> int:
    overtaken_max = state.bounds.recall_overtaken_max
    late = next((index for index in recalls if queue[index].overtaken >= overtaken_max), None)
    if late is not None:
        return late
    if state.tape.is_serpentine:
        place = state.tape.place
        head = place(state.head_block or 0)
        return recalls[next_recall(head, [place(queue[i].block or 0) for i in recalls], state.tape)]
    return _next_in_sweep(queue, recalls, state)


def _next_in_sweep(queue: Sequence[Waiting], recalls: list[int], state: LaneState) -> int:
    """The nearest recall on the way the sweep goes; when there is none, it turns."""

    def block(index: int) -> int:
        return queue[index].block or 0

    lowest, highest = min(recalls, key=block), max(recalls, key=block)
    head = state.head_block
    if head is None or head <= block(lowest):
        return lowest
    if head >= block(highest):
        return highest
    goes_up = state.turns.sweeps_up
    if goes_up is None:
        # All of them are passed either way; the nearer end first makes the way back shorter.
        goes_up = block(highest) - head < head - block(lowest)
    if goes_up:
        return min((index for index in recalls if block(index) >= head), key=block)
    return max((index for index in recalls if block(index) <= head), key=block)


def segment_bytes(written_bytes: int, written_s: float) -> int:
    """How much goes into one tape file at most: what the drive writes in two minutes.

    Each ends in a stop of some three seconds, and recalls wait for its end.
    """
    if written_s < _RATE_S_MIN:
        return _BURST_BYTES_START
    return int(max(_SEGMENT_BYTES_MIN, _SEGMENT_S * written_bytes / written_s))


def burst_share_bytes(spool_bytes: int, config: Config) -> int:
    """How large a burst a spool of this size lets one wait for.

    As much comes again while it is written, if the source is as fast as the drive, before the
    high water mark.
    """
    return int(spool_bytes * config.spool_high_water / 2)


def burst_bytes(written_bytes: int, written_s: float) -> int:
    """How much is worth starting the drive for, which has written so much in so many seconds."""
    if written_s < _RATE_S_MIN:
        return _BURST_BYTES_START
    return int(max(_BURST_BYTES_MIN, _BURST_S * written_bytes / written_s))
