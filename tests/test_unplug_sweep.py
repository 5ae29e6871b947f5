"""The cable is pulled at every USB transfer of a session, and before and in the middle of its data.

One session mounts, writes, syncs, reads and unmounts, over the whole stack: lane, USB transport,
pyusb, emulated bus and drive. At one place of it the cable comes out; the drive keeps its power and
its buffer, or loses both. Then the cable is put in again, and the same running volume has to go on
by itself: every acknowledged byte reads back, from the mount, and from the tape alone.

TAPEFS_UNPLUG_POINTS=all tries every place, else a spread of them.
"""

from __future__ import annotations

import enum
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from crash_rig import logs_expected, scratch
from oracle import Oracle, Photo, differences, photograph
from plugged_rig import PluggedRig, until_back
from workload import Program, noise

from tapefs.emulator.usb import EmulatedUsbBackend, UsbIdentity
from tapefs.errors import DriveGone, TapefsError
from tapefs.scsi.cdb import Write6

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from volume_rig import User

    from tapefs.emulator.target import Target

EVERY_POINT = os.environ.get("TAPEFS_UNPLUG_POINTS") == "all"
# Transfers up to this many bytes are command and status blocks and parameter data.
_RECORD_BYTES_MIN = 4096


class Supply(enum.Enum):
    """Where the drive has its power from."""

    OWN = "power of its own"
    BUS = "power over the cable"


class Moment(enum.Enum):
    """When, within a transfer."""

    BEFORE = "before"
    MIDDLE = "in the middle of"


