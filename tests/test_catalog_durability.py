"""What a commit, a crash, power loss and a full disk leave of the live catalog."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

import pytest
from catalog_rig import (
    copy_as_left,
    dump,
    make_file,
    new_live,
)

from tapefs.catalog import Catalog, Staged
from tapefs.errors import SpoolFull, StateUnusable

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


def test_a_group_of_rows_is_dropped_as_a_whole(catalog: Catalog) -> None:
    before = make_file(catalog, b"before")
    catalog.save_staged(Staged(before.ino, [(0, 5)], [(0, 5)], 1))

    def fail_in_the_middle() -> None:
        with catalog.transaction():
            catalog.delete_staged(before.ino)
            catalog.set_confirmed_sequence(9)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail_in_the_middle()
    assert catalog.staged_totals() == (1, 5, 5)
    assert catalog.confirmed_sequence == 0
    catalog.commit()
    assert catalog.lookup(1, b"before") == before.ino
    with catalog.transaction():
        catalog.delete_staged(before.ino)
    assert catalog.staged_totals() == (0, 0, 0)


def test_a_group_does_not_end_early(path: Path) -> None:
    catalog = Catalog.open(path, modified_inodes_max=2)
    with catalog.transaction():
        for number in range(5):
            make_file(catalog, b"%d" % number)
        with pytest.raises(AssertionError, match=r"within transaction\(\)"):
            catalog.commit()
    catalog.commit()
    assert len(dump(path, ("inode",))["inode"]) == 6
    catalog.close(clean=True)


def test_a_crash_loses_what_came_after_the_commit(path: Path, tmp_path: Path) -> None:
    catalog = Catalog.open(path)
    needs = [catalog.needs_commit]
    kept = make_file(catalog, b"kept")
    needs.append(catalog.needs_commit)
    catalog.commit()
    assert [*needs, catalog.needs_commit] == [False, True, False]
    make_file(catalog, b"lost")
    kept.size = 5
    catalog.changed(kept)
    catalog.flush()
    left = copy_as_left(path, tmp_path / "left.sqlite")
    catalog.close(clean=True)
    catalog = Catalog.open(left)
    assert catalog.lookup(1, b"kept") == kept.ino
    assert catalog.inode(kept.ino).size == 0
    assert catalog.lookup(1, b"lost") is None
    catalog.close(clean=True)


@pytest.mark.parametrize("way", ["commit", "close_epoch", "begin_session", "begin_segment"])
def test_durable_means_that_the_log_is_synced_after_the_commit(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    catalog = Catalog.open(path)
    synced: list[Path] = []

    def fsync(descriptor: int) -> None:
        # What the disk is told to keep here is what power loss leaves.
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        assert target == f"{path}-wal"
        synced.append(copy_as_left(path, tmp_path / f"synced{len(synced)}.sqlite"))

    make_file(catalog)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        calls: dict[str, Callable[[], object]] = {
            "commit": lambda: catalog.commit(durable=True),
            "close_epoch": catalog.close_epoch,
            "begin_session": lambda: catalog.begin_session("boot"),
            "begin_segment": lambda: catalog.begin_segment(5),
        }
        calls[way]()
    catalog.close(clean=True)
    (left,) = synced
    after = Catalog.open(left)
    assert after.lookup(1, b"f") == 2
    assert after.epoch == (2 if way == "close_epoch" else 1)
    assert after.boot_id == ("boot" if way == "begin_session" else "")
    assert after.segment_written_ns == (5 if way == "begin_segment" else 0)
    after.close(clean=True)


def test_a_plain_commit_does_not_wait_for_the_disk(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise AssertionError("synced")

    make_file(catalog)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        catalog.commit()


def test_a_disk_that_cannot_sync_is_told(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(StateUnusable, match="Input/output error"):
            catalog.commit(durable=True)


def test_a_clean_end_shows_and_a_crash_shows(path: Path, tmp_path: Path) -> None:
    catalog = Catalog.open(path)
    assert (catalog.clean_shutdown, catalog.boot_id) == (True, "")
    catalog.begin_session("boot 1")
    assert (catalog.clean_shutdown, catalog.boot_id) == (False, "boot 1")
    crashed = copy_as_left(path, tmp_path / "crashed.sqlite")
    catalog.close(clean=True)
    catalog.close(clean=True)
    catalog = Catalog.open(path)
    assert (catalog.clean_shutdown, catalog.boot_id) == (True, "boot 1")
    catalog.close(clean=False)
    for file in (path, crashed):
        catalog = Catalog.open(file)
        assert not catalog.clean_shutdown
        catalog.close(clean=False)


def test_a_closed_catalog_is_one_file(path: Path) -> None:
    catalog = Catalog.open(path)
    make_file(catalog)
    catalog.close(clean=True)
    beside = {file.name for file in path.parent.iterdir() if file.name.startswith("live")}
    assert beside == {"live.sqlite", "live.sqlite.lock"}


def test_the_log_can_be_folded_while_in_use(catalog: Catalog) -> None:
    make_file(catalog, b"a")
    catalog.commit()
    make_file(catalog, b"b")
    catalog.fold_log()
    connection = sqlite3.connect(f"file:{catalog.path}?immutable=1", uri=True)
    names = connection.execute("SELECT name FROM dentry").fetchall()
    connection.close()
    assert names == [(b"a",)], "folded: what was committed, without the log"
    catalog.commit()


def test_after_a_full_disk_nothing_goes_on(path: Path, tmp_path: Path) -> None:
    catalog = Catalog.open(path)
    make_file(catalog, b"before")
    catalog.commit()
    (pages,) = catalog._database.rows("PRAGMA page_count")[0]
    catalog._database.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(3000):
            make_file(catalog, b"%0200d" % number)

    with pytest.raises(SpoolFull, match="no room is left on the disk"):
        fill()
    with pytest.raises(StateUnusable, match="could not be written earlier"):
        catalog.lookup(1, b"before")
    with pytest.raises(StateUnusable, match="could not be written earlier"):
        catalog.commit(durable=True)
    with pytest.raises(StateUnusable, match="could not be written earlier"):
        catalog.close(clean=True)
    catalog = Catalog.open(path)
    assert catalog.lookup(1, b"before") == 2
    assert catalog.lookup(1, b"%0200d" % 0) is None
    catalog.close(clean=True)
