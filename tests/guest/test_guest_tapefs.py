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
export TAPEFS_STATE_DIR=/tmp/state TAPEFS_RUNTIME_DIR=/tmp/sockets
M=/tmp/mnt S=/tmp/source
mkdir $M $S

# What archives like to get wrong, and some bulk.
mkdir -p $S/d/e "$S/empty directory"
cp data $S/d/data
for n in $(seq 50); do head -c $((n * 997)) data >"$S/d/e/file $n"; done
echo one >"$S/one name" && ln "$S/one name" "$S/another name" && ln -s "one name" $S/link
mkfifo $S/fifo
echo grün >"$S/grün ☃"
truncate -s 3M $S/hole
echo secret >$S/secret && chmod 4600 $S/secret && chown 1234:5678 $S/secret
touch -d '2001-02-03 04:05:06.789012345' "$S/one name"

same() { # compare two trees, each seen from the other
    [ -z "$(rsync -aHAXc --delete --dry-run --itemize-changes "$1/" "$2/" | tee /dev/stderr)" ]
    [ -z "$(rsync -aHAXc --delete --dry-run --itemize-changes "$2/" "$1/" | tee /dev/stderr)" ]
}

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

# And for anybody else, as README.md says.
mkdir /tmp/restored
cd /tmp/restored
mt -f $T setblk 0
mt -f $T rewind
tar -xvf $T | grep '^tapefs-label.json$'
rm README.txt tapefs-label.json
mt -f $T rewind
mt -f $T fsf 1
tar -b 1024 --xattrs '--xattrs-include=*' --acls --delay-directory-restore -xpf $T
sha256sum --check .tapefs/segments/00000001.sha256 >sums
[ "$(grep -c ': OK$' sums)" -gt 50 ]
rm sums
mt -f $T fsf 1
tar -b 1024 -tf $T | grep '^.tapefs/catalog-.*sqlite.zst$'
rm -r .tapefs
cd /
same $S /tmp/restored/source
"""


def test_format_mount_fill_unmount_and_restore_without_tapefs(tmp_path: Path) -> None:
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    data = random.Random(6).randbytes(8_000_000)
    (exchange / "data").write_bytes(data)
    cartridge = new_cartridge(tmp_path / "a.tap", GIB)
    with_drive(cartridge, TAPEFS, exchange, deadline_s=500).check()
    label, segment, *_, behind = tape_files(cartridge)
    assert [len(record) for record in label] == [10240]
    assert {len(record) for record in segment} == {512 * 1024}
    assert behind == []
    assert data in b"".join(segment)
