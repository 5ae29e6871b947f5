"""The label: tape file 0, one record of 10,240 bytes that says which volume this is.

It is a plain ustar archive, so that `tar xvf` on the tape device, with no option and no idea what
tapefs was, yields a README that explains how to get everything else. No I/O here.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tapefs.errors import DamagedTape, ForeignTape, WrongTape
from tapefs.geometry import LABEL_BYTES, Geometry
from tapefs.volume.pax import (
    END_OF_ARCHIVE,
    FORMAT_VERSION,
    Member,
    member_header,
    pad_length,
)
from tapefs.volume.pax_reader import BytesLike, CorruptHeader, HeaderReader, MemberHeader
from tapefs.volume.sealed_json import (
    MalformedJson,
    check_format,
    parse_object,
    seal,
    unseal,
    uuid,
    whole_number,
)

if TYPE_CHECKING:
    from uuid import UUID

NAME_CHARACTERS_MAX: Final = 64
RECORD_BYTES_MIN: Final = 64 * 1024
RECORD_BYTES_MAX: Final = 1024 * 1024

_README_PATH: Final = b"README.txt"
_LABEL_PATH: Final = b"tapefs-label.json"
_NS: Final = 10**9
_CREATED: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})Z", re.ASCII)
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_CREATED_NS_MAX: Final = 2**63 - 1


class UnsupportedFormat(WrongTape):
    """The tape is a tapefs volume of a format that is newer than this program."""


@dataclass(frozen=True, slots=True)
class Label:
    """Identity of a volume.

    `name` is for people: 1 to 64 printable characters. `record_bytes` is the size of every record
    after the label, a power of two from 64 KiB to 1 MiB. `block_bytes` is the length of every block
    of the tape where that is fixed, else 0.
    """

    volume_uuid: UUID
    name: str
    record_bytes: int
    created_ns: int
    block_bytes: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def geometry(self) -> Geometry:
        """How this volume's records lie on blocks."""
        return Geometry(self.record_bytes, self.block_bytes)


