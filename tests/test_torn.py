"""Scanning a torn tape file: the same members however the records cut it."""

from __future__ import annotations

import hashlib
import random
import uuid
from typing import TYPE_CHECKING

import pytest
import xxhash

from tapefs.entries import TapeFileKind
from tapefs.volume.names import manifest_path
from tapefs.volume.pax import (
    END_OF_ARCHIVE,
    Member,
    MemberKind,
    TapeFileHead,
    global_header,
    member_header,
    pad_length,
)
from tapefs.volume.torn import TornScan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapefs.volume.member_scan import FoundMember

VOLUME = uuid.UUID(int=7)
HEAD = global_header(TapeFileHead(VOLUME, 3, TapeFileKind.SEGMENT))


def archive() -> tuple[bytes, list[tuple[Member, int, bytes]]]:
    """Members of awkward sizes; with them, where the data of each begins and what it is."""
    data, members = bytearray(HEAD), []
    for number, size in enumerate((0, 1, 511, 512, 513, 70_000, 0, 1024, 5)):
        path = b"d/" * number + b"\xc3\xa4" * (number * 9) + b"%d" % number
        xattrs = {b"user.x": bytes(number * 700)} if number % 2 else {}
        body = random.Random(number).randbytes(size)
        member = Member(path, size=size, mtime_ns=number, xattrs=xattrs)
        data += member_header(member)
        members.append((member, len(data), body))
        data += body + bytes(pad_length(size))
        link = Member(b"link%d" % number, MemberKind.SYMLINK, linkpath=b"t")
        data += member_header(link)
        members.append((link, len(data), b""))
    return bytes(data), members


def scan(data: bytes, record_bytes: int) -> tuple[TornScan, list[FoundMember]]:
    torn = TornScan(VOLUME, 3)

    def found() -> Iterator[FoundMember]:
        for at in range(0, len(data), record_bytes):
            if not torn.ended:
                yield from torn.feed(data[at : at + record_bytes])

    return torn, list(found())


@pytest.mark.parametrize("record_bytes", [512, 1024, 1536, 65_536, 1 << 20])
def test_every_member_comes_out_once(record_bytes: int) -> None:
    data, members = archive()
    torn, found = scan(data, record_bytes)
    assert [(item.member, item.position, item.sha256, item.xxh128) for item in found] == [
        (member, position, hashlib.sha256(body).digest(), xxhash.xxh3_128_digest(body))
        for member, position, body in members
    ]
    assert (torn.ended, torn.underway) == (False, None)
    assert len(torn.crcs) == 4 * -(-len(data) // record_bytes)


def test_a_member_comes_out_when_its_last_byte_is_there() -> None:
    data, members = archive()
    for length in range(0, len(data), 512):
        torn, found = scan(data[:length], 512)
        whole = [member for member, at, body in members if at + len(body) <= length]
        assert [item.member for item in found] == whole
        begun = [member for member, at, _ in members if at <= length]
        assert torn.underway == (begun[-1] if len(begun) > len(whole) else None)


@pytest.mark.parametrize(
    ("following", "underway"),
    [
        (END_OF_ARCHIVE, None),
        (HEAD, None),
        (b"\xa5" * 512, None),
        (member_header(Member(manifest_path(3), size=9)), manifest_path(3)),
    ],
    ids=["end", "another head", "garbage", "manifest"],
)
def test_nothing_is_read_behind_the_end(following: bytes, underway: bytes | None) -> None:
    data, members = archive()
    torn, found = scan(data + following + member_header(Member(b"behind")), 4096)
    assert torn.ended
    assert len(found) == len(members)
    assert (torn.underway.path if torn.underway else None) == underway
    assert bool(torn.fault) is (following[0] == 0xA5)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        global_header(TapeFileHead(VOLUME, 4, TapeFileKind.SEGMENT)),
        global_header(TapeFileHead(uuid.UUID(int=8), 3, TapeFileKind.SEGMENT)),
        global_header(TapeFileHead(VOLUME, 3, TapeFileKind.CHECKPOINT)),
        global_header(TapeFileHead(VOLUME, 3, TapeFileKind.SEGMENT, format_version=2)),
    ],
    ids=["none", "sequence", "volume", "checkpoint", "format"],
)
def test_only_this_segment_counts(start: bytes) -> None:
    torn, found = scan(start + member_header(Member(b"x")), 4096)
    assert torn.ended
    assert found == []
