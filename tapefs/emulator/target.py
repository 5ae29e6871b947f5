"""The emulated drive's device server: command blocks in, replies out, as SSC-4 and SPC-4 say.

Synchronous, no threads, no clock. A wire (`tapefs.emulator.usb`, or the in-process
`TargetTransport`) brings the commands, one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.emulator import commands, status
from tapefs.emulator.fault_queue import FaultPoint, FaultQueue, PlannedFault
from tapefs.emulator.logical_unit import LogicalUnit
from tapefs.emulator.personality import DEFAULT_PERSONALITY, Personality, personality_named
from tapefs.emulator.reply import TargetReply
from tapefs.emulator.status import CheckConditionStatus
from tapefs.errors import MediumFailed
from tapefs.scsi import cdb as c
from tapefs.scsi.sense import Sense, SenseKey

if TYPE_CHECKING:
    from array import array

    from tapefs.emulator.deck import DriveLog, Faults
    from tapefs.emulator.medium import VirtualCartridge
    from tapefs.emulator.tape_stream import TapeStream

_NO_SENSE: Final = Sense()
_NO_SERIAL: Final = "VT0000000000"
_INTERNAL_FAILURE: Final = Sense(SenseKey.HARDWARE_ERROR, 0x44, 0x00)

# Answered whatever state the drive is in, without touching unit attentions (SPC-4).
_ALWAYS_ANSWERED: Final = (c.Inquiry, c.ReportLuns)


@dataclass(frozen=True, slots=True)
class UnitFault(PlannedFault):
    """A command that ends with `sense`, or when None as if all were well, without being executed.

    One that ends with a recovered error was executed: that is what it says.
    """

    point: FaultPoint = FaultPoint.EXECUTION
    sense: Sense | None = None

    @property
    def executes(self) -> bool:
        """Whether the command is executed all the same."""
        sense = self.sense
        return sense is not None and sense.key is SenseKey.RECOVERED_ERROR and not sense.deferred

    def __str__(self) -> str:
        return f"sense {self.sense.code}" if self.sense else "false good"


class Target:
    """One logical unit: a tape drive, with or without a cartridge in it.

    Not thread-safe, and `execute` must not be entered again before it returned: that is the
    wire's business, and the wire's to notice.
    """

    def __init__(
        self,
        cartridge: VirtualCartridge | None = None,
        personality: Personality | None = None,
        *,
        becoming_ready_polls: int = 0,
        stream: TapeStream | None = None,
    ) -> None:
        """Power on, with `cartridge` loaded. The personality defaults to the cartridge's own.
        `stream` is the drive's buffer, where the caller has a clock.

        After each load, `becoming_ready_polls` commands that need the medium find the drive not
        ready yet. Raises UsageError when the cartridge names a personality that does not exist,
        and MediumFailed when its chip cannot be written.
        """
        if personality is None and cartridge is not None:
            personality = personality_named(cartridge.memory.personality)
        self._unit = LogicalUnit(
            personality or DEFAULT_PERSONALITY,
            cartridge.memory.serial if cartridge is not None else _NO_SERIAL,
            cartridge,
            becoming_ready_polls,
            stream,
        )
        self._handlers = commands.handlers(self._unit.personality)
        self._sense = _NO_SENSE
        self.unit_faults: Final = FaultQueue[UnitFault]()

    @property
    def personality(self) -> Personality:
        """What kind of drive this is."""
        return self._unit.personality

    @property
    def serial(self) -> str:
        """The drive's serial number; a virtual drive has that of its first cartridge."""
        return self._unit.serial

    @property
    def cartridge(self) -> VirtualCartridge | None:
        """What is in the drive, threaded or not."""
        return self._unit.cartridge

    @property
    def faults(self) -> Faults:
        """Blocks that shall fail; to be filled in by whoever wants to see what happens then."""
        return self._unit.faults

    @property
    def log(self) -> DriveLog:
        """What the log pages count."""
        return self._unit.log

    @property
    def busy_s(self) -> float:
        """How long a real drive would have been at work so far."""
        return self._unit.busy_s

    def execute(
        self, cdb: bytes, data_out: bytes | bytearray | memoryview | array[int] = b""
    ) -> TargetReply:
        """Carry out one command block, padded or not, to its end.

        `data_out` is what the host sent with it. CHECK CONDITION is a reply that is not good; its
        sense waits for the next REQUEST SENSE, and any other command clears it. The reply's
        `data_in` is valid until the next call.
        """
        sense, self._sense = self._sense, _NO_SENSE
        try:
            command = c.unpack(cdb)
            if isinstance(command, c.RequestSense):
                return TargetReply(True, self._report(sense)[: command.allocation_bytes])
            return self._carry_out(command, memoryview(data_out).cast("B"))
        except CheckConditionStatus as error:
            return self._check_condition(error.sense, error.data_in, error.consumed_bytes)
        except c.InvalidField:
            return self._check_condition(status.INVALID_FIELD_IN_CDB)
        except c.UnknownCommand:
            return self._check_condition(status.UNKNOWN_OPERATION_CODE)
        except MediumFailed:
            return self._check_condition(_INTERNAL_FAILURE)

    def expects(self, cdb: bytes) -> tuple[c.Direction, int]:
        """Direction and bytes of the data stage that the device intends for `cdb` (BOT 1.0 §6.7).

        A command that it does not have has none. The data really sent may be shorter.
        """
        try:
            command = c.unpack(cdb)
        except c.UnknownCommand:
            return c.Direction.NONE, 0
        if type(command) not in self._handlers and not isinstance(command, c.RequestSense):
            return c.Direction.NONE, 0
        length_bytes = command.transfer_length_bytes
        if isinstance(command, c.Read6 | c.Write6) and command.fixed:
            length_bytes = command.transfer_length * self._unit.modes.block_bytes
        return (command.direction if length_bytes else c.Direction.NONE), length_bytes

    def class_reset(self) -> None:
        """Bulk-Only Mass Storage Reset. A drive takes it for a reset of its logical unit: sense is
        forgotten, and where the personality says so the next command learns of it (29h/03h). Tape,
        buffer and modes stay as they are.
        """
        self._sense = _NO_SENSE
        if self.personality.reports_class_reset:
            self._unit.attentions.append(status.CLASS_RESET)

    def reset(self) -> None:
        """A reset on the wire: the buffer is written out, the tape rewound, everything else is as
        after power on.
        """
        deck = self._unit.deck
        if deck is not None:
            try:
                deck.locate(0)
            except CheckConditionStatus:
                # Nobody is left to tell; the host has to see for itself what is on tape.
                deck.lose_power()
        self._sense = _NO_SENSE
        self._unit.start()

    def power_cut(self) -> None:
        """Power fails and comes back: what was buffered and not flushed is lost."""
        if self._unit.deck is not None:
            self._unit.deck.lose_power()
        self._sense = _NO_SENSE
        self._unit.start()

    def eject(self) -> VirtualCartridge | None:
        """The operator takes the cartridge out; the drive writes its buffer out first.

        Raises CheckConditionStatus when it cannot; the cartridge then stays in the drive.
        """
        self._unit.unload()
        cartridge, self._unit.cartridge = self._unit.cartridge, None
        return cartridge

    def insert(self, cartridge: VirtualCartridge) -> None:
        """The operator puts a cartridge into the empty drive, which threads it."""
        if self._unit.cartridge is not None:
            raise ValueError("there is a cartridge in the drive already")
        self._unit.cartridge = cartridge
        self._unit.load()

    def _carry_out(self, command: c.Command, data_out: memoryview) -> TargetReply:
        handler = self._handlers.get(type(command))
        if handler is None:
            return self._check_condition(status.UNKNOWN_OPERATION_CODE)
        if isinstance(command, _ALWAYS_ANSWERED):
            return handler(self._unit, command, data_out)
        if self._unit.attentions:
            return self._check_condition(self._unit.attentions.popleft())
        fault = self.unit_faults.take(FaultPoint.EXECUTION, command.name)
        if fault is None:
            return handler(self._unit, command, data_out)
        reply = handler(self._unit, command, data_out) if fault.executes else TargetReply(True)
        if fault.sense is None:
            return reply
        return self._check_condition(fault.sense, reply.data_in, reply.consumed_bytes)

    def _check_condition(
        self, sense: Sense, data_in: bytes | bytearray | memoryview = b"", consumed_bytes: int = 0
    ) -> TargetReply:
        self._sense = sense
        return TargetReply(False, data_in, consumed_bytes)

    def _report(self, sense: Sense) -> bytes:
        """What REQUEST SENSE answers: the last command's sense, or else what is to be told."""
        if sense is _NO_SENSE and self._unit.attentions:
            sense = self._unit.attentions.popleft()
        return sense.pack()
