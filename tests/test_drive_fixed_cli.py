"""A drive of fixed blocks under the real commands, on /dev/fuse."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from first_light_rig import (
    PROGRAMS,
    assert_same,
    deterministic_bytes,
    new_host,
    restore_with_tar,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_travan_cartridge_from_format_to_tar(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    for number, size in enumerate((0, 1, 70_000, 3_000_000)):
        (source / f"file{number}").write_bytes(deterministic_bytes(number, size))
    (source / "below/last").write_bytes(b"last")
    with new_host("?personality=travan&capacity=64M") as host:
        host.format().mount()
        subprocess.run(["cp", "-a", f"{source}/.", host.mountpoint], check=True)
        host.umount()
        host.mount()
        assert_same(source, host.mountpoint)
        host.umount()
        host.forget()
        host.mount()
        assert_same(source, host.mountpoint)
        host.umount()
        restore_with_tar(host.image, tmp_path / "restored")
        listing = subprocess.run(
            f"{PROGRAMS}/tapefs cartridge cat {host.image} 1 | tar -tf -",
            shell=True,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ".tapefs/segments/00000001.tail" in listing.stdout.split()
        assert listing.stderr == ""
        assert '"block_bytes"' in host.image.read_bytes()[:10240].decode(errors="replace")
