"""Reading a file's bytes from the spool while it is archived."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from tapefs.archive.before_images import Reader
from tapefs.archive.ranges import RangeSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapefs.archive.before_images import BeforeImages
    from tapefs.archive.spool import Spool
    from tapefs.catalog import Staged


class SpoolContent:
    """A file's bytes as the spool has them; what is not there is a hole."""

    def __init__(self, spool: Spool, row: Staged, images: BeforeImages) -> None:
        self._resident = RangeSet(row.resident)
        self._ino = row.ino
        self._images = images
        self._fd = spool.open_for_reading(row.ino) if row.resident else -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def fill(self, spaces: Sequence[memoryview], offset: int) -> None:
        """Fill `spaces`, one after the other, with the bytes from `offset` on; zeros where the
        spool has none."""
        if not self._images.is_copied(self._ino):
            self._fill(spaces, offset)
            return
        with self._images.reading(Reader.COPY, self._ino, spaces, offset):
            self._fill(spaces, offset)

    def _fill(self, spaces: Sequence[memoryview], offset: int) -> None:
        length = sum(map(len, spaces))
        is_here = length and self._resident.covers(offset, offset + length)
        if is_here and os.preadv(self._fd, spaces, offset) == length:
            return
        for space in spaces:
            self._fill_in_parts(space, offset)
            offset += len(space)

    def _fill_in_parts(self, space: memoryview, offset: int) -> None:
        end = offset + len(space)
        if not self._resident.covers(offset, end):
            space[:] = bytes(len(space))
        for start, stop in self._resident.within(offset, end):
            piece = space[start - offset : stop - offset]
            while piece and (length := os.preadv(self._fd, [piece], start)):
                piece, start = piece[length:], start + length  # noqa: PLW2901
            piece[:] = bytes(len(piece))  # a local file that power loss cut short
