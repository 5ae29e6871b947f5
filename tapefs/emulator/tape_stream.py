"""How a drive's buffer and its running tape keep up with the host, by somebody's clock.

A tape runs at the drive's rate, or slower where the drive matches its speed, but no slower than its
lowest. When the buffer is empty the tape runs on, stops, goes back and waits: a back-hitch, which
wears tape and heads. It starts again when the buffer is half full, or when somebody waits for it.

Only writing is modelled. That a drive is half full when it starts, and that its speed follows the
buffer, is a guess: vendors publish the limits and not the rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.emulator.personality import Personality

# The tape starts when this share of the buffer is full, and is at full speed from there on.
_START_SHARE: Final = 0.5


@dataclass(slots=True)
class StreamStatistics:
    """Since the drive was made. `stop_count`: stops because everything had to be on tape."""

    written_bytes: float = 0.0
    writing_s: float = 0.0
    back_hitch_count: int = 0
    stop_count: int = 0


class TapeStream:
    """The buffer of one drive and the tape behind it. Not thread-safe.

    `now_s` is any clock in seconds. Methods say how long the host is kept waiting; what is asked
    next counts as asked after that wait, also when the clock was not moved on.
    """

    def __init__(self, personality: Personality, now_s: Callable[[], float]) -> None:
        self.statistics = StreamStatistics()
        self._now_s = now_s
        self._rate = personality.rate_bytes_per_s
        self._rate_min = personality.lowest_rate_bytes_per_s
        self._size_bytes = personality.drive_buffer_bytes
        self._stop_s = personality.stop_s
        self._at_s = -math.inf
        self._held_bytes = 0.0
        self._runs = False
        # When the tape is back in place after a stop.
        self._ready_s = -math.inf

    def accept(self, byte_count: int) -> float:
        """The host sends so many bytes; seconds until they are in the buffer."""
        asked_s = self._catch_up()
        size_bytes = min(byte_count, self._size_bytes)
        over_bytes = self._held_bytes + size_bytes - self._size_bytes
        if over_bytes > 0:
            self._write_out(over_bytes)
        self._held_bytes += size_bytes
        if self._held_bytes >= self._size_bytes * _START_SHARE:
            self._runs = True
        return self._at_s - asked_s

    def flush(self) -> float:
        """Something is not on tape yet; seconds until everything is, and the tape stands."""
        asked_s = self._catch_up()
        self._write_out(self._held_bytes)
        self._at_s += self._stop_s
        self._runs = False
        self.statistics.stop_count += 1
        return self._at_s - asked_s

    def discard(self) -> None:
        """Power failed: what is in the buffer is lost."""
        self._catch_up()
        self._held_bytes, self._runs = 0.0, False

    def is_writing(self) -> bool:
        """Whether the tape runs now."""
        self._catch_up()
        return self._runs and self._at_s >= self._ready_s

    def _catch_up(self) -> float:
        """What has happened since the last time; the moment that it is now."""
        now_s = max(self._now_s(), self._at_s)
        while self._runs and self._at_s < now_s:
            if self._at_s < self._ready_s:
                self._at_s = min(self._ready_s, now_s)
                continue
            speed = self._speed()
            span_s = min(now_s - self._at_s, self._held_bytes / speed)
            self._run(span_s, speed)
            if self._held_bytes <= 0:
                self._runs = False
                self._ready_s = self._at_s + self._stop_s
                self.statistics.back_hitch_count += 1
        self._at_s = now_s
        return now_s

    def _speed(self) -> float:
        share = self._held_bytes / (self._size_bytes * _START_SHARE)
        return self._rate_min + (self._rate - self._rate_min) * min(1.0, share)

    def _write_out(self, byte_count: float) -> None:
        """The host waits for so many bytes to leave the buffer."""
        self._runs = True
        self._at_s = max(self._at_s, self._ready_s)
        self._run(byte_count / self._rate, self._rate)

    def _run(self, span_s: float, speed: float) -> None:
        moved_bytes = min(self._held_bytes, span_s * speed)
        # What rounding leaves of the last byte is none.
        left_bytes = self._held_bytes - moved_bytes
        self._held_bytes = left_bytes if left_bytes >= 1e-3 else 0.0
        self._at_s += span_s
        self.statistics.written_bytes += moved_bytes
        self.statistics.writing_s += span_s
