"""Reading pax archive headers from tape: ours, and what GNU tar and bsdtar write. No I/O.

What stands on a tape is not believed: numbers are bounded, paths stay below the root, and a
malformed byte raises CorruptHeader, never anything else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tapefs.entries import TapeFileKind
from tapefs.errors import DamagedTape
from tapefs.volume.acl import ACCESS_XATTR, DEFAULT_XATTR, acl_from_text
from tapefs.volume.names import NAME_BYTES_MAX
from tapefs.volume.pax import BLOCK_BYTES, Member, MemberKind, TapeFileHead, pad_length

if TYPE_CHECKING:
    from collections.abc import Iterator

EXTENDED_READ_BYTES_MAX: Final = 1024 * 1024
PATH_READ_BYTES_MAX: Final = 65_535
# x, g, L and K headers that may stand before one ustar header.
_EXTENSIONS_MAX: Final = 8

BytesLike = bytes | bytearray | memoryview

_INT64_MAX: Final = 2**63 - 1
_UINT32_MAX: Final = 2**32 - 1
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_KINDS: Final = {kind.value: kind for kind in MemberKind} | {
    b"\0": MemberKind.FILE,
    b"7": MemberKind.FILE,
}
_DEVICES: Final = (MemberKind.CHARACTER_DEVICE, MemberKind.BLOCK_DEVICE)
_OCTAL: Final = re.compile(rb" *([0-7]*)[ \0]*")
_DECIMAL: Final = re.compile(rb"[0-9]{1,19}")
_TIME: Final = re.compile(rb"(-?)([0-9]{1,11})(?:\.([0-9]{0,18}))?")
_XATTR: Final = b"SCHILY.xattr."
_HEAD: Final = re.compile(
    rb"tapefs format=([0-9]{1,9}) volume=([0-9a-f-]{36}) sequence=([0-9]{1,18})"
    rb" kind=(segment|checkpoint) checkpoint=([0-9]{1,18})"
)


class CorruptHeader(DamagedTape):
    """The bytes where an archive header must stand are not one that may be trusted."""


@dataclass(frozen=True, slots=True)
class NeedMore:
    """The header goes on: call again with at least `total_bytes` from the same start."""

    total_bytes: int


@dataclass(frozen=True, slots=True)
class MemberHeader:
    """A member's headers took `header_bytes`; its data (`member.size` bytes) follows."""

    member: Member
    header_bytes: int

    @property
    def data_and_pad_bytes(self) -> int:
        """Distance from the end of the headers to the next header."""
        return self.member.size + pad_length(self.member.size)


@dataclass(frozen=True, slots=True)
class GlobalHeader:
    """A `g` header of `header_bytes`; `head` when it is the one that opens a tape file."""

    head: TapeFileHead | None
    header_bytes: int


@dataclass(frozen=True, slots=True)
class EndOfArchive:
    """The two zero blocks that end an archive."""

    header_bytes: int = 2 * BLOCK_BYTES


ParsedHeader = MemberHeader | GlobalHeader | EndOfArchive | NeedMore


class HeaderReader:
    """Parses one archive's headers in order; remembers what its global headers set."""

    def __init__(self) -> None:
        self._defaults: dict[bytes, bytes] = {}

    def parse(self, data: BytesLike) -> ParsedHeader:
        """What stands at the start of `data`, which must be a header boundary.

        Raises CorruptHeader. Takes bounded memory: NeedMore never asks for more than eight
        extended headers of 1 MiB.
        """
        view = memoryview(data).cast("B")
        position = 0
        fields: dict[bytes, bytes] = {}
        for _ in range(_EXTENSIONS_MAX):
            if len(view) < position + BLOCK_BYTES:
                return NeedMore(position + BLOCK_BYTES)
            block = bytes(view[position : position + BLOCK_BYTES])
            if block == _ZERO_BLOCK:
                return _end_of_archive(view, position)
            check_header_sum(block)
            typeflag = block[156:157]
            if typeflag not in b"xgLK":
                member = _member(block, self._defaults | fields)
                return MemberHeader(member, position + BLOCK_BYTES)
            size = _number(block[124:136], "size")
            if not 0 <= size <= EXTENDED_READ_BYTES_MAX:
                raise CorruptHeader(f"an extended header claims {size} bytes")
            end = position + BLOCK_BYTES + size
            next_position = end + pad_length(size)
            if len(view) < next_position:
                return NeedMore(next_position)
            body = bytes(view[position + BLOCK_BYTES : end])
            position = next_position
            if typeflag == b"g":
                return self._global(body, position, alone=not fields)
            fields |= _extension_fields(typeflag, body)
        raise CorruptHeader("too many extended headers in a row")

    def _global(self, body: bytes, header_bytes: int, *, alone: bool) -> GlobalHeader:
        if not alone:
            raise CorruptHeader("a global header stands between a member's headers")
        records = dict(_records(body))
        comment = records.pop(b"comment", b"")
        self._defaults |= records
        return GlobalHeader(parse_tape_file_head(comment), header_bytes)


