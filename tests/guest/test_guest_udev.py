"""The udev rule, with Debian's own udevd: an operator who is not root uses a tape drive.

And nobody gets anything else: neither the other users the drive, nor the operators what is no tape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from guest_machine import HOME, missing
from guest_rig import new_cartridge, with_drive

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

MIB = 1024 * 1024

PREPARE = r"""
modprobe -a xhci-pci usb-storage sd_mod st sg
/lib/systemd/systemd-udevd --daemon
modprobe fuse
reachable @home@
reachable "$(dirname "$(realpath @home@/.venv/bin/python)")"
printf '%s:x:%s:%s::/job:/bin/sh\n' operator 4711 4711 visitor 4712 4712 >>/etc/passwd
printf '%s:x:%s:\n' operator 4711 visitor 4712 >>/etc/group
sed -i 's/^tape:.*/&operator/' /etc/group
cd @home@
install -m 644 contrib/udev/60-tapefs.rules contrib/systemd/61-tapefs-mount.rules /etc/udev/rules.d/
udevadm control --reload
udevadm trigger
cd $EXCHANGE
"""

JOB = r"""
as() { # USER COMMAND...
    local user=$1
    shift
    mkdir -p /job/$user && chown $user: /job/$user
    TAPEFS_STATE_DIR=/job/$user/state TAPEFS_RUNTIME_DIR=/job/$user/sockets \
        setpriv --reuid $user --regid $user --init-groups "$@"
}
node() { # of the USB device of that product name
    local device
    device=$(dirname "$(grep -l "$1" /sys/bus/usb/devices/*/product)")
    printf /dev/bus/usb/%03d/%03d $(cat $device/busnum) $(cat $device/devnum)
}
group() { # owners of the drive's node and the stick's, when nothing happens any more
    udevadm settle --timeout=60
    echo $(stat -c %U:%G $drive $stick)
}
systemd_sees() { # whether it is a device for systemd, as of now
    udevadm info --query=property --name=$1 | grep '^CURRENT_TAGS=.*:systemd:'
}

appears /dev/fuse
timeout 60 sh -c 'until [ -b /dev/sda ]; do sleep 0.1; done'
drive=$(node 'Ultrium 5-SCSI') stick=$(node 'QEMU USB HARDDRIVE')
[ "$(group)" = 'root:tape root:root' ]
systemd_sees $drive
if systemd_sees $stick; then exit 1; fi
[ -c $T ] # and usb-storage still has the drive

as visitor tapefs drives || [ $? = 3 ]
code=0; as visitor tapefs format usb --name MINE 2>refused || code=$?
cat refused
[ $code = 3 ]
grep 'no permission' refused
appears $T

as operator tapefs drives | grep 'Ultrium'
appears $T
as operator tapefs format usb --name OURS
appears $T
install -d -o operator /job/mnt /job/source
cp -a @home@/docs /job/source/
chown -R operator: /job/source
as operator tapefs mount usb /job/mnt
[ ! -c $T ]
# Whoever has the machine looked over does not take the drive from a mount.
udevadm trigger
[ "$(group)" = 'root:tape root:root' ]
# Nor does systemd see a drive that comes and goes.
systemd_sees $drive
as operator rsync -a /job/source /job/mnt/
as operator tapefs umount /job/mnt
appears $T
[ "$(group)" = 'root:tape root:root' ]

# What they wrote they can also read without tapefs: Debian gives the group st's nodes.
[ "$(stat -c %G $T)" = tape ]
as operator mt -f $T setblk 0
as operator mt -f $T fsf 1
mkdir /job/restored
chown operator: /job/restored
as operator tar -b 1024 -C /job/restored -xf $T
diff -r /job/source /job/restored/source

# A drive that was there before the rule: nobody's until then.
chgrp root $drive
code=0; as operator tapefs mount usb /job/mnt || code=$?
[ $code = 3 ]
udevadm trigger
[ "$(group)" = 'root:tape root:root' ]
"""


def test_an_operator_who_is_not_root_uses_the_drive(tmp_path: Path) -> None:
    assert missing() == []
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    (exchange / "stick").write_bytes(bytes(8 * MIB))
    cartridge = new_cartridge(tmp_path / "a.tap", 256 * MIB)
    script, before = (text.replace("@home@", str(HOME)) for text in (JOB, PREPARE))
    devices = [
        *("-device", "qemu-xhci,id=hc"),
        *("-drive", f"if=none,id=stick,format=raw,file={exchange / 'stick'}"),
        *("-device", "usb-storage,bus=hc.0,drive=stick"),
    ]
    with_drive(cartridge, script, exchange, before=before, devices=devices, deadline_s=600).check()
