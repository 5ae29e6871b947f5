"""The USB/IP server: what Linux's vhci-hcd sends, and what somebody who is not Linux might."""

from __future__ import annotations

import contextlib
import math
import struct
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from tape_server import TapeServer
from usbip_rig import (
    CLASS_RESET,
    GET_DEVICE_DESCRIPTOR,
    IN_ENDPOINT,
    NO_INTERRUPT,
    OUT_ENDPOINT,
    SET_CONFIGURATION,
    SHORT_NOT_OK,
    UsbipHost,
    command_block,
    operation,
    status_block,
)

from tapefs.emulator import usbip
from tapefs.emulator.fault_queue import FaultPoint
from tapefs.emulator.urb_queue import WAITING_COUNT_MAX
from tapefs.emulator.usbip import UsbipServer
from tapefs.emulator.usbip_wire import TRANSFER_BYTES_MAX
from tapefs.emulator.wire_faults import FaultEffect, LessData, WireFault
from tapefs.scsi.cdb import Inquiry, Read6, TestUnitReady, Write6
from tapefs.scsi.sense import Sense, SenseKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EPIPE, EOVERFLOW, ECONNRESET, EREMOTEIO = -32, -75, -104, -121
RECORD = bytes(range(256)) * 16
TEST_UNIT_READY = TestUnitReady().pack()


class Rig:
    """A server on a port of its own, with a small tape behind it."""

    def __init__(self) -> None:
        self.tape = TapeServer()
        self.said: list[str] = []
        self._say, self._heard = trio.open_memory_channel[str](math.inf)
        self.server = UsbipServer(self.tape, report=self._say.send_nowait)
        self.device = self.server.device
        self.port = 0

    async def connect(self) -> UsbipHost:
        return UsbipHost(await trio.open_tcp_stream("127.0.0.1", self.port))

    async def attach(self) -> UsbipHost:
        host = await self.connect()
        assert await host.attach() == 0
        assert (await host.control(*SET_CONFIGURATION)).status == 0
        return host

    async def until_said(self, text: str) -> None:
        """Wait for a sentence that was not waited for before."""
        while text not in (sentence := await self._heard.receive()):
            self.said.append(sentence)
        self.said.append(sentence)

    def all_said(self) -> list[str]:
        """Everything that was said so far."""
        with contextlib.suppress(trio.WouldBlock):
            while True:
                self.said.append(self._heard.receive_nowait())
        return self.said

    def plan(self, point: FaultPoint, effect: FaultEffect) -> None:
        self.device.faults.plan(WireFault(point, effect))


@asynccontextmanager
async def serving(*, once: bool = False) -> AsyncIterator[Rig]:
    rig = Rig()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    rig.port = listeners[0].socket.getsockname()[1]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(rig.server.serve, listeners, once=once))
            yield rig
            if not once:
                nursery.cancel_scope.cancel()


async def command(
    host: UsbipHost, cdb: bytes, data: bytes | int = b"", *, status: int = 0, residue: int = 0
) -> bytes:
    """One whole command, as usb-storage sends it; the data that came."""
    is_in = isinstance(data, int)
    length = data if isinstance(data, int) else len(data)
    block = command_block(7, cdb, length, is_in=is_in)
    assert (await host.transfer(OUT_ENDPOINT, block)).status == 0
    received = b""
    if length:
        ended = await host.transfer(IN_ENDPOINT if is_in else OUT_ENDPOINT, data)
        assert ended.status == 0
        assert ended.actual == length - (residue if is_in else 0)
        received = ended.data
    ended = await host.transfer(IN_ENDPOINT, 13)
    assert ended.data == status_block(7, residue, status)
    return received


# Before a device is attached.


async def test_the_list_of_devices_names_the_drive_until_it_is_taken() -> None:
    async with serving() as rig:
        host = await rig.connect()
        await host.stream.send_all(operation(0x8005))
        assert await host.receive(8) == operation(5)
        assert await host.receive(4) == b"\0\0\0\1"
        path, bus_id, bus, address, speed, vendor, product, release, *rest = struct.unpack(
            ">256s32sIIIHHH6B", await host.receive(312)
        )
        assert path.rstrip(b"\0") == b"/tapefs/1-1"
        assert bus_id == b"1-1".ljust(32, b"\0")
        assert (bus, address, speed) == (1, 2, 3)
        assert (vendor, product, release) == (0x1209, 1, 0x0100)
        assert rest == [0, 0, 0, 1, 1, 1]
        assert await host.receive(4) == b"\x08\x06\x50\0"
        with pytest.raises(EOFError):
            await host.receive(1)
        await host.aclose()

        taker, other = await rig.attach(), await rig.connect()
        await other.stream.send_all(operation(0x8005))
        assert await other.receive(12) == operation(5) + bytes(4)
        await taker.aclose()
        await other.aclose()


