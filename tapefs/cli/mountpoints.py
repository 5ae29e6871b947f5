"""What the kernel says about a mountpoint, and how one is let go of."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tapefs import telemetry
from tapefs.errors import MountBusy, MountpointUnusable, NoFuse, TapefsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FILESYSTEM_TYPE: Final = "fuse.tapefs"
FUSE_DEVICE: Final = Path("/dev/fuse")
MOUNT_TABLE: Final = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    mountpoint: str
    filesystem_type: str
    source: str


def mounts(table: Path = MOUNT_TABLE) -> Iterator[Mount]:
    """Every mount of this mount namespace, oldest first."""
    for line in table.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, separator, after = line.partition(" - ")
        if separator:
            filesystem_type, source, *_ = after.split(" ")
            yield Mount(_unescaped(before.split(" ")[4]), filesystem_type, _unescaped(source))


def mount_at(path: Path) -> Mount | None:
    """The uppermost mount at exactly `path`, which must be free of symbolic links."""
    found = [mount for mount in mounts() if mount.mountpoint == str(path)]
    return found[-1] if found else None


def real(text: str) -> Path:
    """`text` as the mount table writes it: absolute, symbolic links resolved."""
    return Path(os.path.realpath(text))


def usable(text: str) -> Path:
    """The mountpoint to mount at; one that a dead daemon of ours left behind is cleared first.

    Raises MountpointUnusable when it is missing, no directory, or carries a mount.
    """
    path = real(text)
    mount = mount_at(path)
    if mount and clear_if_dead(path, mount):
        mount = mount_at(path)
    if mount:
        raise MountpointUnusable(
            f"{path} already carries a mount ({mount.filesystem_type}); "
            "unmount it or choose another directory"
        )
    try:
        is_directory = path.is_dir()
    except OSError as exc:
        raise MountpointUnusable(f"{path} cannot be used: {exc.strerror}") from exc
    if not is_directory:
        if path.exists():
            raise MountpointUnusable(f"{path} is no directory; choose one to mount at")
        raise MountpointUnusable(f"{path} does not exist; make it with 'mkdir -p {path}'")
    return path


def clear_if_dead(path: Path, mount: Mount) -> bool:
    """Let go of `mount` if it is ours and its daemon is dead; whether it was. Loses nothing."""
    if mount.filesystem_type != FILESYSTEM_TYPE:
        return False
    try:
        path.stat()
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            return False
        release(path, lazy=True)
        telemetry.event("mount.dead_one_cleared", mountpoint=path)
        return True
    return False


def require_fuse() -> None:
    """Raise NoFuse with what to do, unless the kernel's FUSE device can be opened."""
    if not FUSE_DEVICE.exists():
        raise NoFuse(
            f"{FUSE_DEVICE} is missing; run 'modprobe fuse', or give the container "
            "'--device /dev/fuse --cap-add SYS_ADMIN'"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise NoFuse(f"{FUSE_DEVICE} may not be opened by this user; run tapefs as root")


def release(path: Path, *, lazy: bool = False, flags: Sequence[str] = ()) -> None:
    """Unmount `path` without going through tapefs again.

    Raises MountBusy when somebody uses it, MountpointUnusable when it cannot be unmounted.
    """
    if os.geteuid() == 0:
        command = ["umount", "-i", *(["-l"] if lazy else []), *flags, str(path)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), str(path)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as exc:
        raise NoFuse(f"the program {command[0]} is missing; install the package fuse3") from exc
    if done.returncode:
        raise _refusal(path, done.stderr)


def _refusal(path: Path, said: str) -> TapefsError:
    if "busy" in said.lower():
        return MountBusy(
            f"{path} is in use; 'fuser -vm {path}' shows by whom: end that, then try again"
        )
    return MountpointUnusable(f"{path} cannot be unmounted: {' '.join(said.split())}")


def _unescaped(text: str) -> str:
    """The kernel writes blank, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
