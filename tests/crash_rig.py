"""Stopping the world: at every SCSI command and every commit, look at what a crash there leaves.

One run of a workload passes hundreds of points. At each, everything that would outlive a crash is
copied while nothing moves; the copies are mounted on the spot, in a thread and a trio run of their
own, and judged by the oracle. The workload then goes on as if nothing had happened.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from oracle import Oracle, Photo, differences, photograph
from volume_rig import dump

from tapefs import telemetry
from tapefs.archive import spool as spool_module
from tapefs.catalog.database import Database, fold_log
from tapefs.emulator import tap
from tapefs.emulator.cartridge_memory import memory_path
from tapefs.emulator.transport import TargetTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from volume_rig import Rig

    from tapefs.emulator.target import Target
    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import Completion, DataBuffer


_MEMORY = Path("/dev/shm")


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for a moment; in memory where there is such a place, so that nobody waits."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="tapefs-crash-", dir=place))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def logs_expected(up_to: int = logging.WARNING) -> Iterator[None]:
    """What a crash leaves is worth warnings, what a fault does is worth errors."""
    level = telemetry.LOGGER.level
    telemetry.LOGGER.setLevel(up_to + 1)
    try:
        yield
    finally:
        telemetry.LOGGER.setLevel(level)


class WatchedTransport(TargetTransport):
    """A wire at which the world stops before and after every command."""

    def __init__(self, target: Target, world: World, *, paced: bool = False) -> None:
        super().__init__(target, paced=paced)
        self._world = world
        world.target = target

    def _carry_out(self, command: Command, data: DataBuffer | bytes | None) -> Completion:
        self._world.stop(f"before {command.name}")
        completion = super()._carry_out(command, data)
        self._world.stop(f"after {command.name}")
        return completion


@dataclass(frozen=True, slots=True)
class Remains:
    """What a crash left: files of the state directory (None: the host is gone), and the tape."""

    kind: str
    files: dict[str, bytes] | None
    tape: bytes
    chip: bytes

    @property
    def key(self) -> tuple[bool, bytes]:
        """The same for the same bytes."""
        digest = hashlib.blake2b(self.tape)
        for name, data in sorted((self.files or {}).items()):
            digest.update(f"{name} {len(data)} ".encode())
            digest.update(data)
        return self.kind == "power lost", digest.digest()

    def lay_out(self, rig: Rig, directory: Path) -> Rig:
        """A shelf at `directory` with these remains."""
        twin = copy.copy(rig)
        twin.directory, twin.tap, twin.state = (
            directory,
            directory / "cartridge.tap",
            directory / "state",
        )
        directory.mkdir(parents=True)
        twin.tap.write_bytes(self.tape)
        memory_path(twin.tap).write_bytes(self.chip)
        for name, data in (self.files or {}).items():
            path = twin.state / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        twin.wire = TargetTransport
        return twin


class World:
    """Watches one rig. `oracle` must follow what the workload does."""

    def __init__(self, rig: Rig, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig = rig
        self.oracle = oracle
        self.target: Target | None = None
        self.points = Counter[str]()
        self.failures: list[str] = []
        self.examined_count = 0
        # What is to be done at a point, with its name.
        self.at_point: Callable[[str], None] = lambda _: None
        self._stopped = False
        self._applying = False
        self._seen: set[Any] = set()
        self._durable: dict[str, bytes] = {}
        self._descriptors: dict[tuple[str, int], int] = {}
        rig.wire = lambda target: WatchedTransport(target, self)
        self._watch_commits(monkeypatch)
        self._watch_durability(monkeypatch)

    # -- points

    @property
    def point_count(self) -> int:
        """Points passed so far."""
        return self.points.total()

    def stop(self, name: str) -> None:
        """A point: the world stands still while it is looked at."""
        if self._stopped or (self._applying and threading.current_thread() is self._main):
            return
        self.points[name] += 1
        self._stopped = True
        try:
            self.at_point(f"{name} (point {self.point_count})")
        finally:
            self._stopped = False

    def _watch_commits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._main = threading.current_thread()
        begin, commit, rollback = Database.begin, Database.commit, Database.rollback

        def watched_begin(database: Database) -> None:
            begin(database)
            if self._is_ours(database) and database.path.name == "tape.sqlite":
                self._applying = True

        def watched_commit(database: Database) -> None:
            if not self._is_ours(database):
                commit(database)
                return
            name = f"commit of {database.path.name}"
            self._stop_here(f"before {name}")
            commit(database)
            if database.path.name == "tape.sqlite":
                self._applying = False
            self._stop_here(f"after {name}")

        def watched_rollback(database: Database) -> None:
            rollback(database)
            if self._is_ours(database) and database.path.name == "tape.sqlite":
                self._applying = False

        monkeypatch.setattr(Database, "begin", watched_begin)
        monkeypatch.setattr(Database, "commit", watched_commit)
        monkeypatch.setattr(Database, "rollback", watched_rollback)

    def _is_ours(self, database: Database) -> bool:
        return self.rig.state in database.path.parents

    def _stop_here(self, name: str) -> None:
        if threading.current_thread() is self._main:
            self.stop(name)
        else:
            trio.from_thread.run_sync(self._stop_applying, name)

    def _stop_applying(self, name: str) -> None:
        applying, self._applying = self._applying, False
        self.stop(name)
        self._applying = applying

    # -- what lasts

    def _watch_durability(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep, beside every file, what of it would survive power loss in the worst case.

        Data lasts once synced; cuts and removals last at once.
        """
        fsync, fdatasync, ftruncate = os.fsync, os.fdatasync, os.ftruncate
        fallocate = spool_module._libc.fallocate

        def watched_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self._synced(descriptor)

        def watched_fdatasync(descriptor: int) -> None:
            fdatasync(descriptor)
            self._synced(descriptor)
            if "spool" in (self._name_of(descriptor) or ""):
                self._stop_here("after sync of a spool file")

        def watched_ftruncate(descriptor: int, size: int) -> None:
            ftruncate(descriptor, size)
            name = self._name_of(descriptor)
            if name in self._durable:
                self._durable[name] = self._durable[name][:size]

        def watched_fallocate(descriptor: int, mode: int, start: int, length: int) -> int:
            name = self._name_of(descriptor)
            if name in self._durable:
                data = bytearray(self._durable[name])
                end = min(start + length, len(data))
                data[start:end] = bytes(max(0, end - start))
                self._durable[name] = bytes(data)
            return int(fallocate(descriptor, mode, ctypes.c_int64(start), ctypes.c_int64(length)))

        def watched_fold_log(path: Path) -> None:
            # SQLite waits for the log to be on disk before it folds the first page.
            fold_log(path)
            log = path.with_name(f"{path.name}-wal")
            if self.rig.state in path.parents and not self._stopped and log.exists():
                self._durable[str(log.relative_to(self.rig.state))] = self._read(log)

        self._watch_spool(monkeypatch)
        monkeypatch.setattr("tapefs.catalog.live.fold_log", watched_fold_log)
        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "fdatasync", watched_fdatasync)
        monkeypatch.setattr(os, "ftruncate", watched_ftruncate)
        monkeypatch.setattr(spool_module._libc, "fallocate", watched_fallocate)

    def _watch_spool(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """System calls that change what the spool holds are points as well."""
        pwrite, unlink = os.pwrite, os.unlink

        def watched_pwrite(descriptor: int, data: bytes, offset: int) -> int:
            if "spool" not in (self._name_of(descriptor) or ""):
                return pwrite(descriptor, data, offset)
            self._stop_here("before write to the spool")
            written = pwrite(descriptor, data, offset)
            self._stop_here("after write to the spool")
            return written

        def watched_unlink(path: Any, *, dir_fd: int | None = None) -> None:
            if self._stopped or self.rig.state not in Path(path).parents:
                unlink(path, dir_fd=dir_fd)
                return
            self._stop_here("before removal of a file")
            unlink(path, dir_fd=dir_fd)
            self._durable.pop(str(Path(path).relative_to(self.rig.state)), None)
            self._stop_here("after removal of a file")

        monkeypatch.setattr(os, "pwrite", watched_pwrite)
        monkeypatch.setattr(os, "unlink", watched_unlink)

    def _name_of(self, descriptor: int) -> str | None:
        # Also while the world stands still: what a worker is at then goes on, and counts.
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        root = f"{self.rig.state}/"
        return path.removeprefix(root) if path.startswith(root) else None

    def _synced(self, descriptor: int) -> None:
        name = self._name_of(descriptor)
        path = None if name is None else self.rig.state / name
        if name is not None and path is not None and path.is_file():
            self._durable[name] = path.read_bytes() if "spool" in name else self._read(path)

    def _read(self, path: Path) -> bytes:
        """A database file's bytes. Its descriptor stays open: closing it drops SQLite's locks."""
        number = path.stat().st_ino
        descriptor = self._descriptors.get((str(path), number))
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY)
            self._descriptors[str(path), number] = descriptor
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def begin_mount(self) -> None:
        """Nothing is mounted now: whatever is on the disk has had time to become safe."""
        self.close()
        self._durable = {
            str(path.relative_to(self.rig.state)): path.read_bytes()
            for path in self.rig.state.rglob("*")
            if path.is_file()
        }

    def close(self) -> None:
        """Nothing is mounted any more."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _files(self) -> dict[str, bytes]:
        found = {}
        for path in sorted(self.rig.state.rglob("*")):
            name = str(path.relative_to(self.rig.state))
            if not path.is_file() or name.endswith(("-shm", ".lock")):
                continue
            with suppress(FileNotFoundError):
                found[name] = self._read(path) if ".sqlite" in path.name else path.read_bytes()
        return found

    def _durable_files(self, files: dict[str, bytes]) -> dict[str, bytes]:
        lasting = {}
        for name, data in files.items():
            if name.endswith(".sqlite"):
                lasting[name] = data
            elif name in self._durable:
                lasting[name] = self._durable[name]
        return lasting

    def _tapes(self) -> dict[str, bytes]:
        """The tape without what is in the drive's buffer, with half of it, with all of it."""
        base = self.rig.tap.read_bytes() if self.rig.tap.exists() else b""
        deck = self.target._unit.deck if self.target is not None else None
        items = list(deck._buffer._items) if deck is not None else []
        tapes = {"buffer lost": base}
        for name, count in (("half of the buffer kept", len(items) // 2), ("buffer kept", None)):
            pieces = [base]
            for item in items[:count]:
                if isinstance(item, int):
                    pieces.append(tap.pack_filemarks(item))
                else:
                    word = tap.pack_word(len(item))
                    pieces += [word, bytes(item), b"\0" * (len(item) & 1), word]
            tapes[name] = b"".join(pieces)
        return tapes

    def remains(self) -> Iterator[Remains]:
        """Every way in which the world may have ended here."""
        files, chip = self._files(), memory_path(self.rig.tap).read_bytes()
        tapes = self._tapes()
        for buffer, tape in tapes.items():
            yield Remains(f"daemon killed, {buffer}", files, tape, chip)
        yield Remains("power lost", self._durable_files(files), tapes["buffer lost"], chip)
        for buffer, tape in tapes.items():
            yield Remains(f"host lost, {buffer}", None, tape, chip)

    # -- judging

    def examine(self, where: str) -> None:
        """Mount every kind of remains, and note what is wrong with them."""
        for remains in list(self.remains()):
            window = (self.oracle.now, self.oracle.kept, self.oracle.on_tape)
            key = (remains.files is None, *remains.key, window)
            if key in self._seen:
                continue
            self._seen.add(key)
            self.examined_count += 1
            reason = self._in_own_run(remains)
            if reason is not None:
                self.failures.append(f"{remains.kind}, {where}: {reason}")

    def _in_own_run(self, remains: Remains) -> str | None:
        outcome: list[str | None] = []

        def run(directory: Path) -> None:
            try:
                rig = remains.lay_out(self.rig, directory / "shelf")
                outcome.append(trio.run(judge, rig, remains, self.oracle))
            except BaseException as exc:  # noqa: BLE001 - a mount that fails is a finding
                outcome.append(f"{type(exc).__name__}: {_innermost(exc)}")

        with scratch() as directory, logs_expected():
            thread = threading.Thread(target=run, args=(directory,))
            thread.start()
            thread.join()
        return outcome[0]


def _innermost(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    place = exc.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    line = f" ({place.tb_frame.f_code.co_qualname}:{place.tb_lineno})" if place else ""
    return f"{exc!r}{line}"


async def judge(rig: Rig, remains: Remains, oracle: Oracle) -> str | None:
    """Mount what a crash left, without any repair; None when all that was promised is there."""
    tape_before = rig.directory / "before.tap"
    async with rig.mounted() as user:
        found = await photograph(user)
        kept_rows = dump(user.volume.view)
        shutil.copy(rig.tap, tape_before)
    if remains.files is None:
        reason = oracle.judge_tape_alone(found)
    else:
        reason = oracle.judge_same_host(found, power_lost=remains.kind == "power lost")
    if reason is not None:
        return reason
    async with rig.mounted(read_only=True) as user:
        finalized_rows = dump(user.volume.view)
    alone, rows = await _tape_alone(rig, "after")
    if (reason := differences(found, alone)) is not None:
        return f"the tape alone shows another tree than the mount before: {reason}"
    if rows != finalized_rows:
        return f"the view kept and the view rebuilt differ: {_odd_rows(finalized_rows, rows)}"
    tape_files = kept_rows[4]
    if tape_files and tape_files[-1][1] == "torn":
        return None  # a host that has no catalog salvages it, this one did not need to
    shutil.copy(tape_before, rig.tap)
    _, rows = await _tape_alone(rig, "before")
    if rows != kept_rows:
        return f"before finalizing, kept and rebuilt view differ: {_odd_rows(kept_rows, rows)}"
    return None


async def _tape_alone(rig: Rig, name: str) -> tuple[Photo, list[Any]]:
    async with rig.mounted(state=rig.directory / f"scratch-{name}", read_only=True) as user:
        return await photograph(user), dump(user.volume.view)


def _odd_rows(one: list[Any], other: list[Any]) -> str:
    pairs = zip(one, other, strict=True)
    odd = [row for left, right in pairs for row in {*left} ^ {*right}]
    return repr(odd)[:600]


@contextmanager
def stopped_world(rig: Rig, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world to run a workload in; complains at the end about everything that was found."""
    with monkeypatch.context() as patches:
        world = World(rig, oracle, patches)
        try:
            yield world
        finally:
            world.close()
