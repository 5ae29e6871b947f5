"""The emulated drive without a wire: the transport that tests and simulations use.

Same shape as the USB transport: one command at a time, sense fetched in the same step. Nothing
here takes a thread, and no time passes unless asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tapefs.errors import DriveGone
from tapefs.scsi.cdb import Direction, RequestSense
from tapefs.scsi.completion import Completion
from tapefs.scsi.sense import Sense, SenseKey, check_condition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapefs.emulator.target import Target
    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import DataBuffer

_OVERLAPPED: Final = Sense(SenseKey.ABORTED_COMMAND, 0x4E, 0x00)
_REQUEST_SENSE: Final = RequestSense().pack()


class TargetTransport:
    """Brings commands to a `Target` within one trio thread."""

    def __init__(self, target: Target, *, paced: bool = False) -> None:
        """With `paced`, each command takes as long, on trio's clock, as the drive would need."""
        self._target: Final = target
        self._paced: Final = paced
        self._busy = False
        self._gone = False

    async def execute(self, command: Command, data: DataBuffer | bytes | None = None) -> Completion:
        """Carry out one command. It may be cancelled before it starts, not afterwards.

        OUT: `data` holds exactly the bytes to send. IN: `data` is filled in place when given.
        Raises DriveGone when the drive was unplugged, OverlappedCommands when another command
        has not ended yet, and ValueError when `data` does not fit the command.
        """
        await trio.lowlevel.checkpoint()
        if self._gone:
            raise DriveGone("the virtual drive was unplugged; plug it in again")
        if self._busy:
            raise check_condition(_OVERLAPPED, command.name)
        self._busy = True
        try:
            before_s = self._target.busy_s
            completion = self._carry_out(command, data)
            if self._paced:
                with trio.CancelScope(shield=True):
                    await trio.sleep(self._target.busy_s - before_s)
            return completion
        finally:
            self._busy = False

    async def execute_each(
        self,
        steps: Sequence[tuple[Command, DataBuffer | bytes | None]],
        more: Callable[[], Sequence[tuple[Command, DataBuffer | bytes | None]]] | None = None,
    ) -> list[Completion]:
        """Carry out one command after the other, up to the first that is not GOOD; see `drive`."""
        ended: list[Completion] = []
        while steps:
            for command, data in steps:
                ended.append(await self.execute(command, data))
                if not ended[-1].good:
                    return ended
            steps = more() if more else ()
        return ended

    @property
    def lost(self) -> bool:
        """Unplugged or let go of."""
        return self._gone

    async def aclose(self) -> None:
        """Let go of the drive; what is in its buffer stays there."""
        self._gone = True
        await trio.lowlevel.checkpoint()

    def unplug(self) -> None:
        """Pull the cable: from now on every command raises DriveGone. The drive keeps its power."""
        self._gone = True

    def _carry_out(self, command: Command, data: DataBuffer | bytes | None) -> Completion:
        length_bytes = command.transfer_length_bytes
        if command.direction is Direction.IN:
            into = memoryview(data if data is not None else bytearray(length_bytes)).cast("B")
            if len(into) < length_bytes:
                raise ValueError(f"{command.name} needs a buffer of {length_bytes} bytes")
            reply = self._target.execute(command.pack())
            moved_bytes = min(len(reply.data_in), length_bytes)
            into[:moved_bytes] = memoryview(reply.data_in)[:moved_bytes]
            shown = into[:moved_bytes]
        else:
            sent = data if data is not None else b""
            if len(sent) != length_bytes:
                raise ValueError(f"{command.name} sends {length_bytes} bytes, not {len(sent)}")
            reply = self._target.execute(command.pack(), sent)
            moved_bytes = reply.consumed_bytes
            shown = memoryview(b"")
        residue_bytes = length_bytes - moved_bytes
        if reply.good:
            return Completion(True, shown, residue_bytes)
        sense = Sense.unpack(bytes(self._target.execute(_REQUEST_SENSE).data_in))
        return Completion(False, shown, residue_bytes, sense)
