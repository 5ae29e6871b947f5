"""The README's promises on the ordinary path, as seen by programs, and by a reader of the tape."""

from __future__ import annotations

import errno
import io
import itertools
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING, NoReturn

import pytest
from first_light_rig import (
    MIB,
    PROGRAMS,
    STUCK_S,
    Host,
    assert_same,
    deterministic_bytes,
    digest_of,
    is_mounted,
    new_host,
    quiet,
    run,
)
from tap_reader import tape_files
from torture_tree import make_torture_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse

# Nothing goes to tape unless it is asked for.
PATIENT = "idle=3600"


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


def content_on_tape(host: Host) -> dict[str, bytes]:
    """The regular files in closed tape files, by an independent reader and Python's tarfile."""
    image = host.image.read_bytes()
    found = {}
    for records in tape_files(host.image):
        with tarfile.open(fileobj=io.BytesIO(b"".join(records))) as archive:
            for member in archive:
                if member.isreg() and not member.name.startswith(".tapefs/"):
                    content = archive.extractfile(member)
                    assert content is not None
                    found[member.name] = content.read()
    assert image.endswith(bytes(4)), "the last tape file has no filemark"
    return found


def write(path: Path, content: bytes, *, sync: bool = False) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        written = 0
        while written < len(content):
            written += os.write(fd, content[written:])
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class TestFsync:
    """P2."""

    def test_in_the_spool_by_default(self, host: Host) -> None:
        host.mount(PATIENT)
        write(host.mountpoint / "a", b"safe", sync=True)
        assert "a" not in content_on_tape(host)
        host.daemon.kill()
        host.mount(PATIENT)
        assert (host.mountpoint / "a").read_bytes() == b"safe"
        assert host.status()["all_on_tape"] is False

    def test_on_tape_when_asked_for(self, host: Host) -> None:
        host.mount(f"{PATIENT},fsync=tape")
        (host.mountpoint / "directory").mkdir()
        write(host.mountpoint / "directory" / "a", b"on tape", sync=True)
        assert content_on_tape(host)["directory/a"] == b"on tape"
        write(host.mountpoint / "b", deterministic_bytes("b", 3 * MIB), sync=True)
        assert content_on_tape(host)["b"] == deterministic_bytes("b", 3 * MIB)
        # Host and drive lost at once: the tape has it.
        host.daemon.kill()
        host.forget()
        host.mount()
        assert (host.mountpoint / "directory" / "a").read_bytes() == b"on tape"
        assert (host.mountpoint / "b").read_bytes() == deterministic_bytes("b", 3 * MIB)


