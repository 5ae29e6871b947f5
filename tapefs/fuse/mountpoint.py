"""Is this a place where a mount can go, and can this user mount there at all?

Nothing here may be called for a mountpoint that this very process serves: it would wait for
itself. Whether something is mounted is read from /proc/self/mountinfo (proc_pid_mountinfo(5)),
which asks no filesystem.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from tapefs import telemetry
from tapefs.errors import MountpointUnusable, NoFuse

FUSE_DEVICE: Final = Path("/dev/fuse")
FUSE_CONFIGURATION: Final = Path("/etc/fuse.conf")
SUBTYPE: Final = "tapefs"
FILESYSTEM_TYPE: Final = f"fuse.{SUBTYPE}"
# Has the first access mount something there: a mount goes on top of it.
_AUTOMOUNT_TYPE: Final = "autofs"
# For mount(8), umount(8) and fusermount3(1).
MOUNT_TIMEOUT_S: Final = 30.0

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo: what is mounted at `path`."""

    path: Path
    device: str  # "major:minor"
    filesystem_type: str
    source: str


def mount_at(path: Path) -> Mount | None:
    """The topmost mount on exactly this (resolved) path, or None."""
    found = None
    for line in _MOUNTINFO.read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if _unescaped(fields[4]) == str(path):
            found = Mount(path, fields[2].decode(), _unescaped(rest[0]), _unescaped(rest[1]))
    return found


def prepare_mountpoint(path: Path) -> Path:
    """Check that a mount can go to `path`; returns it resolved. Clears a dead mount of ours.

    At an automount this brings its mount about, unless the automount started this very process.
    Raises MountpointUnusable: missing, not a directory, already a mount, not accessible.
    """
    resolved = Path(os.path.realpath(path))
    mount = mount_at(resolved)
    if mount is not None:
        _clear_dead_mount(mount)
    try:
        mode = resolved.stat().st_mode
    except FileNotFoundError:
        raise MountpointUnusable(f"{path} does not exist; create the directory first") from None
    except OSError as exc:
        raise MountpointUnusable(f"{path} cannot be used: {exc.strerror}") from exc
    _refuse_mount(mount_at(resolved))
    if not stat.S_ISDIR(mode):
        raise MountpointUnusable(f"{path} is not a directory; give a directory to mount on")
    if os.geteuid() != 0 and not os.access(resolved, os.W_OK):
        raise MountpointUnusable(
            f"{path} is not writable by you, so you cannot mount on it; choose a directory of yours"
        )
    return resolved


def require_fuse(*, allow_other: bool) -> None:
    """Raises NoFuse, saying what to do, when this user cannot mount on this machine."""
    if not FUSE_DEVICE.exists():
        raise NoFuse(f"{FUSE_DEVICE} does not exist; load the kernel module with 'modprobe fuse'")
    if os.geteuid() == 0:
        return
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise NoFuse(f"you may not open {FUSE_DEVICE}; ask for access to it or mount as root")
    if shutil.which("fusermount3") is None:
        raise NoFuse("fusermount3 is not installed; install the package fuse3")
    if allow_other and not _user_allow_other():
        raise NoFuse(
            f"allow_other needs the line 'user_allow_other' in {FUSE_CONFIGURATION}; "
            "add it or mount as root"
        )


def detach_dead_mount(path: Path) -> bool:
    """Detach a mount of ours on the resolved `path` whose daemon is gone; false if there is none.

    Raises MountpointUnusable when it cannot be detached.
    """
    mount = mount_at(path)
    if mount is None or mount.filesystem_type != FILESYSTEM_TYPE or not _is_dead(path):
        return False
    _detach(path)
    return True


def _clear_dead_mount(mount: Mount) -> None:
    if detach_dead_mount(mount.path):
        telemetry.event(telemetry.MOUNT_ENDED, mountpoint=mount.path, reason="daemon was gone")
        _refuse_mount(mount_at(mount.path))
    else:
        _refuse_mount(mount)


def _refuse_mount(mount: Mount | None) -> None:
    if mount is None or mount.filesystem_type == _AUTOMOUNT_TYPE:
        return
    if mount.filesystem_type == FILESYSTEM_TYPE:
        raise MountpointUnusable(
            f"a tape is already mounted on {mount.path} ({mount.source}); "
            f"unmount it with 'tapefs umount {mount.path}' first"
        )
    raise MountpointUnusable(
        f"{mount.path} already carries a mount ({mount.filesystem_type} {mount.source}); "
        "unmount it or choose another directory"
    )


def _is_dead(path: Path) -> bool:
    # stat(2) would be answered from the kernel's cache for as long as attributes are valid there.
    try:
        os.statvfs(path)
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _detach(path: Path) -> None:
    # -i: without the helper umount.fuse.tapefs, which would wait for a daemon that is gone.
    if os.geteuid() == 0:
        command = ["umount", "-i", "-l", str(path)]
    else:
        command = ["fusermount3", "-u", "-z", str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=MOUNT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise MountpointUnusable(f"{path} has a dead mount that cannot be detached: {exc}") from exc
    if done.returncode != 0:
        reason = done.stderr.strip() or f"{command[0]} exit code {done.returncode}"
        raise MountpointUnusable(f"{path} has a dead mount that cannot be detached: {reason}")


def _user_allow_other() -> bool:
    try:
        lines = FUSE_CONFIGURATION.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def _unescaped(field: bytes) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
