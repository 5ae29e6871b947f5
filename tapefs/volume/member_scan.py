"""Going through the archive in one tape file, record by record, for its members. No I/O.

Members are given out as soon as their last byte is there. One header and one record are in memory
at a time, whatever stands on the tape. Bytes that cannot be had may be skipped: the members they
belong to are not given out, and the next header behind them is looked for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from tapefs.volume.pax import BLOCK_BYTES, Member, TapeFileHead, pad_length
from tapefs.volume.pax_reader import (
    BytesLike,
    CorruptHeader,
    GlobalHeader,
    HeaderReader,
    MemberHeader,
    NeedMore,
    ParsedHeader,
    check_header_sum,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class FoundMember:
    """A member that is there to its last byte. `position` is that of its data."""

    member: Member
    position: int
    sha256: bytes
    xxh128: bytes


class MemberScan:
    """Goes through a tape file from its record 0 on.

    `head` is what the global header at its start says. `ended` is true when no member can follow.
    `fault` says what is wrong with the first header that was. `underway` is the member that began
    last and did not come to its end, so whatever stood before it has passed. `lost` is true while
    nobody knows where the next header begins.
    """

    def __init__(self) -> None:
        self._headers = HeaderReader()
        self._begun = False
        # The start of a header that goes on in the next record, and how long it is at least.
        self._rest = b""
        self._wanted_bytes = 0
        self._position = 0
        self._data_left = self._pad_left = 0
        # Part of the member under way was skipped.
        self._holed = False
        self.head: TapeFileHead | None = None
        self.lost = False
        self.ended = False
        self.fault = ""
        self.underway: Member | None = None

    def feed(self, record: BytesLike) -> Iterator[FoundMember]:
        """The members that the next record completes. Must be consumed before the next call."""
        view = memoryview(self._rest + bytes(record)) if self._rest else memoryview(record)
        self._rest = b""
        while view and not self.ended:
            length = self._advance(view)
            if not length:
                self._rest = bytes(view)
                return
            self._position += length
            view = view[length:]
            if self.underway is not None and not self._data_left and not self.ended:
                yield from self._complete(self.underway)

    def skip(self, length: int) -> None:
        """The next `length` bytes, up to a multiple of 512, cannot be had."""
        self._begun = True
        self._position += len(self._rest) + length
        self.lost |= bool(self._rest)
        self._rest, self._wanted_bytes = b"", 0
        data = min(length, self._data_left)
        self._data_left -= data
        self._holed |= data > 0
        if self.underway is not None and not self._data_left:
            self._pad_left = pad_length(self.underway.size)
            self.underway = None
        pad = min(length - data, self._pad_left)
        self._pad_left -= pad
        self.lost |= length > data + pad

    # -- what a reader of some kind of tape file may want otherwise

    def _opens(self, head: TapeFileHead | None) -> bool:
        """Whether what opens this tape file lets its members count."""
        return head is not None

    def _begins(self, member: Member) -> bool:
        """Whether `member`, whose header has just been read, is of interest; False ends it all."""
        return True

    def _corrupt(self, reason: str) -> None:
        """What stands where a header must be is none: look for the next one."""
        self.fault = self.fault or reason
        self._begun = self.lost = True

    def _passes(self, member: Member, piece: memoryview) -> None:
        """`piece` is the next of `member`'s data. Nothing of a member is told behind a hole."""

    # -- the bytes

    def _advance(self, view: memoryview) -> int:
        """Take the next piece of data, padding or a header; 0 if a header is not all there."""
        if self._data_left:
            return self._data(view[: self._data_left])
        if self._pad_left:
            length = min(self._pad_left, len(view))
            self._pad_left -= length
            return length
        if self.lost:
            return self._find_header(view)
        return self._header(view)

    def _data(self, piece: memoryview) -> int:
        assert self.underway is not None
        self._data_left -= len(piece)
        if not self._holed:
            self._sha256.update(piece)
            self._xxh128.update(piece)
            self._passes(self.underway, piece)
        return len(piece)

    def _find_header(self, view: memoryview) -> int:
        """Bytes before what looks like a header: headers stand at multiples of 512."""
        for at in range(-self._position % BLOCK_BYTES, len(view), BLOCK_BYTES):
            block = bytes(view[at : at + BLOCK_BYTES])
            if block[257:262] != b"ustar":
                continue
            try:
                check_header_sum(block)
            except CorruptHeader:
                continue
            self.lost = False
            return at or self._header(view)
        return len(view)

    def _header(self, view: memoryview) -> int:
        if len(view) < self._wanted_bytes:
            return 0
        try:
            parsed = self._headers.parse(view)
        except CorruptHeader as exc:
            self._wanted_bytes = 0
            self._corrupt(str(exc))
            return min(BLOCK_BYTES, len(view))
        if isinstance(parsed, NeedMore):
            self._wanted_bytes = parsed.total_bytes
            return 0
        self._wanted_bytes = 0
        self._take(parsed)
        return parsed.header_bytes

    def _take(self, parsed: ParsedHeader) -> None:
        if not self._begun:
            self._begun = True
            self.head = parsed.head if isinstance(parsed, GlobalHeader) else None
            self.ended = not self._opens(self.head)
        elif isinstance(parsed, MemberHeader):
            self._begin(parsed)
        else:
            self.ended = True

    def _begin(self, header: MemberHeader) -> None:
        member = header.member
        self.underway = member
        self.ended = not self._begins(member)
        self._holed = False
        self._data_left = member.size
        self._data_position = self._position + header.header_bytes
        self._sha256, self._xxh128 = hashlib.sha256(), xxhash.xxh3_128()

    def _complete(self, member: Member) -> Iterator[FoundMember]:
        self.underway = None
        self._pad_left = pad_length(member.size)
        if not self._holed:
            yield FoundMember(
                member, self._data_position, self._sha256.digest(), self._xxh128.digest()
            )
