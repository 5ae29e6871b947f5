"""One simulated host and tape drive through years of use: virtual time, seeded luck, no threads.

A *life* is one mount: it begins with what the last one left, is judged, used, troubled, and ends in
order or in a crash. Time passes as fast as the computer can, and the same seed gives the same
events, commands and bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import random
import shutil
import uuid
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
import trio.testing
from crash_rig import Remains, WatchedTransport, World, stopped_world
from oracle import Oracle, Photo, differences, photograph
from sim_model import Mismatch, Model
from sim_users import Company, User
from volume_rig import Rig, dump
from volume_rig import User as Rigged

from tapefs import telemetry
from tapefs.archive.consistency import disagreements
from tapefs.archive.tape_attributes import TapeAttributes
from tapefs.archive.tree import Tree
from tapefs.config import Config
from tapefs.emulator.transport import TargetTransport
from tapefs.errors import Fault, NotFinalized, TapefsError
from tapefs.fuse.operations import Operations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import pytest

    from tapefs.emulator.target import Target
    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import Completion, DataBuffer

HOUR_S = 3600.0
# 2023-11-14, when simulated time begins.
_BIRTHDAY_NS = 1_700_000_000 * 10**9
_USERS = 3
# With less room than that, a request may fail for want of it.
_NEARLY_FULL_BYTES = 8 << 20


class Over(Exception):
    """The life ends here."""


class Diary:
    """Everything that happens, as one hash; `keep` lines of it for a person."""

    def __init__(self, *, keep: bool = False) -> None:
        self._hash = hashlib.blake2b(digest_size=12)
        self._keep = keep
        self.lines: list[str] = []
        self.count = 0

    def note(self, *words: object) -> None:
        """Something happened."""
        line = f"{trio.current_time():.6f} {words!r}"
        self._hash.update(line.encode())
        self.count += 1
        if self._keep:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """The same for the same events."""
        return self._hash.hexdigest()


class WallClock:
    """Nanoseconds since 1970 along trio's clock; no two readings are the same."""

    def __init__(self) -> None:
        self._base_ns = self._last_ns = _BIRTHDAY_NS

    def __call__(self) -> int:
        now_ns = self._base_ns + int(trio.current_time() * 1e9)
        self._last_ns = max(self._last_ns + 1, now_ns)
        return self._last_ns

    def next_run(self) -> None:
        """Trio's clock starts again from zero."""
        self._base_ns = self._last_ns + 10**9


class SimulatedWire(WatchedTransport):
    """A wire in virtual time; the diary has all commands."""

    def __init__(self, target: Target, world: World, diary: Diary) -> None:
        super().__init__(target, world, paced=True)
        self._diary = diary

    def _carry_out(self, command: Command, data: DataBuffer | bytes | None) -> Completion:
        checksum = zlib.crc32(data) if data is not None else 0
        completion = super()._carry_out(command, data)
        sent = command.pack().hex()
        self._diary.note(sent, checksum, completion.good, str(completion.sense))
        return completion


class BugWatch(logging.Handler):
    """Notes what the daemon itself calls a bug, while it lives."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.bugs: list[str] = []
        self.life: Life | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Note it if there is a traceback."""
        alive = self.life is not None and self.life.remains is None
        if alive and record.exc_info:
            self.bugs.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