class TestEverythingIsOnTapeWhenItReturns:
    """P3."""

    @pytest.mark.parametrize("way", ["sync(1)", "tapefs sync", "fsync(2)"])
    def test_sync(self, host: Host, way: str) -> None:
        make_torture_tree(host.root / "source")
        host.mount(PATIENT)
        quiet("cp", "-a", host.root / "source", host.mountpoint)
        with (host.mountpoint / "still open").open("wb") as file:
            file.write(b"open")
            file.flush()
            if way == "sync(1)":
                quiet("sync", host.mountpoint)
            elif way == "tapefs sync":
                host.ok("sync", host.mountpoint)
            else:
                fsync_directory(host.mountpoint)
            on_tape = content_on_tape(host)
            assert on_tape["still open"] == b"open"
            large = (host.root / "source" / "large").read_bytes()
            assert on_tape["source/large"] == large
            status = host.status()
            assert status["all_on_tape"] is True
            assert status["spool"]["not_on_tape_bytes"] == 0
        host.daemon.kill()
        host.forget()
        host.mount()
        assert_same(host.root / "source", host.mountpoint / "source")
        assert (host.mountpoint / "still open").read_bytes() == b"open"

    def test_umount_and_then_it_is_a_finalized_tape(self, host: Host) -> None:
        host.mount(PATIENT)
        write(host.mountpoint / "a", b"last")
        host.umount()
        assert content_on_tape(host)["a"] == b"last"
        kinds = host.ok("cartridge", "info", "--json", host.image)
        assert '"checkpoint"' in kinds
        # A further mount without changes finds nothing to write.
        image = host.image.read_bytes()
        host.mount()
        quiet("find", host.mountpoint)
        host.umount()
        assert host.image.read_bytes() == image

    def test_sigterm(self, host: Host) -> None:
        host.mount(PATIENT)
        write(host.mountpoint / "a", b"last")
        host.daemon.terminate()
        host.daemon.wait()
        assert not is_mounted(host.mountpoint)
        assert content_on_tape(host)["a"] == b"last"
        host.forget()
        host.mount()
        assert (host.mountpoint / "a").read_bytes() == b"last"

    def test_plain_umount_waits_through_its_helper(self, host: Host) -> None:
        """In a mount namespace of its own, in which the helper is installed."""
        sbin = host.root / "sbin"
        sbin.mkdir()
        (sbin / "umount.fuse.tapefs").symlink_to(PROGRAMS / "umount.fuse.tapefs")
        script = f"""
            mount --bind {sbin} /usr/sbin
            test -x /sbin/umount.fuse.tapefs
            {PROGRAMS}/tapefs mount -o {PATIENT} {host.drive} {host.mountpoint} >/dev/null 2>&1
            head -c 3000000 /dev/zero >{host.mountpoint}/a
            umount {host.mountpoint} 2>/dev/null
            sha256sum <{host.image}
            """
        done = run(["unshare", "--mount", "sh", "-euc", script], env=host.env)
        assert (done.code, done.stderr) == (0, ""), host.log()
        # Nothing was written after umount had returned, and nobody is left who could.
        assert done.stdout.split()[0] == digest_of(host.image)
        assert host.find_daemon() is None
        assert content_on_tape(host)["a"] == bytes(3_000_000)

    def test_a_line_in_fstab(self, host: Host) -> None:
        """In a mount namespace of its own, with the helpers and a table of its own."""
        sbin, table = host.root / "sbin", host.root / "fstab"
        sbin.mkdir()
        for helper in ("mount.fuse.tapefs", "umount.fuse.tapefs"):
            (sbin / helper).symlink_to(PROGRAMS / helper)
        shown = "uid=1234,gid=2345,umask=027"
        options = f"noauto,user,noexec,nosuid,nodev,x-systemd.automount,{PATIENT},{shown}"
        table.write_text(f"{host.drive} {host.mountpoint} fuse.tapefs {options} 0 0\n")
        script = f"""
            mount --bind {sbin} /usr/sbin
            mount --bind {table} /etc/fstab
            mount {host.mountpoint} >/dev/null 2>&1
            grep {host.mountpoint} /proc/self/mounts
            cp /bin/true {host.mountpoint}/program
            stat -c '%u %g %a' {host.mountpoint} {host.mountpoint}/program
            {host.mountpoint}/program 2>/dev/null || echo not run
            umount {host.mountpoint} 2>/dev/null
            """
        done = run(["unshare", "--mount", "sh", "-euc", script], env=host.env)
        assert (done.code, done.stderr) == (0, ""), host.log()
        entry, *said = done.stdout.splitlines()
        assert entry.startswith(
            f"tapefs:FIRST {host.mountpoint} fuse.tapefs rw,nosuid,nodev,noexec"
        )
        assert said == ["1234 2345 750", "1234 2345 750", "not run"]
        # Only shown: what is stored is what copying made.
        host.mount()
        found = (host.mountpoint / "program").stat()
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
        assert found.st_mode & 0o777 == 0o755

    def test_the_helper_called_as_umount_calls_it(self, host: Host) -> None:
        host.mount(PATIENT)
        write(host.mountpoint / "a", b"last")
        helper = str(PROGRAMS / "umount.fuse.tapefs")
        done = run([helper, str(host.mountpoint), "-t", "fuse.tapefs"], env=host.env)
        assert done.code == 0, done.stderr
        assert host.daemon.has_ended()
        assert content_on_tape(host)["a"] == b"last"


