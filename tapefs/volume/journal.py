"""The journal of a segment: JSON lines that say what changed, in the order to apply it. No I/O.

The first line is the head; entries and record CRCs follow in any mixture. Lines are written by
hand, since a segment may have 50,000 members; they are read by `json` and then checked field by
field, for a tape is not believed.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Final

from tapefs.entries import (
    INO_MAX,
    NO_XATTRS,
    Entry,
    ExtentEntry,
    InodeEntry,
    LinkEntry,
    UnlinkEntry,
)
from tapefs.errors import DamagedTape
from tapefs.volume.pax import FORMAT_VERSION, XATTRS_BYTES_MAX
from tapefs.volume.plain_line import plain_entry
from tapefs.volume.sealed_json import (
    MalformedJson,
    check_format,
    digest,
    parse_object,
    time_ns,
    uuid,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from uuid import UUID

# An inode with XATTRS_BYTES_MAX in base64, and its other fields.
LINE_BYTES_MAX: Final = 1024 * 1024
CRCS_PER_LINE_MAX: Final = 1024
CRC_BYTES: Final = 4
_NAME_BYTES_MAX: Final = 255
_TARGET_BYTES_MAX: Final = 4095
_XATTR_VALUE_BYTES_MAX: Final = 65_536
_UINT32_MAX: Final = 2**32 - 1


class CorruptJournal(DamagedTape):
    """A journal line that no writer of this format makes."""


@dataclass(frozen=True, slots=True)
class JournalHead:
    """The first line: whose journal this is."""

    volume_uuid: UUID
    sequence: int
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class RecordCrcs:
    """CRC-32C of successive records of this tape file, from record `first_record` on.

    Four bytes each, most significant first; at most CRCS_PER_LINE_MAX of them.
    """

    first_record: int
    crcs: bytes


JournalLine = JournalHead | Entry | RecordCrcs


def encode_head(head: JournalHead) -> bytes:
    """The head line."""
    return b'{"tapefs":"journal","format":%d,"volume":"%b","sequence":%d}\n' % (
        head.format_version,
        str(head.volume_uuid).encode("ascii"),
        head.sequence,
    )


def encode_entry(entry: Entry) -> bytes:
    """One entry as a line. Raises ValueError for xattrs that exceed XATTRS_BYTES_MAX."""
    return _ENCODERS[type(entry)](entry)


def encode_crcs(crcs: RecordCrcs) -> Iterator[bytes]:
    """The lines for the CRCs of any number of records."""
    step = CRCS_PER_LINE_MAX * CRC_BYTES
    for start in range(0, len(crcs.crcs), step):
        yield b'{"crc32c":"%b","first_record":%d}\n' % (
            b64encode(crcs.crcs[start : start + step]),
            crcs.first_record + start // CRC_BYTES,
        )


def decode_line(line: bytes) -> JournalLine:
    """What one line says; the newline may be there or not. Raises CorruptJournal."""
    if len(line) > LINE_BYTES_MAX:
        raise CorruptJournal("a line of a segment's journal is too long")
    entry = plain_entry(line)
    return decode_json_line(line) if entry is None else entry


def decode_json_line(line: bytes) -> JournalLine:
    """The same, whatever form of JSON the line has. Raises CorruptJournal."""
    try:
        fields = parse_object(line)
        return _DECODERS.get(next(iter(fields), ""), _refuse)(fields)
    except MalformedJson as exc:
        raise CorruptJournal(f"a line of a segment's journal cannot be used: {exc}") from exc


class JournalDecoder:
    """Cuts a journal that arrives in pieces into lines, holding one unfinished line at most.

    The first line must be the head for `volume_uuid` and `sequence`; it is checked, not returned.
    """

    def __init__(self, volume_uuid: UUID, sequence: int) -> None:
        self._expected = JournalHead(volume_uuid, sequence)
        self._head_seen = False
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Entry | RecordCrcs]:
        """Everything that `data` completes. Must be consumed. Raises CorruptJournal."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LINE_BYTES_MAX:
            raise CorruptJournal("a line of a segment's journal is too long")
        for line in lines:
            decoded = decode_line(line)
            if isinstance(decoded, JournalHead):
                self._check_head(decoded)
            elif not self._head_seen:
                raise CorruptJournal("a segment's journal does not start with its head")
            else:
                yield decoded

    def finish(self) -> None:
        """To be called after the last piece. Raises CorruptJournal if the journal is cut off."""
        if self._rest or not self._head_seen:
            raise CorruptJournal("a segment's journal is cut off")

    def _check_head(self, head: JournalHead) -> None:
        if self._head_seen or head != self._expected:
            raise CorruptJournal("a segment's journal belongs to another tape file")
        self._head_seen = True


