"""A segment's journal as a local file: written beside the segment, or fetched from its tail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tapefs.volume.journal import (
    LINE_BYTES_MAX,
    CorruptJournal,
    JournalDecoder,
    RecordCrcs,
    decode_line,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from tapefs.entries import Entry

_READ_BYTES: Final = 256 * 1024


def read_entries(path: Path, volume_uuid: UUID, sequence: int) -> Iterator[Entry]:
    """The journal's entries in order, in bounded memory. Raises CorruptJournal."""
    for line in _lines(path, volume_uuid, sequence):
        if not isinstance(line, RecordCrcs):
            yield line


def read_crcs(path: Path) -> bytes:
    """CRC-32C of the first records of the tape file, as far as the journal tells them.

    Raises CorruptJournal when they do not follow each other.
    """
    crcs = bytearray()
    with path.open("rb") as stream:
        while text := stream.readline(LINE_BYTES_MAX + 1):
            if not text.startswith(b'{"crc32c"'):
                continue
            line = decode_line(text)
            if not isinstance(line, RecordCrcs) or 4 * line.first_record != len(crcs):
                raise CorruptJournal("the record checksums of a segment have a gap")
            crcs += line.crcs
    return bytes(crcs)


def _lines(path: Path, volume_uuid: UUID, sequence: int) -> Iterator[Entry | RecordCrcs]:
    decoder = JournalDecoder(volume_uuid, sequence)
    with path.open("rb") as stream:
        while data := stream.read(_READ_BYTES):
            yield from decoder.feed(data)
    decoder.finish()
