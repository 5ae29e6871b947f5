"""How long a write waits while the spool fills up, so that nobody is stopped dead.

Room is made when a segment is committed, all at once. Until then what is left of the spool is
shared out over the time which that takes: writers come down to a pace that the spool can bear
until the drive is done, fast or slow, and go on at full speed afterwards. Pure: no clock, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# No write waits longer because the spool fills up, as long as there is room in it. Of several
# programs that write at one time each waits for its turn, so that many times as long at most.
WRITE_WAIT_MAX_S: Final = 5.0

# Above the high water mark the brake comes on gradually, over this share of what is left.
_RAMP: Final = 0.25
# This share of it is not given away: forecasts err.
_RESERVE: Final = 0.25
# When room will be made where nobody knows.
_UNKNOWN_S: Final = 3.0
# A forecast is never better than this: files are noted one by one when a segment is committed.
_FORECAST_S_MIN: Final = 0.2
# A rate taken over less than this is no rate.
_RATE_S_MIN: Final = 0.05
# What `Forecast` takes for the end of a segment before it has seen one.
_CLOSING_S: Final = 1.0


def delay_s(
    write_bytes: int,
    used_bytes: int,
    limit_bytes: int,
    high_water: float,
    next_room_s: float | None,
) -> float:
    """How long a write of `write_bytes` is to wait, with the spool filled so far.

    `next_room_s` is when room will be made by the segment under way; None: nobody knows.
    """
    above = (used_bytes / limit_bytes - high_water) / (1.0 - high_water)
    if above <= 0:
        return 0.0
    if next_room_s is None:
        next_room_s = _UNKNOWN_S
    reserve_bytes = _RESERVE * (1.0 - high_water) * limit_bytes
    share = write_bytes / max(limit_bytes - used_bytes - reserve_bytes, write_bytes)
    braked_s = min(1.0, above / _RAMP) * share * max(next_room_s, _FORECAST_S_MIN)
    return min(braked_s, WRITE_WAIT_MAX_S)


@dataclass(slots=True)
class Forecast:
    """When the segment under way makes room, judged by its progress and by the one before it.

    Times are seconds of any one clock.
    """

    _content_bytes: int = 0
    _written_bytes: int = 0
    _begun_s: float | None = None
    _all_written_s: float | None = None
    _bytes_per_s: float | None = None
    # From the last byte of content until room is made: flushing, reading back, taking note.
    _closing_s: float = _CLOSING_S

    def begin(self, content_bytes: int, now_s: float) -> None:
        """A segment with so much content begins."""
        self._content_bytes, self._begun_s = content_bytes, now_s
        self._written_bytes, self._all_written_s = 0, None

    def progress(self, written_bytes: int, now_s: float) -> None:
        """So much of it is on its way; whoever writes may forget the figure once all of it is."""
        if self._begun_s is None or written_bytes <= self._written_bytes:
            return
        self._written_bytes = written_bytes
        if now_s - self._begun_s >= _RATE_S_MIN:
            self._bytes_per_s = written_bytes / (now_s - self._begun_s)
        if self._all_written_s is None and written_bytes >= self._content_bytes:
            self._all_written_s = now_s

    def end(self, now_s: float, *, committed: bool) -> None:
        """It is over. `committed`: what it brought to tape may leave the spool."""
        if committed and self._all_written_s is not None:
            self._closing_s = now_s - self._all_written_s
        self._begun_s = None

    def next_room_s(self, now_s: float) -> float | None:
        """Seconds until room is made; None: nobody knows."""
        if self._begun_s is None or self._bytes_per_s is None:
            return None
        if self._all_written_s is not None:
            return max(0.0, self._all_written_s + self._closing_s - now_s)
        left_bytes = self._content_bytes - self._written_bytes
        return left_bytes / self._bytes_per_s + self._closing_s