def parse_tape_file_head(comment: bytes) -> TapeFileHead | None:
    """What a global header's comment states; None if it is not one that opens a tape file."""
    match = _HEAD.fullmatch(comment)
    if match is None:
        return None
    try:
        volume_uuid = UUID(match[2].decode("ascii"))
    except ValueError:
        return None
    kind = TapeFileKind(match[4].decode("ascii"))
    return TapeFileHead(volume_uuid, int(match[3]), kind, int(match[5]), int(match[1]))


def check_header_sum(block: bytes) -> None:
    """Raise CorruptHeader unless `block` is 512 bytes with a right ustar magic and checksum."""
    if len(block) != BLOCK_BYTES or block[257:262] != b"ustar":
        raise CorruptHeader("no archive header where one must stand")
    stored = _number(block[148:156], "checksum")
    if stored != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise CorruptHeader("an archive header's checksum is wrong")


def _end_of_archive(view: memoryview, position: int) -> EndOfArchive | NeedMore:
    if position:
        raise CorruptHeader("an extended header is followed by no member")
    if len(view) < 2 * BLOCK_BYTES:
        return NeedMore(2 * BLOCK_BYTES)
    if view[BLOCK_BYTES : 2 * BLOCK_BYTES] != _ZERO_BLOCK:
        raise CorruptHeader("a lone zero block stands between members")
    return EndOfArchive()


def _extension_fields(typeflag: bytes, body: bytes) -> dict[bytes, bytes]:
    if typeflag == b"x":
        return dict(_records(body))
    keyword = b"path" if typeflag == b"L" else b"linkpath"
    return {keyword: body.removesuffix(b"\0")}