@dataclass
class Tally:
    """What a seed went through."""

    hours: float = 0.0
    lives: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    trouble: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Sum up."""
        self.hours += other.hours
        self.lives += other.lives
        self.operations += other.operations
        self.ends += other.ends
        self.trouble += other.trouble

    def __str__(self) -> str:
        return (
            f"{self.hours:,.0f} hours, {self.lives} mounts, {self.operations.total():,}"
            f" operations, ends {dict(self.ends)}, trouble {dict(self.trouble)}"
        )


class Life:
    """One mount."""

    def __init__(self, years: Years, world: World) -> None:
        self.years = years
        self.world = world
        self.rng = years.rng
        self.diary = years.diary
        # What a crash left, and the oracle at that moment.
        self.remains: Remains | None = None
        self.oracle = world.oracle
        self.judged = False
        self.wire: SimulatedWire | None = None
        self._is_pulled = False
        self._scope = trio.CancelScope()
        self._session = trio.CancelScope()
        self._points_left: int | None = None
        self._company: Company | None = None
        self._troubled = False
        rig = world.rig
        rig.wire = self._connect
        rig.clock_ns = years.clock_ns
        world.at_point = self._look

    def _connect(self, target: Target) -> TargetTransport:
        self.wire = SimulatedWire(target, self.world, self.diary)
        if self._is_pulled:
            self.wire.unplug()
        return self.wire

    def _pull(self) -> None:
        assert self.wire is not None
        self.wire.unplug()
        self._is_pulled = True

    def _look(self, where: str) -> None:
        self.diary.note(where)
        if self._points_left is not None and self.remains is None:
            self._points_left -= 1
            if self._points_left <= 0:
                self._die()

    def _die(self) -> None:
        """The crash happens now; what the daemon does afterwards does not count."""
        if self._company is not None:
            self._company.world_ends()
        kind = self.rng.choice(("daemon killed", "power lost", "host lost"))
        found = [remains for remains in self.world.remains() if remains.kind.startswith(kind)]
        self.remains = self.rng.choice(found)
        self.oracle = self.world.oracle.frozen()
        self.diary.note("the world ends", self.remains.kind)
        self._pull()
        self._scope.cancel()

    async def run(self) -> None:
        """Mount, judge, use, end."""
        if self.rng.random() < 0.15:
            self._points_left = self.rng.randrange(1, 60)
        try:
            with self._scope:
                async with self.world.rig.mounted() as user:
                    await self._in_mount(user)
        except BaseException:
            # Whatever a dead daemon stumbled over is nobody's business.
            if self.remains is None:
                raise
        finally:
            self.years.tally.hours += trio.current_time() / HOUR_S
        if self.remains is None:
            self.world.oracle.synced(self.world.oracle.now)
            self.oracle = self.world.oracle

    async def _in_mount(self, user: Rigged) -> None:
        self._judge(await photograph(user), user)
        oracle = self.world.oracle
        model = Model(oracle, user.volume.catalog)
        volume = user.volume
        tape = TapeAttributes(volume.catalog, volume.view, volume.contents)
        operations = Operations(volume.catalog, volume.contents, _Sync(user), tape)
        operations.tree = Tree(
            user.volume.catalog,
            operations.references.unreferenced,
            clock_ns=self.years.clock_ns,
        )
        self._company = Company(
            operations,
            model,
            functools.partial(user.evict_everything),
            lambda: self._excused(user),
            self.diary.note,
        )
        with trio.move_on_after(self.rng.expovariate(1 / (1500 * HOUR_S))) as self._session:
            await self._use(user)
        self._troubled |= bool(self._points_left)
        await self._end(user, operations)

    def _judge(self, found: Photo, user: Rigged) -> None:
        years, oracle = self.years, self.world.oracle
        if years.tape_alone:
            reason = oracle.judge_tape_alone(found)
        else:
            reason = oracle.judge_same_host(found, power_lost=years.power_lost)
        if reason is not None:
            raise Mismatch(reason)
        _check(user)
        years.tape_alone = years.power_lost = False
        self.judged = True
        self.world.oracle = oracle.after_crash(found)

    async def _use(self, user: Rigged) -> None:
        assert self._company is not None
        async with trio.open_nursery() as nursery:
            for number in range(_USERS):
                rng = random.Random(self.rng.getrandbits(64))
                nursery.start_soon(User(number, self._company, rng).live)
            rng = random.Random(self.rng.getrandbits(64))
            nursery.start_soon(self._company.open_now_and_then, rng)
            nursery.start_soon(self._make_trouble, user.target)
            nursery.start_soon(self._arm)

    async def _arm(self) -> None:
        """Choose when to die: at one of the next points after some moment, if at all."""
        if self.rng.random() < 0.9:
            await trio.sleep(self.rng.expovariate(1 / (400 * HOUR_S)))
            self._points_left = self.rng.randrange(1, 400)

    async def _make_trouble(self, target: Target) -> None:
        """Things that happen to drives."""
        kinds: list[Callable[[Target], Awaitable[None]]] = [
            self._cut_power,
            self._pull_cable,
            self._spoil_reading,
            self._spoil_writing,
        ]
        while True:
            await trio.sleep(self.rng.expovariate(1 / (400 * HOUR_S)))
            kind = self.rng.choice(kinds)
            self._troubled = True
            self.years.tally.trouble[kind.__name__.lstrip("_")] += 1
            self.diary.note(kind.__name__)
            await kind(target)
            if self.rng.random() < 0.7:
                # Somebody looks at the status, and mounts again.
                await trio.sleep(self.rng.expovariate(1 / (8 * HOUR_S)))
                self._session.cancel()

    async def _cut_power(self, target: Target) -> None:
        target.power_cut()

    async def _pull_cable(self, target: Target) -> None:
        self._pull()
        if self.rng.random() < 0.3:
            target.power_cut()
        await trio.sleep(self.rng.expovariate(1 / (2 * HOUR_S)))
        self._is_pulled = self.remains is not None

    async def _spoil_reading(self, target: Target) -> None:
        cartridge = target.cartridge
        assert cartridge is not None
        for _ in range(4):
            block = self.rng.randrange(max(1, cartridge.object_count))
            target.faults.unreadable[block] = self.rng.choice((1, 2, 5))

    async def _spoil_writing(self, target: Target) -> None:
        cartridge = target.cartridge
        assert cartridge is not None
        block = cartridge.object_count + self.rng.randrange(20)
        target.faults.unwritable[block] = self.rng.choice((1, 2, 1000))

    def _excused(self, user: Rigged) -> bool:
        """Whether a request may fail for a reason that users know."""
        free = user.volume.account.free_bytes()
        return self._troubled or self.remains is not None or free < _NEARLY_FULL_BYTES

    async def _end(self, user: Rigged, operations: Operations) -> None:
        """Unmount. What cannot go to tape stays, and the next mount has it."""
        await operations.finish()
        if self.remains is not None:
            raise Over
        now = self.world.oracle.now
        try:
            await user.volume.finalize()
        except TapefsError as error:
            if not self._excused(user) or error.fault is Fault.BUG:
                raise
            self.diary.note("not finalized", str(error))
            # The daemon ends; its process has done so in order, but for the tape.
            self._points_left = 0
            if self.remains is None:
                self.world.oracle.kept = max(self.world.oracle.kept, now)
                self.remains = next(iter(self.world.remains()))
                self.oracle = self.world.oracle.frozen()
            raise Over from error
        _check(user)


class _Sync:
    """What `fsync` of the root directory stands for."""

    def __init__(self, user: Rigged) -> None:
        self._user = user

    async def sync(self) -> None:
        """Everything to tape."""
        await self._user.sync()


def _check(user: Rigged) -> None:
    """Catalog, spool and tape agree."""
    volume = user.volume
    volume.catalog.commit()
    found = list(disagreements(volume.catalog, volume.view, volume.spool))
    if found:
        raise Mismatch("; ".join(found[:5]))


class Years:
    """All that one seed goes through."""

    def __init__(self, seed: int, directory: Path, *, keep_diary: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.diary = Diary(keep=keep_diary)
        self.tally = Tally()
        self.clock_ns = WallClock()
        # How the life before ended, until a mount was judged.
        self.tape_alone = self.power_lost = False
        self._directory = directory
        self._bug_watch = BugWatch()
        self._luck = random.Random(self.rng.getrandbits(64))

    def run(self, monkeypatch: pytest.MonkeyPatch, life_count: int) -> None:
        """Live. Raises whatever is wrong."""
        telemetry.LOGGER.addHandler(self._bug_watch)
        core: Any = trio._core._run
        core._r.seed(self.seed)
        try:
            with monkeypatch.context() as patches:
                patches.setattr(core, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
                patches.setattr(trio.to_thread, "run_sync", self._inline)
                self._live(monkeypatch, life_count)
        finally:
            telemetry.LOGGER.removeHandler(self._bug_watch)

    async def _inline(self, function: Callable[..., Any], *arguments: Any, **_options: Any) -> Any:
        """A worker's visit, without a thread: it takes a while, and others run before and after."""
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            await trio.sleep(self._luck.choice((0.0, 0.001, 0.02)))
            try:
                return function(*arguments)
            finally:
                await trio.lowlevel.checkpoint()

    def _live(self, monkeypatch: pytest.MonkeyPatch, life_count: int) -> None:
        rig = self._new_rig()
        self._in_trio(rig.format)
        oracle = Oracle(Photo())
        for number in range(1, life_count + 1):
            with stopped_world(rig, oracle, monkeypatch) as world:
                world.begin_mount()
                life = self._bug_watch.life = Life(self, world)
                self._in_trio(life.run)
            if self._bug_watch.bugs:
                raise Mismatch(f"the daemon found bugs: {self._bug_watch.bugs}")
            oracle = life.oracle
            self.tally.lives += 1
            rig = self._after(life, number)
        self._in_trio(functools.partial(self._last_words, rig, oracle))

    def _after(self, life: Life, number: int) -> Rig:
        """What the next life finds."""
        rig, remains = life.world.rig, life.remains
        if life._company is not None:
            self.tally.operations += life._company.steps
        kind = remains.kind if remains is not None else "unmounted"
        if remains is None and self.rng.random() < 0.3:
            shutil.rmtree(rig.state)
            kind = "unmounted, host lost"
        self.tally.ends[kind.partition(",")[0] if remains else kind] += 1
        self.tape_alone |= "host lost" in kind
        self.power_lost |= kind == "power lost"
        if remains is not None:
            following = remains.lay_out(rig, self._directory / str(number))
            shutil.rmtree(rig.directory)
            rig = following
        return rig

    def _new_rig(self) -> Rig:
        rng = self.rng
        directory = self._directory / "0"
        directory.mkdir()
        config = Config(
            settle_s=rng.choice((0.0, 2.0)),
            idle_s=rng.choice((5.0, 60.0, 3600.0)),
            commit_s=rng.choice((0.1, 5.0)),
            checkpoint_segments=rng.choice((2, 32)),
            segment_members_max=rng.choice((2, 50_000)),
            # In every other life story a generation ends in a closing wherever it may.
            small_checkpoint_bytes=0 if self.seed % 2 else 8 << 20,
            spool_bytes=16 << 20,
            # Looking after a drive every few seconds would be all that happens.
            drive_check_s=4 * HOUR_S,
            drive_poll_s=600.0,
            part_bytes_min=1 << 20,
        )
        personality = rng.choice(("lto5", "ait3", "dat72"))
        rig = Rig(directory, personality, rng.choice((64, 256, 1024)) << 20, config)
        volume = uuid.UUID(int=rng.getrandbits(128), version=4)
        rig.label = dataclasses.replace(rig.label, volume_uuid=volume, created_ns=_BIRTHDAY_NS)
        return rig

    def _in_trio(self, function: Callable[[], Awaitable[None]]) -> None:
        self.clock_ns.next_run()
        trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0))

    async def _last_words(self, rig: Rig, oracle: Oracle) -> None:
        """The tape alone shows in the end what the last mount showed."""
        rig.wire = functools.partial(TargetTransport, paced=True)
        self._is_full = False
        try:
            await self._compare_with_tape(rig, oracle)
        except* NotFinalized:
            # What was changed last has no room on the tape any more.
            if not self._is_full:
                raise

    async def _compare_with_tape(self, rig: Rig, oracle: Oracle) -> None:
        async with rig.mounted() as user:
            self._is_full = user.volume.account.free_bytes() < _NEARLY_FULL_BYTES
            found = await photograph(user)
            if self.tape_alone:
                reason = oracle.judge_tape_alone(found)
            else:
                reason = oracle.judge_same_host(found, power_lost=self.power_lost)
            if reason is not None:
                raise Mismatch(reason)
        async with rig.mounted(read_only=True) as user:
            rows = dump(user.volume.view)
        async with rig.mounted(state=rig.directory / "elsewhere", read_only=True) as user:
            reason = differences(found, await photograph(user))
            if reason is not None:
                raise Mismatch(f"the tape alone shows another tree: {reason}")
            if dump(user.volume.view) != rows:
                raise Mismatch("the view kept and the view rebuilt differ")
            self.diary.note(repr(rows))
