"""tapefs drives a USB drive through the real pyusb, libusb, usbfs and FUSE; then mt and tar do.

The kernel's usb-storage holds the drive first and gets it back whenever tapefs lets go of it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from guest_machine import missing
from guest_rig import new_cartridge, tape_files, with_drive

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

GIB = 1024 * 1024 * 1024


@pytest.fixture(autouse=True)
def what_a_guest_needs() -> None:
    assert missing() == []


TAPEFS = r"""
modprobe fuse
export TAPEFS_STATE_DIR=/job/state TAPEFS_RUNTIME_DIR=/job/sockets
M=/job/mnt S=/job/source
mkdir $M $S
odd_files $S

tapefs drives >drives
cat drives
grep 'Ultrium 5-SCSI' drives
tapefs format usb --name GUEST
appears $T
tapefs mount usb $M
[ ! -c $T ] # st has let go of it
rsync -aHAX $S $M/
tapefs status $M
tapefs umount $M
appears $T

# The tape alone is enough, for tapefs.
rm -rf $TAPEFS_STATE_DIR
tapefs mount usb $M --read-only
same $S $M/source
tapefs umount $M
appears $T

# And for anybody else.
restore_with_tar /job/restored
same $S /job/restored/source
"""


def test_format_mount_fill_unmount_and_restore_without_tapefs(tmp_path: Path) -> None:
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    data = random.Random(6).randbytes(8_000_000)
    (exchange / "data").write_bytes(data)
    cartridge = new_cartridge(tmp_path / "a.tap", GIB)
    with_drive(cartridge, TAPEFS, exchange, deadline_s=600).check()
    label, segment, *_, behind = tape_files(cartridge)
    assert [len(record) for record in label] == [10240]
    assert {len(record) for record in segment} == {512 * 1024}
    assert behind == []
    assert data in b"".join(segment)
