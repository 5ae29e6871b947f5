"""Whether, and when, a write may go ahead: neither the tape nor the spool may overflow.

The tape is accounted first (P9): what does not fit is refused with ENOSPC while there is still room
for everything accepted before. The spool only makes writers wait: above the high water mark as
`brake` says, all of them at one common pace, and at the limit until the archiver has made room.
"""

from __future__ import annotations

import enum
import errno
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tapefs.archive import brake
from tapefs.errors import FilesystemError, SpoolFull, VolumeFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.spool import Spool
    from tapefs.config import Config

# Shorter waits are saved up: a timer for each small write would cost more than it brakes.
_NAP_S: Final = 0.005
# Whether writers are slowed is judged over this time.
_LATELY_S: Final = 1.0


class Flow(enum.Enum):
    """How writes get on."""

    FREE = "free"
    SLOWED = "slowed"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Backpressure:
    """How writes get on, and what is behind it, for whoever asks.

    `bytes_per_s` is the pace that all writers share while slowed; `next_room_s` when the segment
    under way is expected to make room. None: it does not apply, or nobody knows.
    """

    flow: Flow
    bytes_per_s: float | None = None
    next_room_s: float | None = None


class Recalled(Protocol):
    """What is kept of the tape's content beside the spool, and gives way to it."""

    def shrink(self) -> None:
        """Give back what the spool has use for."""

    def clear(self) -> bool:
        """Give back everything; false when there is nothing."""


class Admission:
    """Lets writes in. The three callables are set by whoever builds the archive.

    `next_room_s` says when the segment under way will have made room; None: nobody knows.
    """

    def __init__(
        self,
        account: CapacityAccount,
        spool: Spool,
        config: Config,
        recalled: Recalled | None = None,
    ) -> None:
        self._account = account
        self._spool = spool
        self._recalled = recalled
        self._high_water = config.spool_high_water
        self._room = trio.Event()
        self.evict: Callable[[int], None] = lambda _: None
        self.wake_archiver: Callable[[], None] = lambda: None
        self.next_room_s: Callable[[], float | None] = lambda: None
        # Up to when the pace has been given away to writes already; and what it was last.
        self._paced_until = self._slowed_at = -math.inf
        self._pace_bytes_per_s: float | None = None
        self._braked_bytes = self._waiting_count = 0
        # A sentence why nothing can be changed on this volume and nothing is written to it.
        self.read_only_reason: str | None = None
        # A sentence why nothing can be changed any more: the end of the tape is near.
        self.full_reason: str | None = None
        # A sentence why nothing can go to tape for now, or None.
        self.stuck_reason: str | None = None

    @property
    def closed_reason(self) -> str | None:
        """A sentence why nothing more goes to this volume, or None."""
        return self.read_only_reason or self.full_reason

    def close_read_only(self, reason: str) -> None:
        """From now on nothing changes and nothing is written; what is accepted stays."""
        self.read_only_reason = reason
        self._account.closed = True
        self.tape_is_stuck(reason)

    def close_full(self) -> None:
        """From now on nothing changes; of what is accepted only the checkpoint is written."""
        self.full_reason = "the end of the tape is reached"
        self._account.closed = True
        self.tape_is_stuck(self.full_reason)

    def check_writable(self) -> None:
        """Raises FilesystemError(EROFS) or VolumeFull (ENOSPC) when nothing may change."""
        if self.read_only_reason is not None:
            raise FilesystemError(errno.EROFS, self.read_only_reason)
        if self.full_reason is not None:
            raise VolumeFull(f"{self.full_reason}; unmount it and insert another one")

    def backpressure(self) -> Backpressure:
        """How writes get on now."""
        if self._waiting_count:
            return Backpressure(Flow.WAITING, None, self.next_room_s())
        if trio.current_time() < max(self._slowed_at, self._paced_until) + _LATELY_S:
            return Backpressure(Flow.SLOWED, self._pace_bytes_per_s, self.next_room_s())
        return Backpressure(Flow.FREE)

    def make_room_on_disk(self) -> bool:
        """The disk is full: give back what is on tape as well; false when there is nothing."""
        return self._recalled is not None and self._recalled.clear()

    async def admit(self, tape_bytes: int, spool_bytes: int) -> None:
        """Return when `tape_bytes` more for the tape and `spool_bytes` more in the spool are fine.

        Raises VolumeFull, SpoolFull (ENOSPC) or FilesystemError(EROFS).
        """
        self.check_writable()
        while not self._account.fits(tape_bytes):
            if not self._account.counts_twice:
                raise VolumeFull("the cartridge is full; unmount it and insert another one")
            await self._wait_for_room()
            self.check_writable()
        if not spool_bytes:
            return
        spool = self._spool
        if self._recalled is not None:
            self._recalled.shrink()
        if spool.pressure() > self._high_water:
            self.evict(int(spool.limit_bytes * self._high_water))
            self.wake_archiver()
            if self.stuck_reason is None:
                await self._slow_down(spool_bytes)
        while spool.used_bytes + spool_bytes > spool.limit_bytes:
            if self.stuck_reason is not None:
                raise SpoolFull(f"the spool is full and {self.stuck_reason}")
            self.wake_archiver()
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self._waiting_count += 1
        try:
            await self._room.wait()
        finally:
            self._waiting_count -= 1

    async def _slow_down(self, spool_bytes: int) -> None:
        """Wait for this write's turn at the pace that all writers share."""
        spool = self._spool
        # Whoever waits already will have his room before this one.
        used_bytes = spool.used_bytes + self._braked_bytes
        delay_s = brake.delay_s(
            spool_bytes, used_bytes, spool.limit_bytes, self._high_water, self.next_room_s()
        )
        if not delay_s:
            return
        now = trio.current_time()
        turn = max(self._paced_until, now) + delay_s
        self._paced_until, self._slowed_at = turn, now
        self._pace_bytes_per_s = spool_bytes / delay_s
        if turn - now < _NAP_S:
            return
        self._braked_bytes += spool_bytes
        try:
            with trio.move_on_at(turn):
                while spool.pressure() > self._high_water and self.stuck_reason is None:
                    await self._room.wait()
                self._paced_until = -math.inf
        finally:
            self._braked_bytes -= spool_bytes

    def room_was_made(self) -> None:
        """Something left the spool, or the reason to wait has changed: look again."""
        room, self._room = self._room, trio.Event()
        room.set()

    def tape_is_stuck(self, reason: str | None) -> None:
        """Nothing can go to tape for now (`reason`), or it can again (None)."""
        self.stuck_reason = reason
        self.room_was_made()
