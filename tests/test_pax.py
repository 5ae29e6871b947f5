"""Archive headers to the byte, and back from bytes that nobody vouches for."""

from __future__ import annotations

import io
import struct
import tarfile
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tapefs.entries import TapeFileKind
from tapefs.volume.acl import ACCESS_XATTR, DEFAULT_XATTR, acl_from_text, acl_to_text
from tapefs.volume.manifest import CorruptManifest, decode_manifest_line, encode_manifest_line
from tapefs.volume.names import (
    MEMBER_PATH_BYTES_MAX,
    member_path,
    parse_tail_path,
    part_path,
    quote_name,
    tail_path,
    unquote_name,
    whole_name,
)
from tapefs.volume.notes import MemberNote, decode_note, encode_note
from tapefs.volume.pax import (
    COMMENT_BYTES_MAX,
    COMMENT_RECORD_BYTES_MAX,
    COMMENT_RECORD_BYTES_MIN,
    END_OF_ARCHIVE,
    EXTENDED_BYTES_MAX,
    XATTRS_BYTES_MAX,
    Member,
    MemberKind,
    TapeFileHead,
    comment_filler,
    extended_header,
    global_header,
    member_header,
    pad_length,
    pax_record,
)
from tapefs.volume.pax_reader import (
    CorruptHeader,
    EndOfArchive,
    GlobalHeader,
    HeaderReader,
    MemberHeader,
    NeedMore,
    ParsedHeader,
    contained_path,
)

VOLUME = UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")
INT64 = st.integers(-(2**63), 2**63 - 1)
NAMES = st.one_of(
    st.binary(min_size=1, max_size=255),
    st.text(min_size=1, max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.integers(95, 105).map(lambda length: b"x" * length),
)
COMPONENTS = NAMES.map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_")).filter(
    lambda name: name not in (b".", b"..")
)
PATHS = st.lists(COMPONENTS, min_size=1, max_size=6).map(b"/".join)
TARGETS = st.binary(min_size=1, max_size=300).map(lambda target: target.replace(b"\0", b"0"))
XATTR_NAMES = st.one_of(
    st.sampled_from([b"user.a", b"user.b=c", b"user.%3D", b"trusted.\xff"]),
    st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name),
).filter(lambda name: name not in (ACCESS_XATTR, DEFAULT_XATTR))
XATTRS = st.dictionaries(XATTR_NAMES, st.binary(max_size=600), max_size=4)
COMMENTS = st.binary(max_size=COMMENT_BYTES_MAX).filter(lambda comment: b"\n" not in comment)


@st.composite
def members(draw: st.DrawFn) -> Member:
    kind = draw(st.sampled_from(MemberKind))
    member = Member(
        path=draw(PATHS),
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 1)),
        gid=draw(st.integers(0, 2**32 - 1)),
        mtime_ns=draw(INT64),
        xattrs=draw(XATTRS),
        comment=draw(COMMENTS),
    )
    if kind is MemberKind.FILE:
        return replace(member, size=draw(st.integers(0, 2**63 - 1)))
    if kind is MemberKind.SYMLINK:
        return replace(member, linkpath=draw(TARGETS))
    if kind is MemberKind.HARD_LINK:
        return replace(member, linkpath=draw(PATHS))
    if kind in (MemberKind.CHARACTER_DEVICE, MemberKind.BLOCK_DEVICE):
        return replace(member, rdev=draw(st.integers(0, 2**32 - 1)))
    return member


def outcome(data: bytes | bytearray) -> ParsedHeader | None:
    """What hostile bytes become; None for CorruptHeader. Anything else fails the test."""
    try:
        return HeaderReader().parse(data)
    except CorruptHeader:
        return None


def is_harmless(parsed: ParsedHeader | None) -> bool:
    """Whether what was read can do no damage outside the archive's root."""
    if isinstance(parsed, NeedMore):
        return parsed.total_bytes < 9 * 2**20
    if not isinstance(parsed, MemberHeader):
        return True
    member = parsed.member
    is_below_root = contained_path(member.path, is_directory=True) == member.path
    return is_below_root and 0 <= member.size < 2**63 and b"\0" not in member.linkpath


def parse(data: bytes) -> MemberHeader:
    header = HeaderReader().parse(data)
    assert isinstance(header, MemberHeader)
    return header


@given(members())
def test_what_is_written_is_what_is_read(member: Member) -> None:
    data = member_header(member)
    header = parse(data)
    assert header.member == member
    assert header.header_bytes == len(data)
    assert len(data) % 512 == 0


