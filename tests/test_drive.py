"""Opening a drive: what it is, what it can do, whether it is ready, what it reports."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from tape_rig import (
    MIB,
    Rigs,
    read_number,
    record,
    write_files,
)

from tapefs.daemon.drives import opened, require_medium
from tapefs.drive import (
    TapeAddress,
    TapeDrive,
    TapePosition,
    UnsupportedDrive,
    probe,
)
from tapefs.errors import DriveFailed, NotReady
from tapefs.scsi import cdb as c
from tapefs.scsi.completion import Completion
from tapefs.scsi.data import BlockDescriptor, ModeParameters, StandardInquiry
from tapefs.scsi.sense import (
    HardwareError,
    NoMedium,
    Sense,
    SenseKey,
)


def loaded(drive: TapeDrive) -> bool:
    return drive.medium_loaded


# Opening


async def test_open_identifies_and_selects_variable_blocks(rigs: Rigs) -> None:
    rig = rigs("ait3")
    drive = await TapeDrive.open(rig.wire)
    assert (drive.identity.vendor, drive.identity.product) == ("SONY", "SDX-700C")
    assert drive.identity.serial == rig.target.serial
    assert loaded(drive)
    assert not drive.write_protected
    assert drive.block_limits.allow(512 * 1024)
    assert isinstance(rig.wire.log[0], c.Inquiry)
    assert rig.wire.log[0].transfer_length_bytes == 36
    # This drive comes up with blocks of 512 bytes; a block of another length now goes through.
    assert len(rig.wire.sent(c.ModeSelect6)) == 1
    await write_files(drive, 1)


async def test_open_leaves_a_drive_alone_that_is_right_already(rigs: Rigs) -> None:
    rig = rigs("lto5")
    await TapeDrive.open(rig.wire)
    selected = len(rig.wire.sent(c.ModeSelect6))
    await TapeDrive.open(rig.wire)
    assert len(rig.wire.sent(c.ModeSelect6)) == selected
    assert not [command for command in rig.wire.log if command.moves_medium]


@pytest.mark.parametrize(
    ("name", "form", "locate", "unit_bytes"),
    [
        ("lto5", c.PositionForm.LONG, True, MIB),
        ("ait3", c.PositionForm.LONG, True, 1024),
        ("dat160", c.PositionForm.LONG, True, 1024),
        ("plain", None, False, None),
    ],
)
async def test_capabilities_are_found_out(
    rigs: Rigs, name: str, form: c.PositionForm | None, locate: bool, unit_bytes: int | None
) -> None:
    drive = await rigs(name).open()
    assert drive.capabilities.position_form is form
    assert drive.capabilities.read_position == (form is not None)
    assert drive.capabilities.capacity_unit_bytes == unit_bytes
    assert drive.capabilities.locate is None
    await write_files(drive, 2)
    await drive.locate(TapeAddress(1, 0, 1))
    assert drive.capabilities.locate is locate


async def test_short_positions_do_where_there_are_no_long_ones(rigs: Rigs) -> None:
    rig = rigs("lto5")
    rig.wire.answer(c.ReadPosition, Completion(True, memoryview(bytes(20))))
    drive = await rig.open()
    assert drive.capabilities.position_form is c.PositionForm.SHORT
    await write_files(drive, 2)
    assert await drive.position() == TapePosition(3, 1, 0)
    assert rig.wire.sent(c.ReadPosition) == [c.ReadPosition(c.PositionForm.SHORT)]


async def test_a_disk_and_an_onstream_are_refused(rigs: Rigs) -> None:
    rig = rigs()
    for inquiry, message in (
        (StandardInquiry("ACME", "DISK", "1", device_type=0), "ACME DISK is not a tape drive"),
        (StandardInquiry("OnStream", "USB30", "1"), "standard commands"),
    ):
        rig.wire.answer(c.Inquiry, Completion(True, memoryview(inquiry.pack())))
        with pytest.raises(UnsupportedDrive, match=message):
            await TapeDrive.open(rig.wire)
    assert not rig.wire.sent(c.TestUnitReady)


async def test_a_drive_with_fixed_blocks_only_is_used_with_these(rigs: Rigs) -> None:
    rig = rigs("travan")
    drive = await TapeDrive.open(rig.wire)
    assert drive.block_bytes == 512
    with pytest.raises(UnsupportedDrive, match="of variable length"):
        await drive.select_block_bytes(0)
    other = ModeParameters(buffered_mode=1, descriptor=BlockDescriptor(0, 0, 1024)).pack()
    rig.wire.answer(c.ModeSense6, *[Completion(True, memoryview(other))] * 2)
    with pytest.raises(UnsupportedDrive, match="blocks of 512 bytes"):
        await TapeDrive.open(rig.wire)


async def test_a_drive_that_keeps_fixed_blocks_is_refused(rigs: Rigs) -> None:
    rig = rigs("ait3")
    rig.wire.answer(c.ModeSelect6, Completion(True))
    with pytest.raises(UnsupportedDrive, match="variable length"):
        await TapeDrive.open(rig.wire)


async def test_mode_select_is_tried_without_page_format(rigs: Rigs) -> None:
    rig = rigs("ait3")
    rig.wire.answer(c.ModeSelect6, Sense(SenseKey.ILLEGAL_REQUEST, 0x24))
    drive = await TapeDrive.open(rig.wire)
    assert [command.pack()[1] for command in rig.wire.sent(c.ModeSelect6)] == [0x10, 0x00]
    await write_files(drive, 1)


async def test_ten_byte_mode_commands_do_where_six_are_unknown(rigs: Rigs) -> None:
    rig = rigs("ait3")
    unknown = Sense(SenseKey.ILLEGAL_REQUEST, 0x20)
    rig.wire.answer(c.ModeSense6, unknown, unknown)
    drive = await TapeDrive.open(rig.wire)
    assert len(rig.wire.sent(c.ModeSelect10)) == 1
    await write_files(drive, 1)


async def test_a_drive_without_serial_number_has_an_empty_one(rigs: Rigs) -> None:
    rig = rigs()
    inquiry = Completion(True, memoryview(StandardInquiry("ACME", "TAPE", "1").pack()))
    rig.wire.answer(c.Inquiry, inquiry, Sense(SenseKey.ILLEGAL_REQUEST, 0x24))
    assert (await TapeDrive.open(rig.wire)).identity.serial == ""


async def test_one_false_good_after_power_on_is_not_believed(rigs: Rigs) -> None:
    rig = rigs()
    busy = Sense(SenseKey.NOT_READY, 0x04, 0x01)
    rig.wire.answer(c.TestUnitReady, Completion(True), busy, busy, busy)
    assert not (await TapeDrive.open(rig.wire)).medium_loaded


async def test_a_drive_that_never_settles_is_given_up(rigs: Rigs) -> None:
    rig = rigs()
    power_on = Sense(SenseKey.UNIT_ATTENTION, 0x29)
    rig.wire.answer(c.TestUnitReady, *[power_on] * probe.SETTLE_ATTEMPTS_MAX)
    with pytest.raises(DriveFailed, match="no stable answer"):
        await TapeDrive.open(rig.wire)


# Readiness


async def test_an_empty_drive_opens_and_becomes_ready_when_a_cartridge_comes(
    rigs: Rigs, autojump_clock: trio.testing.MockClock
) -> None:
    rig = rigs()
    cartridge = rig.target.eject()
    assert cartridge is not None
    drive = await rig.open()
    assert not loaded(drive)
    assert not await drive.test_ready()
    with pytest.raises(NoMedium, match="load a cartridge"):
        await drive.wait_ready(3.0)
    assert trio.current_time() <= 3.0
    with pytest.raises(NotReady):
        await drive.rewind()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drive.wait_ready, 60.0)
        await trio.sleep(10)
        rig.target.insert(cartridge)
    assert loaded(drive)
    assert await drive.test_ready()
    await write_files(drive, 1)


async def test_wait_ready_waits_for_a_drive_that_is_loading(
    rigs: Rigs, autojump_clock: trio.testing.MockClock
) -> None:
    rig = rigs()
    rig.target.insert(rig.target.eject() or rig.cartridge)
    loading = Sense(SenseKey.NOT_READY, 0x04, 0x01)
    rig.wire.answer(c.TestUnitReady, *[loading] * 30)
    drive = await TapeDrive.open(rig.wire)
    assert not loaded(drive)
    await drive.wait_ready(60.0)
    assert loaded(drive)
    assert 8 <= trio.current_time() <= 12


async def test_who_waits_is_told_why_and_how_far_it_is(
    rigs: Rigs, autojump_clock: trio.testing.MockClock
) -> None:
    rig = rigs()
    drive = await rig.open()
    shares = (0x1999, 0x8000)
    for share in shares:
        progress = b"\x80" + share.to_bytes(2, "big")
        loading = Sense(SenseKey.NOT_READY, 0x04, 0x01, key_specific=progress)
        rig.wire.answer(c.TestUnitReady, *[loading] * 3)
    rig.wire.answer(c.TestUnitReady, *[Sense(SenseKey.NOT_READY, 0x3A)] * 3)
    said: list[dict[str, Any]] = []
    drive._initiator.end_session()

    async def connect() -> TapeDrive:
        return drive

    async with opened("usb", connect, virtual=False) as holder:
        await require_medium(holder, said.append)
    assert [
        event["message"].removeprefix("waiting for the drive, which reports ") for event in said
    ] == [
        "that it is becoming ready, 00 % done",
        "that it is becoming ready, 50 % done",
        "that no cartridge is loaded",
    ]
    assert loaded(drive)


async def test_wait_ready_sends_load_when_the_drive_asks_for_it(
    rigs: Rigs, autojump_clock: trio.testing.MockClock
) -> None:
    rig = rigs()
    drive = await rig.open()
    rig.wire.answer(c.TestUnitReady, *[Sense(SenseKey.NOT_READY, 0x04, 0x02)] * 6)
    await drive.wait_ready(30.0)
    assert rig.wire.sent(c.LoadUnload) == [c.LoadUnload(load=True)]


async def test_wait_ready_does_not_wait_for_what_will_not_come(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    rig.wire.answer(c.TestUnitReady, *[Sense(SenseKey.NOT_READY, 0x04, 0x12)] * 3)
    with pytest.raises(NotReady, match="offline"):
        await drive.wait_ready(1e9)
    rig.wire.answer(c.TestUnitReady, *[Sense(SenseKey.HARDWARE_ERROR, 0x44)] * 3)
    with pytest.raises(HardwareError):
        await drive.wait_ready(1e9)


async def test_unload_and_load(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, 1)
    assert await drive.prevent_removal(True)
    await drive.unload()
    assert not loaded(drive)
    assert not await drive.test_ready()
    await drive.load()
    assert loaded(drive)
    await drive.rewind()
    assert await read_number(drive) == 0


async def test_a_drive_that_cannot_lock_its_door_says_so(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    rig.wire.answer(c.PreventAllowMediumRemoval, Sense(SenseKey.ILLEGAL_REQUEST, 0x20))
    assert not await drive.prevent_removal(True)


# What the drive says about itself


@pytest.mark.parametrize("name", ["lto5", "ait3", "dat160"])
async def test_capacity_whatever_the_unit(rigs: Rigs, name: str) -> None:
    drive = await rigs(name, capacity_bytes=64 * MIB).open()
    await drive.rewind()
    before = await drive.capacity()
    assert before is not None
    assert 32 * MIB < before.remaining_bytes <= before.total_bytes <= 64 * MIB
    for _ in range(8):
        await drive.write_block(record(1, MIB))
    await drive.write_filemarks(1)
    after = await drive.capacity()
    assert after is not None
    assert 8 * MIB <= before.remaining_bytes - after.remaining_bytes <= 9 * MIB


async def test_capacity_is_unknown_where_the_drive_does_not_tell(rigs: Rigs) -> None:
    rig = rigs("plain")
    drive = await rig.open()
    assert await drive.capacity() is None
    assert not rig.wire.log


async def test_capacity_from_volume_statistics(rigs: Rigs) -> None:
    rig = rigs("lto5")
    rig.wire.answer(c.LogSense, Sense(SenseKey.ILLEGAL_REQUEST, 0x24))
    drive = await rig.open()
    capacity = await drive.capacity()
    assert drive.capabilities.capacity_unit_bytes is None
    assert capacity is not None
    assert 60_000_000 < capacity.total_bytes < 68_000_000
