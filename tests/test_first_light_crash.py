"""kill -9 of the daemon at chosen moments: what was acknowledged is there after a plain mount, and
nothing hangs. Random moments are in test_kill9.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from first_light_rig import (
    PROGRAMS,
    RSYNC,
    STUCK_S,
    Host,
    assert_same,
    copy_share,
    fingerprint,
    new_host,
    quiet,
)
from torture_tree import make_torture_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.fuse

SHARE_BYTES = 60_000_000
SHARE_INODES = 3_000


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


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
