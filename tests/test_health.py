"""Health of drive and cartridge: one reader, through the lane; a record outlives the mount."""

from __future__ import annotations

import dataclasses
import itertools
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from plugged_rig import until_back
from volume_rig import Rig, User

from tapefs.archive.health import HealthKeeper
from tapefs.archive.health_record import (
    RECORD_NAME,
    SESSIONS_MAX,
    AlertNote,
    HealthRecord,
    HealthSession,
    Tally,
)
from tapefs.archive.policy import JobKind
from tapefs.drive import DriveIdentity
from tapefs.emulator.fault_plan import FaultPlan
from tapefs.usb.transport import WireReset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from log_police import Announcement

    from tapefs.drive import DriveHealth, TapeDrive
    from tapefs.scsi import cdb as c

MIB = 1 << 20
GIB = 1 << 30
CLOCK = itertools.count(10**18)
IDENTITY = DriveIdentity("HP", "Ultrium 5-SCSI", "Z64D", "VT1")
COPY = "copy this volume to another cartridge, and write no more to this one"


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    await made.format()
    return made


class Keeper(HealthKeeper):
    """Tells the test when it asks."""

    def __init__(self, user: User, every_s: float = 300.0) -> None:
        super().__init__(
            user.volume.scheduler, user.directory, IDENTITY, every_s, lambda: next(CLOCK)
        )
        self.asked_s: list[float] = []
        self.wire_fails = False
        self.on_ask: Callable[[], object] = lambda: None

    async def _ask(self, drive: TapeDrive) -> None:
        self.asked_s.append(trio.current_time())
        self.on_ask()
        with pytest.MonkeyPatch.context() as patch:
            if self.wire_fails:
                patch.setattr(type(drive), "health", _choke)
            await super()._ask(drive)


async def _choke(_drive: TapeDrive) -> DriveHealth:
    raise WireReset("LOG SENSE failed: the wire was reset")


@asynccontextmanager
async def mounted(rig: Rig, plan: str = "") -> AsyncIterator[tuple[User, Keeper]]:
    async with rig.mounted() as user:
        FaultPlan.parse(plan).apply(user.target)
        yield user, Keeper(user)


# -- asking


async def test_alerts_are_logged_kept_and_told_with_what_to_do(
    rig: Rig, assert_logs: Callable[..., Announcement]
) -> None:
    alerts = assert_logs("drive.tape_alert", 2)
    warnings = assert_logs("health.warning", 2)
    async with mounted(rig, "drive alert flags=4,20") as (user, health):
        assert health.document()["tells_alerts"] is None, "nobody has asked yet"
        await health.look()
        await health.look()  # the drive has forgotten; we have not
        document = health.document()
    assert [alert["flag"] for alert in document["alerts"]] == [4, 20]
    assert [alert["about"] for alert in document["alerts"]] == ["medium", "cleaning"]
    assert document["warnings"] == [
        f"the cartridge is unreliable: {COPY}",
        "the drive needs cleaning now: unmount, load a cleaning cartridge, and mount again",
    ]
    assert "flag=4 about=medium says='the cartridge is unreliable'" in (
        alerts.records[0].getMessage()
    )
    assert len(warnings.records) == 2
    # The next mount, on which the drive says nothing: cleaning was yesterday's, the medium stays.
    async with mounted(rig) as (user, health):
        assert health.warnings() == [f"the cartridge is unreliable: {COPY}"]
        assert health.document()["alerts"] == []
        assert (user.directory / RECORD_NAME).exists()


async def test_nothing_is_asked_while_somebody_wants_the_drive(rig: Rig) -> None:
    order: list[str] = []

    async def job(drive: TapeDrive) -> None:
        order.append("recall")
        await trio.lowlevel.checkpoint()

    async with mounted(rig) as (user, health), trio.open_nursery() as nursery:
        health.on_ask = lambda: order.append("health")
        lane = user.volume.scheduler
        nursery.start_soon(lane.submit, JobKind.RECALL, job)
        nursery.start_soon(health.look)
        for _ in range(3):
            nursery.start_soon(lane.submit, JobKind.RECALL, job)
    assert order == ["recall"] * 4 + ["health"]


async def test_it_asks_at_the_start_now_and_then_and_soon_after_trouble(
    rig: Rig, autojump_clock: trio.testing.MockClock, assert_logs: Callable[..., Announcement]
) -> None:
    assert_logs(r"drive\.tape_alert|health\.warning|drive\.advice")
    async with rig.mounted() as user, trio.open_nursery() as nursery:
        health = Keeper(user)
        await nursery.start(health.run)
        await trio.sleep(650)
        assert health.asked_s == [0.0, 300.0, 600.0]
        plan = "unit check sense=1/00/17 command=TEST_UNIT_READY\ndrive alert flags=21"
        FaultPlan.parse(plan).apply(user.target)
        await user.volume.scheduler.submit(JobKind.CONTROL, lambda drive: drive.test_ready())
        await trio.sleep(1)
        assert health.asked_s[3:] == [650.0]
        assert health.document()["alerts"][0]["flag"] == 21
        nursery.cancel_scope.cancel()


