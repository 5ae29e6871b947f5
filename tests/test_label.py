"""The label: one record of 10,240 bytes, exact, and three ways of not being one."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.errors import DamagedTape, ForeignTape
from tapefs.geometry import LABEL_BYTES
from tapefs.volume.label import (
    Label,
    UnsupportedFormat,
    decode_label,
    encode_label,
    is_valid_name,
    is_valid_record_size,
)
from tapefs.volume.pax import END_OF_ARCHIVE, Member, member_header, pad_length
from tapefs.volume.sealed_json import seal

VOLUME = UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")
LABEL = Label(VOLUME, "Holiday films 7", 512 * 1024, 1_672_628_645_123_456_789)


@given(
    st.builds(
        Label,
        st.uuids(),
        st.text(min_size=1, max_size=64).filter(str.isprintable),
        st.sampled_from([2**16, 2**17, 2**18, 2**19, 2**20]),
        st.integers(0, 2**63 - 1),
    )
)
def test_what_is_written_is_what_is_read(label: Label) -> None:
    record = encode_label(label)
    assert len(record) == LABEL_BYTES
    assert decode_label(record) == label


def test_label_data_to_the_byte() -> None:
    record = encode_label(LABEL)
    start = record.index(b'{"tapefs":')
    assert start % 512 == 0
    assert record[start:].rstrip(b"\0") == (
        b'{"tapefs":"label","format":1,"volume":"6fa459ea-ee8a-4ca4-894e-db77e160355e",'
        b'"name":"Holiday films 7","record_bytes":524288,'
        b'"created":"2023-01-02T03:04:05.123456789Z","software":"tapefs","crc32c":"8188f5bd"}\n'
    )
    assert record[start - 512 :].startswith(b"tapefs-label.json\0")
    assert record.startswith(b"README.txt\0")


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "n" * 65},
        {"name": "two\nlines"},
        {"name": "\x1b[2J"},
        {"record_bytes": 2**15},
        {"record_bytes": 2**21},
        {"record_bytes": 100_000},
        {"record_bytes": 0},
        {"created_ns": -1},
        {"created_ns": 2**63},
    ],
)
def test_labels_that_must_not_be_written(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        encode_label(replace(LABEL, **change))  # type: ignore[arg-type]


def archive(*contents: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        member_header(Member(path, size=len(data))) + data + bytes(pad_length(len(data)))
        for path, data in contents
    )
    return body + END_OF_ARCHIVE


@pytest.mark.parametrize(
    "record",
    [
        b"",
        bytes(LABEL_BYTES),
        b"\xff" * LABEL_BYTES,
        b"VOL1ABC   ".ljust(80),
        archive((b"file", b"data")),
        archive((b"README.txt", b"data"), (b"other.json", b"{}")),
        archive(),
        member_header(Member(b"half", size=2**40)),
    ],
)
def test_foreign_records(record: bytes) -> None:
    with pytest.raises(ForeignTape):
        decode_label(record)


@pytest.mark.parametrize("length", [10_239 // 2, 700, 100])
def test_a_label_that_is_cut_off(length: int) -> None:
    record = encode_label(LABEL)
    start = record.index(b"tapefs-label.json")
    with pytest.raises(DamagedTape, match="tapefs label"):
        decode_label(record[: start + 100 + length % 700])


def relabelled(change: dict[str, object]) -> bytes:
    record = encode_label(LABEL)
    fields = json.loads(record[record.index(b'{"tapefs":') :].rstrip(b"\0"))
    del fields["crc32c"]
    return archive((b"README.txt", b"hello"), (b"tapefs-label.json", seal(fields | change)))


@pytest.mark.parametrize(
    "change",
    [
        {"tapefs": "tail"},
        {"format": 0},
        {"format": "1"},
        {"format": True},
        {"volume": "x"},
        {"volume": 5},
        {"name": 5},
        {"name": ""},
        {"name": "a\tb"},
        {"record_bytes": 1000},
        {"record_bytes": "524288"},
        {"record_bytes": -(2**19)},
        {"created": None},
        {"created": "yesterday"},
        {"created": "2023-13-02T03:04:05.123456789Z"},
        {"created": "9999-01-02T03:04:05.123456789Z"},
        {"created": "1969-12-31T23:59:59.000000000Z"},
    ],
)
def test_labels_that_make_no_sense(change: dict[str, object]) -> None:
    assert decode_label(relabelled({})) == LABEL
    with pytest.raises(DamagedTape):
        decode_label(relabelled(change))


def test_a_newer_format_is_recognised_even_with_unknown_fields() -> None:
    with pytest.raises(UnsupportedFormat, match="format 2"):
        decode_label(relabelled({"format": 2, "record_bytes": {"new": "idea"}}))


@given(st.data())
def test_one_wrong_byte_in_the_label_s_data_is_noticed(data: st.DataObject) -> None:
    record = bytearray(encode_label(LABEL))
    start = record.index(b'{"tapefs":')
    end = len(record.rstrip(b"\0"))
    record[data.draw(st.integers(start, end - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((DamagedTape, UnsupportedFormat)):
        decode_label(record)


@given(st.binary(max_size=300))
def test_any_data_in_a_label_member_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedTape):
        decode_label(archive((b"README.txt", b"hello"), (b"tapefs-label.json", data)))


def test_names_and_sizes() -> None:
    assert is_valid_name("Überseekiste 12/3")
    assert not is_valid_name("right\u202eleft")
    assert [size for size in range(1, 2**21) if is_valid_record_size(size)] == [
        2**16,
        2**17,
        2**18,
        2**19,
        2**20,
    ]
