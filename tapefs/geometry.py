"""How records lie on blocks: the one place that knows both.

tapefs speaks of records, which are all of one size; a drive counts blocks. On a medium of variable
blocks a record is one block. A drive that knows blocks of one length only (512 bytes or 1 KiB)
takes a record as so many of them, and so the label's 10,240 bytes. Block addresses are the drive's
own everywhere: on tape, in catalogs, in commands. No I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tapefs.drive.position import TapeAddress
from tapefs.entries import Extent, TapeFile, TapeFileKind

LABEL_BYTES: Final = 10_240


@dataclass(frozen=True, slots=True)
class Geometry:
    """Records of `record_bytes` on blocks of `block_bytes`; 0 is variable, a block per record."""

    record_bytes: int
    block_bytes: int = 0

    @staticmethod
    def is_block_size(block_bytes: int) -> bool:
        """Whether label and records are whole blocks of this size: 0, or 512 to 2,048."""
        return block_bytes in (0, 512, 1024, 2048)

    @property
    def blocks_per_record(self) -> int:
        """How many blocks a record is."""
        return self.record_bytes // self.block_bytes if self.block_bytes else 1

    @property
    def first_tape_file_block(self) -> int:
        """Where tape file 1 starts: after the label and its filemark."""
        return (LABEL_BYTES // self.block_bytes if self.block_bytes else 1) + 1

    @property
    def first_tape_file(self) -> TapeAddress:
        """The address of tape file 1."""
        return TapeAddress(self.first_tape_file_block, 1, 0)

    def bytes_before(self, block: int) -> int:
        """About how many bytes lie before block `block`; filemarks count as blocks."""
        return block * (self.block_bytes or self.record_bytes)

    def whole_records(self, block_count: int) -> int | None:
        """So many blocks as records; None when the last one is cut short."""
        count, rest = divmod(block_count, self.blocks_per_record)
        return None if rest else count

    def record_address(self, sequence: int, first_block: int, record: int) -> TapeAddress:
        """Where record `record` of the tape file that starts at `first_block` starts."""
        offset = record * self.blocks_per_record
        return TapeAddress(first_block + offset, sequence, offset)

    def extent_address(self, extent: Extent, first_block: int) -> TapeAddress:
        """Where the record with the first byte of `extent` starts, in the tape file from there."""
        record = extent.position // self.record_bytes
        return self.record_address(extent.sequence, first_block, record)

    def last_record_address(self, tape_file: TapeFile) -> TapeAddress:
        """Where the last record of a closed tape file, the one with its tail, starts."""
        last = tape_file.record_count - 1
        return self.record_address(tape_file.sequence, tape_file.first_block, last)

    def block_count(self, tape_file: TapeFile) -> int:
        """How many blocks stand before the tape file's filemark."""
        if tape_file.kind is TapeFileKind.TORN:
            return tape_file.record_count
        return tape_file.record_count * self.blocks_per_record

    def record_count(self, tape_file: TapeFile) -> int:
        """How many whole records the tape file has."""
        return self.block_count(tape_file) // self.blocks_per_record

    def end_address(self, tape_file: TapeFile) -> TapeAddress:
        """Where the next tape file starts: after this one's filemark."""
        block = tape_file.first_block + self.block_count(tape_file) + 1
        return TapeAddress(block, tape_file.sequence + 1, 0)
