"""A tape from somebody else, mounted by root with nothing asked for: what it cannot do here."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest
import zstandard
from first_light_rig import Host, mounts_below, new_host, run

from tapefs.archive import recovery
from tapefs.errors import DamagedTape, StateUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made


@pytest.mark.fuse
def test_device_nodes_and_set_user_id_are_shown_and_have_no_effect(host: Host) -> None:
    host.format().mount()
    program, device = host.mountpoint / "id", host.mountpoint / "null"
    shutil.copy("/usr/bin/id", program)
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    program.chmod(0o4755)
    host.umount()
    host.forget()  # the owner of another computer

    host.mount("ro")
    options = mounts_below(host.root)[0].split(" ")[5].split(",")
    assert {"nodev", "nosuid"} <= set(options)
    # They are what they were, so that a copy or a backup of them is faithful.
    assert device.stat().st_rdev == os.makedev(1, 3)
    assert stat.S_IMODE(program.stat().st_mode) == 0o4755
    with pytest.raises(PermissionError):
        os.open(device, os.O_RDONLY)
    as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = run([*as_user, program, "-u"])
    assert (done.code, done.stdout.strip()) == (0, "65534")
    host.umount()


def test_a_catalog_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    packed.write_bytes(zstandard.compress(bytes(300 << 20)))
    assert packed.stat().st_size < 100_000
    with pytest.raises(DamagedTape, match="without end"):
        recovery._unpack(packed, plain)
    # It stopped where it had to, and not after writing all of it.
    assert plain.stat().st_size <= (65 << 20) + 200 * packed.stat().st_size


def test_no_room_for_a_catalog_from_tape_is_a_sentence(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(zstandard.compress(bytes(1 << 20)))
    with pytest.raises(StateUnusable, match="/dev/full cannot be written: No space left on device"):
        recovery._unpack(packed, type(packed)("/dev/full"))