async def test_one_host_has_the_drive_at_a_time() -> None:
    async with serving() as rig:
        first = await rig.attach()
        second = await rig.connect()
        assert await second.attach() == 2
        await second.aclose()
        wrong = await rig.connect()
        assert await wrong.attach(b"3-2") == 4
        await wrong.aclose()
        await command(first, TEST_UNIT_READY)
        await first.aclose()
        await rig.until_said("detached")
        third = await rig.attach()
        await command(third, TEST_UNIT_READY)
        await third.aclose()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (operation(0x8005, version=0x0106), "version 0x0106 is not spoken here"),
        (operation(0x8004), "operation 0x8004 is unknown"),
        (b"GET / HTTP/1.1\r\n\r\n", "version 0x4745 is not spoken here"),
    ],
)
async def test_what_is_no_request_is_sent_away(sent: bytes, said: str) -> None:
    async with serving() as rig:
        host = await rig.connect()
        await host.stream.send_all(sent)
        await rig.until_said(said)
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await host.receive(1)
        await host.aclose()
        # And the next one is served.
        await (await rig.attach()).aclose()


async def test_who_falls_silent_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usbip, "SILENCE_S_MAX", 0.01)
    async with serving() as rig:
        host = await rig.connect()
        await host.stream.send_all(operation(0x8003)[:5])
        await rig.until_said("fell silent in the middle")
        await host.aclose()


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usbip, "CONNECTIONS_MAX", 2)
    async with serving() as rig:
        first = await rig.attach()
        second = await rig.connect()
        await second.stream.send_all(operation(0x8005)[:4])
        third = await rig.connect()
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await third.receive(1)
        for host in (first, second, third):
            await host.aclose()


async def test_once_ends_with_the_first_host_that_attached() -> None:
    async with serving(once=True) as rig:
        host = await rig.connect()
        await host.stream.send_all(operation(0x8005))
        assert len(await host.receive(12)) == 12
        await host.aclose()
        host = await rig.attach()
        await host.aclose()
    assert rig.all_said()[-1].startswith("detached by 127.0.0.1:")


# The control pipe.


async def test_descriptors() -> None:
    async with serving() as rig:
        host = await rig.attach()
        device = (await host.control(*GET_DEVICE_DESCRIPTOR)).data
        assert device.hex(" ") == "12 01 00 02 00 00 00 40 09 12 01 00 00 01 01 02 03 01"
        head = (await host.control(0x80, 6, 0x0200, 0, 9)).data
        whole = (await host.control(0x80, 6, 0x0200, 0, 255)).data
        assert head == whole[:9]
        assert whole.hex(" ") == (
            "09 02 20 00 01 01 00 80 32 "
            "09 04 00 00 02 08 06 50 00 "
            "07 05 81 02 00 02 00 07 05 02 02 00 02 00"
        )
        texts = [(await host.control(0x80, 6, 0x0300 | n, 0x0409, 255)).data for n in range(4)]
        assert texts[0] == b"\x04\x03\x09\x04"
        assert [text[2:].decode("utf-16-le") for text in texts[1:]] == [
            rig.server.identity.manufacturer,
            rig.server.identity.product,
            rig.server.identity.serial,
        ]
        assert all(text[0] == len(text) and text[1] == 3 for text in texts)
        await host.aclose()


@pytest.mark.parametrize(
    "setup",
    [
        (0x80, 6, 0x0304, 0x0409, 255),  # a string that there is not
        (0x80, 6, 0x0600, 0, 10),  # DEVICE QUALIFIER: the device has one speed
        (0x80, 6, 0x0201, 0, 9),
        (0x00, 9, 2, 0, 0),
        (0x01, 0x0B, 1, 0, 0),
        (0x01, 0x0B, 0, 1, 0),
        (0xA1, 0xFE, 0, 1, 1),
        (0x21, 0xFF, 0, 1, 0),
        (0x02, 1, 0, 0x83, 0),
        (0x02, 1, 1, 0x81, 0),
        (0x82, 0, 0, 0x83, 2),
        (0x40, 0x77, 0, 0, 0),
    ],
)
async def test_unknown_requests_stall(setup: tuple[int, ...]) -> None:
    async with serving() as rig:
        host = await rig.attach()
        ended = await host.control(*setup)
        assert (ended.status, ended.actual) == (EPIPE, 0)
        # A stall of the control pipe ends with the next request.
        assert (await host.control(0xA1, 0xFE, 0, 0, 1)).data == b"\0"
        await host.aclose()


