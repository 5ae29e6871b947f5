"""Volumes of millions of files, made in seconds per million instead of through a mount.

One file with random content goes to tape as always. Then rows are added to the tape view for files
whose content is a piece of that file's: each has a piece, hashes and times of its own, as files
have, so that a catalog of them packs as well as a real one. They can be read, too. The next mount
finds nothing on tape that contradicts the view, and its checkpoint brings all of it to tape.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
from typing import TYPE_CHECKING, Final

import xxhash

if TYPE_CHECKING:
    from pathlib import Path

    from volume_rig import Rig

POOL_BYTES: Final = 4 << 20
FILES_PER_DIRECTORY: Final = 500
# Pieces start at multiples of this and are PIECE_BYTES long.
PIECE_BYTES: Final = 4096
_FIRST_NS: Final = 1_400_000_000 * 10**9
_SPAN_NS: Final = 400_000_000 * 10**9
_BATCH: Final = 100_000

_DIRECTORIES: Final = """
WITH RECURSIVE number (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < ?1)
INSERT INTO inode SELECT ?2 + n, 16877, 1000, 1000, 2, 0, 0, ?3 + n, ?3 + n, ?3 + n,
                         NULL, NULL, NULL FROM number
"""
_DIRECTORY_NAMES: Final = """
INSERT INTO dentry SELECT NULL, 1, CAST(printf('project %05d', ino - ?1) AS BLOB), ino
FROM inode WHERE ino >= ?1 ORDER BY ino
"""
_NUMBERS: Final = """
WITH RECURSIVE number (n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < ?2)
"""
_FILES: Final = f"""{_NUMBERS}
INSERT INTO inode SELECT ?3 + n, 33188, 1000, 1000, 1, {PIECE_BYTES}, 0, ?4 + n, changed_ns(n),
                         ?4 + n * 1000003, NULL, sha256_of(n), xxh128_of(n) FROM number
"""
_NAMES: Final = f"""{_NUMBERS}
INSERT INTO dentry
SELECT NULL, ?3 + n / {FILES_PER_DIRECTORY}, name_of(n), ?4 + n FROM number
"""
_EXTENTS: Final = f"""{_NUMBERS}
INSERT INTO extent SELECT ?3 + n, 0, {PIECE_BYTES}, ?4, ?5 + start_of(n) FROM number
"""


def _start_of(number: int) -> int:
    return number * 61 % (POOL_BYTES - PIECE_BYTES)


def path_of(number: int) -> str:
    """Where file `number`, counted from 0, is."""
    directory = number // FILES_PER_DIRECTORY
    return f"/project {directory:05}/{_name_of(number).decode()}"


def _name_of(number: int) -> bytes:
    return b"IMG_%07d-%x.jpeg" % (number, number * 2654435761 % (1 << 32))


class Pool:
    """The content that all files share."""

    def __init__(self) -> None:
        self.data = random.Random(6).randbytes(POOL_BYTES)

    def content_of(self, number: int) -> bytes:
        """What file `number` holds."""
        start = _start_of(number)
        return self.data[start : start + PIECE_BYTES]


async def make_big_volume(rig: Rig, file_count: int) -> None:
    """Format the cartridge of `rig` and leave it, with its catalogs, with so many files.

    The last mount was an ordinary one: everything is on tape, ending in a checkpoint.
    """
    pool = Pool()
    await rig.format()
    async with rig.mounted() as user:
        await user.write("/pool", pool.data)
        await user.sync()
        directory, view = user.directory, user.volume.view
        (extent,) = view.extents(user.find("/pool").ino)
    (directory / "live.sqlite").unlink()
    _add_files(directory / "tape.sqlite", pool, file_count, extent.sequence, extent.position)
    async with rig.mounted() as user:
        await user.write("/last", b"so that a checkpoint follows")
    shutil.rmtree(directory / "work")


def _add_files(path: Path, pool: Pool, file_count: int, sequence: int, position: int) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for name, function in (
        ("sha256_of", lambda n: hashlib.sha256(pool.content_of(n)).digest()),
        ("xxh128_of", lambda n: xxhash.xxh3_128_digest(pool.content_of(n))),
        ("start_of", _start_of),
        ("name_of", _name_of),
        ("changed_ns", lambda n: _FIRST_NS + n * 7_919_000_000_000_331 % _SPAN_NS),
    ):
        connection.create_function(name, 1, function, deterministic=True)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -200000"):
        connection.execute(f"PRAGMA {pragma}")
    execute = connection.execute
    (next_ino,) = execute("SELECT value FROM setting WHERE name = 'next_ino'").fetchone()
    directory_count = -(-file_count // FILES_PER_DIRECTORY)
    first_file = next_ino + directory_count
    indexes = execute("SELECT name, sql FROM sqlite_schema WHERE tbl_name = 'dentry'").fetchall()
    indexes = [(name, sql) for name, sql in indexes if sql and name != "dentry"]
    for name, _ in indexes:
        execute(f"DROP INDEX {name}")
    execute("BEGIN")
    execute(_DIRECTORIES, (directory_count, next_ino, _FIRST_NS))
    execute(_DIRECTORY_NAMES, (next_ino,))
    for first in range(0, file_count, _BATCH):
        end = min(first + _BATCH, file_count)
        execute(_FILES, (first, end, first_file, _FIRST_NS + _SPAN_NS))
        execute(_NAMES, (first, end, next_ino, first_file))
        execute(_EXTENTS, (first, end, first_file, sequence, position))
    execute("UPDATE inode SET nlink = nlink + ? WHERE ino = 1", (directory_count,))
    execute("UPDATE setting SET value = ? WHERE name = 'next_ino'", (first_file + file_count,))
    execute("COMMIT")
    for _, sql in indexes:
        execute(sql)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