@given(members())
def test_a_cut_header_asks_for_more_until_it_is_whole(member: Member) -> None:
    data = member_header(member)
    reader, have = HeaderReader(), 0
    while isinstance(header := reader.parse(data[:have]), NeedMore):
        assert have < header.total_bytes <= len(data)
        have = header.total_bytes
    assert header == MemberHeader(member, len(data))


@given(members(), st.data())
def test_damage_is_corrupt_header_and_nothing_else(member: Member, data: st.DataObject) -> None:
    damaged = bytearray(member_header(member))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert is_harmless(outcome(damaged))


def with_sum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@given(st.binary(min_size=512, max_size=512), st.binary(max_size=1024))
def test_any_bytes_with_a_right_checksum_are_safe(block: bytes, rest: bytes) -> None:
    crafted = bytearray(block)
    crafted[257:263] = b"ustar\0"
    assert is_harmless(outcome(with_sum(crafted) + rest))


@given(st.binary(max_size=600))
@example(b"99999999999999999999 path=x\n")
@example(b"10 path=a\n10 path=")
@example(b"0 path=a\n")
@example(b"9 =value\n")
def test_any_extended_header_is_safe(records: bytes) -> None:
    data = extended_header(records) + member_header(Member(b"file"))
    assert is_harmless(outcome(data))


def test_common_member_to_the_byte() -> None:
    """A short name, a time with nanoseconds and a note: 1,536 bytes."""
    member = Member(
        b"dir/file.txt",
        mode=0o640,
        uid=1000,
        gid=100,
        size=5,
        mtime_ns=1_672_628_645_123_456_789,
        comment=b"tapefs ino=12",
    )
    records = b"30 mtime=1672628645.123456789\n25 comment=tapefs ino=12\n"
    extended = (
        b"././@PaxHeader".ljust(100, b"\0")
        + b"0000644\x000000000\x000000000\x0000000000067\x0000000000000\x00"
        + b"011476\0 x"
        + bytes(100)
        + b"ustar\x0000"
        + bytes(64)
        + b"0000000\x000000000\x00"
        + bytes(167)
    )
    ustar = (
        b"dir/file.txt".ljust(100, b"\0")
        + b"0000640\x000001750\x000000144\x0000000000005\x0014354444645\x00"
        + b"011534\0 0"
        + bytes(100)
        + b"ustar\x0000"
        + bytes(64)
        + b"0000000\x000000000\x00"
        + bytes(167)
    )
    assert member_header(member) == extended + records.ljust(512, b"\0") + ustar


def test_no_extended_header_where_ustar_says_it_all() -> None:
    header = member_header(Member(b"n" * 100, mtime_ns=10**18, uid=2**21 - 1, size=8**11 - 1))
    assert len(header) == 512


@pytest.mark.parametrize(
    ("change", "record"),
    [
        ({"path": b"n" * 101}, b"111 path=" + b"n" * 101 + b"\n"),
        ({"path": "ü".encode()}, b"11 path=\xc3\xbc\n"),
        ({"size": 8**11}, b"19 size=8589934592\n"),
        ({"uid": 2**21}, b"15 uid=2097152\n"),
        ({"gid": 2**32 - 1}, b"18 gid=4294967295\n"),
        ({"mtime_ns": -1}, b"22 mtime=-0.000000001\n"),
        ({"mtime_ns": -(10**9)}, b"22 mtime=-1.000000000\n"),
        ({"mtime_ns": 8**11 * 10**9}, b"30 mtime=8589934592.000000000\n"),
        ({"xattrs": {b"user.a=%": b"\0\n"}}, b"32 SCHILY.xattr.user.a%3D%25=\0\n\n"),
    ],
)
def test_records_that_a_member_needs(change: dict[str, object], record: bytes) -> None:
    header = member_header(replace(Member(b"file"), **change))  # type: ignore[arg-type]
    assert len(header) == 3 * 512
    assert header[512:1024].rstrip(b"\0") == record


def test_names_that_are_not_utf8_use_gnu_headers() -> None:
    """`hdrcharset=BINARY` would be the pax way; GNU tar complains about it for each file."""
    assert len(member_header(Member(b"\xff" * 100))) == 512
    header = member_header(Member(b"\xff" * 101))
    assert header[:13] == b"././@LongLink"
    assert header[156:157] == b"L"
    assert header[512:1024] == (b"\xff" * 101).ljust(512, b"\0")
    assert b"hdrcharset" not in header


