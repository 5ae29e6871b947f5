"""Questions about a volume as a whole, for a picture of it. Each is one statement.

Seconds for millions of files. For any process, also while another one mounts the volume.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapefs.catalog.shelf import ShelfCatalog

if TYPE_CHECKING:
    from collections.abc import Iterator


class PortraitCatalog(ShelfCatalog):
    """A shelf's catalog that knows sums over all of it. Methods raise StateUnusable."""

    def live_content(self) -> Iterator[tuple[int, int, int]]:
        """Of each tape file that holds content of today: its number, bytes, and how many files."""
        yield from self._database.stream(
            "SELECT sequence, sum(length), count(DISTINCT ino) FROM extent GROUP BY sequence"
            " ORDER BY sequence"
        )

    def largest_in_each(self, limit: int) -> Iterator[tuple[int, int, int]]:
        """Of each tape file what takes most room in it: its number, inode, and bytes."""
        yield from self._database.stream(
            "SELECT sequence, ino, bytes FROM (SELECT sequence, ino, sum(length) AS bytes,"
            " row_number() OVER (PARTITION BY sequence ORDER BY sum(length) DESC) AS place"
            " FROM extent GROUP BY sequence, ino) WHERE place <= ? ORDER BY sequence, place",
            (limit,),
        )

    def largest_names(self, limit: int) -> Iterator[tuple[int, bytes, int, int, int, bytes | None]]:
        """Names of the largest files: directory, name, inode, size, time of change, SHA-256."""
        yield from self._database.stream(
            "SELECT parent, name, ino, size, mtime_ns, sha256 FROM inode JOIN dentry USING (ino)"
            " WHERE mode & 61440 = 32768 ORDER BY size DESC LIMIT ?",
            (limit,),
        )
