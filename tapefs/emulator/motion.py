"""How long the emulated drive takes: a model of rate, search and stops, on nobody's clock.

Positions are bytes of the image. A serpentine tape runs up and down along its length, one wrap
after the other, so places far apart in bytes may lie side by side; a single-track tape is the
case of one wrap. The model only adds up; whether anybody waits is the caller's choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tapefs.emulator.personality import Personality

# To move the head to another wrap; the published cost function of an LTO-8 says 6.7 s.
WRAP_CHANGE_S: Final = 6.7


class MotionModel:
    """Seconds that a drive of this personality is busy with a cartridge of `capacity_bytes`."""

    def __init__(self, personality: Personality, capacity_bytes: int) -> None:
        self._personality = personality
        self._wrap_bytes = max(1, -(-capacity_bytes // personality.wrap_count))

    def transfer_s(self, byte_count: int) -> float:
        """Time to stream so many bytes."""
        return byte_count / self._personality.rate_bytes_per_s

    def stop_s(self) -> float:
        """Time lost when the tape stops and has to be repositioned, as a flush makes it."""
        return self._personality.stop_s

    def search_s(self, start_bytes: int, end_bytes: int) -> float:
        """Time to go from one place to another without reading."""
        if start_bytes == end_bytes:
            return 0.0
        start_wrap, start_along = self._place(start_bytes)
        end_wrap, end_along = self._place(end_bytes)
        along = abs(end_along - start_along) * self._personality.full_search_s
        change = WRAP_CHANGE_S if start_wrap != end_wrap else 0.0
        return self._personality.motion_start_s + along + change

    def wrap_limits(self, end_bytes: int) -> range:
        """Where wraps end, as far as that lies before `end_bytes`."""
        return range(self._wrap_bytes, end_bytes, self._wrap_bytes)

    def load_s(self, *, first: bool = False) -> float:
        """Time to take a cartridge in and thread it; some calibrate on its `first` load."""
        return self._personality.load_s + (self._personality.first_load_s if first else 0.0)

    def _place(self, position_bytes: int) -> tuple[int, float]:
        """The wrap, and how far along the tape's length (0 to 1) the position is."""
        wrap, within_bytes = divmod(position_bytes, self._wrap_bytes)
        along = within_bytes / self._wrap_bytes
        return wrap, 1.0 - along if wrap % 2 else along
