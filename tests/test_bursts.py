"""When what waits goes to tape: in bursts that are worth a stop, and not for ever later."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import trio
from benchmarks.virtual_time import inline
from volume_rig import Rig, User

from tapefs.archive.policy import burst_bytes, burst_share_bytes
from tapefs.config import GIB, MIB, Config
from tapefs.emulator.transport import TargetTransport

if TYPE_CHECKING:
    from pathlib import Path

IDLE_S = 60.0


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    config = Config(settle_s=0.0, idle_s=IDLE_S, burst_bytes=8 * MIB, drive_check_s=1e9)
    rig = Rig(tmp_path, "dat72", GIB, config)
    rig.wire = functools.partial(TargetTransport, paced=True)
    return rig


async def trickle(user: User, seconds: float, every_s: float, size: int) -> None:
    """A file now and then."""
    end_s, number = trio.current_time() + seconds, 0
    while trio.current_time() < end_s:
        await user.write(f"file {number}", bytes(size))
        number += 1
        await trio.sleep(every_s)


async def test_one_file_waits_until_nothing_more_comes(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    await rig.format()
    async with rig.mounted() as user:
        migration = user.volume.archiver.migration
        await user.write("first", b"1")
        await trio.sleep(IDLE_S - 1)
        await user.write("second", b"2")
        await trio.sleep(IDLE_S - 1)
        assert migration.segments == 0, "something had come"
        await trio.sleep(20)
        assert migration.segments == 1


async def test_what_comes_slowly_goes_to_tape_in_whole_bursts(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    await rig.format()
    async with rig.mounted() as user:
        await trickle(user, 1000, 10, MIB // 2)
        assert user.volume.archiver.migration.segments == 6, "8 MiB each 160 seconds"


async def test_what_comes_very_slowly_does_not_wait_for_ever(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    await rig.format()
    async with rig.mounted() as user:
        await trickle(user, 10 * IDLE_S - 1, 10, 1)
        assert user.volume.archiver.migration.segments == 0
        await trickle(user, 30, 10, 1)
        assert user.volume.archiver.migration.segments == 1


def test_a_burst_is_worth_its_stop_at_the_rate_that_is_measured() -> None:
    rate, stop_s, burst_s = 100 * MIB, 3.0, 30.0
    for _ in range(20):
        size = burst_bytes(int(rate * burst_s), burst_s + stop_s)
        burst_s = size / rate
    assert burst_s / (burst_s + stop_s) > 0.91


def test_a_burst_leaves_room_for_as_much_again() -> None:
    assert burst_share_bytes(GIB, Config(spool_high_water=0.5)) == GIB // 4