def test_tarfile_reads_the_same_numbers() -> None:
    member = Member(b"file", mode=0o751, uid=2**32 - 2, gid=7, size=0, mtime_ns=10**18)
    with tarfile.open(fileobj=io.BytesIO(member_header(member) + END_OF_ARCHIVE)) as archive:
        (info,) = archive.getmembers()
    assert (info.name, info.mode, info.uid, info.gid) == ("file", 0o751, 2**32 - 2, 7)
    assert info.mtime == 10**9


@pytest.mark.parametrize("format_name", ["PAX_FORMAT", "GNU_FORMAT", "USTAR_FORMAT"])
def test_what_tarfile_writes_is_understood(format_name: str) -> None:
    target = io.BytesIO()
    long = "d" * 90 + "/" + "e" * 60
    with tarfile.open(fileobj=target, mode="w", format=getattr(tarfile, format_name)) as archive:
        info = tarfile.TarInfo(long)
        info.mtime, info.uid, info.mode = 12345, 1000, 0o600
        archive.addfile(info)
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 99
        archive.addfile(link)
    data = target.getvalue()
    first = parse(data)
    assert first.member.path == long.encode()
    assert (first.member.mtime_ns, first.member.uid, first.member.mode) == (
        12345 * 10**9,
        1000,
        0o600,
    )
    second = parse(data[first.header_bytes :])
    assert (second.member.kind, second.member.linkpath) == (MemberKind.SYMLINK, b"t" * 99)
    end = HeaderReader().parse(data[first.header_bytes + second.header_bytes :])
    assert end == EndOfArchive()


@pytest.mark.parametrize(
    "change",
    [
        {"comment": b"c" * (COMMENT_BYTES_MAX + 1)},
        {"xattrs": {b"user.%d" % number: bytes(65_000) for number in range(9)}},
        {"size": 2**63},
        {"uid": 2**32},
        {"mtime_ns": 2**63},
    ],
)
def test_what_no_tape_may_hold_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        member_header(replace(Member(b"file"), **change))  # type: ignore[arg-type]


def test_the_largest_member_header_fits() -> None:
    """Every limit used up at once still is an extended header that readers accept."""
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", 0x02, 7, 4_294_967_290 - number) for number in range(8191)
    )
    xattrs = {ACCESS_XATTR: acl, DEFAULT_XATTR: acl}
    left = XATTRS_BYTES_MAX - sum(len(name) + len(value) for name, value in xattrs.items())
    while left > 300:
        name = b"user.%03d" % len(xattrs) + b"%" * 240
        xattrs[name] = bytes(min(left - len(name), 65_536))
        left -= len(name) + len(xattrs[name])
    path = b"/".join([b"n" * 249] * 16)
    member = Member(path, xattrs=xattrs, mtime_ns=-1, comment=b"c" * COMMENT_BYTES_MAX)
    header = member_header(member)
    assert len(header) < EXTENDED_BYTES_MAX
    assert parse(header).member == member


@pytest.mark.parametrize(
    "path",
    [
        b"/etc/passwd",
        b"../up",
        b"a/../../b",
        b"a/..",
        b"a\0b",
        b"",
        b"n" * 256,
        b"d/" * 40_000 + b"f",
        b"./.",
    ],
)
def test_paths_that_leave_the_root_are_refused(path: bytes) -> None:
    with pytest.raises(CorruptHeader):
        contained_path(path)
    crafted = extended_header(pax_record(b"path", path)) + member_header(Member(b"file"))
    with pytest.raises(CorruptHeader):
        HeaderReader().parse(crafted)


def test_hard_link_targets_stay_below_the_root_symlinks_may_point_anywhere() -> None:
    hard = Member(b"l", MemberKind.HARD_LINK, linkpath=b"../target")
    with pytest.raises(CorruptHeader):
        HeaderReader().parse(member_header(hard))
    symlink = Member(b"l", MemberKind.SYMLINK, linkpath=b"../../target")
    assert parse(member_header(symlink)).member == symlink


def test_gnu_tar_s_leading_dot_is_dropped() -> None:
    assert contained_path(b"./a//b/./c") == b"a/b/c"
    assert contained_path(b"./", is_directory=True) == b"."


def test_sizes_are_bounded() -> None:
    huge = bytearray(extended_header(pax_record(b"comment", b"x"))[:512])
    huge[124:136] = b"77777777777\0"
    with pytest.raises(CorruptHeader, match="claims"):
        HeaderReader().parse(with_sum(huge))
    endless = extended_header(pax_record(b"comment", b"x")) * 9
    with pytest.raises(CorruptHeader, match="too many"):
        HeaderReader().parse(endless)
    negative = bytearray(member_header(Member(b"file")))
    negative[124:136] = b"\xff" * 12
    with pytest.raises(CorruptHeader, match="range"):
        HeaderReader().parse(with_sum(negative))


