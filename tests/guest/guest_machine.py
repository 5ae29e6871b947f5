"""A virtual machine with Debian's own kernel and this machine's files, for one job at a time.

The kernel comes from the package linux-image-amd64. Its root filesystem is this machine's, shared
over 9p and read-only; what the job changes goes to a tmpfs on top and is gone afterwards. The
initramfs holds busybox and the modules needed to get there. The job is a shell script; what it
prints, and files that it leaves in $EXCHANGE, are all that comes back.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
HOME = HERE.parent.parent
QEMU = "qemu-system-x86_64"
BUSYBOX = Path("/bin/busybox")
# This machine, as the guest sees it (QEMU's user networking).
HOST_ADDRESS = "10.0.2.2"
MEMORY_MB = 1536

BOOT_MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "virtio_net")

_FILE = 0o100755
_DIRECTORY = 0o040755

INIT = r"""#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o ro,cache=loose,$options root /lower
mount -t tmpfs -o size=1G tmpfs /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/lower,upperdir=/changes/upper,workdir=/changes/work overlay /root
mkdir -p /root/exchange
mount -t 9p -o $options exchange /root/exchange
for each in proc sys dev; do mount -o move /$each /root/$each; done
mount -t tmpfs tmpfs /root/run
mkdir -p /root/job
mount -t tmpfs tmpfs /root/job
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
exec switch_root /root /bin/sh /exchange/start
"""

START = r"""
export PATH=@path@:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=dumb LC_ALL=C.UTF-8 EXCHANGE=/exchange PYTHONDONTWRITEBYTECODE=1
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sfn /proc/self/fd /dev/fd
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s"
cd /job
bash -eux /exchange/job </dev/null
echo "guest: the job ended with $?, up for $(cut -d' ' -f1 /proc/uptime) s"
sync
echo o >/proc/sysrq-trigger
while :; do :; done
"""

# The same under a real systemd, which then stops what it has started, and switches off.
START_SYSTEMD = r"""
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
: >/etc/fstab
ln -sf /dev/null /etc/systemd/system/systemd-tmpfiles-setup.service # /tmp is this machine's
rm -rf /etc/systemd/system/*.wants /etc/systemd/system/*.requires
cat >/etc/systemd/system/guest.target <<END
[Unit]
Requires=basic.target systemd-udevd.service guest-job.service
After=basic.target
AllowIsolate=yes
END
cat >/etc/systemd/system/guest-job.service <<END
[Unit]
After=basic.target systemd-udev-trigger.service
[Service]
Type=oneshot
Environment=PATH=@path@:$PATH
Environment=HOME=/root TERM=dumb LC_ALL=C.UTF-8 EXCHANGE=/exchange PYTHONDONTWRITEBYTECODE=1
WorkingDirectory=/job
ExecStart=/bin/bash -c 'bash -eux /exchange/job; echo "guest: the job ended with \$\$?"'
ExecStartPost=/bin/systemctl poweroff --no-block
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
END
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nForwardToConsole=yes\nMaxLevelConsole=info\n' \
    >/etc/systemd/journald.conf.d/guest.conf
exec /lib/systemd/systemd --system --unit=guest.target --show-status=no
"""


@dataclass(frozen=True)
class Outcome:
    """What came of a job. `console` is what kernel and job printed."""

    exit_code: int | None
    console: str
    duration_s: float


def missing() -> list[str]:
    """What this machine lacks to run guests, in words."""
    found = {
        QEMU: shutil.which(QEMU),
        str(BUSYBOX): BUSYBOX.exists() or None,
        "a kernel in /boot with modules": kernel_release(),
    }
    return [name for name, there in found.items() if there is None]


def kernel_release() -> str | None:
    """The newest kernel in /boot whose modules are there as well."""
    releases = [
        path.name.removeprefix("vmlinuz-")
        for path in Path("/boot").glob("vmlinuz-*")
        if (Path("/lib/modules") / path.name.removeprefix("vmlinuz-") / "modules.dep").exists()
    ]
    return max(releases, key=lambda name: [int(n) for n in re.findall(r"\d+", name)], default=None)


def run_job(
    script: str,
    exchange: Path,
    *,
    devices: Sequence[str] = (),
    start: str = START,
    deadline_s: float = 300,
) -> Outcome:
    """Boot, run `script` under bash -eux, power off. Nothing is left running.

    `exchange` is a directory of the test's own that guest and test share; `devices` are more
    arguments for QEMU; `start` is what becomes the first process. A guest that is not done after
    `deadline_s` is switched off.
    """
    release = kernel_release()
    assert release is not None, "no kernel"
    initramfs = exchange / "initramfs"
    initramfs.write_bytes(_initramfs(release))
    (exchange / "start").write_text(start.replace("@path@", str(HOME / ".venv/bin")))
    (exchange / "job").write_text(script)
    console = exchange / "console"
    began_s = time.monotonic()
    shares = (("root", "/", ",readonly=on"), ("exchange", str(exchange), ""))
    command = [
        *(QEMU, "-machine", "pc", "-accel", "tcg"),
        *("-cpu", "max", "-smp", "1", "-m", str(MEMORY_MB), "-nodefaults", "-no-reboot"),
        *("-display", "none", "-serial", f"file:{console}"),
        *("-kernel", f"/boot/vmlinuz-{release}", "-initrd", str(initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
    ]
    for tag, path, more in shares:
        share = f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap{more}"
        command += ["-virtfs", share]
    command += devices
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
    text = console.read_text(errors="replace") if console.exists() else ""
    ended = re.search(r"^guest: the job ended with (\d+)", text, re.MULTILINE)
    return Outcome(int(ended[1]) if ended else None, text, time.monotonic() - began_s)


# The initramfs: a cpio archive of format "newc", as the kernel documents it.


def _initramfs(release: str) -> bytes:
    modules = _with_dependencies(release)
    names = [path.name for path in modules]
    directories = ["bin", "sbin", "lower", "changes", "root", "proc", "sys", "dev", "modules"]
    members = [
        *((name, _DIRECTORY, b"") for name in directories),
        ("bin/busybox", _FILE, BUSYBOX.read_bytes()),
        ("init", _FILE, INIT.encode()),
        ("modules/order", _FILE, "\n".join(names).encode()),
        *((f"modules/{path.name}", _FILE, path.read_bytes()) for path in modules),
    ]
    archive = b"".join(_cpio_member(*member) for member in members)
    return archive + _cpio_member("TRAILER!!!", 0, b"")


def _cpio_member(name: str, mode: int, data: bytes) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _with_dependencies(release: str) -> list[Path]:
    """The boot modules and what they need, each after what it needs."""
    home = Path("/lib/modules") / release
    needs: dict[str, list[str]] = {}
    for line in (home / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {Path(path).name.partition(".ko")[0].replace("-", "_"): path for path in needs}
    ordered: dict[str, None] = {}
    for name in BOOT_MODULES:
        path = by_name[name]
        for each in [*reversed(needs[path]), path]:
            ordered.setdefault(each)
    return [home / path for path in ordered]
