"""Turning into a daemon: the child runs the mount, the parent stays until it answers or fails.

The fork comes before any thread, loop or connection exists. The child reports over a pipe, one
JSON line an event; `mounted` is the last one that the parent waits for.

Until then the child stays in the caller's process group. Where an automount waits for the mount
(autofs), the kernel lets only systemd's own group pass, to which mount(8) belongs and what it
starts; anybody else who looks at the place waits for the mount.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tapefs import control, telemetry
from tapefs.cli.verdict import verdict_of
from tapefs.errors import ExitCode, StateUnusable, TapefsError

if TYPE_CHECKING:
    from pathlib import Path

Event = dict[str, Any]
Report = Callable[[Event], None]

# A log that has grown beyond this is set aside as NAME.1 at the next start.
LOG_BYTES_MAX: Final = 8 * 1024 * 1024


def start(
    run: Callable[[Report], int], log_file: Path, on_event: Report, *, verbose: bool = False
) -> Event:
    """Run `run` in a daemon and return its `mounted` event.

    Raises what made it fail. On Ctrl-C the daemon is told to end, and is waited for.
    """
    _prepare_log(log_file)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _live(run, writing, log_file, verbose=verbose)
    os.close(writing)
    with os.fdopen(reading, "rb") as events:
        try:
            return _wait_mounted(events, pid, log_file, on_event)
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGTERM)
            # The child's end closes the pipe; a second Ctrl-C stops waiting, the child still ends.
            while events.readline():
                pass
            raise


def _wait_mounted(events: Any, pid: int, log_file: Path, on_event: Report) -> Event:  # noqa: ANN401 - BinaryIO without peeking
    for line in events:
        event: Event = json.loads(line)
        if event["event"] == "mounted":
            return event
        if event["event"] == "error":
            os.waitpid(pid, 0)
            raise control.error_from(event["message"], event["exit_code"])
        on_event(event)
    _, status = os.waitpid(pid, 0)
    ending = os.waitstatus_to_exitcode(status)
    cause = f"signal {-ending}" if ending < 0 else f"exit code {ending}"
    raise TapefsError(f"the daemon ended before it had mounted ({cause}); {log_file} says more")


def _live(run: Callable[[Report], int], writing: int, log_file: Path, *, verbose: bool) -> NoReturn:
    """The child's whole life; never returns into the parent's code."""
    code = int(ExitCode.BUG)
    reporter = _Reporter(writing)

    def report(event: Event) -> None:
        if event["event"] == "mounted":
            os.setsid()
        reporter.report(event)

    try:
        # What the terminal sends to its group is for the parent, who then ends us.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        _let_go_of_everything(writing, log_file)
        telemetry.set_up(log_file, verbose=verbose)
        code = run(report)
    except BaseException as exc:  # noqa: BLE001 - the last frame of the process
        verdict = verdict_of(exc)
        code = verdict.exit_code
        telemetry.event("mount.failed", logging.ERROR, reason=verdict.sentence)
        if verdict.traceback_wanted:
            traceback.print_exc()
        reporter.report({"event": "error", "message": verdict.sentence, "exit_code": code})
    finally:
        logging.shutdown()
        os._exit(code)


class _Reporter:
    """The child's end of the pipe, closed once the parent knows that it may go."""

    def __init__(self, writing: int) -> None:
        self._writing: int | None = writing

    def report(self, event: Event) -> None:
        if self._writing is None:
            return
        try:
            os.write(self._writing, json.dumps(event, default=str).encode() + b"\n")
        except OSError:
            self._close()  # the parent was killed; the mount does not depend on it
        else:
            if event["event"] in ("mounted", "error"):
                self._close()

    def _close(self) -> None:
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None


def _let_go_of_everything(kept: int, log_file: Path) -> None:
    """Drop what was inherited, so that no pipe or lock of the caller lives as long as the mount."""
    silence = os.open(os.devnull, os.O_RDWR)
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(silence, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _prepare_log(log_file: Path) -> None:
    try:
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log_file.exists() and log_file.stat().st_size > LOG_BYTES_MAX:
            log_file.replace(log_file.with_name(log_file.name + ".1"))
        with log_file.open("ab"):
            pass
    except OSError as exc:
        raise StateUnusable(
            f"the state directory cannot be written: {exc.strerror} at {exc.filename}; "
            "choose another one with --state-dir"
        ) from exc
