"""The cable of a real mount is pulled, with the real commands and /dev/fuse: what a person sees."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from cable_rig import Cable, until_away, until_status
from first_light_rig import STUCK_S, Host, deterministic_bytes, new_host, restore_with_tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse

OPTIONS = "drive_poll=0.05,drive_check=0.05,idle=0.2,settle=0.05"


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


def test_a_mount_lives_without_its_drive_and_goes_on_with_it(host: Host, tmp_path: Path) -> None:
    cable = Cable(host)
    host.mount(OPTIONS)
    first, second = deterministic_bytes("first", 700_000), deterministic_bytes("second", 300_000)
    (host.mountpoint / "first").write_bytes(first)
    host.ok("sync", host.mountpoint)
    cable.pull()

    status = until_away(host)
    assert "the mount waits for" in status["problem"]
    assert status["away_since"] in status["problem"]
    assert [path.name for path in host.mountpoint.iterdir()] == ["first"]
    (host.mountpoint / "second").write_bytes(second)
    (host.mountpoint / "directory").mkdir()
    assert (host.mountpoint / "second").read_bytes() == second
    refused = host.tapefs("sync", host.mountpoint)
    assert refused.code == 20
    assert "the mount waits for" in refused.stderr
    assert host.status()["all_on_tape"] is False

    cable.plug_in()
    until_status(host, lambda status: status["all_on_tape"] and status["state"] != "away")
    host.umount()
    restore_with_tar(host.image, tmp_path / "restored")
    assert (tmp_path / "restored" / "first").read_bytes() == first
    assert (tmp_path / "restored" / "second").read_bytes() == second


def test_readers_wait_and_an_unmount_does_not(host: Host) -> None:
    cable = Cable(host)
    content = deterministic_bytes("content", 3_000_000)
    host.mount(OPTIONS)
    (host.mountpoint / "file").write_bytes(content)
    host.umount()
    host.forget()
    host.mount(OPTIONS)
    cable.pull()
    until_away(host)
    with subprocess.Popen(["cat", host.mountpoint / "file"], stdout=subprocess.PIPE) as reader:
        until_status(host, lambda status: status["since_mount"]["reads_waiting"] > 0)
        assert reader.poll() is None
        cable.plug_in()
        assert reader.communicate(timeout=STUCK_S)[0] == content

    cable.pull()
    until_away(host)
    (host.mountpoint / "late").write_bytes(b"late")
    refused = host.tapefs("umount", host.mountpoint)
    assert refused.code == 19
    assert "stays in the spool" in refused.stderr
    host.daemon.wait()
    cable.plug_in()
    host.mount(OPTIONS)
    assert (host.mountpoint / "late").read_bytes() == b"late"
    host.umount()
