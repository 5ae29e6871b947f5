"""A host for the USB/IP server, written from the protocol's description and nothing of ours."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import trio

VERSION: Final = 0x0111
DEVICE_ID: Final = 1 << 16 | 2
IN_ENDPOINT: Final = 1
OUT_ENDPOINT: Final = 2
SHORT_NOT_OK: Final = 0x01
NO_INTERRUPT: Final = 0x80

GET_DEVICE_DESCRIPTOR: Final = (0x80, 6, 0x0100, 0, 18)
SET_CONFIGURATION: Final = (0x00, 9, 1, 0, 0)
CLASS_RESET: Final = (0x21, 0xFF, 0, 0, 0)


def operation(code: int, status: int = 0, version: int = VERSION) -> bytes:
    return struct.pack(">HHI", version, code, status)


def command_block(tag: int, cdb: bytes, length: int = 0, *, is_in: bool = False) -> bytes:
    """BOT 1.0 §5.1."""
    flags = 0x80 if is_in else 0
    return struct.pack("<4sIIBBB16s", b"USBC", tag, length, flags, 0, len(cdb), cdb)


def status_block(tag: int, residue: int = 0, status: int = 0) -> bytes:
    """BOT 1.0 §5.2."""
    return struct.pack("<4sIIB", b"USBS", tag, residue, status)


@dataclass(frozen=True)
class Ended:
    """RET_SUBMIT (`actual` and `data` set) or RET_UNLINK (None)."""

    sequence: int
    status: int
    actual: int | None
    data: bytes


class UsbipHost:
    """One connection. Replies are read in the order in which the server sends them."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._sequence = 0
        self._reads: dict[int, int] = {}  # by sequence number: the endpoint's direction matters

    async def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = await self.stream.receive_some(count - len(data))
            if not chunk:
                raise EOFError(f"the server hung up after {data!r}")
            data += chunk
        return data

    async def attach(self, bus_id: bytes = b"1-1") -> int:
        """OP_REQ_IMPORT; the status of the reply. What else it says goes to `device`."""
        await self.stream.send_all(operation(0x8003) + bus_id.ljust(32, b"\0"))
        version, code, status = struct.unpack(">HHI", await self.receive(8))
        assert (version, code) == (VERSION, 3)
        self.device = b"" if status else await self.receive(312)
        return int(status)

    async def submit(
        self,
        endpoint: int,
        data: bytes | int,
        *,
        flags: int = 0,
        setup: tuple[int, ...] | None = None,
        device_id: int = DEVICE_ID,
        packets: int = 0,
    ) -> int:
        """CMD_SUBMIT: bytes go out, a number asks for that many; the sequence number."""
        self._sequence += 1
        is_in = isinstance(data, int)
        length = data if isinstance(data, int) else len(data)
        head = struct.pack(">5I", 1, self._sequence, device_id, is_in, endpoint)
        packed = struct.pack("<BBHHH", *setup) if setup else bytes(8)
        body = struct.pack(">Iiiii8s", flags, length, 0, packets, 0, packed)
        if is_in:
            self._reads[self._sequence] = length
        await self.stream.send_all(head + body + (data if isinstance(data, bytes) else b""))
        return self._sequence

    async def unlink(self, victim: int) -> int:
        self._sequence += 1
        head = struct.pack(">5I", 2, self._sequence, DEVICE_ID, 0, 0)
        await self.stream.send_all(head + struct.pack(">I24x", victim))
        return self._sequence

    async def ended(self) -> Ended:
        """The next reply."""
        head = await self.receive(48)
        code, sequence, device_id, direction, endpoint, status = struct.unpack_from(">5Ii", head)
        assert (device_id, direction, endpoint) == (0, 0, 0)
        if code == 4:
            assert head[24:] == bytes(24)
            return Ended(sequence, status, None, b"")
        assert code == 3
        (actual,) = struct.unpack_from(">i", head, 24)
        is_in = sequence in self._reads
        data = await self.receive(actual) if is_in else b""
        assert actual <= self._reads.get(sequence, actual)
        return Ended(sequence, status, actual, data)

    async def transfer(
        self,
        endpoint: int,
        data: bytes | int,
        *,
        flags: int = 0,
        setup: tuple[int, ...] | None = None,
    ) -> Ended:
        """Submit, and wait for the reply, which must be the next one."""
        sequence = await self.submit(endpoint, data, flags=flags, setup=setup)
        ended = await self.ended()
        assert ended.sequence == sequence
        return ended

    async def control(self, *setup: int) -> Ended:
        """A control transfer without data that go out."""
        return await self.transfer(0, setup[4] if setup[0] & 0x80 else b"", setup=setup)

    async def is_quiet(self) -> bool:
        """Whether nothing comes back; proven by a control transfer that overtakes what waits."""
        ended = await self.transfer(0, 18, setup=GET_DEVICE_DESCRIPTOR)
        return ended.status == 0 and len(ended.data) == 18

    async def aclose(self) -> None:
        await self.stream.aclose()
