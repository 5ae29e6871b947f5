"""Rows and what they stand for: column lists and conversions without I/O."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from tapefs.entries import Inode, TapeFile, TapeFileKind
from tapefs.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from tapefs.catalog.database import Row

S_IFMT: Final = 0o170000
S_IFDIR: Final = 0o040000

INODE_COLUMNS: Final = (
    "ino, mode, uid, gid, nlink, size, rdev, atime_ns, mtime_ns, ctime_ns, target, sha256, xxh128"
)
EXTENT_COLUMNS: Final = "ino, offset, length, sequence, position"
TAPE_FILE_COLUMNS: Final = (
    "sequence, kind, first_block, record_count, written_ns, crcs, index_bytes"
)
STAGED_COLUMNS: Final = "ino, resident, dirty, touched_ns"

# An inode's values in the order of INODE_COLUMNS.
inode_row: Final[Callable[[Inode], tuple[Any, ...]]] = attrgetter(*INODE_COLUMNS.split(", "))

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """What a volume's label says and its tape view repeats."""

    volume_uuid: UUID
    name: str
    record_bytes: int
    created_ns: int
    block_bytes: int = 0

    @property
    def geometry(self) -> Geometry:
        """How this volume's records lie on blocks."""
        return Geometry(self.record_bytes, self.block_bytes)


@dataclass(slots=True)
class Staged:
    """What the spool holds of one file. Ranges are (start, end), sorted, apart from each other.

    `resident` ranges are in the spool file; `dirty` ones are not on tape yet, and those of them
    that are not resident are holes. `touched_ns` is the time of the last use, by which clean
    files are evicted.
    """

    ino: int
    resident: list[Range] = field(default_factory=list)
    dirty: list[Range] = field(default_factory=list)
    touched_ns: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a tape view holds."""

    inodes: int
    names: int
    extents: int
    tape_files: int
    archived_bytes: int


_ONE_RANGE: Final = struct.Struct(">2q")


def pack_ranges(ranges: Sequence[Range]) -> bytes:
    """Ranges as a column value."""
    if len(ranges) == 1:
        return _ONE_RANGE.pack(*ranges[0])
    return struct.pack(f">{2 * len(ranges)}q", *(edge for pair in ranges for edge in pair))


def unpack_ranges(packed: bytes) -> list[Range]:
    """The ranges of a column value."""
    if len(packed) == _ONE_RANGE.size:
        return [_ONE_RANGE.unpack(packed)]
    edges = struct.unpack(f">{len(packed) // 8}q", packed)
    return list(zip(edges[::2], edges[1::2], strict=True))


def ranges_bytes(ranges: Sequence[Range]) -> int:
    """How many bytes the ranges cover."""
    return sum(end - start for start, end in ranges)


def staged_from(row: Row) -> Staged:
    """The Staged that a row of STAGED_COLUMNS stands for."""
    return Staged(row[0], unpack_ranges(row[1]), unpack_ranges(row[2]), row[3])


def tape_file_from(row: Row) -> TapeFile:
    """The TapeFile that a row of TAPE_FILE_COLUMNS stands for."""
    return TapeFile(row[0], TapeFileKind(row[1]), *row[2:])
