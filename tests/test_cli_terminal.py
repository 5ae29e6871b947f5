"""What a command prints: for people, for terminals, for scripts."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from tapefs.cli import status
from tapefs.cli.terminal import Terminal, bytes_text, duration_text, named_rows

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
