"""What is known of a file's content while somebody uses it; where bytes are and come from."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from tapefs.archive.ranges import RangeSet

if TYPE_CHECKING:
    from tapefs.catalog import Staged
    from tapefs.entries import Extent, Inode


class FileState(enum.Enum):
    """Where a file's bytes are, in the words of hierarchical storage."""

    STAGED = "staged"
    RESIDENT = "resident"
    PREMIGRATED = "premigrated"
    MIGRATED = "migrated"


def clean_state(resident: RangeSet, size: int) -> FileState:
    """Of a file of `size` that is on tape whole, and of which the spool has `resident`."""
    return FileState.PREMIGRATED if resident.covers(0, size) else FileState.MIGRATED


class Place(enum.Enum):
    """Where a byte is that is not (only) on tape."""

    SPOOL = "spool"
    HOLE = "hole"


class Recall(Protocol):
    """Where bytes come from that are on tape only."""

    async def read(
        self, extent: Extent, offset: int, length: int, digest: bytes | None = None
    ) -> bytes | memoryview:
        """Bytes [offset, offset + length) of the file, which lie inside `extent`.

        `digest` is the SHA-256 of the whole extent when it is known.
        """
        ...


class OpenFile:
    """The content state of one file while somebody uses it."""

    __slots__ = (
        "dirty",
        "extent",
        "fd",
        "inode",
        "opens",
        "resident",
        "touched_ns",
        "unsaved",
        "writers",
    )

    def __init__(self, inode: Inode, row: Staged | None) -> None:
        self.inode = inode
        self.resident = RangeSet(row.resident if row else ())
        self.dirty = RangeSet(row.dirty if row else ())
        self.touched_ns = row.touched_ns if row else 0
        # Where bytes on tape were found last, as long as the catalog says the same.
        self.extent: Extent | None = None
        self.fd = -1
        self.opens = 0
        self.writers = 0
        self.unsaved = False
