"""Do catalog, spool and tape view of a volume agree? What a filesystem check looks at.

Nothing here changes anything, and nothing is asked of the tape: what the tape view says was
compared with the tape when the volume was mounted.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tapefs.archive.ranges import END_OF_FILE, RangeSet
from tapefs.catalog import NoSuchInode
from tapefs.catalog.agreement import complaints, inodes_with_odd_extents

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tapefs.archive.spool import Spool
    from tapefs.catalog import Catalog, Staged, TapeView
    from tapefs.entries import Extent

# Where a run of a file's bytes stands: start, end, tape file, position there less the start.
_Run = tuple[int, int, int, int]


def disagreements(catalog: Catalog, view: TapeView, spool: Spool) -> Iterator[str]:
    """A sentence for each thing in which the three do not agree; none when all is well.

    To be called between two awaits, with everything committed. Raises StateUnusable when a
    catalog cannot be read.
    """
    yield from complaints(catalog.path, view.path)
    for ino in catalog.staged_inos():
        staged = catalog.load_staged(ino)
        # A row without its inode has been named already.
        with suppress(NoSuchInode):
            if staged is not None:
                yield from _staged_complaints(spool, staged, catalog.inode(ino).size)
    for ino in inodes_with_odd_extents(catalog.path, view.path):
        yield from _extent_complaints(catalog, view, ino)


def _staged_complaints(spool: Spool, staged: Staged, size: int) -> Iterator[str]:
    ino = staged.ino
    for name, ranges in (("resident", staged.resident), ("dirty", staged.dirty)):
        kept = RangeSet(ranges)
        if kept.as_pairs() != list(ranges):
            yield f"the {name} ranges of inode {ino} are not in order: {list(ranges)}"
        if kept.within(size, END_OF_FILE):
            yield f"the {name} ranges of inode {ino} go beyond its {size} bytes"
    here = spool.file_bytes(ino)
    if RangeSet(staged.resident).within(here, END_OF_FILE):
        yield f"the spool file of inode {ino} has {here} bytes, too few for {staged.resident}"
    if not staged.resident and not staged.dirty:
        yield f"inode {ino} has nothing in the spool, but a row that says so"


def _extent_complaints(catalog: Catalog, view: TapeView, ino: int) -> Iterator[str]:
    """Whatever need not go to tape again stands where the tape view says.

    Or it stood in an earlier tape file: a file may have gone to tape whole once more, in a
    segment whose success this host did not hear of.
    """
    size = catalog.inode(ino).size
    staged = catalog.load_staged(ino)
    owed = RangeSet(staged.dirty if staged else ())
    owed.add(size, END_OF_FILE)
    known, told = _runs(catalog.extents(ino), owed), _runs(view.extents(ino), owed)
    edges = sorted({edge for start, end, *_ in (*known, *told) for edge in (start, end)})
    for start in edges:
        here, there = _place(known, start), _place(told, start)
        if here != there and (here is None or there is None or here[0] >= there[0]):
            yield f"byte {start} of inode {ino} is at {here}, but the tape says {there}"
            return


def _runs(extents: Iterable[Extent], owed: RangeSet) -> list[_Run]:
    """Where bytes stand that are not owed."""
    return [
        (start, end, extent.sequence, extent.position - extent.offset)
        for extent in extents
        for start, end in RangeSet([(extent.offset, extent.offset + extent.length)]).without(owed)
    ]


def _place(runs: Iterable[_Run], byte: int) -> tuple[int, int] | None:
    """Tape file and displacement of a byte."""
    return next(((run[2], run[3]) for run in runs if run[0] <= byte < run[1]), None)
