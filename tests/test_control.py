"""The control socket: every answer a command may get, over a real socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tapefs import control, errors
from tapefs.control import CLIENTS_MAX, Connection, Report, error_from, socket_path
from tapefs.control import server as control_server
from tapefs.errors import (
    DriveBusy,
    ExitCode,
    MountBusy,
    NotFinalized,
    NotMounted,
    StateUnusable,
    TapefsError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tapefs.control.server import ControlServer

MOUNTPOINT = Path("/no/such/mountpoint")


class Tape:
    """A Service whose waits end when the test says so."""

    def __init__(self) -> None:
        self.may_end = trio.Event()
        self.started = trio.Event()
        self.ended: list[str] = []
        self.failure: Exception | None = None

    def status(self) -> dict[str, Any]:
        if self.failure:
            raise self.failure
        return {"mountpoint": str(MOUNTPOINT), "spool": {"backlog_bytes": 7}}

    def generations(self) -> dict[str, Any]:
        return {"name": "TAPE", "volume": "V", "generations": []}

    async def sync(self, report: Report) -> dict[str, Any]:
        return await self._wait("sync", report)

    async def wait_finalized(self, report: Report) -> dict[str, Any]:
        return await self._wait("wait_finalized", report)

    async def verify(self, asked: dict[str, Any], report: Report) -> dict[str, Any]:
        return {**await self._wait("verify", report), "asked": asked}

    async def _wait(self, op: str, report: Report) -> dict[str, Any]:
        try:
            report({"phase": "archive", "done_bytes": 1, "total_bytes": 2})
            self.started.set()
            await self.may_end.wait()
            if self.failure:
                raise self.failure
            return {"sequence": 3}
        except trio.Cancelled:
            self.ended.append(f"{op} cancelled")
            raise
        finally:
            self.ended.append(op)


@asynccontextmanager
async def serving(service: Tape) -> AsyncIterator[ControlServer]:
    """A control server for MOUNTPOINT, gone when the block ends."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(control_server.serve, socket_path(MOUNTPOINT), service)
        nursery.cancel_scope.cancel()


async def in_thread(ask: Callable[[], Any]) -> Any:
    """Run a blocking client beside the server."""
    return await trio.to_thread.run_sync(ask)


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until `condition` holds."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - what it waits for offers no event
            await trio.sleep(0.001)


def ask(op: str, on_progress: Report | None = None) -> dict[str, Any]:
    """What a command does."""
    return control.request(MOUNTPOINT, op, on_progress or (lambda event: None))


async def test_status_is_answered_from_memory() -> None:
    async with serving(Tape()):
        status = await in_thread(partial(ask, "status"))
        assert status == {"mountpoint": str(MOUNTPOINT), "spool": {"backlog_bytes": 7}}
        assert await in_thread(lambda: list(control.all_statuses())) == [status]


async def test_status_is_answered_while_another_command_waits() -> None:
    tape = Tape()
    async with serving(tape), trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, partial(ask, "sync"))
        await tape.started.wait()
        assert (await in_thread(partial(ask, "status")))["spool"] == {"backlog_bytes": 7}
        tape.may_end.set()


@pytest.mark.parametrize("op", ["sync", "wait_finalized"])
async def test_a_wait_shows_progress_and_then_its_result(op: str) -> None:
    tape = Tape()
    events: list[dict[str, Any]] = []

    def on_progress(event: dict[str, Any]) -> None:
        events.append(event)
        trio.from_thread.run_sync(tape.may_end.set)

    async with serving(tape):
        assert await in_thread(partial(ask, op, on_progress)) == {"sequence": 3}
    assert events == [{"event": "progress", "phase": "archive", "done_bytes": 1, "total_bytes": 2}]


async def test_what_a_request_asks_for_reaches_the_service() -> None:
    tape = Tape()
    tape.may_end.set()
    path = "d/" + "\udcff" * 4093  # the longest path, each byte of it escaped
    async with serving(tape):
        answer = await in_thread(
            lambda: control.request(MOUNTPOINT, "verify", lambda event: None, path=path)
        )
    assert answer["asked"] == {"op": "verify", "path": path}


