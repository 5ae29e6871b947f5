"""`tapefs status`, `sync` and `umount`, each against a served socket."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from stub_daemon import raising

from tapefs import cli, control, errors
from tapefs.cli import mountpoints, umount
from tapefs.control import server as control_server
from tapefs.errors import ExitCode
from tapefs.fuse.mountpoint import FILESYSTEM_TYPE, Mount

STATUS = {
    "mountpoint": "/mnt/tape",
    "state": "mounted",
    "drive": {"product": "SDX-700", "position_block": 12, "write_protected": False},
    "spool": {"used_bytes": 3 * 1024**2, "rate_bytes_per_s": 12.5 * 1024**2, "oldest_s": 200},
    "not_on_tape": {"file_count": 1200, "bytes": 1024},
}


class Mounted:
    """A Service whose tape is finalized once the mountpoint was released."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.released = trio.Event()
        self.failure: Exception | None = None

    def status(self) -> dict[str, Any]:
        return STATUS

    def generations(self) -> dict[str, Any]:
        return {"name": "TAPE", "volume": "V", "generations": []}

    async def sync(self, report: control.Report) -> dict[str, Any]:
        report({"phase": "archive", "message": "writing segment 1"})
        return {"sequence": 1, "written_bytes": 2048}

    async def wait_finalized(self, report: control.Report) -> dict[str, Any]:
        self.calls.append("wait")
        await self.released.wait()
        if self.failure:
            raise self.failure
        return {"sequence": 2, "message": "the tape is finalized"}


async def run_beside(service: Mounted, path: Path, words: list[str]) -> int:
    """Run a command while `service` listens for the mount at `path`."""
    async with trio.open_nursery() as nursery:
        await nursery.start(control_server.serve, control.socket_path(path), service)
        code = await trio.to_thread.run_sync(partial(cli.main, words))
        nursery.cancel_scope.cancel()
    return code


async def test_status_of_one_mount(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run_beside(Mounted(), tmp_path, ["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (
        "/mnt/tape:\n"
        "  mountpoint  /mnt/tape\n"
        "  state       mounted\n"
        "drive:\n"
        "  product          SDX-700\n"
        "  position block   12\n"
        "  write protected  no\n"
        "spool:\n"
        "  used    3.0 MiB\n"
        "  rate    12.5 MiB/s\n"
        "  oldest  3 min 20 s\n"
        "not on tape:\n"
        "  file   1,200\n"
        "  bytes  1.0 KiB\n"
    )
    assert await run_beside(Mounted(), tmp_path, ["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


async def test_status_of_all_mounts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run_beside(Mounted(), tmp_path, ["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"mounts": [STATUS]}
    assert cli.main(["status"]) == ExitCode.NOT_MOUNTED
    assert "no tape of this user is mounted" in capsys.readouterr().err


async def test_sync(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run_beside(Mounted(), tmp_path, ["sync", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == "tapefs: writing segment 1\n"
    assert out.splitlines()[0] == f"everything in {tmp_path} is on tape"
    assert "  written   2.0 KiB" in out


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    """A service whose mount the kernel knows; releasing it ends the wait."""
    service = Mounted()

    def release(path: Path, *, flags: tuple[str, ...] = ()) -> None:
        service.calls.append(" ".join(["release", *flags]))
        trio.from_thread.run_sync(service.released.set)

    there = Mount(tmp_path, "0:44", FILESYSTEM_TYPE, "tapefs:A")
    monkeypatch.setattr(umount, "mount_at", lambda path: there)
    monkeypatch.setattr(mountpoints, "release", release)
    return service


async def test_umount_waits_before_it_lets_go(
    mounted: Mounted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_beside(mounted, tmp_path, ["umount", str(tmp_path), "--json"]) == 0
    assert mounted.calls == ["wait", "release"]
    found = json.loads(capsys.readouterr().out)
    assert found["sequence"] == 2
    assert (found["mountpoint"], found["message"]) == (str(tmp_path), "the tape is finalized")


async def test_umount_fails_when_the_tape_is_not_finalized(
    mounted: Mounted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mounted.failure = errors.NotFinalized("the drive was unplugged; plug it in, mount again")
    assert await run_beside(mounted, tmp_path, ["umount", str(tmp_path)]) == ExitCode.NOT_FINALIZED
    out, err = capsys.readouterr()
    assert out == ""
    assert "the drive was unplugged" in err


async def test_a_busy_mount_stays_and_no_wait_is_left(
    mounted: Mounted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mountpoints, "release", raising(errors.MountBusy("in use; end that")))
    assert await run_beside(mounted, tmp_path, ["umount", str(tmp_path)]) == ExitCode.MOUNT_BUSY
    assert mounted.calls == ["wait"]
    assert "in use; end that" in capsys.readouterr().err


async def test_a_second_umount_waits_on_for_the_first(
    mounted: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(umount, "mount_at", lambda path: None)
    mounted.released.set()
    assert await run_beside(mounted, tmp_path, ["umount", str(tmp_path)]) == 0
    assert mounted.calls == ["wait"]


async def test_umount8_means_the_same(
    mounted: Mounted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(control_server.serve, control.socket_path(tmp_path), mounted)
        words = [str(tmp_path), "-n", "-v", "-t", "fuse.tapefs"]
        assert await trio.to_thread.run_sync(partial(cli.umount_main, words)) == 0
        nursery.cancel_scope.cancel()
    assert mounted.calls == ["wait", "release -n -v"]
    assert capsys.readouterr().out == ""


def test_umount_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["umount", str(tmp_path)]) == ExitCode.NOT_MOUNTED
    assert "no tapefs daemon serves" in capsys.readouterr().err


def test_the_helper_of_umount8_understands_its_words() -> None:
    assert umount.umount_helper(["/mnt", "-l", "-f", "-r", "-N", "/ns"]) == (
        Path("/mnt"),
        ["-l", "-f", "-r"],
    )
