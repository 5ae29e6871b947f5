"""The tail: last member of every tape file that was closed properly, always in its last record.

Who can read the last record before a filemark knows from it the whole tape file, the place of its
journal or catalog, the last checkpoint and every tape file since. No I/O here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tapefs.entries import TapeFileKind
from tapefs.errors import DamagedTape
from tapefs.volume.names import parse_tail_path, tail_path
from tapefs.volume.pax import (
    BLOCK_BYTES,
    END_OF_ARCHIVE,
    FORMAT_VERSION,
    Member,
    comment_filler,
    extended_header,
    member_header,
    pad_length,
)
from tapefs.volume.pax_reader import BytesLike, CorruptHeader, HeaderReader, MemberHeader
from tapefs.volume.sealed_json import (
    MalformedJson,
    check_format,
    digest,
    seal,
    time_ns,
    unseal,
    uuid,
    whole_number,
)

if TYPE_CHECKING:
    from uuid import UUID

# Tape files that one tail can list; a writer makes a checkpoint before there are more.
SINCE_CHECKPOINT_MAX: Final = 1024
TAIL_BYTES_MAX: Final = 48 * 1024

_KINDS: Final = {kind.value: kind for kind in TapeFileKind if kind.on_tape is kind}
# What the list calls a torn tape file whose whole members count.
_SALVAGED: Final = "salvaged"


class NoTail(DamagedTape):
    """The record does not end with a tail: its tape file was torn, or is not ours."""


class CorruptTail(DamagedTape):
    """The record ends with a tail that may not be trusted."""


@dataclass(frozen=True, slots=True)
class MemberSpan:
    """Data of a member: `length` bytes from byte `position` of the tape file, and their SHA-256."""

    position: int
    length: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class EarlierFile:
    """A tape file between the last checkpoint and the tail's own: SEGMENT or TORN.

    `salvaged` says of a torn one that whoever wrote the tail counts its whole members as archived.
    """

    sequence: int
    first_block: int
    record_count: int
    kind: TapeFileKind = TapeFileKind.SEGMENT
    salvaged: bool = False


@dataclass(frozen=True, slots=True)
class Tail:
    """What a tail states about its tape file.

    `first_block` and `record_count` are as in TapeFile. `checkpoint_block` is the first block of
    the checkpoint before this tape file (0: none), `since_checkpoint` the tape files after that
    checkpoint and before this one, in order. `index` is the journal of a segment, the catalog
    copy of a checkpoint. `manifest` is None in a checkpoint. `generation` counts checkpoints and
    closings up to and including this tape file.
    """

    volume_uuid: UUID
    sequence: int
    kind: TapeFileKind
    first_block: int
    record_count: int
    index: MemberSpan
    manifest: MemberSpan | None = None
    checkpoint_block: int = 0
    since_checkpoint: tuple[EarlierFile, ...] = ()
    generation: int = 0
    written_ns: int = 0


def encode_tail(tail: Tail, position_bytes: int, record_bytes: int) -> bytes:
    """All bytes from `position_bytes` of the tape file to the end of its last record.

    `position_bytes` is a multiple of 512. The result holds the tail member, the end of the archive
    and the padding; `position_bytes` plus its length is `record_count` whole records, and that is
    the count which the tail states, whatever `tail.record_count` was. Ustar header, data and end
    stand in the last record; where they do not fit into the current one, comment records in the
    tail's extended header fill that up. Raises ValueError when the tail lists too many tape files.
    """
    room_bytes = record_bytes - position_bytes % record_bytes
    # The extended header is the same 1,024 bytes unless it has to fill a record.
    fill_bytes = BLOCK_BYTES
    record_count = position_bytes // record_bytes + 1
    data = _encode_fields(dataclasses.replace(tail, record_count=record_count))
    if BLOCK_BYTES + fill_bytes + _closing_bytes(len(data)) > room_bytes:
        fill_bytes = max(BLOCK_BYTES, room_bytes - BLOCK_BYTES)
        data = _encode_fields(dataclasses.replace(tail, record_count=record_count + 1))
    member = Member(tail_path(tail.kind, tail.sequence), size=len(data))
    seconds_ns = tail.written_ns - tail.written_ns % 10**9
    if 0 <= seconds_ns < 8**11 * 10**9:
        member = dataclasses.replace(member, mtime_ns=seconds_ns)
    header = extended_header(comment_filler(fill_bytes)) + member_header(member)
    body = header + data + bytes(pad_length(len(data))) + END_OF_ARCHIVE
    return body + bytes(-(position_bytes + len(body)) % record_bytes)


def find_tail(last_record: BytesLike) -> Tail:
    """The tail in the last record of a tape file. Raises NoTail or CorruptTail.

    Only the end of the record is looked at, so any number of its last bytes that holds the tail
    will do, as long as it starts at a multiple of 512 in the tape file.
    """
    record = bytes(last_record)
    end = len(record.rstrip(b"\0"))
    start = (end - 1) // BLOCK_BYTES * BLOCK_BYTES
    lowest = max(0, end - TAIL_BYTES_MAX - 2 * BLOCK_BYTES)
    while start >= lowest and end:
        parsed = _tail_header(record[start : start + BLOCK_BYTES])
        if parsed is not None:
            path, size = parsed
            if start + BLOCK_BYTES + size != end:
                break
            return _decode_fields(record[start + BLOCK_BYTES : end], path)
        start -= BLOCK_BYTES
    raise NoTail("the last record before the filemark holds no tail; the tape file was not closed")


def _closing_bytes(data_bytes: int) -> int:
    """Size of ustar header, padded data and end of archive."""
    return BLOCK_BYTES + data_bytes + pad_length(data_bytes) + len(END_OF_ARCHIVE)


def _tail_header(block: bytes) -> tuple[bytes, int] | None:
    """Path and size, if `block` is the ustar header of a tail member."""
    if block[257:262] != b"ustar" or not block.startswith(b".tapefs/"):
        return None
    try:
        header = HeaderReader().parse(block)
    except CorruptHeader:
        return None
    if not isinstance(header, MemberHeader) or parse_tail_path(header.member.path) is None:
        return None
    return header.member.path, header.member.size


def _encode_fields(tail: Tail) -> bytes:
    if len(tail.since_checkpoint) > SINCE_CHECKPOINT_MAX:
        raise ValueError("too many tape files since the last checkpoint")
    fields: dict[str, object] = {
        "tapefs": "tail",
        "format": FORMAT_VERSION,
        "volume": str(tail.volume_uuid),
        "sequence": tail.sequence,
        "kind": tail.kind.on_tape.value,
        "first_block": tail.first_block,
        "record_count": tail.record_count,
        "checkpoint_block": tail.checkpoint_block,
        "since_checkpoint": [
            [earlier.sequence, earlier.first_block, earlier.record_count, _word(earlier)]
            for earlier in tail.since_checkpoint
        ],
        "generation": tail.generation,
        "written": str(tail.written_ns),
        _index_name(tail.kind): _encode_span(tail.index),
    }
    if tail.manifest is not None:
        fields["manifest"] = _encode_span(tail.manifest)
    if tail.kind is TapeFileKind.CLOSING:
        fields["closes"] = True
    data = seal(fields)
    if len(data) > TAIL_BYTES_MAX:
        raise ValueError(f"a tail of {len(data)} bytes is too large")
    return data


def _word(earlier: EarlierFile) -> str:
    return _SALVAGED if earlier.salvaged else earlier.kind.on_tape.value


def _index_name(kind: TapeFileKind) -> str:
    return "catalog" if kind is TapeFileKind.CHECKPOINT else "journal"


def _encode_span(span: MemberSpan) -> dict[str, object]:
    return {"position": span.position, "length": span.length, "sha256": span.sha256.hex()}


def _decode_fields(data: bytes, path: bytes) -> Tail:
    try:
        fields = unseal(data)
        tail = _tail_from(fields)
    except MalformedJson as exc:
        raise CorruptTail(f"the tail of a tape file cannot be used: {exc}") from exc
    if path != tail_path(tail.kind, tail.sequence):
        raise CorruptTail("the tail of a tape file contradicts its own name")
    return tail


def _tail_from(fields: dict[str, Any]) -> Tail:
    check_format(fields, "tail", FORMAT_VERSION)
    kind = _kind(fields.get("kind"))
    since = fields.get("since_checkpoint")
    if type(since) is not list or len(since) > SINCE_CHECKPOINT_MAX:
        raise MalformedJson("its list of tape files is missing or too long")
    has_manifest = "manifest" in fields
    if kind is TapeFileKind.TORN or has_manifest is (kind is TapeFileKind.CHECKPOINT):
        raise MalformedJson("its kind and its members do not go together")
    if _closes(fields.get("closes", False), kind):
        kind = TapeFileKind.CLOSING
    return Tail(
        volume_uuid=uuid(fields.get("volume")),
        sequence=whole_number(fields.get("sequence")),
        kind=kind,
        first_block=whole_number(fields.get("first_block")),
        record_count=whole_number(fields.get("record_count")),
        index=_span(fields.get(_index_name(kind))),
        manifest=_span(fields["manifest"]) if has_manifest else None,
        checkpoint_block=whole_number(fields.get("checkpoint_block")),
        since_checkpoint=tuple(map(_earlier_file, since)),
        generation=whole_number(fields.get("generation")),
        written_ns=time_ns(fields.get("written")),
    )


def _closes(value: object, kind: TapeFileKind) -> bool:
    if type(value) is not bool or (value and kind is not TapeFileKind.SEGMENT):
        raise MalformedJson("what it says about the end of a generation makes no sense")
    return value


def _kind(value: object) -> TapeFileKind:
    if type(value) is not str or value not in _KINDS:
        raise MalformedJson("a kind of tape file is unknown")
    return _KINDS[value]


def _span(value: object) -> MemberSpan:
    if type(value) is not dict:
        raise MalformedJson("the place of a member is missing")
    return MemberSpan(
        whole_number(value.get("position")),
        whole_number(value.get("length")),
        digest(value.get("sha256"), 32),
    )


def _earlier_file(value: object) -> EarlierFile:
    if type(value) is not list or len(value) != 4:
        raise MalformedJson("an entry in its list of tape files is malformed")
    sequence, first_block, record_count = map(whole_number, value[:3])
    salvaged = value[3] == _SALVAGED
    kind = TapeFileKind.TORN if salvaged else _kind(value[3])
    if kind is TapeFileKind.CHECKPOINT:
        raise MalformedJson("its list of tape files holds a checkpoint")
    return EarlierFile(sequence, first_block, record_count, kind, salvaged)
