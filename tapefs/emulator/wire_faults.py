"""What can go wrong on the emulated wire: what hosts do wrong, and what is made to go wrong."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from tapefs.emulator.fault_queue import FaultPoint, PlannedFault
from tapefs.usb.bot import CommandStatus, StatusBlock

if TYPE_CHECKING:
    from tapefs.emulator.cable import Replug


class Stall(Exception):
    """The endpoint is halted; the host sees EPIPE."""


class Silence(Exception):
    """The device never answers this transfer; the host sees its timeout."""


class Babble(Exception):
    """The device sent a packet larger than what is left of the host's buffer (EOVERFLOW)."""


class Unplugged(Exception):
    """There is no device any more (ENODEV)."""


class ViolationKind(enum.Enum):
    """What a host did that Bulk-Only Transport forbids."""

    COMMAND_INSIDE_DATA = "command inside data"
    COMMAND_BEFORE_STATUS = "command before status"
    CONCURRENT_TRANSFERS = "concurrent transfers"
    SENSE_DISCARDED = "sense discarded"
    INVALID_COMMAND_BLOCK = "invalid command block"
    DATA_OVERRUN = "data overrun"
    READ_OUT_OF_TURN = "read out of turn"
    DATA_DISAGREEMENT = "data disagreement"
    RECOVERY_OMITTED = "recovery omitted"


@dataclass(frozen=True, slots=True)
class Violation:
    """One violation, with a sentence for a person."""

    kind: ViolationKind
    sentence: str


class LessData(enum.Enum):
    """What the device does when it moves less than the host expects (cases 4, 5, 9 and 11).

    All are legal. Towards the host: end with a short packet, pad with zeros, or stall. From the
    host: take the rest and drop it (both of the first two), or stall.
    """

    SHORT_PACKET = "short packet"
    PAD = "pad"
    STALL = "stall"


class FaultEffect(enum.Enum):
    """What a planned fault does. The first five work everywhere."""

    STALL = "stall"
    SILENCE = "silence"
    # Silence from now on, on every transfer, until something stronger than waiting (`until`).
    HANG = "hang"
    UNPLUG = "unplug"
    POWER_CUT = "power cut"
    # In place of the data stage towards the host:
    BABBLE = "babble"
    SKIP_DATA = "skip data"
    # In place of a proper status block:
    EMPTY = "zero-length packet first"
    SHORT = "one byte short"
    WRONG_TAG = "wrong tag"
    BAD_SIGNATURE = "bad signature"
    PHASE_ERROR = "phase error"
    RESERVED_STATUS = "reserved status"
    ZERO_RESIDUE = "residue always 0"
    FULL_RESIDUE = "residue as if nothing moved"


EVERYWHERE: Final = frozenset(
    {
        FaultEffect.STALL,
        FaultEffect.SILENCE,
        FaultEffect.HANG,
        FaultEffect.UNPLUG,
        FaultEffect.POWER_CUT,
    }
)
IN_PLACE_OF_DATA: Final = frozenset({FaultEffect.BABBLE, FaultEffect.SKIP_DATA})
# After one of these the host no longer knows a valid status block: reset recovery is due
# (BOT 1.0 §5.3.3.1, §6.3).
INVALID_STATUS: Final = frozenset(
    {
        FaultEffect.SHORT,
        FaultEffect.WRONG_TAG,
        FaultEffect.BAD_SIGNATURE,
        FaultEffect.PHASE_ERROR,
        FaultEffect.RESERVED_STATUS,
    }
)


@dataclass(frozen=True, slots=True)
class WireFault(PlannedFault):
    """A fault of a transfer, or of a reset."""

    effect: FaultEffect
    # Of UNPLUG and POWER_CUT: when the cable is in again; None: never by itself.
    replug: Replug | None = field(default=None, kw_only=True)
    # Of HANG: what ends it; None: only the cable.
    until: FaultPoint | None = field(default=FaultPoint.CLASS_RESET, kw_only=True)

    def __str__(self) -> str:
        return f"{self.effect.value} at {self.point.value}"


def garbled(status: StatusBlock, effect: FaultEffect | None, length_bytes: int) -> bytes:
    """The bytes that go out for `status` when `effect` strikes; proper ones when it is None."""
    if effect is FaultEffect.WRONG_TAG:
        return replace(status, tag=status.tag ^ 0xFFFF).pack()
    if effect is FaultEffect.PHASE_ERROR:
        return replace(status, status=CommandStatus.PHASE_ERROR).pack()
    if effect is FaultEffect.RESERVED_STATUS:
        return replace(status, status=5).pack()
    if effect is FaultEffect.ZERO_RESIDUE:
        return replace(status, residue_bytes=0).pack()
    if effect is FaultEffect.FULL_RESIDUE:
        return replace(status, residue_bytes=length_bytes).pack()
    if effect is FaultEffect.BAD_SIGNATURE:
        return b"XXXX" + status.pack()[4:]
    return status.pack()[:-1] if effect is FaultEffect.SHORT else status.pack()
