"""The units, under a real systemd: plug in, mount, write, shut down while writing, boot, go on.

Three boots with one tape and one disk. Nothing here calls `tapefs mount`: udev and systemd do.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from guest_machine import HOME, START_SYSTEMD, missing
from guest_rig import new_cartridge, with_drive

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

MIB = 1024 * 1024
GIB = 1024 * MIB

PREPARE = r"""
modprobe -a fuse ext4 virtio_blk
mkdir -p /var/lib/tapefs
mount /dev/vda /var/lib/tapefs
dpkg --install --force-depends $EXCHANGE/*.deb
@conf@
@mount_rule@
is() { # a state of a unit that comes about
    timeout 600 sh -c "until [ \"\$(systemctl show -P ActiveState $2)\" = $1 ]; do sleep 0.5; done"
}
"""

# What is plugged in is mounted, by nobody.
MOUNTED = r"""
is active tapefs@tape
mountpoint /mnt/tape
systemctl status tapefs@tape | grep 'Status:'
"""

SHUTDOWN_WHILE_WRITING = r"""
odd_files /var/lib/tapefs/before
rsync -aHAX /var/lib/tapefs/before /mnt/tape/
tapefs sync /mnt/tape
mkdir /mnt/tape/during
cat >/run/write <<'END'
for number in $(seq 1000); do
    cp /exchange/data /mnt/tape/during/$number || exit 0
    echo $number >>/var/lib/tapefs/written
done
END
systemd-run --unit=writer --property=WorkingDirectory=/mnt/tape bash /run/write
timeout 120 sh -c 'until [ $(wc -l </var/lib/tapefs/written) -ge 3 ]; do sleep 0.1; done'
systemctl is-active writer
"""

UNPLUGGED_AT_SHUTDOWN = r"""
cp /var/lib/tapefs/written $EXCHANGE/written
[ -s $EXCHANGE/written ]
while read -r number; do cmp $EXCHANGE/data /mnt/tape/during/$number; done <$EXCHANGE/written
same /var/lib/tapefs/before /mnt/tape/before
echo late >/mnt/tape/late
sync /mnt/tape/late
echo 0 >/sys/devices/platform/vhci_hcd.0/detach
timeout 120 sh -c 'until tapefs status /mnt/tape | grep away; do sleep 0.5; done'
systemctl is-active tapefs@tape
"""

GOES_ON = r"""
[ "$(cat /mnt/tape/late)" = late ]
# Stopping it is finalizing it.
systemctl stop tapefs@tape
[ "$(systemctl show -P Result tapefs@tape)" = success ]
appears $T
# ... and that the drive is back is no reason to mount it again.
udevadm settle --timeout=60
is inactive tapefs@tape

# Without a drive it says so, once.
echo DRIVE=usb:NOBODY >/etc/tapefs/tape.conf
if systemctl start tapefs@tape; then exit 1; fi
journalctl -u tapefs@tape | tee /dev/stderr | grep 'no .*drive'
sleep 10
is failed tapefs@tape

# A line in /etc/fstab mounts it, and umount waits for the tape.
echo '@fstab@' | sed 's# /mnt/tape # /mnt/first #' >/etc/fstab
mkdir /mnt/first
systemctl daemon-reload
mount /mnt/first
[ "$(cat /mnt/first/late)" = late ]
echo first >/mnt/first/first
umount /mnt/first
appears $T

# With two more words in it the first access does, and systemd unmounts what is not used.
mkdir /mnt/second
echo '@fstab@' | sed 's# /mnt/tape # /mnt/second #; s#noauto,#&@automount@,@idle@,#' >/etc/fstab
systemctl daemon-reload
systemctl restart local-fs.target
is active mnt-second.automount
[ "$(cat /mnt/second/first)" = first ]
is active mnt-second.mount
echo second >/mnt/second/second
is inactive mnt-second.mount
appears $T

# Somebody else than root, in the group of tape operators.
@user@
echo DRIVE=usb >/etc/tapefs/tape.conf
systemctl daemon-reload
systemctl start tapefs@tape
[ "$(stat -c %U /proc/$(systemctl show -P MainPID tapefs@tape))" = tapefs ]
systemctl stop tapefs@tape
[ "$(systemctl show -P Result tapefs@tape)" = success ]

# Switched off while it is mounted.
echo third >/mnt/second/third
is active mnt-second.mount
"""


def fresh_disk(path: Path) -> list[str]:
    """What QEMU is told about a new, empty disk in that file."""
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(512 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(path)], check=True)
    return ["-drive", f"if=virtio,format=raw,file={path}"]


def tapefs(*words: str) -> str:
    """What a command says here on the host."""
    command = [sys.executable, "-m", "tapefs", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_plug_mount_write_shut_down_boot(tmp_path: Path) -> None:
    assert missing() == []
    cartridge = new_cartridge(tmp_path / "a.tap", GIB)
    drive, state = f"virtual:{cartridge}", ("--state-dir", str(tmp_path / "state"))
    tapefs("format", drive, "--name", "GUEST")
    data = random.Random(7).randbytes(4_000_000)
    disk = fresh_disk(tmp_path / "disk")
    subprocess.run([HOME / "contrib/deb.sh", tmp_path], check=True)
    (package,) = tmp_path.glob("*.deb")
    # As README.md says.
    readme = (HOME / "README.md").read_text()
    blocks = {
        "conf": r"^(mkdir -p /mnt/tape\n(?:.*\n)+?)```",
        "mount_rule": r"^(cp .*/61-tapefs(?:.*\n)+?)```",
        "fstab": r"^(usb +/mnt/tape .*)\n",
        "user": r"^(useradd (?:.*\n)+?)```",
        "automount": r"`(x-systemd\.automount)`",
        "idle": r"`(x-systemd\.idle-timeout=)",
    }
    words = {
        f"@{name}@": re.findall(pattern, readme, re.MULTILINE)[0]
        for name, pattern in blocks.items()
    }

    words["@idle@"] += "20s"

    def boot(number: int, script: str) -> str:
        exchange = tmp_path / f"boot{number}"
        exchange.mkdir()
        (exchange / "data").write_bytes(data)
        shutil.copy(package, exchange)
        script, before = (
            re.sub("|".join(words), lambda found: words[found[0]], text)
            for text in (script, PREPARE)
        )
        served = with_drive(
            cartridge,
            MOUNTED + script,
            exchange,
            before=before,
            until="",
            devices=disk,
            start=START_SYSTEMD,
            deadline_s=1500,
        )
        served.check()
        assert "reboot: Power down" in served.outcome.console, served.outcome.console
        return served.outcome.console

    console = boot(1, SHUTDOWN_WHILE_WRITING)
    assert "tapefs@tape.service: Deactivated successfully" in console, console
    tapefs("verify", drive, *state)
    boot(2, UNPLUGGED_AT_SHUTDOWN)
    boot(3, GOES_ON)
    tapefs("verify", drive, *state)
    listed = tapefs("ls", "GUEST:/", "--json", *state).splitlines()
    names = {json.loads(line)["path"].rpartition("/")[2] for line in listed}
    assert {"before", "during", "late", "first", "second", "third"} <= names
