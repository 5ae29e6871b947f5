"""Bulk-Only Transport, device end: strict about the protocol, and honest about its violations.

A real drive that is handed a second command in the middle of a first one records the intruder on
tape or stalls, and says nothing. This one does the same and keeps a list of `Violation`s that say
in words what the host did. Behaviour follows BOT 1.0: §5.3 for the order of transfers, §6.2 for
command blocks, §6.6 for invalid ones (both pipes stall until Reset Recovery), §6.7 for the
thirteen cases in which host and device may or may not agree on the data.

A device server (`tapefs.emulator.device_server`) executes the commands. Nothing here waits: what
would be an unanswered transfer on a real wire is `Silence` at once. All methods may be called from
any thread.
"""

from __future__ import annotations

import enum
import threading
from typing import TYPE_CHECKING, Final

from tapefs import telemetry
from tapefs.emulator.cable import Cable, Change
from tapefs.emulator.command_check import (
    accepted,
    command_name,
    natural,
    starts_like_command,
)
from tapefs.emulator.fault_queue import FaultPoint, FaultQueue
from tapefs.emulator.wire_faults import (
    INVALID_STATUS,
    Babble,
    FaultEffect,
    LessData,
    Silence,
    Stall,
    Unplugged,
    Violation,
    ViolationKind,
    WireFault,
    garbled,
)
from tapefs.scsi.command import Direction
from tapefs.usb.bot import (
    COMMAND_BLOCK_BYTES,
    STATUS_BLOCK_BYTES,
    CommandBlock,
    CommandStatus,
    Pipe,
    ProtocolError,
    StatusBlock,
)

if TYPE_CHECKING:
    from array import array

    from tapefs.emulator.cable import Replug
    from tapefs.emulator.device_server import DeviceServer

_REQUEST_SENSE: Final = 0x03


class _Phase(enum.Enum):
    COMMAND = "command"
    DATA_OUT = "data from the host"
    DATA_IN = "data to the host"
    STATUS = "status"


