"""What the live catalog owes the tape: staged content, changes by epoch, confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from catalog_rig import (
    dump,
    make_file,
    new_live,
)

from tapefs.catalog import Catalog, Staged
from tapefs.entries import Extent, ExtentEntry

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def test_staged_rows_and_their_totals(path: Path) -> None:
    catalog = Catalog.open(path)
    first = Staged(5, [(0, 10), (20, 30)], [(20, 25)], 3)
    catalog.save_staged(first)
    catalog.save_staged(Staged(6, [(0, 2**40)], [], 1))
    catalog.save_staged(Staged(7, [], [(0, 4)], 2))
    catalog.save_staged(Staged(8, [(0, 1)], [], 0))
    assert catalog.load_staged(5) == first
    assert catalog.load_staged(9) is None
    assert catalog.staged_totals() == (2, 9, 20 + 2**40 + 1)
    assert [row.ino for row in catalog.clean_staged()] == [8, 6]
    assert [row.ino for row in catalog.clean_staged(1)] == [8]
    catalog.save_staged(Staged(5, [(0, 10)], [], 9))
    assert [row.ino for row in catalog.clean_staged()] == [8, 6, 5]
    catalog.delete_staged(6)
    catalog.delete_staged(6)
    assert list(catalog.staged_inos()) == [5, 7, 8]
    totals = catalog.staged_totals()
    assert totals == (1, 4, 11)
    catalog.close(clean=True)
    catalog = Catalog.open(path)
    assert catalog.staged_totals() == totals
    catalog.close(clean=True)


def test_a_row_that_waited_to_be_written_is_not_hidden_by_an_earlier_look(catalog: Catalog) -> None:
    row = Staged(5, [(0, 10)], [(0, 10)], 1)
    catalog.save_staged(row)
    catalog.prefetch_staged([5])
    catalog.commit()
    assert catalog.load_staged(5) == row


def test_staged_rows_may_go_while_one_looks_through_them(catalog: Catalog) -> None:
    for ino in range(2, 2502):
        catalog.save_staged(Staged(ino, [(0, 1)], [], ino))
    seen = []
    for ino in catalog.staged_inos():
        seen.append(ino)
        catalog.delete_staged(ino)
    assert seen == list(range(2, 2502))
    assert catalog.staged_totals() == (0, 0, 0)


def changes(catalog: Catalog) -> tuple[list[tuple[int, int]], list[tuple[int, bytes, int]]]:
    catalog.commit()
    rows = dump(catalog.path, ("inode_change", "dentry_change"))
    return rows["inode_change"], rows["dentry_change"]


def test_every_change_is_noted_with_its_epoch(catalog: Catalog) -> None:
    first = make_file(catalog, b"a").ino
    assert catalog.close_epoch() == 1
    second = make_file(catalog, b"b").ino
    catalog.unlink(1, b"a")
    catalog.unlink(1, b"never was")
    catalog.remove_inode(first)
    assert changes(catalog) == ([(first, 2), (second, 2)], [(1, b"a", 2), (1, b"b", 2)])
    assert catalog.close_epoch() == 2
    third = make_file(catalog, b"c").ino
    catalog.set_xattr(second, b"user.a", b"1")
    assert changes(catalog)[0] == [(first, 2), (second, 3), (third, 3)]
    assert catalog.close_epoch() == 3
    catalog.remove_xattr(second, b"user.a")
    catalog.changed(catalog.inode(third))
    assert changes(catalog)[0] == [(first, 2), (second, 4), (third, 4)]


def test_the_epoch_goes_on_after_a_restart(path: Path) -> None:
    catalog = Catalog.open(path)
    catalog.close_epoch()
    catalog.close_epoch()
    catalog.close(clean=True)
    catalog = Catalog.open(path)
    assert catalog.epoch == 3
    catalog.close(clean=True)


def test_confirming_forgets_changes_up_to_the_epoch_only(catalog: Catalog) -> None:
    numbers = [make_file(catalog, name).ino for name in (b"a", b"b", b"c")]
    epoch = catalog.close_epoch()
    catalog.changed(catalog.inode(numbers[0]))
    catalog.unlink(1, b"b")
    catalog.commit()
    # Changed, but not written yet when the confirmation comes.
    catalog.changed(catalog.inode(numbers[1]))
    names = [(1, b"a"), (1, b"b"), (1, b"c")]
    for _ in range(2):
        catalog.confirm(1, epoch, logged_inodes=numbers, logged_dentries=names)
        assert changes(catalog) == (
            [(numbers[0], 2), (numbers[1], 2)],
            [(1, b"b", 2)],
        )
    assert catalog.owes_tape()
    catalog.confirm(2, catalog.close_epoch(), logged_inodes=numbers, logged_dentries=names)
    assert not catalog.owes_tape()


def test_what_is_dirty_is_owed_to_the_tape(catalog: Catalog) -> None:
    assert not catalog.owes_tape()
    catalog.save_staged(Staged(2, [(0, 1)], [], 0))
    assert not catalog.owes_tape()
    catalog.save_staged(Staged(2, [(0, 1)], [(0, 1)], 0))
    assert catalog.owes_tape()


def test_hashes_are_taken_over_and_are_no_change(catalog: Catalog) -> None:
    same, changed, pending, gone = (make_file(catalog, b"%d" % number) for number in range(4))
    epoch = catalog.close_epoch()
    catalog.changed(changed)
    catalog.commit()
    pending.mode ^= 0o100
    catalog.changed(pending)
    catalog.remove_inode(gone.ino)
    sha256, xxh128 = b"s" * 32, b"x" * 16
    files = (same, changed, pending, gone)
    catalog.confirm(1, epoch, hashes=[(inode.ino, sha256, xxh128) for inode in files])
    # Attributes may have changed since; the caller knows that the content has not.
    inos = [inode.ino for inode in (same, changed, pending)]
    assert [inode.sha256 for inode in (same, changed, pending)] == [sha256] * 3
    assert gone.sha256 is None
    mode = pending.mode
    assert (same.ino, 2) not in changes(catalog)[0]
    del same, changed, pending, gone, files
    catalog.close(clean=True)
    again = Catalog.open(catalog.path)
    assert [again.inode(ino).xxh128 for ino in inos] == [xxh128] * 3
    assert again.inode(inos[2]).mode == mode
    again.close(clean=True)


def test_extents_of_a_removed_file_are_passed_over(catalog: Catalog) -> None:
    inode = make_file(catalog)
    epoch = catalog.close_epoch()
    catalog.remove_inode(inode.ino)
    catalog.confirm(1, epoch, extents=[(ExtentEntry(inode.ino, 0, 5, 0, b""), [(0, 5)])])
    assert catalog.extents(inode.ino) == []


def test_a_new_file_that_was_never_written_out_can_be_confirmed(catalog: Catalog) -> None:
    inode = make_file(catalog)
    catalog.confirm(4, 1, extents=[(ExtentEntry(inode.ino, 0, 5, 512, b""), [(1, 3)])])
    assert catalog.extents(inode.ino) == [Extent(inode.ino, 1, 2, 4, 513)]
