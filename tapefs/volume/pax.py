"""Writing pax archive headers (POSIX.1-2001, IEEE Std 1003.1 "pax Interchange Format"). No I/O.

A member is: an extended header `x` if it needs one, a ustar header of 512 bytes, the data, zeros
up to a multiple of 512. Only keywords are used that GNU tar, bsdtar, star and Python's tarfile
take without a word; what only tapefs needs rides in `comment`. `pax_reader` reads this back.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tapefs.volume.acl import ACCESS_XATTR, DEFAULT_XATTR, acl_to_text

if TYPE_CHECKING:
    from uuid import UUID

    from tapefs.entries import TapeFileKind

FORMAT_VERSION: Final = 1
BLOCK_BYTES: Final = 512
END_OF_ARCHIVE: Final = bytes(2 * BLOCK_BYTES)
# libarchive refuses extended headers of more than 1 MiB, other readers stop before that.
EXTENDED_BYTES_MAX: Final = 1_000_000
# MirBSD's pax stops at comment records of about 1 KB, star at 64 KB.
COMMENT_RECORD_BYTES_MAX: Final = 500
COMMENT_RECORD_BYTES_MIN: Final = len(b"12 comment=\n")
COMMENT_BYTES_MAX: Final = COMMENT_RECORD_BYTES_MAX - len(b"500 comment=\n")
# Names and values of all extended attributes of one inode; more cannot be put on tape.
XATTRS_BYTES_MAX: Final = 512 * 1024

_NAME_BYTES: Final = 100
_OCTAL_7: Final = 8**7
_OCTAL_11: Final = 8**11
_INT64_MAX: Final = 2**63 - 1
_NS: Final = 10**9
_MAGIC: Final = b"ustar\x0000" + bytes(64)
_NO_DEVICE: Final = b"0000000\x000000000\x00"
_PREFIX_AND_PAD: Final = bytes(155 + 12)
_TRAILER: Final = _MAGIC + _NO_DEVICE + _PREFIX_AND_PAD
# The checksum counts its own eight bytes as spaces (POSIX ustar header, `chksum`).
_TRAILER_SUM: Final = sum(_TRAILER) + 8 * ord(" ")
_HEADER_NAME: Final = b"././@PaxHeader"
_LONG_NAME: Final = b"././@LongLink"


class MemberKind(enum.Enum):
    """What a member is; the value is its ustar typeflag."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    CHARACTER_DEVICE = b"3"
    BLOCK_DEVICE = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


