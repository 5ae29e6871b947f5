"""The records that some files' content stands in, each once, in tape order.

What is wanted is written to a local file first, so that neither memory nor a frozen catalog grows
with the number of files.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING, Final

import xxhash

from tapefs.archive.record_reader import Outcome, RecordRead, Wanted
from tapefs.archive.tape_file_check import DamageList
from tapefs.archive.verify_reading import DAMAGE_OF
from tapefs.entries import Damage, DamageKind, Extent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import BinaryIO

    from tapefs.entries import TapeFile
    from tapefs.geometry import Geometry

# An extent, whether its hashes are known, and the hashes.
_ROW: Final = struct.Struct(">5q??32s16s")

Content = tuple[Extent, bytes | None, bytes | None]


def write_rows(contents: Iterable[Content], stream: BinaryIO) -> int:
    """Put `contents` into the empty file `stream`; returns the sum of their lengths in bytes."""
    total_bytes = 0
    for extent, sha256, xxh128 in contents:
        place = (extent.ino, extent.offset, extent.length, extent.sequence, extent.position)
        known = (sha256 is not None, xxh128 is not None, sha256 or b"", xxh128 or b"")
        stream.write(_ROW.pack(*place, *known))
        total_bytes += extent.length
    stream.flush()
    return total_bytes


class _Rows:
    """A place in the file that `write_rows` made."""

    def __init__(self, stream: BinaryIO) -> None:
        self._fd = stream.fileno()
        self._number = 0
        self.current = self._row()

    def advance(self) -> None:
        self._number += 1
        self.current = self._row()

    def _row(self) -> Content | None:
        data = os.pread(self._fd, _ROW.size, self._number * _ROW.size)
        if not data:
            return None
        *place, has_sha256, has_xxh128, sha256, xxh128 = _ROW.unpack(data)
        return Extent(*place), sha256 if has_sha256 else None, xxh128 if has_xxh128 else None


class ContentPlan:
    """Reads what `rows` wants. `tape_file_of` looks a tape file up, in the trio thread."""

    def __init__(
        self,
        rows: BinaryIO,
        geometry: Geometry,
        tape_file_of: Callable[[int], TapeFile | None],
    ) -> None:
        self._geometry = geometry
        self._record_bytes = geometry.record_bytes
        self._tape_file_of = tape_file_of
        self._tape_file: TapeFile | None = None
        # What is read next, and what is judged next: the drive is one record ahead.
        self._reading, self._judging = _Rows(rows), _Rows(rows)
        self._next = (0, 0)
        self._sha256, self._xxh128 = hashlib.sha256(), xxhash.xxh3_128()
        self._intact = True
        self._list: DamageList | None = None
        self._list_of = 0
        self._found: list[Damage] = []

    def wanted(self) -> Wanted | None:
        """See `Plan`."""
        while (row := self._reading.current) is not None:
            extent = row[0]
            first, last = self._records(extent)
            if self._next <= (extent.sequence, last):
                return self._record(extent.sequence, max(self._next, (extent.sequence, first))[1])
            self._reading.advance()
        return None

    def note(self, wanted: Wanted, read: RecordRead) -> None:
        """See `Plan`."""
        self._next = (wanted.address.file, wanted.record + 1)

    def take(self, wanted: Wanted, read: RecordRead, data: memoryview) -> None:
        """See `Plan`."""
        sequence, record = wanted.address.file, wanted.record
        good = read.outcome is Outcome.GOOD
        base = record * self._record_bytes
        if not good:
            kind = DAMAGE_OF[read.outcome]
            self._damages(sequence).add(base, self._record_bytes, kind, read.reason)
        while (row := self._judging.current) is not None:
            extent = row[0]
            end = extent.position + extent.length
            if extent.sequence != sequence or extent.position >= base + self._record_bytes:
                return
            self._intact &= good
            piece = data[max(extent.position - base, 0) : min(end - base, self._record_bytes)]
            self._sha256.update(piece)
            self._xxh128.update(piece)
            if end > base + self._record_bytes:
                return
            self._end_extent(row)
            self._judging.advance()

    def found(self) -> list[Damage]:
        """Everything that is wrong so far."""
        return self._found + list(self._list.as_tuple() if self._list else ())

    def _end_extent(self, row: Content) -> None:
        extent, sha256, xxh128 = row
        right = sha256 in (None, self._sha256.digest()) and xxh128 in (None, self._xxh128.digest())
        if self._intact and not right:
            self._damages(extent.sequence).add(
                extent.position,
                extent.length,
                DamageKind.CONTRADICTION,
                "a file's bytes do not have the checksum that the catalog knows",
            )
        self._sha256, self._xxh128 = hashlib.sha256(), xxhash.xxh3_128()
        self._intact = True

    def _damages(self, sequence: int) -> DamageList:
        if self._list is None or self._list_of != sequence:
            self._found = self.found()
            self._list, self._list_of = DamageList(sequence), sequence
        return self._list

    def _records(self, extent: Extent) -> tuple[int, int]:
        size = self._record_bytes
        return extent.position // size, (extent.position + extent.length - 1) // size

    def _record(self, sequence: int, record: int) -> Wanted:
        if self._tape_file is None or self._tape_file.sequence != sequence:
            self._tape_file = self._tape_file_of(sequence)
        tape_file = self._tape_file
        assert tape_file is not None, "an extent stands in a tape file that is known"
        crc = tape_file.crcs[4 * record : 4 * record + 4]
        address = self._geometry.record_address(sequence, tape_file.first_block, record)
        return Wanted(record, address, int.from_bytes(crc, "big") if crc else None)