@pytest.mark.parametrize("op", ["status", "sync", "wait_finalized"])
async def test_what_went_wrong_arrives_as_the_same_error(op: str) -> None:
    tape = Tape()
    tape.failure = NotFinalized("the drive was unplugged; plug it in")
    tape.may_end.set()
    async with serving(tape):
        with pytest.raises(NotFinalized, match=r"^the drive was unplugged; plug it in$"):
            await in_thread(partial(ask, op))


async def test_a_bug_in_one_request_is_logged_and_the_daemon_lives(
    assert_logs: Callable[..., Any],
) -> None:
    tape = Tape()
    tape.failure = KeyError("lost")
    async with serving(tape):
        with assert_logs("control.request_failed", count=1):
            with pytest.raises(TapefsError, match="met a bug") as caught:
                await in_thread(partial(ask, "status"))
            assert caught.value.exit_code is ExitCode.BUG
        tape.failure = None
        assert await in_thread(partial(ask, "status"))


async def test_finish_lets_every_waiting_command_have_its_answer() -> None:
    tape = Tape()
    answers: list[dict[str, Any]] = []

    async def wait() -> None:
        answers.append(await in_thread(partial(ask, "wait_finalized")))

    async with trio.open_nursery() as nursery:
        server = await nursery.start(control_server.serve, socket_path(MOUNTPOINT), tape)
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await tape.started.wait()
        await until(lambda: server._pending_count == 2)
        nursery.start_soon(server.finish)
        tape.may_end.set()
    assert answers == [{"sequence": 3}] * 2
    assert not socket_path(MOUNTPOINT).exists()


async def test_finish_does_not_wait_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    tape = Tape()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(control_server.serve, socket_path(MOUNTPOINT), tape)
        stream = await trio.open_unix_socket(str(socket_path(MOUNTPOINT)))
        await stream.send_all(b'{"op": "sync"}\n')
        await tape.started.wait()
        began_s = trio.current_time()
        await server.finish()
        assert trio.current_time() - began_s == control.LAST_ANSWERS_S
        await stream.aclose()


@pytest.mark.parametrize(
    ("op", "ended"),
    [
        ("sync", []),
        ("wait_finalized", ["wait_finalized cancelled"]),
        ("verify", ["verify cancelled"]),
    ],
)
async def test_a_client_that_goes_away_ends_its_wait_but_no_work(op: str, ended: list[str]) -> None:
    tape = Tape()
    async with serving(tape) as server:
        stream = await trio.open_unix_socket(str(socket_path(MOUNTPOINT)))
        await stream.send_all(json.dumps({"op": op}).encode() + b"\n")
        await tape.started.wait()
        await stream.aclose()
        if not ended:
            # A second client's answer proves that the server saw the first one's end.
            await in_thread(partial(ask, "status"))
            tape.may_end.set()
        await until(lambda: server._client_count == 0)
        assert tape.ended == [*ended, op]


@pytest.mark.parametrize(
    "line", [b"status", b"{}", b"[]", b'{"op": "format"}', b'{"op": {}}', b"\xff\xfe", b""]
)
async def test_nonsense_gets_a_sentence(line: bytes) -> None:
    async with serving(Tape()):
        stream = await trio.open_unix_socket(str(socket_path(MOUNTPOINT)))
        async with stream:
            await stream.send_all(line + b'\n{"op": "status"}\n')
            received = b""
            while received.count(b"\n") < 2:
                received += await stream.receive_some()
    first, second = (json.loads(line) for line in received.splitlines())
    assert first["event"] == "error"
    assert first["exit_code"] == ExitCode.USAGE
    assert first["message"].startswith("unknown control request")
    assert second["event"] == "result"


async def test_an_endless_line_ends_the_connection() -> None:
    async with serving(Tape()) as server:
        stream = await trio.open_unix_socket(str(socket_path(MOUNTPOINT)))
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x" * 4_000_000)
        await until(lambda: server._client_count == 0)


async def test_too_many_clients_are_told_so() -> None:
    async with serving(Tape()) as server:
        streams = [
            await trio.open_unix_socket(str(socket_path(MOUNTPOINT))) for _ in range(CLIENTS_MAX)
        ]
        await until(lambda: server._client_count == CLIENTS_MAX)
        with pytest.raises(DriveBusy, match="more than 64 commands wait"):
            await in_thread(partial(ask, "status"))
        # It may have hung up before it was asked anything: what it said counts all the same.
        connection = Connection(MOUNTPOINT)
        await until(lambda: server._client_count == CLIENTS_MAX)
        with connection, pytest.raises(DriveBusy, match="more than 64 commands wait"):
            await in_thread(connection.status)
        for stream in streams:
            await stream.aclose()
        await until(lambda: server._client_count == 0)
        assert await in_thread(partial(ask, "status"))


