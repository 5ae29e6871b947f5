"""Journal lines: exact, reversible, and harmless when somebody else wrote them."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tapefs.entries import INO_MAX, Entry, ExtentEntry, InodeEntry, LinkEntry, UnlinkEntry
from tapefs.volume.journal import (
    CRCS_PER_LINE_MAX,
    LINE_BYTES_MAX,
    CorruptJournal,
    JournalDecoder,
    JournalHead,
    RecordCrcs,
    decode_json_line,
    decode_line,
    encode_crcs,
    encode_entry,
    encode_head,
)
from tapefs.volume.pax import XATTRS_BYTES_MAX
from tapefs.volume.plain_line import plain_entry

VOLUME = UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")
INOS = st.integers(1, INO_MAX)
COUNTS = st.integers(0, 2**62 - 1)
TIMES = st.integers(-(2**63), 2**63 - 1)
NAMES = (
    st.one_of(st.binary(min_size=1, max_size=255), st.text(min_size=1, max_size=60).map(str.encode))
    .map(lambda name: name.replace(b"\0", b"_"))
    .filter(lambda name: b"/" not in name and name not in (b".", b".."))
)
HASHES = st.binary(min_size=32, max_size=32)
ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.builds(
        InodeEntry,
        ino=INOS,
        mode=st.builds(
            lambda kind, bits: kind << 12 | bits,
            st.sampled_from([1, 2, 4, 6, 8, 10, 12]),
            st.integers(0, 0o7777),
        ),
        uid=st.integers(0, 2**32 - 1),
        gid=st.integers(0, 2**32 - 1),
        size=COUNTS,
        rdev=st.integers(0, 2**32 - 1),
        atime_ns=TIMES,
        mtime_ns=TIMES,
        ctime_ns=TIMES,
        target=st.none() | st.binary(min_size=1, max_size=99).filter(lambda text: 0 not in text),
        sha256=st.none() | HASHES,
        xxh128=st.none() | st.binary(min_size=16, max_size=16),
        xattrs=st.dictionaries(NAMES, st.binary(max_size=99), max_size=3),
    ),
    st.builds(ExtentEntry, INOS, COUNTS, COUNTS, COUNTS, HASHES),
    st.builds(LinkEntry, INOS, NAMES, INOS),
    st.builds(UnlinkEntry, INOS, NAMES),
)


@given(ENTRIES)
@example(LinkEntry(1, 'line\n"quote"\\ \x7f \u2028 日本'.encode(), 2))
@example(LinkEntry(1, b"\xed\xa0\x80 half a surrogate pair", 2))
def test_what_is_written_is_what_is_read(entry: Entry) -> None:
    line = encode_entry(entry)
    assert decode_line(line) == entry
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert type(json.loads(line)) is dict


def test_lines_to_the_byte() -> None:
    assert encode_head(JournalHead(VOLUME, 3)) == (
        b'{"tapefs":"journal","format":1,"volume":"6fa459ea-ee8a-4ca4-894e-db77e160355e",'
        b'"sequence":3}\n'
    )
    inode = InodeEntry(7, 0o100640, 1000, 100, 5, 0, -1, 1_672_628_645_123_456_789, 0)
    assert encode_entry(inode) == (
        b'{"inode":7,"mode":"100640","uid":1000,"gid":100,"size":5,"rdev":0,"atime":"-1",'
        b'"mtime":"1672628645123456789","ctime":"0"}\n'
    )
    everything = InodeEntry(
        8, 0o120777, 0, 0, 3, 0, 0, 0, 0, b"a/\xff", b"\xaa" * 32, b"\xbb" * 16, {b"user.b": b"1"}
    )
    assert encode_entry(everything).partition(b'"ctime":"0",')[2] == (
        b'"target":{"b64":"YS//"},"sha256":"' + b"aa" * 32 + b'","xxh128":"' + b"bb" * 16
        + b'","xattrs":[["user.b","MQ=="]]}\n'
    )  # fmt: skip
    assert encode_entry(ExtentEntry(7, 512, 5, 3072, b"\xcc" * 32)) == (
        b'{"extent":7,"offset":512,"length":5,"position":3072,"sha256":"' + b"cc" * 32 + b'"}\n'
    )
    assert encode_entry(LinkEntry(1, "grün".encode(), 7)) == (
        '{"link":7,"parent":1,"name":"grün"}\n'.encode()
    )
    assert encode_entry(UnlinkEntry(1, b"\xff")) == b'{"unlink":1,"name":{"b64":"/w=="}}\n'


def test_record_checksums_are_cut_into_lines() -> None:
    crcs = b"".join(number.to_bytes(4, "big") for number in range(2 * CRCS_PER_LINE_MAX + 1))
    lines = list(encode_crcs(RecordCrcs(5, crcs)))
    decoded = [decode_line(line) for line in lines]
    assert [line.first_record for line in decoded if isinstance(line, RecordCrcs)] == [
        5,
        5 + CRCS_PER_LINE_MAX,
        5 + 2 * CRCS_PER_LINE_MAX,
    ]
    assert b"".join(line.crcs for line in decoded if isinstance(line, RecordCrcs)) == crcs
    assert list(encode_crcs(RecordCrcs(0, b""))) == []
    assert list(encode_crcs(RecordCrcs(2, b"\1\2\3\4"))) == [
        b'{"crc32c":"AQIDBA==","first_record":2}\n'
    ]


def test_the_longest_line_may_be_read() -> None:
    value_bytes = 65_536
    xattrs = {b"\xff%06d" % number: b"\xff" * (value_bytes - 7) for number in range(8)}
    assert sum(len(name) + len(value) for name, value in xattrs.items()) == XATTRS_BYTES_MAX
    entry = InodeEntry(1, 0o100644, 0, 0, 0, 0, 0, 0, 0, b"\xff" * 4095, xattrs=xattrs)
    line = encode_entry(entry)
    assert len(line) < LINE_BYTES_MAX
    assert decode_line(line) == entry
    xattrs[b"user.one more"] = b""
    with pytest.raises(ValueError, match="than fit on tape"):
        encode_entry(InodeEntry(1, 0o100644, 0, 0, 0, 0, 0, 0, 0, xattrs=xattrs))


GOOD_INODE = json.loads(encode_entry(InodeEntry(7, 0o100640, 0, 0, 0, 0, 0, 0, 0)))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b'{"what":1}',
        b'{"link":7}',
        b"\xff",
        b"[" * 100_000,
        b'{"link":' + b"9" * 5000 + b',"parent":1,"name":"a"}',
        b'{"link":true,"parent":1,"name":"a"}',
        b'{"link":1.0,"parent":1,"name":"a"}',
        b'{"link":0,"parent":1,"name":"a"}',
        b'{"link":-1,"parent":1,"name":"a"}',
        b'{"link":9223372036854775808,"parent":1,"name":"a"}',
        b'{"link":NaN,"parent":1,"name":"a"}',
        b'{"link":2,"parent":1,"name":""}',
        b'{"link":2,"parent":1,"name":".."}',
        b'{"link":2,"parent":1,"name":"."}',
        b'{"link":2,"parent":1,"name":"a/b"}',
        b'{"link":2,"parent":1,"name":"a\\u0000b"}',
        b'{"link":2,"parent":1,"name":"\\ud800"}',
        b'{"link":2,"parent":1,"name":["a"]}',
        b'{"link":2,"parent":1,"name":{"b64":"Lw=="}}',
        b'{"link":2,"parent":1,"name":{"b64":"*"}}',
        b'{"link":2,"parent":1,"name":{"b64":1}}',
        b'{"link":2,"parent":1,"name":"' + b"n" * 256 + b'"}',
        b'{"unlink":1,"name":null}',
        b'{"unlink":"1","name":"a"}',
        b'{"extent":1,"offset":0,"length":1,"position":0,"sha256":"00"}',
        b'{"extent":1,"offset":9223372036854775807,"length":1,"position":0,"sha256":"'
        + b"00" * 32
        + b'"}',
        b'{"crc32c":"AAA=","first_record":0}',
        b'{"crc32c":"","first_record":0}',
        b'{"crc32c":"' + b"AAAA" * (CRCS_PER_LINE_MAX + 3) + b'","first_record":0}',
        b'{"crc32c":"AAAAAA==","first_record":-1}',
        encode_head(JournalHead(VOLUME, 3, format_version=2)),
        b'{"tapefs":"journal","format":1,"volume":"6fa459ea","sequence":3}',
        b'{"tapefs":"journal","format":1,"volume":7,"sequence":3}',
        b'{"tapefs":"journal","format":1,"sequence":3}',
        b'{"link":1,"x":"' + b"x" * LINE_BYTES_MAX + b'"}',
    ],
)
def test_malformed_lines(line: bytes) -> None:
    with pytest.raises(CorruptJournal):
        decode_line(line)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", 33188),
        ("mode", "100888"),
        ("mode", "644"),
        ("mode", "30000000"),
        ("mode", "٣"),
        ("uid", 2**32),
        ("gid", None),
        ("size", -1),
        ("rdev", "0"),
        ("mtime", 5),
        ("mtime", "5.5"),
        ("mtime", "--5"),
        ("mtime", "٣"),
        ("mtime", "9223372036854775808"),
        ("mtime", "9" * 30),
        ("target", ""),
        ("target", None),
        ("target", "t" * 4096),
        ("sha256", "0" * 63),
        ("sha256", "zz" * 32),
        ("sha256", "0 " * 32),
        ("xxh128", "00" * 32),
        ("xattrs", {}),
        ("xattrs", [["user.a"]]),
        ("xattrs", [["", "AA=="]]),
        ("xattrs", [["user.a", "A"]]),
        ("xattrs", [["user.a", "AAAA" * 22_000]]),
    ],
)
def test_malformed_attributes(key: str, value: object) -> None:
    assert type(decode_line(json.dumps(GOOD_INODE).encode())) is InodeEntry
    with pytest.raises(CorruptJournal):
        decode_line(json.dumps(GOOD_INODE | {key: value}).encode())


PLAIN_NUMBERS = st.integers(1, 10**18 - 1)
PLAIN_NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters='"/\\'),
    min_size=1,
    max_size=60,
).filter(lambda name: name not in (".", ".."))
PLAIN_ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.builds(
        InodeEntry,
        ino=PLAIN_NUMBERS,
        mode=st.sampled_from([0o100644, 0o40755, 0o140777]),
        uid=st.integers(0, 10**9 - 1),
        gid=st.integers(0, 10**9 - 1),
        size=PLAIN_NUMBERS,
        rdev=st.just(0),
        atime_ns=PLAIN_NUMBERS,
        mtime_ns=PLAIN_NUMBERS.map(lambda value: -value),
        ctime_ns=st.integers(10**18, 9 * 10**18 - 1),
        sha256=st.none() | HASHES,
        xxh128=st.none() | st.binary(min_size=16, max_size=16),
    ),
    st.builds(ExtentEntry, PLAIN_NUMBERS, PLAIN_NUMBERS, PLAIN_NUMBERS, PLAIN_NUMBERS, HASHES),
    st.builds(LinkEntry, PLAIN_NUMBERS, PLAIN_NAMES.map(str.encode), PLAIN_NUMBERS),
    st.builds(UnlinkEntry, PLAIN_NUMBERS, PLAIN_NAMES.map(str.encode)),
)


@given(PLAIN_ENTRIES)
def test_plain_lines_are_read_the_quick_way(entry: Entry) -> None:
    assert plain_entry(encode_entry(entry)) == entry


@given(PLAIN_ENTRIES | ENTRIES, st.data())
def test_the_quick_way_reads_nothing_otherwise(entry: Entry, data: st.DataObject) -> None:
    line = bytearray(encode_entry(entry))
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, min(len(line), start + 3)))
    line[start:end] = data.draw(st.binary(max_size=3) | st.sampled_from([b"0", b"9" * 18, b"-1"]))
    quick = plain_entry(bytes(line))
    assert quick is None or quick == decode_json_line(bytes(line))


def is_refused(line: bytes) -> bool:
    try:
        decode_line(line)
    except CorruptJournal:
        return True
    return False


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(ENTRIES, st.data())
def test_a_line_of_any_shape_is_read_or_refused(entry: Entry, data: st.DataObject) -> None:
    fields = json.loads(encode_entry(entry))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(JSON_VALUES)
    line = json.dumps(fields).encode()
    assert is_refused(line) or encode_entry(decode_line(line))  # type: ignore[arg-type]


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(line: bytes) -> None:
    assert is_refused(line)


@given(st.lists(ENTRIES, max_size=5), st.integers(1, 200))
def test_a_journal_may_arrive_in_any_pieces(entries: list[Entry], piece_bytes: int) -> None:
    journal = encode_head(JournalHead(VOLUME, 3)) + b"".join(map(encode_entry, entries))
    decoder = JournalDecoder(VOLUME, 3)
    decoded: list[object] = []
    for start in range(0, len(journal), piece_bytes):
        decoded += decoder.feed(journal[start : start + piece_bytes])
    decoder.finish()
    assert decoded == entries


HEAD = encode_head(JournalHead(VOLUME, 3))
ENTRY = encode_entry(UnlinkEntry(1, b"a"))


@pytest.mark.parametrize(
    "journal",
    [
        b"",
        HEAD[:-1],
        HEAD + ENTRY[:-1],
        ENTRY,
        ENTRY + HEAD,
        HEAD + HEAD,
        encode_head(JournalHead(VOLUME, 4)),
        encode_head(JournalHead(UUID(int=1), 3)),
        HEAD + b"\n",
        HEAD + b"x" * (LINE_BYTES_MAX + 1),
    ],
)
def test_journals_that_are_not_whole_or_not_the_right_one(journal: bytes) -> None:
    def decode() -> None:
        decoder = JournalDecoder(VOLUME, 3)
        for _ in decoder.feed(journal):
            pass
        decoder.finish()

    with pytest.raises(CorruptJournal):
        decode()
