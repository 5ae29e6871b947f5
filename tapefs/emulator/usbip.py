"""The emulated drive as a USB device for Linux: a USB/IP server with one device to attach.

`modprobe vhci-hcd; usbip attach -r HOST -b 1-1` on another machine, or in a virtual one, and its
kernel sees a USB tape drive: usb-storage and st drive it, and so does tapefs there through libusb.
Attaching is plugging in the cable, detaching is pulling it; the drive keeps its power meanwhile.

USB/IP knows neither passwords nor encryption: who may connect has the drive.
"""

from __future__ import annotations

import math
import socket
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from tapefs.emulator import usbip_wire as wire
from tapefs.emulator.bot_device import BotDevice
from tapefs.emulator.control_pipe import ControlPipe
from tapefs.emulator.descriptors import UsbIdentity
from tapefs.emulator.urb_queue import UrbQueue
from tapefs.emulator.wire_faults import Unplugged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapefs.emulator.device_server import DeviceServer
    from tapefs.emulator.urb_queue import Answer

T = TypeVar("T")

CONNECTIONS_MAX: Final = 16
# Who connects says what it wants at once, and a packet once begun goes on.
SILENCE_S_MAX: Final = 10.0
# A host that vanished without a word frees the drive after half a minute.
_KEEPALIVE_OPTIONS: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class UsbipServer:
    """Serves one emulated drive to one host at a time."""

    def __init__(
        self,
        server: DeviceServer,
        *,
        identity: UsbIdentity | None = None,
        subclass: int = 0x06,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`report` is called, in trio's thread, with a sentence for whatever a person may want to
        know: hosts that come and go, and what a host does that the protocol forbids.
        """
        self.identity = identity or UsbIdentity()
        self.device = BotDevice(
            server, subclass=subclass, max_packet_bytes=self.identity.max_packet_bytes
        )
        self.device.unplug()
        self.moved_bytes = 0
        self._is_taken = False
        self._report: Final = report
        self._connection_count = 0
        # One thread at a time: commands take disk time, and the device is not thread-safe.
        self._limiter: Final = trio.CapacityLimiter(1)

    async def serve(self, listeners: Sequence[trio.SocketListener], *, once: bool = False) -> None:
        """Serve until cancelled, or with `once` until the first host that attached has left.

        The listeners are closed at the end. What the drive buffers stays in its buffer.
        """
        with trio.CancelScope() as scope:
            await trio.serve_listeners(
                partial(self._converse, scope if once else None), list(listeners)
            )

    async def _converse(self, once: trio.CancelScope | None, stream: trio.SocketStream) -> None:
        """Serve one connection to its end, whatever the other end does."""
        name = _name_of(stream)
        self._connection_count += 1
        try:
            async with stream:
                if self._connection_count > CONNECTIONS_MAX:
                    return
                _keep_alive(stream)
                if await self._answer_operation(stream):
                    try:
                        await self._attached(stream, name)
                    finally:
                        if once is not None:
                            once.cancel()
        except wire.UsbipError as error:
            self._report(f"{name} was sent away: {error}")
        except trio.TooSlowError:
            self._report(f"{name} was sent away: it fell silent in the middle of a request")
        except (trio.BrokenResourceError, OSError):
            pass  # gone before it had an answer
        finally:
            self._connection_count -= 1

    async def _answer_operation(self, stream: trio.SocketStream) -> bool:
        """Answer what a new connection asks for; True when it has been given the drive."""
        code = wire.unpack_operation(await _received(stream, wire.OPERATION.size))
        if code == wire.LIST_REQUEST:
            free = not self._is_taken
            await stream.send_all(
                wire.pack_list_reply(self.identity, self.device.subclass, free=free)
            )
            return False
        if code != wire.IMPORT_REQUEST:
            raise wire.UsbipError(f"operation {code:#06x} is unknown")
        name = bytes(await _received(stream, wire.BUS_ID_BYTES)).rstrip(b"\0")
        status = wire.STATUS_OK
        if name != wire.BUS_ID.encode():
            status = wire.STATUS_NO_DEVICE
        elif self._is_taken:
            status = wire.STATUS_BUSY
        if status != wire.STATUS_OK:
            await stream.send_all(wire.pack_import_reply(self.identity, status))
        return status == wire.STATUS_OK

    async def _attached(self, stream: trio.SocketStream, name: str) -> None:
        self._is_taken = True
        self._report(f"attached by {name}")
        try:
            await self._in_thread(self.device.plug_in)
            await stream.send_all(wire.pack_import_reply(self.identity, wire.STATUS_OK))
            await self._transfer(stream)
        except (Unplugged, trio.BrokenResourceError, OSError):
            pass  # the cable is out, at one end or the other
        finally:
            self.device.unplug()
            self._is_taken = False
            self._report(f"detached by {name}")

    async def _transfer(self, stream: trio.SocketStream) -> None:
        queue = UrbQueue(self.device, ControlPipe(self.device, self.identity))
        while True:
            head = await _received(stream, wire.URB_HEADER_BYTES, may_be_idle=True)
            urb = wire.unpack_urb(head)
            if isinstance(urb, wire.Unlink):
                status, answers = await self._in_thread(partial(queue.unlink, urb.victim))
                await self._send(stream, answers)
                await stream.send_all(wire.pack_unlink_answer(urb.sequence, status))
                continue
            data = memoryview(b"")
            if not urb.is_in:
                data = await _received(stream, urb.length_bytes)
                self.moved_bytes += len(data)
            await self._send(stream, await self._in_thread(partial(queue.submit, urb, data)))

    async def _send(self, stream: trio.SocketStream, answers: list[Answer]) -> None:
        for answer in answers:
            head = wire.pack_submit_answer(answer.sequence, answer.status, answer.actual_bytes)
            await stream.send_all(head)
            if answer.data:
                await stream.send_all(answer.data)
                self.moved_bytes += len(answer.data)
        for violation in self.device.violations:
            self._report(f"the host broke the protocol: {violation.sentence}")
        self.device.violations.clear()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


async def _received(
    stream: trio.SocketStream, count: int, *, may_be_idle: bool = False
) -> memoryview:
    """Exactly `count` bytes. Raises BrokenResourceError at the end of the stream, TooSlowError
    when nothing comes for too long; `may_be_idle`: except before the first of them.
    """
    data = memoryview(bytearray(count))
    done = 0
    while done < count:
        idle = may_be_idle and not done
        with trio.fail_after(math.inf if idle else SILENCE_S_MAX):
            received = await stream.socket.recv_into(data[done:])
        if not received:
            raise trio.BrokenResourceError
        done += received
    return data


def _keep_alive(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
    for name, value in _KEEPALIVE_OPTIONS:
        if hasattr(socket, name):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _name_of(stream: trio.SocketStream) -> str:
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError:
        return "a host that left at once"
    return f"{host}:{port}"
