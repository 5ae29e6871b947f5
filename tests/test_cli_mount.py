"""`tapefs mount`: what it refuses, and how it becomes a daemon."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import stub_daemon
from screen_rig import Terminal
from stub_daemon import MountRequest

from tapefs import cli, errors
from tapefs.cli import arguments, background, mountpoints
from tapefs.cli.mount_words import MountWords, tell_apart
from tapefs.errors import ExitCode
from tapefs.fuse import mountpoint

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterator


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for tapefs.daemon; tests give it the functions that they need."""
    return stub_daemon.install(monkeypatch)


def test_mount_words_are_no_settings() -> None:
    assert tell_apart("defaults,ro,settle=1") == MountWords("settle=1", read_only=True)
    assert tell_apart("ro,rw,spool=1G,fsync=tape") == MountWords("spool=1G,fsync=tape")
    assert tell_apart("") == MountWords("")
    line = "noauto,user,nodev,noexec,x-systemd.automount,relatime,state_dir=/s,umask=027"
    assert tell_apart(line) == MountWords("umask=027", False, ("nodev", "noexec"), "/s")
    with pytest.raises(errors.UsageError, match="unknown mount option 'nodevs'"):
        tell_apart("nodevs")


@pytest.mark.parametrize("value", ["8", "1777", "u=rwx", ""])
def test_a_umask_that_is_none(value: str) -> None:
    with pytest.raises(errors.UsageError, match="takes an octal number like 022"):
        tell_apart(f"umask={value}")


def test_mount_in_the_foreground(
    daemon: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests: list[MountRequest] = []

    def run_mount(request: MountRequest, report: Callable[[dict[str, Any]], None]) -> int:
        requests.append(request)
        report({"event": "progress", "message": "reading the label"})
        report({"event": "mounted"})
        return 0

    daemon.run_mount = run_mount  # type: ignore[attr-defined]
    words = ["mount", "usb", str(tmp_path), "--foreground", "-o", "settle=1", "-o", "ro,idle=2"]
    assert cli.main(words) == 0
    assert requests == [
        MountRequest(
            "usb",
            tmp_path,
            "settle=1,idle=2",
            arguments.state_dir(None),
            True,
            None,
            (),
            True,
            False,
            False,
        )
    ]
    assert capsys.readouterr().err.splitlines() == [
        "tapefs: reading the label",
        "tapefs: mounted; Ctrl-C unmounts and finalizes the tape",
    ]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "does not exist; create the directory first"),
        ("file", "is not a directory"),
        ("/proc", "/proc already carries a mount (proc "),
    ],
)
def test_a_mountpoint_that_cannot_be(
    daemon: types.ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    sentence: str,
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["mount", "usb", str(tmp_path / name)]) == ExitCode.MOUNTPOINT_UNUSABLE
    assert sentence in capsys.readouterr().err


def test_without_fuse_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    assert cli.main(["mount", "usb", str(tmp_path)]) == ExitCode.NO_FUSE
    assert "modprobe fuse" in capsys.readouterr().err


def test_a_state_directory_that_cannot_be_written(
    daemon: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "state").touch()
    words = ["mount", "usb", str(tmp_path / "mnt"), "--state-dir", str(tmp_path / "state")]
    assert cli.main(words) == ExitCode.STATE_UNUSABLE
    assert "choose another one with --state-dir" in capsys.readouterr().err


