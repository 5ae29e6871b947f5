"""What a command prints: for people, for terminals, for scripts."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from typing import Any

import pytest
from screen_rig import Terminal as Screen

from tapefs.cli import status
from tapefs.cli.terminal import Table, Terminal, amounts_text, bytes_text, duration_text, named_rows

MIB = 1 << 20

STATUS: dict[str, Any] = {
    "mountpoint": "/mnt/tape",
    "state": "mounted",
    "drive": {"product": "SDX-700", "position_block": 12, "write_protected": False},
    "spool": {"used_bytes": 3 * 1024**2, "rate_bytes_per_s": 12.5 * 1024**2, "oldest_s": 200},
    "not_on_tape": {"file_count": 1200, "bytes": 1024},
}


class FakeTty(io.StringIO):
    """Text that goes to a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_tables_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out, err = FakeTty(), FakeTty()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    terminal = Terminal()
    with terminal.progress() as report:
        report({"phase": "archive", "done_bytes": 1024, "total_bytes": 2048})
        report({"message": "rewinding [bold]"})
    terminal.answer({}, "[done]", *status.tables(STATUS))
    assert "rewinding [bold]" in err.getvalue()
    assert "[done]" in out.getvalue()
    assert "SDX-700" in out.getvalue()
    assert "─" in out.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 * 1024**4, "5.0 TiB"),
        (2**70, "1048576.0 PiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_rows_for_values_of_every_kind() -> None:
    values = {
        "names": ["a", "b"],
        "none": [],
        "gone": None,
        "group": {"x_bytes": 1},
        "n_count": 9999,
    }
    assert named_rows(values) == [
        ("names", "a, b"),
        ("none", "none"),
        ("group", "x 1 B"),
        ("n", "9,999"),
    ]


@pytest.mark.parametrize(
    ("done", "total", "rate", "elapsed", "wide", "narrow"),
    [
        (MIB, 4 * MIB, MIB, 9.0, "1.0 MiB of 4.0 MiB, 1.0 MiB/s, 3.0 s left", "25 %, 3.0 s left"),
        (MIB, 4 * MIB, None, 9.0, "1.0 MiB of 4.0 MiB", "25 %"),
        (
            5 * MIB,
            4 * MIB,
            MIB,
            9.0,
            "5.0 MiB of 4.0 MiB, 1.0 MiB/s, 0.0 s left",
            "125 %, 0.0 s left",
        ),
        (MIB, None, None, 9.0, "1.0 MiB", "1.0 MiB"),
        (None, None, None, 9.0, "9.0 s", "9.0 s"),
        (None, None, None, 0.5, "", ""),
        (None, None, None, None, "", ""),
    ],
)
def test_how_far_it_is(
    done: int | None,
    total: int | None,
    rate: float | None,
    elapsed: float | None,
    wide: str,
    narrow: str,
) -> None:
    assert amounts_text(done, total, rate, elapsed, narrow=False) == wide
    assert amounts_text(done, total, rate, elapsed, narrow=True) == narrow


def test_scripts_hear_of_progress_only_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Terminal(json_output=True).progress() as report:
        for tenth in range(45):
            now[0] = tenth / 10
            report({"event": "progress", "done_bytes": tenth, "total_bytes": 45})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["done_bytes"] for line in lines] == [20, 30, 40]


SLOW_COMMAND = """
import time
from tapefs.cli.terminal import Terminal
with Terminal().progress() as report:
    report({"message": "reading the label"})
    time.sleep(0.3)
    for done in range(1, 41):
        report({"message": "writing to tape", "done_bytes": done << 20, "total_bytes": 40 << 20})
        time.sleep(0.1)
"""


@pytest.mark.parametrize("columns", [40, 80])
def test_a_bar_fits_the_terminal_and_goes(columns: int) -> None:
    env = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    env = {name: text for name, text in env.items() if name not in ("COLUMNS", "LINES")}
    with Screen([sys.executable, "-c", SLOW_COMMAND], columns, 5, env) as screen:
        lines = screen.until(lambda lines: " left" in "".join(lines))
        assert lines[0].startswith("writing to tape")
        assert "?" not in lines[0], "nothing is shown that is not known"
        assert lines[1:] == [""] * 4, "one line, however narrow"
        assert ("━" in lines[0]) is (columns == 80)
        assert screen.wait() == 0
        assert screen.lines() == [""] * 5


ASKING = (
    "insert the cartridge of volume 'FIRST' (4ed17507) (usb:3-1 has a cartridge of another "
    "volume); Ctrl-C gives up"
)
ASKING_COMMAND = f"""
import time
from tapefs.cli.terminal import Terminal
with Terminal().progress() as report:
    for _ in range(10):
        report({{"message": {ASKING!r}}})
        time.sleep(0.1)
"""


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_what_one_is_asked_to_do_is_never_cut_off(columns: int) -> None:
    env = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    env = {name: text for name, text in env.items() if name not in ("COLUMNS", "LINES")}
    with Screen([sys.executable, "-c", ASKING_COMMAND], columns, 8, env) as screen:
        screen.until(lambda lines: ASKING in " ".join(" ".join(lines).split()))
        assert screen.wait() == 0
        assert screen.lines() == [""] * 8


VOLUMES = Table(
    "volumes",
    [("FIRST", "e875bfb5", "2031-05-17", "46.2 MiB"), ("SECOND", "736c0a12", "never", "1.0 KiB")],
    ("volume", "UUID", "last here", "content"),
)


def shown(columns: int, monkeypatch: pytest.MonkeyPatch, *parts: str | Table) -> list[str]:
    """What a terminal so wide gets."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    out = FakeTty()
    monkeypatch.setattr(sys, "stdout", out)
    Terminal().answer({}, *parts)
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()]


def test_a_table_breaks_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "│ FIRST  │ e875bfb5 │ 2031-05-17 │ 46.2 MiB │" in shown(80, monkeypatch, VOLUMES)
    assert shown(40, monkeypatch, VOLUMES) == [
        "volumes",
        "FIRST",
        "  UUID e875bfb5, last here 2031-05-17,",
        "  content 46.2 MiB",
        "SECOND",
        "  UUID 736c0a12, last here never,",
        "  content 1.0 KiB",
    ]


def test_nothing_is_cut_off_and_commands_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/a" * 60
    lines = shown(60, monkeypatch, Table("found", [("file", path)]), f"next: ls {path}")
    assert "".join("".join(lines).replace("│", " ").split()).count("/a") == 120
    assert lines[-1] == f"next: ls {path}"
