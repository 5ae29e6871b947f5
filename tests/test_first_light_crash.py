"""kill -9 of the daemon: what was acknowledged is there after a plain mount, and nothing hangs."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING, NoReturn

import pytest
from conftest import SEED
from first_light_rig import (
    PROGRAMS,
    RSYNC,
    STUCK_S,
    WHOLE,
    Host,
    assert_same,
    copy_share,
    deterministic_bytes,
    feed_tape_files,
    fingerprint,
    make_torture_tree,
    new_host,
    pipe_into,
    quiet,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse

ROUNDS = 200 if WHOLE else 10
SHARE_BYTES = 60_000_000
SHARE_INODES = 3_000
# Small bursts, so that the archiver is at work when the daemon is killed.
HASTY = "burst=4M,settle=0.1,idle=0.3,checkpoint_segments=4"


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


class Scribe:
    """Writes files and remembers what it was promised to keep, until the mount breaks."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self._directory = directory
        self._rng = rng
        self._count = 0
        # Name -> content that must be there; None: must not be there.
        self.promised: dict[str, bytes | None] = {}
        # Without a descriptor of its own to sync: kept once any later fsync has returned.
        self._written: dict[str, bytes] = {}

    def write_until_it_breaks(self) -> None:
        """Return when an operation fails, as they all do once the daemon is gone."""
        self._written.clear()
        with pytest.raises(OSError, match="Errno") as caught:
            self._write_on()
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED), caught.value

    def _write_on(self) -> NoReturn:
        self._directory.mkdir(exist_ok=True)
        while True:
            self._step()

    def _step(self) -> None:
        self._count += 1
        name = f"{self._count:05d}"
        content = deterministic_bytes(name, self._rng.choice([0, 1, 500, 70_000, 700_000]))
        kinds = [self._create, self._create_and_rename, self._overwrite, self._unlink, self._leave]
        self._rng.choice(kinds)(name, content)

    def _create(self, name: str, content: bytes) -> None:
        self._put(name, content)
        self._keep(name, content)

    def _create_and_rename(self, name: str, content: bytes) -> None:
        self._put(f".{name}.new", content)
        (self._directory / f".{name}.new").rename(self._directory / name)
        self._sync_directory()
        self._keep(name, content)

    def _overwrite(self, _name: str, content: bytes) -> None:
        if name := self._some_promised():
            del self.promised[name]
            self._put(name, content)
            self._keep(name, content)

    def _unlink(self, _name: str, _content: bytes) -> None:
        if name := self._some_promised():
            del self.promised[name]
            (self._directory / name).unlink()
            self._sync_directory()
            self._keep(name, None)

    def _leave(self, name: str, content: bytes) -> None:
        (self._directory / name).write_bytes(content)
        self._written[name] = content

    def _keep(self, name: str, content: bytes | None) -> None:
        self.promised[name] = content
        self.promised.update(self._written)
        self._written.clear()

    def _some_promised(self) -> str | None:
        names = [name for name, content in self.promised.items() if content is not None]
        return self._rng.choice(names) if names else None

    def _put(self, name: str, content: bytes) -> None:
        fd = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def check(self) -> None:
        """Everything that was promised is so."""
        for name, content in self.promised.items():
            path = self._directory / name
            if content is None:
                assert not path.exists(), name
            else:
                assert path.read_bytes() == content, name


def test_killed_again_and_again_during_rsync_nothing_acknowledged_is_lost(host: Host) -> None:
    source = host.root / "source"
    source.mkdir()
    copy_share(source / "share", SHARE_BYTES, SHARE_INODES)
    make_torture_tree(source / "torture")
    rng = random.Random(SEED)
    scribe = Scribe(host.mountpoint / "scribe", rng)
    for _ in range(ROUNDS):
        host.mount(HASTY)
        scribe.check()
        break_off(host, source, scribe, rng.uniform(0.05, 1.5))
    assert sum(content is not None for content in scribe.promised.values()) >= ROUNDS
    host.mount(HASTY)
    scribe.check()
    quiet(*RSYNC, "--delete", source, f"{host.mountpoint}/")
    host.umount()
    host.forget()
    host.mount()
    scribe.check()
    assert_same(source, host.mountpoint / "source")
    assert fingerprint(host.mountpoint / "source") == fingerprint(source)
    host.umount()
    tar_reads_every_closed_tape_file(host)


