"""Journal lines in the one form that `journal.encode_entry` gives nearly all of them, read quickly.

A segment has three lines for each new file, and they are read when it is applied, when it is
confirmed and when a tape is rolled forward. What does not match to the byte is left to the real
decoder; what matches cannot be out of range there (fewer digits than the bounds have), so both
always agree. No I/O.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from typing import TYPE_CHECKING, Final

from tapefs.entries import Entry, ExtentEntry, InodeEntry, LinkEntry, UnlinkEntry

if TYPE_CHECKING:
    from collections.abc import Callable

_INO: Final = rb"([1-9][0-9]{0,17})"
_NUMBER: Final = rb"(0|[1-9][0-9]{0,17})"
_NUMBER_32: Final = rb"(0|[1-9][0-9]{0,8})"
_TIME: Final = rb'"(0|-?[1-9][0-9]{0,17}|[1-8][0-9]{18})"'
_MODE: Final = rb'"((?:1|2|4|6|10|12|14)[0-7]{4})"'
_SHA256: Final = rb'"([0-9a-f]{64})"'
_XXH128: Final = rb'"([0-9a-f]{32})"'
# No quote, backslash, slash or control character.
_NAME: Final = rb'"([^\x00-\x1f"/\\\x7f]{1,255})"'


def _line(**values: bytes) -> re.Pattern[bytes]:
    """An object with these keys, in this order, as `encode_entry` writes it."""
    fields = (b'"%b":%b' % (key.encode("ascii"), value) for key, value in values.items())
    return re.compile(rb"\{" + b",".join(fields) + rb"\}\n?")


_HASHES: Final = rb'(?:,"sha256":%b)?(?:,"xxh128":%b)?' % (_SHA256, _XXH128)
_INODE: Final = _line(
    inode=_INO,
    mode=_MODE,
    uid=_NUMBER_32,
    gid=_NUMBER_32,
    size=_NUMBER,
    rdev=_NUMBER_32,
    atime=_TIME,
    mtime=_TIME,
    ctime=_TIME + _HASHES,
)
_EXTENT: Final = _line(
    extent=_INO, offset=_NUMBER, length=_NUMBER, position=_NUMBER, sha256=_SHA256
)
_LINK: Final = _line(link=_INO, parent=_INO, name=_NAME)
_UNLINK: Final = _line(unlink=_INO, name=_NAME)


def plain_entry(line: bytes) -> Entry | None:
    """The entry of a line in the plain form; None for any other line, right or wrong."""
    reader = _READERS.get(line[2:5])
    return reader(line) if reader else None


def _inode(line: bytes) -> InodeEntry | None:
    match = _INODE.fullmatch(line)
    if match is None:
        return None
    ino, mode, uid, gid, size, rdev, atime, mtime, ctime, sha256, xxh128 = match.groups()
    return InodeEntry(
        int(ino),
        int(mode, 8),
        int(uid),
        int(gid),
        int(size),
        int(rdev),
        int(atime),
        int(mtime),
        int(ctime),
        None,
        unhexlify(sha256) if sha256 else None,
        unhexlify(xxh128) if xxh128 else None,
    )


def _extent(line: bytes) -> ExtentEntry | None:
    match = _EXTENT.fullmatch(line)
    if match is None:
        return None
    ino, offset, length, position, sha256 = match.groups()
    return ExtentEntry(int(ino), int(offset), int(length), int(position), unhexlify(sha256))


def _link(line: bytes) -> LinkEntry | None:
    match = _LINK.fullmatch(line)
    if match is None or not _is_name(match[3]):
        return None
    return LinkEntry(int(match[2]), match[3], int(match[1]))


def _unlink(line: bytes) -> UnlinkEntry | None:
    match = _UNLINK.fullmatch(line)
    if match is None or not _is_name(match[2]):
        return None
    return UnlinkEntry(int(match[1]), match[2])


def _is_name(raw: bytes) -> bool:
    if raw in (b".", b".."):
        return False
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


# By what follows the first quote.
_READERS: Final[dict[bytes, Callable[[bytes], Entry | None]]] = {
    b"ino": _inode,
    b"ext": _extent,
    b"lin": _link,
    b"unl": _unlink,
}
