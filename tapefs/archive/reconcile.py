"""After an unclean end: make the catalog's word about the spool agree with what is in it.

Two things can be wrong. A clean range may have been overwritten in place shortly before the end,
without the catalog knowing: the copy on tape is the one to believe, so no cache is kept. And after
power loss, bytes that nobody asked to be safe may not be there: then the file is what tape and
the surviving bytes make it, instead of standing in the archiver's way for ever.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from tapefs import telemetry
from tapefs.archive.ranges import END_OF_FILE, RangeSet
from tapefs.catalog import Staged
from tapefs.entries import ExtentEntry

if TYPE_CHECKING:
    from tapefs.archive.spool import Spool
    from tapefs.catalog import Catalog, TapeView


def reconcile_spool(catalog: Catalog, view: TapeView, spool: Spool) -> int:
    """Forget content that tape has as well, and content that is lost. Returns how many files.

    To be called before anybody uses the spool, with a view that knows the whole tape; durable
    when it returns.
    """
    count = 0
    needed: set[int] = set()
    for ino in catalog.staged_inos():
        row = catalog.load_staged(ino)
        assert row is not None
        resident, dirty = RangeSet(row.resident), RangeSet(row.dirty)
        caches = resident.without(dirty)
        kept = resident.without(caches)
        lost = RangeSet(kept.within(spool.file_bytes(ino), END_OF_FILE))
        if caches or lost:
            count += 1
            kept, dirty = kept.without(lost), dirty.without(lost)
            _save(catalog, Staged(ino, kept.as_pairs(), dirty.as_pairs(), row.touched_ns))
        if lost:
            _take_from_tape(catalog, view, ino, lost)
            _give_up(catalog, ino, lost, dirty)
        if kept:
            needed.add(ino)
    # Durable first: a catalog from before would look for what is deleted now.
    catalog.commit(durable=True)
    spool.sweep(needed)
    return count


def _save(catalog: Catalog, staged: Staged) -> None:
    if staged.dirty:
        catalog.save_staged(staged)
    else:
        catalog.delete_staged(staged.ino)


def _take_from_tape(catalog: Catalog, view: TapeView, ino: int, lost: RangeSet) -> None:
    """A segment whose success was not heard of may hold what the spool lost."""
    for extent in view.extents(ino):
        kept = lost.within(extent.offset, extent.offset + extent.length)
        entry = ExtentEntry(ino, extent.offset, extent.length, extent.position, b"")
        # Epoch 0: no change is taken for told.
        catalog.confirm(extent.sequence, 0, extents=[(entry, kept)])


def _give_up(catalog: Catalog, ino: int, lost: RangeSet, dirty: RangeSet) -> None:
    """The file ends where the last byte is that spool or tape still has."""
    inode = catalog.inode(ino)
    known = [end for _, end in dirty]
    known += [extent.offset + extent.length for extent in catalog.extents(ino)]
    inode.size = min(inode.size, max(known, default=0))
    inode.sha256 = inode.xxh128 = None
    catalog.changed(inode)
    names = catalog.links(ino)
    telemetry.event(
        telemetry.SPOOL_CONTENT_LOST,
        logging.WARNING,
        path=os.fsdecode(catalog.path_of(*names[0])) if names else "",
        ino=ino,
        lost_bytes=lost.total_bytes,
        size_bytes=inode.size,
    )