def encode_label(label: Label) -> bytes:
    """The label's record. Raises ValueError for a label that `Label` does not allow."""
    if not is_valid_name(label.name) or not is_valid_record_size(label.record_bytes):
        raise ValueError(f"no valid label: {label}")
    if not Geometry.is_block_size(label.block_bytes):
        raise ValueError(f"no volume has blocks of {label.block_bytes} bytes")
    if not 0 <= label.created_ns <= _CREATED_NS_MAX:
        raise ValueError("a volume cannot have been created before 1970")
    fields: dict[str, object] = {
        "tapefs": "label",
        "format": label.format_version,
        "volume": str(label.volume_uuid),
        "name": label.name,
        "record_bytes": label.record_bytes,
        **({"block_bytes": label.block_bytes} if label.block_bytes else {}),
        "created": _rfc3339(label.created_ns),
        "software": "tapefs",
    }
    readme = (
        README.replace("@NAME@", label.name)
        .replace("@VOLUME@", str(label.volume_uuid))
        .replace("@CREATED@", _rfc3339(label.created_ns))
        .replace("@RECORD_BYTES@", str(label.record_bytes))
        .replace("@FACTOR@", str(label.record_bytes // 512))
        .replace("@SETBLK@", f"setblk {label.block_bytes}".ljust(len("setblk 0    ")))
        .replace("@BLOCKS@", _FIXED if label.block_bytes else _VARIABLE)
    )
    created_ns = label.created_ns - label.created_ns % _NS
    archive = _file(_README_PATH, readme.encode("utf-8"), created_ns)
    archive += _file(_LABEL_PATH, seal(fields), created_ns)
    archive += END_OF_ARCHIVE
    if len(archive) > LABEL_BYTES:
        raise ValueError("the label does not fit into its record")
    return archive.ljust(LABEL_BYTES, b"\0")


def decode_label(block: BytesLike) -> Label:
    """The label in the first record of a tape.

    Raises ForeignTape if the record is nothing of ours, DamagedTape if it is a label of ours that
    cannot be understood, UnsupportedFormat if only a newer tapefs can read this volume.
    """
    record = bytes(memoryview(block)[: LABEL_BYTES + 1])
    data = _label_data(record)
    try:
        version = parse_object(data).get("format")
        if type(version) is int and version > FORMAT_VERSION:
            raise UnsupportedFormat(
                f"this volume has tapefs format {version}, and this program reads only format "
                f"{FORMAT_VERSION}; use a newer tapefs, or read it with mt and tar"
            )
        return _label_from(unseal(data))
    except MalformedJson as exc:
        raise DamagedTape(
            f"the label of this tapefs volume cannot be used: {exc}; "
            "its files can still be read with mt and tar"
        ) from exc


def is_valid_name(name: str) -> bool:
    """Whether `name` may be a volume's name."""
    return 0 < len(name) <= NAME_CHARACTERS_MAX and name.isprintable()


def is_valid_record_size(record_bytes: int) -> bool:
    """Whether records may have this size: a power of two, 64 KiB to 1 MiB."""
    power_of_two = record_bytes & (record_bytes - 1) == 0
    return power_of_two and RECORD_BYTES_MIN <= record_bytes <= RECORD_BYTES_MAX


def _file(path: bytes, data: bytes, mtime_ns: int) -> bytes:
    header = member_header(Member(path, size=len(data), mtime_ns=mtime_ns))
    return header + data + bytes(pad_length(len(data)))


def _label_data(record: bytes) -> bytes:
    """Data of the label member."""
    try:
        position, size = _find_label_member(record)
    except CorruptHeader as exc:
        if _LABEL_PATH in record:
            raise DamagedTape(
                "this tape has a damaged tapefs label; its files can still be read with mt and tar"
            ) from exc
        raise ForeignTape(
            "this tape holds data that is not a tapefs volume; insert another tape, "
            "or erase this one with 'tapefs format --force'"
        ) from exc
    if position + size > len(record):
        raise DamagedTape("the tapefs label on this tape is cut off; try another drive")
    return record[position : position + size]


def _find_label_member(record: bytes) -> tuple[int, int]:
    """Position and size of the label member's data. Raises CorruptHeader if there is none."""
    reader, position = HeaderReader(), 0
    while True:
        header = reader.parse(record[position:])
        if not isinstance(header, MemberHeader):
            raise CorruptHeader("no label member")
        position += header.header_bytes
        if header.member.path == _LABEL_PATH:
            return position, header.member.size
        position += header.data_and_pad_bytes


def _label_from(fields: dict[str, Any]) -> Label:
    check_format(fields, "label", FORMAT_VERSION)
    name, record_bytes = fields.get("name"), whole_number(fields.get("record_bytes"))
    if type(name) is not str or not is_valid_name(name):
        raise MalformedJson("the volume's name is missing or not printable")
    if not is_valid_record_size(record_bytes):
        raise MalformedJson("the record size is not a power of two from 64 KiB to 1 MiB")
    block_bytes = whole_number(fields.get("block_bytes", 0))
    if not Geometry.is_block_size(block_bytes):
        raise MalformedJson("the block length is not 512, 1024 or 2048 bytes")
    created_ns = _parse_rfc3339(fields.get("created"))
    return Label(uuid(fields.get("volume")), name, record_bytes, created_ns, block_bytes)


def _rfc3339(time_ns: int) -> str:
    seconds, nanoseconds = divmod(time_ns, _NS)
    moment = dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _parse_rfc3339(text: object) -> int:
    match = _CREATED.fullmatch(text) if type(text) is str else None
    if match is None:
        raise MalformedJson("the time of creation is missing or malformed")
    try:
        moment = dt.datetime.strptime(match[1] + "+0000", "%Y-%m-%dT%H:%M:%S%z")
    except ValueError as exc:
        raise MalformedJson("the time of creation is no time") from exc
    seconds = (moment - _EPOCH) // dt.timedelta(seconds=1)
    created_ns = seconds * _NS + int(match[2])
    if not 0 <= created_ns <= _CREATED_NS_MAX:
        raise MalformedJson("the time of creation is out of range")
    return created_ns


_VARIABLE: Final = "(records of any size)"
_FIXED: Final = "(all blocks have this size)"
README: Final = """\
THIS IS A TAPEFS VOLUME

  name      @NAME@
  volume    @VOLUME@
  created   @CREATED@
  records   @RECORD_BYTES@ bytes each, after this first one of 10240 bytes

Everything on this tape can be read with the programs `mt` and `tar`, without
the software that wrote it. This text is in tape file 0. Each tape file after it
is an ordinary POSIX (pax) tar archive. In what follows, /dev/nst0 is the tape
drive that does NOT rewind by itself; other systems call it something else.

1. RESTORE, TAPE FILE BY TAPE FILE, IN THE ORDER IN WHICH THEY WERE WRITTEN

  mt -f /dev/nst0 @SETBLK@      @BLOCKS@
  mt -f /dev/nst0 rewind
  mt -f /dev/nst0 fsf 1             (skip this text)
  cd /a/directory/with/room

and then, until `mt` says that there is no next tape file:

  tar -b @FACTOR@ --xattrs --xattrs-include='*' --acls -xpf /dev/nst0
  (steps 2 and 3)
  mt -f /dev/nst0 fsf 1

Later tape files hold newer versions of the same files. If `tar` cannot read
records as large as these, use: dd if=/dev/nst0 bs=@RECORD_BYTES@ | tar -xpf -

2. WAS IT READ RIGHT? `tar` cannot know. For tape file 1 (then 2, 3, ...), in the
   same directory:

  sha256sum -c .tapefs/segments/00000001.sha256

3. JOIN FILES THAT CAME IN PARTS. Large and changed files may come as
   NAME.tapefs-part-OFFSET-N: bytes of NAME from OFFSET on, in tape file N. This
   puts them where they belong; do it after each tape file:

  find . -name '*.tapefs-part-*' -exec sh -c '
    for part; do
      offset=${part##*.tapefs-part-}; whole=${part%.tapefs-part-*}
      dd if="$part" of="$whole" bs=1M status=none conv=notrunc \\
        oflag=seek_bytes seek="${offset%-*}" &&
      chown --reference="$part" "$whole" &&
      chmod --reference="$part" "$whole" &&
      touch --reference="$part" "$whole" && rm "$part"
    done' sh {} +

4. WHAT TAR DOES NOT SHOW. Renames, deletions and changed attributes are lines of
   JSON in .tapefs/segments/N.ndjson, one such file for each tape file; they also
   say where the bytes of each file stand. .tapefs/catalog-N.sqlite.zst is a list
   of all files as of that place on the tape: an SQLite database, compressed
   with zstd; the last one on the tape counts.

5. DAMAGE. If a record cannot be read, go on behind it:
   tar -i -b @FACTOR@ -xpf /dev/nst0
   A tape file without .tapefs/segments/N.tail was cut off, for instance by a loss
   of power; the files in it are good up to there.

The format is described in docs/tape-format.md of tapefs, an open-source program.
"""
