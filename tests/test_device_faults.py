"""The drive fails at every command and at every block: the mount lives, and nothing is lost.

A fault stops archiving, not the mount: names, attributes and spooled content answer. After a
remount with a working drive everything that was acknowledged is there and goes to tape.
`TAPEFS_CRASH_POINTS=all` tries every place, else a spread of them.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from crash_rig import logs_expected, scratch
from oracle import Oracle, Photo, differences, photograph
from volume_rig import Crash, Rig, dump
from workload import Program, noise

from tapefs.config import Config
from tapefs.emulator.transport import TargetTransport
from tapefs.errors import DriveGone, NoDrive, TapefsError
from tapefs.scsi.cdb import Space6, SpaceCode, Write6, WriteFilemarks6

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from volume_rig import User

    from tapefs.emulator.target import Target
    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import Completion, DataBuffer

EVERY_POINT = os.environ.get("TAPEFS_CRASH_POINTS") == "all"
CONFIG = Config(settle_s=0.0, idle_s=3600.0, commit_s=3600.0, checkpoint_segments=2)


class Fault(enum.Enum):
    """What happens to the drive at some command."""

    UNPLUGGED_BEFORE = "unplugged before"
    UNPLUGGED_AFTER = "unplugged after"
    POWER_LOST = "power lost before"


class FaultyWire(TargetTransport):
    """Fails at one command; counts them all. What was unplugged stays so until the next mount."""

    def __init__(self, target: Target, faulty: FaultySocket) -> None:
        super().__init__(target)
        self._faulty = faulty

    def _carry_out(self, command: Command, data: DataBuffer | bytes | None) -> Completion:
        fault = self._faulty.next_fault()
        if fault is Fault.POWER_LOST:
            self._target.power_cut()
        if fault in (None, Fault.POWER_LOST):
            return super()._carry_out(command, data)
        self.unplug()
        self._faulty.unplugged = True
        if fault is Fault.UNPLUGGED_AFTER:
            super()._carry_out(command, data)
        raise DriveGone("unplugged")


class FaultySocket:
    """Where the wire is plugged in. `count` is the number of commands so far."""

    def __init__(self, fault: Fault | None = None, at: int = 0) -> None:
        self._fault = fault
        self._at = at
        self.count = 0
        self.unplugged = False

    def __call__(self, target: Target) -> FaultyWire:
        if self.unplugged:
            raise NoDrive("nothing is plugged in")
        return FaultyWire(target, self)

    def next_fault(self) -> Fault | None:
        """What happens at this command."""
        self.count += 1
        return self._fault if self.count == self._at else None


async def use(program: Program) -> None:
    """Three segments, a checkpoint between them, and reads from tape."""
    program.mkdir("d")
    await program.write("d/one", noise(1, 200_000))
    await program.write("two", noise(2, 30_000))
    await program.fsync("two")
    await sync(program)
    with suppress(TapefsError):
        await program.write("two", noise(3, 20_000), 15_000)
    with suppress(TapefsError):
        await program.write("three", noise(4, 100_000))
    await sync(program)
    with suppress(TapefsError):
        await program.write("four", noise(5, 100_000))
    with suppress(TapefsError):
        await program.truncate("d/one", 120_000)
    await sync(program)
    program.evict()
    with suppress(TapefsError):
        await program.user.read("three")
    with suppress(TapefsError):
        await program.write("five", noise(6, 70_000))
    with suppress(TapefsError):
        await program.fsync("five")
    program.rename("d", "e")


async def sync(program: Program) -> None:
    """To tape, if the drive lets it."""
    with suppress(TapefsError):
        await program.sync()


async def survive(
    directory: Path, wire: Callable[[Target], TargetTransport], prepare: Callable[[Target], None]
) -> None:
    """Use a volume over a failing drive, then look at what is left with a good one."""
    rig = Rig(directory, config=CONFIG)
    await rig.format()
    oracle = Oracle(Photo())
    rig.wire = wire
    with trio.fail_after(60):
        try:
            # A read that needs the tape waits for a drive that will not come.
            config = dataclasses.replace(CONFIG, recall_deadline_s=0.2)
            async with rig.mounted(config=config) as user:
                prepare(user.target)
                await use(Program(user, oracle))
                await everything_answers(user, oracle)
                with suppress(TapefsError):
                    await user.volume.finalize()
                    oracle.synced(oracle.now)
                raise Crash
        except TapefsError:
            assert oracle.now == 0, "the mount itself may fail, but nothing else"
    rig.wire = TargetTransport
    async with rig.mounted() as user:
        found = await photograph(user)
        assert oracle.judge_same_host(found) is None, oracle.judge_same_host(found)
    async with rig.mounted(read_only=True) as user:
        kept_rows = dump(user.volume.view)
    async with rig.mounted(state=directory / "scratch", read_only=True) as user:
        assert differences(found, await photograph(user)) is None
        assert dump(user.volume.view) == kept_rows


async def everything_answers(user: User, oracle: Oracle) -> None:
    """Names and attributes without the tape; content as far as it is in the spool."""
    catalog = user.volume.catalog
    shown = Program(user, oracle).photo()
    assert shown.names == oracle.last.names
    for ino, node in oracle.last.nodes.items():
        assert shown.nodes[ino].looks_like(node)
        staged = catalog.load_staged(ino)
        if staged is not None and staged.resident == [(0, node.size)]:
            data = await user.volume.contents.read(ino, 0, node.size)
            assert data == b"".join(node.content)


def command_count() -> int:
    """Commands of a session without any fault."""
    socket = FaultySocket()
    with scratch() as directory:
        trio.run(survive, directory, socket, lambda _: None)
    return socket.count


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_the_drive_is_lost_at_any_command(fault: Fault) -> None:
    commands = command_count()
    assert commands > 50
    places = range(1, commands + 1, 1 if EVERY_POINT else 7)
    failures = []
    with logs_expected(up_to=logging.ERROR):
        for at in places:
            failures += fails(FaultySocket(fault, at), f"command {at}")
    print(f"{len(places)} of {commands} commands tried")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("times", [1, 1000], ids=["once", "for good"])
def test_a_block_cannot_be_written(times: int) -> None:
    blocks = range(2, 24, 1 if EVERY_POINT else 5)
    failures = []
    with logs_expected(up_to=logging.ERROR):
        for block in blocks:

            def spoil(target: Target, block: int = block) -> None:
                target.faults.unwritable[block] = times

            failures += fails(TargetTransport, f"block {block}", spoil)
    print(f"{len(blocks)} blocks tried")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("goes_back", [False, True])
async def test_nothing_is_written_when_the_end_of_the_tape_has_moved(goes_back: bool) -> None:
    with scratch() as directory, logs_expected(up_to=logging.ERROR):
        rig = Rig(directory, config=CONFIG)
        await rig.format()
        async with rig.mounted() as user:
            program = Program(user, Oracle(Photo()))
            await program.write("one", noise(1, 100_000))
            await program.sync()
            # Somebody else has the drive for a moment.
            intruder = TargetTransport(user.target)
            await intruder.execute(Write6(100), noise(2, 100))
            await intruder.execute(WriteFilemarks6(1))
            if goes_back:
                await intruder.execute(Space6(SpaceCode.FILEMARKS, -1))
                await intruder.execute(Space6(SpaceCode.BLOCKS, -1))
                user.volume.scheduler.head_block = None
            cartridge = user.target.cartridge
            assert cartridge is not None
            end = cartridge.object_count
            await program.write("two", noise(3, 100_000))
            with pytest.raises(TapefsError, match="block"):
                await program.sync()
            assert cartridge.object_count == end
            assert await user.read("two") == noise(3, 100_000)
            raise Crash


def fails(
    wire: Callable[[Target], TargetTransport],
    where: str,
    prepare: Callable[[Target], None] = lambda _: None,
) -> list[str]:
    """What goes wrong with a fault at one place."""
    with scratch() as directory:
        try:
            trio.run(survive, directory, wire, prepare)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is a finding
            while isinstance(exc, BaseExceptionGroup):
                exc = exc.exceptions[0]
            return [f"{where}: {exc!r}"]
    return []
