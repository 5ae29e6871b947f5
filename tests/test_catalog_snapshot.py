"""A snapshot holds one epoch, whatever happens to the catalog meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from catalog_rig import DIRECTORY, FILE, new_view

from tapefs.catalog import Catalog, Snapshot, Staged
from tapefs.entries import Extent, ExtentEntry
from tapefs.errors import StateUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    view = new_view(tmp_path)
    view.close()
    catalog = Catalog.create_from(view.path, tmp_path / "live.sqlite")
    yield catalog
    catalog.close(clean=True)


def everything(snapshot: Snapshot) -> object:
    inodes = list(snapshot.changed_inodes())
    return (
        [(ino, snapshot.inode(ino), snapshot.xattrs(ino), snapshot.links(ino)) for ino in inodes],
        list(snapshot.changed_dentries()),
        list(snapshot.dirty_staged()),
        snapshot.change_counts(),
        [snapshot.extents(ino) for ino in inodes],
    )


def test_a_snapshot_has_the_changes_of_its_epoch(catalog: Catalog) -> None:
    directory = catalog.new_inode(DIRECTORY, 0, 0)
    catalog.link(1, b"d", directory.ino)
    inode = catalog.new_inode(FILE, 1, 2, now_ns=3)
    catalog.link(directory.ino, b"f", inode.ino)
    catalog.set_xattr(inode.ino, b"user.a", b"1")
    staged = Staged(inode.ino, [(0, 9)], [(0, 9)], 4)
    catalog.save_staged(staged)
    catalog.save_staged(Staged(directory.ino, [(0, 9)], [], 4))
    gone = catalog.new_inode(FILE, 0, 0)
    catalog.link(1, b"gone", gone.ino)
    catalog.unlink(1, b"gone")
    catalog.remove_inode(gone.ino)
    extent = ExtentEntry(inode.ino, 0, 9, 512, b"")
    catalog.confirm(1, 0, extents=[(extent, [(0, 9)])])

    epoch = catalog.close_epoch()
    with catalog.snapshot() as snapshot:
        assert snapshot.epoch == epoch
        assert list(snapshot.changed_inodes()) == [directory.ino, inode.ino, gone.ino]
        assert list(snapshot.changed_dentries()) == [
            (1, b"d", directory.ino),
            (1, b"gone", None),
            (directory.ino, b"f", inode.ino),
        ]
        assert snapshot.change_counts() == (3, 3)
        assert list(snapshot.dirty_staged()) == [staged]
        assert snapshot.staged(directory.ino) == Staged(directory.ino, [(0, 9)], [], 4)
        assert snapshot.staged(1) is None
        assert snapshot.inode(inode.ino) == inode
        assert snapshot.inode(inode.ino) is not inode
        assert snapshot.inode(gone.ino) is None
        assert snapshot.xattrs(inode.ino) == {b"user.a": b"1"}
        assert snapshot.links(inode.ino) == [(directory.ino, b"f")]
        assert snapshot.directory_path(directory.ino) == b"d"
        assert snapshot.path_of(directory.ino, b"f") == b"d/f"
        assert snapshot.extents(inode.ino) == [Extent(inode.ino, 0, 9, 1, 512)]


def test_later_changes_do_not_show(catalog: Catalog) -> None:
    inode = catalog.new_inode(FILE, 0, 0)
    catalog.link(1, b"f", inode.ino)
    catalog.save_staged(Staged(inode.ino, [(0, 9)], [(0, 9)], 4))
    epoch = catalog.close_epoch()
    with catalog.snapshot() as snapshot:
        before = everything(snapshot)
        inode.size = 99
        catalog.changed(inode)
        catalog.set_xattr(inode.ino, b"user.a", b"1")
        catalog.save_staged(Staged(inode.ino, [(0, 9)], [], 5))
        catalog.unlink(1, b"f")
        other = catalog.new_inode(FILE, 0, 0)
        catalog.link(1, b"g", other.ino)
        catalog.commit(durable=True)
        catalog.confirm(1, epoch, logged_inodes=[inode.ino], logged_dentries=[(1, b"f")])
        catalog.close_epoch()
        catalog.fold_log()
        assert everything(snapshot) == before
        assert snapshot.epoch == epoch
    with catalog.snapshot() as snapshot:
        assert list(snapshot.changed_dentries()) == [(1, b"f", None), (1, b"g", other.ino)]


def test_uncommitted_changes_do_not_show(catalog: Catalog) -> None:
    catalog.close_epoch()
    catalog.link(1, b"f", catalog.new_inode(FILE, 0, 0).ino)
    catalog.flush()
    with catalog.snapshot() as snapshot:
        assert snapshot.change_counts() == (0, 0)
        assert snapshot.lookup(1, b"f") is None


async def test_a_worker_thread_reads_while_the_catalog_is_written(catalog: Catalog) -> None:
    count = 300
    for number in range(count):
        catalog.link(1, b"%d" % number, catalog.new_inode(FILE, 0, 0).ino)
    catalog.close_epoch()
    snapshot = catalog.snapshot()
    numbers = list(range(2, 2 + count))
    send, receive = trio.open_memory_channel[None](0)
    found: list[int] = []

    def read() -> None:
        for ino in snapshot.changed_inodes():
            found.append(ino)
            assert snapshot.links(ino)
            if ino in (5, 50):
                trio.from_thread.run(send.send, None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, read)
        for _ in range(2):
            await receive.receive()
            for ino in numbers[100:]:
                catalog.remove_inode(ino)
            for number in range(100, count):
                catalog.unlink(1, b"%d" % number)
            catalog.commit()
    assert found == numbers
    await trio.to_thread.run_sync(snapshot.close)


def test_a_snapshot_cannot_write(catalog: Catalog) -> None:
    with catalog.snapshot() as snapshot, pytest.raises(StateUnusable, match="cannot be written"):
        snapshot._database.execute("DELETE FROM inode")


def test_a_snapshot_of_nothing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StateUnusable, match="does not exist"):
        Snapshot.open(tmp_path / "none.sqlite")
