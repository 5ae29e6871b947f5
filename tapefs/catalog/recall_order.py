"""What a recall into a directory has to do, in the order of the tape, however much it is.

A file in the directory itself: so memory does not grow with the number of files, and the next
recall into it knows what this one has proven. Losing it costs time only.
"""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.catalog.database import (
    CACHE_BYTES,
    Database,
    remove_database,
    run_scripts,
    translated,
)
from tapefs.catalog.rows import INODE_COLUMNS, inode_row
from tapefs.entries import Inode
from tapefs.errors import StateUnusable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import Self

    from tapefs.catalog.database import Row

_PAGE_ROWS: Final = 500
_APPLICATION: Final = 0x74665243
_INODE_COLUMNS_COUNT: Final = INODE_COLUMNS.count(",") + 1
_COLUMNS: Final = f"id, path, origin, {INODE_COLUMNS}, place, position"
_INSERT: Final = (
    f"INSERT INTO item (path, origin, {INODE_COLUMNS}, place, position)"
    f" VALUES (?, ?{', ?' * _INODE_COLUMNS_COUNT}, ?, ?)"
)
# States of an item; 0 is waiting.
_DONE: Final = 1
_DISMISSED: Final = 2
_PLACE: Final = "place, position, id"
_IS_FILE: Final = "mode & 61440 = 32768"
_IS_DIRECTORY: Final = "mode & 61440 = 16384"


@dataclass(frozen=True, slots=True)
class Item:
    """One name that is to be at `path`, and what is at `origin` on its volume.

    `place` is the block that its first byte stands in, and `position` tells apart what is in one
    block; what is not on tape, or has no content, has zeros.
    """

    path: bytes
    origin: bytes
    inode: Inode
    place: int = 0
    position: int = 0
    number: int | None = None


@dataclass(frozen=True, slots=True)
class WaitingPlace:
    """A file that waits: its item's number and place on tape, and how large it is."""

    number: int
    block: int
    size: int


