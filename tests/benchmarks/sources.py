"""What is copied into the mounts: made once, on disk, read from the page cache."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Final

import trio
from big_volume import make_big_volume
from volume_rig import Rig

from benchmarks.row import MIB

if TYPE_CHECKING:
    from pathlib import Path

SMALL_FILE_BYTES: Final = 4096
_CARTRIDGE_BYTES: Final = 400 << 30
FILES_PER_DIRECTORY: Final = 500


class Sources:
    """Files and trees below one directory, which is the caller's to delete."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def file(self, size: int) -> Path:
        """A file of `size` bytes that nothing can compress."""
        path = self._root / f"file-{size}"
        if not path.exists():
            with path.open("wb") as stream:
                while stream.tell() < size:
                    stream.write(os.urandom(min(MIB, size - stream.tell())))
        _read(path)
        return path

    def tree(self, count: int) -> Path:
        """A directory with `count` files of 4 KiB, 500 in each directory below it."""
        root = self._root / f"tree-{count}"
        if not root.exists():
            for number in range(count):
                path = root / f"{number // FILES_PER_DIRECTORY:04d}" / f"{number:06d}.dat"
                if number % FILES_PER_DIRECTORY == 0:
                    path.parent.mkdir(parents=True)
                path.write_bytes(os.urandom(SMALL_FILE_BYTES))
        _read(root)
        return root

    def volume(self, count: int) -> Path:
        """A directory for `mounts.tapefs` with a volume of `count` files that this host knows."""
        root = self._root / f"volume-{count}"
        if not root.exists():
            root.mkdir()
            rig = Rig(root, capacity_bytes=_CARTRIDGE_BYTES)
            rig.state = root / "state" / "volumes"
            trio.run(make_big_volume, rig, count)
        return root


def _read(path: Path) -> None:
    """Have it in the page cache."""
    words = ["tar", "-C", str(path.parent), "-cf", "-", path.name]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as reading:
        assert reading.stdout
        while reading.stdout.read(MIB):
            pass
