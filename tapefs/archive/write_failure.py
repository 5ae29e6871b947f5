"""What follows when a tape file could not be written: a pure function, so that it can be judged.

What was sent since the last flush may be lost, all of it or a part. It is still dirty, so it may be
written again, but only further on: behind an end of data that was proven anew. Nothing is ever
sent again at the place where it failed.
"""

from __future__ import annotations

import enum

from tapefs.errors import (
    Fault,
    MediumFailed,
    SpoolMismatch,
    TapefsError,
    VolumeFull,
    WriteProtected,
    WrongTape,
)
from tapefs.scsi.sense import AbortedCommand, CheckCondition, DeferredError, Reaction


class Remedy(enum.Enum):
    """What to do about a tape file that was not written."""

    AGAIN = "prove the end of data, and write what is not on tape behind it"
    AT_END = "as AGAIN where the drive says that there is room, else only what closes the volume"
    WRITE_NO_MORE = "the volume is read-only from here on"
    WAIT = "nothing is known against the tape: try again later"


def remedy(error: TapefsError, failures_in_row: int, attempts_max: int) -> Remedy:
    """What `error` asks for after so many failures without a tape file in between, this included.

    The medium gets `attempts_max` attempts in a row, because a bad place may be long. The loss of
    the drive is no write failure (`tapefs.archive.resumption`).
    """
    cause: TapefsError = error.condition if isinstance(error, DeferredError) else error
    if _is_hopeless(cause):
        return Remedy.WRITE_NO_MORE
    if isinstance(cause, SpoolMismatch):
        return Remedy.AGAIN  # each file once: it is hashed anew then
    if not isinstance(cause, VolumeFull | MediumFailed | AbortedCommand):
        return Remedy.WAIT
    if failures_in_row >= attempts_max:
        return Remedy.WRITE_NO_MORE
    return Remedy.AT_END if isinstance(cause, VolumeFull) else Remedy.AGAIN


def _is_hopeless(cause: TapefsError) -> bool:
    if cause.fault is Fault.BUG or isinstance(cause, WriteProtected | WrongTape):
        return True
    refused = (Reaction.READ_ONLY, Reaction.STOP)
    return (
        isinstance(cause, MediumFailed)
        and isinstance(cause, CheckCondition)
        and (cause.reaction in refused)
    )