async def test_configuration_and_interface() -> None:
    async with serving() as rig:
        host = await rig.connect()
        await host.attach()
        assert (await host.control(0x80, 8, 0, 0, 1)).data == b"\0"
        assert (await host.control(*SET_CONFIGURATION)).status == 0
        assert (await host.control(0x80, 8, 0, 0, 1)).data == b"\1"
        assert (await host.control(0x81, 0x0A, 0, 0, 1)).data == b"\0"
        assert (await host.control(0x01, 0x0B, 0, 0, 0)).status == 0
        assert (await host.control(0x80, 0, 0, 0, 2)).data == b"\0\0"
        assert (await host.control(0x81, 0, 0, 0, 2)).data == b"\0\0"
        assert (await host.control(0x82, 0, 0, 0, 2)).data == b"\0\0"
        assert (await host.control(0x00, 5, 9, 0, 0)).status == 0
        await host.aclose()


async def test_the_drive_learns_of_attaching_and_of_a_reset_port() -> None:
    async with serving() as rig:
        host = await rig.connect()
        await host.attach()
        assert rig.tape.reset_count == 1
        await host.control(*SET_CONFIGURATION)
        assert rig.tape.reset_count == 2
        # In the middle of a command: the host gave up and reset the port.
        await host.transfer(OUT_ENDPOINT, command_block(1, Write6(4096).pack(), 4096))
        await host.control(*SET_CONFIGURATION)
        assert rig.tape.reset_count == 3
        await command(host, TEST_UNIT_READY)
        await host.aclose()
        assert rig.tape.power_cut_count == 0


# Commands.


async def test_commands_with_and_without_data() -> None:
    async with serving() as rig:
        host = await rig.attach()
        await command(host, TEST_UNIT_READY)
        assert len(await command(host, Inquiry().pack(), 36)) == 36
        for length in (1, 511, 512, 513, 4096):
            await command(host, Write6(length).pack(), RECORD[:length])
        for length in (1, 511, 512, 513, 4096):
            assert await command(host, Read6(length).pack(), length) == RECORD[:length]
        assert rig.tape.records == [RECORD[:length] for length in (1, 511, 512, 513, 4096)]
        assert rig.device.violations == []
        assert not any("protocol" in sentence for sentence in rig.all_said())
        await host.aclose()


async def test_a_short_answer_says_so_where_the_host_wants_to_know() -> None:
    async with serving() as rig:
        host = await rig.attach()
        for flags, status in ((0, 0), (SHORT_NOT_OK, EREMOTEIO)):
            await host.transfer(OUT_ENDPOINT, command_block(1, Inquiry().pack(), 96, is_in=True))
            ended = await host.transfer(IN_ENDPOINT, 96, flags=flags)
            assert (ended.status, ended.actual, len(ended.data)) == (status, 36, 36)
            assert (await host.transfer(IN_ENDPOINT, 13)).data == status_block(1, 60)
        await host.aclose()


async def test_a_record_in_many_pieces() -> None:
    """As usb-storage sends what has more segments than the controller takes at once."""
    async with serving() as rig:
        host = await rig.attach()
        await host.transfer(OUT_ENDPOINT, command_block(1, Write6(4096).pack(), 4096))
        for start in range(0, 4096, 512):
            await host.submit(OUT_ENDPOINT, RECORD[start : start + 512], flags=NO_INTERRUPT)
        for _ in range(8):
            assert (await host.ended()).status == 0
        assert (await host.transfer(IN_ENDPOINT, 13)).data == status_block(1)
        await host.transfer(OUT_ENDPOINT, command_block(2, Read6(4096).pack(), 4096, is_in=True))
        for number in range(8):
            last = number == 7
            flags = SHORT_NOT_OK | (0 if last else NO_INTERRUPT)
            await host.submit(IN_ENDPOINT, 512, flags=flags)
        assert b"".join([(await host.ended()).data for _ in range(8)]) == RECORD
        assert (await host.transfer(IN_ENDPOINT, 13)).data == status_block(2)
        await host.aclose()


