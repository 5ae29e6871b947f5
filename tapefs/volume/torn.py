"""Reading a torn tape file, record by record, for the members that are whole. No I/O.

A torn tape file has no tail, and perhaps no journal, but its members say for themselves what they
are. They are given out as soon as their last byte is there. One header and one record are in memory
at a time, whatever stands on the tape.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import crc32c
import xxhash

from tapefs.entries import TapeFileKind
from tapefs.volume.names import manifest_path
from tapefs.volume.pax import FORMAT_VERSION, Member, pad_length
from tapefs.volume.pax_reader import (
    BytesLike,
    CorruptHeader,
    GlobalHeader,
    HeaderReader,
    MemberHeader,
    NeedMore,
    ParsedHeader,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class FoundMember:
    """A member that is there to its last byte. `position` is that of its data."""

    member: Member
    position: int
    sha256: bytes
    xxh128: bytes


class TornScan:
    """Goes through the torn segment `sequence` of volume `volume_uuid` from its record 0 on.

    `crcs` holds the CRC-32C of each record fed, four bytes big-endian each. `ended` is true when
    nothing of the user's can follow: at the manifest, or where the bytes are no archive, or not
    one that this tape file could hold; `fault` then says what is wrong with a header. `underway`
    is the member that began last and did not come to its end, so whatever stood before it had all
    been written.
    """

    def __init__(self, volume_uuid: UUID, sequence: int) -> None:
        self._volume_uuid = volume_uuid
        self._sequence = sequence
        self._headers = HeaderReader()
        self._head_seen = False
        # The start of a header that goes on in the next record, and how long it is at least.
        self._rest = b""
        self._wanted_bytes = 0
        self._position = 0
        self._data_left = self._pad_left = 0
        self.crcs = bytearray()
        self.ended = False
        self.fault = ""
        self.underway: Member | None = None

    def feed(self, record: BytesLike) -> Iterator[FoundMember]:
        """The members that the next record completes. Must be consumed before the next call."""
        self.crcs += crc32c.crc32c(record).to_bytes(4, "big")
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
                yield self._complete(self.underway)

    def _advance(self, view: memoryview) -> int:
        """Take the next piece of data, padding or a header; 0 if a header is not all there."""
        if self._data_left:
            piece = view[: self._data_left]
            self._sha256.update(piece)
            self._xxh128.update(piece)
            self._data_left -= len(piece)
            return len(piece)
        if self._pad_left:
            length = min(self._pad_left, len(view))
            self._pad_left -= length
            return length
        return self._header(view)

    def _header(self, view: memoryview) -> int:
        if len(view) < self._wanted_bytes:
            return 0
        try:
            parsed = self._headers.parse(view)
        except CorruptHeader as exc:
            self.ended, self.fault = True, str(exc)
            return len(view)
        if isinstance(parsed, NeedMore):
            self._wanted_bytes = parsed.total_bytes
            return 0
        self._wanted_bytes = 0
        if not self._head_seen:
            self._head_seen = True
            self.ended = not self._opens_this_segment(parsed)
        elif isinstance(parsed, MemberHeader):
            self._begin(parsed)
        else:
            self.ended = True
        return parsed.header_bytes

    def _opens_this_segment(self, parsed: ParsedHeader) -> bool:
        head = parsed.head if isinstance(parsed, GlobalHeader) else None
        if head is None or head.kind is not TapeFileKind.SEGMENT:
            return False
        stated = (head.volume_uuid, head.sequence, head.format_version)
        return stated == (self._volume_uuid, self._sequence, FORMAT_VERSION)

    def _begin(self, header: MemberHeader) -> None:
        member = header.member
        self.underway = member
        self.ended = member.path == manifest_path(self._sequence)
        self._data_left = member.size
        self._data_position = self._position + header.header_bytes
        self._sha256, self._xxh128 = hashlib.sha256(), xxhash.xxh3_128()

    def _complete(self, member: Member) -> FoundMember:
        self.underway = None
        self._pad_left = pad_length(member.size)
        return FoundMember(
            member, self._data_position, self._sha256.digest(), self._xxh128.digest()
        )
