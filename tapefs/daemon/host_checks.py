"""What `tapefs doctor` looks at on this computer; drives have a module of their own.

Each check is a function of a `Machine` that returns findings and changes nothing, but for a file
in the state directory that the speed of the spool's disk is measured with, and that goes again.
"""

from __future__ import annotations

import ctypes.util
import grp
import importlib
import importlib.metadata
import os
import pwd
import re
import shutil
import stat
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tapefs import control
from tapefs.config import GIB, MIB, RECORD_BYTES_MAX, Config
from tapefs.errors import NoFuse, TapefsError
from tapefs.fuse.mountpoint import require_fuse

if TYPE_CHECKING:
    from collections.abc import Callable

OK: Final = "ok"
ADVICE: Final = "advice"
PROBLEM: Final = "problem"

_TAPE_GROUP: Final = "tape"
_RULE: Final = "60-tapefs.rules"
_HELPERS: Final = ("umount.fuse.tapefs", "mount.fuse.tapefs")
# Write requests of 1 MiB came with 4.20, and what is tested with is 6.1.
_KERNEL_MIN: Final = (4, 20)
_KERNEL_ADVISED: Final = (5, 10)
_LIBRARIES: Final = {
    "pyfuse3": "pyfuse3",
    "trio": "trio",
    "usb.core": "pyusb",
    "zstandard": "zstandard",
    "xxhash": "xxhash",
    "crc32c": "crc32c",
    "rich": "rich",
}
# Of the earliest day on which this check can have been run.
_NOT_BEFORE_S: Final = 1_735_689_600  # 2025-01-01
_DAY_S: Final = 86_400
_ROOM_BYTES_MIN: Final = GIB
_SPEED_BYTES_MAX: Final = 512 * MIB
_SPEED_S_MAX: Final = 4.0
_CHUNK_BYTES: Final = MIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `todo` is what to type or to do; empty when all is well."""

    check: str
    verdict: str
    found: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """The computer that is looked at: this one, or what a test makes of it."""

    state_dir: Path
    root: Path = Path("/")
    uid: int = os.geteuid()
    release: str = os.uname().release
    now_s: Callable[[], float] = time.time
    which: Callable[[str], str | None] = shutil.which
    spool_bytes: int = field(default_factory=lambda: Config().spool_bytes)

    def text(self, path: str) -> str | None:
        """The content of a file of the system; None when there is none."""
        try:
            return (self.root / path).read_text().strip()
        except OSError:
            return None

    def existing(self) -> Path:
        """The state directory, or the nearest directory above it that exists."""
        return next(each for each in (self.state_dir, *self.state_dir.parents) if each.exists())


def check_host(machine: Machine) -> list[Finding]:
    """Everything but drives and speed, in the order in which it matters."""
    checks = (kernel, libraries, fuse, fusermount, helpers, permission, usb_memory, clock, places)
    return [finding for check in checks for finding in check(machine)]


def kernel(machine: Machine) -> list[Finding]:
    """Whether the kernel has what FUSE needs."""
    match = re.match(r"(\d+)\.(\d+)", machine.release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version >= _KERNEL_ADVISED:
        return [Finding("kernel", OK, machine.release)]
    verdict = ADVICE if version >= _KERNEL_MIN else PROBLEM
    wanted = ".".join(map(str, _KERNEL_ADVISED))
    return [Finding("kernel", verdict, machine.release, f"use Linux {wanted} or newer")]


def libraries(_machine: Machine) -> list[Finding]:
    """Whether everything that a mount imports is there and loads."""
    versions, missing = [f"Python {sys.version.split()[0]}"], []
    for module, name in _LIBRARIES.items():
        try:
            importlib.import_module(module)
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except (ImportError, OSError) as exc:
            missing.append(f"{name} ({exc})")
    if ctypes.util.find_library("usb-1.0") is None:
        missing.append("libusb 1.0")
    if not missing:
        return [Finding("libraries", OK, ", ".join(versions))]
    todo = "as root: apt-get install fuse3 libfuse3-3 libusb-1.0-0; then install tapefs again"
    return [Finding("libraries", PROBLEM, f"cannot be loaded: {', '.join(missing)}", todo)]


def fuse(_machine: Machine) -> list[Finding]:
    """Whether this user may use FUSE, and let others into a mount."""
    try:
        require_fuse(allow_other=False)
    except NoFuse as exc:
        found, _, todo = str(exc).partition("; ")
        return [Finding("FUSE", PROBLEM, found, todo)]
    try:
        require_fuse(allow_other=True)
    except NoFuse as exc:
        found, _, todo = str(exc).partition("; ")
        return [Finding("FUSE", ADVICE, found, f"where others shall see the tape: {todo}")]
    return [Finding("FUSE", OK, "/dev/fuse can be used")]


def fusermount(machine: Machine) -> list[Finding]:
    """The program that mounts for users who are not root."""
    path = machine.which("fusermount3")
    root = machine.uid == 0
    if path is None:
        verdict = ADVICE if root else PROBLEM
        todo = "as root: apt-get install fuse3"
        return [Finding("fusermount3", verdict, "not installed", todo)]
    if not root and not Path(path).stat().st_mode & stat.S_ISUID:
        found = f"{path} is not set-user-ID root, so it may not mount"
        return [Finding("fusermount3", PROBLEM, found, f"as root: chmod u+s {path}")]
    return [Finding("fusermount3", OK, path)]


def helpers(machine: Machine) -> list[Finding]:
    """What plain umount(8) and mount(8) call."""
    missing = [name for name in _HELPERS if not (machine.root / "usr/sbin" / name).exists()]
    if not missing:
        return [Finding("helpers", OK, "umount and mount know of tapefs")]
    programs = Path(sys.executable).parent
    links = [f"ln -sf {programs / name} /usr/sbin/{name}" for name in missing]
    found = f"plain umount does not wait for the tape: {', '.join(missing)} not linked"
    if missing == [_HELPERS[1]]:
        found = f"/etc/fstab cannot name tapefs: {missing[0]} not linked"
    return [Finding("helpers", ADVICE, found, "as root: " + " && ".join(links))]


def permission(machine: Machine) -> list[Finding]:
    """Whether this user may open USB drives."""
    if machine.uid == 0:
        return [Finding("permission", OK, "root may open every drive")]
    rules = [machine.root / place / _RULE for place in ("etc/udev/rules.d", "lib/udev/rules.d")]
    if not any(rule.exists() for rule in rules):
        todo = f"as root: install -m 644 contrib/udev/{_RULE} /etc/udev/rules.d/ && "
        todo += "udevadm control --reload && udevadm trigger"
        return [Finding("permission", ADVICE, "the udev rule is not installed", todo)]
    name = pwd.getpwuid(machine.uid).pw_name
    try:
        group = grp.getgrnam(_TAPE_GROUP)
    except KeyError:
        todo = f"as root: groupadd --system {_TAPE_GROUP} && adduser {name} {_TAPE_GROUP}"
        return [Finding("permission", ADVICE, f"there is no group {_TAPE_GROUP}", todo)]
    if group.gr_gid in (os.getegid(), *os.getgroups()):
        return [
            Finding("permission", OK, f"in the group {_TAPE_GROUP}, and the udev rule is there")
        ]
    todo = f"as root: adduser {name} {_TAPE_GROUP}; then log in again"
    return [Finding("permission", ADVICE, f"{name} is not in the group {_TAPE_GROUP}", todo)]


def usb_memory(machine: Machine) -> list[Finding]:
    """Whether the kernel lends enough memory for a record on its way to a USB drive."""
    parameter = "sys/module/usbcore/parameters/usbfs_memory_mb"
    text = machine.text(parameter)
    if text is None or not text.isdecimal():
        return [Finding("USB memory", OK, "this kernel sets no limit, or has no USB")]
    mib, todo = int(text), f"as root: echo 16 >/{parameter}"
    if mib and mib * MIB < 2 * RECORD_BYTES_MAX:
        return [Finding("USB memory", PROBLEM, f"{mib} MB for all transfers", todo)]
    if mib and mib < 16:
        return [Finding("USB memory", ADVICE, f"{mib} MB for all transfers", todo)]
    return [Finding("USB memory", OK, f"{mib} MB for all transfers" if mib else "no limit")]


def clock(machine: Machine) -> list[Finding]:
    """Times go to tape: a clock that is wrong stays wrong there."""
    now_s = machine.now_s()
    text = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now_s))
    todo = "set it; as root: timedatectl set-ntp true"
    if now_s < _NOT_BEFORE_S:
        return [Finding("clock", PROBLEM, f"{text} cannot be", todo)]
    marks = machine.state_dir.glob("volumes/*/*")
    newest_s = max((mark.stat().st_mtime for mark in marks), default=0.0)
    if newest_s > now_s + _DAY_S:
        day = time.strftime("%Y-%m-%d", time.localtime(newest_s))
        found = f"{text}, but a tape was mounted here on {day}"
        return [Finding("clock", PROBLEM, found, todo)]
    service = machine.root / "run/systemd/timesync"
    if service.is_dir() and not (service / "synchronized").exists():
        return [Finding("clock", ADVICE, f"{text}, never set by a time server", todo)]
    return [Finding("clock", OK, text)]


def places(machine: Machine) -> list[Finding]:
    """The directories for state, spool and sockets, and the room there."""
    findings = []
    try:
        findings.append(Finding("sockets", OK, str(control.runtime_dir())))
    except TapefsError as exc:
        found, _, todo = str(exc).partition("; ")
        findings.append(Finding("sockets", PROBLEM, found, todo))
    place = machine.existing()
    if not os.access(place, os.W_OK):
        todo = "choose another directory: tapefs mount --state-dir DIR"
        return [*findings, Finding("state", PROBLEM, f"{place} cannot be written by you", todo)]
    findings.append(Finding("state", OK, str(machine.state_dir)))
    free = shutil.disk_usage(place).free
    found, wanted = f"{free / GIB:.1f} GiB free for the spool", machine.spool_bytes
    if free < _ROOM_BYTES_MIN:
        verdict, todo = PROBLEM, "make room, or choose another disk with --state-dir"
    elif free < wanted:
        size = f"{max(1, int(free / GIB * 0.8))}G"
        verdict, todo = ADVICE, f"mount with -o spool={size}, or make room for {wanted // GIB} GiB"
    else:
        verdict, todo = OK, ""
    return [*findings, Finding("room", verdict, found, todo)]


def measured_speed(machine: Machine) -> float | None:
    """Bytes per second at which the spool's disk takes a file; None where it cannot be tried.

    Writes for some seconds at most, and reads nothing: what was written is still in memory.
    """
    place = machine.existing()
    size = min(_SPEED_BYTES_MAX, shutil.disk_usage(place).free // 8)
    if size < 8 * _CHUNK_BYTES or not os.access(place, os.W_OK):
        return None
    chunk = os.urandom(_CHUNK_BYTES)
    began_s, done = time.monotonic(), 0
    try:
        # No name: it goes whatever happens.
        fd = os.open(place, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        while done < size and time.monotonic() < began_s + _SPEED_S_MAX:
            done += os.write(fd, chunk)
            if done % (64 * _CHUNK_BYTES) == 0:
                os.fdatasync(fd)
        os.fdatasync(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    return done / max(1e-6, time.monotonic() - began_s)


def disk_speed(speed: float | None, rate: int | None, quick: bool) -> Finding:
    """Whether the spool's disk keeps a drive of `rate` bytes per second at it.

    While users write, the disk takes their data and gives the drive the same once more.
    """
    if speed is None:
        text = "not measured, because of --quick" if quick else "cannot be measured there"
        return Finding("spool disk", OK, text)
    found = f"takes {speed / 1e6:.0f} MB/s"
    if rate is None:
        return Finding("spool disk", OK, found)
    found += f"; the drive {rate / 1e6:.0f} MB/s"
    todo = "put the spool on a faster disk: tapefs mount --state-dir DIR"
    if speed < 2 * rate:
        when = "" if speed < rate else " while others write to the mount"
        found += f": the tape will stop and start{when}, which takes time and wears it out"
        return Finding("spool disk", ADVICE, found, todo)
    return Finding("spool disk", OK, found)
