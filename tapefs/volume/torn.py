"""Reading a torn tape file, record by record, for the members that are whole. No I/O.

A torn tape file has no tail, and perhaps no journal, but its members say for themselves what they
are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import crc32c

from tapefs.entries import TapeFileKind
from tapefs.volume.member_scan import FoundMember, MemberScan
from tapefs.volume.names import manifest_path
from tapefs.volume.pax import FORMAT_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from tapefs.volume.pax import Member, TapeFileHead
    from tapefs.volume.pax_reader import BytesLike


class TornScan(MemberScan):
    """Goes through the torn segment `sequence` of volume `volume_uuid` from its record 0 on.

    `crcs` holds the CRC-32C of each record fed, four bytes big-endian each. `ended` is true when
    nothing of the user's can follow: at the manifest, or where the bytes are no archive, or not
    one that this tape file could hold; `fault` then says what is wrong with a header.
    """

    def __init__(self, volume_uuid: UUID, sequence: int) -> None:
        super().__init__()
        self._volume_uuid = volume_uuid
        self._sequence = sequence
        self.crcs = bytearray()

    def feed(self, record: BytesLike) -> Iterator[FoundMember]:
        """The members that the next record completes. Must be consumed before the next call."""
        self.crcs += crc32c.crc32c(record).to_bytes(4, "big")
        yield from super().feed(record)

    def _opens(self, head: TapeFileHead | None) -> bool:
        if head is None or head.kind is not TapeFileKind.SEGMENT:
            return False
        stated = (head.volume_uuid, head.sequence, head.format_version)
        return stated == (self._volume_uuid, self._sequence, FORMAT_VERSION)

    def _begins(self, member: Member) -> bool:
        return member.path != manifest_path(self._sequence)

    def _corrupt(self, reason: str) -> None:
        self.ended, self.fault = True, reason