def _records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of an extended header, `LENGTH KEYWORD=VALUE\\n` each."""
    position = 0
    while position < len(body):
        space = body.find(b" ", position, position + 8)
        digits = body[position:space]
        if space < 0 or not _DECIMAL.fullmatch(digits):
            raise CorruptHeader("a record of an extended header has no length")
        end = position + int(digits)
        if not space < end <= len(body) or body[end - 1] != ord("\n"):
            raise CorruptHeader("a record of an extended header has a wrong length")
        keyword, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not keyword:
            raise CorruptHeader("a record of an extended header has no keyword")
        yield keyword, value
        position = end


def _member(block: bytes, fields: dict[bytes, bytes]) -> Member:
    kind = _KINDS.get(block[156:157])
    if kind is None:
        raise CorruptHeader(f"unknown kind of member {block[156:157]!r}")
    path = _path(fields.get(b"path"), block)
    # Archives older than ustar mark a directory by its trailing slash alone.
    if kind is MemberKind.FILE and path.endswith(b"/"):
        kind = MemberKind.DIRECTORY
    size = _field_number(fields, b"size", block[124:136], _INT64_MAX)
    if kind is not MemberKind.FILE and size:
        raise CorruptHeader("a member that is no file claims to have data")
    linkpath = b""
    if kind in (MemberKind.SYMLINK, MemberKind.HARD_LINK):
        linkpath = _linkpath(kind, fields.get(b"linkpath"), block)
    return Member(
        path=contained_path(path, is_directory=kind is MemberKind.DIRECTORY),
        kind=kind,
        mode=_number(block[100:108], "mode") & 0o7777,
        uid=_field_number(fields, b"uid", block[108:116], _UINT32_MAX),
        gid=_field_number(fields, b"gid", block[116:124], _UINT32_MAX),
        size=size,
        mtime_ns=_time_ns(fields.get(b"mtime"), block[136:148]),
        linkpath=linkpath,
        rdev=_rdev(block) if kind in _DEVICES else 0,
        xattrs=_xattrs(fields),
        comment=fields.get(b"comment", b""),
    )


def _path(stated: bytes | None, block: bytes) -> bytes:
    if stated is not None:
        return stated
    name = block[:100].partition(b"\0")[0]
    # GNU's magic is "ustar  \0", and its prefix field holds other things.
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def contained_path(path: bytes, *, is_directory: bool = False) -> bytes:
    """`path` without `.` and empty components. Raises CorruptHeader if it could leave the root."""
    if not path or len(path) > PATH_READ_BYTES_MAX or b"\0" in path:
        raise CorruptHeader("a member's path is empty, too long or holds a NUL")
    if path.startswith(b"/"):
        raise CorruptHeader("a member's path is absolute")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise CorruptHeader("a member's path leaves the archive's root")
    if any(len(part) > NAME_BYTES_MAX for part in parts):
        raise CorruptHeader("a member's path has a component of more than 255 bytes")
    if not parts and not is_directory:
        raise CorruptHeader("a member's path names nothing")
    return b"/".join(parts) or b"."


def _linkpath(kind: MemberKind, stated: bytes | None, block: bytes) -> bytes:
    linkpath = block[157:257].partition(b"\0")[0] if stated is None else stated
    if kind is MemberKind.HARD_LINK:
        return contained_path(linkpath)
    if not linkpath or len(linkpath) > PATH_READ_BYTES_MAX or b"\0" in linkpath:
        raise CorruptHeader("a symlink's target is empty, too long or holds a NUL")
    return linkpath


def _number(field: bytes, what: str) -> int:
    """A numeric field of a ustar header: octal, or base-256 when the high bit is set."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") - (1 << bits)
        return value - (1 << bits) if field[0] & 0x40 else value
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise CorruptHeader(f"the {what} in an archive header is no number")
    return int(match[1] or b"0", 8)


def _field_number(fields: dict[bytes, bytes], keyword: bytes, raw: bytes, limit: int) -> int:
    stated = fields.get(keyword)
    what = keyword.decode("ascii")
    if stated is None:
        value = _number(raw, what)
    elif _DECIMAL.fullmatch(stated):
        value = int(stated)
    else:
        raise CorruptHeader(f"the {what} in an extended header is no number")
    if not 0 <= value <= limit:
        raise CorruptHeader(f"the {what} in an archive header is out of range")
    return value


def _time_ns(stated: bytes | None, raw: bytes) -> int:
    if stated is None:
        time_ns = _number(raw, "mtime") * 10**9
    else:
        match = _TIME.fullmatch(stated)
        if match is None:
            raise CorruptHeader("the mtime in an extended header is no time")
        time_ns = int(match[2]) * 10**9 + int((match[3] or b"").ljust(9, b"0")[:9])
        time_ns = -time_ns if match[1] else time_ns
    if not -_INT64_MAX - 1 <= time_ns <= _INT64_MAX:
        raise CorruptHeader("the mtime in an archive header is out of range")
    return time_ns


def _rdev(block: bytes) -> int:
    major = _number(block[329:337], "device number")
    minor = _number(block[337:345], "device number")
    if not 0 <= major <= 0xFFF or not 0 <= minor <= 0xFFFFF:
        raise CorruptHeader("the device number in an archive header is out of range")
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _xattrs(fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    xattrs = {}
    for keyword, value in fields.items():
        if keyword.startswith(_XATTR):
            name = keyword[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            if not name or len(name) > 255 or b"\0" in name or len(value) > 65_536:
                raise CorruptHeader("an extended attribute's name or value is out of range")
            xattrs[name] = value
    for keyword, name in (
        (b"SCHILY.acl.access", ACCESS_XATTR),
        (b"SCHILY.acl.default", DEFAULT_XATTR),
    ):
        binary = acl_from_text(fields.get(keyword, b""))
        if binary is not None:
            xattrs[name] = binary
    return xattrs
