"""After the drive or its cartridge was away: back to work, but only with the same two, proven.

Unplugged, reset, switched off and on, the cartridge taken out: whatever happened, nothing that was
known about drive and medium holds any more. Before a mount goes on with them they must be the same
drive, a cartridge with the same label, and a tape that still holds what the catalog says. Anything
else is refused with a sentence that names what to connect or insert, and left alone. Nothing here
writes; the end of data is proven once more by whoever writes next (P6).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.archive.recovery import prove_known_tape
from tapefs.errors import (
    BlankTape,
    DamagedTape,
    DriveBusy,
    DriveGone,
    ForeignTape,
    NoDrive,
    NotReady,
    TapefsError,
    WrongTape,
)
from tapefs.scsi.sense import MediumChanged, NoMedium, PowerOnReset
from tapefs.volume.session import read_label

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tapefs.catalog import TapeView
    from tapefs.drive import DriveIdentity, TapeDrive
    from tapefs.volume.label import Label

# After one of these nobody knows which medium is in which drive, or where its head stands.
_IN_DOUBT: Final = (DriveGone, DriveBusy, NoDrive, NotReady, MediumChanged)
# These say what the cartridge is; asking again makes sense only after it was taken out.
_REFUSALS: Final = (WrongTape, ForeignTape, BlankTape, DamagedTape)


def leaves_in_doubt(error: BaseException) -> bool:
    """Whether drive and medium must be proven anew after a job that ended with `error`."""
    return isinstance(error, _IN_DOUBT)


def what_happened(error: TapefsError) -> str:
    """In a few words for a person, why `error` ended the work with the drive."""
    kinds = {
        PowerOnReset: "the drive was reset or lost power",
        MediumChanged: "the cartridge was taken out or changed",
        NoMedium: "the cartridge was taken out",
        NotReady: "the drive was not ready any more",
        DriveBusy: "another program took the drive",
    }
    fitting = (words for kind, words in kinds.items() if isinstance(error, kind))
    return next(fitting, str(error).partition(";")[0])


def prove_drive(found: DriveIdentity, expected: DriveIdentity) -> None:
    """Maker, model and serial number must agree; firmware may change. Raises NoDrive."""
    if _name(found) != _name(expected):
        raise NoDrive(
            f"{_name(found)} is connected, but the tape was mounted in {_name(expected)}; "
            "connect that drive again"
        )


def prove_label(found: Label, expected: Label) -> None:
    """It must be the same volume. Raises WrongTape."""
    if found.volume_uuid != expected.volume_uuid:
        raise WrongTape(
            f"volume '{found.name}' ({found.volume_uuid}) is loaded; insert volume "
            f"'{expected.name}' ({expected.volume_uuid}) again"
        )


def _name(identity: DriveIdentity) -> str:
    serial = f" (serial number {identity.serial})" if identity.serial else ""
    return f"{identity.vendor} {identity.product}{serial}"


@dataclass(frozen=True, slots=True)
class Away:
    """Why the lane serves nobody for now. `since_ns` is wall clock time."""

    since_ns: int
    happened: str
    wanted: str
    # What the last look found; empty before the first one.
    finding: str = ""

    @property
    def since(self) -> str:
        """Local time for a person, to the second."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_ns / 1e9))

    @property
    def sentence(self) -> str:
        """What happened, since when, and what to do."""
        finding = f" ({self.finding})" if self.finding else ""
        return (
            f"{self.happened}: since {self.since} the mount waits for {self.wanted}, "
            f"and goes on by itself when it is there{finding}"
        )


class Resumption:
    """Looks for the drive and cartridge of one mount. For the lane's task only.

    `reopen` closes the old wire for good, opens the drive again by the name it was mounted with,
    and raises NoDrive and others while there is none. It is asked only when the old wire is lost.
    """

    def __init__(
        self,
        drive: TapeDrive,
        label: Label,
        view: TapeView,
        reopen: Callable[[], Awaitable[TapeDrive]],
        ready_s: float,
        *,
        writable: bool,
    ) -> None:
        """`drive` is the one to be found again; each look waits `ready_s` for it to be ready."""
        self._drive = drive
        self._identity = drive.identity
        self._label = label
        self._view = view
        self._reopen = reopen
        self._ready_s = ready_s
        self._writable = writable
        self._refused: TapefsError | None = None

    @property
    def wanted(self) -> str:
        """The drive and the cartridge that the mount waits for, in words."""
        return f"{_name(self._identity)} with volume '{self._label.name}'"

    async def look(self) -> TapeDrive:
        """Look once; return the drive, with everything proven and its modes set.

        Raises what speaks against it, a sentence that says what to do. A cartridge that was
        refused is not looked at again before it was taken out.
        """
        if self._refused is not None and await self._is_unchanged():
            raise self._refused
        self._refused = None
        drive = await self._ready_drive()
        try:
            prove_label(await read_label(drive), self._label)
            await prove_known_tape(drive, self._view, writable=self._writable)
        except _REFUSALS as error:
            if not leaves_in_doubt(error):
                self._refused = self._refusal(error)
                raise self._refused from error
            raise
        return drive

    def _refusal(self, error: TapefsError) -> TapefsError:
        if isinstance(error, WrongTape):
            return error
        found = str(error).partition(";")[0]
        return WrongTape(f"{found}; insert volume '{self._label.name}' again")

    async def _is_unchanged(self) -> bool:
        """Whether the cartridge that was refused is still in the drive."""
        try:
            return not self._drive.lost and await self._drive.test_ready()
        except TapefsError:
            return False

    async def _ready_drive(self) -> TapeDrive:
        if self._drive.lost:
            self._drive = await self._reopen()
            try:
                prove_drive(self._drive.identity, self._identity)
            except NoDrive:
                await self._drive.aclose()
                raise
            if self._drive.medium_loaded:
                return self._drive
        # Also where the drive claims to be ready: not every one says that it was reset.
        await self._drive.wait_ready(self._ready_s)
        return self._drive
