"""A view rebuilt from the tape equals the one that was there, and both equal what users saw.

A small archiver writes journals from snapshots while random changes go on; then the same journals
are applied to a fresh view, and to one that starts from a checkpoint half way.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from catalog_rig import DIRECTORY, FILE, dump, new_view, segment

from tapefs.catalog import Catalog, Staged, TapeView
from tapefs.catalog.rows import S_IFDIR, S_IFMT
from tapefs.entries import (
    ROOT_INO,
    Entry,
    ExtentEntry,
    Inode,
    InodeEntry,
    LinkEntry,
    TapeFileKind,
    UnlinkEntry,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tapefs.catalog import Snapshot

SPAN = 64


class Volume:
    """A volume in use: random changes, and an archiver that knows only the catalog's API."""

    def __init__(self, directory: Path, rng: Random) -> None:
        self.directory = directory
        self.rng = rng
        self.view = new_view(directory)
        self.live = Catalog.create_from(self.view.path, directory / "live.sqlite")
        # What is on the tape, file after file.
        self.tape: list[tuple[TapeFileKind, list[Entry]]] = []
        # Bytes of each file that changed since the last snapshot.
        self.rewritten: dict[int, set[int]] = {}
        self.position = 0

    def change(self) -> None:
        """One thing that a user may do, if it is possible."""
        rng = self.rng
        actions = [self.make, self.make, self.write, self.write, self.truncate, self.remove]
        rng.choice([*actions, self.rename, self.hard_link, self.attribute])()

    def directories(self) -> list[int]:
        found, todo = [ROOT_INO], [ROOT_INO]
        while todo:
            for _, _, ino in self.live.children(todo.pop()):
                if self.is_directory(ino):
                    found.append(ino)
                    todo.append(ino)
        return found

    def entries(self) -> list[tuple[int, bytes, int]]:
        return [
            (parent, name, ino)
            for parent in self.directories()
            for _, name, ino in self.live.children(parent)
        ]

    def is_directory(self, ino: int) -> bool:
        return self.live.inode(ino).mode & S_IFMT == S_IFDIR

    def add(self, parent: int, name: bytes, inode: Inode) -> None:
        self.live.link(parent, name, inode.ino)
        if self.is_directory(inode.ino):
            self.change_nlink(parent, 1)

    def drop(self, parent: int, name: bytes, ino: int) -> None:
        """Take a name away, and what it named with it when it was the last."""
        self.live.unlink(parent, name)
        if self.is_directory(ino):
            self.change_nlink(parent, -1)
            self.live.remove_inode(ino)
            return
        self.change_nlink(ino, -1)
        if self.live.inode(ino).nlink == 0:
            self.live.remove_inode(ino)

    def change_nlink(self, ino: int, delta: int) -> None:
        inode = self.live.inode(ino)
        inode.nlink += delta
        self.live.changed(inode)

    def place(self) -> tuple[int, bytes]:
        """A free name somewhere."""
        parent = self.rng.choice(self.directories())
        taken = {name for _, name, _ in self.live.children(parent)}
        free = [name for name in (b"a", b"b", b"c\xff", b"d") if name not in taken]
        return parent, self.rng.choice(free) if free else b"%d" % self.rng.getrandbits(32)

    def make(self) -> None:
        mode = self.rng.choice([FILE, FILE, FILE, DIRECTORY, 0o120777])
        target = b"elsewhere" if mode == 0o120777 else None
        inode = self.live.new_inode(mode, 1, 2, now_ns=self.rng.getrandbits(32), target=target)
        parent, name = self.place()
        self.add(parent, name, inode)

    def file(self) -> Inode | None:
        files = [ino for _, _, ino in self.entries() if self.live.inode(ino).mode == FILE]
        return self.live.inode(self.rng.choice(files)) if files else None

    def write(self) -> None:
        inode = self.file()
        if inode is None:
            return
        start = self.rng.randrange(SPAN)
        end = start + self.rng.randrange(1, SPAN)
        # A hole before it is written out as well.
        self.set_content(inode, set(range(min(start, inode.size), end)), max(inode.size, end))

    def truncate(self) -> None:
        inode = self.file()
        if inode is not None:
            self.set_content(inode, set(), self.rng.randrange(inode.size + 1))

    def set_content(self, inode: Inode, written: set[int], size: int) -> None:
        if size < inode.size:
            self.live.cut_extents(inode.ino, size)
        self.rewritten.setdefault(inode.ino, set()).update(written, range(size, inode.size))
        inode.size, inode.sha256 = size, None
        self.live.changed(inode)
        self.set_dirty(inode.ino, {byte for byte in self.dirty(inode.ino) | written if byte < size})

    def dirty(self, ino: int) -> set[int]:
        row = self.live.load_staged(ino)
        return bytes_of(row.dirty) if row else set()

    def set_dirty(self, ino: int, dirty: set[int]) -> None:
        ranges = ranges_of(dirty)
        self.live.save_staged(Staged(ino, ranges, ranges, self.rng.getrandbits(20)))

    def remove(self) -> None:
        entries = self.entries()
        if entries:
            parent, name, ino = self.rng.choice(entries)
            if not self.live.has_children(ino):
                self.drop(parent, name, ino)

    def rename(self) -> None:
        entries = self.entries()
        if not entries:
            return
        parent, name, ino = self.rng.choice(entries)
        new_parent, new_name = self.place()
        if self.is_directory(ino):
            ancestor = new_parent
            while ancestor not in (ino, ROOT_INO):
                ancestor = self.live.parent_of(ancestor)
            if ancestor == ino:
                return
            self.change_nlink(parent, -1)
            self.change_nlink(new_parent, 1)
        self.live.unlink(parent, name)
        self.live.link(new_parent, new_name, ino)

    def hard_link(self) -> None:
        inode = self.file()
        if inode is not None:
            parent, name = self.place()
            self.change_nlink(inode.ino, 1)
            self.live.link(parent, name, inode.ino)

    def attribute(self) -> None:
        entries = self.entries()
        if not entries:
            return
        ino = self.rng.choice(entries)[2]
        name = self.rng.choice([b"user.x", b"user.y"])
        if self.rng.random() < 0.3:
            self.live.remove_xattr(ino, name)
        else:
            self.live.set_xattr(ino, name, self.rng.randbytes(4))

    def archive(self, changes_meanwhile: int) -> None:
        """Close an epoch, write a segment from it while changes go on, and confirm it."""
        epoch = self.live.close_epoch()
        self.rewritten.clear()
        with self.live.snapshot() as snapshot:
            assert snapshot.epoch == epoch
            for _ in range(changes_meanwhile):
                self.change()
            journal = self.journal(snapshot)
            inodes = list(snapshot.changed_inodes())
            names = [(parent, name) for parent, name, _ in snapshot.changed_dentries()]
        sequence = self.append(TapeFileKind.SEGMENT, journal)
        extents = [entry for entry in journal if isinstance(entry, ExtentEntry)]
        kept = [ranges_of(self.still_valid(entry)) for entry in extents]
        with self.live.transaction():
            self.live.confirm(
                sequence,
                epoch,
                extents=zip(extents, kept, strict=True),
                logged_inodes=inodes,
                logged_dentries=names,
                hashes=[
                    (entry.ino, entry.sha256, None)
                    for entry in journal
                    if isinstance(entry, InodeEntry)
                ],
            )
        self.live.set_confirmed_sequence(sequence)
        for entry, ranges in zip(extents, kept, strict=True):
            if ranges:
                self.set_dirty(entry.ino, self.dirty(entry.ino) - bytes_of(ranges))
        self.live.commit()

    def still_valid(self, entry: ExtentEntry) -> set[int]:
        """The bytes of an extent that were not changed since the snapshot."""
        if self.live.load_staged(entry.ino) is None:
            return set()
        written = set(range(entry.offset, entry.offset + entry.length))
        return written - self.rewritten.get(entry.ino, set())

    def journal(self, snapshot: Snapshot) -> list[Entry]:
        """What a segment says, in an order that is as wild as may be."""
        dirty = {row.ino: row.dirty for row in snapshot.dirty_staged()}
        groups: list[list[Entry]] = []
        for ino in sorted({*snapshot.changed_inodes(), *dirty}):
            inode = snapshot.inode(ino)
            if inode is None:
                continue
            sha256 = self.rng.randbytes(32) if ino in dirty else inode.sha256
            times = (inode.atime_ns, inode.mtime_ns, inode.ctime_ns)
            entry = InodeEntry(
                ino, inode.mode, inode.uid, inode.gid, inode.size, inode.rdev, *times,
                inode.target, sha256, None, snapshot.xattrs(ino),
            )  # fmt: skip
            groups.append([entry, *(self.extent(ino, *pair) for pair in dirty.get(ino, []))])
        for parent, name, now in snapshot.changed_dentries():
            link = UnlinkEntry(parent, name) if now is None else LinkEntry(parent, name, now)
            groups.append([link])
        self.rng.shuffle(groups)
        return [entry for group in groups for entry in group]

    def extent(self, ino: int, start: int, end: int) -> ExtentEntry:
        self.position += 512
        return ExtentEntry(ino, start, end - start, self.position, b"")

    def append(self, kind: TapeFileKind, journal: list[Entry]) -> int:
        self.tape.append((kind, journal))
        sequence = len(self.tape)
        assert self.view.apply(segment(sequence, kind), iter(journal))
        return sequence

    def write_checkpoint(self) -> Path:
        copy = self.directory / "checkpoint.sqlite"
        self.view.export(copy)
        self.append(TapeFileKind.CHECKPOINT, [])
        return copy

    def roll_forward(self, view: TapeView) -> dict[str, list[object]]:
        """Apply what is on tape to `view` and give its rows."""
        last = view.last_tape_file()
        for sequence in range(last.sequence + 1 if last else 1, len(self.tape) + 1):
            kind, journal = self.tape[sequence - 1]
            assert view.apply(segment(sequence, kind), iter(journal))
        view.close()
        return dump(view.path)


