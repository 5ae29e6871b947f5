"""What can go wrong, and what each error tells its reader.

Every error answers three questions as class attributes: whose fault it is (`fault`), whether the
same request may simply be repeated (`retry`), and which number it becomes at the edge:
`errno_value` for a program that called the filesystem, `exit_code` for one that ran the command
line. The text is one sentence for the user that ends with what to do next; a traceback is never
shown for these.
"""

from __future__ import annotations

import enum
import errno
from typing import ClassVar


class Fault(enum.Enum):
    """Who has to act before the request can succeed."""

    OPERATOR = "operator"
    MEDIUM = "medium"
    DRIVE = "drive"
    HOST = "host"
    BUG = "bug"


class ExitCode(enum.IntEnum):
    """The exit codes of `tapefs`; README.md lists them for scripts."""

    OK = 0
    BUG = 1
    USAGE = 2
    NO_DRIVE = 3
    DRIVE_BUSY = 4
    NOT_READY = 5
    BLANK_TAPE = 6
    FOREIGN_TAPE = 7
    WRONG_TAPE = 8
    DAMAGED_TAPE = 9
    DRIVE_ERROR = 10
    WRITE_PROTECTED = 11
    FULL = 12
    STATE_UNUSABLE = 13
    MOUNTPOINT_UNUSABLE = 14
    NO_FUSE = 15
    NOT_MOUNTED = 16
    HAS_DATA = 17
    MOUNT_BUSY = 18
    NOT_FINALIZED = 19
    UNPLUGGED = 20
    DAMAGE_FOUND = 21
    INCOMPLETE = 22
    PROBLEM_FOUND = 23
    OUTPUT_FAILED = 24
    INTERRUPTED = 130


class TapefsError(Exception):
    """Root of everything that tapefs raises on purpose."""

    fault: ClassVar[Fault] = Fault.BUG
    retry: ClassVar[bool] = False
    errno_value: ClassVar[int] = errno.EIO
    exit_code: ClassVar[ExitCode] = ExitCode.BUG


class UsageError(TapefsError):
    """The command line or a configuration value makes no sense."""

    fault = Fault.OPERATOR
    errno_value = errno.EINVAL
    exit_code = ExitCode.USAGE


class NoDrive(TapefsError):
    """No drive answers to the name that was given."""

    fault = Fault.OPERATOR
    errno_value = errno.ENODEV
    exit_code = ExitCode.NO_DRIVE


class DriveBusy(TapefsError):
    """Another process holds the drive, the cartridge or the volume's catalog."""

    fault = Fault.OPERATOR
    retry = True
    errno_value = errno.EBUSY
    exit_code = ExitCode.DRIVE_BUSY


class DriveGone(TapefsError):
    """The drive was unplugged, or its port was reset under us."""

    fault = Fault.DRIVE
    errno_value = errno.ENODEV
    exit_code = ExitCode.UNPLUGGED


class DriveFailed(TapefsError):
    """The drive or the wire to it does not do what it must."""

    fault = Fault.DRIVE
    exit_code = ExitCode.DRIVE_ERROR


class MalformedData(DriveFailed):
    """The drive answered with bytes that the standard does not allow."""


class MediumFailed(TapefsError):
    """The tape cannot be read or written at some place."""

    fault = Fault.MEDIUM
    exit_code = ExitCode.DRIVE_ERROR


class NotReady(TapefsError):
    """No medium is loaded, or the drive did not become ready in time."""

    fault = Fault.OPERATOR
    retry = True
    errno_value = errno.ENOMEDIUM
    exit_code = ExitCode.NOT_READY


class RecallTooLate(TapefsError):
    """The tape did not give what a read waited for within the time that a read may take."""

    fault = Fault.OPERATOR
    retry = True
    exit_code = ExitCode.NOT_READY


class Offline(TapefsError):
    """The volume is looked at without its cartridge, and only that has what was asked for."""

    fault = Fault.OPERATOR
    errno_value = errno.ENOMEDIUM
    exit_code = ExitCode.NOT_READY


class BlankTape(TapefsError):
    """The tape holds nothing; it must be formatted first."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.BLANK_TAPE


class ForeignTape(TapefsError):
    """The tape holds data that tapefs did not write."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.FOREIGN_TAPE


