"""A spool that fills up slows writers down to the drive's pace, and stops nobody dead."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import trio
from benchmarks.virtual_time import inline
from hypothesis import given
from hypothesis import strategies as st
from volume_rig import Rig, User

from tapefs.archive import brake
from tapefs.archive.admission import Flow
from tapefs.archive.brake import WRITE_WAIT_MAX_S, Forecast, delay_s
from tapefs.config import GIB, MIB, Config
from tapefs.emulator.personality import personality_named
from tapefs.emulator.transport import TargetTransport

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 100 * MIB
HIGH_WATER = 0.7


def delay(used_bytes: int, next_room_s: float | None, write_bytes: int = MIB) -> float:
    return delay_s(write_bytes, used_bytes, LIMIT, HIGH_WATER, next_room_s)


# The law.


@given(st.integers(0, 2 * LIMIT), st.none() | st.floats(0, 1e9), st.integers(1, 16 * MIB))
def test_no_delay_is_negative_or_without_bound(
    used_bytes: int, next_room_s: float | None, write_bytes: int
) -> None:
    assert 0 <= delay(used_bytes, next_room_s, write_bytes) <= WRITE_WAIT_MAX_S
    if used_bytes <= HIGH_WATER * LIMIT:
        assert delay(used_bytes, next_room_s, write_bytes) == 0


@given(st.none() | st.floats(0, 1e4), st.integers(0, LIMIT), st.integers(0, LIMIT))
def test_the_fuller_the_slower(next_room_s: float | None, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert delay(low, next_room_s) <= delay(high, next_room_s)


@pytest.mark.parametrize("drive_bytes_per_s", [1 * MIB, 3 * MIB, 12 * MIB, 160 * MIB, 400 * MIB])
@pytest.mark.parametrize("spool_bytes", [16 * MIB, GIB, 100 * GIB])
def test_a_source_that_never_rests_finds_room_until_the_drive_is_done(
    spool_bytes: int, drive_bytes_per_s: int
) -> None:
    segment_s = HIGH_WATER * spool_bytes / drive_bytes_per_s
    used_bytes, at_s, longest_s = int(HIGH_WATER * spool_bytes), 0.0, 0.0
    step = max(MIB, spool_bytes >> 10)
    writes = step // MIB
    while at_s < segment_s and used_bytes + step <= spool_bytes:
        wait_s = delay_s(MIB, used_bytes, spool_bytes, HIGH_WATER, segment_s - at_s)
        longest_s = max(longest_s, wait_s)
        at_s += wait_s * writes + step / (2 * GIB)
        used_bytes += step
    assert at_s >= segment_s, "the spool was full before the drive had made room"
    # What is braked is brought down to the drive's pace, and not to a small part of it.
    if segment_s > 1:
        assert used_bytes - HIGH_WATER * spool_bytes > 0.2 * drive_bytes_per_s * segment_s
    assert longest_s < 5 * MIB / drive_bytes_per_s + 0.1


# The forecast.


def test_nobody_knows_before_the_first_segment_has_begun_and_moved() -> None:
    forecast = Forecast()
    assert forecast.next_room_s(0.0) is None
    forecast.begin(100, 10.0)
    assert forecast.next_room_s(20.0) is None
    forecast.progress(25, 20.0)
    assert forecast.next_room_s(20.0) == 31.0
    forecast.progress(0, 30.0)  # whoever writes has begun to count anew
    assert forecast.next_room_s(30.0) == 31.0


def test_the_segment_before_tells_the_rate_and_how_long_the_end_takes() -> None:
    forecast = Forecast()
    forecast.begin(100, 0.0)
    forecast.progress(100, 25.0)
    assert forecast.next_room_s(25.5) == 0.5
    forecast.end(30.0, committed=True)
    assert forecast.next_room_s(30.0) is None
    forecast.begin(200, 100.0)
    assert forecast.next_room_s(100.0) == 55.0
    forecast.progress(200, 140.0)
    assert forecast.next_room_s(142.0) == 3.0
    assert forecast.next_room_s(190.0) == 0.0


def test_a_segment_that_failed_says_nothing_of_the_end() -> None:
    forecast = Forecast()
    forecast.begin(100, 0.0)
    forecast.progress(100, 25.0)
    forecast.end(90.0, committed=False)
    forecast.begin(100, 100.0)
    assert forecast.next_room_s(100.0) == 26.0


# A volume on a drive that takes its time, in virtual time.


class Source:
    """A program that writes one file after the other as fast as it may, and notes its waits."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.longest_s = 0.0
        self.flows: set[Flow] = set()
        self.slowest_bytes_per_s = float("inf")

    async def write(self, name: str, size: int) -> None:
        data, contents = bytes(MIB), self.user.volume.contents
        ino = await self.user.write(name, b"")
        await contents.open(ino, write=True)
        for offset in range(0, size, MIB):
            before_s = trio.current_time()
            await contents.write(ino, offset, data)
            self.longest_s = max(self.longest_s, trio.current_time() - before_s)
            found = contents.admission.backpressure()
            self.flows.add(found.flow)
            if found.bytes_per_s is not None and found.next_room_s is not None:
                self.slowest_bytes_per_s = min(self.slowest_bytes_per_s, found.bytes_per_s)
        await contents.release(ino, write=True)


@pytest.fixture
def slow_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    config = Config(spool_bytes=64 * MIB, drive_check_s=1e9)
    rig = Rig(tmp_path, "dat72", GIB, config)
    rig.wire = functools.partial(TargetTransport, paced=True)
    return rig


async def test_a_large_file_is_taken_at_the_pace_of_the_drive(
    slow_rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    await slow_rig.format()
    async with slow_rig.mounted() as user:
        source, before_s = Source(user), trio.current_time()
        await source.write("large", 256 * MIB)
        assert source.longest_s <= WRITE_WAIT_MAX_S
        assert source.flows == {Flow.FREE, Flow.SLOWED}, "nobody waited for a full spool"
        # What the spool does not hold went to tape meanwhile, and the drive was not kept waiting.
        rate = personality_named("dat72").rate_bytes_per_s
        assert rate / 10 < source.slowest_bytes_per_s < rate
        assert trio.current_time() - before_s < 1.5 * 256 * MIB / rate


async def test_many_writers_share_one_pace(
    slow_rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    await slow_rig.format()
    async with slow_rig.mounted() as user:
        sources = [Source(user) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for number, source in enumerate(sources):
                nursery.start_soon(source.write, f"file {number}", 64 * MIB)
        longest_s = [source.longest_s for source in sources]
        assert max(longest_s) <= len(sources) * WRITE_WAIT_MAX_S
        assert Flow.WAITING not in set.union(*(source.flows for source in sources))


async def test_without_the_brake_somebody_would_wait_for_a_full_spool(
    slow_rig: Rig, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brake, "delay_s", lambda *_: 0.0)
    await slow_rig.format()
    async with slow_rig.mounted() as user:
        source = Source(user)
        await source.write("large", 256 * MIB)
        assert source.longest_s > WRITE_WAIT_MAX_S