def test_checksum_is_checked() -> None:
    damaged = bytearray(member_header(Member(b"file")))
    damaged[0] ^= 1
    with pytest.raises(CorruptHeader, match="checksum"):
        HeaderReader().parse(damaged)


def test_end_of_archive() -> None:
    reader = HeaderReader()
    assert reader.parse(b"") == NeedMore(512)
    assert reader.parse(bytes(512)) == NeedMore(1024)
    assert reader.parse(END_OF_ARCHIVE) == EndOfArchive()
    with pytest.raises(CorruptHeader, match="lone"):
        reader.parse(bytes(512) + member_header(Member(b"file")))
    with pytest.raises(CorruptHeader, match="no member"):
        reader.parse(extended_header(pax_record(b"comment", b"x")) + END_OF_ARCHIVE)


def test_global_header() -> None:
    head = TapeFileHead(VOLUME, 12, TapeFileKind.CHECKPOINT, 4711)
    data = global_header(head)
    assert data[512:].rstrip(b"\0") == (
        b"116 comment=tapefs format=1 volume=6fa459ea-ee8a-4ca4-894e-db77e160355e"
        b" sequence=12 kind=checkpoint checkpoint=4711\n"
    )
    assert HeaderReader().parse(data) == GlobalHeader(head, 1024)
    other = extended_header(pax_record(b"comment", b"something else"), typeflag=b"g")
    assert HeaderReader().parse(other) == GlobalHeader(None, 1024)


def test_global_records_hold_for_later_members_but_not_the_comment() -> None:
    reader = HeaderReader()
    records = pax_record(b"uid", b"77") + pax_record(b"comment", b"global")
    reader.parse(extended_header(records, typeflag=b"g"))
    header = reader.parse(member_header(Member(b"file", uid=5)))
    assert isinstance(header, MemberHeader)
    assert (header.member.uid, header.member.comment) == (77, b"")


@given(st.sampled_from([b"path", b"comment", b"SCHILY.xattr.user.x"]), st.binary(max_size=1200))
@example(b"path", b"v" * 90)
@example(b"path", b"v" * 91)
@example(b"path", b"v" * 989)
@example(b"path", b"v" * 990)
def test_records_count_their_own_length(keyword: bytes, value: bytes) -> None:
    record = pax_record(keyword, value)
    length, _, rest = record.partition(b" ")
    assert int(length) == len(record)
    assert rest == keyword + b"=" + value + b"\n"


@given(st.integers(COMMENT_RECORD_BYTES_MIN, 70_000))
@example(COMMENT_RECORD_BYTES_MAX + 1)
@example(COMMENT_RECORD_BYTES_MAX + COMMENT_RECORD_BYTES_MIN - 1)
@example(99)
@example(100)
def test_filler_is_exact_and_of_small_records(length_bytes: int) -> None:
    filler = comment_filler(length_bytes)
    assert len(filler) == length_bytes
    records = filler.splitlines(keepends=True)
    assert all(len(record) <= COMMENT_RECORD_BYTES_MAX for record in records)
    assert all(int(record.split(b" ")[0]) == len(record) for record in records)
    header = extended_header(filler) + member_header(Member(b"file"))
    assert parse(header).member.comment.strip() == b""


def test_filler_has_a_least_length() -> None:
    assert comment_filler(0) == b""
    for length_bytes in range(1, COMMENT_RECORD_BYTES_MIN):
        with pytest.raises(ValueError, match="cannot be filled"):
            comment_filler(length_bytes)


def test_padding() -> None:
    assert [pad_length(size) for size in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]


ACL_TEXT = b"user::rwx,user:1000:r-x,group::r--,group:4294967294:-wx,mask::rwx,other::---"


def test_acl_both_ways() -> None:
    binary = acl_from_text(ACL_TEXT)
    assert binary is not None
    assert acl_to_text(binary) == ACL_TEXT
    assert binary[:12] == b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff"
    assert acl_from_text(b"user::rwx\nuser:eve:r-x:1000 #effective:r--\n") == (
        b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x05\0\xe8\x03\0\0"
    )


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"user:eve:rwx",
        b"user::rwz",
        b"nobody::rwx",
        b"user:99999999999:rwx",
        b"user:rwx",
        b"mask:5:rwx",
    ],
)
def test_acl_texts_that_mean_nothing_here(text: bytes) -> None:
    assert acl_from_text(text) is None


