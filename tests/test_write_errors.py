"""A write fails at every place and in every way: nothing acknowledged is lost, and it goes on.

What was sent since the last flush is written again further on. When the tape takes nothing more,
the volume turns read-only, its data stays readable, and the spool keeps the rest.
`TAPEFS_CRASH_POINTS=all` tries every write command, else a spread of them.
"""

from __future__ import annotations

import enum
import functools
import logging
import os
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from crash_rig import logs_expected, scratch
from oracle import Oracle, Photo, differences, photograph
from volume_rig import Rig, dump
from workload import Program, noise

from tapefs.archive.archiver import _Request
from tapefs.archive.write_failure import Remedy, remedy
from tapefs.config import Config
from tapefs.drive import TapeDrive
from tapefs.emulator.transport import TargetTransport
from tapefs.errors import DriveFailed, DriveGone, FilesystemError, NotFinalized, TapefsError
from tapefs.scsi.cdb import Rewind, Write6, WriteFilemarks6
from tapefs.scsi.completion import Completion
from tapefs.scsi.sense import Sense, SenseKey, check_condition
from tapefs.usb.transport import WireReset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from volume_rig import User

    from tapefs.archive.resumption import Away
    from tapefs.emulator.target import Target
    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import DataBuffer

EVERY_POINT = os.environ.get("TAPEFS_CRASH_POINTS") == "all"
CONFIG = Config(settle_s=0.0, idle_s=3600.0, commit_s=3600.0, checkpoint_segments=2)


class Failure(enum.Enum):
    """How a write command fails."""

    MEDIUM = "medium error at once"
    DEFERRED = "deferred medium error"
    HARD_END = "hard end with a lost buffer"
    ABORTED = "aborted before it was carried out"
    ABORTED_AFTER = "aborted after it was carried out"


class FailingWire(TargetTransport):
    """Write commands fail from number `at` on, `times` of them."""

    def __init__(self, target: Target, failure: Failure | None, at: int, times: int = 1) -> None:
        super().__init__(target)
        self._failure = failure
        self._failing = range(at, at + times)
        self.count = 0

    def fail_from(self, at: int) -> None:
        """From write `at` on for good."""
        self._failing = range(at, sys.maxsize)

    def _carry_out(self, command: Command, data: DataBuffer | bytes | None) -> Completion:
        if not isinstance(command, Write6 | WriteFilemarks6):
            return super()._carry_out(command, data)
        self.count += 1
        if self._failure is None or self.count not in self._failing:
            return super()._carry_out(command, data)
        size = command.transfer_length_bytes
        if self._failure is Failure.ABORTED_AFTER:
            super()._carry_out(command, data)
        lost = size
        if self._failure not in (Failure.ABORTED, Failure.ABORTED_AFTER):
            deck = self._target._unit.deck
            assert deck is not None
            lost += deck._lose_buffer()
        return Completion(False, memoryview(b""), size, sense_of(self._failure, lost))


def sense_of(failure: Failure, lost_bytes: int) -> Sense:
    """What the drive says."""
    if failure is Failure.HARD_END:
        return Sense(
            SenseKey.VOLUME_OVERFLOW, 0x00, 0x02, end_of_medium=True, information=lost_bytes
        )
    if failure in (Failure.ABORTED, Failure.ABORTED_AFTER):
        return Sense(SenseKey.ABORTED_COMMAND, 0x4B, 0x00)
    deferred = failure is Failure.DEFERRED
    return Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00, information=lost_bytes, deferred=deferred)


async def use(program: Program) -> None:
    """Segments, checkpoints between them, and changes to what is on tape."""
    program.mkdir("d")
    await program.write("d/one", noise(1, 200_000))
    await program.write("two", noise(2, 30_000))
    await program.fsync("two")
    await program.sync()
    await program.write("two", noise(3, 20_000), 15_000)
    await program.write("three", noise(4, 500_000))
    await program.sync()
    await program.write("four", noise(5, 100_000))
    await program.truncate("d/one", 120_000)
    program.link("four", "d/four")
    await program.sync()
    program.rename("d", "e")
    await program.write("five", noise(6, 70_000))
    await program.fsync("five")