async def test_the_rest_of_a_chain_that_ended_short_does_not_swallow_the_status() -> None:
    async with serving() as rig:
        host = await rig.attach()
        await command(host, Write6(700).pack(), RECORD[:700])
        await host.transfer(OUT_ENDPOINT, command_block(2, Read6(2048).pack(), 2048, is_in=True))
        chain = [
            await host.submit(IN_ENDPOINT, 512, flags=SHORT_NOT_OK | (NO_INTERRUPT if more else 0))
            for more in (True, True, True, False)
        ]
        first, second = await host.ended(), await host.ended()
        assert (first.sequence, first.status, first.actual) == (chain[0], 0, 512)
        assert (second.sequence, second.status, second.actual) == (chain[1], EREMOTEIO, 188)
        assert await host.is_quiet()
        # The host takes the rest of the chain back, in any order, then asks for the status.
        for victim in reversed(chain[2:]):
            unlink = await host.unlink(victim)
            ended = await host.ended()
            assert (ended.sequence, ended.status, ended.actual) == (unlink, ECONNRESET, None)
        ended = await host.transfer(IN_ENDPOINT, 13, flags=SHORT_NOT_OK)
        assert ended.data == status_block(2, 1348, 1)
        assert rig.device.violations == []
        await host.aclose()


async def test_a_chain_that_was_cut_off_before_its_end_does_not_hold_the_status() -> None:
    """The host may notice the short piece before it has submitted all of the chain."""
    async with serving() as rig:
        host = await rig.attach()
        await command(host, Write6(100).pack(), RECORD[:100])
        await host.transfer(OUT_ENDPOINT, command_block(2, Read6(2048).pack(), 2048, is_in=True))
        ended = await host.transfer(IN_ENDPOINT, 512, flags=SHORT_NOT_OK | NO_INTERRUPT)
        assert (ended.status, ended.actual) == (EREMOTEIO, 100)
        assert (await host.transfer(IN_ENDPOINT, 13)).data == status_block(2, 1948, 1)
        await host.transfer(OUT_ENDPOINT, command_block(3, Inquiry().pack(), 36, is_in=True))
        assert (await host.transfer(IN_ENDPOINT, 36, flags=SHORT_NOT_OK)).actual == 36
        await host.aclose()


async def test_a_chain_ends_where_another_read_begins_even_one_in_vain() -> None:
    async with serving() as rig:
        host = await rig.attach()
        await command(host, Write6(100).pack(), RECORD[:100])
        await host.transfer(OUT_ENDPOINT, command_block(2, Read6(2048).pack(), 2048, is_in=True))
        await host.transfer(IN_ENDPOINT, 512, flags=SHORT_NOT_OK | NO_INTERRUPT)
        await host.control(*CLASS_RESET)
        await host.unlink(await host.submit(IN_ENDPOINT, 13))
        assert (await host.ended()).status == ECONNRESET
        await host.transfer(OUT_ENDPOINT, command_block(3, Inquiry().pack(), 36, is_in=True))
        assert (await host.transfer(IN_ENDPOINT, 36, flags=SHORT_NOT_OK)).actual == 36
        await host.aclose()


# Waiting and taking back.


async def test_a_read_waits_until_the_device_has_something() -> None:
    async with serving() as rig:
        host = await rig.attach()
        early = await host.submit(IN_ENDPOINT, 13)
        assert await host.is_quiet()
        assert rig.device.violations == []
        out = await host.submit(OUT_ENDPOINT, command_block(5, TEST_UNIT_READY))
        ended = [await host.ended(), await host.ended()]
        assert [each.sequence for each in ended] == [out, early]
        assert ended[1].data == status_block(5)
        await host.aclose()


async def test_reads_wait_through_a_data_stage_and_end_in_order() -> None:
    async with serving() as rig:
        host = await rig.attach()
        await host.transfer(OUT_ENDPOINT, command_block(1, Write6(4096).pack(), 4096))
        status = await host.submit(IN_ENDPOINT, 13)
        after = await host.submit(IN_ENDPOINT, 13)
        first = await host.submit(OUT_ENDPOINT, RECORD[:1000])
        assert (await host.ended()).sequence == first
        assert await host.is_quiet()
        second = await host.submit(OUT_ENDPOINT, RECORD[1000:])
        ended = [await host.ended(), await host.ended()]
        assert [each.sequence for each in ended] == [second, status]
        assert ended[1].data == status_block(1)
        assert await host.is_quiet()
        await host.submit(OUT_ENDPOINT, command_block(2, TEST_UNIT_READY))
        await host.ended()
        assert (await host.ended()).sequence == after
        await host.aclose()


