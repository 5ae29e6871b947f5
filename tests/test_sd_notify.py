"""What systemd is told by a mount in the foreground, and whether the unit's own commands do it.

The unit's command lines are run as they stand in the file; systemd is a socket of the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from first_light_rig import PROGRAMS, STUCK_S, Host, is_mounted, new_host, run

from tapefs.cli import sd_notify
from tapefs.cli.sd_notify import EXTENSION_S, REPEAT_S, SdNotify
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SYSTEMD = Path(__file__).parent.parent / "contrib" / "systemd"
UNIT = SYSTEMD / "tapefs@.service"
EXTENSION = f"EXTEND_TIMEOUT_USEC={EXTENSION_S}000000"


class Listener:
    """systemd's end of the socket: datagrams, each a list of assignments."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._end.settimeout(STUCK_S)
        self._end.bind(address.replace("@", "\0", 1))

    def take(self) -> list[str]:
        return self._end.recv(65536).decode().split("\n")

    def until(self, last: Callable[[list[str]], bool]) -> list[list[str]]:
        """All messages up to the one that `last` says is it."""
        found = [self.take()]
        while not last(found[-1]):
            found.append(self.take())
        return found

    def rest(self) -> list[list[str]]:
        """What has come by now."""
        self._end.setblocking(False)
        found = []
        while True:
            try:
                found.append(self.take())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._end.close()


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    abstract = request.param == "abstract"
    found = Listener(f"@tapefs-test-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    yield found
    found.close()


def command(host: Host, name: str) -> list[str]:
    """`ExecStart` or `ExecStop` of the unit, for this host."""
    (line,) = re.findall(rf"^{name}=-?(.*)$", UNIT.read_text(), re.MULTILINE)
    line = re.sub("^tapefs ", f"{PROGRAMS / 'tapefs'} ", line)
    line = line.replace("/var/lib/tapefs", str(host.state))
    values = {"DRIVE": host.drive, "MOUNTPOINT": str(host.mountpoint), "OPTIONS": "defaults"}
    return [re.sub(r"\$\{(\w+)\}", lambda m: values[m[1]], word) for word in shlex.split(line)]


@contextlib.contextmanager
def service(host: Host, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """The main process of the unit, ended and waited for when the block ends."""
    process = subprocess.Popen(
        command(host, "ExecStart"),
        env={**host.env, "NOTIFY_SOCKET": address},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr
    try:
        yield process
    finally:
        if not process.stderr.closed:
            process.stderr.close()
        if process.poll() is None:
            process.terminate()
        process.wait(STUCK_S)


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as found:
        yield found.format()


def is_ready(message: list[str]) -> bool:
    return "READY=1" in message


def statuses(messages: list[list[str]]) -> list[str]:
    return [line for message in messages for line in message if line.startswith("STATUS=")]


@pytest.mark.fuse
def test_the_units_start_and_stop(host: Host, listener: Listener) -> None:
    with service(host, listener.address) as process:
        *before, ready = listener.until(is_ready)
        # At once: systemd starts what needs the tape now.
        assert is_mounted(host.mountpoint)
        (host.mountpoint / "letter").write_bytes(bytes(3_000_000))
        assert "STATUS=reading the label" in statuses(before)
        assert all(EXTENSION in message for message in before)
        assert ready == ["READY=1", "STATUS=volume 'FIRST' is mounted"]
        done = run(command(host, "ExecStop"), env=host.env)
        assert (done.code, process.wait(STUCK_S)) == (0, 0)
    after = listener.rest()
    assert after[0] == ["STOPPING=1", "STATUS=unmounted, finalizing the tape", EXTENSION]
    assert all(EXTENSION in message for message in after)
    assert statuses(after)[1] == "STATUS=getting ready, 0 %"
    assert statuses(after)[-1] == "STATUS=the tape is finalized"
    assert_on_tape(host)


@pytest.mark.fuse
def test_a_stop_while_somebody_uses_the_mount(host: Host, tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "notify"))
    with service(host, listener.address) as process:
        listener.until(is_ready)
        (host.mountpoint / "letter").write_bytes(bytes(3_000_000))
        used = os.open(host.mountpoint / "letter", os.O_RDONLY)
        assert run(command(host, "ExecStop"), env=host.env).code == ExitCode.MOUNT_BUSY
        # What KillMode=mixed does then.
        process.send_signal(signal.SIGTERM)
        messages = listener.until(lambda message: "STATUS=the tape is finalized" in message)
        assert process.wait(STUCK_S) == 0
        with contextlib.suppress(OSError):  # nobody is there any more to be told
            os.close(used)
    assert "STOPPING=1" in messages[0]
    listener.close()
    assert_on_tape(host)


@pytest.mark.fuse
def test_a_terminal_that_was_closed_costs_nothing(host: Host, tmp_path: Path) -> None:
    """Progress at the end has nowhere to go then."""
    listener = Listener(str(tmp_path / "notify"))
    with service(host, listener.address) as process:
        listener.until(is_ready)
        (host.mountpoint / "letter").write_bytes(bytes(3_000_000))
        assert process.stderr
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        process.wait(STUCK_S)
        assert "STATUS=the tape is finalized" in statuses(listener.rest())
    listener.close()
    assert_on_tape(host)


def assert_on_tape(host: Host) -> None:
    """The letter is there on another computer."""
    host.forget()
    host.mount()
    assert (host.mountpoint / "letter").read_bytes() == bytes(3_000_000)
    host.umount()


@pytest.mark.fuse
def test_without_the_drive_it_says_so_and_is_never_ready(listener: Listener) -> None:
    with new_host() as host:
        with service(host, listener.address) as process:
            assert process.wait(STUCK_S) == ExitCode.NO_DRIVE
        messages = listener.rest()
    assert not any(is_ready(message) for message in messages)
    assert "there is no cartridge at " in statuses(messages)[-1]


@pytest.mark.fuse
def test_a_service_manager_that_is_gone_costs_only_a_line(host: Host, tmp_path: Path) -> None:
    with service(host, str(tmp_path / "nobody")) as process:
        assert process.stderr
        for line in process.stderr:
            if b"mount.ready" in line:
                break
        assert is_mounted(host.mountpoint)
        process.send_signal(signal.SIGTERM)
        assert b"systemd.deaf" in process.stderr.read()
        assert process.wait(STUCK_S) == 0


def test_children_are_not_told_of_it(monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", listener.address)
    SdNotify.of_this_process().failed("no\ndrive")
    assert "NOTIFY_SOCKET" not in os.environ
    assert listener.take() == ["STATUS=no drive", EXTENSION]
    SdNotify.of_this_process().failed("nobody hears this")
    assert listener.rest() == []


def test_one_that_does_not_listen_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, listener: Listener, assert_logs: Callable[[str], object]
) -> None:
    monkeypatch.setattr(sd_notify, "SEND_TIMEOUT_S", 0.01)
    name = listener.address.replace("@", "\0", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"X=1", name)
        assert_logs(r"systemd\.deaf told=STOPPING=1")
        SdNotify(listener.address).report({"event": "unmounting"})
    assert not any("STOPPING=1" in message for message in listener.rest())


def test_what_stays_the_same_is_repeated_for_the_extension_only(listener: Listener) -> None:
    now_s = 100.0
    notify = SdNotify(listener.address, lambda: now_s)
    event = {"event": "progress", "message": "writing to tape", "total_bytes": 1000}
    notify.report({**event, "done_bytes": 10})
    notify.report({**event, "done_bytes": 19})
    now_s += REPEAT_S - 0.1
    notify.report({**event, "done_bytes": 19})
    assert listener.rest() == [["STATUS=writing to tape, 1 %", EXTENSION]]
    now_s += 0.1
    notify.report({**event, "done_bytes": 19})
    notify.report({**event, "done_bytes": 20})
    assert statuses(listener.rest()) == [
        "STATUS=writing to tape, 1 %",
        "STATUS=writing to tape, 2 %",
    ]


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """systemd-analyze warns of words that it does not know, and so ignores."""
    unit = tmp_path / "tapefs@tape.service"
    unit.write_text(
        re.sub("^(Exec.*=-?)tapefs", rf"\1{PROGRAMS}/tapefs", UNIT.read_text(), flags=re.MULTILINE)
    )
    done = run(["systemd-analyze", "verify", "--man=no", unit])
    assert (done.code, done.stdout, done.stderr) == (0, "", "")


def test_systemd_understands_the_line_for_fstab(tmp_path: Path) -> None:
    """With systemd's own generator: the mount unit waits as long as it takes."""
    readme = (SYSTEMD.parent.parent / "README.md").read_text()
    (line,) = re.findall(r"^usb +/mnt/tape .*$", readme, re.MULTILINE)
    (tmp_path / "fstab").write_text(f"{line}\n")
    generator = "/usr/lib/systemd/system-generators/systemd-fstab-generator"
    places = [tmp_path / name for name in ("normal", "early", "late")]
    for place in places:
        place.mkdir()
    made = run([generator, *places], env={"SYSTEMD_FSTAB": str(tmp_path / "fstab")})
    assert (made.code, made.stderr) == (0, "")
    unit = (places[0] / "mnt-tape.mount").read_text().splitlines()
    assert {"Type=fuse.tapefs", "TimeoutSec=infinity"} <= set(unit)
    done = run(["systemd-analyze", "verify", "--man=no", places[0] / "mnt-tape.mount"])
    assert (done.code, done.stderr) == (0, "")