async def survive_once(directory: Path, wire: Callable[[Target], TargetTransport]) -> None:
    """No system call notices one failed write, and the tape is complete after unmount."""
    rig = Rig(directory, config=CONFIG)
    await rig.format()
    oracle = Oracle(Photo())
    rig.wire = wire
    with trio.fail_after(60):
        async with rig.mounted() as user:
            await use(Program(user, oracle))
            await user.volume.finalize()
            assert not user.volume.catalog.owes_tape()
            assert user.volume.account.pending_bytes == 0
            oracle.synced(oracle.now)
    rig.wire = TargetTransport
    await tape_alone_shows(rig, oracle)


async def tape_alone_shows(rig: Rig, oracle: Oracle) -> None:
    """The tape without this host says the same as the view that was kept, and all of it."""
    async with rig.mounted(read_only=True) as user:
        kept_rows = dump(user.volume.view)
        found = await photograph(user)
    async with rig.mounted(state=rig.directory / "alone", read_only=True) as user:
        alone = await photograph(user)
        assert dump(user.volume.view) == kept_rows
    assert differences(found, alone) is None, differences(found, alone)
    assert oracle.judge_tape_alone(alone) is None, oracle.judge_tape_alone(alone)


def write_count() -> int:
    """Write commands of a session without any failure."""
    wires: list[FailingWire] = []

    def wire(target: Target) -> FailingWire:
        wires.append(FailingWire(target, None, 0))
        return wires[-1]

    with scratch() as directory:
        trio.run(survive_once, directory, wire)
    return wires[0].count


def complaint(run: Callable[[Path], object], where: str) -> list[str]:
    """What goes wrong in one run."""
    with scratch() as directory:
        try:
            run(directory)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is a finding
            while isinstance(exc, BaseExceptionGroup):
                exc = exc.exceptions[0]
            return [f"{where}: {exc!r}"]
    return []


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.value)
def test_one_write_fails_anywhere(failure: Failure) -> None:
    writes = write_count()
    assert writes > 20
    places = range(1, writes + 1, 1 if EVERY_POINT else 5)
    failures = []
    with logs_expected(up_to=logging.ERROR):
        for at in places:
            wire = functools.partial(FailingWire, failure=failure, at=at)
            failures += complaint(lambda path: trio.run(survive_once, path, wire), f"write {at}")  # noqa: B023
    print(f"{len(places)} of {writes} write commands tried")
    assert not failures, "\n".join(failures)


async def survive_for_good(
    directory: Path, wire: Callable[[Target], FailingWire], writes: list[int]
) -> None:
    """Nothing can be written any more: data stays readable, the spool keeps the rest."""
    rig = Rig(directory, config=CONFIG)
    await rig.format()
    oracle = Oracle(Photo())
    made: list[FailingWire] = []

    def noted(target: Target) -> FailingWire:
        made.append(wire(target))
        if len(made) > 1:
            made[-1].fail_from(1)
        return made[-1]

    rig.wire = noted
    with trio.fail_after(60):
        async with rig.mounted() as user:
            with suppress(TapefsError):
                await use(Program(user, oracle))
            await everything_is_readable(user, oracle)
            with suppress(NotFinalized):
                await user.volume.finalize()
                assert not user.volume.catalog.owes_tape()
            user.crash()
    writes.append(made[0].count)
    # The next mount cannot even close what is torn: then it is one that only reads.
    async with rig.mounted() as user:
        assert oracle.judge_same_host(await photograph(user)) is None
        user.crash()
    rig.wire = TargetTransport
    async with rig.mounted() as user:
        assert oracle.judge_same_host(await photograph(user)) is None
    oracle.synced(oracle.now)
    await tape_alone_shows(rig, oracle)


async def everything_is_readable(user: User, oracle: Oracle) -> None:
    """All names, attributes and bytes, from spool and tape."""
    user.evict_everything()
    found = await photograph(user)
    assert oracle.judge_same_host(found) is None, oracle.judge_same_host(found)


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.value)
def test_writes_fail_for_good_from_anywhere(failure: Failure) -> None:
    places = range(1, write_count() + 1, 1 if EVERY_POINT else 9)
    failures = []
    with logs_expected(up_to=logging.ERROR):
        for at in places:
            writes: list[int] = []
            wire = functools.partial(FailingWire, failure=failure, at=at, times=1000)
            failures += complaint(
                lambda path: trio.run(survive_for_good, path, wire, writes),  # noqa: B023
                f"write {at}",
            )
            # Once for each attempt, and perhaps a filemark behind what is torn: no blind repeats.
            if writes and writes[0] - (at - 1) > 2 * CONFIG.write_attempts_max:
                failures.append(f"write {at}: {writes[0]} writes were sent")
    assert not failures, "\n".join(failures)