DAEMON = """
import os, signal, sys, types
import tapefs
from tapefs import cli, errors, telemetry
from tapefs.fuse import mountpoint
from stub_daemon import MountRequest

def run_mount(request, report):
    if request.drive == "usb:deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        (request.state_dir / "pid").write_text(str(os.getpid()))
    report({"event": "progress", "phase": "label", "message": "reading the label"})
    if request.drive == "usb:error":
        raise errors.WrongTape("this is volume B; load volume A")
    if request.drive == "usb:bug":
        raise KeyError("lost")
    if request.drive == "usb:killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if request.drive == "usb:slow":
        signal.pause()
    if request.drive == "usb:deaf":
        while True:
            signal.sigwait({signal.SIGTERM})
    print("printed by a library")
    telemetry.event(telemetry.MOUNT_READY, mountpoint=request.mountpoint)
    report({"event": "mounted", "pid": os.getpid(), "cwd": os.getcwd(), "group": os.getpgrp()})
    report({"event": "progress", "phase": "nobody listens any more"})
    signal.pause()
    return 0

module = types.ModuleType("tapefs.daemon")
module.MountRequest, module.run_mount = MountRequest, run_mount
sys.modules["tapefs.daemon"] = tapefs.daemon = module
mountpoint.FUSE_DEVICE = mountpoint.Path(os.devnull)
sys.exit(cli.main(sys.argv[1:]))
"""


def start_mount(
    tmp_path: Path, drive: str, *more: str, inherited: int | None = None
) -> subprocess.Popen[str]:
    """`tapefs mount DRIVE` in a process of its own, with a daemon that only pretends."""
    (tmp_path / "mnt").mkdir(exist_ok=True)
    words = ["mount", drive, str(tmp_path / "mnt"), "--state-dir", str(tmp_path / "state"), *more]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", DAEMON, *words]
    if inherited is not None:
        # As number 3 too: below the pipe between daemon and parent, as a shell's lock would be.
        command = ["bash", "-c", f'exec 3>&{inherited}; exec "$@"', "bash", *command]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        pass_fds=() if inherited is None else (inherited,),
    )


