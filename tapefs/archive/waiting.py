"""What waits in the spools of a state directory for a tape, mounted or not.

Read through snapshots, so that a mount that serves a volume is not disturbed. A file can be moved
elsewhere when all its bytes are here: those that are in the spool, and holes. Of a file that was
changed in part the rest may be on its tape only.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from tapefs.archive.catalogs import LIVE_NAME, VIEW_NAME
from tapefs.archive.ranges import RangeSet
from tapefs.catalog import Snapshot, TapeView
from tapefs.errors import StateUnusable, TapefsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
    """The volumes that this host has a catalog of, whether anything waits there or not."""
    try:
        names = sorted(os.listdir(state_dir / "volumes"))
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StateUnusable(f"{state_dir} cannot be read: {exc.strerror}") from exc
    for name in names:
        if _is_uuid(name) and (state_dir / "volumes" / name / LIVE_NAME).exists():
            yield _volume(state_dir / "volumes" / name)


def find_volume(state_dir: Path, wanted: str) -> WaitingVolume:
    """The volume called `wanted`: by name, or by UUID or the beginning of it. Raises UsageError."""
    known = list(volumes(state_dir))
    found = [volume for volume in known if volume.name == wanted]
    found = found or [volume for volume in known if wanted and volume.uuid.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"several volumes are called '{wanted}'; give the UUID of one")
    raise UsageError(f"no volume in {state_dir} is called '{wanted}'; 'tapefs spool list' has them")


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


def _volume(directory: Path) -> WaitingVolume:
    with Snapshot.open(directory / LIVE_NAME) as snapshot:
        changes_count = sum(snapshot.change_counts())
        files_count = waiting_bytes = 0
        for row in snapshot.dirty_staged():
            files_count += 1
            waiting_bytes += sum(end - start for start, end in row.dirty)
    name = _name(directory)
    return WaitingVolume(directory, directory.name, name, files_count, waiting_bytes, changes_count)


def _name(directory: Path) -> str:
    try:
        with closing(TapeView.open(directory / VIEW_NAME)) as view:
            return view.settings.name
    except TapefsError:
        return ""  # without its tape view a volume is only a number here


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
