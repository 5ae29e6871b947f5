"""What a drive is at, and how fast: told from the commands that go to it, without asking it.

Pure bookkeeping: whoever sends the commands brings the time, in seconds of any clock.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.scsi import cdb

if TYPE_CHECKING:
    from tapefs.scsi.cdb import Command

# Rates are taken over this long, in steps of a second.
WINDOW_S: Final = 15


class Motion(enum.Enum):
    """What the last command that concerns the tape had it do."""

    WRITING = "writing"
    FLUSHING = "flushing"
    READING = "reading"
    POSITIONING = "positioning"
    REWINDING = "rewinding"


_MOTIONS: Final[dict[type, Motion]] = {
    cdb.Write6: Motion.WRITING,
    cdb.WriteFilemarks6: Motion.FLUSHING,
    cdb.Read6: Motion.READING,
    cdb.Space6: Motion.POSITIONING,
    cdb.Space16: Motion.POSITIONING,
    cdb.Locate10: Motion.POSITIONING,
    cdb.Locate16: Motion.POSITIONING,
    cdb.Rewind: Motion.REWINDING,
}
_TRANSFERS: Final = (Motion.WRITING, Motion.READING)


@dataclass(frozen=True, slots=True)
class TransferRates:
    """What went through the drive during the last WINDOW_S seconds, or since the first transfer.

    `busy_share`: the part of that time, 0 to 1, in which a READ or WRITE was under way. A drive
    that is fed faster than it writes is nearly always busy, and its tape does not stop. None when
    nothing was transferred.
    """

    written_bytes_per_s: float
    read_bytes_per_s: float
    busy_share: float | None


@dataclass(slots=True)
class _Second:
    number: int
    written_bytes: int = 0
    read_bytes: int = 0
    busy_s: float = 0.0


class Activity:
    """One drive's. `motion` is what it is at, or was at last; None before the first command."""

    __slots__ = ("_begun_s", "_counted_s", "_seconds", "motion", "motion_since_s")

    def __init__(self) -> None:
        self.motion: Motion | None = None
        self.motion_since_s = 0.0
        self._begun_s = self._counted_s = 0.0
        self._seconds: deque[_Second] = deque(maxlen=WINDOW_S + 1)

    def begin(self, command: Command, now_s: float) -> None:
        """`command` is about to be sent."""
        self._begun_s = self._counted_s = now_s
        motion = _MOTIONS.get(type(command))
        if motion is not None and motion is not self.motion:
            self.motion, self.motion_since_s = motion, now_s

    def end(self, command: Command, byte_count: int, now_s: float) -> None:
        """`command` has ended, and so many bytes of data went over the wire.

        Of commands that were sent together each one's end is told; time is counted once.
        """
        motion = _MOTIONS.get(type(command))
        if motion not in _TRANSFERS:
            return
        number = int(now_s)
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(_Second(number))
        second = self._seconds[-1]
        second.busy_s += now_s - self._counted_s
        self._counted_s = now_s
        if motion is Motion.WRITING:
            second.written_bytes += byte_count
        else:
            second.read_bytes += byte_count

    def since(self, moment_s: float) -> Motion | None:
        """What the drive is at, if anything that concerns the tape was sent since `moment_s`."""
        return self.motion if self._begun_s >= moment_s else None

    def rates(self, now_s: float) -> TransferRates:
        """How fast it is now."""
        recent = [second for second in self._seconds if second.number > now_s - WINDOW_S]
        if not recent:
            return TransferRates(0.0, 0.0, None)
        # A transfer that began in an earlier second has been counted in its last one.
        busy_s = sum(second.busy_s for second in recent)
        span_s = max(now_s - recent[0].number, recent[0].busy_s, 1.0)
        return TransferRates(
            sum(second.written_bytes for second in recent) / span_s,
            sum(second.read_bytes for second in recent) / span_s,
            min(1.0, busy_s / span_s),
        )