def _text(name: bytes) -> str:
    """A name as JSON: a string when it is UTF-8, else an object with its base64."""
    try:
        return encode_basestring(name.decode("utf-8"))
    except UnicodeDecodeError:
        return f'{{"b64":"{b64encode(name).decode("ascii")}"}}'


def _encode_inode(entry: InodeEntry) -> bytes:
    text = (
        f'{{"inode":{entry.ino},"mode":"{entry.mode:o}","uid":{entry.uid},"gid":{entry.gid},'
        f'"size":{entry.size},"rdev":{entry.rdev},"atime":"{entry.atime_ns}",'
        f'"mtime":"{entry.mtime_ns}","ctime":"{entry.ctime_ns}"'
    )
    if entry.target is not None:
        text += f',"target":{_text(entry.target)}'
    if entry.sha256 is not None:
        text += f',"sha256":"{entry.sha256.hex()}"'
    if entry.xxh128 is not None:
        text += f',"xxh128":"{entry.xxh128.hex()}"'
    if entry.xattrs:
        text += f',"xattrs":[{_xattrs_text(entry.xattrs)}]'
    return (text + "}\n").encode("utf-8")


def _xattrs_text(xattrs: Mapping[bytes, bytes]) -> str:
    if sum(map(len, xattrs)) + sum(map(len, xattrs.values())) > XATTRS_BYTES_MAX:
        raise ValueError("more extended attributes than fit on tape")
    return ",".join(
        f'[{_text(name)},"{b64encode(xattrs[name]).decode("ascii")}"]' for name in sorted(xattrs)
    )


def _encode_extent(entry: ExtentEntry) -> bytes:
    return (
        f'{{"extent":{entry.ino},"offset":{entry.offset},"length":{entry.length},'
        f'"position":{entry.position},"sha256":"{entry.sha256.hex()}"}}\n'
    ).encode("ascii")


def _encode_link(entry: LinkEntry) -> bytes:
    return f'{{"link":{entry.ino},"parent":{entry.parent},"name":{_text(entry.name)}}}\n'.encode()


def _encode_unlink(entry: UnlinkEntry) -> bytes:
    return f'{{"unlink":{entry.parent},"name":{_text(entry.name)}}}\n'.encode()


_ENCODERS: Final[dict[type, Callable[[Any], bytes]]] = {
    InodeEntry: _encode_inode,
    ExtentEntry: _encode_extent,
    LinkEntry: _encode_link,
    UnlinkEntry: _encode_unlink,
}


def _bytes_of(value: object, maximum: int) -> bytes:
    """What `_text` made, if it is 1..maximum bytes and holds no NUL. Raises MalformedJson."""
    if type(value) is str:
        try:
            raw = value.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise MalformedJson("a name holds half a character") from exc
    elif type(value) is dict:
        raw = _base64(value.get("b64"))
    else:
        raise MalformedJson("a name is missing")
    if not 0 < len(raw) <= maximum or b"\0" in raw:
        raise MalformedJson("a name is empty, too long or holds a NUL")
    return raw


def _base64(value: object) -> bytes:
    if type(value) is not str:
        raise MalformedJson("base64 is missing")
    try:
        return b64decode(value, validate=True)
    except ValueError as exc:
        raise MalformedJson("base64 is malformed") from exc


def _file_name(value: object) -> bytes:
    name = _bytes_of(value, _NAME_BYTES_MAX)
    if b"/" in name or name in (b".", b".."):
        raise MalformedJson("a name in a directory is no plain name")
    return name