async def test_with_health_0_the_drive_is_never_asked(rig: Rig) -> None:
    async with rig.mounted() as user, trio.open_nursery() as nursery:
        health = Keeper(user, every_s=0)
        before = user.volume.scheduler.statistics().jobs_done["maintenance"]
        await nursery.start(health.run)
        await health.look()
        assert user.volume.scheduler.statistics().jobs_done["maintenance"] == before
        assert not health.asked_s


@pytest.mark.parametrize("personality", ["plain", "tgt", "ait1"])
async def test_drives_that_tell_little_are_no_reason_to_worry(
    tmp_path: Path, personality: str
) -> None:
    rig = Rig(tmp_path, personality)
    await rig.format()
    async with mounted(rig) as (_, health):
        await health.look()
        document = health.document()
    assert document["warnings"] == []
    assert document["cleaning_requested"] is None
    assert document["tells_alerts"] is (personality == "ait1")


async def test_a_drive_that_fails_at_it_costs_nothing_but_an_event(
    rig: Rig,
) -> None:
    async with mounted(rig, "unit check sense=4/44/00 command=LOG_SENSE times=always") as (
        user,
        health,
    ):
        await health.look()
        assert health.document()["asked_ns"] is None
        assert await user.volume.scheduler.submit(JobKind.CONTROL, lambda d: d.test_ready())


async def test_a_bridge_that_chokes_on_it_is_not_asked_again(
    rig: Rig, assert_logs: Callable[..., Announcement]
) -> None:
    patient = dataclasses.replace(rig.config, drive_poll_s=0.01)
    assert_logs("health.stopped .*the wire was reset", 1)
    assert_logs(r"drive\.away", 2)
    async with rig.mounted(config=patient) as user:
        health = Keeper(user)
        await user.write("/a", b"x" * MIB)
        await user.sync()
        health.wire_fails = True
        for _ in range(3):
            await health.look()
            assert user.volume.scheduler.head_block is None, "the head may be anywhere"
            await until_back(user)
        assert len(health.asked_s) == 2
        await user.write("/b", b"y" * MIB)
        await user.sync()


async def test_a_bug_in_it_costs_nothing_but_an_event(
    rig: Rig, assert_logs: Callable[..., Announcement]
) -> None:
    assert_logs("health.unknown", 1)
    async with mounted(rig) as (_, health):
        health.on_ask = lambda: 1 // 0
        await health.look()


async def test_a_drive_that_wants_to_be_cleaned(
    rig: Rig, assert_logs: Callable[..., Announcement]
) -> None:
    assert_logs("health.warning .*asks to be cleaned", 1)
    async with mounted(rig, "drive cleaning") as (_, health):
        await health.look()
        await health.look()
        assert health.document()["cleaning_requested"] is True
        (warning,) = health.warnings()
        assert warning == "the drive asks to be cleaned: unmount, and load a cleaning cartridge"


async def test_errors_are_those_of_this_mount(rig: Rig) -> None:
    async with mounted(rig, "medium worn corrected=3") as (user, health):
        await user.write("/before", b"x" * MIB)
        await user.sync()
        await health.look()
        first = health.document()
        assert first["corrected_write_errors_count"] == 0, "of before nobody can say whose"
        await user.write("/after", b"x" * (4 * MIB))
        await user.sync()
        await health.look()
        document = health.document()
    assert document["corrected_write_errors_count"] >= 3 * 4
    assert document["uncorrected_write_errors_count"] == 0
    assert document["cartridge_loads_count"] == 2


# -- the record


def session(corrected: int, moved: int = GIB, **more: Any) -> HealthSession:
    return HealthSession(1, "HP", Tally(moved, corrected, 0), Tally(), **more)


def record(*corrected: int, moved: int = GIB) -> HealthRecord:
    return HealthRecord([session(count, moved) for count in corrected])


@pytest.mark.parametrize(
    ("corrected", "factor"),
    [
        ((10, 12, 11, 10), None),
        ((10, 12, 11, 440), 40),
        ((100, 100, 100, 399), None),  # less than four times
        ((100, 100, 100, 400), 4),
        ((0, 0, 0, 63), None),  # an accident of small numbers
        ((0, 0, 0, 64), 64),
        ((10, 1000), None),  # too few mounts to compare with
        ((10, 10_000, 10, 10, 440), 44),  # one bad day among them counts for little
    ],
)
def test_a_rate_of_errors_that_rises_is_told(
    corrected: tuple[int, ...], factor: int | None
) -> None:
    sentence = (
        f"the drive corrects {factor} times as many errors as in earlier mounts when this "
        "cartridge is written: clean the drive; should it come again with this cartridge, copy "
        "the volume to another one"
    )
    assert record(*corrected).concerns() == ([] if factor is None else [sentence])


