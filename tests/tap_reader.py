"""A second, independent reader of SIMH .tap images, so that tests do not take the emulator's word.

Written from the format's description alone; imports nothing of tapefs. Strict: both length words
must agree, padding must be there, and nothing may follow the end-of-medium word.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def objects(path: Path) -> Iterator[bytes | None]:
    """Each record's data in tape order, and None for a filemark."""
    with path.open("rb") as image:
        while word := image.read(4):
            (length,) = struct.unpack("<I", word)
            if length == 0xFFFFFFFF:
                assert not image.read(1), "data after the end-of-medium word"
                return
            if length == 0:
                yield None
                continue
            assert length < 1 << 24, f"not a plain record: {length:#x}"
            data = image.read(length + length % 2)
            assert len(data) == length + length % 2, "record cut off"
            assert image.read(4) == word, "length words disagree"
            yield data[:length]


def tape_files(path: Path) -> Iterator[list[bytes]]:
    """The records of each tape file, those behind the last filemark included."""
    records: list[bytes] = []
    for item in objects(path):
        if item is None:
            yield records
            records = []
        else:
            records.append(item)
    if records:
        yield records


def write_tape_file(path: Path, number: int, into: BinaryIO) -> None:
    """Copy tape file `number`, counted from 0, as `dd` from a tape would; for tar to read."""
    marks = 0
    for item in objects(path):
        if item is None:
            marks += 1
        elif marks == number:
            into.write(item)
        if marks > number:
            return
