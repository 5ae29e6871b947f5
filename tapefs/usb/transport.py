"""SCSI commands over Bulk-Only Transport: one whole command at a time, come what may.

`BotTransport` carries one command with everything that belongs to it, command block, data, status
block and the REQUEST SENSE after a failure, through the wire in a single hop to the worker thread
that owns the wire. Once the hop has begun nothing interrupts it: cancellation waits for its end.
Bulk-Only Transport has one pair of pipes and no queue, so a second command in the middle of a
first one ends up inside a tape block or stalls the drive (BOT 1.0 §3.1, §6.6).

Order among callers is not made here: that is the scheduler's lane. A second `execute` while one is
under way is a bug above, and is refused before it can touch the wire (`OverlappedCommand`).
"""

from __future__ import annotations

import logging
from array import array
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from tapefs.errors import (
    DriveBusy,
    DriveFailed,
    DriveGone,
    Fault,
    MalformedData,
    NoDrive,
    TapefsError,
)
from tapefs.scsi.cdb import INQUIRY_BYTES, Inquiry, RequestSense
from tapefs.scsi.command import Direction
from tapefs.scsi.completion import Completion
from tapefs.scsi.sense import Sense
from tapefs.telemetry import DRIVE_GONE, PORT_RESET, RESET_RECOVERY, event
from tapefs.usb.bot import (
    STATUS_BLOCK_BYTES,
    TAG_COUNT,
    ClearHalt,
    CommandBlock,
    Moved,
    Outcome,
    Pipe,
    ReceiveData,
    ReceiveStatus,
    Result,
    SendCommand,
    SendData,
    Step,
    Trouble,
    WireFailed,
    pad_cdb,
    transaction,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapefs.scsi.command import Command
    from tapefs.scsi.completion import DataBuffer

T = TypeVar("T")

# Linux waits this long after a class reset before it touches the drive again.
SETTLE_S: Final = 6.0
_STANDARD_INQUIRY: Final = Inquiry().pack()


class OverlappedCommand(TapefsError):
    """A command was given while another one was under way: the lane above is broken."""

    fault = Fault.BUG


class WireReset(DriveFailed, DriveGone):
    """The wire failed. It was reset, or the drive was given up because no reset helped.

    What the drive did with the command, its position and its modes are unknown.
    """


class EndpointStalled(WireFailed):
    """The drive halted the pipe."""


class TransferTimeout(WireFailed):
    """The drive did not answer in the time that the command may take."""


class TransferOverflow(WireFailed):
    """The drive sent more than fits into what was asked for."""


class Endpoints(Protocol):
    """The two bulk pipes of a drive, and what can be done to revive them.

    All but `run` block, and are called from the thread of `run` only. They raise EndpointStalled,
    TransferTimeout, TransferOverflow, DriveGone, or WireFailed for what has no name of its own.
    """

    @property
    def subclass(self) -> int:
        """bInterfaceSubClass."""
        ...

    @property
    def max_packet_bytes(self) -> int:
        """wMaxPacketSize of the IN pipe."""
        ...

    def send(self, data: DataBuffer, timeout_s: float) -> int:
        """Write `data` in one transfer; returns how many bytes went out."""
        ...

    def receive(self, into: DataBuffer, timeout_s: float) -> int:
        """Read at most `len(into)` bytes in one transfer; returns how many came."""
        ...

    def clear_halt(self, pipe: Pipe) -> None:
        """Clear a halt, on both ends of the pipe."""
        ...

    def class_reset(self) -> None:
        """Bulk-Only Mass Storage Reset."""
        ...

    def port_reset(self) -> None:
        """Reset the port, and own the interface again afterwards."""
        ...

    def close(self) -> None:
        """Give the interface back. Never fails."""
        ...

    async def run(self, work: Callable[[], T]) -> T:
        """Call `work` in the thread that owns the pipes. Can be cancelled until it has begun."""
        ...


class BotTransport:
    """Carries commands to one drive. `execute` and `aclose` are for the task that owns the lane."""

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        lun: int = 0,
        overlap_guard: bool = True,
        settle_s: float = SETTLE_S,
    ) -> None:
        """For logical unit `lun`. `overlap_guard=False` shows what the guard prevents."""
        self._endpoints = endpoints
        self._lun = lun
        self._overlap_guard = overlap_guard
        self._settle_s = settle_s
        self._under_way: str | None = None
        self._lost: TapefsError | None = None
        self._recovery_count = 0  # since the last command that came through
        self._trust_residue = True
        self._tag = 0
        self._scratch = array("B")
        self._closed = False

    async def execute(self, command: Command, data: DataBuffer | bytes | None = None) -> Completion:
        """Carry out one command; returns when its status, and its sense if it failed, are here.

        OUT: `data` holds exactly `command.transfer_length_bytes` bytes; a buffer goes out without
        a copy. IN: `data` may be a buffer of at least that many bytes, to be filled in place. It
        must not be touched before this returns. CHECK CONDITION is a Completion, not an exception.

        Raises OverlappedCommand (nothing was sent), DriveGone, DriveFailed, and WireReset, which is
        both: when the wire failed, it was reset as far as it took, the command may or may not have
        been executed, and the position is unknown. Nothing is ever sent a second time. ValueError
        when `data` does not fit the command. Cancelled before anything was sent, or not at all.
        """
        return (await self.execute_each([(command, data)]))[0]

    async def execute_each(
        self,
        steps: Sequence[tuple[Command, DataBuffer | bytes | None]],
        more: Callable[[], Sequence[tuple[Command, DataBuffer | bytes | None]]] | None = None,
    ) -> list[Completion]:
        """Carry out one command after the other in one visit to the thread, as `execute` does.

        Up to the first that ends in CHECK CONDITION, that included; its sense is fetched before
        anything else is sent. There must be a step. After the last of them the thread asks `more`
        for those that follow, until there are none. What `execute` raises is about one of the
        steps, and leaves open which of those before were executed.
        """
        if self._under_way is not None and self._overlap_guard:
            raise OverlappedCommand(
                f"{steps[0][0].name} was given to the drive while {self._under_way} was under way; "
                "this is a bug in tapefs, please report it"
            )
        checked = [(command, self._checked(command, data)) for command, data in steps]
        self._under_way = checked[0][0].name
        try:
            return await self._carry(partial(self._perform_each, checked, more))
        finally:
            self._under_way = None

    @property
    def lost(self) -> bool:
        """Nothing more will be sent: the drive is gone, was given up, or was given back."""
        return self._closed or self._lost is not None

    async def aclose(self) -> None:
        """Give the drive back to the system. May be called more than once; never fails."""
        if not self._closed:
            self._closed = True
            with trio.CancelScope(shield=True):
                await self._endpoints.run(self._endpoints.close)

    def _checked(self, command: Command, data: DataBuffer | bytes | None) -> DataBuffer | None:
        if self._closed:
            raise DriveGone("the drive was closed; open it again")
        if self._lost is not None:
            raise type(self._lost)(str(self._lost))
        length = command.transfer_length_bytes
        if command.direction is Direction.OUT:
            if data is None or len(data) != length:
                size = "no" if data is None else len(data)
                raise ValueError(f"{command.name} sends {length} bytes, {size} bytes were given")
            return array("B", data) if isinstance(data, bytes) else data
        if isinstance(data, bytes) or (data is not None and len(data) < length):
            raise ValueError(f"{command.name} needs an array of {length} bytes to fill")
        return data

    async def _carry(self, work: Callable[[], list[Completion]]) -> list[Completion]:
        try:
            ended = await self._endpoints.run(work)
        except DriveGone as exc:
            raise self._give_up(
                DriveGone(f"the drive vanished during {self._under_way}; plug it in again")
            ) from exc
        except (WireFailed, DriveBusy, NoDrive) as exc:
            name = self._under_way or ""
            with trio.CancelScope(shield=True):
                await self._recover(name, exc)
            raise WireReset(
                f"{name} failed on the USB wire ({exc}); the wire was reset and the "
                "position on tape is unknown; check cable and power, then try again"
            ) from exc
        return ended

    # In the worker thread.

    def _perform_each(
        self,
        steps: Sequence[tuple[Command, DataBuffer | None]],
        more: Callable[[], Sequence[tuple[Command, DataBuffer | bytes | None]]] | None,
    ) -> list[Completion]:
        ended: list[Completion] = []
        while steps:
            for command, buffer in steps:
                self._under_way = command.name
                ended.append(self._perform(command, buffer))
                self._recovery_count = 0
                if not ended[-1].good:
                    return ended
            following = more() if more else ()
            steps = [(command, self._checked(command, data)) for command, data in following]
        return ended

    def _perform(self, command: Command, buffer: DataBuffer | None) -> Completion:
        length = command.transfer_length_bytes
        target = buffer
        if command.direction is Direction.IN:
            target = self._receive_buffer(length, buffer)
        result = self._transact(
            command.pack(), command.direction, length, target, command.timeout_s
        )
        if result.overrun:
            raise DriveFailed(
                f"the drive had more data for {command.name} than it was asked for; "
                "what arrived cannot be used"
            )
        self._learn(command, result)
        valid_bytes = 0
        if command.direction is Direction.IN and target is not None:
            valid_bytes = result.valid_bytes(length, trust_residue=self._trust_residue)
        data = _valid_part(target, buffer, valid_bytes)
        residue = result.residue_bytes if self._trust_residue else 0
        if result.passed:
            return Completion(good=True, data=data, residue_bytes=residue)
        return Completion(False, data, residue, self._fetch_sense(command))

    def _fetch_sense(self, command: Command) -> Sense:
        request = RequestSense()
        length = request.transfer_length_bytes
        report = self._receive_buffer(length, None)
        result = self._transact(request.pack(), Direction.IN, length, report, request.timeout_s)
        if not result.passed:
            raise DriveFailed(f"{command.name} failed, and the drive does not say why")
        valid_bytes = min(result.valid_bytes(length, trust_residue=self._trust_residue), length)
        try:
            return Sense.unpack(report[:valid_bytes].tobytes())
        except MalformedData as exc:
            raise DriveFailed(f"{command.name} failed, and its sense is garbled: {exc}") from exc

    def _receive_buffer(self, length: int, wanted: DataBuffer | None) -> DataBuffer:
        """The buffer to read `length` bytes into: the caller's own wherever the packet size allows.

        Rounded up to whole packets, so that a status block in place of short data does not
        overflow; never further, so that it cannot be swallowed along with full data.
        """
        packet = self._endpoints.max_packet_bytes
        rounded = -(-length // packet) * packet
        if wanted is None:
            return array("B", bytes(rounded))
        if len(wanted) == rounded:
            return wanted
        if len(self._scratch) != rounded:
            self._scratch = array("B", bytes(rounded))
        return self._scratch

    def _transact(
        self,
        cdb: bytes,
        direction: Direction,
        length: int,
        data: DataBuffer | None,
        timeout_s: float,
    ) -> Result:
        self._tag = (self._tag + 1) % TAG_COUNT
        cdb = pad_cdb(cdb, self._endpoints.subclass)
        with closing(
            transaction(CommandBlock(self._tag, cdb, direction, length, self._lun))
        ) as steps:
            step = next(steps)
            while True:
                outcome = self._move(step, data, timeout_s)
                try:
                    step = steps.send(outcome)
                except StopIteration as done:
                    result: Result = done.value
                    return result

    def _move(self, step: Step, data: DataBuffer | None, timeout_s: float) -> Outcome:
        # Command, data and status may each be held back for as long as the drive is busy, so each
        # gets the full time. The wait is never cut into slices: a wait given up kills the command.
        if isinstance(step, ClearHalt):
            self._endpoints.clear_halt(step.pipe)
            return Moved()
        try:
            if isinstance(step, SendCommand):
                return Moved(self._endpoints.send(array("B", step.block), timeout_s))
            if isinstance(step, ReceiveStatus):
                data = array("B", bytes(STATUS_BLOCK_BYTES))
            assert data is not None, "a data stage without data"
            if isinstance(step, SendData):
                return Moved(self._endpoints.send(data, timeout_s))
            assert isinstance(step, (ReceiveData, ReceiveStatus))
            count = self._endpoints.receive(data, timeout_s)
            return Moved(count, data[:STATUS_BLOCK_BYTES].tobytes())
        except EndpointStalled:
            return Trouble.STALLED
        except TransferOverflow:
            return Trouble.OVERFLOWED

    def _learn(self, command: Command, result: Result) -> None:
        # A bridge that delivers all 36 bytes of a good INQUIRY and yet reports some as missing
        # always reports rubbish; Linux finds them the same way.
        if result.passed and result.received_bytes == INQUIRY_BYTES:
            complete = command.pack() == _STANDARD_INQUIRY
            self._trust_residue = self._trust_residue and not (complete and result.residue_bytes)

    # Recovery (BOT 1.0 §5.3.4), from gentle to hard.

    async def _recover(self, name: str, reason: TapefsError) -> None:
        self._recovery_count += 1
        run = self._endpoints.run
        try:
            # A class reset first: to a tape drive a port reset is like a power-on, position and
            # modes are lost. If the very next command fails again it was not enough.
            if self._recovery_count == 1 and await self._class_reset(name, reason):
                return
            if self._recovery_count <= 2:
                event(PORT_RESET, logging.WARNING, command=name, reason=reason)
                await run(self._endpoints.port_reset)
                await trio.sleep(self._settle_s)
                self._recovery_count = 2
                return
        except DriveGone as exc:
            raise self._give_up(
                DriveGone(f"the drive did not come back after {name}; plug it in again")
            ) from exc
        except (DriveBusy, NoDrive) as exc:
            self._give_up(exc)  # someone else has it now, and the message says so
            raise
        except WireFailed as exc:
            reason = exc
        raise self._give_up(
            WireReset(
                "the drive does not answer, even after a reset of its USB port; power-cycle it"
            )
        ) from reason

    async def _class_reset(self, name: str, reason: TapefsError) -> bool:
        event(RESET_RECOVERY, logging.WARNING, command=name, reason=reason)
        try:
            await self._endpoints.run(self._endpoints.class_reset)
            await trio.sleep(self._settle_s)
            await self._endpoints.run(partial(self._endpoints.clear_halt, Pipe.IN))
            await self._endpoints.run(partial(self._endpoints.clear_halt, Pipe.OUT))
        except WireFailed:
            return False
        return True

    def _give_up(self, error: TapefsError) -> TapefsError:
        self._lost = error
        event(DRIVE_GONE, logging.ERROR, reason=error)
        return error


def _valid_part(
    received: DataBuffer | None, wanted: DataBuffer | None, valid_bytes: int
) -> memoryview:
    """A view of the first `valid_bytes` received, in the caller's own buffer if there is one."""
    if received is None or not valid_bytes:
        return memoryview(b"")
    if wanted is None or wanted is received:
        return memoryview(received)[:valid_bytes]
    memoryview(wanted)[:valid_bytes] = memoryview(received)[:valid_bytes]
    return memoryview(wanted)[:valid_bytes]
