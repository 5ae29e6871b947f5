"""What CHECK CONDITION can mean, as exceptions, each with what tapefs does about it."""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING

from tapefs.errors import (
    DriveFailed,
    DriveGone,
    ExitCode,
    Fault,
    MediumFailed,
    NotReady,
    TapefsError,
    VolumeFull,
    WriteProtected,
    WrongTape,
)

if TYPE_CHECKING:
    from tapefs.scsi.sense_data import Sense


class Reaction(enum.Enum):
    """What follows from a condition."""

    SUCCESS = "the command did what it was asked"
    RESULT = "not an error: the flags and INFORMATION are the result"
    WAIT = "ask again in a second"
    LOAD = "send LOAD, then wait"
    RETRY = "send it again if it does not move the medium"
    RECOVER = "the position is unknown: rewind or locate before anything else"
    RESEND = "only told in passing: the command was not executed, send it again"
    REMOUNT = "nothing known about the medium holds any more"
    RESELECT = "send MODE SELECT again"
    FALL_BACK = "the drive cannot do this: do without"
    READ_ONLY = "write no more on this medium"
    APPEND = "write on this medium only where nothing was written yet"
    FULL = "the medium is full, and data is missing"
    ALLOW = "allow removal first"
    NO_MEDIUM = "there is nothing to work on"
    STOP = "stop using the drive"


class CheckCondition(TapefsError):
    """A command ended with CHECK CONDITION; `sense` is what the drive said about it.

    Raised only as one of the subclasses. `reaction` is the row of the reaction table.
    """

    def __init__(self, message: str, sense: Sense, reaction: Reaction) -> None:
        super().__init__(message)
        self.sense = sense
        self.reaction = reaction


class FilemarkDetected(CheckCondition):
    """A filemark was met where a block was asked for; the position is behind it."""

    fault = Fault.BUG


class EndOfData(CheckCondition):
    """Nothing was ever recorded from here on; the position is where an append goes."""

    fault = Fault.BUG


class BeginningOfMedium(CheckCondition):
    """Spacing backwards met the beginning of the partition; the position is there."""

    fault = Fault.BUG


class EarlyWarning(CheckCondition):
    """A write succeeded, and the end of the medium is near. Not an error.

    `programmable`: only the host's own mark (SSC-4 PEWZ) was passed, not the drive's.
    """

    fault = Fault.OPERATOR

    @property
    def programmable(self) -> bool:
        """True when the drive's own early warning is still ahead."""
        return self.sense.ascq == 0x07


class EndOfMedium(CheckCondition, VolumeFull):
    """The hard end: not everything was written, or nothing more can be read or reached.

    `sense.information`, when present, says how much is missing; in buffered mode that may
    include blocks of earlier, successful commands (SSC-4, buffered mode and VOLUME OVERFLOW).
    """


class IncorrectLength(CheckCondition):
    """A block did not have the length that was asked for; see `sense.information`."""

    fault = Fault.HOST


class Recovered(CheckCondition):
    """The command succeeded, with effort or with advice (cleaning, failure prediction)."""

    fault = Fault.DRIVE


class DriveAdvice(Recovered):
    """The command succeeded, and the drive wants something of the operator: cleaning, mostly."""

    fault = Fault.OPERATOR


class NotReadyCondition(CheckCondition, NotReady):
    """The drive cannot use its medium as things are."""


class BecomingReady(NotReadyCondition):
    """The drive is loading or busy with the medium; asking again is right."""


class NoMedium(NotReadyCondition):
    """There is no cartridge in the drive."""


class MediumError(CheckCondition, MediumFailed):
    """The tape could not be read, written or positioned at this place."""


class HardwareError(CheckCondition, DriveFailed):
    """The drive itself has failed."""


class IllegalRequest(CheckCondition, DriveFailed):
    """The drive refuses the command as it was put."""


class UnknownOpcode(IllegalRequest):
    """The drive does not have this command at all."""


class UnitAttention(CheckCondition):
    """Something happened to the drive that the host has to know before it goes on."""

    fault = Fault.DRIVE
    exit_code = ExitCode.DRIVE_ERROR


class MediumChanged(UnitAttention, WrongTape):
    """The medium may have been changed; nothing known about it holds any more."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.WRONG_TAPE


class PowerOnReset(UnitAttention, DriveGone):
    """The drive was reset or lost power; its buffer, modes and position are gone."""

    errno_value = errno.ENODEV
    exit_code = ExitCode.UNPLUGGED


class ModeParametersChanged(UnitAttention):
    """Somebody else changed the drive's mode parameters."""


class DriveChanged(UnitAttention):
    """The drive has new firmware or calls itself something else; it must be probed again."""


class EjectRequested(UnitAttention):
    """The operator pressed the eject button."""

    fault = Fault.OPERATOR


class DataProtect(CheckCondition, WriteProtected):
    """The medium or the drive forbids this access."""


class WriteProtectedCondition(DataProtect):
    """The cartridge or the drive is write-protected."""


class WriteOnceCondition(DataProtect):
    """The cartridge can be written only once: it may be appended to, never overwritten."""


class BlankCheck(CheckCondition, MediumFailed):
    """The end of data is damaged or not where it should be."""


class AbortedCommand(CheckCondition, DriveFailed):
    """The drive gave the command up, mostly for a fault on the wire."""


class OverlappedCommands(AbortedCommand):
    """The drive saw two commands at once. The single lane makes this impossible: a bug."""

    fault = Fault.BUG
    exit_code = ExitCode.BUG


class DeferredError(CheckCondition):
    """An earlier command, reported good, failed after all; this one was not executed.

    `condition` is what the failure would have been had it been reported at once. Raised only as
    one of the subclasses, which say to upper layers what has failed.
    """

    def __init__(self, message: str, condition: CheckCondition) -> None:
        super().__init__(message, condition.sense, condition.reaction)
        self.condition = condition


class DeferredEndOfMedium(DeferredError, EndOfMedium):
    """Something written earlier was beyond the physical end."""


class DeferredMediumError(DeferredError, MediumError):
    """Something written earlier could not be put on tape."""


class DeferredDriveError(DeferredError, DriveFailed):
    """Anything else that came to light too late."""


class Unclassified(CheckCondition, DriveFailed):
    """A sense key that a tape drive has no business to report."""
