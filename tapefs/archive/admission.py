"""Whether, and when, a write may go ahead: neither the tape nor the spool may overflow.

The tape is accounted first (P9): what does not fit is refused with ENOSPC while there is still room
for everything accepted before. The spool only makes writers wait: first a little, growing with the
square of what is above the high water mark, and at the limit until the archiver has made room.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tapefs.config import MIB
from tapefs.errors import FilesystemError, SpoolFull, VolumeFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.spool import Spool
    from tapefs.config import Config

# Delay for one MiB written when the spool is about to be full; smaller before, by the square.
_BRAKE_S_PER_MIB: Final = 0.2


class Recalled(Protocol):
    """What is kept of the tape's content beside the spool, and gives way to it."""

    def shrink(self) -> None:
        """Give back what the spool has use for."""

    def clear(self) -> None:
        """Give back everything."""


class Admission:
    """Lets writes in. `evict` and `wake_archiver` are set by whoever builds the archive."""

    def __init__(self, account: CapacityAccount, spool: Spool, config: Config) -> None:
        self._account = account
        self._spool = spool
        self._high_water = config.spool_high_water
        self._room = trio.Event()
        self.evict: Callable[[int], None] = lambda _: None
        self.wake_archiver: Callable[[], None] = lambda: None
        # Set by whoever builds the archive, if there is any.
        self.recalled: Recalled | None = None
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

    async def admit(self, tape_bytes: int, spool_bytes: int) -> None:
        """Return when `tape_bytes` more for the tape and `spool_bytes` more in the spool are fine.

        Raises VolumeFull, SpoolFull (ENOSPC) or FilesystemError(EROFS).
        """
        self.check_writable()
        while not self._account.fits(tape_bytes):
            if not self._account.counts_twice:
                raise VolumeFull("the cartridge is full; unmount it and insert another one")
            await self._room.wait()
            self.check_writable()
        if not spool_bytes:
            return
        spool = self._spool
        if self.recalled is not None:
            self.recalled.shrink()
        if spool.pressure() > self._high_water:
            self.evict(int(spool.limit_bytes * self._high_water))
            self.wake_archiver()
            await self._slow_down(spool_bytes)
        while spool.used_bytes + spool_bytes > spool.limit_bytes:
            if self.stuck_reason is not None:
                raise SpoolFull(f"the spool is full and {self.stuck_reason}")
            self.wake_archiver()
            await self._room.wait()

    async def _slow_down(self, spool_bytes: int) -> None:
        above = (self._spool.pressure() - self._high_water) / (1.0 - self._high_water)
        if above > 0:
            await trio.sleep(_BRAKE_S_PER_MIB * min(1.0, above) ** 2 * spool_bytes / MIB)

    def room_was_made(self) -> None:
        """Something left the spool, or the reason to wait has changed: look again."""
        room, self._room = self._room, trio.Event()
        room.set()

    def tape_is_stuck(self, reason: str | None) -> None:
        """Nothing can go to tape for now (`reason`), or it can again (None)."""
        self.stuck_reason = reason
        self.room_was_made()