def test_what_moved_little_is_not_judged() -> None:
    assert record(1, 1, 1, 1000, moved=63 * MIB).concerns() == []
    assert len(record(1, 1, 1, 1000, moved=64 * MIB).concerns()) == 1


def test_places_that_could_not_be_read() -> None:
    bad = HealthRecord([HealthSession(1, "HP", Tally(), Tally(GIB, 0, 2))])
    (sentence,) = bad.concerns()
    assert sentence == (
        "2 places could not be read in this mount: clean the drive; should it come again with "
        "this cartridge, copy the volume to another one"
    )


def test_an_alert_in_a_second_mount_is_the_cartridges() -> None:
    once = HealthRecord([session(0)], {2: AlertNote(5, 5)})
    (sentence,) = once.concerns()
    assert sentence.startswith("the drive has trouble writing: clean the drive")
    twice = HealthRecord([session(0), HealthSession(100, "HP")], dict(once.alerts))
    assert twice.note_alerts(frozenset({2}), 200) == {2}
    assert twice.note_alerts(frozenset({2}), 300) == frozenset(), "the same mount"
    assert twice.concerns() == [f"the drive has trouble writing (in 2 mounts): {COPY}"]


@pytest.mark.parametrize("flag", [4, 7, 13, 14, 15, 19, 52, 53, 54, 59])
def test_a_cartridge_that_dies_is_not_forgotten(flag: int) -> None:
    old = HealthRecord([HealthSession(100, "HP")], {flag: AlertNote(1, 1)})
    (sentence,) = old.concerns()
    assert sentence.endswith(COPY)


@pytest.mark.parametrize("flag", [2, 9, 20, 30, 64])
def test_others_are_of_the_mount_in_which_they_came(flag: int) -> None:
    old = HealthRecord([HealthSession(100, "HP")], {flag: AlertNote(1, 1)})
    assert old.concerns() == []
    now = HealthRecord([HealthSession(1, "HP")], {flag: AlertNote(1, 1)})
    assert len(now.concerns()) == (flag != 9), "a write-protected cartridge is no illness"


def test_the_record_outlives_the_mount_and_stays_small(tmp_path: Path) -> None:
    path = tmp_path / RECORD_NAME
    kept = HealthRecord(alerts={4: AlertNote(1, 2, 3)}, loads_count=7)
    for number in range(SESSIONS_MAX + 5):
        kept.begin(HealthSession(number, "HP", Tally(1, 2, 3)))
    kept.save(path)
    assert HealthRecord.load(path) == kept
    assert len(kept.sessions) == SESSIONS_MAX
    assert kept.sessions[-1].started_ns == SESSIONS_MAX + 4
    assert path.stat().st_size < 64 << 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2}',
        "\0" * 100,
        "[" * 100_000,
        '{"version": 1, "sessions": [{}], "alerts": {}, "loads_count": 1}',
        '{"version": 1, "sessions": [], "alerts": {"4": {"soon": 1}}, "loads_count": 1}',
    ],
)
def test_a_record_that_nobody_understands_is_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / RECORD_NAME
    path.write_text(text)
    assert HealthRecord.load(path) is None
    assert HealthRecord.load(tmp_path / "missing") is None


def test_numbers_that_are_none_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / RECORD_NAME
    good = HealthRecord([session(1)])
    good.save(path)
    document = json.loads(path.read_text())
    wrong: tuple[object, ...] = ("many", [], {})
    for broken in wrong:
        changed = json.loads(json.dumps(document))
        changed["sessions"][0]["writing"]["moved_bytes"] = broken
        path.write_text(json.dumps(changed))
        assert HealthRecord.load(path) is None
    assert dataclasses.asdict(good)["sessions"] == document["sessions"]


async def test_health_is_read_by_no_command_that_moves_the_tape(rig: Rig) -> None:
    async with rig.mounted() as user:
        head = user.volume.scheduler.head_block
        motion = []

        async def spied(drive: TapeDrive) -> None:
            begin = drive.activity.begin

            def noted(command: c.Command, now_s: float) -> None:
                motion.append(command.moves_medium)
                begin(command, now_s)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(drive.activity), "begin", lambda _, *a: noted(*a))
                await drive.health()

        await user.volume.scheduler.submit(JobKind.MAINTENANCE, spied)
        assert motion
        assert not any(motion)
        assert user.volume.scheduler.head_block == head
