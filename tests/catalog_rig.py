"""What the catalog's tests share: volumes to start from, short entries, and dumps to compare."""

from __future__ import annotations

import shutil
import sqlite3
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tapefs.catalog import Catalog, TapeView, VolumeSettings
from tapefs.entries import Inode, InodeEntry, TapeFile, TapeFileKind

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = VolumeSettings(UUID(int=7), "shelf 3", 64 * 1024, 1_000)
DIRECTORY = 0o040755
FILE = 0o100644
RECORDS = 1000
TAPE_TABLES = ("setting", "tape_file", "inode", "dentry", "xattr", "extent")


def new_view(directory: Path, name: str = "tape.sqlite") -> TapeView:
    """A view of an empty volume."""
    return TapeView.create(directory / name, SETTINGS)


def segment(sequence: int, kind: TapeFileKind = TapeFileKind.SEGMENT) -> TapeFile:
    """Tape file number `sequence`, when all have RECORDS records."""
    return TapeFile(
        sequence, kind, 2 + (sequence - 1) * (RECORDS + 1), RECORDS, 5_000 + sequence, b""
    )


def described(ino: int, mode: int = FILE, size: int = 0, **rest: Any) -> InodeEntry:
    """An InodeEntry with only what matters."""
    return InodeEntry(ino, mode, 0, 0, size, 0, 1, 2, 3, **rest)


def dump(path: Path, tables: tuple[str, ...] = TAPE_TABLES) -> dict[str, list[Any]]:
    """All rows of a database, table by table, as another program sees them."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return {
            table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr)
            for table in tables
        }
    finally:
        connection.close()


def copy_as_left(path: Path, target: Path) -> Path:
    """Copy a database as a crash would leave it now: the file and its log, no more."""
    shutil.copy(path, target)
    log = path.with_name(path.name + "-wal")
    if log.exists():
        shutil.copy(log, target.with_name(target.name + "-wal"))
    return target


def new_live(directory: Path) -> Path:
    """The path of a closed live catalog of an empty volume."""
    new_view(directory).close()
    path = directory / "live.sqlite"
    Catalog.create_from(directory / "tape.sqlite", path).close(clean=True)
    return path


def make_file(catalog: Catalog, name: bytes = b"f", parent: int = 1) -> Inode:
    """A new file with one name."""
    inode = catalog.new_inode(FILE, 1, 2, now_ns=9)
    catalog.link(parent, name, inode.ino)
    return inode
