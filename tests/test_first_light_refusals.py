"""Bad input: one sentence, an exit code of its own, and a tape that is as it was."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import SEED
from first_light_rig import (
    NOBODY,
    Host,
    deterministic_bytes,
    digest_of,
    mounts_below,
    new_host,
    quiet,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.fuse

USAGE, NO_DRIVE, DRIVE_BUSY, BLANK_TAPE, FOREIGN_TAPE, WRONG_TAPE, DAMAGED_TAPE = (
    2,
    3,
    4,
    6,
    7,
    8,
    9,
)
WRITE_PROTECTED, STATE_UNUSABLE, MOUNTPOINT_UNUSABLE, NO_FUSE = 11, 13, 14, 15
NOT_MOUNTED, HAS_DATA, MOUNT_BUSY = 16, 17, 18

AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made


@pytest.fixture(scope="module")
def original() -> Iterator[Host]:
    """A host with a formatted cartridge that holds one file."""
    with new_host() as made:
        made.format().mount()
        (made.mountpoint / "file").write_bytes(b"content")
        made.umount()
        yield made


@pytest.fixture
def volume(original: Host, host: Host) -> Host:
    """A copy of `original`, for one test to spoil."""
    for name in ("first.tap", "first.tap.mam"):
        shutil.copy2(original.root / name, host.root / name)
    shutil.copytree(original.state, host.state, symlinks=True)
    return host


def refused(
    host: Host, code: int, says: str, *words: str | Path, before: Sequence[str | Path] = ()
) -> None:
    """`tapefs WORDS...` ends with `code` and one sentence with `says`; the tape is as before."""
    image = digest_of(host.image) if host.image.is_file() else None
    plain = host.tapefs(*words, before=before)
    lines = plain.stderr.splitlines()
    assert plain.code == code, lines
    assert lines, "it must say why"
    assert all(line.startswith("tapefs: ") for line in lines), lines
    assert says in lines[-1]
    assert plain.stdout == ""
    # For scripts one line, the same sentence, behind the progress of what takes long.
    done = host.tapefs(*words, "--json", before=before)
    *progress, error = map(json.loads, done.stderr.splitlines())
    assert all(line["event"] == "progress" for line in progress)
    assert error == {
        "event": "error",
        "message": lines[-1].removeprefix("tapefs: "),
        "exit_code": code,
    }
    assert (done.code, done.stdout) == (code, "")
    assert "bug" not in error["message"]
    assert (digest_of(host.image) if host.image.is_file() else None) == image


def refused_mount(
    host: Host, code: int, says: str, *words: str | Path, before: Sequence[str | Path] = ()
) -> None:
    """As `refused`, for the mount of the host's drive; afterwards nothing is mounted."""
    mounts = mounts_below(host.root)
    refused(host, code, says, "mount", *words, host.drive, host.mountpoint, before=before)
    assert mounts_below(host.root) == mounts


def tap_record(data: bytes) -> bytes:
    word = struct.pack("<I", len(data))
    return word + data + bytes(len(data) % 2) + word