def test_no_daemon_means_not_mounted() -> None:
    with pytest.raises(NotMounted, match="no tapefs daemon serves /no/such/mountpoint"):
        ask("status")
    assert list(control.all_statuses()) == []


async def test_a_socket_that_a_dead_daemon_left_is_replaced() -> None:
    path = socket_path(MOUNTPOINT)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotMounted):
        ask("status")
    async with serving(Tape()):
        assert await in_thread(partial(ask, "status"))


async def test_a_living_daemon_is_not_replaced() -> None:
    async with serving(Tape()):
        with trio.fail_after(10), pytest.raises(DriveBusy, match="another tapefs daemon answers"):
            await control_server.serve(socket_path(MOUNTPOINT), Tape())
        assert await in_thread(partial(ask, "status"))


async def test_only_the_owner_may_connect() -> None:
    async with serving(Tape()):
        path = socket_path(MOUNTPOINT)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_path_that_is_too_long_for_a_socket_has_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StateUnusable, match="short path in TAPEFS_RUNTIME_DIR"):
        await control_server.serve(tmp_path / ("x" * 120), Tape())


def test_each_mountpoint_has_its_socket_whatever_way_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "tape").mkdir()
    (tmp_path / "link").symlink_to("tape")
    assert socket_path(tmp_path / "link") == socket_path(tmp_path / "tape")
    assert socket_path(tmp_path / "link" / ".." / "tape") == socket_path(tmp_path / "tape")
    assert socket_path(tmp_path) != socket_path(tmp_path / "tape")


def test_a_directory_that_others_may_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPEFS_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(StateUnusable, match="others may write to it"):
        control.runtime_dir()
    tmp_path.chmod(0o755)
    assert control.runtime_dir() == tmp_path


def test_a_symbolic_link_in_place_of_the_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to("elsewhere")
    monkeypatch.setenv("TAPEFS_RUNTIME_DIR", str(tmp_path / "run"))
    with pytest.raises(StateUnusable, match="belongs to somebody else"):
        control.runtime_dir()


def test_a_directory_that_cannot_be_made_has_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TAPEFS_RUNTIME_DIR", str(tmp_path / "file" / "run"))
    with pytest.raises(StateUnusable, match="cannot be used"):
        control.runtime_dir()


@pytest.mark.parametrize("code", [code for code in ExitCode if code != ExitCode.INTERRUPTED])
def test_an_error_survives_its_way_as_exit_code(code: ExitCode) -> None:
    error = error_from("sentence", code)
    assert str(error) == "sentence"
    if code is not ExitCode.OK:
        assert error.exit_code is code
    assert not isinstance(error, errors.FilesystemError)


def test_the_error_for_an_exit_code_is_the_plainest_one() -> None:
    assert type(error_from("", ExitCode.USAGE)) is UsageError
    assert type(error_from("", ExitCode.MOUNT_BUSY)) is MountBusy
    assert type(error_from("", 77)) is TapefsError


DAEMON_THAT_DIES = """
import json, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
print("ready", flush=True)
client, _ = listening.accept()
client.recv(4096)
client.sendall(b'{"event": "accepted"}\\n')
client.recv(4096)
"""


async def test_a_daemon_that_is_killed_while_we_wait_is_not_taken_for_success() -> None:
    path = socket_path(MOUNTPOINT)
    daemon = await trio.lowlevel.open_process(
        [sys.executable, "-c", DAEMON_THAT_DIES, str(path)], stdout=-1
    )
    assert daemon.stdout is not None
    assert (await daemon.stdout.receive_some()).startswith(b"ready")
    with await in_thread(lambda: Connection(MOUNTPOINT)) as connection:
        await in_thread(lambda: connection.start("wait_finalized"))
        assert not connection.wait_gone(0)
        os.kill(daemon.pid, signal.SIGKILL)
        with pytest.raises(NotFinalized, match="ended before everything was on tape"):
            await in_thread(lambda: connection.finish("wait_finalized", lambda event: None))
        assert await in_thread(lambda: connection.wait_gone(10))
    await daemon.wait()
    await daemon.stdout.aclose()
