"""A short tape file that is read at once, and then looked at in memory.

To learn a tape file from its end, the head goes behind it, back to its tail, and back to its
journal. Where the tape file is short, a drive reads all of it in less time than it takes to turn
round once; and then it stands where the next one begins.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, Protocol

from tapefs.errors import MediumFailed
from tapefs.scsi.sense import EndOfData, FilemarkDetected, IncorrectLength

if TYPE_CHECKING:
    from tapefs.drive import TapeAddress, TapeDrive
    from tapefs.geometry import Geometry

# What a DAT-72 reads while it would turn round once.
SHORT_BYTES_MAX: Final = 8 << 20


class RecordSource(Protocol):
    """Where records are read from: a drive, or one tape file in memory."""

    async def locate(self, address: TapeAddress) -> None:
        """Read at `address` next."""

    async def read_block(self, into: array[int]) -> int:
        """Read the next record into `into`; its length in bytes."""


class ShortTapeFile:
    """The records of one whole tape file that begins at `start`."""

    def __init__(self, start: TapeAddress, records: list[array[int]], geometry: Geometry) -> None:
        self._start = start
        self._records = records
        self._geometry = geometry
        self._next = 0

    async def locate(self, address: TapeAddress) -> None:
        """Read the record at `address` next, which must be one of this tape file."""
        record = self._geometry.whole_records(address.block - self._start.block)
        assert record is not None
        assert 0 <= record < len(self._records), "not in this tape file"
        self._next = record

    async def read_block(self, into: array[int]) -> int:
        """Read the next record, which must be one of this tape file, into `into`."""
        record = self._records[self._next]
        self._next += 1
        memoryview(into)[:] = record
        return len(record)


async def read_short(
    drive: TapeDrive, start: TapeAddress, record_count: int, geometry: Geometry
) -> ShortTapeFile | None:
    """The tape file at `start`, where the head stands, if it has exactly so many records.

    None, with the head somewhere, when it has not, when one cannot be read, and when they are more
    than SHORT_BYTES_MAX, or none. Else the head stands behind its filemark.
    """
    record_bytes = geometry.record_bytes
    if not 0 < record_count * record_bytes <= SHORT_BYTES_MAX:
        return None
    records: list[array[int]] = []
    try:
        while len(records) <= record_count:
            buffer = array("B", bytes(record_bytes))
            if await drive.read_block(buffer) != record_bytes:
                return None
            records.append(buffer)
    except FilemarkDetected:
        behind = start.block + record_count * geometry.blocks_per_record + 1
        if len(records) == record_count and (await drive.position()).block == behind:
            return ShortTapeFile(start, records, geometry)
    except (EndOfData, IncorrectLength, MediumFailed):
        pass
    return None