def break_off(host: Host, source: Path, scribe: Scribe, after_s: float) -> None:
    """Kill the daemon while rsync and the scribe write."""
    killer = threading.Timer(after_s, host.daemon.kill)
    into = [*RSYNC, "--delete", str(source), f"{host.mountpoint}/"]
    with subprocess.Popen(into, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as rsync:
        killer.start()
        try:
            scribe.write_until_it_breaks()
        finally:
            killer.join()
            rsync.wait(STUCK_S)
    assert host.daemon.has_ended()


def tar_reads_every_closed_tape_file(host: Host) -> None:
    """Only what a kill tore has no end of archive; the mount after it closed it with a filemark."""
    directory = host.root / "listed"
    directory.mkdir()
    script = 'tar -tf - >/dev/null 2>"$0" && [ ! -s "$0" ] && rm "$0" || true'

    def reader(number: int) -> subprocess.Popen[bytes]:
        words = ["bash", "-c", script, str(number)]
        process: subprocess.Popen[bytes] = pipe_into(words, directory)(number)
        return process

    count = feed_tape_files(host.image, reader)
    torn = [path.read_text() for path in directory.iterdir()]
    assert len(torn) <= ROUNDS < count
    assert all("Unexpected EOF" in complaint for complaint in torn), torn


def test_fsynced_files_in_the_spool_outlive_the_daemon(host: Host) -> None:
    """Content on tape, content in the spool, and a name that only the spool has."""
    host.mount("idle=3600")
    (host.mountpoint / "on tape").write_bytes(b"first")
    host.ok("sync", host.mountpoint)
    (host.mountpoint / "on tape").rename(host.mountpoint / "renamed")
    make_torture_tree(host.root / "source")
    quiet("cp", "-a", host.root / "source", host.mountpoint)
    quiet("sync", host.mountpoint / "source" / "large", host.mountpoint / "source")
    assert not host.status()["all_on_tape"]
    image = host.image.read_bytes()
    host.daemon.kill()
    assert host.image.read_bytes() == image
    host.mount("idle=3600")
    assert (host.mountpoint / "renamed").read_bytes() == b"first"
    assert_same(host.root / "source", host.mountpoint / "source")
    assert fingerprint(host.mountpoint / "source") == fingerprint(host.root / "source")
    host.umount()
    host.forget()
    host.mount()
    assert sorted(os.listdir(host.mountpoint)) == ["renamed", "source"]
    assert_same(host.root / "source", host.mountpoint / "source")


def test_host_lost_with_the_daemon_what_was_synced_is_on_the_tape(host: Host) -> None:
    """P5: no catalog, no spool, no checkpoint; and a segment that was torn at its end."""
    host.mount("idle=3600")
    make_torture_tree(host.root / "source")
    quiet("cp", "-a", host.root / "source", host.mountpoint)
    host.ok("sync", host.mountpoint)
    (host.mountpoint / "too late").write_bytes(b"never on tape")
    host.daemon.kill()
    host.forget()
    with host.image.open("ab") as image:
        # What a host leaves that dies while a record is being written: a part of it.
        image.write((524288).to_bytes(4, "little") + bytes(100_000))
    host.mount()
    assert os.listdir(host.mountpoint) == ["source"]
    assert_same(host.root / "source", host.mountpoint / "source")
    (host.mountpoint / "afterwards").write_bytes(b"the volume goes on")
    host.umount()
    host.forget()
    host.mount()
    assert sorted(os.listdir(host.mountpoint)) == ["afterwards", "source"]


def test_umount_of_a_dead_mount_says_what_to_do(host: Host) -> None:
    host.mount("idle=3600")
    (host.mountpoint / "a").write_bytes(b"kept")
    quiet("sync", host.mountpoint / "a")
    host.daemon.kill()
    done = host.tapefs("umount", host.mountpoint)
    assert (done.code, done.stderr.count("\n")) == (19, 1)
    assert "mount the tape again" in done.stderr
    host.mount("idle=3600")
    assert (host.mountpoint / "a").read_bytes() == b"kept"
    host.umount()


def test_daemon_killed_while_it_finalizes(host: Host) -> None:
    """The unmount says that it failed; the next mount and unmount bring everything to tape."""
    host.mount("idle=3600")
    copy_share(host.root / "source", SHARE_BYTES, SHARE_INODES)
    quiet(*RSYNC, host.root / "source", f"{host.mountpoint}/")
    quiet("sync", host.mountpoint / "source")
    if kill_while_unmounting(host):
        host.forget()
    host.mount()
    assert_same(host.root / "source", host.mountpoint / "source")
    host.umount()
    host.forget()
    host.mount()
    assert_same(host.root / "source", host.mountpoint / "source")
    host.umount()
    shutil.rmtree(host.root / "source")


def kill_while_unmounting(host: Host) -> bool:
    """Kill the daemon once the image grows; whether the unmount had succeeded before that."""
    before = host.image.stat().st_size
    with subprocess.Popen(
        [PROGRAMS / "tapefs", "umount", host.mountpoint],
        env=host.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as umount:
        while umount.poll() is None and host.image.stat().st_size < before + 2_000_000:
            os.sched_yield()
        host.daemon.kill()
        _, said = umount.communicate(timeout=STUCK_S)
    if umount.returncode == 0:
        return True
    assert umount.returncode == 19
    assert "Traceback" not in said
    assert "before everything was on tape" in said
    return False
