"""`tapefs verify` as a person runs it: the real daemon, /dev/fuse, a virtual cartridge."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from first_light_rig import Host, deterministic_bytes, new_host
from test_verify import change

from tapefs import cli, control
from tapefs.cli.verify import mount_holding
from tapefs.entries import printable
from tapefs.errors import ExitCode, NotMounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
pytestmark = pytest.mark.fuse
ODD = b"odd \xff\n\\name"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A cartridge with a segment and a checkpoint, and a damaged copy of it."""
    with new_host() as host:
        host.format().mount("settle=0")
        (host.mountpoint / "d").mkdir()
        (host.mountpoint / "sound").write_bytes(deterministic_bytes("sound", 3 * MIB))
        directory = os.fsencode(host.mountpoint / "d")
        with open(directory + b"/" + ODD, "wb") as file:
            file.write(deterministic_bytes("odd", 4 * MIB))
        host.umount()
        yield host


def verify(host: Host, *words: str | Path) -> tuple[int, dict[str, Any]]:
    done = host.tapefs("verify", "--json", *words)
    assert done.code in (ExitCode.OK, ExitCode.DAMAGE_FOUND), done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return done.code, document


def test_a_cartridge_a_mount_and_a_path(host: Host) -> None:
    code, report = verify(host, host.drive)
    assert (code, report["damage_count"], report["tape_files_count"]) == (0, 0, 2)
    records = report["records_count"]
    assert verify(host, "--new", host.drive)[1]["records_count"] == 0
    host.mount()
    status = host.status()["verification"]
    assert status["proven_good"] is not None
    assert (status["verified_tape_files"], status["unverified_tape_files"]) == (2, 0)
    assert verify(host, host.mountpoint)[1]["records_count"] == records
    code, report = verify(host, host.mountpoint / "d")
    assert (code, report["verified"]) == (0, "d")
    assert 8 <= report["records_count"] <= 9
    assert host.tapefs("verify", "--new", host.mountpoint / "d").code == ExitCode.USAGE
    assert host.tapefs("verify", host.mountpoint / "nothing").code == ExitCode.USAGE
    said = host.ok("verify", host.mountpoint)
    assert "everything that was read is as it was written" in said
    # A mounted cartridge is verified through its mount.
    assert host.tapefs("verify", host.drive).code == ExitCode.DRIVE_BUSY
    host.umount()


def test_damage_has_an_exit_code_and_names(host: Host) -> None:
    sound = host.image.read_bytes()
    try:
        change(host.image, 1, 12)
        code, report = verify(host, host.drive)
        assert code == ExitCode.DAMAGE_FOUND
        (file,) = report["damaged_files"]
        assert file["path"] == "d/odd \\xff\\x0a\\x5cname"
        ((start, end),) = file["ranges"]
        assert end - start == 512 * 1024
        (place,) = report["damage"]
        assert (place["tape_file"], place["first_record"], place["first_block"]) == (1, 12, 14)
        done = host.tapefs("verify", host.drive)
        assert done.code == ExitCode.DAMAGE_FOUND
        assert f"{start}-{end - 1}" in done.stdout
        host.mount()
        code, report = verify(host, host.mountpoint / "d")
        assert (code, report["damaged_files_count"]) == (ExitCode.DAMAGE_FOUND, 1)
        assert verify(host, host.mountpoint / "sound")[0] == ExitCode.OK
        assert host.status()["verification"]["damaged_places"] == 1
        host.umount()
    finally:
        host.image.write_bytes(sound)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ([], "'tapefs verify --resume MOUNT' goes on"),
        (["--new"], "'tapefs verify --new MOUNT' goes on"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    words: list[str], advice: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the daemon stops reading then, and what is noted, is tested without the command."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(control, "request", interrupted)
    monkeypatch.setattr("tapefs.cli.verify.mount_holding", lambda path: path)
    assert cli.main(["verify", *words, str(tmp_path)]) == ExitCode.INTERRUPTED
    assert advice.replace("MOUNT", str(tmp_path)) in capsys.readouterr().err


def test_a_place_that_is_no_tape_is_refused(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(NotMounted):
        mount_holding(tmp_path)
    assert cli.main(["verify", str(tmp_path)]) == ExitCode.NOT_MOUNTED
    assert "neither a drive nor in a mount" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"plain name", "plain name"),
        ("ümläut ☃".encode(), "ümläut ☃"),
        (b"\xff\x1b[31m", "\\xff\\x1b[31m"),
        (b"a\\b", "a\\x5cb"),
        ("\u202e".encode(), "\\xe2\\x80\\xae"),
    ],
)
def test_names_from_tape_do_nothing_to_a_terminal(path: bytes, shown: str) -> None:
    assert printable(path) == shown
