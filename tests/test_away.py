"""The drive or its cartridge goes away under a mount: it lives on, and goes on by itself."""

from __future__ import annotations

import logging
import shutil
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from crash_rig import logs_expected, scratch
from plugged_rig import (
    CONFIG,
    PluggedRig,
    impatient,
    replug_for_ever,
    until,
    until_away,
    until_back,
)
from volume_rig import Rig
from workload import noise

from tapefs.emulator.cartridge_memory import memory_path
from tapefs.emulator.fault_queue import FaultPoint
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend, UsbIdentity
from tapefs.emulator.wire_faults import FaultEffect, WireFault
from tapefs.entries import TapeFileKind
from tapefs.errors import DriveGone, NotFinalized

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from volume_rig import User

ONE, TWO = noise(1, 300_000), noise(2, 200_000)
READ_6, WRITE_6 = 0x08, 0x0A


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch() as place, logs_expected(up_to=logging.ERROR):
        yield place


@pytest.fixture
async def rig(directory: Path) -> PluggedRig:
    rig = PluggedRig(directory)
    await rig.format()
    return rig


async def one_on_tape(user: User) -> None:
    """A file that is on tape only."""
    await user.write("one", ONE)
    await user.sync()
    user.evict_everything()


async def everything_answers(user: User) -> None:
    """Names, attributes and spool, without any tape; `two` is written."""
    assert user.volume.scheduler.away is not None
    assert user.find("one").size == len(ONE)
    await user.write("two", TWO)
    assert await user.read("two") == TWO
    user.mkdir("made while away")
    user.rename("made while away", "renamed while away")
    assert user.volume.scheduler.away is not None


async def comes_to_tape(user: User) -> None:
    """What is missing on tape gets there without anybody asking."""
    await until(lambda: not user.volume.catalog.owes_tape())


async def all_is_on_tape(rig: PluggedRig) -> None:
    """Unmounted; from the tape alone."""
    assert rig.drive.device.violations == []
    async with rig.mounted(state=rig.directory / "elsewhere", read_only=True) as user:
        assert await user.read("one") == ONE
        assert await user.read("two") == TWO


def torn_count(user: User) -> int:
    files = user.volume.view.files_since_checkpoint()
    return sum(file.kind is TapeFileKind.TORN for file in files)


# The cable.


async def test_unplugged_while_idle(rig: PluggedRig) -> None:
    async with rig.mounted(config=impatient(CONFIG)) as user:
        await one_on_tape(user)
        rig.drive.unplug()
        sentence = await until_away(user)
        assert "the mount waits for" in sentence
        assert rig.label.name in sentence
        await everything_answers(user)
        with pytest.raises(DriveGone, match="the mount waits for"):
            await user.sync()
        rig.drive.plug_in()
        await until_back(user)
        await comes_to_tape(user)
    await all_is_on_tape(rig)


@pytest.mark.parametrize("power_lost", [False, True])
async def test_unplugged_while_writing(rig: PluggedRig, power_lost: bool) -> None:
    async with rig.mounted() as user:
        await one_on_tape(user)
        rig.drive.device.faults.plan(WireFault(FaultPoint.DATA, FaultEffect.UNPLUG, skip_count=2))
        await user.write("two", TWO)
        with pytest.raises(DriveGone, match="vanished"):
            await user.sync()
        await everything_answers(user)
        if power_lost:
            user.target.power_cut()
        rig.drive.plug_in()
        await comes_to_tape(user)
        assert torn_count(user) <= 1
    await all_is_on_tape(rig)


