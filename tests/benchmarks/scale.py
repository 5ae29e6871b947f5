"""Volumes of millions of files: mounted and unmounted with one change."""

from __future__ import annotations

import shutil
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks import mounts
from benchmarks.row import PEAK_MEMORY, Figure, Row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.row import Run

_MILLION: Final = 1_000_000
_TOY_COUNT: Final = 50


def _mount(count: int, run: Run) -> Mapping[str, float]:
    """The emulated drive takes no time to speak of: what is measured is tapefs's own."""
    directory = run.directory / "tapefs"
    mounts.run(["cp", "-a", run.sources.volume(run.size(count, _TOY_COUNT)), directory])
    started = time.monotonic()
    with mounts.tapefs(directory) as mount:
        known_s = time.monotonic() - started
        (mount.path / "one more").write_bytes(b"changed")
        started = time.monotonic()
        mount.umount()
        changed_s = time.monotonic() - started
    peaks = [mount.peak_memory_mib]
    # What this host knows is lost: all comes from the tape.
    shutil.rmtree(directory / "state")
    started = time.monotonic()
    with mounts.tapefs(directory) as mount:
        alone_s = time.monotonic() - started
        mount.umount()
    peaks.append(mount.peak_memory_mib)
    return {
        "mount with a catalog": known_s,
        "unmount after one change": changed_s,
        "mount from the tape alone": alone_s,
        "peak memory": max(peaks),
    }


_FIGURES: Final = {
    "mount with a catalog": Figure("s"),
    "unmount after one change": Figure("s"),
    "mount from the tape alone": Figure("s"),
    "peak memory": PEAK_MEMORY,
}

ROWS: Final = (
    Row(
        "million",
        "a volume of 1,000,000 files mounted, one file written, unmounted; then mounted from the "
        "tape alone; until the mount answers, the start of the program included",
        {
            **_FIGURES,
            "mount with a catalog": Figure("s", at_most=1),
            "unmount after one change": Figure("s", at_most=5),
            "mount from the tape alone": Figure("s", at_most=10),
        },
        partial(_mount, _MILLION),
    ),
    Row(
        "ten-million",
        "the same with 10,000,000 files",
        _FIGURES,
        partial(_mount, 10 * _MILLION),
        in_every_place=False,
    ),
)