async def test_a_waiting_read_taken_back_leaves_nothing_behind() -> None:
    async with serving() as rig:
        host = await rig.attach()
        victim = await host.submit(IN_ENDPOINT, 13)
        unlink = await host.unlink(victim)
        ended = await host.ended()
        assert (ended.sequence, ended.status, ended.actual) == (unlink, ECONNRESET, None)
        await command(host, TEST_UNIT_READY)
        await host.aclose()


async def test_a_transfer_that_has_ended_cannot_be_taken_back() -> None:
    async with serving() as rig:
        host = await rig.attach()
        done = await host.control(*GET_DEVICE_DESCRIPTOR)
        for victim in (done.sequence, 4711):
            unlink = await host.unlink(victim)
            ended = await host.ended()
            assert (ended.sequence, ended.status, ended.actual) == (unlink, 0, None)
        await host.aclose()


@pytest.mark.parametrize("point", [FaultPoint.COMMAND, FaultPoint.DATA, FaultPoint.STATUS])
async def test_silence_lasts_until_the_host_takes_its_transfer_back(point: FaultPoint) -> None:
    async with serving() as rig:
        host = await rig.attach()
        rig.plan(point, FaultEffect.SILENCE)
        victim = await host.submit(OUT_ENDPOINT, command_block(1, Write6(4096).pack(), 4096))
        if point is not FaultPoint.COMMAND:
            assert (await host.ended()).sequence == victim
            victim = await host.submit(OUT_ENDPOINT, RECORD)
        if point is FaultPoint.STATUS:
            assert (await host.ended()).sequence == victim
            victim = await host.submit(IN_ENDPOINT, 13)
            follower = await host.submit(IN_ENDPOINT, 13)
        else:
            follower = await host.submit(OUT_ENDPOINT, RECORD)
        assert await host.is_quiet()
        for number in (follower, victim):
            await host.unlink(number)
            assert (await host.ended()).status == ECONNRESET
        # Bulk-Only's reset recovery, then all is well.
        assert (await host.control(*CLASS_RESET)).status == 0
        for endpoint in (0x81, 0x02):
            assert (await host.control(0x02, 1, 0, endpoint, 0)).status == 0
        await command(host, TEST_UNIT_READY)
        await host.aclose()


async def test_behind_a_silent_read_taken_back_the_next_one_goes_on() -> None:
    async with serving() as rig:
        host = await rig.attach()
        rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE)
        await host.transfer(OUT_ENDPOINT, command_block(3, TEST_UNIT_READY))
        victim = await host.submit(IN_ENDPOINT, 13)
        follower = await host.submit(IN_ENDPOINT, 13)
        assert await host.is_quiet()
        await host.unlink(victim)
        ended = {each.sequence: each for each in (await host.ended(), await host.ended())}
        assert ended[follower].data == status_block(3)
        await host.aclose()


async def test_a_silent_control_request_can_be_taken_back() -> None:
    async with serving() as rig:
        host = await rig.attach()
        rig.plan(FaultPoint.CLASS_RESET, FaultEffect.SILENCE)
        victim = await host.submit(0, b"", setup=CLASS_RESET)
        assert await host.is_quiet()
        await host.unlink(victim)
        assert (await host.ended()).status == ECONNRESET
        await command(host, TEST_UNIT_READY)
        await host.aclose()


# Errors.


async def test_a_failed_command_and_its_sense() -> None:
    async with serving() as rig:
        host = await rig.attach()
        rig.tape.refuse.append(Sense(SenseKey.NOT_READY, 0x3A, 0))
        await command(host, TEST_UNIT_READY, status=1)
        sense = await command(host, bytes((3, 0, 0, 0, 18, 0)), 18)
        assert (sense[2] & 0x0F, sense[12]) == (2, 0x3A)
        await host.aclose()


async def test_stalls_last_until_the_halt_is_cleared() -> None:
    async with serving() as rig:
        host = await rig.attach()
        rig.device.less_data = LessData.STALL
        await host.transfer(OUT_ENDPOINT, command_block(1, Inquiry().pack(), 96, is_in=True))
        for _ in range(2):
            assert (await host.transfer(IN_ENDPOINT, 96)).status == EPIPE
        assert (await host.control(0x82, 0, 0, 0x81, 2)).data == b"\1\0"
        assert (await host.control(0x02, 1, 0, 0x81, 0)).status == 0
        assert (await host.control(0x82, 0, 0, 0x81, 2)).data == b"\0\0"
        assert (await host.transfer(IN_ENDPOINT, 13)).data == status_block(1, 60)
        await host.aclose()


