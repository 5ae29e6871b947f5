"""Random programs on a volume that dies again and again, against a model.

Each life of the volume begins with what the last crash left. The oracle knows which states a crash
may leave; what a mount then shows is where the next life starts. `TAPEFS_CRASH_PROGRAMS` is the
number of programs.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import stat
from typing import TYPE_CHECKING

import pytest
import trio
from conftest import SEED
from crash_rig import Remains, World, logs_expected, scratch, stopped_world
from oracle import Oracle, Photo, photograph, size_of
from volume_rig import Crash, Rig
from workload import Program, noise

from tapefs.config import Config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PROGRAMS = int(os.environ.get("TAPEFS_CRASH_PROGRAMS", "8"))
LIVES = 6
# Programs that found something once.
KNOWN = (9018, 9322)


class Chance:
    """Chooses the next step of a random program."""

    def __init__(self, rng: random.Random, program: Program) -> None:
        self.rng = rng
        self.program = program
        self.steps: list[Callable[[], Awaitable[None]]] = [
            *[self.write] * 6,
            *[self.truncate] * 2,
            *[self.move] * 3,
            *[self.remove] * 2,
            self.link,
            self.make_directory,
            self.remove_directory,
            self.attributes,
            *[self.fsync] * 2,
            self.commit,
            self.sync,
            self.sync_while_writing,
            self.evict,
            self.evict,
        ]

    async def step(self) -> None:
        """Do something."""
        await self.rng.choice(self.steps)()

    def _paths(self, file_type: int) -> list[str]:
        photo = self.program.oracle.last
        return sorted(
            photo.path(place).decode()
            for place, ino in photo.names.items()
            if stat.S_IFMT(photo.nodes[ino].mode) == file_type
        )

    def _file(self) -> str | None:
        paths = self._paths(stat.S_IFREG)
        return self.rng.choice(paths) if paths else None

    def _free_name(self) -> str:
        directory = self.rng.choice(["", *self._paths(stat.S_IFDIR)])
        taken = {*self._paths(stat.S_IFREG), *self._paths(stat.S_IFDIR)}
        while True:
            name = f"n{self.rng.randrange(30)}"
            path = f"{directory}/{name}" if directory else name
            if path not in taken:
                return path

    async def write(self) -> None:
        """Some file, old or new; at its start, at its end, inside, behind its end."""
        path = self._file() if self.rng.random() < 0.6 else None
        path = path or self._free_name()
        size, length = self._size(path), self.rng.choice((1, 700, 5_000, 66_000, 150_000))
        offset = self.rng.choice((0, size, size // 2, size + self.rng.randrange(90_000)))
        await self.program.write(path, noise(self.rng.getrandbits(30), length), offset)

    def _size(self, path: str) -> int:
        photo = self.program.oracle.last
        sizes = [
            size_of(photo.nodes[ino].content)
            for place, ino in photo.names.items()
            if photo.path(place).decode() == path
        ]
        return sizes[0] if sizes else 0

    async def truncate(self) -> None:
        """Shorter, longer, empty."""
        path = self._file()
        if path is not None:
            size = self._size(path)
            sizes = (0, size // 2, size + self.rng.randrange(80_000), max(0, size - 1))
            await self.program.truncate(path, self.rng.choice(sizes))

    async def move(self) -> None:
        """Rename a file, to a free name or over another file; or a directory."""
        if self.rng.random() < 0.2 and (directories := self._paths(stat.S_IFDIR)):
            old = self.rng.choice(directories)
            new = self._free_name()
            if not new.startswith(f"{old}/"):
                self.program.rename(old, new)
            return
        old_file, target = self._file(), self._file() if self.rng.random() < 0.5 else None
        if old_file is not None and old_file != target:
            photo = self.program.oracle.last
            paths = {photo.path(place).decode(): ino for place, ino in photo.names.items()}
            if target is None or paths[old_file] != paths[target]:
                self.program.rename(old_file, target or self._free_name())

    async def remove(self) -> None:
        """Unlink."""
        if (path := self._file()) is not None:
            self.program.unlink(path)

    async def link(self) -> None:
        """Hard link."""
        if (path := self._file()) is not None:
            self.program.link(path, self._free_name())

    async def make_directory(self) -> None:
        """Few levels, few directories."""
        if len(self._paths(stat.S_IFDIR)) < 5:
            self.program.mkdir(self._free_name())

    async def remove_directory(self) -> None:
        """An empty one."""
        photo = self.program.oracle.last
        parents = {parent for parent, _ in photo.names}
        for place, ino in photo.names.items():
            if stat.S_ISDIR(photo.nodes[ino].mode) and ino not in parents:
                self.program.rmdir(photo.path(place).decode())
                return

    async def attributes(self) -> None:
        """chmod, setxattr."""
        if (path := self._file()) is not None:
            self.program.chmod(path, self.rng.choice((0o600, 0o644, 0o755)))
            self.program.set_xattr(path, noise(self.rng.getrandbits(30), 9))

    async def fsync(self) -> None:
        """One file."""
        if (path := self._file()) is not None:
            await self.program.fsync(path)

    async def commit(self) -> None:
        """Group commit."""
        self.program.commit()

    async def sync(self) -> None:
        """To tape."""
        await self.program.sync()

    async def sync_while_writing(self) -> None:
        """To tape, and more changes meanwhile."""
        quiet = [self.write, self.truncate, self.move, self.remove, self.fsync, self.attributes]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.program.sync)
            for _ in range(self.rng.randrange(6)):
                await trio.lowlevel.checkpoint()
                await self.rng.choice(quiet)()

    async def evict(self) -> None:
        """Drop caches."""
        self.program.evict()


class Life:
    """One mount: judges what the last crash left, does something, and dies."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.die_at = rng.randrange(20, 250)
        # What the crash left, and what may be found in it; none after an orderly end.
        self.remains: Remains | None = None
        self.oracle = world.oracle

    def _look(self, _where: str) -> None:
        if self.remains is None and self.world.point_count >= self.die_at:
            self.die()

    def die(self) -> None:
        """The crash happens now; what the world does afterwards does not count."""
        self.remains = self.rng.choice(list(self.world.remains()))
        self.oracle = self.world.oracle.frozen()

    async def run(self, *, tape_alone: bool, power_lost: bool) -> None:
        """`tape_alone`, `power_lost`: how the life before ended."""
        world, rng = self.world, self.rng
        world.begin_mount()
        async with world.rig.mounted() as user:
            found = await photograph(user)
            if tape_alone:
                reason = world.oracle.judge_tape_alone(found)
            else:
                reason = world.oracle.judge_same_host(found, power_lost=power_lost)
            assert reason is None, reason
            world.oracle = world.oracle.after_crash(found)
            world.at_point = self._look
            chance = Chance(rng, Program(user, world.oracle))
            for _ in range(rng.randrange(5, 40)):
                if self.remains is not None:
                    raise Crash
                await chance.step()
            if self.remains is None and rng.random() < 0.7:
                self.die()
            if self.remains is not None:
                raise Crash
        if self.remains is None:
            world.oracle.synced(world.oracle.now)
            self.oracle = world.oracle


