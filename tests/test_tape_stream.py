"""The emulated drive's buffer: when the host waits, when the tape stops, and what a stop costs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.personality import PERSONALITIES
from tapefs.emulator.tape_stream import TapeStream
from tapefs.emulator.target import Target
from tapefs.scsi import cdb as c

if TYPE_CHECKING:
    from pathlib import Path

KB = 1000
# A second's worth in the buffer, and a stop takes three.
DRIVE = dataclasses.replace(
    PERSONALITIES["ait3"], rate_bytes_per_s=100 * KB, drive_buffer_bytes=100 * KB, stop_s=3.0
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 10.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream(clock: Clock) -> TapeStream:
    return TapeStream(DRIVE, clock)


def test_a_buffer_with_room_takes_data_at_once(stream: TapeStream) -> None:
    assert stream.accept(40 * KB) == 0
    assert not stream.is_writing(), "it waits for more"
    assert stream.accept(20 * KB) == 0
    assert stream.is_writing()


def test_a_full_buffer_passes_on_the_pace_of_the_tape(clock: Clock, stream: TapeStream) -> None:
    waited_s = 0.0
    for _ in range(50):
        delay_s = stream.accept(20 * KB)
        waited_s += delay_s
        clock.now_s += delay_s
    assert waited_s == pytest.approx(9.0), "but for the second's worth that is in the buffer"
    assert stream.statistics.back_hitch_count == 0
    assert stream.statistics.writing_s == pytest.approx(9.0)


def test_an_empty_buffer_stops_the_tape(clock: Clock, stream: TapeStream) -> None:
    stream.accept(60 * KB)
    clock.now_s += 0.5
    assert stream.is_writing()
    clock.now_s += 0.2
    assert not stream.is_writing()
    assert stream.statistics.back_hitch_count == 1
    stream.accept(60 * KB)
    clock.now_s += 2.0
    assert not stream.is_writing(), "the tape is on its way back"
    assert stream.accept(60 * KB) == pytest.approx(0.9 + 0.2), "that, and room for the rest"
    assert stream.statistics.writing_s == pytest.approx(0.6 + 0.2)


def test_a_flush_ends_in_a_stop(clock: Clock, stream: TapeStream) -> None:
    stream.accept(80 * KB)
    assert stream.flush() == pytest.approx(0.8 + 3.0)
    clock.now_s += 3.8
    assert stream.accept(100 * KB) == 0
    clock.now_s += 0.5
    assert stream.statistics.stop_count == 1
    assert stream.statistics.back_hitch_count == 0
    assert stream.is_writing()


def test_waits_add_up_when_the_clock_stands_still(stream: TapeStream) -> None:
    assert stream.accept(100 * KB) == 0
    assert stream.accept(50 * KB) == pytest.approx(0.5)
    assert stream.accept(50 * KB) == pytest.approx(0.5)
    assert stream.flush() == pytest.approx(4.0)


def test_a_drive_that_matches_its_speed_waits_for_the_host(clock: Clock) -> None:
    stops = {}
    for lowest in (None, 50 * KB):
        drive = dataclasses.replace(DRIVE, rate_min_bytes_per_s=lowest)
        stream = TapeStream(drive, clock)
        for _ in range(600):
            clock.now_s += 0.1 + stream.accept(6 * KB)
        stops[lowest] = stream.statistics.back_hitch_count
    assert stops[None] > 5
    assert stops[50 * KB] == 0


def test_what_was_lost_with_the_power_is_not_written(clock: Clock, stream: TapeStream) -> None:
    stream.accept(80 * KB)
    clock.now_s += 0.2
    stream.discard()
    clock.now_s += 5
    assert not stream.is_writing()
    assert stream.statistics.written_bytes == pytest.approx(20 * KB)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 300 * KB) | st.none()), max_size=30))
def test_nothing_is_written_faster_than_the_tape_runs(
    events: list[tuple[float, int | None]],
) -> None:
    clock = Clock()
    stream, accepted = TapeStream(DRIVE, clock), 0
    for pause_s, size in events:
        clock.now_s += pause_s
        delay_s = stream.flush() if size is None else stream.accept(size)
        assert delay_s >= 0
        clock.now_s += delay_s
        accepted += min(size or 0, DRIVE.drive_buffer_bytes)
    stream.flush()
    found = stream.statistics
    assert found.written_bytes == pytest.approx(accepted, abs=1)
    assert found.writing_s == pytest.approx(found.written_bytes / DRIVE.rate_bytes_per_s, abs=1e-3)


def test_the_target_takes_as_long_as_the_buffer_lets_it(tmp_path: Path, clock: Clock) -> None:
    with VirtualCartridge.create(tmp_path / "c.tap", "ait3", 1 << 30) as cartridge:
        drive = dataclasses.replace(DRIVE, default_block_bytes=0)
        target = Target(cartridge, drive, stream=TapeStream(drive, clock))
        while not target.execute(c.TestUnitReady().pack()).good:
            pass
        before_s = target.busy_s
        assert target.execute(c.Write6(60 * KB).pack(), bytes(60 * KB)).good
        assert target.busy_s == before_s
        assert target.execute(c.WriteFilemarks6(1).pack()).good
        assert target.busy_s - before_s == pytest.approx(0.6 + 3.0)
