"""The live catalog as a namespace: where it comes from, one object per inode, names."""

from __future__ import annotations

import gc
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from catalog_rig import (
    DIRECTORY,
    FILE,
    SETTINGS,
    copy_as_left,
    described,
    dump,
    make_file,
    new_live,
    new_view,
    segment,
)

from tapefs.catalog import Catalog, NoSuchInode, Staged, TapeView, remove_database
from tapefs.entries import ExtentEntry, Inode, LinkEntry
from tapefs.errors import DriveBusy, StateUnusable, errno_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed live catalog of an empty volume."""
    return new_live(tmp_path)


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    catalog = Catalog.open(path)
    yield catalog
    catalog.close(clean=True)


def test_a_new_catalog_says_what_the_tape_view_says(tmp_path: Path) -> None:
    view = new_view(tmp_path)
    view.apply(
        segment(1),
        [
            described(2, DIRECTORY),
            LinkEntry(1, b"d", 2),
            described(3, size=7, xattrs={b"user.a": b"1"}, sha256=b"h" * 32),
            LinkEntry(2, b"f", 3),
            ExtentEntry(3, 0, 7, 512, b""),
            described(90),
        ],
    )
    catalog = Catalog.create_from(view.path, tmp_path / "live.sqlite")
    tables = ("inode", "dentry", "xattr", "extent")
    assert dump(catalog.path, tables) == dump(view.path, tables)
    assert catalog.volume_uuid == SETTINGS.volume_uuid
    assert catalog.confirmed_sequence == 1
    assert catalog.segment_written_ns == 0
    assert catalog.new_inode(FILE, 0, 0).ino == 91
    assert catalog.staged_totals() == (0, 0, 0)
    catalog.close(clean=True)
    view.close()


def test_nothing_is_overwritten_by_a_new_catalog(path: Path) -> None:
    with pytest.raises(StateUnusable, match="exists already"):
        Catalog.create_from(path.with_name("tape.sqlite"), path)
    remove_database(path)
    Catalog.create_from(path.with_name("tape.sqlite"), path).close(clean=True)


def test_a_missing_file_or_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StateUnusable, match=r"none\.sqlite does not exist"):
        Catalog.open(tmp_path / "none.sqlite")
    with pytest.raises(StateUnusable, match="No such file or directory"):
        Catalog.open(tmp_path / "no directory" / "live.sqlite")
    with pytest.raises(StateUnusable, match="does not exist"):
        Catalog.open(tmp_path)
    with pytest.raises(StateUnusable, match="does not exist"):
        Catalog.create_from(tmp_path / "none.sqlite", tmp_path / "live.sqlite")
    with pytest.raises(StateUnusable, match="cannot be used"):
        TapeView.create(tmp_path / "no directory" / "tape.sqlite", SETTINGS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"noise" * 2000,
        lambda data: data[:4096],
        lambda data: data[:100] + b"\xff" * 300 + data[400:],
    ],
    ids=["noise", "cut short", "scribbled schema"],
)
def test_a_damaged_file_is_named(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateUnusable, match=r"live\.sqlite is damaged.*tapefs rebuild"):
        Catalog.open(path).close(clean=True)


def test_damage_that_shows_later_is_named(path: Path) -> None:
    data = bytearray(path.read_bytes())
    connection = sqlite3.connect(path)
    (page,) = connection.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'dentry_name'"
    ).fetchone()
    connection.close()
    data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(data)
    catalog = Catalog.open(path)
    with pytest.raises(StateUnusable, match=r"live\.sqlite is damaged"):
        catalog.lookup(1, b"a")
    with pytest.raises(StateUnusable, match="could not be written earlier"):
        catalog.close(clean=True)


@pytest.mark.parametrize(
    ("pragma", "sentence"),
    [("application_id = 5", "is not what its name says"), ("user_version = 2", "has layout 2")],
)
def test_a_strange_file_is_refused(path: Path, pragma: str, sentence: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA {pragma}")
    connection.close()
    with pytest.raises(StateUnusable, match=sentence):
        Catalog.open(path)


def test_a_tape_view_is_no_live_catalog(path: Path) -> None:
    with pytest.raises(StateUnusable, match="not what its name says"):
        Catalog.open(path.with_name("tape.sqlite"))


def test_one_process_at_a_time(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tapefs.catalog import Catalog\n"
        "catalog = Catalog.open(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(DriveBusy, match="another tapefs process"):
            Catalog.open(path)
        other.communicate("")
    Catalog.open(path).close(clean=True)


def test_a_foreign_writer_is_one_sentence(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(catalog.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DriveBusy, match="another process is using"):
        make_file(catalog)
    other.close()
    make_file(catalog)


def test_everyone_gets_the_same_object(catalog: Catalog) -> None:
    inode = make_file(catalog)
    assert inode == Inode(2, FILE, 1, 2, nlink=1, atime_ns=9, mtime_ns=9, ctime_ns=9)
    assert catalog.inode(2) is inode
    catalog.commit()
    assert catalog.inode(2) is inode


def test_new_inodes_start_with_what_their_type_implies(catalog: Catalog) -> None:
    directory = catalog.new_inode(DIRECTORY, 0, 0)
    symlink = catalog.new_inode(0o120777, 0, 0, target=b"there")
    device = catalog.new_inode(0o020600, 0, 0, rdev=0x501)
    assert (directory.nlink, symlink.nlink, device.nlink) == (2, 1, 1)
    assert (symlink.size, symlink.target) == (5, b"there")
    assert device.rdev == 0x501
    assert [inode.ino for inode in (directory, symlink, device)] == [2, 3, 4]


def test_an_object_that_someone_holds_stays_the_one(path: Path) -> None:
    catalog = Catalog.open(path, cached_inodes_max=2, modified_inodes_max=100)
    held = make_file(catalog, b"held")
    catalog.commit()
    for number in range(10):
        make_file(catalog, b"%d" % number)
    catalog.commit()
    assert catalog.inode(held.ino) is held
    held.size = 77
    catalog.changed(held)
    catalog.close(clean=True)
    catalog = Catalog.open(path)
    assert catalog.inode(held.ino).size == 77
    catalog.close(clean=True)


def test_few_objects_are_kept(path: Path) -> None:
    catalog = Catalog.open(path, cached_inodes_max=10, modified_inodes_max=20)
    owner = 4321
    for number in range(100):
        catalog.link(1, b"%d" % number, catalog.new_inode(FILE, owner, 0).ino)
    catalog.commit()
    gc.collect()
    alive = [item for item in gc.get_objects() if isinstance(item, Inode) and item.uid == owner]
    assert len(alive) == 10
    catalog.close(clean=True)


def test_modified_objects_are_kept_until_written(path: Path) -> None:
    catalog = Catalog.open(path, cached_inodes_max=2, modified_inodes_max=100)
    numbers = [make_file(catalog, b"%d" % number).ino for number in range(50)]
    for ino in numbers:
        catalog.inode(ino).size = ino
        catalog.changed(catalog.inode(ino))
    assert [catalog.inode(ino).size for ino in numbers] == numbers
    catalog.commit()
    assert [catalog.inode(ino).size for ino in numbers] == numbers
    catalog.close(clean=True)


def test_many_modified_objects_are_written_by_themselves(path: Path) -> None:
    catalog = Catalog.open(path, modified_inodes_max=5)
    for number in range(5):
        make_file(catalog, b"%d" % number)
    connection = catalog._database
    count = "SELECT count(*) FROM inode"
    assert connection.rows(count) == [(1,)]
    make_file(catalog, b"last")
    assert connection.rows(count) == [(7,)]
    catalog.close(clean=True)


def test_a_removed_inode_is_gone_with_all_it_had(catalog: Catalog) -> None:
    inode = make_file(catalog)
    catalog.set_xattr(inode.ino, b"user.a", b"1")
    catalog.save_staged(Staged(inode.ino, [(0, 5)], [(0, 5)], 1))
    catalog.confirm(1, 0, extents=[(ExtentEntry(inode.ino, 0, 5, 0, b""), [(0, 5)])])
    catalog.commit()
    catalog.unlink(1, b"f")
    catalog.remove_inode(inode.ino)
    with pytest.raises(NoSuchInode) as caught:
        catalog.inode(inode.ino)
    assert errno_of(caught.value) == 2
    with pytest.raises(NoSuchInode):
        catalog.changed(inode)
    catalog.commit()
    rows = dump(catalog.path, ("dentry", "xattr", "extent", "staged"))
    assert not any(rows.values())
    assert catalog.staged_totals() == (0, 0, 0)
    with pytest.raises(NoSuchInode):
        catalog.inode(inode.ino)


def test_inode_numbers_are_not_given_twice(path: Path) -> None:
    catalog = Catalog.open(path)
    ino = make_file(catalog).ino
    catalog.remove_inode(ino)
    catalog.close(clean=True)
    catalog = Catalog.open(path)
    assert make_file(catalog).ino == ino + 1
    catalog.close(clean=True)


def test_an_object_equals_a_plain_inode_of_the_same_values(catalog: Catalog) -> None:
    inode = make_file(catalog)
    plain = Inode(2, FILE, 1, 2, atime_ns=9, mtime_ns=9, ctime_ns=9)
    assert inode == plain
    assert plain == inode
    plain.size = 1
    assert inode != plain


def test_orphans_are_found_after_a_crash(path: Path, tmp_path: Path) -> None:
    catalog = Catalog.open(path)
    kept, open_only = make_file(catalog, b"a"), make_file(catalog, b"b")
    catalog.unlink(1, b"b")
    open_only.nlink = 0
    catalog.changed(open_only)
    assert catalog.orphans() == [open_only.ino]
    catalog.commit()
    left = copy_as_left(path, tmp_path / "left.sqlite")
    catalog.close(clean=True)
    catalog = Catalog.open(left)
    assert catalog.orphans() == [open_only.ino]
    assert catalog.inode(kept.ino).nlink == 1
    catalog.close(clean=True)


def test_names_paths_and_parents(catalog: Catalog) -> None:
    outer = catalog.new_inode(DIRECTORY, 0, 0)
    catalog.link(1, b"outer", outer.ino)
    inner = catalog.new_inode(DIRECTORY, 0, 0)
    catalog.link(outer.ino, b"in\xffner", inner.ino)
    inode = make_file(catalog, b"f", inner.ino)
    catalog.link(1, b"other", inode.ino)
    assert catalog.lookup(inner.ino, b"f") == inode.ino
    assert catalog.lookup(inner.ino, b"g") is None
    assert catalog.path_of(inner.ino, b"f") == b"outer/in\xffner/f"
    assert catalog.path_of(1, b"other") == b"other"
    assert catalog.directory_path(1) == b""
    assert [catalog.parent_of(ino) for ino in (1, outer.ino, inner.ino)] == [1, 1, outer.ino]
    assert catalog.links(inode.ino) == [(inner.ino, b"f"), (1, b"other")]
    assert catalog.has_children(outer.ino)
    catalog.unlink(outer.ino, b"in\xffner")
    assert not catalog.has_children(outer.ino)
    with pytest.raises(NoSuchInode):
        catalog.parent_of(inner.ino)
    with pytest.raises(NoSuchInode):
        catalog.path_of(inner.ino, b"f")


def test_a_loop_in_a_damaged_catalog_ends(catalog: Catalog) -> None:
    first, second = catalog.new_inode(DIRECTORY, 0, 0), catalog.new_inode(DIRECTORY, 0, 0)
    catalog.link(first.ino, b"a", second.ino)
    catalog.link(second.ino, b"b", first.ino)
    with pytest.raises(StateUnusable, match="lies within itself"):
        catalog.path_of(first.ino, b"a")


def test_reading_a_directory_in_pieces_while_it_changes(catalog: Catalog) -> None:
    for number in range(10):
        make_file(catalog, b"%d" % number)
    first = catalog.children(1, 0, 4)
    assert [name for _, name, _ in first] == [b"0", b"1", b"2", b"3"]
    for name in (b"0", b"2", b"5"):
        catalog.unlink(1, name)
    replacing = make_file(catalog, b"7").ino
    make_file(catalog, b"new")
    rest = catalog.children(1, first[-1][0])
    assert [name for _, name, _ in rest] == [b"4", b"6", b"7", b"8", b"9", b"new"]
    assert {name: ino for _, name, ino in rest}[b"7"] == replacing
    cookies = [cookie for cookie, _, _ in first + rest]
    assert cookies == sorted(set(cookies))


def test_extended_attributes(catalog: Catalog) -> None:
    ino = make_file(catalog).ino
    catalog.set_xattr(ino, b"user.b", b"1")
    catalog.set_xattr(ino, b"user.a", b"")
    catalog.set_xattr(ino, b"user.b", b"2")
    assert list(catalog.xattrs(ino).items()) == [(b"user.a", b""), (b"user.b", b"2")]
    assert catalog.xattr(ino, b"user.a") == b""
    assert catalog.xattr(ino, b"user.c") is None
    assert catalog.remove_xattr(ino, b"user.a")
    assert not catalog.remove_xattr(ino, b"user.a")
