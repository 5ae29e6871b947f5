"""The check that catalog, spool and tape agree names each way in which they may not."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from volume_rig import Rig, User

from tapefs.archive.consistency import disagreements
from tapefs.archive.spool import Spool
from tapefs.catalog import Catalog, TapeView

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.format()
    return rig


async def use(user: User) -> None:
    """On tape: 2 `d`, 3 `d/kept`, 4 `changed`; since then 5 `new`, and something in 4."""
    user.mkdir("d")
    await user.write("d/kept", b"x" * 5000)
    await user.write("changed", b"y" * 9000)
    await user.sync()
    await user.write("changed", b"z", 100)
    await user.write("new", b"n" * 700)


def found(user: User) -> list[str]:
    volume = user.volume
    volume.catalog.commit()
    return list(disagreements(volume.catalog, volume.view, volume.spool))


async def test_what_agrees_is_not_complained_of(rig: Rig) -> None:
    async with rig.mounted() as user:
        assert found(user) == []
        await use(user)
        assert found(user) == []
        await user.sync()
        user.evict_everything()
        assert found(user) == []
    async with rig.mounted() as user:
        assert found(user) == []


@pytest.mark.parametrize(
    ("name", "statement", "sentence"),
    [
        ("live", "UPDATE inode SET mode = 33152 WHERE ino = 3", "knows inode 3 otherwise"),
        ("live", "UPDATE inode SET nlink = 2 WHERE ino = 3", "counts the links of a file wrong"),
        ("tape", "DELETE FROM dentry WHERE ino = 3", "has a name for inode 3 that the tape"),
        ("live", "DELETE FROM dentry WHERE ino = 3", "lacks a name that the tape has for inode 3"),
        ("live", "DELETE FROM inode_change WHERE ino = 5", "knows inode 5 otherwise"),
        ("live", "DELETE FROM dentry_change", "has a name for inode 5"),
        ("live", "DELETE FROM inode WHERE ino = 3", "lacks inode 3 of the tape"),
        ("tape", "INSERT INTO xattr VALUES (3, x'61', x'62')", "knows the attributes of inode 3"),
        (
            "live",
            "UPDATE setting SET value = 5 WHERE name = 'next_ino'",
            "give inode number 5",
        ),
        ("live", "UPDATE staged SET ino = 2 WHERE ino = 5", "content of inode 2 in the spool"),
        ("live", "UPDATE inode SET size = 10 WHERE ino = 5", "ranges of inode 5 go beyond its 10"),
        ("live", "DELETE FROM extent WHERE ino = 3", "byte 0 of inode 3 is at None"),
        ("tape", "DELETE FROM extent WHERE ino = 3", "of inode 3 is at (1, "),
        ("live", "UPDATE extent SET position = 1 WHERE ino = 3", "byte 0 of inode 3 is at (1, 1)"),
    ],
)
async def test_each_disagreement_is_named(
    rig: Rig, name: str, statement: str, sentence: str
) -> None:
    async with rig.mounted() as user:
        await use(user)
        user.volume.catalog.commit()
        user.crash()
    path = next(rig.state.glob(f"*/{name}.sqlite"))
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    live, view = path.with_name("live.sqlite"), path.with_name("tape.sqlite")
    with sqlite3.connect(live) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    complaints = await look(rig, live, view)
    assert any(sentence in complaint for complaint in complaints), complaints


async def look(rig: Rig, live: Path, view: Path) -> list[str]:
    """What is found without mounting, which would mend some of it."""
    catalog, tape = Catalog.open(live), TapeView.open(view)
    try:
        spool = Spool(live.with_name("spool"), rig.config.spool_bytes)
        return list(disagreements(catalog, tape, spool))
    finally:
        catalog.close(clean=False)
        tape.close()


async def test_a_spool_file_that_is_too_short_is_named(rig: Rig) -> None:
    async with rig.mounted() as user:
        await use(user)
        with user.volume.spool.path(5).open("r+b") as file:
            file.truncate(10)
        assert any("the spool file of inode 5 has 10 bytes" in line for line in found(user))
        user.crash()
