"""How things are called inside a tape file: tapefs's own members, parts of files, deep paths.

Paths are relative bytes without a leading slash or dot. The top-level name `.tapefs` is reserved.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from tapefs.entries import TapeFileKind

RESERVED_NAME: Final = b".tapefs"
NAME_BYTES_MAX: Final = 255
# Linux takes paths up to 4,095 bytes in one call; the rest is room for a part's suffix.
MEMBER_PATH_BYTES_MAX: Final = 4000

_TAIL_PATH: Final = re.compile(rb"\.tapefs/(segments|checkpoints)/([0-9]{8,18})\.tail")


def manifest_path(sequence: int) -> bytes:
    """Member with the SHA-256 of each file member of segment `sequence`."""
    return b".tapefs/segments/%08d.sha256" % sequence


def journal_path(sequence: int) -> bytes:
    """Member with the journal of segment `sequence`."""
    return b".tapefs/segments/%08d.ndjson" % sequence


def catalog_path(generation: int) -> bytes:
    """Member with the catalog copy of checkpoint `generation`."""
    return b".tapefs/catalog-%08d.sqlite.zst" % generation


def tail_path(kind: TapeFileKind, sequence: int) -> bytes:
    """Tail member of tape file `sequence`."""
    folder = b"checkpoints" if kind is TapeFileKind.CHECKPOINT else b"segments"
    return b".tapefs/%b/%08d.tail" % (folder, sequence)


def parse_tail_path(path: bytes) -> tuple[TapeFileKind, int] | None:
    """Kind and sequence that a tail member's path states; None if it is not such a path."""
    match = _TAIL_PATH.fullmatch(path)
    if match is None:
        return None
    is_checkpoint = match[1] == b"checkpoints"
    kind = TapeFileKind.CHECKPOINT if is_checkpoint else TapeFileKind.SEGMENT
    return kind, int(match[2])


def member_path(path: bytes, ino: int) -> bytes:
    """The path a member gets for `path` in the namespace.

    The same, unless it is too long for programs to extract in one piece: then a flat place below
    `.tapefs/deep`, and the real path is in the journal alone.
    """
    if len(path) <= MEMBER_PATH_BYTES_MAX:
        return path
    return b".tapefs/deep/%d" % ino


def part_path(path: bytes, ino: int, offset_bytes: int, sequence: int) -> tuple[bytes, bytes]:
    """Member path for a part of the file `path`, and what had to be cut off its name.

    The part starts at `offset_bytes` and stands in tape file `sequence`; so a later part of the
    same place does not replace this one when both are extracted. Parts of one file sort in the
    order in which `cat` must join them. A name without room for the suffix is cut and made unique
    by the inode number; the second value is then the cut-off rest (b"" otherwise), which belongs
    into the member's note.
    """
    path = member_path(path, ino)
    suffix = _part_suffix(offset_bytes, sequence)
    directory, slash, name = path.rpartition(b"/")
    rest = b""
    if len(name) + len(suffix) > NAME_BYTES_MAX:
        suffix = b".tapefs-ino-%d" % ino + suffix
        keep = _character_boundary(name, NAME_BYTES_MAX - len(suffix))
        name, rest = name[:keep], name[keep:]
    return directory + slash + name + suffix, rest


def whole_name(
    name: bytes, ino: int, offset_bytes: int, sequence: int, rest: bytes
) -> bytes | None:
    """The file name that `part_path` made the last component `name` from; None if it did not."""
    suffix = _part_suffix(offset_bytes, sequence)
    if rest:
        suffix = b".tapefs-ino-%d" % ino + suffix
    if not name.endswith(suffix) or len(name) == len(suffix):
        return None
    return name[: -len(suffix)] + rest


def quote_name(name: bytes) -> bytes:
    """`name` percent-encoded, so that it holds neither spaces nor control characters."""
    return quote_from_bytes(name, safe="").encode("ascii")


def unquote_name(text: bytes) -> bytes:
    """The inverse of `quote_name`."""
    return unquote_to_bytes(text)


def _part_suffix(offset_bytes: int, sequence: int) -> bytes:
    return b".tapefs-part-%020d-%08d" % (offset_bytes, sequence)


def _character_boundary(name: bytes, end: int) -> int:
    """The greatest place <= `end` at which cutting `name` splits no UTF-8 character."""
    for place in range(end, max(end - 4, 0), -1):
        if name[place] & 0xC0 != 0x80:
            return place
    return end
