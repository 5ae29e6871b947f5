"""Letting go of a mountpoint by the system's own program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tapefs.errors import MountBusy, MountpointUnusable, NoFuse, TapefsError

if TYPE_CHECKING:
    from collections.abc import Sequence


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


def _refusal(path: Path, said: str) -> TapefsError:
    if "busy" in said.lower():
        return MountBusy(
            f"{path} is in use; 'fuser -vm {path}' shows by whom: end that, then try again"
        )
    return MountpointUnusable(f"{path} cannot be unmounted: {' '.join(said.split())}")
