"""Status as OpenMetrics text: judged by Prometheus's own parser, in the old format as well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import prometheus_client.openmetrics.parser as judge
import pytest
import trio
import trio.testing
from first_light_rig import new_host
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import parser as old_judge

from tapefs.cli.mount_words import tell_apart
from tapefs.config import parse_options
from tapefs.control.openmetrics import FAMILIES, LANE_STATES, openmetrics
from tapefs.daemon.metrics_file import EVERY_S, MetricsFile
from tapefs.errors import StateUnusable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from first_light_rig import Host
    from log_police import Announcement
    from prometheus_client import Metric

STATUS: dict[str, Any] = {
    "mountpoint": "/mnt/tape",
    "volume": "FIRST",
    "uuid": "11111111-2222-3333-4444-555555555555",
    "mode": "read-write",
    "all_on_tape": False,
    "problem": None,
    "drive": {"vendor": "HP", "product": "Ultrium 5-SCSI", "serial": "VT1", "name": "usb"},
    "lane": {
        "state": "writing",
        "for_s": 12.5,
        "written_bytes_per_s": 140_000_000,
        "read_bytes_per_s": 0,
        "drive_busy_percent": 97,
        "jobs_waiting": {"recall": 2, "archive": 0},
    },
    "tape": {
        "capacity_bytes": 1_500_000_000_000,
        "written_bytes": 5,
        "free_bytes": None,
        "segments": 3,
        "closings": 2,
        "checkpoints": 1,
        "torn_tape_files": 0,
    },
    "spool": {
        "used_bytes": 1,
        "limit_bytes": 2,
        "not_on_tape_bytes": 3,
        "not_on_tape_files": 4,
    },
    "since_mount": {
        "segments": 1,
        "checkpoints": 0,
        "written_bytes": 2**53,
        "recalls": 7,
        "records_read": 8,
        "checksum_mismatches": 0,
        "reads_waiting": 1,
    },
    "verification": {
        "proven_good": "2031-01-02T03:04:05+00:00",
        "unverified_tape_files": 2,
        "damaged_places": 0,
    },
    "health": {
        "warnings": ["clean it"],
        "alerts": [{"flag": 20, "about": "cleaning", "says": "the drive needs cleaning now"}],
        "cleaning_requested": True,
        "corrected_write_errors_count": 9,
        "uncorrected_write_errors_count": 0,
        "corrected_read_errors_count": None,
        "uncorrected_read_errors_count": None,
        "cartridge_loads_count": 17,
        "cartridge_written_bytes": 10**13,
        "cartridge_read_bytes": 0,
        "drive_power_on_h": 2,
        "drive_cleanings_count": 1,
    },
}


def parse(text: str) -> list[Metric]:
    """As Prometheus reads OpenMetrics."""
    return list(judge.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def parse_old(text: str) -> list[Metric]:
    """As the text format was before, and the node exporter reads it."""
    return list(old_judge.text_string_to_metric_families(text))


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in parse(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_the_parser_understands_every_family() -> None:
    text = openmetrics([STATUS])
    families = {family.name: family for family in parse(text)}
    assert families.keys() == {family.name for family in FAMILIES} - {"tapefs_tape_free_bytes"}
    assert "tapefs_tape_free_bytes" not in text, "what is not known is left out"
    assert text.endswith("# EOF\n")
    found = samples(text)
    assert found["tapefs_archived_bytes_total"][0][1] == 2**53
    assert found["tapefs_drive_busy_ratio"][0][1] == 0.97
    assert found["tapefs_drive_powered_seconds_total"][0][1] == 7200
    assert found["tapefs_proven_good_timestamp_seconds"][0][1] == 1_925_089_445
    states = {labels["state"]: value for labels, value in found["tapefs_lane_state"]}
    assert states == {state: state == "writing" for state in LANE_STATES}
    ((labels, _),) = found["tapefs_tape_alert"]
    assert (labels["flag"], labels["says"]) == ("20", "the drive needs cleaning now")
    assert {labels["direction"] for labels, _ in found["tapefs_corrected_errors_total"]} == {
        "write"
    }


def test_the_node_exporters_format_has_the_same_samples() -> None:
    text = openmetrics([STATUS])
    old = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_old(text)
        for sample in family.samples
    }
    new = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }
    assert old == new


def test_several_mounts_stand_together_and_none_is_an_answer() -> None:
    other = {**STATUS, "mountpoint": "/mnt/other"}
    found = samples(openmetrics([STATUS, other]))
    assert [labels["mountpoint"] for labels, _ in found["tapefs_mount"]] == [
        "/mnt/tape",
        "/mnt/other",
    ]
    assert openmetrics([]) == "# EOF\n"
    assert parse(openmetrics([])) == []


@example(r"a\b", 'a"b')
@example("a\nb", r"\n\\")
@example("\\", '"')
@given(st.text(), st.text())
def test_any_name_is_a_label(mountpoint: str, volume: str) -> None:
    text = openmetrics([{**STATUS, "mountpoint": mountpoint, "volume": volume}])
    one = [line for line in text.split("\n") if line.startswith("tapefs_mount{")]
    ((labels, _),) = samples("\n".join(("# TYPE tapefs_mount gauge", *one, "# EOF\n")))[
        "tapefs_mount"
    ]
    assert labels["mountpoint"] == mountpoint
    assert labels["volume"] == volume


def test_a_mountpoint_that_is_no_utf_8() -> None:
    text = openmetrics([{**STATUS, "mountpoint": os.fsdecode(b"/mnt/\xff")}])
    assert samples(text)["tapefs_mount"][0][0]["mountpoint"] == "/mnt/?"


# -- the file


async def test_the_file_is_replaced_as_a_whole_and_goes_with_the_mount(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "tapefs.prom"
    status = dict(STATUS)
    async with trio.open_nursery() as nursery:
        await nursery.start(MetricsFile(path, lambda: status).run)
        first = path.read_text()
        assert samples(first)["tapefs_all_on_tape"][0][1] == 0
        with path.open() as reader:
            status["all_on_tape"] = True
            await trio.sleep(EVERY_S + 1)
            assert reader.read() == first, "who reads the old one reads it to its end"
        assert samples(path.read_text())["tapefs_all_on_tape"][0][1] == 1
        assert path.stat().st_mode & 0o777 == 0o644 & ~os.umask(os.umask(0o022))
        nursery.cancel_scope.cancel()
    assert list(tmp_path.iterdir()) == []


async def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "missing" / "tapefs.prom", lambda: STATUS)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(file.run)
    error = caught.value.exceptions[0]
    assert isinstance(error, StateUnusable)
    assert str(error) == (
        f"the metrics file {tmp_path}/missing/tapefs.prom cannot be written (No such file or "
        "directory); name another one with -o metrics="
    )


async def test_a_disk_that_fills_later_is_told_once(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    assert_logs: Callable[..., Announcement],
) -> None:
    assert_logs("metrics.failed", 1)
    directory = tmp_path / "d"
    directory.mkdir()
    async with trio.open_nursery() as nursery:
        await nursery.start(MetricsFile(directory / "tapefs.prom", lambda: STATUS).run)
        directory.rename(tmp_path / "gone")
        await trio.sleep(3.5 * EVERY_S)
        (tmp_path / "gone").rename(directory)
        await trio.sleep(EVERY_S)
        nursery.cancel_scope.cancel()


def test_the_option_takes_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert tell_apart("metrics=a.prom").settings == f"metrics={tmp_path}/a.prom"
    assert parse_options("metrics=/a/b.prom").metrics == "/a/b.prom"
    for value in ("", "/a/", "b.prom"):
        with pytest.raises(UsageError, match="mount option metrics takes the path of a file, not"):
            parse_options(f"metrics={value}")


# -- a real mount


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """One mount for all that needs one."""
    plan = "drive alert flags=20\n"
    with new_host() as host:
        (host.root / "plan").write_text(plan)
        host.drive = f"{host.drive}?faults={host.root}/plan"
        host.format()
        host.mount(f"metrics={host.root}/tapefs.prom")
        yield host
        host.umount()
        assert not (host.root / "tapefs.prom").exists()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not come to that")


@pytest.mark.fuse
def test_a_mount_has_figures_in_a_file_and_over_its_socket(host: Host) -> None:
    in_file = samples((host.root / "tapefs.prom").read_text())
    assert in_file["tapefs_mount"][0][0]["mountpoint"] == str(host.mountpoint)
    over_socket = samples(host.ok("status", host.mountpoint, "--metrics"))
    assert over_socket.keys() >= in_file.keys()
    assert "tapefs_mount" in samples(host.ok("status", "--metrics"))
    done = host.tapefs("status", "--metrics", "--json")
    assert done.code == 2
    assert "--metrics is a format of its own: leave out --json" in done.stderr


@pytest.mark.fuse
def test_an_alert_of_the_drive_is_in_status_log_and_metrics(host: Host) -> None:
    until(lambda: bool(host.status()["health"]["alerts"]))
    health = host.status()["health"]
    assert health["warnings"] == [
        "the drive needs cleaning now: unmount, load a cleaning cartridge, and mount again"
    ]
    assert "drive.tape_alert flag=20 about=cleaning" in host.log()
    figures = samples(host.ok("status", host.mountpoint, "--metrics"))
    assert figures["tapefs_tape_alert"][0][0]["flag"] == "20"
    assert figures["tapefs_warnings"][0][1] == 1
    assert "load a cleaning cartridge" in host.ok("status", host.mountpoint)


@pytest.mark.fuse
def test_sigusr1_writes_the_state_to_the_log(host: Host) -> None:
    secret = host.mountpoint / "name-of-a-secret-file"
    with secret.open("wb") as file:
        file.write(b"content-of-it" * 1000)
        file.flush()
        os.kill(host.daemon.pid, signal.SIGUSR1)
        until(lambda: "state task" in host.log())
        time.sleep(0.2)
    log = host.log()
    for part in ("versions", "config", "lane", "tape", "spool", "archiver", "drive_capabilities"):
        assert f"state {part} " in log
    assert '"writers": 1' in log
    assert "Scheduler.run" in log, "where the lane's task waits"
    assert "Current thread" in log, "the interpreter's own stacks"
    assert "secret" not in log
    assert "content-of-it" not in log
    secret.unlink()
    for _ in range(20):
        os.kill(host.daemon.pid, signal.SIGUSR1)
    assert host.status()["state"] in ("idle", "writing", "indexing", "flushing", "positioning")


@pytest.mark.parametrize("moment", ["before the loop", "in the loop", "after the loop"])
def test_sigusr1_ends_no_mount_that_begins_or_ends(moment: str) -> None:
    program = f"""
import os, signal, trio
from tapefs import telemetry
from tapefs.daemon.state_dump import dump_on_signal, ignoring_signal

def strike(when):
    if when == {moment!r}:
        os.kill(os.getpid(), signal.SIGUSR1)

async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(dump_on_signal, lambda: {{"lane": "idle", "broken": object()}})
        strike("in the loop")
        await trio.sleep(0.2)
        nursery.cancel_scope.cancel()

telemetry.set_up(None, verbose=False)
with ignoring_signal():
    strike("before the loop")
    trio.run(main)
    strike("after the loop")
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ('state lane "idle"' in done.stderr) is (moment == "in the loop")


def test_a_loop_that_hangs_shows_where() -> None:
    program = """
import os, signal, time, trio
from tapefs import telemetry
from tapefs.daemon.state_dump import dump_on_signal

def culprit():
    os.kill(os.getpid(), signal.SIGUSR1)
    os._exit(0)  # the loop never comes back

async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(dump_on_signal, dict)
        culprit()

telemetry.set_up(None, verbose=False)
trio.run(main)
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "in culprit" in done.stderr
