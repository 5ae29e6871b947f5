"""What every command has in common, and how a command block that means nothing is refused.

Each command class fixes, in one place, what the wire must know of it: which way data flows, how
many bytes the host expects (BOT 1.0 §5.1 dCBWDataTransferLength; a disagreement between host and
device is one of the fatal cases of BOT 1.0 §6.7), how long it may take, and whether it moves the
medium, in which case it must never be sent a second time before the position is known again.

Numbers in a CDB are big-endian. A field that does not fit its place makes `pack` raise
OverflowError or ValueError: that is a bug of the caller.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Final, Protocol

from tapefs.errors import Fault, TapefsError

SHORT_TIMEOUT_S: Final = 60.0
TRANSFER_TIMEOUT_S: Final = 900.0
REWIND_TIMEOUT_S: Final = 1500.0
SEARCH_TIMEOUT_S: Final = 3600.0
ERASE_TIMEOUT_S: Final = 14_000.0


class Direction(enum.Enum):
    """Which way the data stage of a command goes, seen from the host."""

    NONE = "none"
    IN = "in"
    OUT = "out"


class UnknownCommand(TapefsError):
    """These bytes are no command that tapefs knows (ILLEGAL REQUEST 20h/00h on the wire)."""

    fault = Fault.HOST


class InvalidField(UnknownCommand):
    """The operation code is known, a field's value is not (ILLEGAL REQUEST 24h/00h)."""


class Command(Protocol):
    """What a transport must know of a command. Every class of `tapefs.scsi.cdb` has this shape."""

    @property
    def name(self) -> str:
        """The standard's name, for messages."""
        ...

    @property
    def direction(self) -> Direction:
        """Which way data would flow; a transfer length of 0 still means no data stage."""
        ...

    @property
    def transfer_length_bytes(self) -> int:
        """What dCBWDataTransferLength must be."""
        ...

    @property
    def timeout_s(self) -> float:
        """How long the whole command may take before it counts as lost."""
        ...

    @property
    def moves_medium(self) -> bool:
        """True: after a failure the position is unknown, and repeating it is never safe."""
        ...

    def pack(self) -> bytes:
        """The CDB in its natural length: 6, 10, 12 or 16 bytes."""
        ...


class Plain:
    """Traits of a quick command that leaves the medium alone."""

    __slots__ = ()
    timeout_s: ClassVar[float] = SHORT_TIMEOUT_S
    moves_medium: ClassVar[bool] = False


class NoData(Plain):
    """... and that has no data stage."""

    __slots__ = ()
    direction: ClassVar[Direction] = Direction.NONE
    transfer_length_bytes: ClassVar[int] = 0


class Motion(NoData):
    """Traits of a command that moves the medium and has no data stage."""

    __slots__ = ()
    timeout_s = SEARCH_TIMEOUT_S
    moves_medium = True


def be(value: int, size_bytes: int) -> bytes:
    """`value` as unsigned big-endian field of a CDB. Raises OverflowError when it does not fit."""
    return value.to_bytes(size_bytes, "big")
