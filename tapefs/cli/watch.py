"""`tapefs status --watch`: the status of one mount, again and again, until it ends or Ctrl-C.

On a terminal one screen, drawn in place on the alternate screen, which gives the old one back; a
line at a time where nothing can be drawn; with `--json` one document a line. Only changes are
printed.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tapefs.cli.terminal import standard_output
from tapefs.errors import DriveBusy, NotMounted, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tapefs.cli.terminal import Terminal
    from tapefs.cli.watch_screen import Glyphs

    Show = Callable[[dict[str, Any], str], None]

INTERVAL_S: Final = 1.0
_INTERVAL_S_MIN: Final = 0.1
_INTERVAL_S_MAX: Final = 3600.0
# A line of text comes when something changed, and while the drive is at work this often.
_LINE_S: Final = 10.0


def interval(text: str | None) -> float:
    """The seconds that `--interval` asks for. Raises UsageError."""
    if text is None:
        return INTERVAL_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _INTERVAL_S_MIN <= seconds <= _INTERVAL_S_MAX:
        raise UsageError(
            f"--interval takes seconds from {_INTERVAL_S_MIN:g} to {_INTERVAL_S_MAX:g}, "
            f"not '{text}'"
        )
    return seconds


def the_only_mount() -> Path:
    """The mountpoint of this user's only mount. Raises NotMounted, UsageError."""
    from tapefs import control  # noqa: PLC0415 - brings sockets

    found = [str(status["mountpoint"]) for status in control.all_statuses()]
    if not found:
        raise NotMounted("no tape of this user is mounted; 'tapefs mount --help' shows how")
    if len(found) > 1:
        raise UsageError(f"several tapes are mounted; say which to watch: {', '.join(found)}")
    return Path(found[0])


def watch(mountpoint: Path, interval_s: float, terminal: Terminal, *, as_json: bool) -> int:
    """Show the mount until it has ended. Raises NotMounted when it is not there to begin with."""
    terminal.if_interrupted = "no longer watching; the mount goes on"
    status = _ask(mountpoint)
    with _ending_in_order(), _shown(as_json=as_json) as show:
        while status is not None:
            problem = str(status.pop("unanswered", ""))
            with standard_output():
                show(status, problem)
            _pause(interval_s)
            status = _ask_again(mountpoint, status)
    terminal.remark(f"{mountpoint} is not mounted any more")
    return 0


def draw_once(statuses: Sequence[dict[str, Any]]) -> bool:
    """Print the screen of each mount; false where the terminal cannot draw."""
    from rich.console import Console, Group  # noqa: PLC0415 - 80 ms, for who looks only

    from tapefs.cli.watch_screen import draw  # noqa: PLC0415 - see above

    console = Console()
    if console.is_dumb_terminal:
        return False
    clock = time.strftime("%H:%M:%S")
    for number, status in enumerate(statuses):
        lines = draw(status, console.width, clock, _glyphs(console))
        console.print(Group(*([""] if number else []), *lines))
    return True


def _ask(mountpoint: Path) -> dict[str, Any] | None:
    from tapefs import control  # noqa: PLC0415 - brings sockets

    with control.Connection(mountpoint) as connection:
        return connection.status()


def _ask_again(mountpoint: Path, last: dict[str, Any]) -> dict[str, Any] | None:
    """The status now; None when the mount has ended; the last one when its daemon is silent."""
    try:
        return _ask(mountpoint)
    except NotMounted:
        return None
    except DriveBusy as exc:
        return {**last, "unanswered": str(exc)}


def _pause(interval_s: float) -> None:
    """Wait, but not when the window has another size now."""
    signal.sigtimedwait({signal.SIGWINCH}, interval_s)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM is as Ctrl-C, and puts the terminal back; SIGWINCH waits for `_pause`."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGWINCH})
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _shown(*, as_json: bool) -> Iterator[Show]:
    """The way to show a status that fits where standard output goes."""
    from rich.console import Console  # noqa: PLC0415 - 80 ms, for who watches only

    console = Console()
    if as_json:
        yield _JsonLines().show
    elif not sys.stdout.isatty() or console.is_dumb_terminal:
        yield _Lines().show
    else:
        with _screen(console) as show:
            yield show


@contextmanager
def _screen(console: Any) -> Iterator[Show]:  # noqa: ANN401 - rich is imported late
    from rich.console import Group  # noqa: PLC0415 - see _shown
    from rich.live import Live  # noqa: PLC0415 - see _shown

    from tapefs.cli.watch_screen import draw  # noqa: PLC0415 - see _shown

    glyphs = _glyphs(console)
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def show(status: dict[str, Any], problem: str) -> None:
            if problem:
                status = {**status, "problem": problem}
            lines = draw(status, console.size.width, time.strftime("%H:%M:%S"), glyphs)
            live.update(Group(*lines), refresh=True)

        yield show


def _glyphs(console: Any) -> Glyphs:  # noqa: ANN401 - rich is imported late
    from tapefs.cli.watch_screen import ASCII, UNICODE  # noqa: PLC0415 - see _shown

    return UNICODE if console.encoding.startswith("utf") else ASCII


class _JsonLines:
    """One document a line, when anything but a duration changed."""

    def __init__(self) -> None:
        self._last: object = None

    def show(self, status: dict[str, Any], problem: str) -> None:
        if problem:
            status = {**status, "problem": problem}
        lane = {name: value for name, value in status["lane"].items() if name != "for_s"}
        if (compared := {**status, "lane": lane}) != self._last:
            self._last = compared
            print(json.dumps(status, ensure_ascii=False), flush=True)


class _Lines:
    """One line of text for each change of state, and now and then while the drive is at work."""

    def __init__(self) -> None:
        self._last: object = None
        self._printed_s = 0.0

    def show(self, status: dict[str, Any], problem: str) -> None:
        from tapefs.cli.watch_screen import summary  # noqa: PLC0415 - see _shown

        if problem:
            status = {**status, "problem": problem}
        lane, warnings = status["lane"]["state"], status["health"]["warnings"]
        compared = (lane, status["all_on_tape"], status["problem"], warnings)
        busy = lane != "idle" and time.monotonic() >= self._printed_s + _LINE_S
        if compared != self._last or busy:
            self._last, self._printed_s = compared, time.monotonic()
            print(f"{time.strftime('%H:%M:%S')} {summary(status)}", flush=True)
