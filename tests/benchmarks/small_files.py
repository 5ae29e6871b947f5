"""Many small files, in."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks import ceiling, mounts
from benchmarks.row import OF_CEILING, PEAK_MEMORY, RATIO, Figure, Row
from benchmarks.sources import FILES_PER_DIRECTORY, SMALL_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.row import Run

_CREATED_COUNT: Final = 5_000
_COPIED_COUNT: Final = 100_000
_TOY_COUNT: Final = 50


def _create(run: Run) -> Mapping[str, float]:
    count = run.size(_CREATED_COUNT, _TOY_COUNT)
    data = os.urandom(SMALL_FILE_BYTES)
    with mounts.pass_through(run.directory / "reference") as reference:
        started = time.monotonic()
        _create_all(reference.path, count, data)
        reference.umount()
        reference_s = time.monotonic() - started
    shutil.rmtree(run.directory / "reference")
    least = ceiling.create(partial(_create_all, count=count, data=data), run.directory / "ceiling")
    shutil.rmtree(run.directory / "ceiling")
    with mounts.tapefs(run.directory / "tapefs", timeline=run.timeline) as mount:
        started = time.monotonic()
        _create_all(mount.path, count, data)
        created_s = time.monotonic() - started
        mount.umount()
        all_s = time.monotonic() - started
    return {
        "rate": count / all_s,
        "until the last close": count / created_s,
        "reference": count / reference_s,
        RATIO: all_s / reference_s,
        "ceiling": count / least.wall_s,
        OF_CEILING: least.wall_s / all_s,
        "daemon CPU": mount.cpu_s / count * 1e6,
        "daemon CPU, ceiling": least.cpu_s / count * 1e6,
        "peak memory": mount.peak_memory_mib,
    }


def _create_all(root: Path, count: int, data: bytes) -> None:
    for number in range(count):
        directory = root / f"{number // FILES_PER_DIRECTORY:03d}"
        if number % FILES_PER_DIRECTORY == 0:
            directory.mkdir()
        _create_one(directory / f"{number:06d}", data)


def _create_one(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _copy(command: tuple[str, ...], run: Run) -> Mapping[str, float]:
    count = run.size(_COPIED_COUNT, _TOY_COUNT)
    tree = run.sources.tree(count)
    with mounts.pass_through(run.directory / "reference") as reference:
        reference_s = mounts.run([*command, tree, reference.path])
        reference.umount()
    shutil.rmtree(run.directory / "reference")
    with mounts.tapefs(run.directory / "tapefs", timeline=run.timeline) as mount:
        started = time.monotonic()
        copied_s = mounts.run([*command, tree, mount.path])
        mount.umount()
        all_s = time.monotonic() - started
    return {
        "rate": count / all_s,
        "until the copy ends": count / copied_s,
        "reference": count / reference_s,
        RATIO: all_s / reference_s,
        "daemon CPU": mount.cpu_s / count * 1e6,
        "peak memory": mount.peak_memory_mib,
    }


_COPY_FIGURES: Final = {
    "rate": Figure("files/s"),
    "until the copy ends": Figure("files/s"),
    "reference": Figure("files/s"),
    RATIO: Figure("x its time", at_most=1.5),
    "daemon CPU": Figure("µs/file"),
    "peak memory": PEAK_MEMORY,
}

ROWS: Final = (
    Row(
        "create",
        "5,000 files of 4 KiB created, written, closed; `tapefs umount` included; reference: the "
        "same into the pass-through; ceiling: see tests/benchmarks/ceiling.py",
        {
            "rate": Figure("files/s", at_least=4000, or_else=(OF_CEILING,)),
            "until the last close": Figure("files/s"),
            "reference": Figure("files/s"),
            RATIO: Figure("x its time"),
            "ceiling": Figure("files/s"),
            OF_CEILING: Figure("x", at_least=0.9, or_else=("rate",)),
            "daemon CPU": Figure("µs/file"),
            "daemon CPU, ceiling": Figure("µs/file"),
            "peak memory": PEAK_MEMORY,
        },
        _create,
    ),
    Row(
        "cp",
        "100,000 files of 4 KiB by `cp -r`, `tapefs umount` included; reference: the same into "
        "the pass-through",
        _COPY_FIGURES,
        partial(_copy, ("cp", "-r")),
    ),
    Row(
        "rsync",
        "the same by `rsync -a`",
        _COPY_FIGURES,
        partial(_copy, ("rsync", "-a")),
    ),
)
