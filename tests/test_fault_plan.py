"""Fault plans: understood or refused by line, the same run for the same plan, cables that move."""

from __future__ import annotations

import logging
import re
from array import array
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from crash_rig import logs_expected
from hypothesis import given
from hypothesis import strategies as st

from tapefs.drive import TapeDrive
from tapefs.emulator.cable import Cable, Change, Replug, Switch
from tapefs.emulator.fault_plan import FaultPlan, seeded
from tapefs.emulator.fault_queue import FaultPoint, FaultQueue
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.name import VirtualDriveName
from tapefs.emulator.target import Target, UnitFault
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.emulator.wire_faults import EVERYWHERE, FaultEffect, WireFault
from tapefs.errors import DriveGone, NoDrive, TapefsError, UsageError
from tapefs.scsi.sense import (
    CheckCondition,
    EndOfMedium,
    MediumChanged,
    MediumError,
    Sense,
    SenseKey,
)
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = Path(__file__).parent.parent
MIB = 1 << 20
RECORD_BYTES = 4096


class Bench:
    """A virtual drive that fails as planned, and the way to it."""

    def __init__(self, cartridge: VirtualCartridge, plan: str) -> None:
        self.target = Target(cartridge)
        self.backend = EmulatedUsbBackend(self.target)
        self.device = self.backend.device
        FaultPlan.parse(plan).apply(self.target, self.device)

    async def open(self) -> TapeDrive:
        transport = BotTransport(open_endpoints("usb", self.backend), settle_s=0)
        return await TapeDrive.open(transport)


@contextmanager
def bench(path: Path, plan: str = "", personality: str = "lto5") -> Iterator[Bench]:
    with VirtualCartridge.create(path / "t.tap", personality, 64 * MIB) as cartridge:
        yield Bench(cartridge, plan)


def record(number: int) -> array[int]:
    return array("B", number.to_bytes(4, "big") * (RECORD_BYTES // 4))


# What a plan says.


def test_every_line_of_the_document_is_understood() -> None:
    text = (HOME / "docs" / "fault-plans.md").read_text()
    example = text.split("```")[1]
    plan = FaultPlan.parse(example)
    assert plan.wire == [
        WireFault(FaultPoint.STATUS, FaultEffect.SILENCE, command="WRITE(6)", skip_count=3),
        WireFault(FaultPoint.COMMAND, FaultEffect.UNPLUG, skip_count=100, replug=Replug(2)),
    ]
    assert plan.unwritable == {40: 2}
    assert len(plan.lines) == 3
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in row.split("`")
    }
    for effect in FaultEffect:
        assert effect.name.lower() in documented, effect
    for line in re.findall(r"^\| `((?:unit|medium|cable) .*?)` \|", text, re.MULTILINE):
        given = line.replace("KEY/ASC/ASCQ", "3/0c/00").replace("=N", "=17").replace("SIZE", "4M")
        assert FaultPlan.parse(given).lines == (given,)


def test_places_and_effects() -> None:
    for point in FaultPoint:
        if point not in (FaultPoint.EXECUTION, FaultPoint.REPORT):
            for effect in EVERYWHERE:
                line = f"{point.name.lower()} {effect.name.lower()} times=always"
                (fault,) = FaultPlan.parse(line).wire
                assert (fault.point, fault.effect, fault.times) == (point, effect, None)
    (fault,) = FaultPlan.parse("status hang until=replug").wire
    assert fault.until is None
    (fault,) = FaultPlan.parse("data power_cut replug_s=2.5").wire
    assert fault.replug == Replug(None, 2.5)
    plan = FaultPlan.parse("unit check sense=3/0C/01 deferred=yes information=7 eom=yes skip=2")
    sense = Sense(
        SenseKey.MEDIUM_ERROR, 0x0C, 0x01, deferred=True, information=7, end_of_medium=True
    )
    assert plan.unit == [UnitFault(sense=sense, skip_count=2)]
    plan = FaultPlan.parse("medium end bytes=4M\nmedium early_warning bytes=3M\nunit good times=2")
    assert (plan.end_bytes, plan.early_warning_bytes) == (4 * MIB, 3 * MIB)
    assert plan.unit == [UnitFault(times=2)]
    plan = FaultPlan.parse("cable out file=/a\ncable power_off file=/b")
    assert plan.switches == [Switch(Path("/a")), Switch(Path("/b"), power=True)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nowhere stall", "'nowhere' is no place"),
        ("status", "is followed by one of"),
        ("command babble", "is followed by one of"),
        ("data wrong_tag", "is followed by one of"),
        ("status stall often", "no option"),
        ("status stall skip=1 skip=2", "given twice"),
        ("status stall colour=red", "has no option 'colour'"),
        ("status stall replug_polls=1", "has no option 'replug_polls'"),
        ("status stall skip=-1", "whole number"),
        ("status stall times=0", "1 or more"),
        ("status stall command=WRITE", "no command is called 'WRITE'"),
        ("status unplug replug_s=soon", "number of seconds"),
        ("status hang until=tomorrow", "until is one of"),
        ("unit explode", "'check' or 'good'"),
        ("unit check", "needs sense"),
        ("unit check sense=3/0C", "KEY/ASC/ASCQ"),
        ("unit check sense=3/0C/00 deferred=perhaps", "deferred is one of"),
        ("medium unreadable", "wants block"),
        ("medium melts bytes=3", "'medium' is followed by"),
        ("medium end bytes=lots", "is not a size"),
        ("cable cut file=x", "'cable' is followed by"),
        ("cable out", "needs file"),
    ],
)
def test_nonsense_is_refused_by_line(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"plan.txt, line 2.*{re.escape(said)}"):
        FaultPlan.parse(f"# a comment\n{line}\n", "plan.txt")