_DEVICES: Final = (MemberKind.CHARACTER_DEVICE, MemberKind.BLOCK_DEVICE)


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive.

    `path` is relative, without `.`, `..` or empty components, and without a trailing slash also
    for directories. `mode` is the twelve permission bits. `size` is in bytes and 0 unless the
    kind is FILE. `linkpath` is the target of a symlink or the member path a hard link repeats.
    `rdev` is Linux's dev_t. `comment` is at most COMMENT_BYTES_MAX bytes without a newline.
    """

    path: bytes
    kind: MemberKind = MemberKind.FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    linkpath: bytes = b""
    rdev: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    comment: bytes = b""


@dataclass(frozen=True, slots=True)
class TapeFileHead:
    """What the global header at the start of a tape file states.

    `checkpoint_block` is the first block of the last checkpoint before this tape file, 0 if none.
    """

    volume_uuid: UUID
    sequence: int
    kind: TapeFileKind
    checkpoint_block: int = 0
    format_version: int = FORMAT_VERSION


def pad_length(size: int) -> int:
    """Number of zero bytes that follow `size` bytes of data."""
    return -size % BLOCK_BYTES


def member_header(member: Member, comment: bytes | None = None) -> bytes:
    """Everything that stands before the member's data; a multiple of 512 bytes.

    `comment` stands for the member's own, if given.
    Raises ValueError for what no tape may hold (a caller's bug): oversized comments, xattrs or
    numbers. ACLs that are not valid stay out of the archive; the journal has them.
    """
    kind = member.kind
    path = member.path + b"/" if kind is MemberKind.DIRECTORY else member.path
    linkpath = member.linkpath
    seconds, nanoseconds = divmod(member.mtime_ns, _NS)
    long_names = records = b""
    if len(path) > _NAME_BYTES or not path.isascii():
        long_names, records = _long_name(path, b"path", b"L")
    if linkpath and (len(linkpath) > _NAME_BYTES or not linkpath.isascii()):
        long_link, record = _long_name(linkpath, b"linkpath", b"K")
        long_names += long_link
        records += record
    if nanoseconds or not 0 <= seconds < _OCTAL_11:
        records += _time_record(member.mtime_ns)
    if member.size >= _OCTAL_11 or member.uid >= _OCTAL_7 or member.gid >= _OCTAL_7:
        records += _big_number_records(member)
    if member.xattrs:
        records += _xattr_records(member.xattrs)
    comment = member.comment if comment is None else comment
    if comment:
        records += _comment_record(comment)
    header = _ustar_header(member, path, linkpath, seconds)
    return long_names + extended_header(records) + header if records else long_names + header


def global_header(head: TapeFileHead) -> bytes:
    """The `g` header that opens a tape file: 1,024 bytes."""
    comment = b"tapefs format=%d volume=%b sequence=%d kind=%b checkpoint=%d" % (
        head.format_version,
        str(head.volume_uuid).encode("ascii"),
        head.sequence,
        head.kind.on_tape.value.encode("ascii"),
        head.checkpoint_block,
    )
    return extended_header(_comment_record(comment), typeflag=b"g")


def extended_header(records: bytes, typeflag: bytes = b"x") -> bytes:
    """A whole extended header: its ustar header, `records`, zeros. Raises ValueError if too big."""
    if len(records) > EXTENDED_BYTES_MAX:
        raise ValueError(f"an extended header of {len(records)} bytes is too large")
    header = _named_ustar(_HEADER_NAME, len(records), typeflag)
    return header + records + bytes(pad_length(len(records)))


def pax_record(keyword: bytes, value: bytes) -> bytes:
    """One record, `LENGTH KEYWORD=VALUE\\n`, where LENGTH counts itself."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, keyword, value)


def comment_filler(length_bytes: int) -> bytes:
    """Records that say nothing and are `length_bytes` long: 0, or COMMENT_RECORD_BYTES_MIN up."""
    if 0 < length_bytes < COMMENT_RECORD_BYTES_MIN:
        raise ValueError(f"{length_bytes} bytes cannot be filled with comment records")
    fill = []
    while length_bytes:
        take = min(length_bytes, COMMENT_RECORD_BYTES_MAX)
        if 0 < length_bytes - take < COMMENT_RECORD_BYTES_MIN:
            take -= COMMENT_RECORD_BYTES_MIN
        spaces = take - COMMENT_RECORD_BYTES_MIN - (take >= 100)
        fill.append(b"%d comment=%b\n" % (take, b" " * spaces))
        length_bytes -= take
    return b"".join(fill)


def _ustar_header(member: Member, path: bytes, linkpath: bytes, seconds: int) -> bytes:
    name, link = path[:_NAME_BYTES], linkpath[:_NAME_BYTES]
    typeflag: bytes = member.kind.value
    if member.size < _OCTAL_11 > seconds >= 0 and member.uid < _OCTAL_7 > member.gid:
        numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (
            member.mode,
            member.uid,
            member.gid,
            member.size,
            seconds,
        )
    else:
        numbers = b"%07o\0" % member.mode + b"".join(
            (
                _number(member.uid, 8),
                _number(member.gid, 8),
                _number(member.size, 12),
                _number(seconds, 12),
            )
        )
    trailer, trailer_sum = _TRAILER, _TRAILER_SUM
    if member.kind in _DEVICES:
        trailer = _MAGIC + _device_numbers(member.rdev) + _PREFIX_AND_PAD
        trailer_sum = sum(trailer) + 8 * ord(" ")
    checksum = sum(name) + sum(numbers) + typeflag[0] + sum(link) + trailer_sum
    return b"".join(
        (
            name.ljust(_NAME_BYTES, b"\0"),
            numbers,
            b"%06o\0 " % checksum,
            typeflag,
            link.ljust(_NAME_BYTES, b"\0"),
            trailer,
        )
    )


@functools.lru_cache(maxsize=1024)
def _named_ustar(name: bytes, length: int, typeflag: bytes) -> bytes:
    """The ustar header of a header that has data of its own: typeflag g, x, L or K."""
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (0o644, 0, 0, length, 0)
    checksum = sum(name) + sum(numbers) + typeflag[0] + _TRAILER_SUM
    padded = name.ljust(_NAME_BYTES, b"\0")
    return padded + numbers + b"%06o\0 " % checksum + typeflag + bytes(_NAME_BYTES) + _TRAILER


def _number(value: int, width: int) -> bytes:
    """A numeric field: octal where it fits, else base-256 (GNU and star; high bit set)."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    field_bytes = value.to_bytes(width, "big", signed=True)
    return bytes((field_bytes[0] | 0x80,)) + field_bytes[1:]


def _device_numbers(rdev: int) -> bytes:
    """devmajor and devminor from Linux's dev_t (glibc sys/sysmacros.h)."""
    major = (rdev >> 8) & 0xFFF | (rdev >> 32) & ~0xFFF
    minor = rdev & 0xFF | (rdev >> 12) & 0xFFFFFF00
    if not 0 <= major < _OCTAL_7 or minor >= _OCTAL_7:
        raise ValueError(f"device number {rdev:#x} does not fit into an archive")
    return b"%07o\0%07o\0" % (major, minor)


def _long_name(name: bytes, keyword: bytes, typeflag: bytes) -> tuple[bytes, bytes]:
    """A GNU long-name header, or a pax record, for a name that plain ustar cannot say.

    Names in pax records are UTF-8. For others there is `hdrcharset=BINARY`, which GNU tar reports
    as unknown for each file; GNU's own older headers are raw bytes, and all readers know them. A
    short name that is not UTF-8 needs neither: the ustar field is raw bytes already.
    """
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        if len(name) <= _NAME_BYTES:
            return b"", b""
        header = _named_ustar(_LONG_NAME, len(name) + 1, typeflag)
        return header + name + bytes(1 + pad_length(len(name) + 1)), b""
    return b"", pax_record(keyword, name)


def _time_record(time_ns: int) -> bytes:
    if not -_INT64_MAX - 1 <= time_ns <= _INT64_MAX:
        raise ValueError(f"{time_ns} ns is no 64-bit time")
    if time_ns >= 0:
        text = b"%d.%09d" % divmod(time_ns, _NS)
    else:
        text = b"-%d.%09d" % divmod(-time_ns, _NS)
    return pax_record(b"mtime", text)


def _big_number_records(member: Member) -> bytes:
    if member.size > _INT64_MAX or member.uid >= 2**32 or member.gid >= 2**32:
        raise ValueError(f"size, uid or gid of {member.path!r} is out of range")
    records = b""
    if member.size >= _OCTAL_11:
        records += pax_record(b"size", b"%d" % member.size)
    if member.uid >= _OCTAL_7:
        records += pax_record(b"uid", b"%d" % member.uid)
    if member.gid >= _OCTAL_7:
        records += pax_record(b"gid", b"%d" % member.gid)
    return records


_ACL_KEYWORDS: Final = {
    ACCESS_XATTR: b"SCHILY.acl.access",
    DEFAULT_XATTR: b"SCHILY.acl.default",
}


def _xattr_records(xattrs: dict[bytes, bytes]) -> bytes:
    total_bytes = sum(map(len, xattrs)) + sum(map(len, xattrs.values()))
    if total_bytes > XATTRS_BYTES_MAX:
        raise ValueError(f"{total_bytes} bytes of extended attributes are more than fit on tape")
    records = []
    for name in sorted(xattrs):
        value = xattrs[name]
        if name in _ACL_KEYWORDS:
            text = acl_to_text(value)
            if text is not None:
                records.append(pax_record(_ACL_KEYWORDS[name], text))
        else:
            # GNU tar's escape: a keyword ends at the first '='.
            escaped = name.replace(b"%", b"%25").replace(b"=", b"%3D")
            records.append(pax_record(b"SCHILY.xattr." + escaped, value))
    return b"".join(records)


def _comment_record(comment: bytes) -> bytes:
    if len(comment) > COMMENT_BYTES_MAX:
        raise ValueError(f"a comment of {len(comment)} bytes is too long")
    return pax_record(b"comment", comment)
