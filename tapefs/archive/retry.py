"""When the archiver tries again by itself, which depends on how the last time ended."""

from __future__ import annotations

from typing import Final

import trio

# After a look that found nothing ready, although something waits, the next one comes after this.
_LOOK_AGAIN_S: Final = 1.0
# What was not ready although it is settled will hardly become so by itself (a deleted file that is
# in use): unless something happens before, the next look comes after this.
_LOOK_AGAIN_IN_VAIN_S: Final = 3600.0
# After a failure the archiver tries again by itself after this time.
_RETRY_S: Final = 60.0


class Retry:
    """For the archiver's task. Not before `at`, on trio's clock; None: at any time.

    `called_at`: when something happened last. `overdue`: a burst was cut off, and goes on as soon
    as it can.
    """

    def __init__(self, settle_s: float) -> None:
        self.at: float | None = None
        self._settle_s = settle_s
        self.called_at = 0.0
        # Whether all that happened until then was looked at, settled, for nothing.
        self._in_vain = False
        # How many segments there were when the drive was lost under a burst.
        self._segments_at_loss = -1
        self.overdue = False

    @property
    def holds_back(self) -> bool:
        """It is too early."""
        return self.at is not None and trio.current_time() < self.at

    def called(self) -> bool:
        """Something happened: look again if the last look found nothing. True when that is now
        earlier than it was."""
        self.called_at = trio.current_time()
        if not self._in_vain:
            return False
        self._in_vain, self.at = False, None
        return True

    def lost(self, segments: int) -> None:
        """The drive was lost under a burst, after so many segments since the mount.

        The next burst comes as soon as it is back; but a drive that is lost again and again and
        takes no segment in between would fill the tape with torn ones.
        """
        again = segments == self._segments_at_loss
        self.at = trio.current_time() + _RETRY_S if again else None
        self._segments_at_loss = segments
        self._in_vain, self.overdue = False, True

    def failed(self) -> None:
        """Something else than the loss of the drive kept a burst from its end."""
        self.at = trio.current_time() + _RETRY_S
        self.overdue = self._in_vain = False

    def succeeded(self, *, wrote: bool, full: bool) -> None:
        """What was ready is on tape. What waits, unless it `wrote`, was not ready, or did not fit
        (`full`).
        """
        now = trio.current_time()
        self._in_vain = not wrote and not full and now > self.called_at + self._settle_s
        pause_s = _RETRY_S if full else _LOOK_AGAIN_S
        if self._in_vain:
            pause_s = _LOOK_AGAIN_IN_VAIN_S
        self.at = None if wrote else now + pause_s
        self.overdue = False
