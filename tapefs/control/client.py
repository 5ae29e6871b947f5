"""A command's end of the control socket: ordinary blocking code."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Any, Self

from tapefs.control.protocol import (
    ANSWER_BYTES_MAX,
    FIRST_ANSWER_S,
    IMMEDIATE,
    error_from,
    runtime_dir,
    socket_path,
)
from tapefs.errors import DriveBusy, NotFinalized, NotMounted, TapefsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tapefs.control.protocol import Event, Report


class Connection:
    """A command's connection to one mount. Not for use in a trio loop: it blocks."""

    def __init__(self, mountpoint: Path, path: Path | None = None) -> None:
        """Connect. Raises NotMounted when no daemon listens for `mountpoint`."""
        self._mountpoint = mountpoint
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(FIRST_ANSWER_S)
            self._socket.connect(str(path or socket_path(mountpoint)))
        except OSError as exc:
            self._socket.close()
            raise NotMounted(
                f"no tapefs daemon serves {mountpoint}; 'tapefs status' lists those that run"
            ) from exc
        except BaseException:
            self._socket.close()
            raise
        self._reader = self._socket.makefile("rb")
        self._daemon_fd = _pidfd(self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; a wait that was asked for is given up."""
        self._reader.close()
        self._socket.close()
        if self._daemon_fd is not None:
            os.close(self._daemon_fd)
            self._daemon_fd = None

    def start(self, op: str, **fields: str) -> None:
        """Ask for `op`, one that waits, and return when the daemon has begun to wait.

        `fields` are what else the request says.
        """
        self._ask(op, **fields)
        event = self._next_event(op)
        if event["event"] == "error":
            raise error_from(event["message"], event["exit_code"])
        self._socket.settimeout(None)

    def finish(self, op: str, on_progress: Report) -> dict[str, Any]:
        """Wait for the outcome of what `start` began. Raises what the daemon says went wrong.

        Raises NotFinalized when the daemon ends without an answer.
        """
        while True:
            event = self._next_event(op)
            if event["event"] == "result":
                result: dict[str, Any] = event["result"]
                return result
            if event["event"] == "error":
                raise error_from(event["message"], event["exit_code"])
            on_progress(event)

    def status(self) -> dict[str, Any]:
        """What the mount is doing now."""
        return self.ask("status")

    def ask(self, op: str) -> dict[str, Any]:
        """The answer to `op`, one that is answered at once."""
        self._ask(op)
        return self.finish(op, _ignore)

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until the daemon's process has ended, so that drive and catalog are free again."""
        if self._daemon_fd is None:
            return True
        poll = select.poll()
        poll.register(self._daemon_fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def _ask(self, op: str, **fields: str) -> None:
        try:
            self._socket.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
        except BrokenPipeError:
            pass  # it hung up at once; what it said before tells why
        except OSError as exc:
            raise self._gone(op) from exc

    def _next_event(self, op: str) -> Event:
        try:
            line = self._reader.readline(ANSWER_BYTES_MAX)
        except TimeoutError as exc:
            raise DriveBusy(
                f"the daemon of {self._mountpoint} does not answer; try again, or read its log"
            ) from exc
        except OSError as exc:
            raise self._gone(op) from exc
        if not line.endswith(b"\n"):
            raise self._gone(op)
        event: Event = json.loads(line)
        return event

    def _gone(self, op: str) -> TapefsError:
        if op in IMMEDIATE or op == "verify":
            return NotMounted(f"the daemon of {self._mountpoint} has just ended; mount again")
        return NotFinalized(
            f"the daemon of {self._mountpoint} ended before everything was on tape; what was "
            "fsync'ed is safe in the spool: mount the tape again"
        )


def request(mountpoint: Path, op: str, on_progress: Report, **fields: str) -> dict[str, Any]:
    """Ask the mount at `mountpoint` for `op` and wait for the outcome.

    Raises NotMounted, or what the daemon says went wrong.
    """
    with Connection(mountpoint) as connection:
        if op in IMMEDIATE:
            return connection.ask(op)
        connection.start(op, **fields)
        return connection.finish(op, on_progress)


def all_statuses() -> Iterator[dict[str, Any]]:
    """Status of every mount of this user that answers."""
    for path in sorted(runtime_dir().glob("*.sock")):
        with contextlib.suppress(NotMounted), Connection(path, path) as connection:
            yield connection.status()


def _pidfd(connected: socket.socket) -> int | None:
    """A descriptor that tells when the process that listens at the other end has ended.

    None where there is nothing to wait for: our own process, or one of another pid namespace.
    """
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = int(struct.unpack("iII", credentials)[0])
    if pid in (0, os.getpid()):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno in (errno.ESRCH, errno.ENOSYS, errno.EPERM):
            return None
        raise


def _ignore(event: Event) -> None:
    """What is answered at once has no progress to report."""
