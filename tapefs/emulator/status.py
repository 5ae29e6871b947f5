"""CHECK CONDITION inside the emulated drive, and the sense that goes with the common cases."""

from __future__ import annotations

from typing import Final

from tapefs.errors import TapefsError
from tapefs.scsi.sense import Sense, SenseKey


class CheckConditionStatus(TapefsError):
    """The command being executed ends with CHECK CONDITION and `sense`.

    `data_in` is sent to the host all the same; `consumed_bytes` of its data were processed.
    """

    def __init__(
        self, sense: Sense, data_in: bytes | memoryview = b"", consumed_bytes: int = 0
    ) -> None:
        super().__init__(f"CHECK CONDITION {sense.code}")
        self.sense = sense
        self.data_in = data_in
        self.consumed_bytes = consumed_bytes


UNKNOWN_OPERATION_CODE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
INVALID_FIELD_IN_CDB: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
PARAMETER_LIST_LENGTH: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00)
INVALID_FIELD_IN_PARAMETERS: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x00)
SAVING_NOT_SUPPORTED: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x39, 0x00)
REMOVAL_PREVENTED: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x53, 0x02)
NO_MEDIUM: Final = Sense(SenseKey.NOT_READY, 0x3A, 0x00)
BECOMING_READY: Final = Sense(SenseKey.NOT_READY, 0x04, 0x01)
WRITE_PROTECTED: Final = Sense(SenseKey.DATA_PROTECT, 0x27, 0x00)
WRITE_APPEND_ERROR: Final = Sense(SenseKey.MEDIUM_ERROR, 0x50, 0x00)
POWER_ON: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
# BUS DEVICE RESET FUNCTION OCCURRED.
CLASS_RESET: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x03)
MEDIUM_MAY_HAVE_CHANGED: Final = Sense(SenseKey.UNIT_ATTENTION, 0x28, 0x00)


def filemark_detected(missing: int) -> Sense:
    """READ or SPACE met a filemark with `missing` bytes or blocks to go (SSC-4)."""
    return Sense(asc=0x00, ascq=0x01, filemark=True, information=missing)


def end_of_data(missing: int) -> Sense:
    """READ, SPACE or LOCATE met the end of data."""
    return Sense(SenseKey.BLANK_CHECK, 0x00, 0x05, information=missing)


def beginning_of_partition(missing: int) -> Sense:
    """SPACE backwards met the beginning of the partition."""
    return Sense(asc=0x00, ascq=0x04, end_of_medium=True, information=missing)


def incorrect_length(difference_bytes: int) -> Sense:
    """READ met a block that is shorter (positive) or longer (negative) than asked for."""
    return Sense(incorrect_length=True, information=difference_bytes)


def early_warning(*, bare: bool = False) -> Sense:
    """The write was done, and the physical end is near. `bare`: some drives say only EOM."""
    if bare:
        return Sense(end_of_medium=True)
    return Sense(asc=0x00, ascq=0x02, end_of_medium=True, information=0)


def volume_overflow(missing: int) -> Sense:
    """The physical end was reached with `missing` bytes and filemarks unwritten."""
    return Sense(SenseKey.VOLUME_OVERFLOW, 0x00, 0x02, end_of_medium=True, information=missing)


def write_error(missing: int, *, deferred: bool) -> Sense:
    """The medium did not take `missing` bytes and filemarks."""
    return Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00, information=missing, deferred=deferred)


def read_error(missing: int) -> Sense:
    """The block at the head cannot be read."""
    return Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00, information=missing)
