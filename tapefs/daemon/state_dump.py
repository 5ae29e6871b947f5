"""SIGUSR1: what the daemon is doing, written to its log, for bug reports.

Safe at any time: nothing is changed, nothing is waited for, and no file name or content of a user
is shown. First every thread's stack is written by the interpreter's signal handler, so also when
the event loop hangs; then, when the loop comes to it, tasks, lane, queue, spool and caches.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.metadata
import json
import logging
import platform
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs import telemetry
from tapefs.catalog import SQLITE_VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

SIGNAL: Final = signal.SIGUSR1
# Tasks that are listed; a mount has about twenty, and one for each request under way.
_TASKS_MAX: Final = 200
_FRAMES_MAX: Final = 12
_LIBRARIES: Final = (
    "tapefs",
    "trio",
    "pyfuse3",
    "pyusb",
    "zstandard",
    "xxhash",
    "crc32c",
)


@contextlib.contextmanager
def ignoring_signal() -> Iterator[None]:
    """While the block runs, a SIGUSR1 that nobody waits for does not end the process."""
    before = signal.signal(SIGNAL, signal.SIG_IGN)
    try:
        yield
    finally:
        faulthandler.unregister(SIGNAL)
        signal.signal(SIGNAL, before)


async def dump_on_signal(
    describe: Callable[[], dict[str, Any]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Log the state whenever SIGUSR1 comes, until cancelled. `describe` must not wait."""
    with trio.open_signal_receiver(SIGNAL) as signals:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # no such stream
            # Behind trio's handler, which it calls.
            faulthandler.register(SIGNAL, file=_log_file(), all_threads=True, chain=True)
        task_status.started()
        try:
            arrived: AsyncIterator[int] = signals
            async for _ in arrived:
                log_state(describe)
        finally:
            faulthandler.unregister(SIGNAL)


def log_state(describe: Callable[[], dict[str, Any]]) -> None:
    """Log it, a line for each part. A bug in here is logged as well, and does no harm."""
    try:
        parts = {"versions": versions(), **describe()}
        tasks = _tasks()
    except Exception:  # noqa: BLE001 - asking must never cost a mount
        telemetry.LOGGER.exception(telemetry.STATE_DUMP)
        return
    for name, value in parts.items():
        text = json.dumps(value, ensure_ascii=True, default=str)
        telemetry.LOGGER.info("%s %s %s", telemetry.STATE_DUMP, name, text)
    for line in tasks:
        telemetry.LOGGER.info("%s task %s", telemetry.STATE_DUMP, line)


def versions() -> dict[str, str]:
    """Of everything that a bug may be in."""
    found = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "sqlite": SQLITE_VERSION,
    }
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _tasks() -> list[str]:
    """Each task of the loop and where it waits, innermost frame last."""
    root = trio.lowlevel.current_root_task()
    pending = [] if root is None else [root]
    lines: list[str] = []
    while pending and len(lines) < _TASKS_MAX:
        task = pending.pop()
        lines.append(f"{task.name}: {' > '.join(_frames(task))}")
        for nursery in task.child_nurseries:
            pending.extend(nursery.child_tasks)
    return lines


def _frames(task: trio.lowlevel.Task) -> list[str]:
    frames = []
    for frame, line in task.iter_await_frames():
        code = frame.f_code
        frames.append(f"{code.co_qualname}:{line}")
    return frames[-_FRAMES_MAX:]


def _log_file() -> Any:  # noqa: ANN401 - what faulthandler takes: a file with a descriptor
    """Where the log goes: its own stream, so that both stand in one place."""
    for handler in telemetry.LOGGER.handlers:
        if isinstance(handler, logging.StreamHandler):
            return handler.stream
    return sys.stderr