def foreign_tape(image: Path) -> None:
    """What `tar -b 20` writes to a tape, filemark included."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "somebody's file").write_bytes(b"not ours\n" * 5000)
        tar = ["tar", "-b", "20", "-C", directory, "-cf", "-", "."]
        archive = subprocess.run(tar, capture_output=True, check=True).stdout
    records = [archive[at : at + 10240] for at in range(0, len(archive), 10240)]
    image.write_bytes(b"".join(map(tap_record, records)) + bytes(4))


class TestTapes:
    def test_blank(self, host: Host) -> None:
        host.image.touch()
        refused_mount(host, BLANK_TAPE, "blank")
        refused(host, BLANK_TAPE, "blank", "rebuild", host.drive)

    def test_foreign(self, host: Host) -> None:
        foreign_tape(host.image)
        refused_mount(host, FOREIGN_TAPE, "not")
        refused(host, FOREIGN_TAPE, "not", "rebuild", host.drive)
        refused(host, HAS_DATA, "--force", "format", host.drive, "--name", "MINE")

    @pytest.mark.parametrize("seed", [1, 2])
    def test_garbage(self, host: Host, seed: int) -> None:
        host.image.write_bytes(random.Random(SEED * 1000 + seed).randbytes(300_000))
        refused_mount(host, DAMAGED_TAPE, "first.tap")
        refused(host, DAMAGED_TAPE, "first.tap", "format", host.drive, "--name", "X")

    def test_a_record_that_is_damaged_in_the_middle_of_the_image(self, volume: Host) -> None:
        with volume.image.open("r+b") as image:
            image.seek(8 + 10240 + 4)  # the length word of the first record of tape file 1
            image.write(b"\x12\x34\x56\x00")
        refused_mount(volume, DAMAGED_TAPE, "first.tap")

    def test_garbage_in_a_sound_image(self, host: Host) -> None:
        records = [tap_record(deterministic_bytes(number, 10240)) for number in range(3)]
        host.image.write_bytes(b"".join(records) + bytes(4))
        refused_mount(host, FOREIGN_TAPE, "not")

    def test_truncated_where_this_host_knows_more(self, volume: Host) -> None:
        size = volume.image.stat().st_size
        for keep in (size - 4, size - 100_000, size // 2, 10240 + 12):
            os.truncate(volume.image, keep)
            refused_mount(volume, WRONG_TAPE, "older copy")

    def test_truncated_and_unknown_to_this_host_is_salvaged(self, volume: Host) -> None:
        """Nothing was promised behind the last whole tape file; all before it is there."""
        size = volume.image.stat().st_size
        os.truncate(volume.image, size - 100_000)
        volume.forget()
        kept = volume.image.read_bytes()[: 10240 + 12 + 524288 + 12]
        volume.mount("ro")
        assert (volume.mountpoint / "file").read_bytes() == b"content"
        volume.umount()
        assert volume.image.stat().st_size == size - 100_000
        volume.forget()
        volume.mount()
        assert (volume.mountpoint / "file").read_bytes() == b"content"
        volume.umount()
        assert volume.image.read_bytes()[: len(kept)] == kept

    def test_an_older_copy_than_this_host_knows(self, volume: Host) -> None:
        older = volume.image.read_bytes()
        volume.mount()
        (volume.mountpoint / "second").write_bytes(b"later")
        volume.umount()
        newer = volume.image.read_bytes()
        volume.image.write_bytes(older)
        refused_mount(volume, WRONG_TAPE, "older copy")
        # And nothing of what this host knows was lost over it.
        volume.image.write_bytes(newer)
        volume.mount()
        assert sorted(os.listdir(volume.mountpoint)) == ["file", "second"]

    def test_written_elsewhere_while_something_waits_here(self, volume: Host) -> None:
        volume.mount("idle=3600")
        (volume.mountpoint / "waiting").write_bytes(b"not on tape yet")
        quiet("sync", volume.mountpoint / "waiting")
        volume.daemon.kill()
        elsewhere = volume.root / "elsewhere"
        volume.mount("", "--state-dir", str(elsewhere))
        (volume.mountpoint / "elsewhere").write_bytes(b"x")
        volume.umount()
        refused_mount(volume, WRONG_TAPE, "written by another host")
        spooled = [path for path in volume.state.glob("volumes/*/spool/**/*") if path.is_file()]
        assert b"not on tape yet" in [path.read_bytes() for path in spooled]

    def test_another_volume_in_the_same_place_is_no_mistake(self, volume: Host) -> None:
        """Cartridges are changed: each has a catalog of its own."""
        first = volume.image.read_bytes()
        volume.image.unlink()
        volume.format("SECOND").mount()
        assert os.listdir(volume.mountpoint) == []
        volume.umount()
        volume.image.write_bytes(first)
        volume.mount()
        assert os.listdir(volume.mountpoint) == ["file"]

    def test_format_is_refused_until_told_twice(self, volume: Host) -> None:
        refused(volume, HAS_DATA, "'FIRST'", "format", volume.drive, "--name", "SECOND")
        volume.ok("format", volume.drive, "--name", "SECOND", "--force")
        refused(volume, HAS_DATA, "'SECOND'", "format", volume.drive, "--name", "THIRD")

    def test_write_protected(self, volume: Host) -> None:
        memory = Path(f"{volume.image}.mam")
        chip = json.loads(memory.read_text())
        memory.write_text(json.dumps({**chip, "write_protected": True}))
        words = ("format", volume.drive, "--name", "SECOND", "--force")
        refused(volume, WRITE_PROTECTED, "write protected", *words)
        image = digest_of(volume.image)
        assert volume.mount()["read_only"] is True
        assert (volume.mountpoint / "file").read_bytes() == b"content"
        with pytest.raises(OSError, match="Read-only file system"):
            (volume.mountpoint / "new").touch()
        volume.umount()
        assert digest_of(volume.image) == image


class TestStateDirectory:
    def test_below_a_file(self, volume: Host) -> None:
        (volume.root / "file").touch()
        chosen = volume.root / "file" / "state"
        refused_mount(volume, STATE_UNUSABLE, "--state-dir", "--state-dir", chosen)

    def test_on_a_read_only_filesystem(self, volume: Host) -> None:
        chosen = volume.root / "full"
        chosen.mkdir()
        script = f"mount -t tmpfs -o ro none {chosen}" + ' && exec "$@"'
        before = ("unshare", "--mount", "sh", "-ec", script, "sh")
        refused_mount(volume, STATE_UNUSABLE, "--state-dir", "--state-dir", chosen, before=before)

    def test_of_somebody_else(self, volume: Host) -> None:
        """As an ordinary user, who may use the cartridge, but not root's state."""
        for path in (volume.mountpoint, volume.image, Path(f"{volume.image}.mam")):
            os.chown(path, NOBODY, NOBODY)
        run_directory = volume.root / "run of nobody"
        run_directory.mkdir(mode=0o700)
        os.chown(run_directory, NOBODY, NOBODY)
        volume.env["TAPEFS_RUNTIME_DIR"] = str(run_directory)
        refused_mount(volume, STATE_UNUSABLE, "--state-dir", before=AS_NOBODY)


