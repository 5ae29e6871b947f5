"""No request and no segment makes SQLite go through a table that grows with the volume.

Every statement that a mounted volume runs is explained by SQLite itself, so the test holds for ten
million files as for ten.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from volume_rig import Rig, User

from tapefs.archive.tape_attributes import TapeAttributes
from tapefs.catalog.database import Database
from tapefs.config import Config

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

# What a statement may go through: what waits for tape and what is in the spool, the tape files,
# what one journal touches, and a list of some hundred inodes that it is given.
SMALL = {
    "staged", "inode_change", "dentry_change", "tape_file", "touched", "moved", "holder", "change",
    "listed", "CONSTANT ROW",
}  # fmt: skip
# An index of few rows: inodes that are open and have no name any more.
SMALL_INDEX = "USING INDEX inode_orphan"
OWN_ATTRIBUTES = [
    b"user.tapefs." + name
    for name in (b"state", b"volume", b"generation", b"tape-file", b"start-block", b"sha256")
]
NO_PLAN = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "CREATE", "PRAGMA")


class Plans:
    """How SQLite goes about each statement that any `Database` runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: dict[str, list[str]] = {}
        for method in ("execute", "execute_many", "first", "rows", "stream"):
            self._watch(monkeypatch, method)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        honest = getattr(Database, method)

        def watched(database: Database, sql: str, *values: Any) -> Any:
            if sql not in self.found and not sql.lstrip().startswith(NO_PLAN):
                self.found[sql] = self._explain(database, sql)
            return honest(database, sql, *values)

        monkeypatch.setattr(Database, method, watched)

    @staticmethod
    def _explain(database: Database, sql: str) -> list[str]:
        numbers = [int(number) for number in re.findall(r"\?(\d+)", sql)]
        count = max(numbers, default=sql.count("?"))
        rows = database._connection.execute(f"EXPLAIN QUERY PLAN {sql}", (1,) * count)
        return [detail for *_, detail in rows]

    def walks(self) -> list[tuple[str, str]]:
        """Statements that go through a large table, or sort what they find."""
        return [
            (" ".join(sql.split()), step)
            for sql, steps in self.found.items()
            for step in steps
            if is_walk(step)
        ]


def is_walk(step: str) -> bool:
    """Whether this step of a plan takes the longer the more files there are."""
    scan = re.match(r"SCAN (CONSTANT ROW|\S+)", step)
    if scan is not None:
        return scan[1] not in SMALL and not step.endswith(SMALL_INDEX)
    # An index made for one statement goes through the whole table.
    return "AUTOMATIC" in step


def test_what_counts_as_a_walk() -> None:
    for step in ("SCAN inode", "SCAN child", "SCAN dentry USING COVERING INDEX dentry_name"):
        assert is_walk(step)
    assert is_walk("SEARCH extent USING AUTOMATIC COVERING INDEX (sequence=?)")
    for step in ("SCAN touched", "SCAN CONSTANT ROW", "SEARCH inode USING INTEGER PRIMARY KEY"):
        assert not is_walk(step)


async def use(user: User) -> None:
    """A bit of everything that programs do."""
    tree, catalog = user.tree, user.volume.catalog
    user.mkdir("/d")
    user.mkdir("/d/e")
    for name in ("/d/a", "/d/b", "/c"):
        await user.write(name, name.encode() * 1000)
    tree.link(user.find("/d/a").ino, *user.place("/d/linked"))
    tree.set_xattr(user.find("/c").ino, b"user.colour", b"blue")
    await user.sync()
    user.rename("/d/b", "/d/e/b")
    user.rename("/c", "/d/a")
    user.unlink("/d/linked")
    user.mkdir("/gone")
    tree.rmdir(*user.place("/gone"))
    await user.write("/d/a", b"more", offset=500)
    await user.truncate("/d/e/b", 100)
    tree.remove_xattr(user.find("/d/a").ino, b"user.colour")
    await user.fsync("/d/a")
    await user.sync()
    user.evict_everything()
    tape = TapeAttributes(catalog, user.volume.view, user.volume.contents)
    for path, shown in (await user.snapshot()).items():
        inode = user.find(path)
        assert catalog.inode(inode.ino).size == shown[4]
        for own in OWN_ATTRIBUTES:
            tape.value(inode.ino, own)
    user.volume.archiver.statistics()


async def test_no_statement_of_a_mount_goes_through_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, config=Config(settle_s=0.0, idle_s=3600.0, small_checkpoint_bytes=0))
    await rig.format()
    plans = Plans(monkeypatch)
    for _ in range(2):
        async with rig.mounted() as user:
            await use(user)
            user.unlink("/d/a")
            user.rename("/d", "/moved")
            await user.sync()
            user.unlink("/moved/e/b")
            await user.write("/waiting", b"accepted")
            await user.fsync("/waiting")
            remove_all(user, "/moved")
    async with rig.mounted() as user:
        await user.write("/lost", b"waits")
        await user.fsync("/lost")
        user.crash()
    async with rig.mounted() as user:
        assert await user.read("/lost") == b"waits"
    assert len(plans.found) > 60
    assert plans.walks() == []


def remove_all(user: User, directory: str) -> None:
    """What `rm -r` does."""
    tree = user.tree
    for _, name, ino in user.volume.catalog.children(user.find(directory).ino):
        path = f"{directory}/{name.decode()}"
        if user.volume.catalog.inode(ino).mode & 0o170000 == 0o040000:
            remove_all(user, path)
        else:
            tree.unlink(*user.place(path))
    tree.rmdir(*user.place(directory))
