"""The daemon's end of the control socket."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
from typing import TYPE_CHECKING, Any

import trio

from tapefs import errors
from tapefs.control.protocol import (
    CLIENTS_MAX,
    LAST_ANSWERS_S,
    REQUEST_BYTES_MAX,
)
from tapefs.errors import DriveBusy, StateUnusable, TapefsError
from tapefs.telemetry import LOGGER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tapefs.control.protocol import Event, Report, Service


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
        request = _request_of(line)
        op = str(request.get("op", ""))
        if op == "status":
            await _send(stream, await _outcome(_at_once(self._service.status), _ignore))
        elif op == "generations":
            await _send(stream, await _outcome(_at_once(self._service.generations), _ignore))
        elif op == "sync":
            await _answer_slowly(stream, self._service.sync)
        elif op == "wait_finalized":
            await _answer_while_heard(stream, lines, self._service.wait_finalized)
        elif op == "verify":
            verify = functools.partial(self._service.verify, request)
            await _answer_while_heard(stream, lines, verify)
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


async def _answer_while_heard(
    stream: trio.SocketStream,
    lines: _Lines,
    operation: Callable[[Report], Awaitable[dict[str, Any]]],
) -> None:
    """`_answer_slowly`, cancelled when the client goes away."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at_end, lines, nursery.cancel_scope)
        await _answer_slowly(stream, operation)
        nursery.cancel_scope.cancel()


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


def _request_of(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) else {}


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
