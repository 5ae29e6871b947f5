"""A cartridge on the shelf can be browsed; what is only on its tape is refused at once, by name."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from first_light_rig import Host, fingerprint, new_host
from test_recall import nothing

from tapefs.archive import catalog_exchange, known_volumes
from tapefs.archive.catalogs import IMPORTED_NAME
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        made.format().mount("settle=0")
        (made.mountpoint / "d").mkdir()
        (made.mountpoint / "d/kept").write_bytes(b"in the spool")
        os.setxattr(made.mountpoint / "d/kept", "user.note", b"x")
        (made.mountpoint / "link").symlink_to("d/kept")
        (made.mountpoint / "gone").write_bytes(b"only on tape")
        subprocess.run(["setfacl", "-m", "u:1:r", made.mountpoint / "gone"], check=True)
        yield made


def mount_offline(host: Host) -> str:
    """By name, with the image out of the way; what the command says."""
    drive, host.drive = host.drive, "FIRST"
    host.image.rename(host.root / "shelf.tap")
    try:
        host.mount("", "--offline")
    finally:
        host.drive = drive
        (host.root / "shelf.tap").rename(host.image)
    return host.log()


def problem(path: Path) -> str:
    return os.getxattr(path, "user.tapefs.problem").decode()


def test_all_but_the_bytes(host: Host) -> None:
    before = fingerprint(host.mountpoint)
    with pytest.raises(OSError, match="No data available"):
        problem(host.mountpoint)
    host.umount()
    # Of one file the spool has nothing more, of the other one everything.
    (volume,) = known_volumes.known_volumes(host.state)
    (spooled,) = [
        path
        for path in (volume.directory / "spool").rglob("*")
        if path.is_file() and path.read_bytes() == b"only on tape"
    ]
    drop(volume, int(spooled.name))
    spooled.unlink()
    mount_offline(host)
    assert fingerprint(host.mountpoint) == before
    assert (host.mountpoint / "d/kept").read_bytes() == b"in the spool"
    with pytest.raises(OSError, match="No medium found") as refused:
        (host.mountpoint / "gone").read_bytes()
    assert refused.value.errno == errno.ENOMEDIUM
    sentence = problem(host.mountpoint / "gone")
    assert sentence.startswith(f"the cartridge of volume 'FIRST' ({volume.uuid[:8]}) is not in a")
    assert sentence in host.log()
    with pytest.raises(OSError, match="Read-only file system"):
        (host.mountpoint / "new").write_bytes(b"x")
    status = host.status()
    assert (status["state"], status["problem"], status["mode"]) == (
        "offline",
        sentence,
        "read-only",
    )
    done = host.tapefs("verify", host.mountpoint)
    assert (done.code, sentence in done.stderr) == (ExitCode.NOT_READY, True)
    # No command takes it for the cartridge.
    done = host.tapefs("recall", "FIRST:gone", "--to", host.root)
    assert (done.code, "is in no drive" in done.stderr) == (ExitCode.NOT_READY, True)
    done = host.tapefs("recall", host.mountpoint / "gone", "--to", host.root)
    assert (done.code, sentence in done.stderr) == (ExitCode.NOT_READY, True)
    (host.root / "another").mkdir()
    for words in (["verify", host.drive], ["mount", host.drive, host.root / "another"]):
        done = host.tapefs(*words)
        assert done.code == ExitCode.DRIVE_BUSY
        assert "mounted, with --offline perhaps, unmount it; else wait" in done.stderr
    host.umount()
    assert (
        not (volume.directory / "health.json").exists()
        or "no drive" not in (volume.directory / "health.json").read_text()
    )
    host.mount()
    assert (host.mountpoint / "gone").read_bytes() == b"only on tape"
    host.umount()


def drop(volume: known_volumes.KnownVolume, ino: int) -> None:
    import sqlite3  # noqa: PLC0415 - what an eviction does

    connection = sqlite3.connect(volume.live_path)
    assert connection.execute("DELETE FROM staged WHERE ino = ?", (ino,)).rowcount == 1
    connection.commit()
    connection.close()


def test_what_waits_for_the_tape_goes_on_waiting(host: Host) -> None:
    host.ok("sync", host.mountpoint)
    (host.mountpoint / "late").write_bytes(b"fsynced, not on tape")
    descriptor = os.open(host.mountpoint / "late", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    host.daemon.kill()
    subprocess.run(["umount", "-i", "-l", host.mountpoint], check=True)
    for _ in range(2):
        mount_offline(host)
        assert (host.mountpoint / "late").read_bytes() == b"fsynced, not on tape"
        assert host.status()["all_on_tape"] is False
        done = host.tapefs("sync", host.mountpoint)
        assert (done.code, done.stdout) == (ExitCode.NOT_FINALIZED, "")
        assert "on the tape, and this mount writes nothing: the cart" in done.stderr
        directory = os.open(host.mountpoint, os.O_RDONLY)
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(directory)
        os.close(directory)
        done = host.tapefs("umount", host.mountpoint)
        assert done.code == ExitCode.OK
        assert "finalized" not in done.stdout
        assert "nothing was written to the tape; what waits for it is kept" in done.stdout
    host.mount()
    assert "; the tape is finalized\n" in host.ok("umount", host.mountpoint)
    host.forget()
    host.mount()
    assert (host.mountpoint / "late").read_bytes() == b"fsynced, not on tape"
    host.umount()


def test_of_another_computer(host: Host) -> None:
    before = fingerprint(host.mountpoint)
    host.umount()
    (volume,) = known_volumes.known_volumes(host.state)
    file = host.root / "first.catalog"
    catalog_exchange.export_catalog(volume, file, nothing)
    host.forget()
    imported = catalog_exchange.import_catalog(host.state, file, nothing)
    for _ in range(2):
        mount_offline(host)
        assert fingerprint(host.mountpoint) == before
        with pytest.raises(OSError, match="No medium found"):
            (host.mountpoint / "gone").read_bytes()
        host.umount()
    assert not imported.live_path.exists(), "no mount shall rely on it"
    host.mount()
    assert (host.mountpoint / "gone").read_bytes() == b"only on tape"
    host.umount()
    assert not (imported.directory / IMPORTED_NAME).exists()


MISTAKES = [
    (["NONE", "{root}/run", "--offline"], ExitCode.USAGE, "'tapefs volumes' lists them"),
    (
        ["FIRST", "{root}/run", "--offline", "--generation", "1"],
        ExitCode.USAGE,
        "a generation is read from the tape: mount the drive with --generation",
    ),
    (["FIRST", "{root}/state", "--offline"], ExitCode.DRIVE_BUSY, "another tapefs process uses"),
    (["FIRST", "{root}/none", "--offline"], ExitCode.MOUNTPOINT_UNUSABLE, "does not exist"),
    (["FIRST", "{root}/state"], ExitCode.USAGE, "'FIRST' names no drive"),
]


def test_mistakes(host: Host) -> None:
    for words, code, sentence in MISTAKES:
        done = host.tapefs("mount", *(word.format(root=host.root) for word in words))
        assert (done.code, sentence in done.stderr) == (code, True), done.stderr
    host.umount()
