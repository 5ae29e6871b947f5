"""Sessions on a volume: label, append, find the end, read back. The only I/O here is the drive's.

Every function takes the drive for its duration, so it runs inside a job of the lane. Nothing here
decides anything: what to write and what to believe is the archive's business.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

import crc32c
import trio

from tapefs import telemetry
from tapefs.drive import UnsupportedDrive
from tapefs.entries import TapeFile, TapeFileKind
from tapefs.errors import (
    BlankTape,
    DamagedTape,
    ForeignTape,
    MediumFailed,
    StateUnusable,
    WrongTape,
)
from tapefs.geometry import LABEL_BYTES, Geometry
from tapefs.scsi.sense import (
    BeginningOfMedium,
    EndOfData,
    FilemarkDetected,
    IncorrectLength,
)
from tapefs.volume.label import Label, decode_label, encode_label
from tapefs.volume.tail import NoTail, Tail, find_tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tapefs.drive import TapeAddress, TapeDrive
    from tapefs.volume.record_feed import RecordFeed
    from tapefs.volume.records import RecordBuffers
    from tapefs.volume.short_file import RecordSource
    from tapefs.volume.tail import MemberSpan

# What a foreign first block may measure at most to be looked at; larger ones are foreign anyway.
_PROBE_BYTES: Final = 1 << 20
# Headers of tapefs's own members: an extended header with a time, and the ustar header.
_HEADER_BYTES_MAX: Final = 2048
# How long a worker, or the thread of the wire, goes on by itself. Then the trio thread is told how
# far it is, hands out what has come, and may cancel it.
VISIT_S: Final = 0.1


async def read_label(drive: TapeDrive) -> Label:
    """The label of the loaded tape. Leaves the head after the label, and the drive with its blocks.

    A drive that takes blocks of any length is put to those of a tape that a drive of fixed blocks
    has written. Raises BlankTape when nothing is recorded, ForeignTape when something else is,
    DamagedTape, and UnsupportedDrive when the drive cannot use blocks of that length.
    """
    length = await _read_first(drive, buffer := array("B", bytes(_PROBE_BYTES)))
    if length != LABEL_BYTES and length and Geometry.is_block_size(length):
        await drive.select_block_bytes(length)
        length = await _read_first(drive, buffer := array("B", bytes(LABEL_BYTES)))
    if length != LABEL_BYTES:
        raise ForeignTape(
            f"the tape's first record has {length} bytes, so tapefs did not write it; "
            "insert another tape, or use tapefs format to erase this one"
        )
    label = decode_label(memoryview(buffer)[:length].tobytes())
    if label.block_bytes != drive.block_bytes:
        raise DamagedTape(
            f"the label speaks of blocks of {label.block_bytes} bytes (0: any), but the tape has "
            f"blocks of {drive.block_bytes}; it was copied block by block, use the original"
        )
    return label


async def _read_first(drive: TapeDrive, buffer: array[int]) -> int:
    """Read what the tape starts with: its length, at most that of a label with fixed blocks."""
    await drive.rewind()
    if drive.block_bytes:
        if LABEL_BYTES % drive.block_bytes:
            raise UnsupportedDrive(
                f"the drive knows only blocks of {drive.block_bytes} bytes, which make up no "
                "label; use another drive"
            )
        del buffer[LABEL_BYTES:]
    try:
        return await drive.read_block(buffer)
    except EndOfData:
        raise BlankTape("the tape is blank; tapefs format makes it a volume") from None
    except FilemarkDetected:
        raise ForeignTape(
            "the tape starts with a filemark or less than a label, so tapefs did not write it; "
            "insert another tape"
        ) from None
    except IncorrectLength:
        raise ForeignTape(
            "the tape's first record is larger than any that tapefs writes; insert another tape"
        ) from None


async def write_label(drive: TapeDrive, label: Label) -> None:
    """Make the tape a volume: label, filemark, flushed. Destroys everything on the tape."""
    await drive.rewind()
    await drive.write_block(array("B", encode_label(label)))
    await drive.write_filemarks(1)


@dataclass(frozen=True, slots=True)
class EndOfTape:
    """Where the recorded part ends.

    `block` is the end of data. `torn_blocks` is how many blocks follow the last filemark: a tape
    file whose writer died. `last_file_end` is the address of the last filemark.
    """

    block: int
    torn_blocks: int
    last_file_end: int


async def find_end(drive: TapeDrive, near: TapeAddress | None = None) -> EndOfTape:
    """Space to the end of data and look at what stands before it.

    `near` is where it was seen last (`TapeDrive.space_to_end_of_data`). Leaves the head somewhere
    before the end. Raises DamagedTape when the drive cannot tell where it stands, which an append
    needs (P6).
    """
    end = (await drive.space_to_end_of_data(near)).block
    if end is None:
        raise DamagedTape("the drive cannot tell where the end of data is; nothing can be appended")
    try:
        await drive.space_filemarks(-1)
    except BeginningOfMedium:
        raise DamagedTape(
            "the label is not closed: formatting was interrupted; run tapefs format again"
        ) from None
    mark = (await drive.position()).block
    if mark is None:
        raise DamagedTape("the drive lost its position near the end of data; try again")
    return EndOfTape(end, end - mark - 1, mark)


async def go_to_end(drive: TapeDrive, expected: TapeAddress) -> None:
    """Stand at the end of data, and prove that it is where it must be (P6).

    Raises WrongTape when it is not: then nothing may be written.
    """
    block = (await drive.space_to_end_of_data(expected)).block
    if block != expected.block:
        raise WrongTape(
            f"the end of data is at block {block}, not at block {expected.block} as the catalog "
            "says; the tape was changed elsewhere, unmount it and mount it again"
        )


async def prove_position(drive: TapeDrive, expected_block: int) -> None:
    """The head must stand where the last append left it. Raises WrongTape when it does not."""
    block = (await drive.position()).block
    if block != expected_block:
        raise WrongTape(
            f"the head stands at block {block} instead of {expected_block}; something moved the "
            "tape, unmount it and mount it again"
        )


@dataclass(slots=True)
class AppendProgress:
    """How far an append is; for whoever shows progress."""

    records_written: int = 0
    early_warning: bool = False


async def append(
    drive: TapeDrive, feed: RecordFeed, buffers: RecordBuffers, progress: AppendProgress
) -> None:
    """Write records and a synchronising filemark. The head must stand at the end of data.

    When this returns, everything is on tape. Raises EndOfMedium, MediumError, DriveGone, ...:
    then some of it may be there, and the tape file is torn; so it is with NotFinalized.
    """
    while records := await feed.wait():
        while records:
            visit = _Visit(feed, buffers, progress, records)
            count, outcome = await drive.write_blocks(records, visit.more)
            records = visit.end(count)
            if outcome.early_warning and not progress.early_warning:
                progress.early_warning = True
                telemetry.event(telemetry.EARLY_WARNING, logging.INFO)
    outcome = await drive.write_filemarks(1)
    progress.early_warning |= outcome.early_warning


class _Visit:
    """Records on their way to the drive while the thread of the wire need not be left."""

    def __init__(
        self,
        feed: RecordFeed,
        buffers: RecordBuffers,
        progress: AppendProgress,
        records: Sequence[array[int]],
    ) -> None:
        self._feed = feed
        self._buffers = buffers
        self._progress = progress
        # With the drive now; and how many it has taken before.
        self._records = records
        self._written_count = 0
        self._clock = trio.lowlevel.current_clock()
        self._until_s = self._clock.current_time() + VISIT_S

    def more(self) -> Sequence[array[int]]:
        """The drive has taken all so far: what follows. In the thread of the wire."""
        self._written(len(self._records))
        if self._clock.current_time() < self._until_s:
            self._records = self._feed.ready()
        return self._records

    def end(self, count: int) -> Sequence[array[int]]:
        """The drive has taken `count` since the visit began; returns those that it has not."""
        self._written(count - self._written_count)
        return self._records

    def _written(self, count: int) -> None:
        for record in self._records[:count]:
            self._buffers.give_back(record)
        self._records = self._records[count:]
        self._written_count += count
        self._progress.records_written += count


async def close_torn(drive: TapeDrive, end: EndOfTape) -> None:
    """End a torn tape file with a filemark, so that it gets a number and is skipped ever after."""
    block = (await drive.space_to_end_of_data()).block
    if block != end.block:
        raise WrongTape(
            f"the end of data is at block {block} and was at block {end.block} a moment ago; "
            "something moved the tape, unmount it and mount it again"
        )
    await drive.write_filemarks(1)


async def read_tail(drive: RecordSource, address: TapeAddress, geometry: Geometry) -> Tail:
    """The tail in the record at `address`. Raises NoTail, CorruptTail."""
    buffer: array[int] = array("B", bytes(geometry.record_bytes))
    try:
        await drive.locate(address)
        length = await drive.read_block(buffer)
    except (FilemarkDetected, EndOfData, IncorrectLength, MediumFailed) as exc:
        raise NoTail("the end of a tape file cannot be read") from exc
    if length != geometry.record_bytes:
        raise NoTail("the last record of a tape file has the wrong length")
    return find_tail(memoryview(buffer))


async def tail_before_head(drive: TapeDrive, geometry: Geometry) -> Tail:
    """The tail in the record just before the filemark at which the head stands.

    Raises NoTail, CorruptTail.
    """
    buffer: array[int] = array("B", bytes(geometry.record_bytes))
    try:
        await drive.space_blocks(-geometry.blocks_per_record)
        length = await drive.read_block(buffer)
    except (BeginningOfMedium, FilemarkDetected, EndOfData, IncorrectLength, MediumFailed) as exc:
        raise NoTail("the end of the last tape file cannot be read") from exc
    return find_tail(memoryview(buffer)[:length])


async def fetch_span(
    drive: RecordSource,
    tail: Tail,
    span: MemberSpan,
    geometry: Geometry,
    target: Path,
    report: Callable[[int, int], None],
) -> TapeFile:
    """Copy the member at `span` of the tail's tape file to the local file `target`, checked.

    Reads from the record that holds the member's header to the end of the tape file, so that the
    checksums of all these records are known; the result has zeros for those before. Raises
    DamagedTape when the SHA-256 disagrees, a record has another length or is missing, or the
    member would reach beyond its tape file; StateUnusable when `target` cannot be written.
    """
    record_bytes = geometry.record_bytes
    if span.position + span.length > tail.record_count * record_bytes:
        raise DamagedTape(f"the tail of tape file {tail.sequence} points beyond its end")
    first = max(0, span.position - _HEADER_BYTES_MAX) // record_bytes
    try:
        await drive.locate(geometry.record_address(tail.sequence, tail.first_block, first))
    except (FilemarkDetected, EndOfData) as exc:
        raise DamagedTape(f"the index of tape file {tail.sequence} is missing") from exc
    buffer: array[int] = array("B", bytes(record_bytes))
    view = memoryview(buffer)
    sha256 = hashlib.sha256()
    crcs = bytearray(4 * first)
    end = span.position + span.length
    with _local_copy(target) as stream:
        for record in range(first, tail.record_count):
            await _read_whole(drive, buffer, f"record {record} of tape file {tail.sequence}")
            crcs += crc32c.crc32c(view).to_bytes(4, "big")
            base = record * record_bytes
            start = min(max(span.position - base, 0), record_bytes)
            piece = view[start : max(min(end - base, record_bytes), start)]
            sha256.update(piece)
            stream.write(piece)
            report(record - first + 1, tail.record_count - first)
    if sha256.digest() != span.sha256:
        raise DamagedTape(f"the index of tape file {tail.sequence} is not what was written there")
    return TapeFile(
        tail.sequence,
        tail.kind,
        tail.first_block,
        tail.record_count,
        tail.written_ns,
        bytes(crcs),
        span.length,
    )


async def _read_whole(drive: RecordSource, buffer: array[int], what: str) -> None:
    """Fill `buffer` from the next record. Raises DamagedTape unless it has exactly that length."""
    try:
        length = await drive.read_block(buffer)
    except (FilemarkDetected, EndOfData) as exc:
        raise DamagedTape(f"{what} is missing") from exc
    except IncorrectLength as exc:
        raise DamagedTape(f"{what} is too long") from exc
    if length != len(buffer):
        raise DamagedTape(f"{what} is cut short")


@contextmanager
def _local_copy(path: Path) -> Iterator[BinaryIO]:
    """`path` for writing; what its disk refuses is a StateUnusable."""
    try:
        with path.open("wb") as stream:
            yield stream
    except OSError as exc:
        raise StateUnusable(
            f"{path} cannot be written: {exc.strerror}; free some of its disk and mount again"
        ) from exc


def torn_file(start: TapeAddress, block_count: int) -> TapeFile:
    """The catalog's word for a tape file without a tail."""
    return TapeFile(start.file, TapeFileKind.TORN, start.block, block_count, 0)
