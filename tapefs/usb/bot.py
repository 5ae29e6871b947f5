"""Bulk-Only Transport, host end: which bytes to move next, and what the answer means. No I/O.

One SCSI command is one `transaction`: a generator that yields what to do on the wire (`Step`),
is sent what came of it (`Outcome`), and returns a `Result`. It never asks for anything between the
command block and the status block that does not belong to this command, so whoever runs a
generator to its end before starting the next keeps the rule of BOT 1.0 §3.1: one command at a time.

A timeout or an unplugged cable is not an `Outcome`: the runner closes the generator, and what the
drive did with the command is unknown. `ProtocolError` means that both ends no longer agree on
where in the transaction they are; only Reset Recovery (BOT 1.0 §5.3.4) brings them together.

All numbers in command and status blocks are little-endian.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.errors import DriveFailed
from tapefs.scsi.command import Direction

if TYPE_CHECKING:
    from collections.abc import Generator

COMMAND_BLOCK_BYTES: Final = 31
STATUS_BLOCK_BYTES: Final = 13
COMMAND_SIGNATURE: Final = b"USBC"
STATUS_SIGNATURE: Final = b"USBS"
CDB_BYTES_MAX: Final = 16
TAG_COUNT: Final = 1 << 32

INTERFACE_CLASS: Final = 0x08
INTERFACE_PROTOCOL: Final = 0x50
LUN_MAX: Final = 0x0F
# QIC-157.
ATAPI_TAPE_SUBCLASS: Final = 0x03
# SFF-8020i, QIC-157, UFI and SFF-8070i put an ATAPI packet on the wire, and that is 12 bytes.
TWELVE_BYTE_SUBCLASSES: Final = frozenset({0x02, 0x03, 0x04, 0x05})
ATAPI_CDB_BYTES: Final = 12

_COMMAND: Final = struct.Struct("<4sIIBBB16s")
_STATUS: Final = struct.Struct("<4sIIB")
_FLAG_IN: Final = 0x80


class WireFailed(DriveFailed):
    """A transfer did not end as it must. What the drive did with the command is unknown."""


class ProtocolError(WireFailed):
    """The drive's end of the wire is out of step; nothing may be sent before Reset Recovery."""


class Pipe(enum.Enum):
    """The two bulk endpoints."""

    IN = "in"
    OUT = "out"


class CommandStatus(enum.IntEnum):
    """bCSWStatus (BOT 1.0 §5.2)."""

    PASSED = 0
    FAILED = 1
    PHASE_ERROR = 2


@dataclass(frozen=True, slots=True)
class CommandBlock:
    """Command Block Wrapper (BOT 1.0 §5.1). `length_bytes` is what the host expects to move."""

    tag: int
    cdb: bytes
    direction: Direction
    length_bytes: int
    lun: int = 0

    def pack(self) -> bytes:
        """The 31 bytes for the wire. ValueError when the CDB is not 1 to 16 bytes long."""
        if not 1 <= len(self.cdb) <= CDB_BYTES_MAX:
            raise ValueError(f"a CDB has 1 to 16 bytes, not {len(self.cdb)}")
        flags = _FLAG_IN if self.direction is Direction.IN else 0
        return _COMMAND.pack(
            COMMAND_SIGNATURE,
            self.tag,
            self.length_bytes,
            flags,
            self.lun,
            len(self.cdb),
            self.cdb,
        )

    @classmethod
    def unpack(cls, data: bytes) -> CommandBlock:
        """What a device understands of `data`. ProtocolError unless valid and meaningful (§6.2)."""
        if len(data) != COMMAND_BLOCK_BYTES or data[:4] != COMMAND_SIGNATURE:
            raise ProtocolError(f"{len(data)} bytes that are no command block")
        _, tag, length_bytes, flags, lun, cdb_bytes, cdb = _COMMAND.unpack(data)
        if flags & ~_FLAG_IN or lun > LUN_MAX or not 1 <= cdb_bytes <= CDB_BYTES_MAX:
            raise ProtocolError("a command block with reserved bits set")
        if not length_bytes:
            direction = Direction.NONE
        else:
            direction = Direction.IN if flags & _FLAG_IN else Direction.OUT
        return cls(tag, cdb[:cdb_bytes], direction, length_bytes, lun)


@dataclass(frozen=True, slots=True)
class StatusBlock:
    """Command Status Wrapper (BOT 1.0 §5.2). `status` may hold a reserved value."""

    tag: int
    residue_bytes: int
    status: int

    def pack(self) -> bytes:
        """The 13 bytes for the wire."""
        return _STATUS.pack(STATUS_SIGNATURE, self.tag, self.residue_bytes, self.status)

    @classmethod
    def unpack(cls, data: bytes) -> StatusBlock:
        """Raises ProtocolError unless `data` has the length and signature of a status block."""
        if len(data) != STATUS_BLOCK_BYTES:
            raise ProtocolError(f"the drive sent a status block of {len(data)} bytes instead of 13")
        signature, tag, residue_bytes, status = _STATUS.unpack(data)
        if signature != STATUS_SIGNATURE:
            raise ProtocolError(f"the drive sent a status block with signature {signature.hex()}")
        return cls(tag, residue_bytes, status)


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Write these 31 bytes in one transfer."""

    block: bytes


@dataclass(frozen=True, slots=True)
class SendData:
    """Write the command's `length_bytes` bytes of data in one transfer."""

    length_bytes: int


@dataclass(frozen=True, slots=True)
class ReceiveData:
    """Read the data stage, `length_bytes` are expected, in one transfer.

    The transfer may ask for more than that, up to the next multiple of the packet size: a drive
    that leaves out a small data stage then delivers its status block instead of overflowing.
    """

    length_bytes: int


