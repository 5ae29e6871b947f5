"""The world stops at every SCSI command and every commit: nothing that was promised is lost.

At each point the daemon is killed (with the drive's buffer kept, half kept, lost), power fails
(only what was synced lasts), or the host is lost (the tape alone is left). The remains are mounted
without any repair. `TAPEFS_CRASH_POINTS=all` tries every point, else a spread of them.
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import trio
from crash_rig import World, scratch, stopped_world
from oracle import Oracle, Photo
from volume_rig import Rig
from workload import (
    Program,
    changes_while_archiving,
    first_mount,
    large_file,
    noise,
    second_mount,
)

from tapefs.config import Config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest

EVERY_POINT = os.environ.get("TAPEFS_CRASH_POINTS") == "all"


# Nothing happens by itself: every commit and every segment is somebody's step.
QUIET = Config(settle_s=0.0, idle_s=3600.0, commit_s=3600.0)


def sweep(
    settings: Config,
    monkeypatch: pytest.MonkeyPatch,
    mounts: list[Callable[[Program], Awaitable[None]]],
    *,
    every: int,
) -> World:
    """Run `mounts`, one mount each, looking at every point or at each one in `every`."""
    oracle = Oracle(Photo())
    with ExitStack() as stack:
        rig = Rig(stack.enter_context(scratch()), config=settings)
        trio.run(rig.format)
        world = stack.enter_context(stopped_world(rig, oracle, monkeypatch))

        def look(where: str) -> None:
            if EVERY_POINT or world.point_count % every == 0:
                world.examine(where)

        world.at_point = look

        async def run() -> None:
            for program in mounts:
                world.begin_mount()
                async with rig.mounted() as user:
                    await program(Program(user, oracle))
                oracle.synced(oracle.now)

        trio.run(run)
    print(f"{world.point_count} points passed, {world.examined_count} remains mounted")
    return world


def complaints(world: World) -> str:
    shown = "\n".join(world.failures[:12])
    return f"{len(world.failures)} of {world.examined_count} remains:\n{shown}"


def test_every_system_call_survives_a_crash_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    world = sweep(
        dataclasses.replace(QUIET, checkpoint_segments=2),
        monkeypatch,
        [first_mount, second_mount],
        every=7,
    )
    assert world.examined_count > 20
    assert not world.failures, complaints(world)


def test_changes_while_a_segment_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(program: Program) -> None:
        await program.write("victim", noise(40, 90_000))
        await program.write("busy", noise(41, 120_000))
        await program.write("replaced", noise(42, 10_000))
        await program.fsync("replaced")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program.sync)
            await trio.lowlevel.checkpoint()
            await changes_while_archiving(program)
        await program.sync()

    world = sweep(QUIET, monkeypatch, [busy], every=5)
    assert world.examined_count > 20
    assert not world.failures, complaints(world)


def test_a_file_larger_than_the_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    async def large(program: Program) -> None:
        await program.write("small", noise(50, 1_000))
        await program.fsync("small")
        await large_file(program, 20)

    world = sweep(dataclasses.replace(QUIET, spool_bytes=16 << 20), monkeypatch, [large], every=151)
    assert world.examined_count > 10
    assert not world.failures, complaints(world)
