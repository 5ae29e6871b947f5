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
# Some 8 MiB of entries: three for each new file.
ENTRIES_KEPT_MAX: Final = 30_000


def read_entries(path: Path, volume_uuid: UUID, sequence: int) -> Iterator[Entry]:
    """The journal's entries in order, in bounded memory. Raises CorruptJournal."""
    for line in _lines(path, volume_uuid, sequence):
        if not isinstance(line, RecordCrcs):
            yield line


class JournalEntries:
    """The entries of a journal file that is read more than once; a short one is decoded once.

    Iterate as often as needed, from one thread at a time; raises CorruptJournal as `read_entries`.
    """

    def __init__(self, path: Path, volume_uuid: UUID, sequence: int) -> None:
        self._journal = path, volume_uuid, sequence
        # All of them, once they were read to the end and are few enough to keep.
        self._kept: list[Entry] | None = None

    def __iter__(self) -> Iterator[Entry]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Entry] = []
        for entry in read_entries(*self._journal):
            if len(kept) <= ENTRIES_KEPT_MAX:
                kept.append(entry)
            yield entry
        if len(kept) <= ENTRIES_KEPT_MAX:
            self._kept = kept


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
