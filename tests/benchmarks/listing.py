"""Looking at a tree whose files are on tape only."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from benchmarks import mounts
from benchmarks.row import PEAK_MEMORY, Figure, Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.row import Run

_COUNT: Final = 100_000
_TOY_COUNT: Final = 50
_COMMANDS: Final[Mapping[str, Sequence[str]]] = {
    "ls -l": ("ls", "-lR"),
    "find": ("find",),
    "du": ("du", "-s"),
    "rsync -an": ("rsync", "-an", "--delete"),
}


def _look(run: Run) -> Mapping[str, float]:
    tree = run.sources.tree(run.size(_COUNT, _TOY_COUNT))
    with mounts.pass_through(run.directory / "reference") as reference:
        mounts.run(["cp", "-a", tree, reference.path])
        reference.umount()
    with mounts.tapefs(run.directory / "tapefs") as mount:
        mounts.run(["cp", "-a", tree, mount.path])
        mount.umount()
    shutil.rmtree(run.directory / "tapefs" / "state")
    figures: dict[str, float] = {}
    peaks = []
    for name, command in _COMMANDS.items():
        # Each on a fresh mount: nobody has asked before, and the kernel knows nothing.
        with mounts.pass_through(run.directory / "reference") as reference:
            reference_s = _look_once(command, tree, reference.path)
            reference.umount()
        with mounts.tapefs(run.directory / "tapefs") as mount:
            before = mount.status()["since_mount"]
            figures[name] = _look_once(command, tree, mount.path) / reference_s
            if mount.status()["since_mount"] != before:
                raise RuntimeError(f"{name} moved the tape")
            mount.umount()
        peaks.append(mount.peak_memory_mib)
    return {**figures, "peak memory": max(peaks)}


def _look_once(command: Sequence[str], tree: Path, mountpoint: Path) -> float:
    source = [f"{tree}/"] if command[0] == "rsync" else []
    return mounts.run([*command, *source, f"{mountpoint / tree.name}/"])


ROWS: Final = (
    Row(
        "look",
        "100,000 migrated files looked at by each command on a fresh mount, without tape motion; "
        "reference: the same tree in the pass-through",
        {
            **{name: Figure("x its time", at_most=1.5) for name in _COMMANDS},
            "peak memory": PEAK_MEMORY,
        },
        _look,
    ),
)