class TestMountpoint:
    def test_missing(self, volume: Host) -> None:
        volume.mountpoint.rmdir()
        refused_mount(volume, MOUNTPOINT_UNUSABLE, "does not exist")

    def test_not_a_directory(self, volume: Host) -> None:
        volume.mountpoint.rmdir()
        volume.mountpoint.touch()
        refused_mount(volume, MOUNTPOINT_UNUSABLE, "not a directory")

    def test_carries_a_tape(self, volume: Host) -> None:
        volume.mount()
        other = volume.root / "other.tap"
        refused(
            volume, MOUNTPOINT_UNUSABLE, "tapefs umount", "mount", f"virtual:{other}",
            volume.mountpoint,
        )  # fmt: skip
        assert (volume.mountpoint / "file").read_bytes() == b"content"

    def test_carries_something_else(self, volume: Host) -> None:
        quiet("mount", "-t", "tmpfs", "none", volume.mountpoint)
        refused_mount(volume, MOUNTPOINT_UNUSABLE, "tmpfs")

    def test_not_writable_by_who_mounts(self, volume: Host) -> None:
        refused_mount(volume, MOUNTPOINT_UNUSABLE, "not writable", before=AS_NOBODY)


class TestDrive:
    def test_in_use_by_a_mount(self, volume: Host) -> None:
        volume.mount()
        second = volume.root / "second"
        second.mkdir()
        refused(volume, DRIVE_BUSY, "in use", "mount", volume.drive, second)
        refused(volume, DRIVE_BUSY, "in use", "format", volume.drive, "--name", "X", "--force")
        refused(volume, DRIVE_BUSY, "in use", "rebuild", volume.drive)
        assert (volume.mountpoint / "file").read_bytes() == b"content"
        assert volume.status()["problem"] is None

    def test_names_that_mean_nothing(self, volume: Host) -> None:
        for name in ("scsi:0", "tape", "virtual:", "/dev/nst0", ""):
            refused(volume, USAGE, "drive is virtual:FILE.tap", "mount", name, volume.mountpoint)

    def test_settings_that_contradict_the_cartridge(self, volume: Host) -> None:
        for setting, says in [
            ("personality=ait3", "personality lto5"),
            ("capacity=1G", "leave the option out"),
            ("personality=betamax", "betamax"),
            ("colour=blue", "colour"),
        ]:
            refused(volume, USAGE, says, "mount", f"{volume.drive}?{setting}", volume.mountpoint)

    def test_no_such_cartridge(self, volume: Host) -> None:
        words = ("mount", f"virtual:{volume.root}/missing.tap", volume.mountpoint)
        refused(volume, NO_DRIVE, "missing.tap", *words)
        assert not (volume.root / "missing.tap").exists()

    def test_no_such_usb_drive(self, volume: Host) -> None:
        words = ("mount", "usb:NO-SUCH-SERIAL-0815", volume.mountpoint)
        refused(volume, NO_DRIVE, "NO-SUCH-SERIAL-0815", *words)


