"""The control socket of a mount: JSON lines, so that any command or script may ask.

A mount listens on `socket_path(mountpoint)`. A request is one line, `{"op": "status"}`,
`"generations"`, `"sync"` or `"wait_finalized"`. The answer is any number of

    {"event": "accepted"}                                      the wait has begun
    {"event": "progress", "phase": ..., "done_bytes": ..., "total_bytes": ..., "message": ...}

and then exactly one of

    {"event": "result", "result": {...}}
    {"event": "error", "message": "one sentence", "exit_code": N}

`status` and `generations` are answered at once, also while the mount waits for the tape. The
server runs in the daemon's trio loop and touches nothing but the `Service`; clients are ordinary
blocking code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import select
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol, Self

import trio

from tapefs import errors
from tapefs.errors import DriveBusy, NotFinalized, NotMounted, StateUnusable, TapefsError
from tapefs.telemetry import LOGGER

Event = dict[str, Any]
Report = Callable[[Event], None]

REQUEST_BYTES_MAX: Final = 4096
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
# More clients than this at one time get an error line: each one costs a task in the daemon.
CLIENTS_MAX: Final = 64
# How long the daemon, at its end, waits for clients to take their answers.
LAST_ANSWERS_S: Final = 10.0
# How long a client waits for the first line of an answer.
FIRST_ANSWER_S: Final = 15.0
# Requests that are answered from what the daemon knows.
_IMMEDIATE: Final = frozenset({"status", "generations"})


class Service(Protocol):
    """What a mount can be asked for. Called from the daemon's trio loop only."""

    def status(self) -> dict[str, Any]:
        """What the mount is doing, as JSON types. Must not wait."""

    def generations(self) -> dict[str, Any]:
        """The checkpoints on the tape, as JSON types. Must not wait."""

    async def sync(self, report: Report) -> dict[str, Any]:
        """Return when everything written so far is on tape; raises TapefsError when it cannot be.

        Not cancelled when the client goes away.
        """

    async def wait_finalized(self, report: Report) -> dict[str, Any]:
        """Return when the file system is unmounted and the tape finalized, else raise.

        Returns or raises at once when that is over already. Cancelled when the client goes away:
        it must only wait, the work belongs to the daemon.
        """


def runtime_dir() -> Path:
    """The directory of the control sockets; created, for its owner only, when missing.

    `$TAPEFS_RUNTIME_DIR`, else /run/tapefs for root, else `$XDG_RUNTIME_DIR/tapefs`, else
    /tmp/tapefs-UID. Raises StateUnusable when it cannot be made or others could write to it.
    """
    chosen, xdg = os.environ.get("TAPEFS_RUNTIME_DIR"), os.environ.get("XDG_RUNTIME_DIR")
    uid = os.geteuid()
    if chosen:
        path = Path(chosen)
    elif uid == 0:
        path = Path("/run/tapefs")
    elif xdg:
        path = Path(xdg) / "tapefs"
    else:
        path = Path(f"/tmp/tapefs-{uid}")  # noqa: S108 - who owns it is checked below
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as exc:
        raise StateUnusable(
            f"the directory for control sockets {path} cannot be used ({exc.strerror}); "
            "name another one in TAPEFS_RUNTIME_DIR"
        ) from exc
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o022:
        raise StateUnusable(
            f"the directory for control sockets {path} belongs to somebody else or others may "
            "write to it; name another one in TAPEFS_RUNTIME_DIR"
        )
    return path


def socket_path(mountpoint: Path) -> Path:
    """Where the mount at `mountpoint` listens. Raises StateUnusable as `runtime_dir` does."""
    real = os.fsencode(os.path.realpath(mountpoint))
    return runtime_dir() / f"{hashlib.sha256(real).hexdigest()[:16]}.sock"


