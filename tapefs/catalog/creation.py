"""How the two databases of a volume come into being."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

from tapefs.catalog.database import (
    APPLICATION_LIVE,
    APPLICATION_TAPE,
    TAPE_SCRIPTS,
    Database,
    building,
    run_scripts,
    translated,
)
from tapefs.entries import ROOT_INO

if TYPE_CHECKING:
    from pathlib import Path

    from tapefs.catalog.rows import VolumeSettings

_ROOT_MODE: Final = 0o040755
# 16 MiB: nobody else has to wait for more.
_PAGES_PER_STEP: Final = 4096
_NAMESPACE: Final = ("namespace.sql", "namespace_index.sql")


def create_tape_view(path: Path, settings: VolumeSettings) -> None:
    """Make the tape view of a volume that holds its label and its root directory only.

    Raises StateUnusable when `path` exists or cannot be made.
    """
    with building(path, APPLICATION_TAPE, *_NAMESPACE, *TAPE_SCRIPTS) as connection:
        values = {
            "volume_uuid": str(settings.volume_uuid),
            "name": settings.name,
            "record_bytes": settings.record_bytes,
            "created_ns": settings.created_ns,
            "next_ino": ROOT_INO + 1,
        }
        if settings.block_bytes:
            values["block_bytes"] = settings.block_bytes
        connection.executemany("INSERT INTO setting VALUES (?, ?)", values.items())
        connection.execute(
            "INSERT INTO inode (ino, mode, uid, gid, nlink, size, rdev, atime_ns, mtime_ns,"
            " ctime_ns) VALUES (?1, ?2, 0, 0, 2, 0, 0, ?3, ?3, ?3)",
            (ROOT_INO, _ROOT_MODE, settings.created_ns),
        )


def create_live(tape_view: Path, path: Path, first_ino: int = 0) -> None:
    """Make the live catalog that says what the tape view in `tape_view` says.

    New inodes get numbers from `first_ino` on, and above all that were ever on tape.

    Raises StateUnusable when `path` exists, or when either file cannot be used.
    """
    settings = _live_settings(tape_view, first_ino)
    with building(path, APPLICATION_LIVE) as connection:
        uri = f"{tape_view.absolute().as_uri()}?mode=ro"
        with translated(tape_view), closing(sqlite3.connect(uri, uri=True)) as source:
            # Page by page: five times as fast as row by row.
            source.backup(connection, pages=_PAGES_PER_STEP)
        # The copy wants a log, as the view has one, but nobody would look for it beside a new file.
        (mode,) = connection.execute("PRAGMA journal_mode = OFF").fetchone()
        assert mode == "off", "the copy could not be folded into one file"
        for table in ("tape_file", "setting"):
            connection.execute(f"DROP TABLE {table}")
        run_scripts(connection, "local.sql")
        connection.executemany("INSERT INTO setting VALUES (?, ?)", settings.items())


def _live_settings(tape_view: Path, first_ino: int) -> dict[str, int | str]:
    source = Database.open(tape_view, APPLICATION_TAPE, read_only=True)
    try:
        last = source.first("SELECT coalesce(max(sequence), 0) FROM tape_file")
        assert last is not None
        return {
            "volume_uuid": str(source.setting("volume_uuid")),
            "epoch": 1,
            "next_ino": max(source.integer_setting("next_ino"), first_ino),
            "confirmed_sequence": last[0],
            "segment_written_ns": 0,
            "clean_shutdown": 1,
            "boot_id": "",
        }
    finally:
        source.close()
