"""After the filemark: what a segment holds is told to contents and to the live catalog (P7).

A range of a file becomes clean only where nobody has touched it since the segment's snapshot, and
a whole file's hashes count only while the file is what was hashed.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from tapefs.entries import ExtentEntry, InodeEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tapefs.archive.burst import Burst
    from tapefs.archive.contents import Contents
    from tapefs.catalog import Catalog
    from tapefs.entries import Entry

# Entries confirmed between two looks at the event loop.
_CONFIRM_BATCH: Final = 400


class Confirmation:
    """Tells what is on tape. For the archiver's task only, between begin and end of a burst."""

    def __init__(self, catalog: Catalog, contents: Contents) -> None:
        self._catalog = catalog
        self._contents = contents

    async def segment(
        self, sequence: int, entries: Iterable[Entry], epoch: int, untold: set[tuple[int, bytes]]
    ) -> None:
        """All `entries` of the journal of segment `sequence` are on tape, flushed.

        Of the names `untold` the journal does not say everything: they stay noted. The catalog
        is durable when this returns. Raises StateUnusable.
        """
        batch, left = _Batch(untold), iter(entries)
        while some := list(islice(left, _CONFIRM_BATCH)):
            self._hand_over(some, batch, sequence, epoch)
            batch = batch.next_batch()
            await trio.lowlevel.checkpoint()
        self._catalog.set_confirmed_sequence(sequence)
        self._catalog.commit()
        # Durable before anything leaves the spool: a catalog from before would look for it there.
        await trio.to_thread.run_sync(self._catalog.sync_log)
        self._contents.clean_is_durable()

    def unsaid(self, burst: Burst, sequence: int, epoch: int) -> None:
        """Changes that cancelled out before tape heard of them are no changes any more."""
        with self._catalog.transaction():
            self._catalog.confirm(
                sequence,
                epoch,
                extents=[],
                logged_inodes=burst.gone_inodes,
                logged_dentries=burst.gone_names,
                hashes=[],
            )

    def _hand_over(self, some: list[Entry], batch: _Batch, sequence: int, epoch: int) -> None:
        # No await in here, and nothing that reads a file: what becomes clean is told at once.
        written = {entry.ino for entry in some if isinstance(entry, ExtentEntry)}
        self._catalog.prefetch_staged(written)
        for entry in some:
            self._take(batch, entry)
        with self._catalog.transaction():
            self._catalog.confirm(
                sequence,
                epoch,
                extents=batch.extents,
                logged_inodes=batch.inodes,
                logged_dentries=batch.names,
                hashes=batch.hashes,
            )

    def _take(self, batch: _Batch, entry: Entry) -> None:
        """Take note of one entry; content ranges become clean.

        The hashes of a whole file count if its one extent, which follows its inode in the
        journal, is still the content: attributes may have changed meanwhile.
        """
        if isinstance(entry, ExtentEntry):
            archived = (entry.offset, entry.offset + entry.length)
            kept = self._contents.confirm(entry.ino, [archived])
            batch.extents.append((entry, kept))
            whole = batch.whole
            if whole is not None and whole.ino == entry.ino and self._is_still(whole, kept):
                batch.hashes.append((entry.ino, whole.sha256, whole.xxh128))
        elif isinstance(entry, InodeEntry):
            batch.inodes.append(entry.ino)
            batch.whole = entry if entry.sha256 is not None else None
        elif (entry.parent, entry.name) not in batch.untold:
            batch.names.append((entry.parent, entry.name))

    def _is_still(self, whole: InodeEntry, kept: list[tuple[int, int]]) -> bool:
        """Whether all that was archived still stands, and nothing was appended since."""
        return kept == [(0, whole.size)] and self._contents.is_unchanged(whole.ino)


class _Batch:
    """What some journal entries confirm."""

    def __init__(self, untold: set[tuple[int, bytes]], whole: InodeEntry | None = None) -> None:
        self.untold = untold
        self.extents: list[tuple[ExtentEntry, list[tuple[int, int]]]] = []
        self.inodes: list[int] = []
        self.names: list[tuple[int, bytes]] = []
        self.hashes: list[tuple[int, bytes | None, bytes | None]] = []
        # The last inode with the hashes of a whole file; its extent is the next entry.
        self.whole = whole

    def next_batch(self) -> _Batch:
        """An empty batch that goes on where this one ended."""
        return _Batch(self.untold, self.whole)
