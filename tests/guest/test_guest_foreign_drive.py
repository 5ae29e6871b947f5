"""tapefs with a drive that nobody here wrote: tgt's tape behind QEMU's Bulk-Only device.

It has no LOCATE, answers READ POSITION with zeros, spaces over filemarks as if they were records
and never says how far it got; its residues are always zero and its filemarks and ends of data come
with sense data of their own making. A short read loses the end of a record that is longer than
half of what was asked for: nothing here makes one.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import guest_machine
import pytest
import tgt_rig
from guest_machine import HOME
from guest_rig import FUNCTIONS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

CAPACITY_MB = 200
MARKER = b"a place on the tape that can be found again"

JOB = r"""
modprobe -a xhci-pci usb-storage st sg fuse
export TAPEFS_STATE_DIR=/job/state TAPEFS_RUNTIME_DIR=/job/sockets
M=/job/mnt S=/job/source
mkdir $M $S
odd_files $S
cp -a @home@/tapefs @home@/docs $S/

appears $T
sg_inq /dev/sg0 | grep 'Product identification: VIRTUAL-TAPE'
# What makes it worth trying, in case another version of it learns more.
sg_turs --number=5 /dev/sg0 || true
fails sg_raw /dev/sg0 2b 00 00 00 00 00 00 00 00 00 2>refused
grep 'Sense key: Illegal Request' refused
sg_raw -r 20 /dev/sg0 34 00 00 00 00 00 00 00 00 00 2>&1 | grep '00 *14 00 00 00 00 00 00 00'

# Blank, until it is formatted.
code=0; tapefs mount usb $M || code=$?
[ $code = 6 ]
tapefs format usb --name FOREIGN
tapefs mount usb $M
[ ! -c $T ]
rsync -aHAX $S $M/
tapefs umount $M

# The tape alone is enough, also when it is written to in between.
rm -r $TAPEFS_STATE_DIR
tapefs mount usb $M
same $S $M/source
echo more >$M/more
tapefs sync $M
head -c 100000 $M/source/d/data | cmp - <(head -c 100000 data) # back over what was written
echo more still >$M/more2
tapefs umount $M
tapefs mount usb $M # with a catalog
[ "$(cat $M/more $M/more2)" = "$(printf 'more\nmore still')" ]
tapefs umount $M

# For anybody else as well.
appears $T
restore_with_tar /job/restored
same $S /job/restored/source

# One byte that is not as it was written is noticed.
at=$(grep -abo '@marker@' tape.image | head -n 1 | cut -d: -f1)
printf X | dd of=tape.image bs=1 seek=$at conv=notrunc
rm -r $TAPEFS_STATE_DIR
tapefs mount usb $M --read-only
fails cat $M/source/d/data >/dev/null
cmp "$M/source/d/e/file 50" "$S/d/e/file 50"
tapefs umount $M
grep -r data.mismatch $TAPEFS_STATE_DIR/log
dmesg
"""


@pytest.fixture(autouse=True)
def what_a_guest_needs() -> None:
    assert guest_machine.missing() + tgt_rig.missing() == []


def test_everything_comes_back_from_a_drive_that_knows_little(tmp_path: Path) -> None:
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    rng = random.Random(7)
    data = rng.randbytes(9_000_000) + MARKER + rng.randbytes(9_000_000)
    (exchange / "data").write_bytes(data)
    script = JOB.replace("@home@", str(HOME)).replace("@marker@", MARKER.decode())
    with tgt_rig.served_tape(exchange / "tape.image", CAPACITY_MB) as devices:
        outcome = guest_machine.run_job(
            FUNCTIONS + script, exchange, devices=devices, deadline_s=600
        )
    assert outcome.exit_code == 0, outcome.console
    assert "reset SuperSpeed USB device" not in outcome.console