def error_from(message: str, exit_code: int) -> TapefsError:
    """The error that another process described by its sentence and exit code."""
    for kind in vars(errors).values():
        if (
            isinstance(kind, type)
            and issubclass(kind, TapefsError)
            and kind is not errors.FilesystemError
            and kind.exit_code == exit_code
        ):
            return kind(message)
    return TapefsError(message)


# --- the daemon's end ---------------------------------------------------------------------------


class ControlServer:
    """The daemon's handle on its running control socket; comes from `serve` through task_status."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._client_count = 0
        self._pending_count = 0
        self._none_pending = trio.Event()
        self._scope = trio.CancelScope()

    async def finish(self) -> None:
        """End `serve` after every request under way got its answer (LAST_ANSWERS_S at most).

        To be called when the tape is finalized and the drive closed, or has failed.
        """
        with trio.move_on_after(LAST_ANSWERS_S):
            while self._pending_count:
                await self._none_pending.wait()
        self._scope.cancel()

    async def run(self, listener: trio.SocketListener) -> None:
        """Serve until `finish` or cancellation."""
        with self._scope:
            await trio.serve_listeners(self._serve_client, [listener])

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        self._client_count += 1
        try:
            lines = _Lines(stream)
            if self._client_count > CLIENTS_MAX:
                sentence = f"more than {CLIENTS_MAX} commands wait for this mount; try again later"
                await _send(stream, _error_event(DriveBusy(sentence)))
                return
            while (line := await lines.next_line()) is not None:
                self._pending_count += 1
                try:
                    await self._answer(stream, lines, line)
                finally:
                    self._pending_count -= 1
                    if not self._pending_count:
                        self._none_pending.set()
                        self._none_pending = trio.Event()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away; nobody is left to be told
        finally:
            self._client_count -= 1

    async def _answer(self, stream: trio.SocketStream, lines: _Lines, line: bytes) -> None:
        op = _op_of(line)
        if op == "status":
            await _send(stream, await _outcome(_at_once(self._service.status), _ignore))
        elif op == "generations":
            await _send(stream, await _outcome(_at_once(self._service.generations), _ignore))
        elif op == "sync":
            await _answer_slowly(stream, self._service.sync)
        elif op == "wait_finalized":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at_end, lines, nursery.cancel_scope)
                await _answer_slowly(stream, self._service.wait_finalized)
                nursery.cancel_scope.cancel()
        else:
            await _send(stream, _error_event(errors.UsageError(f"unknown control request '{op}'")))


async def serve(
    path: Path,
    service: Service,
    *,
    task_status: trio.TaskStatus[ControlServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on `path` until cancelled or `ControlServer.finish`; then remove it.

    A socket that a dead daemon left behind is replaced. Raises DriveBusy when a living one answers
    there, StateUnusable when the socket cannot be made.
    """
    listening = _listen(path)
    server = ControlServer(service)
    task_status.started(server)
    try:
        await server.run(trio.SocketListener(trio.socket.from_stdlib_socket(listening)))
    finally:
        listening.close()
        _remove(path)


