"""The end of the tape comes at any point of a segment, known beforehand or not.

Early warning ends the segment under way, a checkpoint follows, and what does not fit stays in the
spool. Cartridges of many sizes move the end through everything that is written.
`TAPEFS_CRASH_POINTS=all` tries every size, else a spread of them.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from crash_rig import logs_expected, scratch
from oracle import Oracle, Photo, differences, photograph
from volume_rig import RECORD_BYTES, Rig, dump
from workload import Program, noise

from tapefs.config import Config
from tapefs.emulator import deck as deck_module
from tapefs.emulator.transport import TargetTransport
from tapefs.entries import TapeFileKind
from tapefs.errors import FilesystemError, NotFinalized, TapefsError, VolumeFull
from tapefs.scsi.cdb import LogSense, ReportDensitySupport, Write6, WriteFilemarks6
from tapefs.scsi.completion import Completion
from tapefs.scsi.sense import Sense, SenseKey

if TYPE_CHECKING:
    from pathlib import Path

    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import DataBuffer

EVERY_POINT = os.environ.get("TAPEFS_CRASH_POINTS") == "all"
CONFIG = Config(
    settle_s=0.0,
    idle_s=3600.0,
    commit_s=3600.0,
    record_queue_count=1,
    early_warning_room_bytes=2 * RECORD_BYTES,
)
# Where a small cartridge ends, in records: around everything that `fill` writes.
SIZES = range(40, 130, 1 if EVERY_POINT else 13)


class SilentWire(TargetTransport):
    """A drive that says nothing of its capacity."""

    def _carry_out(self, command: Command, data: DataBuffer | bytes | None) -> Completion:
        if isinstance(command, LogSense | ReportDensitySupport):
            return Completion(False, sense=Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00))
        return super()._carry_out(command, data)


class NoWarningWire(SilentWire):
    """... and gives no early warning either: the hard end comes out of the blue."""

    def _carry_out(self, command: Command, data: DataBuffer | bytes | None) -> Completion:
        completion = super()._carry_out(command, data)
        sense = completion.sense
        warned = sense is not None and sense.end_of_medium and not sense.key
        if warned and isinstance(command, Write6 | WriteFilemarks6):
            return Completion(True)
        return completion


async def fill(program: Program) -> None:
    """More than the cartridge takes: many files, directories, a large one; with syncs between."""
    for directory in range(4):
        program.mkdir(f"d{directory}")
        for number in range(6):
            await program.write(f"d{directory}/f{number}", noise(directory * 9 + number, 150_000))
        program.link(f"d{directory}/f0", f"d{directory}/link")
        program.chmod(f"d{directory}/f1", 0o600)
        if directory == 0:
            await program.sync()
        if directory == 2:
            await program.write("large", noise(77, 1_300_000))
    await program.fsync("large")


async def reach_the_end(directory: Path, rig: Rig) -> str:
    """Fill a cartridge; judge what the tape has and what the spool keeps. Says what came."""
    await rig.format()
    oracle = Oracle(Photo())
    with trio.fail_after(120):
        async with rig.mounted() as user:
            with suppress(TapefsError):
                await fill(Program(user, oracle))
            ended = "on tape"
            try:
                await user.volume.finalize()
            except NotFinalized:
                ended = "waits"
                assert user.volume.catalog.owes_tape()
                assert user.volume.contents.admission.closed_reason is not None
                with pytest.raises((VolumeFull, FilesystemError)):
                    await user.volume.contents.truncate(user.find("large").ino, 1 << 30)
            else:
                assert not user.volume.catalog.owes_tape()
                oracle.synced(oracle.now)
            user.crash()
    cartridge_kinds = await judge(rig, oracle, directory)
    return f"{ended}, {cartridge_kinds}"


async def judge(rig: Rig, oracle: Oracle, directory: Path) -> str:
    """Mount the same tape again, and elsewhere."""
    async with rig.mounted() as user:
        found = await photograph(user)
        assert oracle.judge_same_host(found) is None, oracle.judge_same_host(found)
        waiting = user.volume.account.pending_count
        with suppress(NotFinalized):
            await user.volume.finalize()
        last = user.volume.view.last_tape_file()
        assert last is not None
        kept_rows = dump(user.volume.view)
        user.crash()
    async with rig.mounted(state=directory / "alone", read_only=True) as user:
        alone = await photograph(user)
        if last.kind is not TapeFileKind.TORN:
            assert dump(user.volume.view) == kept_rows
    assert oracle.judge_tape_alone(alone) is None, oracle.judge_tape_alone(alone)
    if not waiting:
        assert differences(found, alone) is None, differences(found, alone)
    return last.kind.value


@pytest.mark.parametrize("personality", ["lto5", "ait3"])
def test_a_drive_that_knows_its_capacity_is_never_surprised(personality: str) -> None:
    assert run_sizes(personality, CONFIG) == {"on tape, checkpoint"}


@pytest.mark.parametrize(
    ("personality", "capacity_bytes"), [("lto5", 1 << 30), ("plain", None)], ids=str
)
def test_early_warning_comes_sooner_than_computed(
    personality: str, capacity_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deck_module, "_EARLY_WARNING_SHARE", 4)
    config = dataclasses.replace(CONFIG, capacity_bytes=capacity_bytes)
    outcomes = run_sizes(personality, config)
    assert outcomes <= {"on tape, checkpoint", "waits, checkpoint"}
    assert "waits, checkpoint" in outcomes


def test_a_drive_that_only_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deck_module, "_EARLY_WARNING_SHARE", 4)
    outcomes = run_sizes("plain", CONFIG, wire=SilentWire)
    assert outcomes <= {"on tape, checkpoint", "waits, checkpoint"}
    assert "waits, checkpoint" in outcomes


def test_a_drive_that_does_not_even_warn() -> None:
    outcomes = run_sizes("lto5", CONFIG, wire=NoWarningWire)
    # Without its checkpoint a tape is complete all the same: the journals say everything.
    complete = {"on tape, checkpoint", "on tape, segment"}
    assert outcomes <= complete | {"waits, torn", "waits, segment", "waits, checkpoint"}
    assert "waits, torn" in outcomes


def run_sizes(
    personality: str, config: Config, wire: type[TargetTransport] = TargetTransport
) -> set[str]:
    """Try every size; the outcomes that came."""
    failures, outcomes = [], set[str]()
    with logs_expected(up_to=logging.ERROR):
        for records in SIZES:
            with scratch() as directory:
                rig = Rig(directory, personality, records * RECORD_BYTES + 30_000, config)
                rig.wire = wire
                try:
                    outcomes.add(trio.run(reach_the_end, directory, rig))
                except BaseException as exc:  # noqa: BLE001 - whatever it is, it is a finding
                    while isinstance(exc, BaseExceptionGroup):
                        exc = exc.exceptions[0]
                    failures.append(f"{records} records: {exc!r}")
    print(f"{len(SIZES)} sizes of {personality} tried: {sorted(outcomes)}")
    assert not failures, "\n".join(failures)
    return outcomes
