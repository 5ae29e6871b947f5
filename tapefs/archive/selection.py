"""Which files go into one segment: chosen from a snapshot, in a worker thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tapefs.archive.capacity import MEMBER_OVERHEAD_BYTES

if TYPE_CHECKING:
    from tapefs.catalog import Snapshot


@dataclass(slots=True)
class Selection:
    """The files whose content goes into a segment, in order, and whether more are waiting."""

    inos: list[int] = field(default_factory=list)
    content_bytes: int = 0
    cut_short: bool = False
    # Something waits that is larger than the room on tape.
    does_not_fit: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What one segment may hold, and which files are let in.

    `everything` takes open and unsettled files too (sync, unmount). `parts_of_open` takes the
    written parts of files that are still open, because the spool is filling up. `room_bytes` is set
    when the tape may not have room for more than what changed: then nothing else is written, and
    what does not fit is left out. A file that still lacks more than
    `cut_bytes_max` when the segment must end early is not finished.
    """

    bytes_max: int
    members_max: int
    room_bytes: int | None
    cut_bytes_max: int
    settled_before_ns: int
    everything: bool
    parts_of_open: bool
    part_bytes_min: int
    open_for_writing: frozenset[int]


def select(snapshot: Snapshot, limits: Limits, after_ino: int) -> Selection:
    """Choose files with content for tape, in the order of inode numbers (that of creation)."""
    selection = Selection()
    for ino, dirty_bytes, touched_ns in snapshot.dirty_sizes(after_ino):
        if not _admitted(ino, dirty_bytes, touched_ns, limits):
            continue
        full = selection.content_bytes >= limits.bytes_max
        if full or len(selection.inos) >= limits.members_max:
            selection.cut_short = True
            break
        taken = selection.content_bytes + (len(selection.inos) + 1) * MEMBER_OVERHEAD_BYTES
        if limits.room_bytes is not None and taken + dirty_bytes > limits.room_bytes:
            selection.does_not_fit = True
            continue
        selection.inos.append(ino)
        selection.content_bytes += dirty_bytes
    return selection


def _admitted(ino: int, dirty_bytes: int, touched_ns: int, limits: Limits) -> bool:
    if limits.everything:
        return True
    if ino in limits.open_for_writing:
        return limits.parts_of_open and dirty_bytes >= limits.part_bytes_min
    return touched_ns <= limits.settled_before_ns