@given(st.text(max_size=60))
def test_any_text_is_a_plan_or_refused(text: str) -> None:
    try:
        FaultPlan.parse(text)
    except UsageError:
        return


def test_plans_by_name(tmp_path: Path) -> None:
    file = tmp_path / "plan"
    file.write_text("status short\n")
    name = VirtualDriveName.parse(f"virtual:x.tap?faults={file}&personality=dat72")
    assert name.faults is not None
    assert name.faults.lines == ("status short",)
    seed = VirtualDriveName.parse("virtual:x.tap?faults=seed:7").faults
    assert seed is not None
    assert seed.lines == seeded(7)
    assert VirtualDriveName.parse("virtual:x.tap").faults is None
    for bad in ("seed:x", "seed:", str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(UsageError):
            FaultPlan.named(bad)


def test_a_seed_always_means_the_same_and_many_mean_something_else() -> None:
    plans = [seeded(seed) for seed in range(300)]
    assert plans == [seeded(seed) for seed in range(300)]
    assert len(set(plans)) > 290
    for lines in plans:
        assert FaultPlan.parse("\n".join(lines)).lines == lines


def test_faults_of_one_moment_strike_in_their_order() -> None:
    queue = FaultQueue[WireFault]()
    first = WireFault(FaultPoint.DATA, FaultEffect.STALL, skip_count=1, times=2, command="A")
    second = WireFault(FaultPoint.DATA, FaultEffect.SILENCE, times=None)
    queue.plan(first, second)

    def take(point: FaultPoint, command: str) -> FaultEffect | None:
        fault = queue.take(point, command)
        return fault.effect if fault else None

    assert take(FaultPoint.STATUS, "A") is None
    assert take(FaultPoint.DATA, "A") is None  # skipped
    assert take(FaultPoint.DATA, "B") is FaultEffect.SILENCE
    assert [take(FaultPoint.DATA, "A") for _ in range(4)] == [
        FaultEffect.STALL,
        FaultEffect.STALL,
        FaultEffect.SILENCE,
        FaultEffect.SILENCE,
    ]


# The cable.


def test_a_cable_comes_back_by_polls_by_time_or_not_at_all() -> None:
    now = [0.0]
    cable = Cable(lambda: now[0])
    cable.pull(Replug(polls=2))
    assert [cable.look(poll=True) for _ in range(2)] == [None, None]
    assert cable.look() is None
    assert cable.look(poll=True) is Change.PLUGGED_IN
    cable.plug_in()
    assert (cable.plugged_in, cable.plug_count) == (True, 2)
    cable.pull(Replug(after_s=5))
    now[0] = 4.9
    assert cable.look(poll=True) is None
    now[0] = 5.0
    assert cable.look() is Change.PLUGGED_IN
    cable.plug_in()
    cable.pull()
    now[0] = 1e9
    assert [cable.look(poll=True) for _ in range(9)] == [None] * 9


def test_a_switch_pulls_the_cable_while_its_file_exists(tmp_path: Path) -> None:
    out, off = tmp_path / "out", tmp_path / "off"
    cable = Cable()
    cable.add(Switch(out), Switch(off, power=True))
    assert cable.look() is None
    out.touch()
    assert cable.look() is Change.PULLED
    assert cable.look() is None
    off.touch()
    out.unlink()
    assert cable.look(poll=True) is None
    off.unlink()
    assert cable.look() is Change.PLUGGED_IN
    cable.plug_in()
    off.touch()
    assert cable.look() is Change.POWERED_OFF


# What happens in a drive.


async def test_unplugged_and_plugged_in_again_by_polls(tmp_path: Path) -> None:
    plan = "status unplug command=WRITE(6) skip=1 replug_polls=2"
    with bench(tmp_path, plan) as drive_bench, logs_expected(logging.ERROR):
        drive = await drive_bench.open()
        await drive.rewind()
        await drive.write_block(record(0))
        with pytest.raises(DriveGone):
            await drive.write_block(record(1))
        for _ in range(2):
            with pytest.raises(NoDrive):
                await drive_bench.open()
        drive = await drive_bench.open()
        await drive.rewind()
        into = array("B", bytes(RECORD_BYTES))
        for number in range(2):  # the second was executed, only its status never came
            assert await drive.read_block(into) == RECORD_BYTES
            assert into == record(number)
        assert drive_bench.device.violations == []


@pytest.mark.parametrize(("kind", "kept"), [("out", 1), ("power_off", 0)])
async def test_a_switch_under_a_drive_at_work(tmp_path: Path, kind: str, kept: int) -> None:
    switch = tmp_path / "switch"
    with (
        bench(tmp_path, f"cable {kind} file={switch}") as drive_bench,
        logs_expected(logging.ERROR),
    ):
        drive = await drive_bench.open()
        await drive.rewind()
        await drive.write_block(record(0))
        switch.touch()
        with pytest.raises(DriveGone):
            await drive.write_block(record(1))
        with pytest.raises(NoDrive):
            await drive_bench.open()
        switch.unlink()
        drive = await drive_bench.open()
        assert (await drive.space_to_end_of_data()).block == kept


async def test_a_handle_from_before_stays_dead_when_nobody_looked_in_between(
    tmp_path: Path,
) -> None:
    with bench(tmp_path) as drive_bench, logs_expected(logging.ERROR):
        drive = await drive_bench.open()
        drive_bench.device.unplug()
        drive_bench.device.plug_in()
        with pytest.raises(DriveGone):
            await drive.rewind()
        await (await drive_bench.open()).rewind()


@pytest.mark.parametrize(("until", "port_resets"), [("class_reset", 0), ("port_reset", 1)])
async def test_a_hang_ends_with_the_reset_it_waits_for(
    tmp_path: Path, until: str, port_resets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = f"status hang command=REWIND until={until}"
    with bench(tmp_path, plan) as drive_bench, logs_expected(logging.ERROR):
        drive = await drive_bench.open()
        resets: list[str] = []
        reset = drive_bench.target.reset

        def counted() -> None:
            resets.append("port")
            reset()

        monkeypatch.setattr(drive_bench.target, "reset", counted)
        with pytest.raises(TapefsError, match="position on tape is unknown"):
            await drive.rewind()
        assert len(resets) == port_resets
        await drive.wait_ready(10)
        await drive.rewind()


async def test_a_hang_until_replug_is_for_good(tmp_path: Path) -> None:
    plan = "command hang command=REWIND until=replug"
    with bench(tmp_path, plan) as drive_bench, logs_expected(logging.ERROR):
        drive = await drive_bench.open()
        with pytest.raises(TapefsError, match="power-cycle"):
            await drive.rewind()
        drive_bench.backend.unplug()
        drive_bench.backend.plug_in()
        await (await drive_bench.open()).rewind()


async def test_conditions_that_the_unit_pretends(tmp_path: Path) -> None:
    plan = """
        unit good command=TEST_UNIT_READY
        unit check sense=2/04/01 command=TEST_UNIT_READY times=4
        unit check sense=6/28/00 command=REWIND
        unit check sense=3/0C/00 deferred=yes command=WRITE(6)
        unit check sense=1/0C/00 command=WRITE(6)
    """
    with bench(tmp_path, plan) as drive_bench:
        drive = await drive_bench.open()
        assert not drive.medium_loaded, "the one good answer was false"
        await drive.wait_ready(60)
        with pytest.raises(MediumChanged):
            await drive.rewind()
        await drive.wait_ready(60)
        await drive.rewind()
        with pytest.raises(CheckCondition, match="too late"):
            await drive.write_block(record(0))
        await drive.rewind()
        await drive.write_block(record(0))
        assert drive.statistics().recovered_errors == 1
        assert (await drive.space_to_end_of_data()).block == 1, "the recovered one was written"


async def test_a_tape_that_is_shorter_than_its_chip_says(tmp_path: Path) -> None:
    plan = "medium end bytes=1M\nmedium early_warning bytes=512K\nmedium unreadable block=3"
    with bench(tmp_path, plan, "dat160") as drive_bench:
        drive = await drive_bench.open()
        await drive.rewind()
        promised = await drive.capacity()
        assert promised is not None
        assert promised.remaining_bytes > 50 * MIB, "the drive does not know"
        written = warned = 0
        with suppress(EndOfMedium):
            while written < MIB // RECORD_BYTES:
                warned += (await drive.write_block(record(written))).early_warning
                written += 1
        assert written < MIB // RECORD_BYTES
        assert (written - warned) * RECORD_BYTES <= MIB // 2 < (written - warned + 2) * RECORD_BYTES
        await drive.rewind()
        into = array("B", bytes(RECORD_BYTES))
        for _ in range(3):
            await drive.read_block(into)
        with pytest.raises(MediumError):
            await drive.read_block(into)


async def test_what_is_planned_and_what_strikes_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tapefs")
    plan = "status empty command=REWIND\nmedium unreadable block=0"
    with bench(tmp_path, plan) as drive_bench:
        drive = await drive_bench.open()
        await drive.rewind()
        await drive.write_block(record(0))
        await drive.rewind()
        with pytest.raises(MediumError):
            await drive.read_block(array("B", bytes(RECORD_BYTES)))
    messages = [each.getMessage() for each in caplog.records if "emulator." in each.getMessage()]
    assert len(messages) == 3
    assert "status empty command=REWIND; medium unreadable block=0" in messages[0]
    assert "zero-length packet first at status" in messages[1]
    assert "REWIND" in messages[1]
    assert "unreadable" in messages[2]
