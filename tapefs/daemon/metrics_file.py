"""`-o metrics=FILE`: the mount's status as a file for the node exporter's textfile collector."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs import telemetry
from tapefs.control.openmetrics import openmetrics
from tapefs.errors import StateUnusable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# The file is made anew this often; node exporters are asked four times a minute by default.
EVERY_S: Final = 15.0


class MetricsFile:
    """Keeps the file at `path` up to date; readers see the old one or the new one, whole."""

    def __init__(self, path: Path, status: Callable[[], dict[str, Any]]) -> None:
        self._path = path
        # The collector reads *.prom: this one it leaves alone.
        self._scratch = path.with_name(f".{path.name}.new")
        self._status = status
        self._failed = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write the file until cancelled, then remove it: what is not mounted has no figures.

        Raises StateUnusable when it cannot be written at the start; later that is an event.
        """
        try:
            self._write()
        except OSError as exc:
            raise StateUnusable(
                f"the metrics file {self._path} cannot be written ({exc.strerror}); "
                "name another one with -o metrics="
            ) from exc
        task_status.started()
        try:
            while True:
                await trio.sleep(EVERY_S)
                self._write_again()
        finally:
            self._path.unlink(missing_ok=True)
            self._scratch.unlink(missing_ok=True)

    def _write_again(self) -> None:
        try:
            self._write()
        except OSError as exc:
            if not self._failed:
                telemetry.event(telemetry.METRICS_FAILED, logging.WARNING, reason=exc)
            self._failed = True
        else:
            self._failed = False

    def _write(self) -> None:
        text = openmetrics([self._status()])
        # For the exporter, which runs as somebody else.
        fd = os.open(self._scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(self._scratch, self._path)