class RecallOrder:
    """The items of one recall, and proofs from earlier ones. For one thread.

    Methods raise StateUnusable when the file cannot be used, SpoolFull when its disk is full.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted_count = 0

    @classmethod
    def open(cls, path: Path) -> Self:
        """The order in `path`, without items; made when it is missing or cannot be understood."""
        try:
            return cls(_opened(path))
        except StateUnusable:
            remove_database(path)
            return cls(_opened(path))

    def begin(self, items: Iterable[Item]) -> None:
        """Take `items`, directories before what is in them, in place of those that are here.

        Raises FileExistsError when two of them go to the same path.
        """
        with self._database.transaction():
            self._database.execute("DELETE FROM item")
            try:
                self._database.execute_many(_INSERT, map(_row, items))
            except sqlite3.IntegrityError as exc:
                raise FileExistsError from exc
            self._database.execute(
                "UPDATE item SET first = (SELECT min(id) FROM item AS other"
                " WHERE other.ino = item.ino AND other.nlink > 1)"
                f" WHERE nlink > 1 AND NOT {_IS_DIRECTORY}"
            )
            self._database.execute("UPDATE item SET first = NULL WHERE first = id")

    def content(self) -> tuple[int, int]:
        """How many files bring content, and how many bytes."""
        row = self._database.first(
            f"SELECT count(*), coalesce(sum(size), 0) FROM item WHERE {_IS_FILE} AND first IS NULL"
        )
        assert row is not None
        return row[0], row[1]

    def directories(self) -> Iterator[Item]:
        """Every directory before those in it."""
        return self._in_order(_IS_DIRECTORY)

    def directories_upwards(self) -> Iterator[Item]:
        """Every directory after those in it."""
        return self._pages(f"{_IS_DIRECTORY} AND id < ? ORDER BY id DESC", (2**63 - 1,), "id")

    def nodes(self) -> Iterator[Item]:
        """What is neither a directory nor has content."""
        return self._in_order(f"NOT {_IS_DIRECTORY} AND NOT {_IS_FILE} AND first IS NULL")

    def files(self) -> Iterator[Item]:
        """The files that bring content, in the order in which they were given."""
        return self._in_order(f"{_IS_FILE} AND first IS NULL")

    def waiting_files(self) -> Iterator[Item]:
        """The files that bring content and are neither done nor dismissed, in tape order."""
        self._database.execute(
            f"CREATE INDEX IF NOT EXISTS item_place ON item ({_PLACE}) WHERE first IS NULL"
        )
        return self._pages(
            f"{_IS_FILE} AND first IS NULL AND NOT state AND ({_PLACE}) > (?, ?, ?)"
            f" ORDER BY {_PLACE}",
            (-1, 0, 0),
            _PLACE,
        )

    def waiting_places(self, count_max: int) -> list[WaitingPlace] | None:
        """Of the same files all that is needed to put them in order; None if there are more."""
        rows = self._database.rows(
            f"SELECT id, place, size FROM item WHERE {_IS_FILE} AND first IS NULL AND NOT state"
            f" ORDER BY {_PLACE} LIMIT ?",
            (count_max + 1,),
        )
        return None if len(rows) > count_max else [WaitingPlace(*row) for row in rows]

    def item(self, number: int) -> Item:
        """The item with this number."""
        row = self._database.first(f"SELECT {_COLUMNS} FROM item WHERE id = ?", (number,))
        assert row is not None, "no item has this number"
        return _item(row)

    def further_names(self) -> Iterator[tuple[Item, bytes]]:
        """Other names of what another item brought, each with the path of that, if it is done."""
        for item in self._in_order("first IS NOT NULL"):
            row = self._database.first(
                f"SELECT path FROM item WHERE state = {_DONE} AND id ="
                " (SELECT first FROM item AS other WHERE other.id = ?)",
                (item.number,),
            )
            if row is not None:
                yield item, row[0]

    def note_done(self, item: Item) -> None:
        """`item` is at its place, and proven."""
        self._note(item, _DONE)

    def note_dismissed(self, item: Item) -> None:
        """`item` is not to be at its place after all."""
        self._note(item, _DISMISSED)

    def _note(self, item: Item, state: int) -> None:
        if not self._database.in_transaction:
            self._database.begin()
        self._database.execute("UPDATE item SET state = ? WHERE id = ?", (state, item.number))
        self._noted_count += 1
        if self._noted_count % _PAGE_ROWS == 0:
            self._database.commit()

    def proof(self, volume: str, inode: Inode) -> bytes | None:
        """SHA-256 of what was copied of `inode` as it is now, where an earlier recall noted it."""
        row = self._database.first(
            "SELECT sha256 FROM proof WHERE (volume, ino, size, mtime_ns) = (?, ?, ?, ?)",
            (volume, inode.ino, inode.size, inode.mtime_ns),
        )
        return bytes(row[0]) if row else None

    def note_proof(self, volume: str, inode: Inode, sha256: bytes) -> None:
        """The content of `inode` that was copied has this SHA-256. Survives this process."""
        self._database.execute(
            "INSERT OR REPLACE INTO proof (volume, ino, size, mtime_ns, sha256)"
            " VALUES (?, ?, ?, ?, ?)",
            (volume, inode.ino, inode.size, inode.mtime_ns, sha256),
        )
        if self._database.in_transaction:
            self._database.commit()

    def close(self) -> None:
        """Close the file. May be called again."""
        self._database.close()

    def _in_order(self, condition: str) -> Iterator[Item]:
        return self._pages(f"{condition} AND id > ? ORDER BY id", (0,), "id")

    def _pages(self, condition: str, after: Row, place: str) -> Iterator[Item]:
        """`place`: the columns of the last row that the next page goes on from."""
        width = place.count(",") + 1
        while rows := self._database.rows(
            f"SELECT {_COLUMNS}, {place} FROM item WHERE {condition} LIMIT {_PAGE_ROWS}", after
        ):
            yield from (_item(row) for row in rows)
            after = rows[-1][-width:]


def _opened(path: Path) -> Database:
    with translated(path):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    return Database(connection, path, fail_stop=False)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    for pragma in (
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "mmap_size = 0",
        f"cache_size = -{CACHE_BYTES // 1024}",
        # A crash of this process loses nothing, and a power cut nothing that matters.
        "synchronous = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (tables_count,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables_count:
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        run_scripts(connection, "recall_order.sql")
    elif mark != _APPLICATION:
        raise StateUnusable(f"{path} is not what its name says")


def _row(item: Item) -> tuple[object, ...]:
    return (item.path, item.origin, *inode_row(item.inode), item.place, item.position)


def _item(row: Row) -> Item:
    place = 3 + _INODE_COLUMNS_COUNT
    return Item(row[1], row[2], Inode(*row[3:place]), row[place], row[place + 1], row[0])