class BotDevice:
    """The device end of one Bulk-Only interface with one logical unit."""

    def __init__(
        self,
        server: DeviceServer,
        *,
        subclass: int = 0x06,
        max_packet_bytes: int = 512,
        less_data: LessData = LessData.SHORT_PACKET,
    ) -> None:
        self.server = server
        # Logical units 1 and up, as the changer of an autoloader; resets concern them all.
        self.more_units: list[DeviceServer] = []
        self.subclass = subclass
        self.max_packet_bytes = max_packet_bytes
        self.less_data = less_data
        self.violations: list[Violation] = []
        self.command_count = 0
        self.cable: Final = Cable()
        self.faults: Final = FaultQueue[WireFault]()
        self._lock = threading.Lock()
        self._hang: WireFault | None = None
        self._halted: set[Pipe] = set()
        self._wedged = False
        self._sense_waits = False
        # Why the host must do reset recovery before its next command block; empty: it need not.
        self._recovery_due = ""
        self._begin(CommandBlock(0, b"\0", Direction.NONE, 0), b"\0")
        self._phase = _Phase.COMMAND

    @property
    def max_lun(self) -> int:
        """What GET MAX LUN answers."""
        return len(self.more_units)

    @property
    def _units(self) -> list[DeviceServer]:
        return [self.server, *self.more_units]

    @property
    def _unit(self) -> DeviceServer:
        """The one that the command is for."""
        return self._units[self._block.lun]

    @property
    def plugged_in(self) -> bool:
        """Whether there is a device to talk to, as far as anybody looked."""
        return self.cable.plugged_in

    def is_found(self) -> bool:
        """Whether a host that looks at its bus now finds the device; such looks are counted."""
        self._obey(self.cable.look(poll=True))
        return self.cable.plugged_in

    def unplug(self, replug: Replug | None = None) -> None:
        """Pull the cable. The drive keeps its power and what it buffers."""
        self.cable.pull(replug)

    def power_cut(self, replug: Replug | None = None) -> None:
        """Pull the mains plug: the device is gone, and what was only buffered is lost."""
        self.cable.pull(replug)
        for unit in self._units:
            unit.power_cut()

    def plug_in(self) -> None:
        """Connect again. The drive reports the reset; a transaction cut off is forgotten."""
        self._fresh_start()
        self.cable.plug_in()
        for unit in self._units:
            unit.reset()

    def bulk_out(self, data: bytes | memoryview | array[int]) -> int:
        """The host sends `data` in one transfer. Returns the number of bytes taken: all.

        Raises Stall, Silence, Unplugged.
        """
        self._begin_alone("OUT")
        try:
            self._need(Pipe.OUT)
            if self._phase is _Phase.COMMAND:
                self._take_command(data)
            elif self._phase is _Phase.DATA_OUT:
                self._take_data(data)
            else:
                self._violate(
                    ViolationKind.COMMAND_BEFORE_STATUS,
                    f"{len(data)} bytes were sent while {self._name()} still owed its "
                    f"{self._phase.value}; both pipes stall until reset recovery",
                )
                self._wedge()
                raise Stall
            return len(data)
        finally:
            self._lock.release()

    def bulk_in(self, into: memoryview) -> int:
        """The host reads up to `len(into)` bytes in one transfer. Returns how many arrived.

        Raises Stall, Silence, Babble, Unplugged.
        """
        self._begin_alone("IN")
        try:
            self._need(Pipe.IN)
            if self._phase is _Phase.DATA_IN:
                return self._give_data(into)
            if self._phase is _Phase.STATUS:
                return self._give_status(into)
            self._violate(
                ViolationKind.READ_OUT_OF_TURN,
                f"the host reads, but the device waits for a {self._phase.value}",
            )
            raise Silence
        finally:
            self._lock.release()

    @property
    def answers_in(self) -> bool:
        """Whether a read would end now, with data, status or an error, rather than wait (NAK)."""
        waits = self._phase in (_Phase.COMMAND, _Phase.DATA_OUT) and self._hang is None
        return not self.plugged_in or Pipe.IN in self._halted or not waits

    def is_halted(self, pipe: Pipe) -> bool:
        """GET STATUS of an endpoint."""
        self._need(None)
        return pipe in self._halted

    def clear_halt(self, pipe: Pipe) -> None:
        """CLEAR FEATURE (ENDPOINT_HALT). Does not help before a class reset where one is due."""
        self._need(None)
        if not self._wedged:
            self._halted.discard(pipe)

    def class_reset(self) -> None:
        """Bulk-Only Mass Storage Reset: ready for a command block; halts stay (BOT 1.0 §3.1).

        What it means to the drive behind the wire is the device server's business.
        """
        self._reset(FaultPoint.CLASS_RESET)
        self._wedged = self._sense_waits = False
        self._recovery_due = ""
        self._phase = _Phase.COMMAND
        for unit in self._units:
            unit.class_reset()

    def port_reset(self) -> None:
        """A reset of the port: like plugged in again, and the device server is told."""
        self._reset(FaultPoint.PORT_RESET)
        self._fresh_start()
        for unit in self._units:
            unit.reset()

    def _reset(self, point: FaultPoint) -> None:
        self._need(None)
        self._strike(point)
        if self._hang is not None:
            ends = (point, FaultPoint.CLASS_RESET) if point is FaultPoint.PORT_RESET else (point,)
            if self._hang.until not in ends:
                raise Silence
            self._hang = None

    # Command stage.

    def _take_command(self, data: bytes | memoryview | array[int]) -> None:
        try:
            block = accepted(bytes(data), self.subclass, self.max_lun)
        except ProtocolError as exc:
            self._violate(ViolationKind.INVALID_COMMAND_BLOCK, f"{exc}; both pipes stall")
            self._wedge()
            raise Stall from exc
        self._begin(block, natural(block.cdb))
        self._strike(FaultPoint.COMMAND, Pipe.OUT)
        if self._sense_waits and self._cdb[0] != _REQUEST_SENSE:
            self._violate(
                ViolationKind.SENSE_DISCARDED,
                f"{self._name()} came between a failed command and its REQUEST SENSE; "
                "what the drive had to say is lost",
            )
        self._sense_waits = False
        if self._recovery_due:
            self._violate(
                ViolationKind.RECOVERY_OMITTED,
                f"{self._name()} came after {self._recovery_due} without reset recovery",
            )
            self._recovery_due = ""
        self._agree()

    def _begin(self, block: CommandBlock, cdb: bytes) -> None:
        self._block = block
        self._cdb = cdb
        self._status = CommandStatus.PASSED
        self._moved_bytes = 0  # in the data stage, either way
        self._meant_bytes = 0  # of those, what the device server processed or meant
        self._wanted_bytes = 0  # what the device wants of the host's data
        self._data_in = memoryview(b"")
        self._data_out = bytearray()

    def _agree(self) -> None:
        """Compare what host and device want to do (BOT 1.0 §6.7) and enter the next phase."""
        host, host_bytes = self._block.direction, self._block.length_bytes
        device, device_bytes = self._unit.expects(self._cdb)
        if not device_bytes:
            device = Direction.NONE
        if Direction.NONE not in (host, device) and host is not device:
            self._disagree(8 if host is Direction.IN else 10)
            self._halted.add(Pipe.IN if host is Direction.IN else Pipe.OUT)
        elif host is Direction.NONE and device is not Direction.NONE:
            self._disagree(2 if device is Direction.IN else 3)
        elif host is Direction.OUT and host_bytes < device_bytes:
            self._disagree(13)
            self._halted.add(Pipe.OUT)
        elif host is Direction.OUT:
            self._wanted_bytes = device_bytes
            self._phase = _Phase.DATA_OUT
        else:
            self._execute(b"")
            self._phase = _Phase.DATA_IN if host_bytes else _Phase.STATUS

    def _disagree(self, case: int) -> None:
        self._violate(
            ViolationKind.DATA_DISAGREEMENT,
            f"case {case}: the host expects {self._block.length_bytes} bytes "
            f"({self._block.direction.value}) of {self._name()}, "
            f"the device means {self._server_intent()}",
        )
        self._status = CommandStatus.PHASE_ERROR
        self._phase = _Phase.STATUS

    def _server_intent(self) -> str:
        direction, length_bytes = self._unit.expects(self._cdb)
        return f"{max(length_bytes, len(self._data_in))} ({direction.value})"

    def _execute(self, data: bytes | memoryview | array[int]) -> None:
        self.command_count += 1
        reply = self._unit.execute(self._cdb, data)
        self._status = CommandStatus.PASSED if reply.good else CommandStatus.FAILED
        self._phase = _Phase.STATUS
        if self._block.direction is Direction.OUT:
            self._meant_bytes = min(reply.consumed_bytes, self._block.length_bytes)
        else:
            self._data_in = memoryview(reply.data_in)
            self._meant_bytes = min(len(self._data_in), self._block.length_bytes)
            if len(self._data_in) > self._block.length_bytes:
                self._disagree(7 if self._block.length_bytes else 2)

    # Data stage.

    def _take_data(self, data: bytes | memoryview | array[int]) -> None:
        if self._struck_in_data(Pipe.OUT):
            raise Stall
        host_bytes = self._block.length_bytes
        left_bytes = host_bytes - self._moved_bytes
        if len(data) == COMMAND_BLOCK_BYTES != left_bytes and starts_like_command(data):
            self._violate(
                ViolationKind.COMMAND_INSIDE_DATA,
                f"a second command block arrived inside the data of {self._name()}: "
                f"its 31 bytes are taken for bytes {self._moved_bytes} to "
                f"{self._moved_bytes + COMMAND_BLOCK_BYTES - 1} of the data",
            )
        surplus_bytes = max(len(data) - left_bytes, 0)
        self._moved_bytes += len(data) - surplus_bytes
        if not self._data_out and len(data) == host_bytes == self._wanted_bytes:
            self._execute(data)  # the usual case: one transfer, no copy
            return
        self._data_out += memoryview(data)[: len(data) - surplus_bytes]
        enough = self._moved_bytes > self._wanted_bytes and self.less_data is LessData.STALL
        if self._moved_bytes == host_bytes or enough:
            self._execute(memoryview(self._data_out)[: self._wanted_bytes])
        if surplus_bytes:
            self._violate(
                ViolationKind.DATA_OVERRUN,
                f"the host sent {surplus_bytes} bytes more than the {host_bytes} that "
                f"{self._name()} announced; both pipes stall until reset recovery",
            )
            self._wedge()
            raise Stall
        if enough:
            self._halted.add(Pipe.OUT)
            raise Stall

    def _give_data(self, into: memoryview) -> int:
        if self._struck_in_data(Pipe.IN):
            return self._give_status(into)
        host_bytes, meant_bytes = self._block.length_bytes, self._meant_bytes
        sent_bytes = self._moved_bytes
        total_bytes = host_bytes if self.less_data is LessData.PAD else meant_bytes
        count = min(len(into), total_bytes - sent_bytes)
        if count < total_bytes - sent_bytes and len(into) % self.max_packet_bytes:
            raise Babble
        chunk = self._data_in[sent_bytes : min(sent_bytes + count, meant_bytes)]
        into[: len(chunk)] = chunk
        into[len(chunk) : count] = bytes(count - len(chunk))
        self._moved_bytes += count
        ended_short = count < len(into) or total_bytes % self.max_packet_bytes
        if self._moved_bytes == total_bytes and (ended_short or total_bytes == host_bytes):
            self._phase = _Phase.STATUS
            if self.less_data is LessData.STALL and total_bytes < host_bytes:
                self._halted.add(Pipe.IN)
                raise Stall
        return count

    # Status stage.

    def _give_status(self, into: memoryview) -> int:
        effect = self._strike(FaultPoint.STATUS, Pipe.IN)
        if effect is FaultEffect.EMPTY:
            return 0
        if len(into) < STATUS_BLOCK_BYTES:
            raise Babble
        residue_bytes = self._block.length_bytes - self._meant_bytes
        status = StatusBlock(self._block.tag, residue_bytes, self._status)
        data = garbled(status, effect, self._block.length_bytes)
        into[: len(data)] = data
        if self._status is CommandStatus.PHASE_ERROR:
            self._recovery_due = "a phase error"
        elif effect in INVALID_STATUS:
            self._recovery_due = f"a status block that cannot be believed ({effect.value})"
        self._phase = _Phase.COMMAND
        failed = self._status is CommandStatus.FAILED
        self._sense_waits = failed and self._cdb[0] != _REQUEST_SENSE
        return len(data)

    # Odds of the wire.

    def _begin_alone(self, pipe: str) -> None:
        """To be followed by a release of the lock.

        No transfer here waits for anything: finding another one inside means that two threads use
        the pipes at one time, whatever order they then happen to get.
        """
        if not self._lock.acquire(blocking=False):
            self._violate(
                ViolationKind.CONCURRENT_TRANSFERS,
                f"a bulk {pipe} transfer was started while another one was under way",
            )
            self._lock.acquire()

    def _need(self, pipe: Pipe | None) -> None:
        self._obey(self.cable.look())
        if not self.cable.plugged_in:
            raise Unplugged
        if pipe is not None and self._hang is not None:
            raise Silence
        if pipe in self._halted:
            raise Stall

    def _obey(self, change: Change | None) -> None:
        if change is None:
            return
        telemetry.event(telemetry.FAULT_STRUCK, fault=change.value, command=self._name())
        if change is Change.PLUGGED_IN:
            self.plug_in()
        elif change is Change.POWERED_OFF:
            for unit in self._units:
                unit.power_cut()

    def _strike(self, point: FaultPoint, pipe: Pipe | None = None) -> FaultEffect | None:
        """Let what is planned for `point` happen; returns it if it is not an exception."""
        fault = self.faults.take(point, self._name())
        if fault is None:
            return None
        if fault.effect is FaultEffect.HANG:
            self._hang = fault
        if fault.effect in (FaultEffect.HANG, FaultEffect.SILENCE):
            raise Silence
        if fault.effect in (FaultEffect.UNPLUG, FaultEffect.POWER_CUT):
            gone = self.unplug if fault.effect is FaultEffect.UNPLUG else self.power_cut
            gone(fault.replug)
            raise Unplugged
        if fault.effect is FaultEffect.BABBLE:
            self._phase = _Phase.STATUS
            raise Babble
        if fault.effect is FaultEffect.STALL:
            if pipe is not None:
                self._halted.add(pipe)
            raise Stall
        return fault.effect

    def _struck_in_data(self, pipe: Pipe) -> bool:
        """True when a planned fault replaces the data stage: nothing moves, status follows."""
        try:
            struck = self._strike(FaultPoint.DATA, pipe) is FaultEffect.SKIP_DATA
        except Stall:
            self._drop_data()
            raise
        if struck:
            self._drop_data()
        return struck

    def _drop_data(self) -> None:
        self._meant_bytes = 0
        if self._block.direction is Direction.OUT:
            self._status = CommandStatus.FAILED  # never executed
        self._phase = _Phase.STATUS

    def _wedge(self) -> None:
        self._wedged = True
        self._halted = {Pipe.IN, Pipe.OUT}

    def _fresh_start(self) -> None:
        self._hang = None
        self._halted.clear()
        self._wedged = self._sense_waits = False
        self._recovery_due = ""
        self._phase = _Phase.COMMAND

    def _violate(self, kind: ViolationKind, sentence: str) -> None:
        self.violations.append(Violation(kind, sentence))

    def _name(self) -> str:
        return command_name(self._cdb)
