"""Which inodes the kernel and open files still refer to, and what becomes of unlinked ones.

An inode without a name lives on while the kernel knows it (lookup count above zero) or a file on
it is open. The kernel may deliver FORGET before the RELEASE of the same inode, so both are
counted. What must go and cannot yet is remembered in a set; nothing is asked of the catalog when
the kernel merely drops an inode from its cache.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.archive.tree import reap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapefs.archive.tree import Discards
    from tapefs.catalog import Catalog


@dataclass(slots=True)
class Handle:
    """One open file, from open or create to release."""

    ino: int
    write: bool
    # The opener may keep setuid bits while writing (CAP_FSETID; we see only the user id).
    privileged: bool


class LookupCounts:
    """How many lookups of each inode the kernel has not yet forgotten.

    Four bytes an inode in pages of consecutive numbers, because `find` over a volume of ten
    million files makes the kernel know them all; a page goes when its last count reaches zero.
    """

    _PAGE_BITS: Final = 10
    _INDEX_MASK: Final = (1 << _PAGE_BITS) - 1
    _EMPTY_PAGE: Final = array("I", bytes(4 << _PAGE_BITS))

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        # Inodes with a count above zero, per page.
        self._known: dict[int, int] = {}

    def add(self, ino: int) -> None:
        """One more lookup was answered."""
        number = ino >> self._PAGE_BITS
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = self._EMPTY_PAGE[:]
            self._known[number] = 0
        index = ino & self._INDEX_MASK
        count = page[index]
        page[index] = count + 1
        if count == 0:
            self._known[number] += 1

    def remove(self, ino: int, count: int) -> int:
        """The kernel forgot `count` lookups; returns how many are left."""
        number = ino >> self._PAGE_BITS
        page = self._pages.get(number)
        if page is None:
            return 0
        index = ino & self._INDEX_MASK
        before = page[index]
        left = page[index] = max(0, before - count)
        if before and not left:
            self._known[number] -= 1
            if not self._known[number]:
                del self._pages[number], self._known[number]
        return left

    @property
    def page_count(self) -> int:
        """How many pages are held."""
        return len(self._pages)

    def __getitem__(self, ino: int) -> int:
        page = self._pages.get(ino >> self._PAGE_BITS)
        return page[ino & self._INDEX_MASK] if page is not None else 0

    def __iter__(self) -> Iterator[int]:
        for number, page in self._pages.items():
            first = number << self._PAGE_BITS
            yield from (first + index for index, count in enumerate(page) if count)


class InodeReferences:
    """Counts references to inodes and reaps unlinked ones. Called from the trio thread only."""

    def __init__(self, catalog: Catalog, contents: Discards) -> None:
        self._catalog = catalog
        self._contents = contents
        self.lookups = LookupCounts()
        self._handles: dict[int, Handle] = {}
        self._next_handle = 1
        self._open_counts: dict[int, int] = {}
        self._unlinked: set[int] = set()

    def unreferenced(self, ino: int) -> None:
        """The inode has lost its last name: reap it now, or when the last reference goes."""
        if self.lookups[ino] or ino in self._open_counts:
            self._unlinked.add(ino)
        else:
            reap(self._catalog, self._contents, ino)

    def forget(self, ino: int, count: int) -> None:
        """The kernel forgot `count` lookups of the inode."""
        if not self.lookups.remove(ino, count) and ino in self._unlinked:
            self._reap_when_unused(ino)

    def opened(self, handle: Handle) -> int:
        """Register an open file; returns the number that stands for it."""
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        self._open_counts[handle.ino] = self._open_counts.get(handle.ino, 0) + 1
        return number

    def handle(self, number: int) -> Handle:
        """The open file with this number. Raises KeyError for one that was never opened."""
        return self._handles[number]

    def closed(self, number: int) -> bool:
        """Remove an open file; true when it was the inode's last. Its content must be released
        before, because an unlinked inode is reaped here."""
        ino = self._handles.pop(number).ino
        left = self._open_counts[ino] - 1
        if left:
            self._open_counts[ino] = left
            return False
        del self._open_counts[ino]
        if ino in self._unlinked:
            self._reap_when_unused(ino)
        return True

    def is_open(self, ino: int) -> bool:
        """Whether any file on this inode is open."""
        return ino in self._open_counts

    def open_handles(self) -> list[int]:
        """Numbers of all open files."""
        return list(self._handles)

    def kernel_is_gone(self) -> None:
        """The mount ended without a FORGET for each inode: unlinked ones go now."""
        self.lookups = LookupCounts()
        for ino in list(self._unlinked):
            self._reap_when_unused(ino)

    def _reap_when_unused(self, ino: int) -> None:
        if ino not in self._open_counts and not self.lookups[ino]:
            self._unlinked.remove(ino)
            reap(self._catalog, self._contents, ino)