class WrongTape(TapefsError):
    """A tapefs volume, but not the one, or not in the state, that was expected."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.WRONG_TAPE


class DamagedTape(TapefsError):
    """The tape is a tapefs volume, but a part of it that is needed cannot be understood."""

    fault = Fault.MEDIUM
    exit_code = ExitCode.DAMAGED_TAPE


class TapeHasData(TapefsError):
    """`format` was asked to overwrite a tape with data without being told twice."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.HAS_DATA


class WriteProtected(TapefsError):
    """The cartridge's tab or the drive forbids writing."""

    fault = Fault.OPERATOR
    errno_value = errno.EROFS
    exit_code = ExitCode.WRITE_PROTECTED


class VolumeFull(TapefsError):
    """No room on the tape for what was asked, its trailer and the checkpoint."""

    fault = Fault.OPERATOR
    errno_value = errno.ENOSPC
    exit_code = ExitCode.FULL


class SpoolFull(TapefsError):
    """No room in the spool, and the tape cannot take what is in it."""

    fault = Fault.HOST
    errno_value = errno.ENOSPC
    exit_code = ExitCode.FULL


class StateUnusable(TapefsError):
    """The state directory cannot be created, read or written."""

    fault = Fault.HOST
    exit_code = ExitCode.STATE_UNUSABLE


class MountpointUnusable(TapefsError):
    """The mountpoint is missing, is not a directory, or already carries a mount."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.MOUNTPOINT_UNUSABLE


class NoFuse(TapefsError):
    """FUSE cannot be used on this machine as it is set up."""

    fault = Fault.HOST
    exit_code = ExitCode.NO_FUSE


class NotMounted(TapefsError):
    """No tapefs daemon serves this mountpoint."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.NOT_MOUNTED


class MountBusy(TapefsError):
    """Some process still uses files below the mountpoint."""

    fault = Fault.OPERATOR
    retry = True
    errno_value = errno.EBUSY
    exit_code = ExitCode.MOUNT_BUSY


class NotFinalized(TapefsError):
    """The mount ended, but not everything reached the tape; the spool still holds the rest."""

    fault = Fault.DRIVE
    exit_code = ExitCode.NOT_FINALIZED


class DataMismatch(TapefsError):
    """What was read is not what was written: a checksum disagrees, also after one retry."""

    fault = Fault.MEDIUM
    exit_code = ExitCode.DAMAGED_TAPE


class SpoolMismatch(TapefsError):
    """What the spool gives of a file is not what was written to it."""

    fault = Fault.HOST
    retry = True
    exit_code = ExitCode.STATE_UNUSABLE


class DamageFound(TapefsError):
    """A verification read what it was asked to, and some of it is not what was written."""

    fault = Fault.MEDIUM
    exit_code = ExitCode.DAMAGE_FOUND


class Incomplete(TapefsError):
    """What was asked for was done, but for some things, which were named."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.INCOMPLETE


class ProblemFound(TapefsError):
    """An examination of this computer found what keeps tapefs from working."""

    fault = Fault.HOST
    exit_code = ExitCode.PROBLEM_FOUND


class OutputFailed(TapefsError):
    """What a command prints or lists cannot be written where it is to go."""

    fault = Fault.HOST
    exit_code = ExitCode.OUTPUT_FAILED


class FilesystemError(TapefsError):
    """A file operation that a local filesystem would refuse as well; carries its errno."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.USAGE

    def __init__(self, errno_number: int, message: str = "") -> None:
        super().__init__(message or errno.errorcode.get(errno_number, str(errno_number)))
        self.errno_number = errno_number


def errno_of(error: TapefsError) -> int:
    """The errno a program that called the filesystem gets for `error`."""
    if isinstance(error, FilesystemError):
        return error.errno_number
    return error.errno_value


def leaves_of(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors in a group of groups, without the groups; the order means nothing."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        exc = pending.pop()
        if isinstance(exc, BaseExceptionGroup):
            pending.extend(exc.exceptions)
        else:
            leaves.append(exc)
    return leaves