async def test_unplugged_while_reading(rig: PluggedRig) -> None:
    async with rig.mounted() as user:
        await one_on_tape(user)
        found: list[bytes] = []

        async def read() -> None:
            found.append(await user.read("one"))

        rig.drive.device.faults.plan(WireFault(FaultPoint.STATUS, FaultEffect.UNPLUG, skip_count=3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until_away(user)
            await everything_answers(user)
            assert not found
            rig.drive.plug_in()
        assert found == [ONE]
    await all_is_on_tape(rig)


async def test_a_recall_that_loses_the_drive_every_time_fails_in_the_end(rig: PluggedRig) -> None:
    async with rig.mounted() as user:
        await one_on_tape(user)
        lane = user.volume.scheduler
        losses = []

        def reading(cdb: bytes) -> bool:
            strikes = cdb[0] == READ_6 and lane.statistics().running == "recall"
            if strikes:
                losses.append(cdb)
            return strikes

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replug_for_ever, rig, user)
            rig.pull_cable_when(reading)
            with pytest.raises(DriveGone, match="vanished"):
                await user.read("one")
            nursery.cancel_scope.cancel()
        assert len(losses) == CONFIG.recall_attempts_max
        rig.trust_cable()
        rig.drive.plug_in()
        assert await user.read("one") == ONE


async def test_a_drive_that_is_lost_in_every_burst_is_not_fed_torn_segments(
    rig: PluggedRig,
) -> None:
    async with rig.mounted() as user:
        await one_on_tape(user)
        lane, losses = user.volume.scheduler, []

        def writing(cdb: bytes) -> bool:
            losses.extend([cdb] if cdb[0] == WRITE_6 else [])
            return cdb[0] == WRITE_6

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replug_for_ever, rig, user)
            rig.pull_cable_when(writing)
            await user.write("two", TWO)
            with pytest.raises(DriveGone, match="vanished"):
                await user.sync()
            await until(lambda: len(losses) == 2 and lane.away is None)
            # Not a third time by itself, although something waits.
            await until(lambda: user.volume.archiver.statistics().state == "idle")
            await until_back(user)
            assert user.volume.account.pending_count
            assert not user.volume.archiver._due()
            nursery.cancel_scope.cancel()
        rig.trust_cable()
        await user.sync()
        assert torn_count(user) == 2
    await all_is_on_tape(rig)


async def test_a_drive_without_power_loses_its_buffer_and_nothing_else(rig: PluggedRig) -> None:
    async with rig.mounted() as user:
        await one_on_tape(user)
        target, count = user.target, 0

        def third_record(cdb: bytes) -> bool:
            nonlocal count
            count += cdb[0] == WRITE_6
            return count == 3

        # The bridge has power of its own: the wire stays, only the unit attention tells.
        rig.when_executed(third_record, target.power_cut)
        await user.write("two", TWO)
        await user.sync()
        assert torn_count(user) <= 1
    await all_is_on_tape(rig)


async def test_a_mount_that_only_reads_goes_on_as_well(rig: PluggedRig) -> None:
    async with rig.mounted() as user:
        await user.write("one", ONE)
        await user.write("two", TWO)
    async with rig.mounted(read_only=True, config=impatient(CONFIG)) as user:
        user.evict_everything()
        assert await user.read("two") == TWO
        rig.drive.unplug()
        await until_away(user)
        assert user.find("one").size == len(ONE)
        rig.drive.plug_in()
        assert await user.read("one") == ONE
        rig.drive.unplug()
        await until_away(user)
    # Unmounted without the drive, and nothing is missing.
    await all_is_on_tape(rig)


# Sync and unmount meanwhile.


async def test_unmounted_while_away(rig: PluggedRig) -> None:
    async with rig.mounted() as user:
        await one_on_tape(user)
        rig.drive.device.faults.plan(WireFault(FaultPoint.COMMAND, FaultEffect.UNPLUG))
        await user.write("two", TWO)
        with pytest.raises(DriveGone, match="vanished"):
            await user.volume.finalize()
        with pytest.raises(DriveGone, match="the mount waits for"):
            await user.volume.finalize()
        user.crash()
    async with rig.mounted():
        pass
    await all_is_on_tape(rig)


async def test_unmounted_while_away_when_everything_is_on_tape(rig: PluggedRig) -> None:
    async with rig.mounted(config=impatient(CONFIG)) as user:
        await user.write("one", ONE)
        await user.write("two", TWO)
        await user.volume.finalize()
        rig.drive.unplug()
        await until_away(user)
        await user.sync()
    await all_is_on_tape(rig)


async def test_a_checkpoint_is_missed_when_the_drive_is_away(rig: PluggedRig) -> None:
    async with rig.mounted(config=impatient(CONFIG)) as user:
        await one_on_tape(user)
        rig.drive.unplug()
        await until_away(user)
        await user.sync()  # says nothing but that everything is on tape, and it is
        with pytest.raises(DriveGone, match="the mount waits for"):
            await user.volume.finalize()
        rig.drive.plug_in()
        await until_back(user)
        await user.write("two", TWO)
    await all_is_on_tape(rig)


