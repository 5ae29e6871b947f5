"""Years of use, trouble and crashes in seconds: the whole stack in virtual time, against a model.

Users come and go, files are changed, synced, read back from tape; the power fails, the cable is
pulled, blocks go bad, the daemon is killed, hosts are lost. After every mount: what was
acknowledged is there, nothing was invented, and catalog, spool and tape agree. A seed says
everything; `TAPEFS_SIMULATION_SEEDS=N` tries N of them, `TAPEFS_SIMULATION_FIRST` is the first.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from crash_rig import logs_expected, scratch
from sim_world import Tally, Years
from volume_rig import Rig

from tapefs.config import Config

SEEDS = int(os.environ.get("TAPEFS_SIMULATION_SEEDS", "8"))
FIRST = int(os.environ.get("TAPEFS_SIMULATION_FIRST", "1"))
LIVES = 20
DIARY = os.environ.get("TAPEFS_SIMULATION_DIARY", "")
# Over all seeds of this run.
TOTAL = Tally()


def simulate(seed: int, monkeypatch: pytest.MonkeyPatch, lives: int = LIVES) -> Years:
    """Run one seed to its end; the diary goes to the file TAPEFS_SIMULATION_DIARY, if given."""
    with scratch() as directory, logs_expected(up_to=logging.ERROR):
        years = Years(seed, directory, keep_diary=bool(DIARY))
        try:
            years.run(monkeypatch, lives)
        finally:
            if DIARY:
                Path(DIARY).write_text("\n".join(years.diary.lines))
    return years


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_years_of_use(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    years = simulate(seed, monkeypatch)
    TOTAL.add(years.tally)
    print(f"seed {seed}: {years.tally}; {time.monotonic() - started:.1f} s, {years.diary.digest}")
    print(f"so far: {TOTAL}")


def test_a_seed_says_everything() -> None:
    digests = {run_elsewhere(hash_seed) for hash_seed in ("1", "2")}
    assert len(digests) == 1, digests


def run_elsewhere(hash_seed: str) -> str:
    """The hash of all events of one seed, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "7", "3"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "TAPEFS_SIMULATION_DIARY": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


async def test_nothing_runs_while_nothing_happens(autojump_clock: object) -> None:
    with scratch() as directory:
        # That the drive is still there is looked at every few seconds, by one command.
        rig = Rig(directory, config=Config(drive_check_s=1e9))
        await rig.format()
        async with rig.mounted() as user:
            await user.write("a", b"content")
            await user.sync()
            await trio.sleep(3600)
            steps = StepCounter()
            trio.lowlevel.add_instrument(steps)
            await trio.sleep(365 * 86_400)
            trio.lowlevel.remove_instrument(steps)
            assert steps.count < 10


class StepCounter(trio.abc.Instrument):
    """Counts how often any task ran."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: object) -> None:
        """Some task runs."""
        self.count += 1


if __name__ == "__main__":
    print(simulate(int(sys.argv[1]), pytest.MonkeyPatch(), int(sys.argv[2])).diary.digest)