async def test_after_too_many_failures_the_volume_is_read_only(tmp_path: Path) -> None:
    rig = Rig(tmp_path, config=CONFIG)
    await rig.format()
    wires: list[FailingWire] = []

    def wire(target: Target) -> FailingWire:
        wires.append(FailingWire(target, Failure.MEDIUM, 1, 1000))
        return wires[-1]

    rig.wire = wire
    with logs_expected(up_to=logging.ERROR):
        async with rig.mounted() as user:
            await user.write("file", noise(1, 100_000))
            with pytest.raises(NotFinalized, match=r"1 files \(100000 bytes\) wait in the spool"):
                await user.sync()
            sent = wires[0].count
            assert sent >= CONFIG.write_attempts_max
            with pytest.raises(FilesystemError, match="cannot be written"):
                await user.write("file", b"more")
            assert await user.read("file") == noise(1, 100_000)
            with pytest.raises(NotFinalized):
                await user.volume.finalize()
            assert wires[0].count == sent, "nothing is written to a volume that is read-only"
            user.crash()
    rig.wire = TargetTransport
    async with rig.mounted() as user:
        await user.sync()
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.read("file") == noise(1, 100_000)


async def test_a_sync_that_waits_through_failures_succeeds(tmp_path: Path) -> None:
    rig = Rig(tmp_path, config=CONFIG)
    await rig.format()
    failing = CONFIG.write_attempts_max - 1
    rig.wire = lambda target: FailingWire(target, Failure.DEFERRED, 1, failing)
    with logs_expected(up_to=logging.ERROR):
        async with rig.mounted() as user:
            await user.write("file", noise(1, 100_000))
            await user.sync()
            assert not user.volume.catalog.owes_tape()
            assert user.volume.contents.admission.closed_reason is None


def condition(key: SenseKey, asc: int = 0, ascq: int = 0, *, deferred: bool = False) -> TapefsError:
    return check_condition(Sense(key, asc, ascq, deferred=deferred))


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (condition(SenseKey.MEDIUM_ERROR, 0x03), Remedy.AGAIN),
        (condition(SenseKey.MEDIUM_ERROR, 0x0C), Remedy.AGAIN),
        (condition(SenseKey.MEDIUM_ERROR, 0x0C, deferred=True), Remedy.AGAIN),
        (condition(SenseKey.MEDIUM_ERROR, 0x50), Remedy.WRITE_NO_MORE),
        (condition(SenseKey.MEDIUM_ERROR, 0x52), Remedy.WRITE_NO_MORE),
        (condition(SenseKey.ABORTED_COMMAND), Remedy.AGAIN),
        (condition(SenseKey.ABORTED_COMMAND, 0x4E), Remedy.WRITE_NO_MORE),
        (condition(SenseKey.VOLUME_OVERFLOW), Remedy.AT_END),
        (condition(SenseKey.VOLUME_OVERFLOW, deferred=True), Remedy.AT_END),
        (condition(SenseKey.DATA_PROTECT, 0x27), Remedy.WRITE_NO_MORE),
        (condition(SenseKey.BLANK_CHECK, 0x14), Remedy.WRITE_NO_MORE),
        (condition(SenseKey.HARDWARE_ERROR, 0x44), Remedy.WAIT),
        (condition(SenseKey.HARDWARE_ERROR, 0x44, deferred=True), Remedy.WAIT),
        (condition(SenseKey.NOT_READY, 0x3A), Remedy.WAIT),
        (condition(SenseKey.UNIT_ATTENTION, 0x29), Remedy.WAIT),
        (DriveGone("unplugged"), Remedy.WAIT),
        (DriveFailed("the wire"), Remedy.WAIT),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_follows_from_a_failure(error: TapefsError, wanted: Remedy) -> None:
    assert remedy(error, 1, 3) is wanted
    last = remedy(error, 3, 3)
    assert last is (wanted if wanted is Remedy.WAIT else Remedy.WRITE_NO_MORE)