async def test_a_sync_that_waits_behind_a_recall_fails_when_that_loses_the_drive(
    rig: PluggedRig,
) -> None:
    async with rig.mounted() as user:
        await one_on_tape(user)
        await user.write("two", TWO)
        refused: list[DriveGone] = []
        lane, queued = user.volume.scheduler, threading.Event()

        async def sync() -> None:
            with pytest.raises(DriveGone, match="the mount waits for") as caught:
                await user.sync()
            refused.append(caught.value)

        async def read() -> None:
            assert await user.read("one") == ONE

        def reading(_cdb: bytes) -> bool:
            # The drive is slow: in the meantime somebody wants to sync.
            return lane.statistics().running == "recall" and queued.wait(30)

        rig.pull_cable_when(reading)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until(lambda: lane.statistics().running == "recall")
            nursery.start_soon(sync)
            await until(lambda: lane.statistics().waiting["archive"] > 0)
            queued.set()
            await until(lambda: bool(refused))
            rig.trust_cable()
            rig.drive.plug_in()
        await comes_to_tape(user)
    await all_is_on_tape(rig)


# Another drive, another cartridge.


async def test_another_drive_is_not_touched(rig: PluggedRig) -> None:
    async with rig.mounted(config=impatient(CONFIG)) as user:
        await one_on_tape(user)
        own = rig.drive
        own.unplug()
        await until_away(user)
        # Even with the very cartridge of the mount in it.
        other = EmulatedUsbBackend(user.target, identity=UsbIdentity(serial="another"))
        rig.bus.devices = [other]
        sentence = await until_away(user, "is at usb:1")
        assert own.identity.serial in sentence
        await everything_answers(user)
        assert other.device.command_count == 0
        # The right one at another place, beside the wrong one.
        own.identity = UsbIdentity(serial=own.identity.serial, ports=(3,))
        own.plug_in()
        rig.bus.devices = [own, other]
        await until_back(user)
        assert other.device.command_count == 0
        await user.sync()
    await all_is_on_tape(rig)


async def test_another_drive_that_looks_the_same_from_outside_is_given_back(
    directory: Path,
) -> None:
    rig = PluggedRig(directory)
    rig.usb_serial = ""
    await rig.format()
    with VirtualCartridge.create(directory / "b.tap", rig.personality, 1 << 25) as cartridge:
        other_drive = Target(cartridge)
        async with rig.mounted(config=impatient(CONFIG)) as user:
            await one_on_tape(user)
            own = rig.drive
            own.unplug()
            await until_away(user)
            other = EmulatedUsbBackend(other_drive, identity=own.identity)
            rig.bus.devices = [other]
            sentence = await until_away(user, other_drive.serial)
            assert f"(serial number {user.target.serial})" in sentence
            rig.bus.devices = [own]
            own.plug_in()
            await until_back(user)
            await user.write("two", TWO)
        assert cartridge.object_count == 0
    await all_is_on_tape(rig)


def eject(user: User) -> VirtualCartridge:
    """The operator takes the cartridge out."""
    cartridge = user.target.eject()
    assert cartridge is not None
    return cartridge


async def test_the_cartridge_is_taken_out_and_put_back(rig: PluggedRig) -> None:
    async with rig.mounted(config=impatient(CONFIG)) as user:
        await one_on_tape(user)
        cartridge = eject(user)
        sentence = await until_away(user, "no cartridge")
        assert "the drive was not ready any more" in sentence
        await everything_answers(user)
        user.target.insert(cartridge)
        assert await user.read("one") == ONE
        await user.sync()
    await all_is_on_tape(rig)


async def test_a_cartridge_that_is_changed_between_two_commands(rig: PluggedRig) -> None:
    async with rig.mounted() as user:
        await one_on_tape(user)
        user.target.insert(eject(user))
        assert await user.read("one") == ONE, "a unit attention is no reason to fail a reader"
        user.target.insert(eject(user))
        await user.write("two", TWO)
        await user.sync()
        assert user.volume.writable
        assert user.volume.contents.admission.read_only_reason is None
    await all_is_on_tape(rig)


async def make_blank(_directory: Path) -> Path:
    """Nothing was ever recorded."""
    path = _directory / "blank.tap"
    VirtualCartridge.create(path, "lto5", 1 << 25).close()
    return path


async def make_foreign(directory: Path) -> Path:
    """Somebody's tar archive."""
    path = await make_blank(directory)
    with VirtualCartridge.open(path) as cartridge:
        cartridge.append_records([bytes(10_240)])
        cartridge.append_filemarks(1)
    return path


