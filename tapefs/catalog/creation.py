# ruff: noqa: S608 (every part of a statement is a constant)
"""How the two databases of a volume come into being."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tapefs.catalog.database import (
    APPLICATION_LIVE,
    APPLICATION_TAPE,
    TAPE_SCRIPTS,
    Database,
    building,
    run_scripts,
)
from tapefs.entries import ROOT_INO

if TYPE_CHECKING:
    from pathlib import Path

    from tapefs.catalog.rows import VolumeSettings

_ROOT_MODE: Final = 0o040755
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


def create_live(tape_view: Path, path: Path) -> None:
    """Make the live catalog that says what the tape view in `tape_view` says.

    Raises StateUnusable when `path` exists, or when either file cannot be used.
    """
    settings = _live_settings(tape_view)
    with building(path, APPLICATION_LIVE, *_NAMESPACE) as connection:
        # Into empty tables of the same layout SQLite copies rows and indexes as they are, twice as
        # fast; but not from a file that is attached as read-only.
        connection.execute("ATTACH ? AS tape", (f"{tape_view.absolute().as_uri()}?mode=rw",))
        connection.execute("BEGIN")
        for table in ("inode", "dentry", "xattr", "extent"):
            connection.execute(f"INSERT INTO main.{table} SELECT * FROM tape.{table}")
        connection.execute("COMMIT")
        connection.execute("DETACH tape")
        run_scripts(connection, "local.sql")
        connection.executemany("INSERT INTO setting VALUES (?, ?)", settings.items())


def _live_settings(tape_view: Path) -> dict[str, int | str]:
    source = Database.open(tape_view, APPLICATION_TAPE, read_only=True)
    try:
        last = source.first("SELECT coalesce(max(sequence), 0) FROM tape_file")
        assert last is not None
        return {
            "volume_uuid": str(source.setting("volume_uuid")),
            "epoch": 1,
            "next_ino": source.integer_setting("next_ino"),
            "confirmed_sequence": last[0],
            "segment_written_ns": 0,
            "clean_shutdown": 1,
            "boot_id": "",
        }
    finally:
        source.close()
