"""The tape view as a file of its own: written for a checkpoint, and read back without trust."""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from tapefs.catalog.database import (
    APPLICATION_TAPE,
    CACHE_BYTES,
    LAYOUTS,
    TAPE_SCRIPTS,
    building,
    primary_code,
    run_scripts,
    sentences,
    translated,
)
from tapefs.catalog.rows import EXTENT_COLUMNS, INODE_COLUMNS, TAPE_FILE_COLUMNS
from tapefs.entries import INO_MAX
from tapefs.errors import DamagedTape, StateUnusable
from tapefs.geometry import Geometry

if TYPE_CHECKING:
    from pathlib import Path

# Every table with its columns and the order that makes a copy the same each time.
_TABLES: Final = {
    "setting": ("name, value", "name"),
    "tape_file": (TAPE_FILE_COLUMNS, "sequence"),
    "inode": (INODE_COLUMNS, "ino"),
    "dentry": ("cookie, parent, name, ino", "cookie"),
    "xattr": ("ino, name, value", "ino, name"),
    "extent": (EXTENT_COLUMNS, "ino, offset"),
}
# The largest row: the record checksums of a tape file of 4 TiB in the smallest records.
_VALUE_BYTES_MAX: Final = 256 << 20
_SETTINGS: Final[dict[str, type]] = {
    "volume_uuid": str,
    "name": str,
    "record_bytes": int,
    "created_ns": int,
    "next_ino": int,
}


def export_view(source: Path, path: Path) -> None:
    """Copy the committed rows of the tape view `source` to the new file `path`.

    The copy has tables only, written in one order, so that equal rows give equal bytes. Raises
    StateUnusable when it cannot be written, or when `path` exists.
    """
    with building(path, APPLICATION_TAPE, "namespace.sql") as connection:
        _create_tape_tables(connection)
        connection.execute("ATTACH ? AS source", (f"{source.absolute().as_uri()}?mode=ro",))
        connection.execute("BEGIN")
        for table, (columns, order) in _TABLES.items():
            connection.execute(
                f"INSERT INTO main.{table} ({columns})"
                f" SELECT {columns} FROM source.{table} ORDER BY {order}"
            )
        connection.execute("COMMIT")
        connection.execute("DETACH source")


def import_view(checkpoint: Path, path: Path) -> None:
    """Make the tape view `path` from the copy `checkpoint`, which may hold anything.

    The copy's structure is checked, its rows go one by one through this package's own
    constraints, and what they say is checked as a whole. Raises DamagedTape, StateUnusable.
    """
    if not checkpoint.is_file():
        raise StateUnusable(f"{checkpoint} cannot be used: it is not a file; check its disk")
    with building(path, APPLICATION_TAPE, "namespace.sql", *TAPE_SCRIPTS) as connection:
        try:
            _copy_checked(checkpoint, connection)
            run_scripts(connection, "namespace_index.sql")
            for sentence, query in sentences("namespace_checks.sql", "view_checks.sql"):
                if connection.execute(query).fetchone():
                    raise _damaged(sentence)
        except (sqlite3.Error, UnicodeError) as exc:
            if isinstance(exc, sqlite3.OperationalError) and primary_code(exc) in (
                sqlite3.SQLITE_FULL,
                sqlite3.SQLITE_IOERR,
            ):
                raise
            raise _damaged(f"cannot be read ({exc})") from exc


