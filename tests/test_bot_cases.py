"""The thirteen cases (BOT 1.0 §6.7) and the rules for command blocks, one test each and end.

The device end is judged by bytes: a command block goes in, and everything that comes out of the
pipes must be what the standard prescribes. Then the host end over the same drive: what it makes of
it.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tapefs.emulator.bot_device import BotDevice
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.personality import PERSONALITIES
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.emulator.wire_faults import Babble, LessData, Silence, Stall, ViolationKind
from tapefs.errors import DriveFailed
from tapefs.scsi import cdb as c
from tapefs.scsi.command import Direction
from tapefs.usb.bot import Pipe
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from log_police import Announcement

    AssertLogs = Callable[..., Announcement]

TAG = 0xA1B2C3D4
PASSED, FAILED, PHASE_ERROR = 0, 1, 2
NONE, IN, OUT = Direction.NONE, Direction.IN, Direction.OUT
INQUIRY = c.Inquiry().pack()
READY = c.TestUnitReady().pack()
DATA = bytes(range(256)) * 4

# What may come out of the pipes, next to bytes.
STALL_IN, STALL_OUT = "STALL IN", "STALL OUT"


@dataclass(frozen=True)
class Case:
    """The host announces `length_bytes` in `direction` for a command that means something else."""

    number: int
    cdb: bytes
    direction: Direction
    length_bytes: int
    status: int
    residue_bytes: int = 0
    # What comes out before the status: for a device that ends short, that pads, that stalls.
    short: tuple[object, ...] = ()
    pad: tuple[object, ...] = ()
    stall: tuple[object, ...] = ()
    # Records on tape afterwards.
    written: tuple[bytes, ...] = ()

    def before_status(self, less_data: LessData) -> list[object]:
        """What comes out of a device of this kind."""
        chosen = {LessData.PAD: self.pad, LessData.STALL: self.stall}.get(less_data, self.short)
        return list(chosen or self.short)


IDENTITY = "the 36 bytes of INQUIRY"
WRITE_512, WRITE_100 = c.Write6(512).pack(), c.Write6(100).pack()

CASES = [
    Case(1, READY, NONE, 0, PASSED),
    Case(2, INQUIRY, NONE, 0, PHASE_ERROR),
    Case(3, WRITE_512, NONE, 0, PHASE_ERROR),
    Case(
        4, READY, IN, 64, PASSED, 64, short=(b"",), pad=(bytes(64),), stall=(STALL_IN,)
    ),
    Case(
        5, c.Inquiry(allocation_bytes=96).pack(), IN, 96, PASSED, 60,
        short=(IDENTITY,), pad=(IDENTITY + " and 60 zeros",), stall=(STALL_IN,),
    ),
    Case(6, INQUIRY, IN, 36, PASSED, short=(IDENTITY,)),
    Case(7, INQUIRY, IN, 20, PHASE_ERROR, short=("20 of " + IDENTITY,)),
    Case(8, WRITE_512, IN, 512, PHASE_ERROR, 512, short=(STALL_IN,)),
    Case(9, READY, OUT, 64, PASSED, 64, stall=(STALL_OUT,)),
    Case(10, INQUIRY, OUT, 36, PHASE_ERROR, 36, short=(STALL_OUT,)),
    Case(11, WRITE_100, OUT, 512, PASSED, 412, stall=(STALL_OUT,), written=(DATA[:100],)),
    Case(12, WRITE_512, OUT, 512, PASSED, written=(DATA[:512],)),
    Case(13, WRITE_512, OUT, 100, PHASE_ERROR, 100, short=(STALL_OUT,)),
]  # fmt: skip


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with VirtualCartridge.create(tmp_path / "t.tap", "lto5", 1 << 26) as cartridge:
        target = Target(cartridge)
        assert not target.execute(READY).good
        yield target


def command_block(
    cdb: bytes, direction: Direction = NONE, length_bytes: int = 0, **odd: int
) -> bytes:
    """31 bytes as BOT 1.0 §5.1 has them, written down here once more on purpose."""
    return struct.pack(
        "<4sIIBBB16s",
        b"USBC",
        TAG,
        length_bytes,
        odd.get("flags", 0x80 if direction is IN else 0),
        odd.get("lun", 0),
        odd.get("cdb_bytes", len(cdb)),
        cdb,
    )


def status_block(residue_bytes: int = 0, status: int = PASSED) -> bytes:
    return struct.pack("<4sIIB", b"USBS", TAG, residue_bytes, status)


def everything_out_of(device: BotDevice, case: Case) -> list[object]:
    """What comes out of the pipes from the command block to the status block."""
    out: list[object] = []
    assert device.bulk_out(command_block(case.cdb, case.direction, case.length_bytes)) == 31
    if case.direction is OUT:
        try:
            device.bulk_out(DATA[: case.length_bytes])
        except Stall:
            out.append(STALL_OUT)
            device.clear_halt(Pipe.OUT)
    for _ in range(4):
        into = bytearray(512)
        try:
            data = bytes(into[: device.bulk_in(memoryview(into))])
        except Stall:
            out.append(STALL_IN)
            device.clear_halt(Pipe.IN)
            continue
        out.append(data)
        if data[:4] == b"USBS":
            break
    return out


def meant(expected: object, target: Target) -> object:
    """The bytes behind the words in the table."""
    identity = bytes(target.execute(INQUIRY).data_in)
    words = {
        IDENTITY: identity,
        "20 of " + IDENTITY: identity[:20],
        IDENTITY + " and 60 zeros": identity + bytes(60),
    }
    return words.get(expected, expected) if isinstance(expected, str) else expected


def records(target: Target) -> tuple[bytes, ...]:
    """What is on the tape."""
    assert target.execute(c.Rewind().pack()).good
    found: list[bytes] = []
    while (reply := target.execute(c.Read6(512, sili=True).pack())).good and len(found) < 3:
        found.append(bytes(reply.data_in))
    return tuple(found)


def recover(device: BotDevice) -> None:
    """Reset recovery (BOT 1.0 §5.3.4)."""
    device.class_reset()
    for pipe in (Pipe.IN, Pipe.OUT):
        device.clear_halt(pipe)


def ready(device: BotDevice) -> int:
    """The status of TEST UNIT READY."""
    device.bulk_out(command_block(READY))
    into = bytearray(13)
    assert device.bulk_in(memoryview(into)) == 13
    return into[12]


@pytest.mark.parametrize("less_data", LessData)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case {case.number}")
def test_what_the_device_does(target: Target, case: Case, less_data: LessData) -> None:
    device = BotDevice(target, less_data=less_data)
    expected = [meant(each, target) for each in case.before_status(less_data)]
    expected.append(status_block(case.residue_bytes, case.status))
    assert everything_out_of(device, case) == expected
    violations = [each.sentence for each in device.violations]
    if case.status == PASSED:
        assert violations == []
        assert ready(device) == PASSED
    else:
        assert len(violations) == 1
        assert violations[0].startswith(f"case {case.number}:")
        recover(device)
        assert ready(device) == FAILED  # the reset is reported, once
        device.bulk_out(command_block(c.RequestSense().pack(), IN, 18))
        into = bytearray(512)
        assert device.bulk_in(memoryview(into)) == 18
        assert (into[2], into[12], into[13]) == (6, 0x29, 0x03)
        assert device.bulk_in(memoryview(into)) == 13
        assert ready(device) == PASSED
        assert len(device.violations) == 1
    assert records(target) == case.written


def test_every_case_is_there() -> None:
    assert [case.number for case in CASES] == list(range(1, 14))


@dataclass(frozen=True)
class Announced:
    """A command whose wire length is not what its CDB means."""

    cdb: bytes
    direction: Direction
    transfer_length_bytes: int
    name: str = "A COMMAND"
    timeout_s: float = 1.0
    moves_medium: bool = True

    def pack(self) -> bytes:
        return self.cdb


@pytest.mark.parametrize("less_data", LessData)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case {case.number}")
async def test_what_the_host_makes_of_it(
    target: Target, case: Case, less_data: LessData, assert_logs: AssertLogs
) -> None:
    backend = EmulatedUsbBackend(target)
    device = backend.device
    device.less_data = less_data
    transport = BotTransport(open_endpoints("usb", backend), settle_s=0)
    command = Announced(case.cdb, case.direction, case.length_bytes)
    data = DATA[: case.length_bytes] if case.direction is OUT else None
    before = device.command_count
    if case.status == PASSED:
        completion = await transport.execute(command, data)
        assert completion.good
        assert completion.residue_bytes == case.residue_bytes
        identity = bytes(target.execute(INQUIRY).data_in)
        # Of data in front of a stall nobody can say how much arrived but the residue.
        expected = {5: identity, 6: identity}.get(case.number, b"")
        assert bytes(completion.data) == expected or less_data is LessData.STALL
        assert len(completion.data) == len(expected)
        assert device.violations == []
    else:
        assert_logs("usb.reset_recovery", count=1)
        with pytest.raises(DriveFailed, match=r"phase error.*position on tape is unknown"):
            await transport.execute(command, data)
        assert [each.kind for each in device.violations] == [ViolationKind.DATA_DISAGREEMENT]
    assert device.command_count - before <= 1, "nothing is sent twice"
    if case.status != PASSED:
        attention = await transport.execute(c.TestUnitReady())
        assert attention.sense is not None
        assert attention.sense.code == "6/29/03"
    assert (await transport.execute(c.TestUnitReady())).good
    assert len(device.violations) == (case.status != PASSED)
    await transport.aclose()
    assert records(target) == case.written


# Command blocks that are not valid, or not meaningful (§6.2).


def padded(data: bytes) -> bytes:
    return data.ljust(12, b"\0")


@pytest.mark.parametrize(
    ("subclass", "data"),
    [
        # Length, signature, reserved bits, logical unit, length of the CDB: for SCSI, for ATAPI.
        (6, command_block(READY)[:30]),
        (6, command_block(READY) + b"\0"),
        (6, b"USBX" + command_block(READY)[4:]),
        (6, b""),
        (6, command_block(READY, flags=0x01)),
        (6, command_block(READY, flags=0x40)),
        (6, command_block(READY, lun=1)),
        (6, command_block(READY, lun=0x10)),
        (6, command_block(READY, cdb_bytes=0)),
        (6, command_block(READY, cdb_bytes=17)),
        (6, command_block(READY, cdb_bytes=0x26)),
        (6, command_block(READY, cdb_bytes=5)),
        (6, command_block(c.Locate10(1).pack(), cdb_bytes=6)),
        (6, command_block(c.Space16(c.SpaceCode.BLOCKS, 1).pack(), cdb_bytes=12)),
        (2, command_block(READY)),
        (3, command_block(c.Locate10(1).pack())),
        (3, command_block(padded(READY), cdb_bytes=16)),
        (3, command_block(c.Space16(c.SpaceCode.BLOCKS, 1).pack())),
    ],
    ids=range(18),
)
def test_command_blocks_that_are_refused(target: Target, subclass: int, data: bytes) -> None:
    device = BotDevice(target, subclass=subclass)
    with pytest.raises(Stall):
        device.bulk_out(data)
    assert [each.kind for each in device.violations] == [ViolationKind.INVALID_COMMAND_BLOCK]
    # Both pipes stall, and clearing the halts does not help before the class reset (§6.6.1).
    for _ in range(2):
        with pytest.raises(Stall):
            device.bulk_in(memoryview(bytearray(13)))
        with pytest.raises(Stall):
            device.bulk_out(command_block(padded(READY)))
        for pipe in Pipe:
            device.clear_halt(pipe)
    assert device.command_count == 0
    recover(device)
    device.bulk_out(command_block(padded(READY) if subclass != 6 else READY))
    assert device.command_count == 1
    assert len(device.violations) == 1


@pytest.mark.parametrize("subclass", [2, 3, 4, 5])
def test_atapi_flavours_take_twelve_bytes(target: Target, subclass: int) -> None:
    device = BotDevice(target, subclass=subclass)
    device.bulk_out(command_block(padded(READY)))
    assert device.violations == []
    assert device.command_count == 1


def test_the_direction_means_nothing_without_data(target: Target) -> None:
    device = BotDevice(target)
    device.bulk_out(command_block(READY, flags=0x80))
    into = bytearray(13)
    assert device.bulk_in(memoryview(into)) == 13
    assert bytes(into) == status_block()
    assert device.violations == []


def test_what_stands_behind_the_cdb_does_not_matter(target: Target) -> None:
    device = BotDevice(target)
    device.bulk_out(command_block(READY + b"\xff" * 10, cdb_bytes=6))
    assert device.bulk_in(memoryview(bytearray(13))) == 13
    assert device.violations == []


# Resets, and the recovery that a host owes.


def test_a_host_that_goes_on_after_a_phase_error_is_found_out(target: Target) -> None:
    device = BotDevice(target)
    case = CASES[1]
    everything_out_of(device, case)
    assert ready(device) == PASSED
    assert [each.kind for each in device.violations] == [
        ViolationKind.DATA_DISAGREEMENT,
        ViolationKind.RECOVERY_OMITTED,
    ]
    everything_out_of(device, case)
    device.port_reset()
    assert ready(device) == FAILED
    assert len(device.violations) == 3


def test_a_class_reset_ends_the_command_and_keeps_halts_tape_and_buffer(target: Target) -> None:
    device = BotDevice(target)
    everything_out_of(device, CASES[11])  # a record, in the buffer
    device.bulk_out(command_block(WRITE_512, OUT, 512))  # cut off before its data
    device.class_reset()
    with pytest.raises(Silence):
        device.bulk_in(memoryview(bytearray(13)))
    assert ready(device) == FAILED
    assert ready(device) == PASSED
    position = target.execute(c.ReadPosition().pack()).data_in
    assert int.from_bytes(position[4:8], "big") == 1
    assert records(target) == (DATA[:512],)


def test_a_port_reset_rewinds_and_is_reported(target: Target) -> None:
    device = BotDevice(target)
    everything_out_of(device, CASES[11])
    device.bulk_out(command_block(WRITE_512, OUT, 512))
    device.port_reset()
    assert ready(device) == FAILED
    assert device.bulk_out(command_block(c.RequestSense().pack(), IN, 18)) == 31
    into = bytearray(512)
    device.bulk_in(memoryview(into))
    assert (into[2], into[12], into[13]) == (6, 0x29, 0x00)
    device.bulk_in(memoryview(into))
    position = target.execute(c.ReadPosition().pack()).data_in
    assert int.from_bytes(position[4:8], "big") == 0
    assert records(target) == (DATA[:512],), "what was buffered is not lost"


def test_a_drive_that_keeps_a_class_reset_to_itself(tmp_path: Path) -> None:
    assert not PERSONALITIES["plain"].reports_class_reset
    with VirtualCartridge.create(tmp_path / "p.tap", "plain", 1 << 26) as cartridge:
        device = BotDevice(Target(cartridge))
        assert ready(device) == FAILED
        device.class_reset()
        assert ready(device) == PASSED


def test_a_read_smaller_than_what_comes_is_babble(target: Target) -> None:
    device = BotDevice(target)
    device.bulk_out(command_block(INQUIRY, IN, 36))
    with pytest.raises(Babble):
        device.bulk_in(memoryview(bytearray(20)))


def test_a_record_survives_the_wire(target: Target) -> None:
    transport_data = array("B", DATA[:512])
    device = BotDevice(target)
    everything_out_of(device, CASES[11])
    target.execute(c.Rewind().pack())
    device.bulk_out(command_block(c.Read6(512).pack(), IN, 512))
    into = bytearray(512)
    assert device.bulk_in(memoryview(into)) == 512
    assert into == transport_data.tobytes()
