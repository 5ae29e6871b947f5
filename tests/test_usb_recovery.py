"""When the wire fails: recovery from gentle to hard, unplugging, and nothing sent twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from usb_rig import NOT_READY, RECORD, RECORD_BYTES, Rig, Unthreaded

from tapefs.emulator.fault_queue import FaultPoint
from tapefs.emulator.wire_faults import FaultEffect
from tapefs.errors import DriveBusy, DriveFailed, DriveGone
from tapefs.scsi.cdb import (
    Read6,
    Rewind,
    TestUnitReady,
    Write6,
)
from tapefs.usb.bot import Pipe
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from log_police import Announcement

    from tapefs.scsi.command import Command

    AssertLogs = Callable[..., Announcement]


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Failures of the wire: recovery, and never a second try.

BROKEN = [
    (FaultPoint.COMMAND, FaultEffect.STALL),
    (FaultPoint.COMMAND, FaultEffect.SILENCE),
    (FaultPoint.DATA, FaultEffect.SILENCE),
    (FaultPoint.STATUS, FaultEffect.SILENCE),
    (FaultPoint.STATUS, FaultEffect.SHORT),
    (FaultPoint.STATUS, FaultEffect.WRONG_TAG),
    (FaultPoint.STATUS, FaultEffect.BAD_SIGNATURE),
    (FaultPoint.STATUS, FaultEffect.PHASE_ERROR),
    (FaultPoint.STATUS, FaultEffect.RESERVED_STATUS),
]


@pytest.mark.parametrize(("point", "effect"), BROKEN)
@pytest.mark.parametrize("command", [Read6(RECORD_BYTES), Write6(RECORD_BYTES), Rewind()])
async def test_a_broken_wire_is_recovered_and_nothing_is_repeated(
    rig: Rig,
    point: FaultPoint,
    effect: FaultEffect,
    command: Command,
    assert_logs: AssertLogs,
) -> None:
    if point is FaultPoint.DATA and isinstance(command, Rewind):
        point = FaultPoint.STATUS
    assert_logs("usb.reset_recovery", count=1)
    rig.server.records.append(RECORD.tobytes())
    rig.plan(point, effect)
    data = RECORD if isinstance(command, Write6) else None
    with pytest.raises(DriveFailed, match="position on tape is unknown"):
        await rig.transport.execute(command, data)
    assert rig.server.executed.count(command.name) <= 1
    assert rig.server.reset_count == 0, "a class reset must do"
    await rig.write()
    assert rig.device.violations == []


async def test_recovery_keeps_the_prescribed_order(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, assert_logs: AssertLogs
) -> None:
    assert_logs("usb.reset_recovery", count=1)
    calls: list[object] = []
    monkeypatch.setattr(rig.endpoints, "class_reset", lambda: calls.append("class reset"))
    monkeypatch.setattr(rig.endpoints, "clear_halt", calls.append)
    rig.plan(FaultPoint.STATUS, FaultEffect.SHORT)
    with pytest.raises(DriveFailed):
        await rig.transport.execute(Rewind())
    assert calls == ["class reset", Pipe.IN, Pipe.OUT]  # BOT 1.0 §5.3.4


async def test_a_stall_that_does_not_end_needs_recovery(rig: Rig, assert_logs: AssertLogs) -> None:
    assert_logs("usb.reset_recovery", count=1)
    rig.plan(FaultPoint.STATUS, FaultEffect.STALL)
    rig.plan(FaultPoint.STATUS, FaultEffect.STALL)
    with pytest.raises(DriveFailed, match="stalled"):
        await rig.transport.execute(Rewind())
    await rig.write()


async def test_a_timeout_during_sense_is_recovered_too(rig: Rig, assert_logs: AssertLogs) -> None:
    assert_logs("usb.reset_recovery", count=1)
    rig.server.refuse = [NOT_READY]
    rig.plan(FaultPoint.DATA, FaultEffect.SILENCE)
    with pytest.raises(DriveFailed, match="REWIND"):
        await rig.transport.execute(Rewind())
    await rig.write()


async def test_recovery_goes_from_gentle_to_hard_and_then_gives_up(
    rig: Rig, assert_logs: AssertLogs
) -> None:
    assert_logs("usb.reset_recovery", count=1)
    assert_logs("usb.port_reset", count=1)
    assert_logs("power-cycle", count=1)
    for _ in range(3):
        rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE)
    for port_resets, sentence in ((0, "was reset"), (1, "was reset"), (1, "power-cycle")):
        with pytest.raises(DriveFailed, match=sentence):
            await rig.transport.execute(Rewind())
        assert rig.server.reset_count == port_resets
    count = rig.device.command_count
    with pytest.raises(DriveFailed, match="power-cycle"):
        await rig.transport.execute(TestUnitReady())
    assert rig.device.command_count == count, "nothing is sent to a drive that was given up"


async def test_a_command_that_comes_through_forgives(rig: Rig, assert_logs: AssertLogs) -> None:
    assert_logs("usb.reset_recovery", count=3)
    for _ in range(3):
        rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE)
        with pytest.raises(DriveFailed):
            await rig.transport.execute(Rewind())
        await rig.write()
    assert rig.server.reset_count == 0


async def test_what_came_through_before_it_in_a_batch_forgives_too(
    rig: Rig, assert_logs: AssertLogs
) -> None:
    assert_logs(r"usb.reset_recovery .*command=WRITE\(6\)", count=3)
    for number in range(3):
        rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE, skip_count=1)
        with pytest.raises(DriveFailed, match=r"^WRITE\(6\) failed on the USB wire"):
            await rig.transport.execute_each(
                [(Rewind(), None), (Write6(RECORD_BYTES), RECORD), (TestUnitReady(), None)]
            )
        assert rig.server.executed == ["REWIND", "WRITE(6)"] * (number + 1)
    assert rig.server.reset_count == 0


async def test_a_class_reset_that_fails_is_followed_by_a_port_reset(
    rig: Rig, assert_logs: AssertLogs
) -> None:
    assert_logs("usb.reset_recovery", count=1)
    assert_logs("usb.port_reset", count=1)
    rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE)
    rig.plan(FaultPoint.CLASS_RESET, FaultEffect.STALL)
    with pytest.raises(DriveFailed):
        await rig.transport.execute(Rewind())
    assert rig.server.reset_count == 1
    await rig.write()


async def test_when_no_reset_works_the_drive_is_given_up(rig: Rig, assert_logs: AssertLogs) -> None:
    assert_logs("usb.reset_recovery|usb.port_reset|drive.gone", count=3)
    rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE)
    rig.plan(FaultPoint.CLASS_RESET, FaultEffect.SILENCE)
    rig.plan(FaultPoint.PORT_RESET, FaultEffect.SILENCE)
    for _ in range(2):
        with pytest.raises(DriveFailed, match="power-cycle"):
            await rig.transport.execute(Rewind())


async def test_a_port_reset_that_loses_the_drive_to_another_program_is_the_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, assert_logs: AssertLogs
) -> None:
    assert_logs("usb.reset_recovery|usb.port_reset|drive.gone", count=3)
    rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE)
    rig.plan(FaultPoint.CLASS_RESET, FaultEffect.STALL)
    reset = rig.backend.reset_device

    def reset_and_lose(handle: Any) -> None:
        reset(handle)
        rig.backend.claim_interface(rig.backend.open_device("emulated"), 0)

    monkeypatch.setattr(rig.backend, "reset_device", reset_and_lose)
    for _ in range(2):
        with pytest.raises(DriveBusy, match="another program"):
            await rig.transport.execute(Rewind())


async def test_the_drive_gets_time_to_settle_after_a_reset(
    autojump_clock: trio.testing.MockClock, assert_logs: AssertLogs
) -> None:
    assert_logs("usb.reset_recovery", count=1)
    rig = Rig()
    transport = BotTransport(Unthreaded(rig.endpoints))
    rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE)
    with pytest.raises(DriveFailed):
        await transport.execute(Rewind())
    assert trio.current_time() == 6.0


# Unplugged.


@pytest.mark.parametrize("point", [FaultPoint.COMMAND, FaultPoint.DATA, FaultPoint.STATUS])
async def test_an_unplugged_drive_is_gone_for_good(
    rig: Rig, point: FaultPoint, assert_logs: AssertLogs
) -> None:
    assert_logs("drive.gone", count=1)
    rig.plan(point, FaultEffect.UNPLUG)
    with pytest.raises(DriveGone, match=r"WRITE\(6\)"):
        await rig.transport.execute(Write6(RECORD_BYTES), RECORD)
    rig.backend.plug_in()
    with pytest.raises(DriveGone):
        await rig.transport.execute(TestUnitReady())
    await rig.transport.aclose()
    assert "TEST UNIT READY" not in rig.server.executed
    rig.connect()
    await rig.write()


async def test_unplugged_during_recovery(rig: Rig, assert_logs: AssertLogs) -> None:
    assert_logs("usb.reset_recovery|drive.gone", count=2)
    rig.plan(FaultPoint.STATUS, FaultEffect.SILENCE)
    rig.plan(FaultPoint.CLASS_RESET, FaultEffect.UNPLUG)
    with pytest.raises(DriveGone, match="REWIND"):
        await rig.transport.execute(Rewind())