def _listen(path: Path) -> socket.socket:
    if _somebody_listens(path):
        raise DriveBusy(f"another tapefs daemon answers at {path}; unmount that one first")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove(path)
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(CLIENTS_MAX)
    except OSError as exc:
        listening.close()
        raise StateUnusable(
            f"the control socket {path} cannot be made ({exc.strerror or exc}); "
            "name a directory with a short path in TAPEFS_RUNTIME_DIR"
        ) from exc
    return listening


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class _Lines:
    """Splits what a client sends into lines of at most REQUEST_BYTES_MAX."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def next_line(self) -> bytes | None:
        """The next line, or None at the end or when the line is longer than any request."""
        while (end := self._buffer.find(b"\n")) < 0:
            if not await self._receive():
                return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def wait_for_end(self) -> None:
        """Return when the client has gone away."""
        with contextlib.suppress(trio.BrokenResourceError):
            while await self._receive():
                pass

    async def _receive(self) -> bool:
        if len(self._buffer) > REQUEST_BYTES_MAX:
            return False
        chunk = await self._stream.receive_some(REQUEST_BYTES_MAX)
        self._buffer += chunk
        return bool(chunk)


async def _cancel_at_end(lines: _Lines, scope: trio.CancelScope) -> None:
    await lines.wait_for_end()
    scope.cancel()


async def _answer_slowly(
    stream: trio.SocketStream, operation: Callable[[Report], Awaitable[dict[str, Any]]]
) -> None:
    """Run `operation`, sending its newest progress and at last its outcome.

    One task sends, so lines never mix; a client that reads slowly misses steps, not the outcome.
    `operation` runs to its end even when the client has gone.
    """
    newest: list[Event] = []
    outcome: list[Event] = []
    begun, changed = trio.Event(), trio.Event()

    def report(event: Event) -> None:
        newest[:] = [{**event, "event": "progress"}]
        changed.set()

    async def run() -> None:
        begun.set()  # what follows runs up to its first real wait before anybody else does
        outcome.append(await _outcome(operation, report))
        changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await begun.wait()
        reachable = await _reaches(stream, {"event": "accepted"})
        while True:
            events, newest[:] = newest[:], []
            for event in events if reachable else []:
                reachable = await _reaches(stream, event)
            if outcome:
                break
            await changed.wait()
            changed = trio.Event()
    await _send(stream, outcome[0])


async def _outcome(
    operation: Callable[[Report], Awaitable[dict[str, Any]]], report: Report
) -> Event:
    """The last line of an answer. A failing request must never end the daemon."""
    try:
        return {"event": "result", "result": await operation(report)}
    except TapefsError as exc:
        return _error_event(exc)
    except Exception as exc:  # noqa: BLE001 - logged; the mount must outlive it
        LOGGER.exception("control.request_failed")
        return _error_event(TapefsError(f"the daemon met a bug: {exc!r}; its log says more"))


def _op_of(line: bytes) -> str:
    try:
        request = json.loads(line)
    except ValueError:
        return ""
    return str(request.get("op", "")) if isinstance(request, dict) else ""


def _error_event(exc: TapefsError) -> Event:
    return {"event": "error", "message": str(exc), "exit_code": int(exc.exit_code)}


def _at_once(question: Callable[[], dict[str, Any]]) -> Callable[[Report], Awaitable[Event]]:
    """`question`, which needs no waiting, as an operation."""

    async def operation(_report: Report) -> dict[str, Any]:
        return question()

    return operation


def _ignore(event: Event) -> None:
    """What is answered at once has no progress to report."""


async def _send(stream: trio.SocketStream, event: Event) -> None:
    await stream.send_all(json.dumps(event).encode() + b"\n")


async def _reaches(stream: trio.SocketStream, event: Event) -> bool:
    try:
        await _send(stream, event)
    except trio.BrokenResourceError:
        return False
    return True


# --- the command's end --------------------------------------------------------------------------


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

    def start(self, op: str) -> None:
        """Ask for `op`, one that waits, and return when the daemon has begun to wait."""
        self._ask(op)
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

    def _ask(self, op: str) -> None:
        try:
            self._socket.sendall(json.dumps({"op": op}).encode() + b"\n")
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
        if op in _IMMEDIATE:
            return NotMounted(f"the daemon of {self._mountpoint} has just ended; mount again")
        return NotFinalized(
            f"the daemon of {self._mountpoint} ended before everything was on tape; what was "
            "fsync'ed is safe in the spool: mount the tape again"
        )


def request(mountpoint: Path, op: str, on_progress: Report) -> dict[str, Any]:
    """Ask the mount at `mountpoint` for `op` and wait for the outcome.

    Raises NotMounted, or what the daemon says went wrong.
    """
    with Connection(mountpoint) as connection:
        if op in _IMMEDIATE:
            return connection.ask(op)
        connection.start(op)
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