def _copy_checked(checkpoint: Path, connection: sqlite3.Connection) -> None:
    # immutable: no lock, no log; the copy belongs to us alone and stands by itself.
    uri = f"{checkpoint.absolute().as_uri()}?mode=ro&immutable=1"
    with translated(checkpoint):
        source = sqlite3.connect(uri, uri=True, isolation_level=None)
    source.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES_MAX)
    try:
        for pragma in (
            "trusted_schema = OFF",
            "cell_size_check = ON",
            # Constraints of the copy are expressions of whoever wrote it; ours come later.
            "ignore_check_constraints = ON",
            f"cache_size = -{CACHE_BYTES // 1024}",
        ):
            source.execute(f"PRAGMA {pragma}")
        layout = _check_structure(source)
    finally:
        source.close()
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES_MAX)
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("ATTACH ? AS source", (uri,))
    connection.execute("BEGIN")
    for table, (columns, order) in _TABLES.items():
        found = columns.replace("index_bytes", "0") if layout == 1 else columns
        # From a file attached as read-only SQLite copies row by row, through our constraints.
        connection.execute(
            f"INSERT INTO main.{table} ({columns})"
            f" SELECT {found} FROM source.{table} ORDER BY {order}"
        )
    _check_settings(connection)
    connection.execute("COMMIT")
    connection.execute("DETACH source")


def _check_structure(source: sqlite3.Connection) -> int:
    """Accept plain tables with our names only: a view or trigger could run anything.

    Returns the copy's layout.
    """
    (mark,) = source.execute("PRAGMA application_id").fetchone()
    (version,) = source.execute("PRAGMA user_version").fetchone()
    if mark != APPLICATION_TAPE:
        raise _damaged("is not a catalog")
    if not 1 <= version <= LAYOUTS[APPLICATION_TAPE]:
        raise DamagedTape(
            f"the catalog in the checkpoint has layout {version}, this tapefs knows "
            f"{LAYOUTS[APPLICATION_TAPE]}; use a newer tapefs, or restore with tar"
        )
    found: dict[str, Any] = {}
    for kind, name, sql in source.execute("SELECT type, name, sql FROM sqlite_schema"):
        # Indexes that SQLite makes for a primary key have no text.
        if kind == "index" and sql is None:
            continue
        plain = kind == "table" and str(sql).startswith("CREATE TABLE ")
        if not plain or name not in _TABLES:
            raise _damaged(f"holds an unexpected {kind} '{name}'")
        found[name] = sql
    if found.keys() != _TABLES.keys():
        raise _damaged("lacks a table")
    for name in _TABLES:
        kinds = [row[2] for row in source.execute("PRAGMA table_list") if row[1] == name]
        hidden = [row[6] for row in source.execute(f"PRAGMA table_xinfo({name})")]
        if kinds != ["table"] or any(hidden):
            raise _damaged(f"holds '{name}' as something else than a plain table")
    (verdict,) = source.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _damaged(f"is not intact ({verdict})")
    return int(version)


def _check_settings(connection: sqlite3.Connection) -> None:
    values = dict(connection.execute("SELECT name, value FROM setting"))
    kinds = {name: type(value) for name, value in values.items()}
    block_kind = kinds.pop("block_bytes", int)
    if kinds != _SETTINGS or block_kind is not int:
        raise _damaged("lacks settings of the volume, or has unknown ones")
    try:
        UUID(values["volume_uuid"])
    except ValueError as exc:
        raise _damaged("has no volume UUID") from exc
    if values["record_bytes"] <= 0:
        raise _damaged("has no record size")
    if not 0 <= values["next_ino"] <= INO_MAX + 1:
        raise _damaged("has no inode numbers left")
    if not Geometry.is_block_size(values.get("block_bytes", 0)):
        raise _damaged("has no block size")


def _create_tape_tables(connection: sqlite3.Connection) -> None:
    """The tables of a tape view's own without their indexes."""
    run_scripts(connection, *TAPE_SCRIPTS)
    for index in ("tape_file_checkpoint", "tape_file_generation"):
        connection.execute(f"DROP INDEX {index}")


def _damaged(what: str) -> DamagedTape:
    # Names and messages come from the tape, and the sentence goes to a terminal.
    printable = "".join(char if char.isprintable() else " " for char in what[:200])
    return DamagedTape(
        f"the catalog in the checkpoint {printable}; take an earlier checkpoint, "
        "or restore with tar"
    )