@given(st.binary(max_size=60))
@example(b"\x02\0\0\0")
@example(b"\x02\0\0\0\x01\0\x07\0\0\0\0\0")
@example(b"\x02\0\0\0\x01\0\x08\0\xff\xff\xff\xff")
def test_acl_values_are_translated_exactly_or_not_at_all(value: bytes) -> None:
    text = acl_to_text(value)
    assert text is None or acl_from_text(text) == value


@given(COMPONENTS, st.integers(1, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(1, 10**9))
def test_parts_have_names_that_fit_and_lead_back(
    name: bytes, ino: int, offset: int, sequence: int
) -> None:
    path, rest = part_path(b"dir/" + name, ino, offset, sequence)
    part = path.removeprefix(b"dir/")
    assert len(part) <= 255
    assert whole_name(part, ino, offset, sequence, rest) == name
    assert whole_name(part, ino, offset + 1, sequence, rest) is None
    note = MemberNote(ino, offset, bytes(32), rest)
    assert decode_note(encode_note(note)) == note
    assert len(encode_note(note)) <= COMMENT_BYTES_MAX


def test_part_names_to_the_byte() -> None:
    assert part_path(b"a/b", 5, 1024, 3) == (b"a/b.tapefs-part-00000000000000001024-00000003", b"")
    path, rest = part_path("語".encode() * 85, 5, 0, 3)
    assert path.decode().startswith("語" * 66 + ".tapefs-ino-5.tapefs-part-0000")
    assert rest.decode() == "語" * 19


def test_paths_too_long_to_extract_get_a_flat_place() -> None:
    longest = b"d/" * (MEMBER_PATH_BYTES_MAX // 2 - 1) + b"ff"
    assert member_path(longest, 5) == longest
    assert member_path(b"d/" + longest, 5) == b".tapefs/deep/5"
    assert part_path(b"d/" + longest, 5, 9, 1)[0].startswith(b".tapefs/deep/5.tapefs-part-")


@given(st.binary(max_size=40))
def test_quoted_names(name: bytes) -> None:
    quoted = quote_name(name)
    assert unquote_name(quoted) == name
    assert quoted.isascii()
    assert b" " not in quoted


@pytest.mark.parametrize(
    "comment",
    [b"", b"tapefs ino=", b"tapefs ino=1 more", b"ino=1", b"tapefs ino=9999999999999999999",
     b"tapefs ino=1 offset=9999999999999999999", b"tapefs ino=1 sha256=00", b"tapefs ino=-1"],
)  # fmt: skip
def test_comments_that_are_no_notes(comment: bytes) -> None:
    assert decode_note(comment) is None


def test_notes_to_the_byte() -> None:
    assert encode_note(MemberNote(7)) == b"tapefs ino=7"
    note = MemberNote(7, 4096, b"\xab" * 32, b"\xff rest")
    assert (
        encode_note(note) == b"tapefs ino=7 offset=4096 sha256=" + b"ab" * 32 + b" rest=%FF%20rest"
    )
    note = MemberNote(7, 4096, file_bytes=9000)
    assert encode_note(note) == b"tapefs ino=7 offset=4096 size=9000"
    assert decode_note(encode_note(note)) == note
    assert decode_note(b"tapefs ino=7 size=9000") is None


def test_tail_paths() -> None:
    for kind in (TapeFileKind.SEGMENT, TapeFileKind.CHECKPOINT):
        assert parse_tail_path(tail_path(kind, 123_456_789)) == (kind, 123_456_789)
    assert tail_path(TapeFileKind.SEGMENT, 3) == b".tapefs/segments/00000003.tail"
    assert parse_tail_path(b".tapefs/segments/3.tail") is None
    assert parse_tail_path(b"dir/.tapefs/segments/00000003.tail") is None


@given(st.binary(min_size=32, max_size=32), PATHS)
@example(bytes(32), b"\\new\nline\r\\n")
def test_manifest_lines(sha256: bytes, path: bytes) -> None:
    line = encode_manifest_line(sha256, path)
    assert line.count(b"\n") == 1
    assert decode_manifest_line(line) == (sha256, path)


@pytest.mark.parametrize(
    "line",
    [b"", b"00" * 32 + b"  path", b"00" * 31 + b"  path\n", b"\\" + b"00" * 32 + b"  a\\x\n",
     b"00" * 32 + b" path\n", b"00" * 32 + b"  \n", b"\\" + b"00" * 32 + b"  a\\\n"],
)  # fmt: skip
def test_malformed_manifest_lines(line: bytes) -> None:
    with pytest.raises(CorruptManifest):
        decode_manifest_line(line)