async def test_everything_is_on_tape_although_it_cannot_be_rewound(tmp_path: Path) -> None:
    class NoRewind(TargetTransport):
        def _carry_out(self, command: Command, data: DataBuffer | bytes | None) -> Completion:
            if isinstance(command, Rewind) and armed:
                return Completion(False, sense=Sense(SenseKey.HARDWARE_ERROR, 0x15, 0x01))
            return super()._carry_out(command, data)

    armed: list[bool] = []
    rig = Rig(tmp_path, config=CONFIG)
    await rig.format()
    rig.wire = NoRewind
    with logs_expected():
        async with rig.mounted() as user:
            await user.write("file", b"content")
            armed.append(True)
            await user.volume.finalize()
            assert user.volume.clean
            assert "could not be rewound" in user.volume.archiver.migration.remarks[0]


async def test_a_file_that_grows_while_it_is_archived_has_no_hash(tmp_path: Path) -> None:
    rig = Rig(tmp_path, config=CONFIG)
    await rig.format()
    grows: list[User] = []

    class Growing(TargetTransport):
        async def execute(
            self, command: Command, data: DataBuffer | bytes | None = None
        ) -> Completion:
            if isinstance(command, WriteFilemarks6) and grows:
                await grows.pop().write("file", b"more", 5000)
            return await super().execute(command, data)

    rig.wire = Growing
    async with rig.mounted() as user:
        ino = await user.write("file", noise(1, 5000))
        await user.write("other", noise(2, 5000))
        grows.append(user)
        await user.sync()
        assert user.volume.catalog.inode(user.find("other").ino).sha256 is not None
        inode = user.volume.catalog.inode(ino)
        assert user.volume.catalog.owes_tape()
        assert (inode.size, inode.sha256) == (5004, None)
        user.crash()


async def test_who_waits_for_a_sync_that_was_broken_off_is_not_told_that_it_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, config=CONFIG)
    await rig.format()
    async with rig.mounted() as user:
        archiver = user.volume.archiver

        async def broken_off(**_: bool) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(archiver, "_migrate", broken_off)
            waiting = _Request(finalize=False)
            archiver._requests.append(waiting)
            with pytest.raises(KeyboardInterrupt):
                await archiver._work_off()
        assert waiting.done.is_set()
        assert waiting.error is not None


async def test_a_wire_that_fails_while_room_is_asked_for_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was reset: nobody knows where the head is, so the lane must hear of it."""
    rig = Rig(tmp_path, config=CONFIG)
    await rig.format()
    looked = 0

    async def reset(_: TapeDrive) -> None:
        nonlocal looked
        looked += 1
        if looked == 1:
            raise WireReset("LOG SENSE failed on the USB wire")

    async with rig.mounted() as user:
        await user.write("file", b"content")
        with monkeypatch.context() as patched, logs_expected(up_to=logging.ERROR):
            patched.setattr(TapeDrive, "capacity", reset)
            set_up, modes_set = TapeDrive._set_up, []

            async def noting(drive: TapeDrive) -> None:
                modes_set.append(drive)
                await set_up(drive)

            patched.setattr(TapeDrive, "_set_up", noting)
            went_away = user.volume.scheduler.on_away
            seen: list[str] = []

            def note(away: Away | None) -> None:
                seen.append(away.happened if away else "back")
                went_away(away)

            user.volume.scheduler.on_away = note
            await user.sync()
        assert seen == ["LOG SENSE failed on the USB wire", "back"]
        # This drive did not say that it was reset; what the reset did to its modes nobody knows.
        assert len(modes_set) == 1
        assert await user.read("file") == b"content"


@pytest.mark.parametrize("busy_with", ["learning a segment", "proving the end"])
async def test_a_drive_that_goes_while_the_archiver_is_busy_leaves_the_end_unproven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy_with: str
) -> None:
    rig = Rig(tmp_path, config=CONFIG)
    await rig.format()
    async with rig.mounted() as user:
        writer = user.volume.archiver._writer
        apply, submit = writer.view.apply, user.volume.scheduler.submit

        def lose_while_learning(*arguments: Any) -> None:
            apply(*arguments)
            trio.from_thread.run_sync(writer.must_prove_end)

        async def lose_after_proof(*arguments: Any) -> None:
            await submit(*arguments)
            writer.must_prove_end()

        await user.write("file", b"content")
        with monkeypatch.context() as patched:
            if busy_with == "proving the end":
                writer.must_prove_end()
                patched.setattr(user.volume.scheduler, "submit", lose_after_proof)
                assert await writer.prove_end(lambda _: False)
            else:
                patched.setattr(writer.view, "apply", lose_while_learning)
                await user.sync()
        assert await writer.prove_end(lambda _: False)
