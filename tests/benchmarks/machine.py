"""What the figures were measured on."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import sqlite3
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.row import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGES: Final = ("tapefs", "pyfuse3", "trio", "pyusb", "xxhash", "crc32c", "zstandard")
_HASHED_BYTES: Final = 64 * MIB
_NEW_BYTES: Final = 512 * MIB


def describe(places: Mapping[str, Path]) -> dict[str, Any]:
    """Processor, memory, system and software, and what the places are."""
    processor = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 1024**2, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: version(name) for name in _PACKAGES},
        "places": {name: filesystem(path) for name, path in places.items()},
        # One core of this machine: the ceiling of whatever hashes everything once.
        "sha256_mb_per_s": round(sha256_megabytes_per_s()),
    }


def is_the_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether figures of the two descriptions may stand in one table."""
    measured = {"sha256_mb_per_s": None}
    return {**one, **measured} == {**other, **measured}


def filesystem(path: Path) -> str:
    """The kind of file system at `path`."""
    number = path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mounted, _, kind = line.partition(" - ")
        if mounted.split()[2] == device:
            return kind.split()[0] + ("" if _has_journal(device) else " without a journal")
    return "unknown"


def _has_journal(device: str) -> bool:
    """False for an ext4 that was made without one: there, making files has another price."""
    name = Path("/sys/dev/block", device).resolve().name
    options = Path("/proc/fs/ext4", name, "options")
    return not options.exists() or "\ndata=" in options.read_text()


def sha256_megabytes_per_s() -> float:
    """SHA-256 on one core, the best of three."""
    data = bytes(_HASHED_BYTES)
    best_s = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        hashlib.sha256(data)
        best_s = min(best_s, time.perf_counter() - started)
    return _HASHED_BYTES / 1e6 / best_s


def new_memory_megabytes_per_s() -> float:
    """How fast memory that was free is written to for the first time, page by page.

    A virtual machine whose host takes back what is free gets it back a fault at a time; then
    whatever fills a file in memory measures mostly that, and this figure says so.
    """
    piece = bytes(MIB)
    with mmap.mmap(-1, _NEW_BYTES) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        started = time.perf_counter()
        for _ in range(_NEW_BYTES // MIB):
            memory.write(piece)
        return _NEW_BYTES / 1e6 / (time.perf_counter() - started)
