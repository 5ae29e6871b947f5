"""What a drive is at, told from the commands that go to it; and how fast, over a window."""

from __future__ import annotations

import pytest

from tapefs.drive.activity import WINDOW_S, Activity, Motion
from tapefs.scsi import cdb as c

MB = 1_000_000


def send(activity: Activity, command: c.Command, at_s: float, for_s: float, size: int = 0) -> None:
    activity.begin(command, at_s)
    activity.end(command, size, at_s + for_s)


@pytest.mark.parametrize(
    ("command", "motion"),
    [
        (c.Write6(4096), Motion.WRITING),
        (c.WriteFilemarks6(1), Motion.FLUSHING),
        (c.Read6(4096), Motion.READING),
        (c.Space6(c.SpaceCode.FILEMARKS, 1), Motion.POSITIONING),
        (c.Locate10(7), Motion.POSITIONING),
        (c.Locate16(7), Motion.POSITIONING),
        (c.Rewind(), Motion.REWINDING),
    ],
)
def test_a_command_says_what_the_drive_is_at(command: c.Command, motion: Motion) -> None:
    activity = Activity()
    send(activity, command, 5.0, 1.0)
    assert (activity.motion, activity.motion_since_s) == (motion, 5.0)
    assert activity.since(5.0) is motion
    assert activity.since(5.1) is None, "nothing was sent since"


def test_questions_change_nothing_and_time_counts_from_the_first_of_a_kind() -> None:
    activity = Activity()
    assert activity.since(0.0) is None
    for second in range(3):
        send(activity, c.Write6(4096), float(second), 0.5, 4096)
        send(activity, c.TestUnitReady(), second + 0.6, 0.1)
    assert (activity.motion, activity.motion_since_s) == (Motion.WRITING, 0.0)


def test_rates_and_how_busy_the_drive_is() -> None:
    activity = Activity()
    nothing = activity.rates(100.0)
    assert (nothing.written_bytes_per_s, nothing.read_bytes_per_s) == (0.0, 0.0)
    assert nothing.busy_share is None
    for second in range(100, 104):
        for part in range(4):
            send(activity, c.Write6(MB), second + part / 4, 0.125, MB)
    rates = activity.rates(104.0)
    assert rates.written_bytes_per_s == 4 * MB
    assert rates.read_bytes_per_s == 0
    assert rates.busy_share == pytest.approx(0.5)
    send(activity, c.Read6(MB), 104.0, 4.0, 4 * MB)
    assert activity.rates(108.0).read_bytes_per_s == MB / 2


def test_what_was_long_ago_does_not_count() -> None:
    activity = Activity()
    send(activity, c.Write6(MB), 0.0, 0.5, MB)
    assert activity.rates(WINDOW_S - 1.0).written_bytes_per_s == MB / (WINDOW_S - 1)
    assert activity.rates(WINDOW_S + 0.0).written_bytes_per_s == 0
    assert activity.rates(WINDOW_S + 0.0).busy_share is None


def test_one_long_command_is_one_busy_drive() -> None:
    activity = Activity()
    send(activity, c.Write6(MB), 0.0, 3.5, MB)
    rates = activity.rates(4.0)
    assert rates.busy_share == pytest.approx(1.0)
    assert rates.written_bytes_per_s == pytest.approx(MB / 3.5)


def test_what_is_kept_does_not_grow() -> None:
    activity = Activity()
    for second in range(10_000):
        send(activity, c.Write6(MB), float(second), 0.5, MB)
    assert len(activity._seconds) <= WINDOW_S + 1