@pytest.mark.parametrize("seed", range(12))
def test_a_rebuilt_view_equals_the_one_that_was_there(tmp_path: Path, seed: int) -> None:
    volume = Volume(tmp_path, Random(seed))
    checkpoint = None
    for number in range(8):
        for _ in range(15):
            volume.change()
        volume.archive(changes_meanwhile=10)
        if number == 3:
            checkpoint = volume.write_checkpoint()
    volume.archive(changes_meanwhile=0)
    assert checkpoint is not None

    live, view = volume.live, volume.view
    assert not live.owes_tape()
    assert live.staged_totals()[1] == 0
    assert live_namespace(volume) == view_namespace(volume)

    rows = dump(view.path)
    assert volume.roll_forward(new_view(tmp_path, "again.sqlite")) == rows
    from_checkpoint = TapeView.import_checkpoint(checkpoint, tmp_path / "imported.sqlite")
    assert volume.roll_forward(from_checkpoint) == rows

    live.close(clean=True)
    fresh = Catalog.create_from(view.path, tmp_path / "fresh.sqlite")
    assert fresh.new_inode(FILE, 0, 0).ino >= view.next_ino
    fresh.close(clean=True)
    view.close()


def live_namespace(volume: Volume) -> dict[str, object]:
    volume.live.commit()
    rows = dump(volume.live.path, ("inode", "dentry", "xattr"))
    return {
        "inode": rows["inode"],
        "names": sorted(row[1:] for row in rows["dentry"]),
        "xattr": rows["xattr"],
        "content": {ino: content(volume.live, ino) for ino, *_ in rows["inode"]},
    }


def view_namespace(volume: Volume) -> dict[str, object]:
    rows = dump(volume.view.path)
    return {
        "inode": rows["inode"],
        "names": sorted(row[1:] for row in rows["dentry"]),
        "xattr": rows["xattr"],
        "content": {ino: content(volume.view, ino) for ino, *_ in rows["inode"]},
    }


def content(source: Catalog | TapeView, ino: int) -> dict[int, tuple[int, int]]:
    """Where each byte of a file stands."""
    return {
        extent.offset + index: (extent.sequence, extent.position + index)
        for extent in source.extents(ino)
        for index in range(extent.length)
    }


def bytes_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {byte for start, end in ranges for byte in range(start, end)}


def ranges_of(numbers: set[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges
