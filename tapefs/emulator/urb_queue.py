"""The emulated drive's end of a host controller: transfers come in, some at once, some wait.

A read that the device has nothing for waits, as it would on a wire where the device answers NAK;
so does any transfer that the device stays silent about. Only the host ends such a wait, by taking
the transfer back.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from tapefs.emulator import descriptors
from tapefs.emulator import usbip_wire as wire
from tapefs.emulator.control_pipe import Setup
from tapefs.emulator.wire_faults import Babble, Silence, Stall

if TYPE_CHECKING:
    from tapefs.emulator.bot_device import BotDevice
    from tapefs.emulator.control_pipe import ControlPipe

# As many as a record of 16 MiB has pages: a host may send it in that many pieces.
WAITING_COUNT_MAX: Final = 4096

_IN_ENDPOINT: Final = descriptors.IN_ADDRESS & 0x0F
_OUT_ENDPOINT: Final = descriptors.OUT_ADDRESS & 0x0F


class Answer(NamedTuple):
    """How one transfer ended: `status` 0 or a negated error number."""

    sequence: int
    status: int
    actual_bytes: int
    data: bytes | bytearray | memoryview = b""


class UrbQueue:
    """The transfers of one attached host. Not thread-safe; a call may take as long as a command.

    Every method may raise Unplugged: then there is nobody to answer to any more.
    """

    def __init__(self, device: BotDevice, control: ControlPipe) -> None:
        self._device: Final = device
        self._control: Final = control
        self._reads: Final = deque[wire.Submit]()
        # Transfers that nothing but the host can end, by sequence number.
        self._held: Final = dict[int, wire.Submit]()
        # What follows a write that is held must not overtake it.
        self._silent_out = self._silent_in = False
        self._chain_is_broken = False

    def submit(self, urb: wire.Submit, data: bytes | bytearray | memoryview) -> list[Answer]:
        """Take one transfer, with its data if it goes out; the transfers that ended by this.

        Raises UsbipError when too many wait.
        """
        if len(self._reads) + len(self._held) >= WAITING_COUNT_MAX:
            raise wire.UsbipError(f"more than {WAITING_COUNT_MAX} transfers wait")
        answers: list[Answer] = []
        if urb.endpoint == _IN_ENDPOINT and urb.is_in:
            self._reads.append(urb)
        else:
            self._start(urb, data, answers)
        self._drain(answers)
        return answers

    def unlink(self, sequence: int) -> tuple[int, list[Answer]]:
        """Take a transfer back: its status, and the transfers that ended by this."""
        answers: list[Answer] = []
        found = self._held.pop(sequence, None)
        if found is None:
            found = next((each for each in self._reads if each.sequence == sequence), None)
            if found is None:
                return 0, answers
            self._reads.remove(found)
        remaining = self._held.values()
        self._silent_out = self._silent_out and any(not each.is_in for each in remaining)
        self._silent_in = self._silent_in and any(_is_bulk_in(each) for each in remaining)
        self._drain(answers)
        return wire.ECONNRESET, answers

    def _start(
        self, urb: wire.Submit, data: bytes | bytearray | memoryview, answers: list[Answer]
    ) -> None:
        """Carry out a transfer that is no bulk read."""
        bulk_out = urb.endpoint == _OUT_ENDPOINT and not urb.is_in
        if bulk_out and self._silent_out:
            self._held[urb.sequence] = urb
            return
        try:
            if urb.endpoint == 0:
                answer = self._control.request(Setup.unpack(urb.setup))[: urb.length_bytes]
                count = len(answer) if urb.is_in else len(data)
                answers.append(Answer(urb.sequence, 0, count, answer))
            elif bulk_out:
                count = self._device.bulk_out(memoryview(data))
                answers.append(Answer(urb.sequence, 0, count))
            else:
                raise Stall  # noqa: TRY301 - there is no such endpoint
        except Stall:
            answers.append(Answer(urb.sequence, wire.EPIPE, 0))
        except Silence:
            self._held[urb.sequence] = urb
            self._silent_out = self._silent_out or bulk_out

    def _drain(self, answers: list[Answer]) -> None:
        """Let the device answer the reads that wait, in their order, as far as it can."""
        while self._reads and not self._silent_in:
            urb = self._reads[0]
            if self._chain_is_broken and urb.flags & wire.URB_SHORT_NOT_OK:
                self._held[urb.sequence] = self._reads.popleft()
                self._chain_is_broken = bool(urb.flags & wire.URB_NO_INTERRUPT)
                continue
            self._chain_is_broken = False
            if not self._device.answers_in:
                return
            del self._reads[0]
            answer = self._read(urb)
            if answer is not None:
                answers.append(answer)

    def _read(self, urb: wire.Submit) -> Answer | None:
        storage = bytearray(urb.length_bytes)
        into = memoryview(storage)
        status = count = 0
        try:
            count = self._device.bulk_in(into)
        except Stall:
            status = wire.EPIPE
        except Babble:
            status = wire.EOVERFLOW
        except Silence:
            self._held[urb.sequence] = urb
            self._silent_in = True
            return None
        if not status and count < urb.length_bytes and urb.flags & wire.URB_SHORT_NOT_OK:
            status = wire.EREMOTEIO
        # Linux cuts a read into a chain of transfers where it must. What is left of a chain that
        # ended early gets no data: a host controller stops there until the host took them back.
        chained = wire.URB_SHORT_NOT_OK | wire.URB_NO_INTERRUPT
        self._chain_is_broken = bool(status) and urb.flags & chained == chained
        return Answer(urb.sequence, status, count, into[:count])


def _is_bulk_in(urb: wire.Submit) -> bool:
    return urb.is_in and urb.endpoint == _IN_ENDPOINT
