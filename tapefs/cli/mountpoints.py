"""What the system's own mount programs are asked to do: to let go, and to call us first."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tapefs.errors import MountBusy, MountpointUnusable, NoFuse, TapefsError
from tapefs.fuse.mountpoint import FILESYSTEM_TYPE, mount_at

if TYPE_CHECKING:
    from collections.abc import Sequence

UMOUNT_HELPER: Final = Path("/sbin/umount.fuse.tapefs")


def real(text: str) -> Path:
    """`text` as the mount table writes it: absolute, symbolic links resolved."""
    return Path(os.path.realpath(text))


def release(path: Path, *, flags: Sequence[str] = ()) -> None:
    """Unmount `path` without going through tapefs again; `flags` are umount(8)'s.

    Returns when the kernel has let go, not when the tape is finalized. Raises MountBusy when
    somebody uses it, MountpointUnusable when it cannot be unmounted.
    """
    if os.geteuid() == 0:
        command = ["umount", "-i", *flags, str(path)]
    else:
        command = ["fusermount3", "-u", str(path)]
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


def call_helper_at_umount(path: Path) -> subprocess.Popen[bytes] | None:
    """Have plain umount(8) run UMOUNT_HELPER for the mount at `path`, so that it waits as well.

    umount(8) takes the type of an absolute path from statfs(2), which says only "fuse"; it learns
    of a helper for a subtype from its own table in /run/mount, which `mount --fake` writes. Returns
    the running program, not waited for: it looks at the mount, which this process may be serving.
    None when the helper is not installed or this is not root, whose umount(8) it is.
    """
    if os.geteuid() != 0 or not UMOUNT_HELPER.exists():
        return None
    mount = mount_at(path)
    if mount is None:
        return None
    options = ["-t", FILESYSTEM_TYPE, "-o", f"uhelper={FILESYSTEM_TYPE}"]
    return subprocess.Popen(
        ["mount", "--fake", "--internal-only", *options, mount.source, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _refusal(path: Path, said: str) -> TapefsError:
    if "busy" in said.lower():
        return MountBusy(
            f"{path} is in use; 'fuser -vm {path}' shows by whom: end that, then try again"
        )
    return MountpointUnusable(f"{path} cannot be unmounted: {' '.join(said.split())}")
