"""Reading a tape file back right after it was written, before anything relies on it.

Its synchronising filemark has returned, so the drive's buffer holds nothing of it that the tape
does not; and before reading, the head goes back to the tape file before, so that the drive has to
find the place again. What a drive keeps from its own writing and hands out in spite of that, nobody
can see from here.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from tapefs.archive.record_reader import Outcome, RecordRead, RecordReader, Wanted
from tapefs.archive.verify_reading import DAMAGE_OF
from tapefs.drive import TapeAddress
from tapefs.entries import Damage, DamageKind
from tapefs.errors import MediumFailed
from tapefs.volume.session import go_to_end

if TYPE_CHECKING:
    from tapefs.archive.scheduler import Scheduler
    from tapefs.drive import TapeDrive
    from tapefs.entries import TapeFile
    from tapefs.geometry import Geometry


class WrittenWrong(MediumFailed):
    """What was just written reads back differently, or not at all.

    `damage` is the first such place.
    """

    def __init__(self, message: str, damage: Damage) -> None:
        super().__init__(message)
        self.damage = damage


async def read_back(
    drive: TapeDrive,
    scheduler: Scheduler,
    written: TapeFile,
    before: TapeFile | None,
    geometry: Geometry,
) -> None:
    """Read `written`, the last tape file, and stand at the proven end of data again.

    `before` is the tape file before it; None: the label. For a job of the lane. Raises
    WrittenWrong, and what `go_to_end` raises.
    """
    scheduler.head_block = None
    block = written.first_block - 1
    in_file = geometry.block_count(before) if before else block
    mark = Wanted(0, TapeAddress(block, written.sequence - 1, in_file), None)
    buffer: array[int] = array("B", bytes(geometry.record_bytes))
    reader = RecordReader(scheduler, geometry)
    found = await reader.read(drive, mark, buffer)
    if found.filemark_block != block:
        raise _wrong(written, mark, geometry, found)
    for record in range(written.record_count + 1):
        crc = int.from_bytes(written.crcs[4 * record : 4 * record + 4], "big")
        address = geometry.record_address(written.sequence, written.first_block, record)
        wanted = Wanted(record, address, crc)
        found = await reader.read(drive, wanted, buffer)
        if record == written.record_count:
            right = found.filemark_block == address.block
        else:
            right = found.outcome is Outcome.GOOD
        if not right:
            raise _wrong(written, wanted, geometry, found)
    end = geometry.end_address(written)
    scheduler.head_block = None
    await go_to_end(drive, end)
    scheduler.head_block = end.block


def _wrong(
    written: TapeFile, wanted: Wanted, geometry: Geometry, found: RecordRead
) -> WrittenWrong:
    reason = found.reason or "something else stands in its place"
    kind = DAMAGE_OF.get(found.outcome, DamageKind.MISMATCH)
    position = wanted.record * geometry.record_bytes
    return WrittenWrong(
        f"tape file {written.sequence} does not read back as it was written: record "
        f"{wanted.record} (block {wanted.address.block}): {reason}; clean the drive, or take a new "
        "tape",
        Damage(written.sequence, position, geometry.record_bytes, kind, reason),
    )
