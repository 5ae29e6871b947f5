"""One large file, in and out."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import ceiling, mounts
from benchmarks.row import GIB, MIB, OF_CEILING, PEAK_MEMORY, RATIO, Figure, Row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.row import Run

_LARGE_BYTES: Final = 2 * GIB
_TOY_BYTES: Final = 8 * MIB


def _write(run: Run) -> Mapping[str, float]:
    size = run.size(_LARGE_BYTES, _TOY_BYTES)
    source = run.sources.file(size)
    with mounts.pass_through(run.directory / "reference") as reference:
        reference_s = mounts.run(["cp", source, reference.path / "file"])
        reference.umount()
    shutil.rmtree(run.directory / "reference")
    least = ceiling.write(source, run.directory / "ceiling")
    shutil.rmtree(run.directory / "ceiling")
    with mounts.tapefs(run.directory / "tapefs", timeline=run.timeline) as mount:
        started = time.monotonic()
        dd_s = mounts.dd(source, mount.path / "file")
        mount.umount()
        all_s = time.monotonic() - started
    return {
        "rate": mounts.megabytes_per_s(size, all_s),
        "until dd ends": mounts.megabytes_per_s(size, dd_s),
        "reference": mounts.megabytes_per_s(size, reference_s),
        RATIO: reference_s / all_s,
        "ceiling": mounts.megabytes_per_s(size, least.wall_s),
        OF_CEILING: least.wall_s / all_s,
        "daemon CPU": mount.cpu_s / (size / GIB),
        "daemon CPU, ceiling": least.cpu_s / (size / GIB),
        "daemon CPU, of the ceiling's": mount.cpu_s / least.cpu_s,
        "peak memory": mount.peak_memory_mib,
    }


def _read_back(run: Run) -> Mapping[str, float]:
    size = run.size(_LARGE_BYTES, _TOY_BYTES)
    source = run.sources.file(size)
    directory = run.directory / "tapefs"
    least = ceiling.read(source, run.directory / "ceiling")
    shutil.rmtree(run.directory / "ceiling")
    with mounts.tapefs(directory) as mount:
        mounts.dd(source, mount.path / "file")
        mount.umount()
    # What this host knows is lost, its copy in the spool as well: all comes from the tape.
    shutil.rmtree(directory / "state")
    with mounts.tapefs(directory, timeline=run.timeline) as mount:
        read_s = mounts.dd(mount.path / "file", Path("/dev/null"))
        mounts.run(["cmp", source, mount.path / "file"])
        mount.umount()
    return {
        "rate": mounts.megabytes_per_s(size, read_s),
        "ceiling": mounts.megabytes_per_s(size, least.wall_s),
        OF_CEILING: least.wall_s / read_s,
        "daemon CPU": mount.cpu_s / (size / GIB),
        "daemon CPU, ceiling": least.cpu_s / (size / GIB),
        "peak memory": mount.peak_memory_mib,
    }


ROWS: Final = (
    Row(
        "write",
        "2 GiB by `dd bs=1M`, `tapefs umount` included; reference: `cp` into the pass-through; "
        "ceiling: see tests/benchmarks/ceiling.py",
        {
            "rate": Figure("MB/s", at_least=600, only_on="tmpfs", or_else=(OF_CEILING,)),
            "until dd ends": Figure("MB/s"),
            "reference": Figure("MB/s"),
            RATIO: Figure("x", at_least=0.5, only_on="disk", or_else=(OF_CEILING,)),
            "ceiling": Figure("MB/s"),
            OF_CEILING: Figure("x", at_least=0.9, or_else=("rate", RATIO)),
            "daemon CPU": Figure("s/GiB", at_most=2.5, or_else=("daemon CPU, of the ceiling's",)),
            "daemon CPU, ceiling": Figure("s/GiB"),
            "daemon CPU, of the ceiling's": Figure("x", at_most=1 / 0.9, or_else=("daemon CPU",)),
            "peak memory": PEAK_MEMORY,
        },
        _write,
    ),
    Row(
        "read-back",
        "the same read by `dd bs=1M` on a host that knows nothing of the tape, and compared; "
        "ceiling: see tests/benchmarks/ceiling.py",
        {
            "rate": Figure("MB/s", at_least=600, or_else=(OF_CEILING,)),
            "ceiling": Figure("MB/s"),
            OF_CEILING: Figure("x", at_least=0.9, or_else=("rate",)),
            "daemon CPU": Figure("s/GiB"),
            "daemon CPU, ceiling": Figure("s/GiB"),
            "peak memory": PEAK_MEMORY,
        },
        _read_back,
    ),
)
