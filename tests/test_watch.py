"""`tapefs status --watch`, looked at: on terminals of all kinds, in a pipe, and with mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from screen_rig import STUCK_S, Terminal
from test_openmetrics import STATUS as FIGURES

from tapefs import cli, control
from tapefs.cli import watch
from tapefs.cli.watch_screen import ASCII, UNICODE, WIDTH_MIN, draw, summary
from tapefs.control import server as control_server
from tapefs.errors import DriveBusy, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TAPEFS = Path(sys.executable).with_name("tapefs")
MAP = "=" * 20 + "|" + "=" * 10 + "!" + "=" * 8 + "." * 60

STATUS: dict[str, Any] = {
    **FIGURES,
    "generation": None,
    "state": "writing",
    "problem": None,
    "away_since": None,
    "unmounting": False,
    "drive": {**FIGURES["drive"], "virtual": False},
    "lane": {**FIGURES["lane"], "recalls_waiting_at_blocks": [1200, 90_000]},
    "tape": {
        **FIGURES["tape"],
        "free_bytes": 900 << 30,
        "position_bytes": 600_000_000_000,
        "map": MAP,
        "map_covers_bytes": 1_500_000_000_000,
        "torn_tape_files": 1,
    },
    "spool": {
        "used_bytes": 3 << 30,
        "limit_bytes": 16 << 30,
        "not_on_tape_bytes": 2 << 30,
        "not_on_tape_files": 4,
        "going_to_tape_bytes": 1 << 30,
    },
    "since_mount": {**FIGURES["since_mount"], "rate_bytes_per_s": 120_000_000},
}
IDLE: dict[str, Any] = {
    **STATUS,
    "state": "idle",
    "all_on_tape": True,
    "lane": {
        **STATUS["lane"],
        "state": "idle",
        "written_bytes_per_s": 0,
        "jobs_waiting": {},
        "recalls_waiting_at_blocks": [],
    },
    "tape": {**STATUS["tape"], "position_bytes": None, "free_bytes": None, "torn_tape_files": 0},
    "since_mount": {**STATUS["since_mount"], "reads_waiting": 0},
    "health": {**STATUS["health"], "warnings": []},
}


def text_of(status: dict[str, Any], width: int = 100, glyphs: Any = UNICODE) -> str:
    return "\n".join(line.plain for line in draw(status, width, "12:34:56", glyphs))


# -- the drawing


def test_everything_that_one_wants_to_know_is_on_the_screen() -> None:
    text = text_of(STATUS)
    for fact in (
        "FIRST  /mnt/tape",
        "HP Ultrium 5-SCSI VT1",
        "usb, read-write",
        "● writing for 12.5 s",
        "133.5 MiB/s, drive busy 97 %",
        "900.0 GiB free (2 h 14 min of writing)",
        "3 segments, 1 checkpoint, 1 torn",
        "3.0 GiB of 16.0 GiB",
        "4 files (2.0 GiB) not on tape yet",
        "1.0 GiB on the way, the rest takes 7.7 s",
        "2 recalls, 1 read of programs wait",
        "recalls at block 1,200, 90,000",
        "all of the tape was good on 2031-01-02",
        "! clean it",
        "12:34:56",
    ):
        assert fact in text, fact


def test_the_tape_is_drawn_to_scale() -> None:
    head, tape = text_of(STATUS, 107).splitlines()[5:7]
    assert tape == "tape   " + MAP.translate(str.maketrans("=|!.", "█┃▒·"))
    assert head.index("▼") == 7 + 40, "the head stands at the end of what is written"
    narrow = text_of(STATUS, 57).splitlines()
    drawn = next(line for line in narrow if line.startswith("tape"))[7:]
    assert len(drawn) == 50
    assert (drawn.count("┃"), drawn.count("▒")) == (1, 1), "what is small is not lost"


def test_an_idle_mount_says_so_and_nothing_that_is_not_known() -> None:
    text = text_of(IDLE)
    assert "● idle" in text
    assert "everything is on tape" in text
    assert "nobody waits" in text
    for absent in ("/s", "busy", "free", "▼", "!", "None"):
        assert absent not in text, absent


def test_what_is_wrong_is_on_it() -> None:
    away = {**STATUS, "state": "away", "problem": "the cable is out: plug it in again"}
    away["lane"] = {**STATUS["lane"], "state": "away"}
    away["verification"] = {**STATUS["verification"], "damaged_places": 2}
    text = text_of(away)
    assert "● away" in text
    assert "! the cable is out: plug it in again" in text
    assert "2 damaged places: see 'tapefs verify'" in text
    assert "away" in summary(away)
    assert "the cable is out" in summary(away)
    renamed = {**IDLE, "all_on_tape": False}
    renamed["spool"] = {**STATUS["spool"], "not_on_tape_files": 0, "going_to_tape_bytes": 0}
    assert "changes of names are not on tape yet" in text_of(renamed)


@given(width=st.integers(1, 200), long=st.text(max_size=300), ascii_only=st.booleans())
def test_it_fits_whatever_the_width(width: int, long: str, ascii_only: bool) -> None:
    words = "".join(char for char in long if char.isprintable())
    status = {**STATUS, "mountpoint": f"/mnt/{words}", "problem": f"{words} and {words}"}
    lines = draw(status, width, "12:34:56", ASCII if ascii_only else UNICODE)
    assert all(line.cell_len <= max(width, WIDTH_MIN) for line in lines)
    for idle in draw(IDLE, width, "12:34:56", ASCII):
        assert idle.plain.isascii()


# -- on a terminal


class Served:
    """A Service with the status that the test wants."""

    def __init__(self) -> None:
        self.now: dict[str, Any] = STATUS

    def status(self) -> dict[str, Any]:
        return self.now

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"watching asks for status only, not {name}")


@asynccontextmanager
async def served(mountpoint: Path) -> AsyncIterator[tuple[Served, trio.CancelScope]]:
    service = Served()
    service.now = {**STATUS, "mountpoint": str(mountpoint)}
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
            with scope:
                path = control.socket_path(mountpoint)
                await control_server.serve(path, service, task_status=task_status)

        await nursery.start(serve)
        yield service, scope
        scope.cancel()


def environment(**more: str) -> dict[str, str]:
    clean = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")}
    clean.pop("NO_COLOR", None)
    return {**clean, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **more}


async def on_terminal(
    work: Callable[[Terminal], None], mountpoint: Path, columns: int = 100, **env: str
) -> Terminal:
    """Watch on a terminal while `work` looks at it, in a thread."""
    words = [str(TAPEFS), "status", str(mountpoint), "--watch", "--interval", "0.1"]

    def run() -> Terminal:
        with Terminal(words, columns, 30, environment(**env)) as terminal:
            work(terminal)
            terminal.wait()
            return terminal

    return await trio.to_thread.run_sync(run)


def shows(text: str) -> Callable[[list[str]], bool]:
    return lambda lines: any(text in line for line in lines)


ALTERNATE, BACK = b"\x1b[?1049h", b"\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
COLOURS = re.compile(rb"\x1b\[[0-9;]*(?:3[0-7]|9[0-7]|38;)[0-9;]*m")


@pytest.mark.parametrize("ending", ["ctrl-c", "sigterm"])
async def test_it_is_drawn_in_place_and_gives_the_terminal_back(
    tmp_path: Path, ending: str
) -> None:
    async with served(tmp_path) as (service, _):

        def work(terminal: Terminal) -> None:
            terminal.until(shows("writing"))
            assert ALTERNATE in terminal.raw
            assert HIDE_CURSOR in terminal.raw
            service.now = {**IDLE, "mountpoint": str(tmp_path)}
            terminal.until(lambda lines: shows("● idle")(lines) and not shows("writing")(lines))
            if ending == "ctrl-c":
                terminal.press(b"\x03")
            else:
                terminal.send(signal.SIGTERM)

        terminal = await on_terminal(work, tmp_path)
    assert terminal.code == 130
    assert terminal.raw.rindex(BACK) > terminal.raw.rindex(ALTERNATE)
    assert terminal.raw.rindex(SHOW_CURSOR) > terminal.raw.rindex(HIDE_CURSOR)
    assert terminal.raw.endswith(b"tapefs: no longer watching; the mount goes on\r\n")
    assert COLOURS.search(terminal.raw)


async def test_another_size_is_another_picture(tmp_path: Path) -> None:
    async with served(tmp_path):

        def work(terminal: Terminal) -> None:
            wide = terminal.until(shows("writing"))
            assert any(len(line) > 90 for line in wide)
            terminal.resize(40, 40)
            lines = terminal.until(lambda lines: not any(len(line) > 40 for line in lines))
            assert shows("writing")(lines)
            terminal.until(shows("! clean it"))
            terminal.press(b"\x03")

        await on_terminal(work, tmp_path)


async def test_without_colours(tmp_path: Path) -> None:
    async with served(tmp_path):

        def work(terminal: Terminal) -> None:
            terminal.until(shows("● writing"))
            terminal.press(b"\x03")

        terminal = await on_terminal(work, tmp_path, NO_COLOR="1")
    assert not COLOURS.search(terminal.raw)


async def test_a_terminal_that_cannot_draw_gets_lines(tmp_path: Path) -> None:
    async with served(tmp_path) as (service, _):

        def work(terminal: Terminal) -> None:
            terminal.until(shows("writing, 133.5 MiB/s, 4 files (2.0 GiB) not on tape yet"))
            service.now = {**IDLE, "mountpoint": str(tmp_path)}
            terminal.until(shows("idle, everything is on tape, spool 18 %"))
            terminal.press(b"\x03")

        terminal = await on_terminal(work, tmp_path, 120, TERM="dumb")
    assert b"\x1b" not in terminal.raw


async def test_the_mount_ends_while_one_watches(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, scope):

        def work(terminal: Terminal) -> None:
            terminal.until(shows("writing"))
            trio.from_thread.run_sync(scope.cancel)

        terminal = await on_terminal(work, tmp_path)
    assert terminal.code == 0
    assert terminal.raw.endswith(f"tapefs: {tmp_path} is not mounted any more\r\n".encode())


@pytest.mark.parametrize(("term", "drawn"), [("xterm-256color", True), ("dumb", False)])
async def test_without_watching_the_screen_is_printed_once(
    tmp_path: Path, term: str, drawn: bool
) -> None:
    async with served(tmp_path):

        def run() -> Terminal:
            with Terminal([str(TAPEFS), "status"], 60, 200, environment(TERM=term)) as terminal:
                terminal.wait()
                return terminal

        terminal = await trio.to_thread.run_sync(run)
    assert terminal.code == 0
    assert ALTERNATE not in terminal.raw
    lines = terminal.lines()
    assert shows("● writing for 12.5 s")(lines) is drawn
    assert shows("recalls waiting at blocks")(lines) is not drawn, "every figure"
    assert shows("HP")(lines)


# -- in a pipe


async def in_a_pipe(served_by: Served, mountpoint: Path, *words: str) -> list[str]:
    """The lines of a first status, of a change, and until Ctrl-C."""

    def run() -> list[str]:
        with subprocess.Popen(
            [TAPEFS, "status", mountpoint, "--watch", "--interval", "0.1", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            served_by.now = {**served_by.now, "lane": {**STATUS["lane"], "for_s": 99.0}}
            served_by.now = {**IDLE, "mountpoint": str(mountpoint)}
            lines.append(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            rest, complaint = process.communicate(timeout=STUCK_S)
            assert rest == "", "nothing that has not changed is printed again"
            assert "no longer watching" in complaint
            assert process.returncode == 130
            return lines

    return await trio.to_thread.run_sync(run)


async def test_in_a_pipe_a_document_a_line(tmp_path: Path) -> None:
    async with served(tmp_path) as (service, _):
        lines = await in_a_pipe(service, tmp_path, "--json")
    assert [json.loads(line)["lane"]["state"] for line in lines] == ["writing", "idle"]


async def test_in_a_pipe_a_sentence_a_line(tmp_path: Path) -> None:
    async with served(tmp_path) as (service, _):
        lines = await in_a_pipe(service, tmp_path)
    assert re.fullmatch(r"\d\d:\d\d:\d\d writing, .*, clean it\n", lines[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d idle, everything is on tape.*\n", lines[1])


# -- mistakes


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--watch", "--interval", "soon"], 2, "--interval takes seconds from 0.1 to 3600, not"),
        (["--watch", "--interval", "0"], 2, "--interval takes seconds from 0.1 to 3600, not '0'"),
        (["--watch", "--interval", "nan"], 2, "--interval takes seconds from 0.1 to 3600, not"),
        (["--interval", "2"], 2, "--interval goes with --watch only"),
        (["--watch", "--metrics"], 2, "not allowed with argument --watch"),
        (["--watch"], 16, "no tape of this user is mounted; 'tapefs mount --help' shows how"),
        (["/no/mount", "--watch"], 16, "no tapefs daemon serves /no/mount"),
    ],
)
def test_mistakes_have_a_sentence(
    words: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", *words]) == code
    assert sentence in capsys.readouterr().err


async def test_of_several_mounts_one_must_be_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    async with served(one), served(other):
        with pytest.raises(UsageError) as caught:
            await trio.to_thread.run_sync(watch.the_only_mount)
        assert "several tapes are mounted; say which to watch: " in str(caught.value)
        assert str(one) in str(caught.value)
    async with served(one):
        assert await trio.to_thread.run_sync(watch.the_only_mount) == one


def test_a_daemon_that_is_silent_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: Path) -> dict[str, Any]:
        raise DriveBusy("the daemon of /mnt/tape does not answer; try again, or read its log")

    monkeypatch.setattr(watch, "_ask", silent)
    found = watch._ask_again(Path("/mnt/tape"), {"lane": {}})
    assert found == {
        "lane": {},
        "unanswered": "the daemon of /mnt/tape does not answer; try again, or read its log",
    }


async def test_json_lines_come_once_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    show = partial(watch._JsonLines().show, problem="")
    show(STATUS)
    show({**STATUS, "lane": {**STATUS["lane"], "for_s": 13.5}})
    show({**STATUS, "all_on_tape": True})
    assert len(capsys.readouterr().out.splitlines()) == 2
