"""What changes in a file while a segment with it is being written.

A segment is made from a snapshot, and takes a while. Whatever is written to a file from the moment
of the snapshot on must stay dirty when the segment is committed. From the snapshot until the
selection of files is known, changes of any file are noted; after that only those of the selection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapefs.archive.ranges import RangeSet

if TYPE_CHECKING:
    from collections.abc import Iterable


class InFlight:
    """Ranges changed since the burst's snapshot, by inode. One burst at a time."""

    def __init__(self) -> None:
        self._changed: dict[int, RangeSet] = {}
        self._selected: frozenset[int] | None = None
        self._active = False

    def begin(self) -> None:
        """The snapshot is taken now."""
        assert not self._active, "two bursts at once"
        self._changed, self._selected, self._active = {}, None, True

    def narrow(self, inos: Iterable[int]) -> None:
        """Only these files are in the segment; forget the others."""
        self._selected = frozenset(inos)
        self._changed = {
            ino: ranges for ino, ranges in self._changed.items() if ino in self._selected
        }

    def end(self) -> None:
        """The burst is over, committed or failed."""
        self._changed, self._selected, self._active = {}, None, False

    def note(self, ino: int, start: int, end: int) -> None:
        """Bytes [start, end) of `ino` change now."""
        if self._active and (self._selected is None or ino in self._selected):
            self._changed.setdefault(ino, RangeSet()).add(start, end)

    def is_unchanged(self, ino: int) -> bool:
        """Whether nothing at all of the file has changed since the snapshot, its size included."""
        return ino not in self._changed

    def unchanged(self, ino: int, ranges: Iterable[tuple[int, int]]) -> RangeSet:
        """The part of `ranges` that nobody has touched since the snapshot."""
        kept = RangeSet(ranges)
        changed = self._changed.get(ino)
        return kept if changed is None else kept.without(changed)