async def test_too_much_data_is_babble() -> None:
    async with serving() as rig:
        host = await rig.attach()
        await host.transfer(OUT_ENDPOINT, command_block(1, Inquiry().pack(), 36, is_in=True))
        ended = await host.transfer(IN_ENDPOINT, 20)
        assert (ended.status, ended.actual) == (EOVERFLOW, 0)
        await host.aclose()


@pytest.mark.parametrize("endpoint", [3, 15])
async def test_endpoints_that_do_not_exist_stall(endpoint: int) -> None:
    async with serving() as rig:
        host = await rig.attach()
        assert (await host.transfer(endpoint, 8)).status == EPIPE
        assert (await host.transfer(endpoint, b"12345678")).status == EPIPE
        assert (await host.transfer(IN_ENDPOINT, b"12345678")).status == EPIPE
        assert (await host.transfer(OUT_ENDPOINT, 8)).status == EPIPE
        await host.aclose()


async def test_what_the_host_does_wrong_is_said() -> None:
    async with serving() as rig:
        host = await rig.attach()
        assert (await host.transfer(OUT_ENDPOINT, b"x" * 31)).status == EPIPE
        await rig.until_said("the host broke the protocol: 31 bytes that are no command block")
        assert rig.device.violations == []
        await host.aclose()


async def test_a_drive_that_is_unplugged_hangs_up() -> None:
    async with serving() as rig:
        host = await rig.attach()
        rig.plan(FaultPoint.STATUS, FaultEffect.UNPLUG)
        await host.transfer(OUT_ENDPOINT, command_block(1, TEST_UNIT_READY))
        await host.submit(IN_ENDPOINT, 13)
        with pytest.raises(EOFError):
            await host.ended()
        await host.aclose()
        await rig.until_said("detached")
        host = await rig.attach()
        await command(host, TEST_UNIT_READY)
        await host.aclose()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device_id": 1 << 16 | 3}, "no endpoint 1 of device 0x10003"),
        ({"packets": 3}, "isochronous"),
        ({"data": TRANSFER_BYTES_MAX + 1}, "is too long"),
        ({"endpoint": 16}, "no endpoint 16"),
    ],
)
async def test_impossible_transfers_end_the_connection(options: dict[str, Any], said: str) -> None:
    async with serving() as rig:
        host = await rig.attach()
        await host.submit(**{"endpoint": IN_ENDPOINT, "data": 13, **options})
        await rig.until_said(said)
        with pytest.raises(EOFError):
            await host.ended()
        await host.aclose()
        await (await rig.attach()).aclose()


async def test_a_command_that_does_not_exist_ends_the_connection() -> None:
    async with serving() as rig:
        host = await rig.attach()
        await host.stream.send_all(struct.pack(">5I", 9, 1, 1 << 16 | 2, 0, 0) + bytes(28))
        await rig.until_said("command 9 is unknown")
        with pytest.raises(EOFError):
            await host.ended()
        await host.aclose()


async def test_waiting_transfers_are_bounded() -> None:
    async with serving() as rig:
        host = await rig.attach()
        for _ in range(WAITING_COUNT_MAX - 1):
            await host.submit(IN_ENDPOINT, 13)
        assert await host.is_quiet()
        for _ in range(2):
            await host.submit(IN_ENDPOINT, 13)
        await rig.until_said("more than 4096 transfers wait")
        await host.aclose()


async def test_a_host_that_leaves_in_the_middle_of_a_transfer() -> None:
    async with serving() as rig:
        host = await rig.attach()
        await host.transfer(OUT_ENDPOINT, command_block(1, Write6(4096).pack(), 4096))
        head = struct.pack(">5I", 1, 99, 1 << 16 | 2, 0, OUT_ENDPOINT)
        await host.stream.send_all(head + struct.pack(">Iiiii8s", 0, 4096, 0, 0, 0, bytes(8)))
        await host.stream.send_all(RECORD[:1000])
        await host.aclose()
        await rig.until_said("detached")
        assert rig.tape.records == []
        host = await rig.attach()
        await command(host, Write6(4096).pack(), RECORD)
        assert rig.tape.records == [RECORD]
        await host.aclose()