class Puller(EmulatedUsbBackend):
    """A drive whose cable comes out at one transfer; counts them all.

    `places` are the transfers that went through, and how many bytes each had.
    """

    def __init__(self, target: Target, identity: UsbIdentity, cable: Cable) -> None:
        super().__init__(target, identity=identity)
        self._target = target
        self._cable = cable

    def bulk_write(self, *words: Any) -> int:
        data: array[int] = words[3]
        if self._cable.comes_out(len(data)):
            if self._cable.moment is Moment.MIDDLE and len(data) >= _RECORD_BYTES_MIN:
                # Worse than most drives: what arrived of the record goes onto the tape.
                self._target.execute(Write6(len(data) // 2).pack(), data[: len(data) // 2])
            self._pull()
        return super().bulk_write(*words)

    def bulk_read(self, *words: Any) -> int:
        into: array[int] = words[3]
        if self._cable.comes_out(len(into)):
            if self._cable.moment is Moment.MIDDLE:
                super().bulk_read(*words)
                for index in range(len(into) // 2, len(into)):
                    into[index] = 0xAA
            self._pull()
        return super().bulk_read(*words)

    def _pull(self) -> None:
        self.unplug()
        if self._cable.supply is Supply.BUS:
            self._target.power_cut()


class Cable:
    """Comes out at transfer number `at`, once."""

    def __init__(self, supply: Supply, moment: Moment, at: int) -> None:
        self.supply = supply
        self.moment = moment
        self.at = at
        self.is_pulled = False
        self.lengths: list[int] = []

    def comes_out(self, length: int) -> bool:
        """Another transfer of so many bytes begins: whether it is the one."""
        self.lengths.append(length)
        strikes = len(self.lengths) == self.at
        self.is_pulled |= strikes
        return strikes


class SweptRig(PluggedRig):
    """A `PluggedRig` with a `Cable`."""

    def __init__(self, directory: Path, cable: Cable) -> None:
        super().__init__(directory)
        self.cable = cable

    def make_backend(self, target: Target, identity: UsbIdentity) -> EmulatedUsbBackend:
        return Puller(target, identity, self.cable)


async def insist(rig: SweptRig, user: User, call: Callable[[], Awaitable[None]]) -> None:
    """A call that fails at once while the drive is away; made again when it is back."""
    try:
        await call()
    except DriveGone:
        assert not rig.drive.device.plugged_in
        assert user.volume.scheduler.away is not None
        await program_goes_on(user)
        rig.drive.plug_in()
        await until_back(user)
        await call()


async def program_goes_on(user: User) -> None:
    """Names, attributes and the spool do without the drive."""
    assert user.find("d").nlink == 2
    await user.write("scratch", b"while away")
    assert await user.read("scratch") == b"while away"
    user.unlink("scratch")
    assert user.volume.scheduler.away is not None


async def put_in_again(rig: SweptRig, user: User) -> None:
    """For whoever waits for the drive: a reader. To be cancelled."""
    while True:
        await trio.sleep(0.001)
        if user.volume.scheduler.away is not None and not rig.drive.device.plugged_in:
            rig.drive.plug_in()


async def reads(rig: SweptRig, user: User, *paths: str) -> None:
    """Readers wait for the drive; what they get is judged later."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put_in_again, rig, user)
        for path in paths:
            assert len(await user.read(path)) == user.find(path).size
        nursery.cancel_scope.cancel()


async def use(rig: SweptRig, program: Program) -> None:
    """Three segments, reads of all of them, and what an unmount writes."""
    user = program.user
    program.mkdir("d")
    await program.write("d/one", noise(1, 200_000))
    await program.write("two", noise(2, 30_000))
    await program.fsync("two")
    await insist(rig, user, program.sync)
    await program.write("two", noise(3, 20_000), 15_000)
    await program.write("three", noise(4, 100_000))
    program.rename("d/one", "one")
    await insist(rig, user, program.sync)
    program.evict()
    await reads(rig, user, "one", "two")
    await program.write("four", noise(5, 300_000))
    await program.truncate("one", 150_000)
    await insist(rig, user, program.sync)
    await program.write("five", noise(6, 70_000))
    program.unlink("three")
    program.evict()
    await reads(rig, user, "four", "one", "two")
    await insist(rig, user, user.volume.finalize)


async def session(rig: SweptRig) -> None:
    """The whole run; the cable may also come out while mounting, which fails then."""
    oracle = Oracle(Photo())
    mounts = 0
    while not mounts:
        try:
            async with rig.mounted() as user:
                mounts += 1
                await use(rig, Program(user, oracle))
                assert rig.drive.device.violations == []
        except TapefsError:
            assert not mounts, "a mount that runs goes on"
            assert rig.cable.is_pulled
            rig.drive.plug_in()
    async with rig.mounted(read_only=True) as user:
        found = await photograph(user)
        assert oracle.judge_same_host(found) is None, oracle.judge_same_host(found)
        assert found.names == oracle.last.names
    async with rig.mounted(state=rig.directory / "scratch", read_only=True) as user:
        assert differences(found, await photograph(user)) is None
        assert user.volume.view.last_tape_file() is not None


def run_session(cable: Cable) -> None:
    """One session with one cable, in a directory of its own."""

    async def run() -> None:
        with trio.fail_after(60):
            rig = SweptRig(directory, cable)
            await rig.format()
            await session(rig)

    with scratch() as directory:
        trio.run(run)


def transfers() -> list[int]:
    """How many bytes each transfer of an undisturbed session has, up to the unmount."""
    cable = Cable(Supply.OWN, Moment.BEFORE, 0)
    mounted = [0]

    async def run() -> None:
        rig = SweptRig(directory, cable)
        await rig.format()
        async with rig.mounted() as user:
            await use(rig, Program(user, Oracle(Photo())))
            mounted[0] = len(cable.lengths)

    with scratch() as directory:
        trio.run(run)
    return cable.lengths[: mounted[0]]


@pytest.mark.parametrize("supply", Supply, ids=lambda supply: supply.value)
def test_the_cable_is_pulled_at_every_transfer(supply: Supply) -> None:
    lengths = transfers()
    assert len(lengths) > 150
    places = [(Moment.BEFORE, at) for at in range(1, len(lengths) + 1)]
    places += [
        (Moment.MIDDLE, at) for at, length in enumerate(lengths, 1) if length not in (13, 31)
    ]
    if not EVERY_POINT:
        places = places[:: 2 * 7] if supply is Supply.OWN else places[7 :: 2 * 7]
    failures = []
    with logs_expected(up_to=logging.ERROR):
        for moment, at in places:
            cable = Cable(supply, moment, at)
            try:
                run_session(cable)
                assert cable.is_pulled
            except BaseException as exc:  # noqa: BLE001 - whatever it is, it is a finding
                while isinstance(exc, BaseExceptionGroup):
                    exc = exc.exceptions[0]
                failures.append(f"{moment.value} transfer {at}: {exc!r}")
    print(f"{len(places)} places tried in {len(lengths)} transfers, {len(failures)} failed")
    assert not failures, "\n".join(failures)
