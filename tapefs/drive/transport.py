"""What a drive needs of the wire it is on. USB and the emulated target both have this shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from array import array

    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import Completion


class Transport(Protocol):
    """One logical unit, one command at a time."""

    async def execute(self, command: Command, data: array[int] | bytes | None = None) -> Completion:
        """Send one command and return when it has ended, sense included.

        OUT commands: `data` holds exactly `command.transfer_length_bytes` bytes. IN commands:
        `data` is an array of bytes of at least that size, filled in place, or None. An array
        is not copied and must not be touched until the call returns.

        Once sent, a command runs to its end: a cancelled caller still waits for it. CHECK
        CONDITION is a normal return; REQUEST SENSE has been done in the same step. Raises
        DriveGone and DriveFailed when the wire fails: nothing is known then about what the
        command did.
        """
        ...

    @property
    def lost(self) -> bool:
        """Nothing can be sent any more, now or later: all that is left is `aclose`."""
        ...

    async def aclose(self) -> None:
        """Give the wire back. May be called twice."""
        ...