async def make_other_volume(directory: Path) -> Path:
    """A tapefs volume, but another one."""
    (directory / "other").mkdir()
    other = Rig(directory / "other")
    await other.format()
    return other.tap


@pytest.mark.parametrize(
    ("make", "saying"),
    [
        (make_blank, "the tape is blank"),
        (make_foreign, "is not a tapefs volume"),
        (make_other_volume, "is loaded"),
    ],
)
async def test_another_cartridge_is_refused_and_left_alone(
    rig: PluggedRig, make: Callable[[Path], Awaitable[Path]], saying: str
) -> None:
    path = await make(rig.directory)
    before = path.read_bytes()
    async with rig.mounted(config=impatient(CONFIG)) as user:
        await one_on_tape(user)
        own = eject(user)
        await until_away(user)
        with VirtualCartridge.open(path) as cartridge:
            user.target.insert(cartridge)
            sentence = await until_away(user, saying)
            assert f"insert volume '{rig.label.name}'" in sentence
            await everything_answers(user)
            # It is not wound to and fro at every look.
            moved_s, asked = user.target.busy_s, rig.drive.device.command_count
            await until(lambda: rig.drive.device.command_count > asked + 10)
            assert user.target.busy_s == moved_s
            with pytest.raises(DriveGone, match=saying):
                await user.sync()
            eject(user)
        await until_away(user, "no cartridge")
        user.target.insert(own)
        await until_back(user)
        await comes_to_tape(user)
    assert path.read_bytes() == before
    await all_is_on_tape(rig)


async def test_an_older_copy_of_the_cartridge_is_refused(rig: PluggedRig) -> None:
    copy = rig.directory / "copy.tap"
    async with rig.mounted() as user:
        await user.write("zero", TWO)
    shutil.copy(rig.tap, copy)
    before = copy.read_bytes()
    async with rig.mounted(config=impatient(CONFIG)) as user:
        await one_on_tape(user)
        own = eject(user)
        with VirtualCartridge.open(copy, default=own.memory) as cartridge:
            user.target.insert(cartridge)
            await until_away(user, "it is an older copy")
            await everything_answers(user)
            eject(user)
        user.target.insert(own)
        await until_back(user)
        await user.sync()
    assert copy.read_bytes() == before
    await all_is_on_tape(rig)


async def test_a_copy_that_went_its_own_way_is_refused(rig: PluggedRig) -> None:
    copy = Rig(rig.directory / "copy")
    copy.directory.mkdir()
    copy.label = rig.label
    shutil.copy(rig.tap, copy.tap)
    shutil.copy(memory_path(rig.tap), memory_path(copy.tap))
    async with copy.mounted() as user:
        for number in range(3):
            await user.write(f"strange-{number}", TWO)
            await user.sync()
    async with rig.mounted(config=impatient(CONFIG)) as user:
        await one_on_tape(user)
        own = eject(user)
        with VirtualCartridge.open(copy.tap) as cartridge:
            user.target.insert(cartridge)
            await until_away(user, "this host's catalog knows it")
            eject(user)
        user.target.insert(own)
        await until_back(user)
        await user.write("two", TWO)
    await all_is_on_tape(rig)


async def test_a_tape_that_was_written_elsewhere_meanwhile_is_not_written_here(
    rig: PluggedRig,
) -> None:
    async with rig.mounted(config=impatient(CONFIG)) as user:
        await one_on_tape(user)
        own = eject(user)
        await until_away(user)
        elsewhere = Rig(rig.directory / "elsewhere")
        elsewhere.directory.mkdir()
        elsewhere.label, elsewhere.tap = rig.label, elsewhere.directory / "cartridge.tap"
        shutil.copy(rig.tap, elsewhere.tap)
        shutil.copy(memory_path(rig.tap), memory_path(elsewhere.tap))
        async with elsewhere.mounted() as stranger:
            await stranger.write("strange", TWO)
        own.close()
        with VirtualCartridge.open(elsewhere.tap) as cartridge:
            end = cartridge.object_count
            user.target.insert(cartridge)
            await until_back(user)
            assert await user.read("one") == ONE
            known = user.volume.view.expected_end()
            await user.write("two", TWO)
            with pytest.raises(NotFinalized, match="written by another host"):
                await user.sync()
            assert cartridge.object_count == end
            # The view stays what the live catalog was made from.
            assert user.volume.view.expected_end() == known
            assert await user.read("two") == TWO
            user.crash()
