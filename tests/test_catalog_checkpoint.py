"""A checkpoint is the whole view, always in the same bytes; reading one believes nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from catalog_rig import DIRECTORY, described, dump, new_view, segment

from tapefs.catalog import TapeView
from tapefs.entries import ExtentEntry, LinkEntry, UnlinkEntry
from tapefs.errors import DamagedTape, SpoolFull, StateUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def view(tmp_path: Path) -> Iterator[TapeView]:
    """A directory (2) with a subdirectory (3), and a file (4) with two names."""
    view = new_view(tmp_path)
    view.apply(
        segment(1),
        [
            described(2, DIRECTORY),
            LinkEntry(1, b"dir", 2),
            described(3, DIRECTORY),
            LinkEntry(2, b"sub", 3),
            described(4, size=20, xattrs={b"user.a": b"1"}),
            LinkEntry(3, b"file", 4),
            LinkEntry(1, b"again", 4),
            ExtentEntry(4, 0, 10, 0, b""),
            ExtentEntry(4, 10, 10, 512, b""),
        ],
    )
    yield view
    view.close()


@pytest.fixture
def checkpoint(view: TapeView, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.sqlite"
    view.export(path)
    return path


def test_a_checkpoint_brings_every_row_back(
    view: TapeView, checkpoint: Path, tmp_path: Path
) -> None:
    imported = TapeView.import_checkpoint(checkpoint, tmp_path / "imported.sqlite")
    assert dump(imported.path) == dump(view.path)
    assert imported.settings == view.settings
    assert imported.next_ino == view.next_ino
    imported.close()


def test_equal_views_give_equal_bytes_whatever_their_past(
    view: TapeView, checkpoint: Path, tmp_path: Path
) -> None:
    imported = TapeView.import_checkpoint(checkpoint, tmp_path / "imported.sqlite")
    for path in (view.path, imported.path):
        copy = tmp_path / f"copy of {path.name}"
        with closing(TapeView.open(path)) as opened:
            opened.export(copy)
        assert copy.read_bytes() == checkpoint.read_bytes()
    imported.close()


def test_a_checkpoint_stands_alone(checkpoint: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    moved = checkpoint.rename(bare / "catalog.sqlite")
    assert moved.read_bytes()[18:20] == b"\x01\x01", "a reader of 2050 need not know the log"
    assert dump(moved)["dentry"]
    assert [file.name for file in bare.iterdir()] == ["catalog.sqlite"]


def test_a_checkpoint_can_be_written_while_a_journal_is_applied(
    view: TapeView, checkpoint: Path, tmp_path: Path
) -> None:
    meanwhile = tmp_path / "meanwhile.sqlite"

    def entries() -> Iterator[UnlinkEntry]:
        yield UnlinkEntry(1, b"again")
        view.export(meanwhile)

    view.apply(segment(2), entries())
    assert meanwhile.read_bytes() == checkpoint.read_bytes()


MANY_ATTRIBUTES = """
INSERT INTO xattr SELECT 4, CAST(d.cookie || 'x' || i.ino AS BLOB), zeroblob(65000)
FROM dentry AS d, inode AS i;
"""
LOOP = """
UPDATE dentry SET parent = 3 WHERE ino = 2;
UPDATE inode SET nlink = 2 WHERE ino = 1;
UPDATE inode SET nlink = 3 WHERE ino = 3;
"""


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE inode SET mode = 33188 WHERE ino = 1", "has no root directory"),
        ("DELETE FROM inode WHERE ino = 1", "has no root directory"),
        ("UPDATE dentry SET parent = 4 WHERE ino = 2", "has names in what is no directory"),
        ("UPDATE dentry SET parent = 77 WHERE ino = 2", "has names in what is no directory"),
        ("INSERT INTO dentry VALUES (99, 1, x'41', 77)", "names an inode that is not there"),
        ("INSERT INTO dentry VALUES (99, 2, x'41', 1)", "names an inode that is not there"),
        ("UPDATE inode SET nlink = 3 WHERE ino = 4", "counts the links of a file wrong"),
        (
            "INSERT INTO inode SELECT 5, 33188, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL",
            "has an inode without a name",
        ),
        ("INSERT INTO dentry VALUES (99, 1, x'41', 3)", "gives a directory none or several"),
        ("DELETE FROM dentry WHERE ino = 3", "gives a directory none or several"),
        ("UPDATE inode SET nlink = 2 WHERE ino = 2", "counts the subdirectories"),
        (LOOP, "has a directory within itself"),
        ("INSERT INTO xattr VALUES (77, x'41', x'')", "attributes or extents of an inode"),
        ("INSERT INTO extent VALUES (77, 0, 5, 1, 0)", "attributes or extents of an inode"),
        ("UPDATE extent SET length = 11 WHERE offset = 0", "has extents that overlap"),
        ("UPDATE inode SET size = 19 WHERE ino = 4", "has bytes beyond the end of a file"),
        ("INSERT INTO extent VALUES (3, 0, 5, 1, 0)", "has bytes beyond the end of a file"),
        ("UPDATE dentry SET cookie = 5000000000000000000 WHERE ino = 3", "leave none for names"),
        (
            MANY_ATTRIBUTES,
            "has more extended attributes than fit",
        ),
        ("UPDATE setting SET value = 1 << 62 | 2 WHERE name = 'next_ino'", "no inode numbers left"),
        ("UPDATE extent SET sequence = 2 WHERE offset = 0", "extents outside of any tape file"),
        ("UPDATE extent SET position = 65535999 - 8", "extents outside of any tape file"),
        ("UPDATE tape_file SET sequence = 2", "extents outside of any tape file"),
        ("UPDATE tape_file SET first_block = 3", "tape files that do not follow"),
        ("INSERT INTO tape_file VALUES (3, 'torn', 1003, 1, 0, x'', 0)", "do not follow"),
        ("UPDATE setting SET value = 4 WHERE name = 'next_ino'", "would give away again"),
        ("UPDATE setting SET value = 'x' WHERE name = 'volume_uuid'", "has no volume UUID"),
        ("UPDATE setting SET value = 'x' WHERE name = 'next_ino'", "lacks settings"),
        ("DELETE FROM setting WHERE name = 'name'", "lacks settings"),
        ("INSERT INTO setting VALUES ('more', 1)", "lacks settings"),
        ("UPDATE setting SET value = 0 WHERE name = 'record_bytes'", "has no record size"),
        ("CREATE TABLE more (x)", "holds an unexpected table 'more'"),
        ("CREATE VIEW more AS SELECT 1", "holds an unexpected view 'more'"),
        ("CREATE INDEX more ON dentry (ino)", "holds an unexpected index 'more'"),
        (
            "CREATE TRIGGER more AFTER INSERT ON inode BEGIN DELETE FROM inode; END",
            "holds an unexpected trigger 'more'",
        ),
        ("DROP TABLE xattr", "lacks a table"),
        ("DROP TABLE xattr; CREATE VIEW xattr AS SELECT 1", "holds an unexpected view 'xattr'"),
        (
            "DROP TABLE xattr; CREATE VIRTUAL TABLE xattr USING fts5 (ino, name, value)",
            "holds an unexpected table|something else than a plain table",
        ),
        (
            "DROP TABLE xattr; CREATE TABLE xattr (ino, name, value AS (ino))",
            "something else than a plain table",
        ),
        ("DROP TABLE xattr; CREATE TABLE xattr (ino, other)", "cannot be read"),
        ("PRAGMA application_id = 1", "is not a catalog"),
        ("PRAGMA user_version = 9", "has layout 9, this tapefs knows 2; use a newer tapefs"),
    ],
)
def test_a_contradiction_in_a_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, statement: str, sentence: str
) -> None:
    with_changes(checkpoint, statement)
    target = tmp_path / "imported.sqlite"
    with pytest.raises(DamagedTape, match=f"the catalog in the checkpoint .*({sentence})"):
        TapeView.import_checkpoint(checkpoint, target)
    assert not list(tmp_path.glob("imported*"))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE inode SET ino = -4 WHERE ino = 4",
        "UPDATE inode SET ino = 5000000000000000000 WHERE ino = 4",
        "UPDATE inode SET rdev = -1 WHERE ino = 4",
        "UPDATE inode SET mode = 41471 WHERE ino = 4",
        "UPDATE inode SET target = x'41' WHERE ino = 4",
        "UPDATE dentry SET cookie = 0 WHERE ino = 3",
        "UPDATE dentry SET parent = 1, name = x'2e746170656673' WHERE ino = 3",
        "UPDATE xattr SET name = x'4100'",
        "UPDATE extent SET offset = 9223372036854775800 WHERE offset = 10",
        "UPDATE tape_file SET record_count = 1 << 50",
        "UPDATE inode SET mode = 420 WHERE ino = 4",
        "UPDATE inode SET size = -1 WHERE ino = 4",
        "UPDATE inode SET size = 'many' WHERE ino = 4",
        "UPDATE inode SET size = 1.5 WHERE ino = 4",
        "UPDATE inode SET uid = NULL WHERE ino = 4",
        "UPDATE inode SET sha256 = 'text' WHERE ino = 4",
        "UPDATE dentry SET name = 'text' WHERE ino = 3",
        "UPDATE dentry SET name = x'2e2e' WHERE ino = 3",
        "UPDATE dentry SET name = x'2f657463' WHERE ino = 3",
        "INSERT INTO dentry SELECT 99, parent, name, ino FROM dentry WHERE ino = 3",
        "UPDATE xattr SET value = zeroblob(70000)",
        "UPDATE extent SET length = 0 WHERE offset = 0",
        "INSERT INTO extent SELECT * FROM extent",
        "UPDATE tape_file SET kind = 'other'",
        "UPDATE tape_file SET crcs = zeroblob(8000)",
    ],
)
def test_values_that_our_own_tables_forbid_are_refused(
    checkpoint: Path, tmp_path: Path, change: str
) -> None:
    table = next(word for word in change.split() if word in TABLES)
    # The same table without any constraint, as a forger would write it.
    with_changes(
        checkpoint,
        f"CREATE TABLE forged AS SELECT * FROM {table}; DROP TABLE {table};"
        f"ALTER TABLE forged RENAME TO {table}; {change}",
    )
    with pytest.raises(DamagedTape, match="the catalog in the checkpoint cannot be read"):
        TapeView.import_checkpoint(checkpoint, tmp_path / "imported.sqlite")
    assert not list(tmp_path.glob("imported*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no database at all" * 100,
        lambda data: data[: len(data) // 2],
        lambda data: data[:5000] + bytes(4096) + data[9096:],
        lambda data: data[:100] + b"\xff" * 300 + data[400:],
    ],
    ids=["empty", "noise", "cut short", "zeroed page", "scribbled schema"],
)
def test_a_damaged_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(DamagedTape, match="the catalog in the checkpoint"):
        TapeView.import_checkpoint(checkpoint, tmp_path / "imported.sqlite")
    assert not list(tmp_path.glob("imported*"))


def test_no_byte_of_a_checkpoint_can_bring_the_reader_down(
    checkpoint: Path, tmp_path: Path
) -> None:
    original = checkpoint.read_bytes()
    target = tmp_path / "imported.sqlite"
    for offset in range(0, len(original), 389):
        data = bytearray(original)
        data[offset] ^= 0xFF
        checkpoint.write_bytes(data)
        try:
            TapeView.import_checkpoint(checkpoint, target).close()
        except DamagedTape:
            assert not target.exists()
        target.unlink(missing_ok=True)


def test_a_page_that_nothing_uses_is_damage(checkpoint: Path, tmp_path: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    pages = int.from_bytes(data[28:32], "big")
    data[28:32] = (pages + 1).to_bytes(4, "big")
    checkpoint.write_bytes(data + bytes(4096))
    with pytest.raises(DamagedTape, match=r"is not intact \(.*Page \d+ is never used\)"):
        TapeView.import_checkpoint(checkpoint, tmp_path / "imported.sqlite")


def test_rows_pass_our_constraints_even_when_the_copy_claims_the_same(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tables of one layout could be copied page by page, which no constraint sees.
    with_changes(checkpoint, "UPDATE inode SET mode = 420 WHERE ino = 4")
    monkeypatch.setattr("tapefs.catalog.checkpoint._check_structure", lambda source: None)
    with pytest.raises(DamagedTape, match="CHECK constraint failed"):
        TapeView.import_checkpoint(checkpoint, tmp_path / "imported.sqlite")


def test_a_copy_that_asks_for_a_log_gets_none(checkpoint: Path, tmp_path: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    data[18:20] = b"\x02\x02"
    bare = tmp_path / "bare"
    bare.mkdir()
    asking = bare / "catalog.sqlite"
    asking.write_bytes(data)
    asking.with_name("catalog.sqlite-wal").write_bytes(b"hostile" * 5000)
    before = sorted(bare.iterdir())
    TapeView.import_checkpoint(asking, tmp_path / "imported.sqlite").close()
    assert sorted(bare.iterdir()) == before
    assert dump(tmp_path / "imported.sqlite") == dump(checkpoint)


def test_a_name_from_tape_cannot_speak_to_the_terminal(checkpoint: Path, tmp_path: Path) -> None:
    with_changes(checkpoint, 'CREATE TABLE "more\x1b[2J\nreal" (x)')
    with pytest.raises(DamagedTape) as caught:
        TapeView.import_checkpoint(checkpoint, tmp_path / "imported.sqlite")
    assert str(caught.value).isprintable()


def test_a_missing_checkpoint_is_a_fault_of_the_host(tmp_path: Path) -> None:
    with pytest.raises(StateUnusable, match="not a file"):
        TapeView.import_checkpoint(tmp_path / "none", tmp_path / "imported.sqlite")


def test_nothing_is_overwritten(view: TapeView, checkpoint: Path) -> None:
    with pytest.raises(StateUnusable, match="exists already"):
        view.export(checkpoint)
    with pytest.raises(StateUnusable, match="exists already"):
        TapeView.import_checkpoint(checkpoint, view.path)


def test_a_full_disk_while_exporting_leaves_nothing(
    view: TapeView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_disk(*args: object, **options: object) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.execute("PRAGMA max_page_count = 8")
        return connection

    connect: Callable[..., sqlite3.Connection] = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", small_disk)
    with pytest.raises(SpoolFull, match=r"no room is left on the disk for .*full\.sqlite"):
        view.export(tmp_path / "full.sqlite")
    assert not list(tmp_path.glob("full*"))


TABLES = {"inode", "dentry", "xattr", "extent", "tape_file"}


def with_changes(path: Path, script: str) -> None:
    connection = sqlite3.connect(path)
    try:
        connection.executescript(f"PRAGMA ignore_check_constraints = ON; {script}")
    finally:
        connection.close()
