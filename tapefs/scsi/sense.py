"""From sense data to what it means: the reaction table of tapefs, as a table.

Order of judgement. A deferred report is about an earlier command whatever else it says. With BLANK
CHECK the key decides and the flag bits are ignored: drives set them at random there. With NO SENSE
and RECOVERED ERROR the flag bits FILEMARK, ILI and EOM outrank key and code (the rows with a
`flag`), because some drives set a flag and leave the code zero. Everything else is looked up: key
and code and qualifier, then key and code, then the key alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tapefs.scsi.conditions import AbortedCommand as AbortedCommand
from tapefs.scsi.conditions import BecomingReady as BecomingReady
from tapefs.scsi.conditions import BeginningOfMedium as BeginningOfMedium
from tapefs.scsi.conditions import BlankCheck as BlankCheck
from tapefs.scsi.conditions import CheckCondition as CheckCondition
from tapefs.scsi.conditions import DataProtect as DataProtect
from tapefs.scsi.conditions import DeferredDriveError as DeferredDriveError
from tapefs.scsi.conditions import DeferredEndOfMedium as DeferredEndOfMedium
from tapefs.scsi.conditions import DeferredError as DeferredError
from tapefs.scsi.conditions import DeferredMediumError as DeferredMediumError
from tapefs.scsi.conditions import DriveAdvice as DriveAdvice
from tapefs.scsi.conditions import DriveChanged as DriveChanged
from tapefs.scsi.conditions import EarlyWarning as EarlyWarning
from tapefs.scsi.conditions import EjectRequested as EjectRequested
from tapefs.scsi.conditions import EndOfData as EndOfData
from tapefs.scsi.conditions import EndOfMedium as EndOfMedium
from tapefs.scsi.conditions import FilemarkDetected as FilemarkDetected
from tapefs.scsi.conditions import HardwareError as HardwareError
from tapefs.scsi.conditions import IllegalRequest as IllegalRequest
from tapefs.scsi.conditions import IncorrectLength as IncorrectLength
from tapefs.scsi.conditions import MediumChanged as MediumChanged
from tapefs.scsi.conditions import MediumError as MediumError
from tapefs.scsi.conditions import ModeParametersChanged as ModeParametersChanged
from tapefs.scsi.conditions import NoMedium as NoMedium
from tapefs.scsi.conditions import NotReadyCondition as NotReadyCondition
from tapefs.scsi.conditions import OverlappedCommands as OverlappedCommands
from tapefs.scsi.conditions import PowerOnReset as PowerOnReset
from tapefs.scsi.conditions import Reaction as Reaction
from tapefs.scsi.conditions import Recovered as Recovered
from tapefs.scsi.conditions import Unclassified as Unclassified
from tapefs.scsi.conditions import UnitAttention as UnitAttention
from tapefs.scsi.conditions import UnknownOpcode as UnknownOpcode
from tapefs.scsi.conditions import WriteOnceCondition as WriteOnceCondition
from tapefs.scsi.conditions import WriteProtectedCondition as WriteProtectedCondition
from tapefs.scsi.sense_data import Sense as Sense
from tapefs.scsi.sense_data import SenseKey as SenseKey


class Row(NamedTuple):
    """One line of the table; None matches any code or qualifier.

    `flag` names the bit of `Sense` that alone makes a NO SENSE or RECOVERED ERROR fall here.
    """

    key: SenseKey
    asc: int | None
    ascq: int | None
    condition: type[CheckCondition]
    reaction: Reaction
    meaning: str
    flag: str = ""


_K = SenseKey
_R = Reaction

REACTIONS: Final[tuple[Row, ...]] = (
    # The flags, highest first. EOM alone is early warning; 00/04, 00/05, 00/07 say it better.
    Row(_K.NO_SENSE, None, None, FilemarkDetected, _R.RESULT, "a filemark", "filemark"),
    Row(
        _K.NO_SENSE,
        None,
        None,
        IncorrectLength,
        _R.RESULT,
        "a block of another length",
        "incorrect_length",
    ),
    Row(
        _K.NO_SENSE,
        None,
        None,
        EarlyWarning,
        _R.SUCCESS,
        "that the end of the tape is near",
        "end_of_medium",
    ),
    # Results and advice. Under RECOVERED ERROR the codes of NO SENSE mean the same.
    Row(_K.NO_SENSE, None, None, Recovered, _R.SUCCESS, "nothing in particular"),
    Row(_K.NO_SENSE, 0x00, 0x01, FilemarkDetected, _R.RESULT, "a filemark"),
    Row(_K.NO_SENSE, 0x00, 0x02, EarlyWarning, _R.SUCCESS, "that the end of the tape is near"),
    Row(_K.NO_SENSE, 0x00, 0x04, BeginningOfMedium, _R.RESULT, "the beginning of the tape"),
    Row(_K.NO_SENSE, 0x00, 0x05, EndOfData, _R.RESULT, "the end of the recorded data"),
    Row(_K.NO_SENSE, 0x00, 0x07, EarlyWarning, _R.SUCCESS, "that the reserve has begun"),
    Row(_K.NO_SENSE, 0x00, 0x16, BecomingReady, _R.WAIT, "an operation in progress"),
    Row(_K.NO_SENSE, 0x00, 0x17, DriveAdvice, _R.SUCCESS, "that it wants cleaning"),
    Row(_K.NO_SENSE, 0x00, 0x18, BecomingReady, _R.WAIT, "an erase in progress"),
    Row(_K.NO_SENSE, 0x30, 0x03, DriveAdvice, _R.SUCCESS, "a cleaning cartridge"),
    Row(_K.NO_SENSE, 0x82, 0x82, DriveAdvice, _R.SUCCESS, "that it wants cleaning"),
    Row(_K.RECOVERED_ERROR, None, None, Recovered, _R.SUCCESS, "a recovered error"),
    Row(_K.RECOVERED_ERROR, 0x37, 0x00, Recovered, _R.SUCCESS, "a rounded mode parameter"),
    Row(_K.RECOVERED_ERROR, 0x5D, None, DriveAdvice, _R.SUCCESS, "that it expects to fail soon"),
    # Not ready: the command was not executed, so that a wish for cleaning is no success here.
    Row(_K.NOT_READY, None, None, NotReadyCondition, _R.WAIT, "that it is not ready"),
    Row(_K.NOT_READY, 0x00, 0x17, BecomingReady, _R.WAIT, "that it is being cleaned"),
    Row(_K.NOT_READY, 0x04, 0x00, BecomingReady, _R.WAIT, "that it is not ready"),
    Row(_K.NOT_READY, 0x04, 0x01, BecomingReady, _R.WAIT, "that it is becoming ready"),
    Row(_K.NOT_READY, 0x04, 0x02, BecomingReady, _R.LOAD, "that the medium must be loaded"),
    Row(_K.NOT_READY, 0x04, 0x03, NotReadyCondition, _R.WAIT, "that somebody must look at it"),
    Row(_K.NOT_READY, 0x04, 0x04, BecomingReady, _R.WAIT, "a format in progress"),
    Row(_K.NOT_READY, 0x04, 0x07, BecomingReady, _R.WAIT, "an operation in progress"),
    Row(_K.NOT_READY, 0x04, 0x12, NotReadyCondition, _R.STOP, "that it is offline"),
    Row(_K.NOT_READY, 0x04, 0x13, BecomingReady, _R.WAIT, "an operation in progress"),
    Row(_K.NOT_READY, 0x30, 0x03, BecomingReady, _R.WAIT, "that it is being cleaned"),
    Row(_K.NOT_READY, 0x30, 0x07, NotReadyCondition, _R.STOP, "that cleaning failed"),
    Row(_K.NOT_READY, 0x3A, None, NoMedium, _R.NO_MEDIUM, "that no cartridge is loaded"),
    Row(_K.NOT_READY, 0x3E, 0x00, BecomingReady, _R.WAIT, "that it is still starting"),
    Row(_K.NOT_READY, 0x53, None, NotReadyCondition, _R.STOP, "that loading or ejecting failed"),
    # The medium.
    Row(_K.MEDIUM_ERROR, None, None, MediumError, _R.RECOVER, "a medium error"),
    Row(_K.MEDIUM_ERROR, 0x00, 0x02, EndOfMedium, _R.RESULT, "the physical end of the tape"),
    Row(_K.MEDIUM_ERROR, 0x03, None, MediumError, _R.RECOVER, "a write fault"),
    Row(_K.MEDIUM_ERROR, 0x09, None, MediumError, _R.RECOVER, "a tracking error"),
    Row(_K.MEDIUM_ERROR, 0x0C, None, MediumError, _R.RECOVER, "a write error"),
    Row(_K.MEDIUM_ERROR, 0x11, None, MediumError, _R.RECOVER, "an unrecovered read error"),
    Row(_K.MEDIUM_ERROR, 0x14, None, MediumError, _R.RECOVER, "that a block cannot be found"),
    Row(_K.MEDIUM_ERROR, 0x27, None, DataProtect, _R.READ_ONLY, "that it cannot append here"),
    Row(_K.MEDIUM_ERROR, 0x30, None, MediumError, _R.READ_ONLY, "a format it does not know"),
    Row(_K.MEDIUM_ERROR, 0x31, None, MediumError, _R.READ_ONLY, "a corrupted tape format"),
    Row(_K.MEDIUM_ERROR, 0x33, None, MediumError, _R.STOP, "a wrong tape length"),
    Row(_K.MEDIUM_ERROR, 0x3B, None, MediumError, _R.RECOVER, "that it lost its position"),
    Row(_K.MEDIUM_ERROR, 0x50, None, MediumError, _R.READ_ONLY, "that it cannot append here"),
    Row(_K.MEDIUM_ERROR, 0x51, None, MediumError, _R.STOP, "that erasing failed"),
    Row(_K.MEDIUM_ERROR, 0x52, None, MediumError, _R.STOP, "a broken cartridge"),
    Row(_K.MEDIUM_ERROR, 0x53, None, MediumError, _R.STOP, "that loading or ejecting failed"),
    # The drive, and what was asked of it.
    Row(_K.HARDWARE_ERROR, None, None, HardwareError, _R.STOP, "a hardware error"),
    Row(_K.ILLEGAL_REQUEST, None, None, IllegalRequest, _R.FALL_BACK, "a request it refuses"),
    Row(_K.ILLEGAL_REQUEST, 0x20, None, UnknownOpcode, _R.FALL_BACK, "an unknown command"),
    Row(_K.ILLEGAL_REQUEST, 0x24, None, IllegalRequest, _R.FALL_BACK, "a field it does not know"),
    Row(_K.ILLEGAL_REQUEST, 0x25, None, IllegalRequest, _R.STOP, "that this unit does not exist"),
    Row(_K.ILLEGAL_REQUEST, 0x30, 0x05, DataProtect, _R.READ_ONLY, "that it cannot write this"),
    Row(_K.ILLEGAL_REQUEST, 0x53, 0x02, IllegalRequest, _R.ALLOW, "that removal is prevented"),
    # News, in the place of a command that was not executed.
    Row(_K.UNIT_ATTENTION, None, None, UnitAttention, _R.RESEND, "a change of its state"),
    Row(_K.UNIT_ATTENTION, 0x28, None, MediumChanged, _R.REMOUNT, "that the tape was changed"),
    Row(_K.UNIT_ATTENTION, 0x29, None, PowerOnReset, _R.REMOUNT, "that it was reset"),
    Row(_K.UNIT_ATTENTION, 0x2A, 0x01, ModeParametersChanged, _R.RESELECT, "changed modes"),
    Row(_K.UNIT_ATTENTION, 0x3F, 0x01, DriveChanged, _R.REMOUNT, "new firmware"),
    Row(_K.UNIT_ATTENTION, 0x3F, 0x03, DriveChanged, _R.REMOUNT, "another identity"),
    Row(_K.UNIT_ATTENTION, 0x5A, 0x01, EjectRequested, _R.RESEND, "that eject was pressed"),
    # What the medium forbids.
    Row(_K.DATA_PROTECT, None, None, DataProtect, _R.READ_ONLY, "that access is forbidden"),
    Row(_K.DATA_PROTECT, 0x26, 0x10, DataProtect, _R.STOP, "a wrong encryption key"),
    Row(_K.DATA_PROTECT, 0x27, None, WriteProtectedCondition, _R.READ_ONLY, "write protection"),
    Row(_K.DATA_PROTECT, 0x2A, 0x13, DataProtect, _R.STOP, "another encryption key"),
    Row(_K.DATA_PROTECT, 0x30, 0x0C, WriteOnceCondition, _R.APPEND, "a cartridge to write once"),
    Row(_K.DATA_PROTECT, 0x30, 0x0D, WriteOnceCondition, _R.READ_ONLY, "doubts about its history"),
    Row(_K.DATA_PROTECT, 0x74, None, DataProtect, _R.STOP, "a missing encryption key"),
    # The rest.
    Row(_K.BLANK_CHECK, None, None, BlankCheck, _R.READ_ONLY, "a damaged end of data"),
    Row(_K.BLANK_CHECK, 0x00, None, EndOfData, _R.RESULT, "the end of the recorded data"),
    Row(_K.BLANK_CHECK, 0x14, None, BlankCheck, _R.READ_ONLY, "no end of data where it must be"),
    Row(_K.ABORTED_COMMAND, None, None, AbortedCommand, _R.RETRY, "a command it gave up"),
    Row(_K.ABORTED_COMMAND, 0x4E, None, OverlappedCommands, _R.STOP, "overlapped commands"),
    Row(_K.VOLUME_OVERFLOW, None, None, EndOfMedium, _R.FULL, "the physical end of the tape"),
    # COPY ABORTED, MISCOMPARE, COMPLETED, reserved and vendor's keys end here too.
    Row(_K.VENDOR_SPECIFIC, None, None, Unclassified, _R.STOP, "an unknown condition"),
)

_ADVICE: Final = {
    _R.SUCCESS: "nothing needs to be done",
    _R.RESULT: "nothing needs to be done",
    _R.WAIT: "wait until it is ready, or look at the drive",
    _R.LOAD: "load the cartridge again",
    _R.RETRY: "check cable and power, then try again",
    _R.RECOVER: "clean the drive and try again, or use another cartridge",
    _R.RESEND: "nothing needs to be done",
    _R.REMOUNT: "make sure that the right cartridge is loaded, then try again",
    _R.RESELECT: "make sure that nothing else uses the drive",
    _R.FALL_BACK: "report this drive with the output of 'tapefs drives --json'",
    _R.READ_ONLY: "the tape can be read but not written in this drive",
    _R.APPEND: "it can be appended to but not overwritten; use another cartridge",
    _R.FULL: "continue on another cartridge",
    _R.ALLOW: "unmount the tape before it is taken out",
    _R.NO_MEDIUM: "load a cartridge",
    _R.STOP: "power-cycle the drive, and have it looked at when that does not help",
}

_OPERATOR_ADVICE: Final = "see to it when the tape is unmounted"

_TABLE: Final = {(row.key, row.asc, row.ascq): row for row in REACTIONS if not row.flag}
_FLAGGED: Final = tuple(row for row in REACTIONS if row.flag)
_UNKNOWN: Final = _TABLE[_K.VENDOR_SPECIFIC, None, None]
_DEFERRED: Final = ((EndOfMedium, DeferredEndOfMedium), (MediumError, DeferredMediumError))


def reaction_row(sense: Sense) -> Row:
    """The line of the table that `sense` falls under, deferred or not."""
    row = _looked_up(sense)
    if sense.key not in (SenseKey.NO_SENSE, SenseKey.RECOVERED_ERROR):
        return row
    for flagged in _FLAGGED:
        if getattr(sense, flagged.flag):
            exact = flagged.condition is EarlyWarning and not issubclass(row.condition, Recovered)
            return row if exact else flagged
    return row


def _looked_up(sense: Sense) -> Row:
    # What may stand in sense under key 1 for a result also stands there under key 0.
    keys = (sense.key, SenseKey.NO_SENSE) if sense.key is _K.RECOVERED_ERROR else (sense.key,)
    for asc, ascq in ((sense.asc, sense.ascq), (sense.asc, None), (None, None)):
        for key in keys:
            if row := _TABLE.get((key, asc, ascq)):
                return row
    return _UNKNOWN


def check_condition(sense: Sense, command: str = "") -> CheckCondition:
    """The exception that says what `sense` means; `command` is named in its message.

    Every sense gives one: conditions that are no errors (EarlyWarning, Recovered) included, for
    the caller to look at `reaction` and go on.
    """
    row = reaction_row(sense)
    advice = _OPERATOR_ADVICE if row.condition is DriveAdvice else _ADVICE[row.reaction]
    during = f" on {command}" if command else ""
    detail = f"{row.meaning} (sense {sense.code}{during})"
    message = f"the drive reports {detail}; {advice}"
    condition = row.condition(message, sense, row.reaction)
    if not sense.deferred:
        return condition
    kind = next((late for now, late in _DEFERRED if isinstance(condition, now)), DeferredDriveError)
    return kind(
        f"the drive reports, too late for the command it concerns, {detail}; {advice}",
        condition,
    )
