"""What waits in the spools of a state directory for a tape, mounted or not.

Read through snapshots, so that a mount that serves a volume is not disturbed. A file can be moved
elsewhere when all its bytes are here: those that are in the spool, and holes. Of a file that was
changed in part the rest may be on its tape only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapefs.archive import known_volumes
from tapefs.archive.catalogs import LIVE_NAME
from tapefs.archive.ranges import RangeSet
from tapefs.catalog import Snapshot
from tapefs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tapefs.archive.known_volumes import KnownVolume
    from tapefs.catalog import Staged


@dataclass(frozen=True, slots=True)
class WaitingFile:
    """A file with content that is not on its tape. `is_whole`: all of its bytes are here."""

    ino: int
    path: bytes
    size_bytes: int
    waiting_bytes: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class WaitingVolume:
    """A volume with a spool on this host; `changes_count` is that of inodes and names."""

    directory: Path
    uuid: str
    name: str
    files_count: int
    waiting_bytes: int
    changes_count: int


def volumes(state_dir: Path) -> Iterator[WaitingVolume]:
    """The volumes that were mounted on this host, whether anything waits there or not."""
    for known in known_volumes.known_volumes(state_dir):
        if known.live_path.exists():
            yield waiting_in(known)


def find_volume(state_dir: Path, wanted: str) -> WaitingVolume:
    """The volume called `wanted`, as `known_volumes.find_volume` understands it.

    Raises UsageError, StateUnusable.
    """
    known = known_volumes.find_volume(state_dir, wanted)
    if not known.live_path.exists():
        raise UsageError(f"nothing waits for '{wanted}': it was never mounted on this computer")
    return waiting_in(known)


def waiting_in(known: KnownVolume) -> WaitingVolume:
    """What waits for `known`: nothing where it has no live catalog. Raises StateUnusable."""
    files_count = waiting_bytes = changes_count = 0
    if known.live_path.exists():
        with Snapshot.open(known.live_path) as snapshot:
            changes_count = sum(snapshot.change_counts())
            for row in snapshot.dirty_staged():
                files_count += 1
                waiting_bytes += sum(end - start for start, end in row.dirty)
    return WaitingVolume(
        known.directory, known.uuid, known.name, files_count, waiting_bytes, changes_count
    )


def waiting_files(volume: WaitingVolume) -> Iterator[WaitingFile]:
    """The files of `volume` that wait, in the order of their creation, one name each."""
    with Snapshot.open(volume.directory / LIVE_NAME) as snapshot:
        for row in snapshot.dirty_staged():
            inode, links = snapshot.inode(row.ino), snapshot.links(row.ino)
            if inode is not None and links:
                yield WaitingFile(
                    row.ino,
                    snapshot.path_of(*links[0]),
                    inode.size,
                    sum(end - start for start, end in row.dirty),
                    is_whole(row, inode.size),
                )


def is_whole(row: Staged, size: int) -> bool:
    """Whether every byte of a file of `size` is in the spool, or a hole."""
    here = RangeSet(row.resident)
    for start, end in row.dirty:
        here.add(start, end)
    return here.covers(0, size)
