"""What a drive needs of the wire it is on. USB and the emulated target both have this shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import Completion, DataBuffer

# A command, and its data as `Transport.execute` takes it.
Step: TypeAlias = "tuple[Command, DataBuffer | bytes | None]"
# Asked for the steps that follow those given before; none when nothing does.
More: TypeAlias = "Callable[[], Sequence[Step]]"


class Transport(Protocol):
    """One logical unit, one command at a time."""

    async def execute(self, command: Command, data: DataBuffer | bytes | None = None) -> Completion:
        """Send one command and return when it has ended, sense included.

        OUT commands: `data` holds exactly `command.transfer_length_bytes` bytes. IN commands:
        `data` is a buffer of at least that size, filled in place, or None. A buffer
        is not copied and must not be touched until the call returns.

        Once sent, a command runs to its end: a cancelled caller still waits for it. CHECK
        CONDITION is a normal return; REQUEST SENSE has been done in the same step. Raises
        DriveGone and DriveFailed when the wire fails: nothing is known then about what the
        command did.
        """
        ...

    async def execute_each(
        self, steps: Sequence[Step], more: More | None = None
    ) -> list[Completion]:
        """`execute` for one step after the other, up to the first that is not GOOD, that included.

        Every command is as whole as with `execute`; what is saved is the way back to the caller
        in between. There must be a step. When all have ended GOOD, those that `more` returns
        follow; it may be called by another thread. Raises as `execute`: nothing is known then of
        any step.
        """
        ...

    @property
    def lost(self) -> bool:
        """Nothing can be sent any more, now or later: all that is left is `aclose`."""
        ...

    async def aclose(self) -> None:
        """Give the wire back. May be called twice."""
        ...
