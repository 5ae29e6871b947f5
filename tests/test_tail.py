"""The tail: always whole in the last record, found there, and believed only with its checksum."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.entries import TapeFileKind
from tapefs.volume.pax import Member, member_header
from tapefs.volume.pax_reader import EndOfArchive, HeaderReader, MemberHeader
from tapefs.volume.sealed_json import seal, unseal
from tapefs.volume.tail import (
    SINCE_CHECKPOINT_MAX,
    TAIL_BYTES_MAX,
    CorruptTail,
    EarlierFile,
    MemberSpan,
    NoTail,
    Tail,
    encode_tail,
    find_tail,
)

VOLUME = UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")
KIB = 1024
RECORD_BYTES = 64 * KIB
SPAN = MemberSpan(1536, 100, b"\x11" * 32)
SEGMENT = Tail(
    VOLUME, 3, TapeFileKind.SEGMENT, 2, 0, SPAN, SPAN, written_ns=1_672_628_645_123_456_789
)
CHECKPOINT = replace(SEGMENT, kind=TapeFileKind.CHECKPOINT, manifest=None, generation=1)
COUNTS = st.integers(0, 2**63 - 1)
SPANS = st.builds(MemberSpan, COUNTS, COUNTS, st.binary(min_size=32, max_size=32))
KINDS = st.sampled_from([TapeFileKind.SEGMENT, TapeFileKind.TORN])
EARLIER = st.builds(EarlierFile, COUNTS, COUNTS, COUNTS, KINDS) | st.builds(
    EarlierFile, COUNTS, COUNTS, COUNTS, st.just(TapeFileKind.TORN), st.just(value=True)
)


@st.composite
def tails(draw: st.DrawFn) -> Tail:
    kinds = [TapeFileKind.SEGMENT, TapeFileKind.CLOSING, TapeFileKind.CHECKPOINT]
    kind = draw(st.sampled_from(kinds))
    return Tail(
        volume_uuid=draw(st.uuids()),
        sequence=draw(st.integers(1, 10**9)),
        kind=kind,
        first_block=draw(COUNTS),
        record_count=0,
        index=draw(SPANS),
        manifest=draw(SPANS) if kind is not TapeFileKind.CHECKPOINT else None,
        checkpoint_block=draw(COUNTS),
        since_checkpoint=tuple(draw(st.lists(EARLIER, max_size=40))),
        generation=draw(COUNTS),
        written_ns=draw(st.integers(-(2**63), 2**63 - 1)),
    )


def last_record(tail: Tail, position_bytes: int, record_bytes: int) -> tuple[bytes, int]:
    """The last record when everything before the tail is 0xFF, and the number of records."""
    encoded = encode_tail(tail, position_bytes, record_bytes)
    total_bytes = position_bytes + len(encoded)
    assert total_bytes % record_bytes == 0
    before = b"\xff" * min(position_bytes, 2 * record_bytes)
    return (before + encoded)[-record_bytes:], total_bytes // record_bytes


@given(
    tails(), st.integers(0, 3 * 2048), st.sampled_from([64 * KIB, 128 * KIB, 512 * KIB, 1024 * KIB])
)
def test_the_tail_is_whole_in_the_last_record(tail: Tail, blocks: int, record_bytes: int) -> None:
    record, record_count = last_record(tail, blocks * 512, record_bytes)
    assert find_tail(record) == replace(tail, record_count=record_count)


def test_every_gap_of_a_record_can_be_closed() -> None:
    for position_bytes in range(0, 2 * RECORD_BYTES, 512):
        record, record_count = last_record(SEGMENT, position_bytes, RECORD_BYTES)
        assert find_tail(record).record_count == record_count
        assert record_count == position_bytes // RECORD_BYTES + 1 or (
            RECORD_BYTES - position_bytes % RECORD_BYTES < 4 * KIB
        )


def test_filler_pushes_the_ustar_header_into_the_next_record() -> None:
    for room_bytes in (1024, 1536, 2560):
        encoded = encode_tail(SEGMENT, RECORD_BYTES - room_bytes, RECORD_BYTES)
        assert len(encoded) == room_bytes + RECORD_BYTES
        assert encoded[room_bytes : room_bytes + 30] == b".tapefs/segments/00000003.tail"
        header = HeaderReader().parse(encoded)
        assert isinstance(header, MemberHeader)
        assert header.header_bytes == room_bytes + 512
    encoded = encode_tail(SEGMENT, RECORD_BYTES - 512, RECORD_BYTES)
    assert encoded[1024:1054] == b".tapefs/segments/00000003.tail"


def test_an_archive_ends_after_its_tail() -> None:
    encoded = encode_tail(CHECKPOINT, 10 * 512, RECORD_BYTES)
    reader = HeaderReader()
    header = reader.parse(encoded)
    assert isinstance(header, MemberHeader)
    assert header.member.path == b".tapefs/checkpoints/00000003.tail"
    end = header.header_bytes + header.data_and_pad_bytes
    assert reader.parse(encoded[end:]) == EndOfArchive()
    assert not any(encoded[end:])


def test_tail_to_the_byte() -> None:
    tail = replace(
        SEGMENT,
        checkpoint_block=40,
        since_checkpoint=(
            EarlierFile(1, 2, 8),
            EarlierFile(2, 11, 3, TapeFileKind.TORN),
            EarlierFile(3, 15, 4, TapeFileKind.TORN, salvaged=True),
        ),
    )
    encoded = encode_tail(tail, 0, RECORD_BYTES)
    data = encoded[1536:].rstrip(b"\0")
    start = (
        b'{"tapefs":"tail","format":1,"volume":"6fa459ea-ee8a-4ca4-894e-db77e160355e",'
        b'"sequence":3,"kind":"segment","first_block":2,"record_count":1,"checkpoint_block":40,'
        b'"since_checkpoint":[[1,2,8,"segment"],[2,11,3,"torn"],[3,15,4,"salvaged"]],'
        b'"generation":0,'
        b'"written":"1672628645123456789",'
        b'"journal":{"position":1536,"length":100,"sha256":"' + b"11" * 32 + b'"},'
        b'"manifest":{"position":1536,"length":100,"sha256":"' + b"11" * 32 + b'"}'
    )
    assert data == start + b',"crc32c":"2747604f"}\n'
    assert b'"catalog":{' in encode_tail(CHECKPOINT, 0, RECORD_BYTES)


def test_a_tail_may_list_so_many_files_and_no_more() -> None:
    files = tuple(
        EarlierFile(number, 30 * number, 16_384)
        for number in range(10**6, 10**6 + SINCE_CHECKPOINT_MAX)
    )
    full = replace(SEGMENT, since_checkpoint=files)
    for position_bytes in (0, 512, RECORD_BYTES - 512, RECORD_BYTES - 1024, RECORD_BYTES // 2):
        record, _ = last_record(full, position_bytes, RECORD_BYTES)
        assert find_tail(record).since_checkpoint == files
    with pytest.raises(ValueError, match="too many"):
        encode_tail(replace(full, since_checkpoint=(*files, files[0])), 0, RECORD_BYTES)
    huge = tuple(EarlierFile(2**63 - 1, 2**63 - 1, 2**63 - 1) for _ in range(SINCE_CHECKPOINT_MAX))
    with pytest.raises(ValueError, match="too large"):
        encode_tail(replace(full, since_checkpoint=huge), 0, RECORD_BYTES)


def test_the_end_of_the_record_is_enough() -> None:
    record, _ = last_record(SEGMENT, 20 * KIB, RECORD_BYTES)
    assert find_tail(memoryview(record)[18 * KIB :]).sequence == 3


@pytest.mark.parametrize(
    "record",
    [
        b"",
        bytes(RECORD_BYTES),
        b"\xff" * RECORD_BYTES,
        b"x" * 700,
        member_header(Member(b"file", size=3)) + b"abc",
        member_header(Member(b".tapefs/segments/3.tail", size=3)) + b"abc",
    ],
)
def test_records_without_a_tail(record: bytes) -> None:
    with pytest.raises(NoTail):
        find_tail(record)


def test_a_tail_that_is_cut_off_is_no_tail() -> None:
    record, _ = last_record(SEGMENT, 20 * KIB, RECORD_BYTES)
    end = len(record.rstrip(b"\0"))
    with pytest.raises(NoTail):
        find_tail(record[: end - 1])


def test_an_old_tail_in_the_data_of_a_file_is_not_taken_for_the_tail() -> None:
    """A file on tape may itself hold pieces of a tape file."""
    quoted, _ = last_record(SEGMENT, 20 * KIB, RECORD_BYTES)
    data = quoted.rstrip(b"\0")[20 * KIB :]
    torn = member_header(Member(b"image", size=2**20)) + data.ljust(4096, b"\0") + b"more"
    with pytest.raises(NoTail):
        find_tail(torn)
    closed = torn.ljust(8192, b"\0") + encode_tail(CHECKPOINT, 8192, RECORD_BYTES)
    assert find_tail(closed).kind is TapeFileKind.CHECKPOINT


def with_fields(change: dict[str, object]) -> bytes:
    encoded = encode_tail(SEGMENT, 0, RECORD_BYTES)
    fields = unseal(encoded[1536:].rstrip(b"\0"))
    del fields["crc32c"]
    data = seal({key: value for key, value in (fields | change).items() if value != "absent"})
    return member_header(Member(b".tapefs/segments/00000003.tail", size=len(data))) + data


@pytest.mark.parametrize(
    "change",
    [
        {"tapefs": "label"},
        {"format": 2},
        {"volume": "nonsense"},
        {"volume": None},
        {"sequence": 4},
        {"sequence": -1},
        {"sequence": True},
        {"kind": "checkpoint"},
        {"kind": "torn"},
        {"kind": "what"},
        {"kind": []},
        {"first_block": "2"},
        {"record_count": 1.5},
        {"checkpoint_block": 2**63},
        {"since_checkpoint": None},
        {"since_checkpoint": [[1, 2, 3]]},
        {"since_checkpoint": [[1, 2, "3", "segment"]]},
        {"since_checkpoint": [[1, 2, 3, "checkpoint"]]},
        {"since_checkpoint": [5]},
        {"since_checkpoint": [[1, 2, 3, "torn"]] * (SINCE_CHECKPOINT_MAX + 1)},
        {"generation": None},
        {"written": 5},
        {"journal": "absent"},
        {"journal": {"position": 1, "length": 2}},
        {"journal": {"position": 1, "length": -2, "sha256": "00" * 32}},
        {"manifest": "absent"},
        {"manifest": []},
        {"closes": 1},
        {"closes": None},
        {"closes": "true"},
        # A checkpoint ends a generation by itself.
        {"closes": True, "kind": "checkpoint", "manifest": "absent"},
    ],
)
def test_fields_that_make_no_sense(change: dict[str, object]) -> None:
    assert find_tail(with_fields({})).sequence == 3
    with pytest.raises(CorruptTail):
        find_tail(with_fields(change))


@given(st.integers(0, 10**9), st.integers(1, 255))
def test_one_wrong_byte_is_noticed(place: int, flip: int) -> None:
    encoded = bytearray(encode_tail(SEGMENT, 0, RECORD_BYTES))
    end = len(encoded.rstrip(b"\0"))
    encoded[1024 + place % (end - 1024)] ^= flip
    with pytest.raises((CorruptTail, NoTail)):
        find_tail(encoded)


@given(st.binary(max_size=200))
def test_any_data_in_a_tail_member_is_refused(data: bytes) -> None:
    data = data.rstrip(b"\0") + b"\n"
    header = member_header(Member(b".tapefs/segments/00000003.tail", size=len(data)))
    with pytest.raises(CorruptTail):
        find_tail(header + data)


def test_the_seal_is_not_fooled_by_json_in_names() -> None:
    line = seal({"name": ',"crc32c":"00000000"}\n', "list": ["ü"]})
    assert unseal(line)["name"] == ',"crc32c":"00000000"}\n'
    assert json.loads(line)["list"] == ["ü"]


def bitwise_crc32c(data: bytes) -> int:
    """CRC-32C from its definition: polynomial 1EDC6F41h reflected, initial and final inversion."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_seal_is_crc32c_of_what_precedes_it() -> None:
    assert bitwise_crc32c(b"123456789") == 0xE3069283
    body = '{"a":1,"b":"ü"'.encode()
    assert seal({"a": 1, "b": "ü"}) == b'%b,"crc32c":"%08x"}\n' % (body, bitwise_crc32c(body))


def test_limits_go_together() -> None:
    """The largest tail fits into the smallest record behind a header that fills another."""
    assert 512 + 512 + TAIL_BYTES_MAX + 1024 <= RECORD_BYTES


def test_a_closing_calls_itself_a_segment() -> None:
    closing = replace(SEGMENT, kind=TapeFileKind.CLOSING)
    record = encode_tail(closing, 0, RECORD_BYTES)
    assert b'"kind":"segment"' in record
    assert b'"closes":true' in record
    assert b".tapefs/segments/00000003.tail" in record
    assert find_tail(record).kind is TapeFileKind.CLOSING
    listed = replace(SEGMENT, since_checkpoint=(EarlierFile(2, 11, 3, TapeFileKind.CLOSING),))
    assert b'"since_checkpoint":[[2,11,3,"segment"]]' in encode_tail(listed, 0, RECORD_BYTES)
    # Whoever knows no closings would take this for a checkpoint behind a segment's name.
    assert find_tail(with_fields({"closes": False})).kind is TapeFileKind.SEGMENT