@pytest.mark.parametrize("seed", [*KNOWN, *range(SEED * 1000, SEED * 1000 + PROGRAMS)])
def test_random_programs_survive(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    config = Config(
        settle_s=0.0,
        idle_s=3600.0,
        commit_s=3600.0,
        checkpoint_segments=rng.choice((2, 32)),
        segment_members_max=rng.choice((2, 50_000)),
        # Every other program ends its mounts with closings wherever that may be.
        small_checkpoint_bytes=0 if seed % 2 else 8 << 20,
    )
    with scratch() as directory, logs_expected():
        (directory / "0").mkdir()
        rig = Rig(directory / "0", config=config)
        trio.run(rig.format)
        oracle, end = Oracle(Photo()), ""
        for number_of_life in range(1, LIVES + 1):
            with stopped_world(rig, oracle, monkeypatch) as world:
                life = Life(world, rng)
                run = functools.partial(
                    life.run, tape_alone=end.startswith("host lost"), power_lost=end == "power lost"
                )
                trio.run(run)
            oracle, end = life.oracle, life.remains.kind if life.remains else "unmounted"
            print(f"life {number_of_life}: {world.point_count} points, {end}")
            if life.remains is not None:
                rig = life.remains.lay_out(rig, directory / str(number_of_life))
                shutil.rmtree(directory / str(number_of_life - 1), ignore_errors=True)
