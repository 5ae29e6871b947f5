"""Reading single records back for a proof: once more when they are wrong, and around bad spots.

No cache is asked and nothing read is kept: what counts is what the drive gives now.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import crc32c

from tapefs.errors import MediumFailed
from tapefs.scsi.sense import EndOfData, EndOfMedium, FilemarkDetected, IncorrectLength

if TYPE_CHECKING:
    from array import array

    from tapefs.archive.scheduler import Scheduler
    from tapefs.drive import TapeAddress, TapeDrive
    from tapefs.geometry import Geometry

_ATTEMPTS: Final = 2


class Outcome(enum.Enum):
    """What became of one record."""

    GOOD = "good"
    MISMATCH = "mismatch"
    UNREADABLE = "unreadable"
    # A filemark or the end of data stands where the record should.
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Record number `record` of a tape file, where it starts, and its CRC-32C if it is known."""

    record: int
    address: TapeAddress
    crc: int | None


@dataclass(frozen=True, slots=True)
class RecordRead:
    """How reading a record went; `reason` is for people.

    `filemark_block` is where the filemark stands that ended the tape file there.
    """

    outcome: Outcome
    reason: str = ""
    filemark_block: int | None = None


class RecordReader:
    """Reads records inside a job of the lane. `reread_count`: right only at the second attempt."""

    def __init__(self, scheduler: Scheduler, geometry: Geometry) -> None:
        self._scheduler = scheduler
        self._geometry = geometry
        self.reread_count = 0

    async def read(self, drive: TapeDrive, wanted: Wanted, into: array[int]) -> RecordRead:
        """Read the record at `wanted` into `into`, which has the length of a record.

        What is wrong is read once more; what cannot be read is not, for the drive has tried hard
        enough. Raises what keeps the drive from reading at all: DriveGone, DriveFailed, NotReady,
        MediumChanged.
        """
        found = RecordRead(Outcome.GOOD)
        for attempt in range(_ATTEMPTS):
            found = await self._attempt(drive, wanted, into)
            if found.outcome is not Outcome.MISMATCH:
                self.reread_count += attempt
                break
        return found

    async def _attempt(self, drive: TapeDrive, wanted: Wanted, into: array[int]) -> RecordRead:
        scheduler, block = self._scheduler, wanted.address.block
        try:
            if scheduler.head_block != block:
                scheduler.head_block = None
                await drive.locate(wanted.address)
            scheduler.head_block = None
            length = await drive.read_block(into)
        except FilemarkDetected:
            # Where a record is several blocks, the mark may stand within it.
            scheduler.head_block = behind = (await drive.position()).block
            mark = None if behind is None else behind - 1
            return RecordRead(Outcome.ENDED, "a filemark stands in its place", mark)
        except (EndOfData, EndOfMedium):
            return RecordRead(Outcome.ENDED, "the tape ends before it")
        except IncorrectLength:
            scheduler.head_block = (await drive.position()).block
            return RecordRead(Outcome.MISMATCH, "it is longer than a record")
        except MediumFailed as exc:
            return RecordRead(Outcome.UNREADABLE, str(exc))
        scheduler.head_block = block + self._geometry.blocks_per_record
        if length != self._geometry.record_bytes:
            return RecordRead(Outcome.MISMATCH, f"it has {length} bytes")
        if wanted.crc is not None and crc32c.crc32c(memoryview(into)) != wanted.crc:
            return RecordRead(Outcome.MISMATCH, "its checksum is not the one it was written with")
        return RecordRead(Outcome.GOOD)
