"""A journal as a local file that is read more than once."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tapefs.entries import Entry, InodeEntry, LinkEntry, UnlinkEntry
from tapefs.volume import journal_file
from tapefs.volume.journal import JournalHead, encode_entry, encode_head
from tapefs.volume.journal_file import JournalEntries

if TYPE_CHECKING:
    from pathlib import Path

VOLUME = UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")
ENTRIES: list[Entry] = [
    InodeEntry(7, 0o100644, 0, 0, 0, 0, 1, 2, 3),
    LinkEntry(1, b"a", 7),
    UnlinkEntry(1, b"b"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal that says ENTRIES."""
    written = tmp_path / "segment-3.ndjson"
    lines = [encode_head(JournalHead(VOLUME, 3)), *map(encode_entry, ENTRIES)]
    written.write_bytes(b"".join(lines))
    return written


def test_a_short_journal_is_decoded_once(path: Path) -> None:
    entries = JournalEntries(path, VOLUME, 3)
    assert list(entries) == ENTRIES
    path.unlink()
    assert list(entries) == ENTRIES


def test_who_breaks_off_gets_all_of_it_the_next_time(path: Path) -> None:
    entries = JournalEntries(path, VOLUME, 3)
    assert list(islice(entries, 2)) == ENTRIES[:2]
    assert list(entries) == ENTRIES


@pytest.mark.parametrize(("limit_count", "is_kept"), [(3, True), (2, False)])
def test_a_long_journal_is_not_kept_in_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch, limit_count: int, is_kept: bool
) -> None:
    monkeypatch.setattr(journal_file, "ENTRIES_KEPT_MAX", limit_count)
    entries = JournalEntries(path, VOLUME, 3)
    assert list(entries) == ENTRIES
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert list(entries) == (ENTRIES if is_kept else ENTRIES[:-1])