def _ino(value: object) -> int:
    ino = whole_number(value, INO_MAX)
    if ino == 0:
        raise MalformedJson("an inode number is 0")
    return ino


def _refuse(_fields: dict[str, Any]) -> JournalLine:
    raise MalformedJson("it is of an unknown kind")


def _decode_head(fields: dict[str, Any]) -> JournalHead:
    check_format(fields, "journal", FORMAT_VERSION)
    return JournalHead(uuid(fields.get("volume")), whole_number(fields.get("sequence")))


def _decode_inode(fields: dict[str, Any]) -> InodeEntry:
    get = fields.get
    return InodeEntry(
        ino=_ino(fields["inode"]),
        mode=_mode(get("mode")),
        uid=whole_number(get("uid"), _UINT32_MAX),
        gid=whole_number(get("gid"), _UINT32_MAX),
        size=whole_number(get("size")),
        rdev=whole_number(get("rdev"), _UINT32_MAX),
        atime_ns=time_ns(get("atime")),
        mtime_ns=time_ns(get("mtime")),
        ctime_ns=time_ns(get("ctime")),
        target=_bytes_of(fields["target"], _TARGET_BYTES_MAX) if "target" in fields else None,
        sha256=digest(fields["sha256"], 32) if "sha256" in fields else None,
        xxh128=digest(fields["xxh128"], 16) if "xxh128" in fields else None,
        xattrs=_xattrs(fields["xattrs"]) if "xattrs" in fields else NO_XATTRS,
    )


def _mode(value: object) -> int:
    """Type and permission bits, written in octal; the type must be one of the seven."""
    try:
        mode = int(value, 8) if type(value) is str and value.isdecimal() else -1
    except ValueError as exc:
        raise MalformedJson("a mode is not octal") from exc
    if mode >> 12 not in (0o01, 0o02, 0o04, 0o06, 0o10, 0o12, 0o14):
        raise MalformedJson("a mode is missing or names no type of file")
    return mode


def _xattrs(value: object) -> dict[bytes, bytes]:
    if type(value) is not list:
        raise MalformedJson("the extended attributes are no list")
    xattrs = {}
    total_bytes = 0
    for pair in value:
        if type(pair) is not list or len(pair) != 2:
            raise MalformedJson("an extended attribute is no pair")
        name, content = _bytes_of(pair[0], _NAME_BYTES_MAX), _base64(pair[1])
        total_bytes += len(name) + len(content)
        if len(content) > _XATTR_VALUE_BYTES_MAX or total_bytes > XATTRS_BYTES_MAX:
            raise MalformedJson("an extended attribute is too long")
        xattrs[name] = content
    return xattrs


def _decode_extent(fields: dict[str, Any]) -> ExtentEntry:
    entry = ExtentEntry(
        _ino(fields["extent"]),
        whole_number(fields.get("offset")),
        whole_number(fields.get("length")),
        whole_number(fields.get("position")),
        digest(fields.get("sha256"), 32),
    )
    whole_number(entry.offset + entry.length)
    whole_number(entry.position + entry.length)
    return entry


def _decode_link(fields: dict[str, Any]) -> LinkEntry:
    name = _file_name(fields.get("name"))
    return LinkEntry(_ino(fields.get("parent")), name, _ino(fields["link"]))


def _decode_unlink(fields: dict[str, Any]) -> UnlinkEntry:
    return UnlinkEntry(_ino(fields["unlink"]), _file_name(fields.get("name")))


def _decode_crcs(fields: dict[str, Any]) -> RecordCrcs:
    crcs = _base64(fields["crc32c"])
    if not crcs or len(crcs) % CRC_BYTES or len(crcs) > CRCS_PER_LINE_MAX * CRC_BYTES:
        raise MalformedJson("its record checksums have a wrong length")
    return RecordCrcs(whole_number(fields.get("first_record")), crcs)


_DECODERS: Final[dict[str, Callable[[dict[str, Any]], JournalLine]]] = {
    "tapefs": _decode_head,
    "inode": _decode_inode,
    "extent": _decode_extent,
    "link": _decode_link,
    "unlink": _decode_unlink,
    "crc32c": _decode_crcs,
}