class TestNothingReadIsBelieved:
    """P8."""

    def test_a_flipped_bit_is_an_error_that_names_the_place(self, host: Host) -> None:
        content = deterministic_bytes("content", 3 * MIB)
        host.mount()
        write(host.mountpoint / "sound", b"sound" * 1000)
        write(host.mountpoint / "spoiled", content)
        host.umount()
        flip_bit(host.image, content[2 * MIB : 2 * MIB + 64])
        host.forget()
        host.mount()
        with pytest.raises(OSError, match="Input/output error") as caught:
            (host.mountpoint / "spoiled").read_bytes()
        assert caught.value.errno == errno.EIO
        # Everything else is as good as before: other files, and other records of this one.
        assert (host.mountpoint / "sound").read_bytes() == b"sound" * 1000
        with (host.mountpoint / "spoiled").open("rb", buffering=0) as file:
            assert file.read(4096) == content[:4096]
        lines = [line for line in host.log().splitlines() if "data.mismatch path=" in line]
        assert lines
        for field in ("ERROR", "path=spoiled", "byte_range=", "tape_file=1", "record "):
            assert field in lines[0]
        assert host.status()["since_mount"]["checksum_mismatches"] > 0

    def test_of_a_damaged_index_nothing_is_believed_either(self, host: Host) -> None:
        """The checkpoint is spoiled: the mount says so in its log and reads the journals."""
        host.mount()
        write(host.mountpoint / "a", b"content")
        host.umount()
        *_, checkpoint = tape_files(host.image)
        flip_bit(host.image, b"".join(checkpoint)[4096:4160])
        host.forget()
        host.mount()
        assert "damaged_checkpoint=2" in host.log()
        assert (host.mountpoint / "a").read_bytes() == b"content"
        write(host.mountpoint / "b", b"goes on")
        host.umount()
        host.forget()
        host.mount()
        assert sorted(os.listdir(host.mountpoint)) == ["a", "b"]


def flip_bit(image: Path, near: bytes) -> None:
    """Change one bit in the only place of the image that holds `near`."""
    data = bytearray(image.read_bytes())
    assert data.count(near) == 1
    data[data.index(near) + 7] ^= 0x10
    image.write_bytes(data)


def fill(directory: Path, size: int, accepted: dict[str, bytes]) -> NoReturn:
    """Write files of `size` bytes until one is refused."""
    for number in itertools.count():
        content = deterministic_bytes(number, size)
        write(directory / f"{number}", content)
        accepted[f"{number}"] = content
    raise AssertionError


class TestFullCartridge:
    """P9."""

    CAPACITY_BYTES = 64 * MIB

    @pytest.fixture
    def host(self) -> Iterator[Host]:
        with new_host("?capacity=64M") as made:
            made.format()
            made.drive = f"virtual:{made.image}"
            yield made

    @pytest.mark.parametrize("size", [300_000, 3 * MIB])
    def test_no_space_comes_early_and_everything_accepted_fits(self, host: Host, size: int) -> None:
        host.mount()
        accepted: dict[str, bytes] = {}
        with pytest.raises(OSError, match="No space left") as caught:
            fill(host.mountpoint, size, accepted)
        assert caught.value.errno == errno.ENOSPC
        assert sum(map(len, accepted.values())) > self.CAPACITY_BYTES // 3
        # Metadata and deletion still work on a full volume.
        (host.mountpoint / "0").rename(host.mountpoint / "renamed")
        accepted["renamed"] = accepted.pop("0")
        rest = set(os.listdir(host.mountpoint)) - accepted.keys()
        for name in rest:
            (host.mountpoint / name).unlink()
        host.umount()
        assert host.image.stat().st_size <= self.CAPACITY_BYTES + MIB
        host.forget()
        host.mount()
        assert sorted(os.listdir(host.mountpoint)) == sorted(accepted)
        for name, content in accepted.items():
            assert (host.mountpoint / name).read_bytes() == content
        with pytest.raises(OSError, match="No space left"):
            write(host.mountpoint / "more", bytes(20 * MIB))


def test_status_answers_while_a_read_waits_and_while_the_tape_is_written(host: Host) -> None:
    """And a directory can be listed meanwhile (P10)."""
    content = deterministic_bytes("content", 64 * MIB)
    host.mount(PATIENT)
    write(host.mountpoint / "a", content)
    with subprocess.Popen(["sync", host.mountpoint]) as syncing:
        states = {host.status()["state"]}
        while syncing.poll() is None:
            assert os.listdir(host.mountpoint) == ["a"]
            states.add(host.status()["state"])
        assert syncing.wait(STUCK_S) == 0
    assert host.status()["all_on_tape"] is True
    assert states <= {"idle", "positioning", "writing", "indexing", "flushing"}


def test_only_appended_to(host: Host) -> None:
    """P6: whatever is done, what was on the tape before stays where it was."""
    image = host.image.read_bytes()
    for number in range(3):
        host.mount(PATIENT)
        write(host.mountpoint / "same", deterministic_bytes(number, 700_000))
        host.ok("sync", host.mountpoint)
        (host.mountpoint / "same").rename(host.mountpoint / "other")
        if number == 1:
            host.daemon.kill()
            host.mount(PATIENT)
        host.umount()
        before, image = image, host.image.read_bytes()
        assert image.startswith(before)
        assert len(image) > len(before)