def test_mount_returns_while_its_daemon_lives_on(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process = start_mount(tmp_path, "usb", "--json", inherited=writing)
    os.close(writing)
    # Returns only when nobody holds the pipes: the daemon must have let go of them.
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    mounted = json.loads(out)
    try:
        assert mounted["cwd"] == "/"
        # While it mounted it was in the group for which an automount lets the mount through.
        assert mounted["group"] == os.getpgrp()
        assert os.getsid(mounted["pid"]) == mounted["pid"] != process.pid
        assert mounted["mountpoint"] == str(tmp_path / "mnt")
        # The end, at once: the daemon has not kept what its caller had open, such as a lock.
        assert select.select([reading], [], [], 10)[0]
        assert os.read(reading, 1) == b""
        log = Path(mounted["log"])
        assert log.parent == tmp_path / "state" / "log"
        assert "mount.ready" in log.read_text()
    finally:
        os.kill(mounted["pid"], signal.SIGTERM)
        os.close(reading)


@pytest.mark.parametrize(
    ("drive", "code", "sentence"),
    [
        ("usb:error", ExitCode.WRONG_TAPE, "this is volume B; load volume A"),
        ("usb:bug", ExitCode.BUG, "this is a bug in tapefs: KeyError"),
        ("usb:killed", ExitCode.BUG, "the daemon ended before it had mounted (signal 9)"),
    ],
)
def test_mount_ends_as_its_daemon_does(
    tmp_path: Path, drive: str, code: ExitCode, sentence: str
) -> None:
    process = start_mount(tmp_path, drive)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    progress, complaint = err.splitlines()
    assert progress == "tapefs: reading the label"
    assert complaint.startswith("tapefs: ")
    assert sentence in complaint
    log = next((tmp_path / "state" / "log").iterdir()).read_text()
    assert ("Traceback" in log) == (drive == "usb:bug")


def test_ctrl_c_calls_the_mount_off(tmp_path: Path) -> None:
    process = start_mount(tmp_path, "usb:slow")
    assert process.stderr
    assert process.stderr.readline() == "tapefs: reading the label\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED
    assert (out, err) == ("", "tapefs: interrupted; the mount was called off\n")


def test_ctrl_c_on_a_terminal_and_twice(tmp_path: Path) -> None:
    """A terminal sends it to the daemon as well: until it has mounted, it is in the same group."""
    (tmp_path / "mnt").mkdir()
    words = ["mount", "usb:deaf", str(tmp_path / "mnt"), "--state-dir", str(tmp_path / "state")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TERM": "dumb"}
    with Terminal([sys.executable, "-c", DAEMON, *words], 80, 24, environment) as terminal:
        terminal.until(lambda lines: "tapefs: reading the label" in lines)
        daemon = int((tmp_path / "state" / "pid").read_text())
        try:
            terminal.press(b"\x03")
            # Two at the same moment are one; and who goes on pressing meets Python's own end.
            time.sleep(1.0)
            terminal.press(b"\x03")
            assert terminal.wait() == ExitCode.INTERRUPTED
            assert "tapefs: interrupted; the mount was called off" in "\n".join(terminal.lines())
        finally:
            os.kill(daemon, signal.SIGKILL)
    log = next((tmp_path / "state" / "log").iterdir()).read_text()
    assert "mount.failed" not in log, "it is ended by whoever started it, in order"


def test_a_log_that_grew_too_long_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log" / "mnt.log"
    background._prepare_log(log)
    log.write_text("x" * 100)
    background._prepare_log(log)
    assert log.read_text() == "x" * 100
    monkeypatch.setattr(background, "LOG_BYTES_MAX", 99)
    background._prepare_log(log)
    assert log.read_text() == ""
    assert log.with_name("mnt.log.1").read_text() == "x" * 100


FILESYSTEM = """
import stat, sys
import pyfuse3, trio

class Empty(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink = inode, stat.S_IFDIR | 0o755, 2
        return entry

pyfuse3.init(Empty(), sys.argv[1], {"fsname=usb", "subtype=tapefs"})
print("mounted", flush=True)
trio.run(pyfuse3.main)
pyfuse3.close()
"""


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An empty file system of our type at tmp_path/mnt."""
    (tmp_path / "mnt").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", FILESYSTEM, str(tmp_path / "mnt")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        assert process.stdout.readline() == "mounted\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        mountpoint.detach_dead_mount(tmp_path / "mnt")


@pytest.mark.fuse
def test_a_mount_in_use_is_called_busy(
    filesystem: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mnt"
    descriptor = os.open(path, os.O_PATH)
    try:
        with pytest.raises(errors.MountBusy, match="fuser -vm"):
            mountpoints.release(path)
    finally:
        os.close(descriptor)
    mountpoints.release(path)
    assert mountpoint.mount_at(path) is None
    assert filesystem.wait(10) == 0
    with pytest.raises(errors.MountpointUnusable, match="cannot be unmounted"):
        mountpoints.release(path)


@pytest.mark.fuse
def test_umount_of_a_dead_mount_clears_it_but_is_no_success(
    filesystem: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mnt"
    filesystem.kill()
    filesystem.wait()
    assert cli.main(["umount", str(path)]) == ExitCode.NOT_FINALIZED
    assert "mount the tape again" in capsys.readouterr().err
    assert mountpoint.mount_at(path) is None


@pytest.mark.fuse
def test_plain_umount_calls_the_helper_when_it_is_installed(
    filesystem: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mnt"
    monkeypatch.setattr(mountpoints, "UMOUNT_HELPER", tmp_path / "absent")
    assert mountpoints.call_helper_at_umount(path) is None
    monkeypatch.setattr(mountpoints, "UMOUNT_HELPER", Path("/bin/true"))
    assert mountpoints.call_helper_at_umount(tmp_path) is None
    if os.geteuid() == 0:
        helper = mountpoints.call_helper_at_umount(path)
        assert helper
        assert helper.wait(10) == 0
        table = Path("/run/mount/utab").read_text()
        assert f"TARGET={path} ROOT=/ OPTS=uhelper=fuse.tapefs" in table
    mountpoints.release(path)
