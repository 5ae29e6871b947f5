"""The archive's nouns: what a tape and a catalog both speak of. Plain data, no I/O.

A tape file's journal (`tapefs.volume.journal`) is a sequence of `Entry`; a catalog
(`tapefs.catalog`) applies the same entries. Names and symlink targets are bytes, as the kernel
gives them. Times are nanoseconds since the epoch, signed. Inode numbers are never reused.

What there are several of for each file is a tuple: to make one takes a sixth of the time of a
frozen dataclass.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT_INO = 1
# No inode number is larger, so that whoever reads a tape has numbers left for files to come.
INO_MAX = 2**62
NO_XATTRS: Final[Mapping[bytes, bytes]] = MappingProxyType({})


@dataclass(slots=True)
class Inode:
    """One file, directory, symlink, fifo, socket or device node. `mode` carries the type bits."""

    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    size: int = 0
    rdev: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    target: bytes | None = None
    # Of the whole content as last archived in one piece; None when unknown or changed since.
    sha256: bytes | None = None
    xxh128: bytes | None = None


class InodeEntry(NamedTuple):
    """The complete attributes of one inode at the journal's moment, extended attributes included.

    Applying it replaces all attributes and all extended attributes, and cuts extents at `size`.
    """

    ino: int
    mode: int
    uid: int
    gid: int
    size: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    target: bytes | None = None
    sha256: bytes | None = None
    xxh128: bytes | None = None
    xattrs: Mapping[bytes, bytes] = NO_XATTRS


class ExtentEntry(NamedTuple):
    """Bytes [offset, offset + length) of a file stand at byte `position` of this tape file.

    `position` counts from the first byte of the tape file's first record. Applying it cuts away
    what older extents say about the same range. `sha256` is of these bytes.
    """

    ino: int
    offset: int
    length: int
    position: int
    sha256: bytes


class LinkEntry(NamedTuple):
    """Directory `parent` names inode `ino` as `name` (replacing whatever had that name)."""

    parent: int
    name: bytes
    ino: int


class UnlinkEntry(NamedTuple):
    """Directory `parent` has no `name` any more."""

    parent: int
    name: bytes


Entry = InodeEntry | ExtentEntry | LinkEntry | UnlinkEntry


class Extent(NamedTuple):
    """A run of a file's bytes on tape: `position` bytes into tape file `sequence`."""

    ino: int
    offset: int
    length: int
    sequence: int
    position: int


class TapeFileKind(enum.Enum):
    """What a tape file after the label is."""

    SEGMENT = "segment"
    CHECKPOINT = "checkpoint"
    # A segment without entries that only says: here ends a generation.
    CLOSING = "closing"
    TORN = "torn"

    @property
    def on_tape(self) -> TapeFileKind:
        """What the tape file calls itself: a closing is a segment to whoever does not care."""
        return TapeFileKind.SEGMENT if self is TapeFileKind.CLOSING else self


class DamageKind(enum.Enum):
    """How something on tape turned out not to be what was written."""

    UNREADABLE = "unreadable"
    MISMATCH = "mismatch"
    MISSING = "missing"
    CONTRADICTION = "contradiction"


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes [position, position + length) of tape file `sequence` are not what was written there.

    UNREADABLE: the drive cannot read them. MISMATCH: it reads something else. MISSING: the tape
    file ends before. CONTRADICTION: the records are as they were written, but say something wrong.
    `detail` is for people.
    """

    sequence: int
    position: int
    length: int
    kind: DamageKind
    detail: str


@dataclass(frozen=True, slots=True)
class TapeFile:
    """One tape file: what stands between two filemarks.

    `sequence` is its number on tape (the label is 0). Block addresses count records and filemarks
    from the beginning of the partition, as READ POSITION does. `record_count` of a torn one counts
    its blocks, which need not be whole records where a record is several (`tapefs.geometry`).
    `crcs` holds the CRC-32C of each record, four bytes big-endian each; of a torn tape file there
    are none, unless its whole members were salvaged. `written_ns` of a torn one is 0: nobody could
    say. `index_bytes` is the length of the journal or catalog copy, 0 if nobody knows it.
    """

    sequence: int
    kind: TapeFileKind
    first_block: int
    record_count: int
    written_ns: int
    crcs: bytes = b""
    index_bytes: int = 0

    @property
    def salvaged(self) -> bool:
        """Whether this is a torn tape file whose whole members count."""
        return self.kind is TapeFileKind.TORN and bool(self.crcs)

    @property
    def ends_generation(self) -> bool:
        """Whether the volume as it was then can be mounted again."""
        return self.kind in (TapeFileKind.CHECKPOINT, TapeFileKind.CLOSING)


def printable(path: bytes) -> str:
    r"""`path` for a terminal: what is no printable UTF-8, and the backslash, as \xNN."""
    text = path.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        char
        if char.isprintable() and char != "\\"
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in text
    )