@dataclass(frozen=True, slots=True)
class ReceiveStatus:
    """Read 13 bytes in one transfer that may take as long as the command may."""


@dataclass(frozen=True, slots=True)
class ClearHalt:
    """CLEAR FEATURE (ENDPOINT_HALT) on this pipe."""

    pipe: Pipe


Step = SendCommand | SendData | ReceiveData | ReceiveStatus | ClearHalt


@dataclass(frozen=True, slots=True)
class Moved:
    """The step was done; `count_bytes` bytes moved. `head`: the first (up to) 13 received."""

    count_bytes: int = 0
    head: bytes = b""


class Trouble(enum.Enum):
    """Ways in which a transfer ends that belong to the protocol."""

    STALLED = "stalled"
    OVERFLOWED = "overflowed"


Outcome = Moved | Trouble


@dataclass(frozen=True, slots=True)
class Result:
    """What is known when a transaction is over.

    `received_bytes` is what the data stage delivered, None when a stall hid the number.
    `residue_bytes` is the drive's word, capped at the length asked for. `overrun`: the drive had
    more data than the host asked for, so what arrived is not what was meant.
    """

    passed: bool
    residue_bytes: int
    received_bytes: int | None
    overrun: bool

    def valid_bytes(self, length_bytes: int, *, trust_residue: bool = True) -> int:
        """How many of `length_bytes` bytes asked for are data, by the more careful witness.

        A drive may pad (count too high, residue right), or a bridge may always report residue 0
        (count right). After a stall the count is lost, and a residue of 0 then contradicts it.
        """
        residue = self.residue_bytes if trust_residue else 0
        if self.received_bytes is None:
            return length_bytes - residue if residue else 0
        return min(self.received_bytes, length_bytes - residue)


def pad_cdb(cdb: bytes, subclass: int) -> bytes:
    """The CDB as an interface of this subclass wants it: ATAPI flavours take 12 bytes at least."""
    return cdb.ljust(ATAPI_CDB_BYTES, b"\0") if subclass in TWELVE_BYTE_SUBCLASSES else cdb


def transaction(block: CommandBlock) -> Generator[Step, Outcome, Result]:
    """Run one command block through command, data and status stage (BOT 1.0 §5, §6.7).

    Returns when a meaningful status block for this very tag has arrived. Raises ProtocolError in
    every case in which BOT 1.0 prescribes Reset Recovery: command block refused, status block
    invalid, foreign or missing, phase error, reserved status.
    """
    outcome = yield SendCommand(block.pack())
    if not isinstance(outcome, Moved) or outcome.count_bytes != COMMAND_BLOCK_BYTES:
        raise ProtocolError("the drive did not take the command block")
    received: int | None = 0
    overrun = False
    early: bytes | None = None
    if block.length_bytes and block.direction is Direction.OUT:
        yield from _send_data(block)
    elif block.length_bytes:
        outcome = yield ReceiveData(block.length_bytes)
        if outcome is Trouble.STALLED:
            yield ClearHalt(Pipe.IN)
            received = None
        elif outcome is Trouble.OVERFLOWED:
            overrun = True
        elif _is_early_status(block, outcome):
            early = outcome.head
        else:
            received = outcome.count_bytes
            overrun = received > block.length_bytes
    status = StatusBlock.unpack(early if early is not None else (yield from _receive_status()))
    return _judge(block, status, received, overrun=overrun)


def _send_data(block: CommandBlock) -> Generator[Step, Outcome, None]:
    outcome = yield SendData(block.length_bytes)
    if outcome is Trouble.STALLED:
        # The drive has had enough; its residue will tell how much it took (cases 9 and 11).
        yield ClearHalt(Pipe.OUT)
    elif not isinstance(outcome, Moved) or outcome.count_bytes != block.length_bytes:
        raise ProtocolError("the drive took only a part of the data")


def _is_early_status(block: CommandBlock, outcome: Moved) -> bool:
    # Some drives skip the data stage of a failed command without a stall: the status block then
    # arrives where data was awaited. Signature and tag together cannot be data by accident.
    return (
        outcome.count_bytes == STATUS_BLOCK_BYTES != block.length_bytes
        and outcome.head[:4] == STATUS_SIGNATURE
        and outcome.head[4:8] == block.tag.to_bytes(4, "little")
    )


def _receive_status() -> Generator[Step, Outcome, bytes]:
    may_be_empty = may_stall = True
    while True:
        outcome = yield ReceiveStatus()
        if outcome is Trouble.STALLED and may_stall:
            may_stall = False
            yield ClearHalt(Pipe.IN)
        elif isinstance(outcome, Moved) and not outcome.count_bytes and may_be_empty:
            # A zero-length packet that ends the data stage late; the status is behind it.
            may_be_empty = False
        elif isinstance(outcome, Moved):
            return outcome.head[: outcome.count_bytes]
        else:
            raise ProtocolError(f"the drive has no status block to give ({outcome.value})")


def _judge(
    block: CommandBlock, status: StatusBlock, received: int | None, *, overrun: bool
) -> Result:
    if status.tag != block.tag:
        raise ProtocolError(f"status block for tag {status.tag:#x} instead of {block.tag:#x}")
    if status.status == CommandStatus.PHASE_ERROR:
        raise ProtocolError("the drive reports a phase error")
    if status.status > CommandStatus.PHASE_ERROR:
        raise ProtocolError(f"the drive reports the reserved status {status.status}")
    # A residue above the length is not meaningful (§6.3), but the wire is in step: bridges that
    # get it wrong work under Linux, which caps it, and so do we.
    residue = min(status.residue_bytes, block.length_bytes)
    return Result(status.status == CommandStatus.PASSED, residue, received, overrun)
