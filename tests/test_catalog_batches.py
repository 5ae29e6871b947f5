"""What is written in batches is read, meanwhile and afterwards, as if it were written at once."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from catalog_rig import DIRECTORY, FILE, TAPE_TABLES, described, dump, new_live, new_view, segment
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tapefs.catalog import Catalog, Staged, application, new_names, staging
from tapefs.entries import ROOT_INO, Entry, ExtentEntry, LinkEntry, UnlinkEntry
from tapefs.errors import DamagedTape

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])
NUMBERS = st.integers(0, 30)


class Batches(RuleBasedStateMachine):
    """A catalog beside plain dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = new_live(Path(self.directory.name))
        self.catalog = Catalog.open(self.path)
        self.names: dict[bytes, int] = {}
        self.staged: dict[int, Staged] = {}
        self.xattrs: dict[tuple[int, bytes], bytes] = {}
        self.inos: list[int] = []

    def teardown(self) -> None:
        self.catalog.close(clean=True)
        self.directory.cleanup()

    def ino(self, number: int) -> int:
        return self.inos[number % len(self.inos)]

    @rule(name=NAMES)
    def make(self, name: bytes) -> None:
        assert self.catalog.lookup(ROOT_INO, name) == self.names.get(name)
        ino = self.catalog.new_inode(FILE, 0, 0).ino
        self.inos.append(ino)
        self.catalog.link(ROOT_INO, name, ino)
        self.names[name] = ino

    @rule(name=NAMES)
    def unlink(self, name: bytes) -> None:
        self.catalog.unlink(ROOT_INO, name)
        self.names.pop(name, None)

    @precondition(lambda self: self.inos)
    @rule(number=NUMBERS, size=st.integers(1, 9))
    def save(self, number: int, size: int) -> None:
        staged = Staged(self.ino(number), [(0, size)], [(0, size)], number)
        self.catalog.save_staged(staged)
        self.staged[staged.ino] = staged

    @precondition(lambda self: self.inos)
    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        self.catalog.delete_staged(self.ino(number))
        self.staged.pop(self.ino(number), None)

    @rule()
    def prefetch(self) -> None:
        self.catalog.prefetch_staged(self.inos)

    @precondition(lambda self: self.inos)
    @rule(number=NUMBERS, value=st.none() | st.binary(max_size=2))
    def set_xattr(self, number: int, value: bytes | None) -> None:
        place = self.ino(number), b"user.x"
        if value is None:
            assert self.catalog.remove_xattr(*place) == (place in self.xattrs)
            self.xattrs.pop(place, None)
        else:
            self.catalog.set_xattr(*place, value)
            self.xattrs[place] = value

    @precondition(lambda self: self.inos)
    @rule(number=NUMBERS, name=NAMES)
    def lose(self, number: int, name: bytes) -> None:
        """What a transaction that fails did is undone, and nothing from before it."""
        before = self.names.get(name)
        with suppress(DamagedTape), self.catalog.transaction():
            self.catalog.link(ROOT_INO, name, self.ino(number))
            self.catalog.save_staged(Staged(self.ino(number), [(7, 8)], [], 0))
            raise DamagedTape("on purpose")
        assert self.catalog.lookup(ROOT_INO, name) == before

    @rule()
    def commit(self) -> None:
        self.catalog.commit()

    @rule()
    def reopen(self) -> None:
        self.catalog.close(clean=False)
        self.catalog = Catalog.open(self.path)

    @rule()
    def list_directory(self) -> None:
        entries = self.catalog.entries(ROOT_INO, 0, 100)
        assert {name: inode.ino for _, name, inode, _ in entries} == self.names
        assert {inode.ino for *_, inode, has in entries if has} == {
            ino for ino, _ in self.xattrs if ino in self.names.values()
        }
        assert [entry[:2] for entry in entries] == [
            child[:2] for child in self.catalog.children(ROOT_INO)
        ]

    @rule()
    def ask_the_tables(self) -> None:
        assert list(self.catalog.staged_inos()) == sorted(self.staged)
        dirty_bytes = sum(row.dirty[0][1] for row in self.staged.values())
        assert self.catalog.staged_totals()[:2] == (len(self.staged), dirty_bytes)

    @invariant()
    def agrees(self) -> None:
        for name in (b"a", b"b", b"c", b"d"):
            assert self.catalog.lookup(ROOT_INO, name) == self.names.get(name)
        for ino in self.inos:
            assert self.catalog.load_staged(ino) == self.staged.get(ino)
            assert self.catalog.xattr(ino, b"user.x") == self.xattrs.get((ino, b"user.x"))


TestBatches = Batches.TestCase
TestBatches.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)


@pytest.fixture(params=[1, 3])
def _small_batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_names, "_PENDING_MAX", request.param)
    monkeypatch.setattr(staging, "_PENDING_MAX", request.param)


@pytest.mark.usefixtures("_small_batches")
def test_more_than_a_batch_is_written_by_itself(tmp_path: Path) -> None:
    catalog = Catalog.open(new_live(tmp_path))
    for number in range(10):
        ino = catalog.new_inode(FILE, 0, 0).ino
        catalog.link(ROOT_INO, b"%d" % number, ino)
        catalog.save_staged(Staged(ino, [(0, 1)], [(0, 1)], 0))
    assert [name for _, name, _ in catalog.children(ROOT_INO)] == [b"%d" % n for n in range(10)]
    assert catalog.staged_totals() == (10, 10, 10)
    catalog.close(clean=True)


INOS = st.integers(2, 6)
JOURNALS = st.lists(
    st.one_of(
        st.builds(described, INOS, st.sampled_from([FILE, FILE, DIRECTORY]), st.just(9)),
        st.builds(
            ExtentEntry, INOS, st.integers(0, 5), st.integers(1, 4), NUMBERS, st.just(bytes(32))
        ),
        st.builds(LinkEntry, st.just(ROOT_INO) | INOS, NAMES, INOS),
        st.builds(UnlinkEntry, st.just(ROOT_INO) | INOS, NAMES),
    ),
    max_size=14,
)


NEW = [described(2, size=9), described(3, size=9)]
NO_HASH = bytes(32)


@given(st.lists(JOURNALS, min_size=1, max_size=3))
@example([[*NEW, LinkEntry(1, b"a", 2), UnlinkEntry(1, b"a"), LinkEntry(1, b"b", 3)]])
@example([[*NEW, LinkEntry(1, b"a", 2), LinkEntry(1, b"a", 3), LinkEntry(1, b"c", 3)]])
@example([[*NEW, ExtentEntry(2, 0, 4, 0, NO_HASH), ExtentEntry(2, 2, 4, 9, NO_HASH),
           LinkEntry(1, b"a", 2)], [described(2, size=3), LinkEntry(1, b"a", 3)]])  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_a_journal_applied_in_batches_gives_the_same_rows(journals: list[list[Entry]]) -> None:
    found = []
    for rows_max in (1, 3, 500):
        with (
            tempfile.TemporaryDirectory() as name,
            pytest.MonkeyPatch.context() as patched,
        ):
            patched.setattr(application, "_ROWS_MAX", rows_max)
            found.append(list(rows_after(Path(name), journals)))
    assert found[0] == found[1] == found[2]


def rows_after(directory: Path, journals: list[list[Entry]]) -> Iterator[object]:
    """What the view holds after each journal, or that it was refused."""
    view = new_view(directory)
    sequence = 1
    for entries in journals:
        try:
            sequence += view.apply(segment(sequence), entries)
        except DamagedTape:
            yield "refused"
        yield dump(view.path, TAPE_TABLES)
    view.close()