class TestFuse:
    """A private mount namespace hides /dev/fuse; everything else is as on this machine."""

    def test_no_device(self, volume: Host) -> None:
        devices = volume.root / "dev"
        devices.mkdir()
        (devices / "null").touch()
        script = f"mount --bind /dev/null {devices}/null && mount --rbind {devices} /dev"
        before = ("unshare", "--mount", "sh", "-ec", f'{script} && exec "$@"', "sh")
        refused_mount(volume, NO_FUSE, "modprobe fuse", before=before)

    def test_no_permission(self, volume: Host) -> None:
        os.chown(volume.mountpoint, NOBODY, NOBODY)
        closed = volume.root / "fuse"
        os.mknod(closed, 0o020600, os.makedev(10, 229))
        script = f'mount --bind {closed} /dev/fuse && exec "$@"'
        before = ("unshare", "--mount", "sh", "-ec", script, "sh", *AS_NOBODY)
        refused_mount(volume, NO_FUSE, "/dev/fuse", before=before)


class TestCommandLine:
    def test_unknown_options(self, volume: Host) -> None:
        for words, says in [
            (["-o", "spoool=1G"], "spoool"),
            (["-o", "spool=many"], "many"),
            (["-o", "fsync=never"], "never"),
            (["-o", "spool=1K"], "at least"),
            (["-o", "settle=-1"], "settle"),
            (["--sideways"], "--sideways"),
        ]:
            refused_mount(volume, USAGE, says, *words)
        refused(volume, USAGE, "COMMAND", "eat")
        refused(volume, USAGE, "100K", "format", volume.drive, "--name", "X", "--force",
                "--record-size", "100K")  # fmt: skip

    def test_umount_of_what_is_not_mounted(self, volume: Host) -> None:
        for path in (volume.mountpoint, volume.root / "missing", volume.image):
            for command in ("umount", "sync", "status"):
                refused(volume, NOT_MOUNTED, str(path), command, path)
        refused(volume, NOT_MOUNTED, "mount", "status")

    def test_busy_umount_and_then_one_that_succeeds(self, volume: Host) -> None:
        volume.mount("idle=3600")
        with (volume.mountpoint / "new").open("wb") as file:
            file.write(b"before ")
            file.flush()
            refused(volume, MOUNT_BUSY, "fuser", "umount", volume.mountpoint)
            assert not volume.daemon.has_ended()
            file.write(b"and after")
        volume.umount()
        volume.forget()
        volume.mount()
        assert (volume.mountpoint / "new").read_bytes() == b"before and after"


def test_an_ordinary_user_mounts_writes_and_unmounts(host: Host) -> None:
    """The same without root, through fusermount3: the way from one sentence to success."""
    home = host.root / "home"
    home.mkdir()
    for path in (home, host.mountpoint):
        os.chown(path, NOBODY, NOBODY)
    host.image = home / "first.tap"
    host.drive = f"virtual:{host.image}"
    host.state = home / "state"
    host.env |= {"TAPEFS_STATE_DIR": str(host.state), "TAPEFS_RUNTIME_DIR": str(home / "run")}
    host.ok("format", host.drive, "--name", "USER", before=AS_NOBODY)
    host.mount(before=AS_NOBODY)
    quiet(*AS_NOBODY, "sh", "-c", f"echo mine > {host.mountpoint}/file")
    host.umount(before=AS_NOBODY)
    shutil.rmtree(host.state)
    host.mount(before=AS_NOBODY)
    assert quiet(*AS_NOBODY, "cat", host.mountpoint / "file") == "mine\n"
    host.umount(before=AS_NOBODY)
