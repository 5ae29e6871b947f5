"""The tape view takes journals in order, completely or not at all, and derives what follows."""

from __future__ import annotations

import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from catalog_rig import DIRECTORY, FILE, SETTINGS, described, dump, new_view, segment
from hypothesis import given
from hypothesis import strategies as st

from tapefs.catalog import TapeView, application, remove_database
from tapefs.entries import (
    Entry,
    Extent,
    ExtentEntry,
    Inode,
    LinkEntry,
    TapeFile,
    TapeFileKind,
    UnlinkEntry,
)
from tapefs.errors import DamagedTape, StateUnusable, WrongTape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def view(tmp_path: Path) -> Iterator[TapeView]:
    view = new_view(tmp_path)
    yield view
    view.close()


def test_a_new_view_holds_the_label_and_the_root(view: TapeView) -> None:
    assert view.settings == SETTINGS
    assert view.inode(1) == Inode(
        1, 0o040755, nlink=2, atime_ns=1_000, mtime_ns=1_000, ctime_ns=1_000
    )
    assert view.last_tape_file() is None
    assert view.last_checkpoint() is None
    assert view.expected_end().block == 2
    assert view.next_ino == 2


def test_inode_and_link_may_come_in_either_order(view: TapeView) -> None:
    view.apply(
        segment(1),
        [
            LinkEntry(2, b"inner", 3),
            described(3, size=10, xattrs={b"user.a": b"1"}),
            LinkEntry(1, b"outer", 2),
            ExtentEntry(3, 0, 10, 512, b"h" * 32),
            described(2, DIRECTORY),
        ],
    )
    assert view.lookup(2, b"inner") == 3
    assert view.path_of(2, b"inner") == b"outer/inner"
    assert view.xattrs(3) == {b"user.a": b"1"}
    assert view.extents(3) == [Extent(3, 0, 10, 1, 512)]
    assert (view.inode(1), view.inode(2)) == (
        Inode(1, 0o040755, nlink=3, atime_ns=1_000, mtime_ns=1_000, ctime_ns=1_000),
        Inode(2, DIRECTORY, nlink=2, atime_ns=1, mtime_ns=2, ctime_ns=3),
    )


def test_an_inode_entry_replaces_attributes_and_cuts_content(view: TapeView) -> None:
    first = described(2, size=10, sha256=b"s" * 32, xattrs={b"user.a": b"1", b"user.b": b"2"})
    view.apply(segment(1), [first, LinkEntry(1, b"f", 2), ExtentEntry(2, 0, 10, 0, b"")])
    view.apply(segment(2), [described(2, size=4, xattrs={b"user.b": b"3"})])
    inode = view.inode(2)
    assert inode is not None
    assert (inode.size, inode.sha256, inode.nlink) == (4, None, 1)
    assert view.xattrs(2) == {b"user.b": b"3"}
    assert view.xattr(2, b"user.b") == b"3"
    assert [extent.length for extent in view.extents(2)] == [4]


def test_cutting_and_growing_in_one_journal_leaves_a_hole(view: TapeView) -> None:
    view.apply(segment(1), [described(2, size=10), LinkEntry(1, b"f", 2)])
    view.apply(segment(2), [ExtentEntry(2, 0, 10, 0, b"")])
    view.apply(segment(3), [described(2, size=4), described(2, size=20)])
    assert [(e.offset, e.length) for e in view.extents(2)] == [(0, 4)]


def test_links_are_counted_from_names(view: TapeView) -> None:
    entries: list[Entry] = [LinkEntry(1, name, 2) for name in (b"a", b"b", b"a")]
    view.apply(segment(1), [*entries, described(2)])
    assert _nlink(view, 2) == 2
    assert view.links(2) == [(1, b"a"), (1, b"b")]
    view.apply(segment(2), [UnlinkEntry(1, b"a")])
    assert _nlink(view, 2) == 1


def test_what_lost_its_last_name_is_gone(view: TapeView) -> None:
    first = described(2, size=1, xattrs={b"user.a": b"1"})
    view.apply(segment(1), [first, LinkEntry(1, b"a", 2), ExtentEntry(2, 0, 1, 0, b"")])
    view.apply(segment(2), [UnlinkEntry(1, b"a"), UnlinkEntry(1, b"never was")])
    assert not view.has_inode(2)
    assert view.lookup(1, b"a") is None
    assert view.xattrs(2) == {}
    assert view.extents(2) == []
    assert view.next_ino == 3


def test_a_replaced_name_drops_what_it_named(view: TapeView) -> None:
    view.apply(segment(1), [described(2), LinkEntry(1, b"a", 2)])
    view.apply(segment(2), [described(3), LinkEntry(1, b"a", 3)])
    assert not view.has_inode(2)
    assert _nlink(view, 3) == 1


def test_a_file_described_without_a_name_is_not_kept(view: TapeView) -> None:
    view.apply(
        segment(1), [described(2), ExtentEntry(2, 0, 1, 0, b""), ExtentEntry(9, 0, 1, 0, b"")]
    )
    assert not view.has_inode(2)
    assert view.counts().extents == 0
    assert view.next_ino == 10


def test_a_directory_moves_with_everything_in_it(view: TapeView) -> None:
    made: list[Entry] = [described(ino, DIRECTORY) for ino in (2, 3, 4)]
    made += [LinkEntry(1, b"a", 2), LinkEntry(1, b"b", 3), LinkEntry(2, b"sub", 4)]
    view.apply(segment(1), [*made, described(5), LinkEntry(4, b"f", 5)])
    assert [_nlink(view, ino) for ino in (1, 2, 3, 4)] == [4, 3, 2, 2]
    view.apply(segment(2), [UnlinkEntry(2, b"sub"), LinkEntry(3, b"moved", 4)])
    assert view.path_of(4, b"f") == b"b/moved/f"
    assert [_nlink(view, ino) for ino in (1, 2, 3, 4)] == [4, 2, 3, 2]


def test_a_tree_is_removed_in_any_order(view: TapeView) -> None:
    view.apply(
        segment(1),
        [
            described(2, DIRECTORY),
            LinkEntry(1, b"a", 2),
            described(3, DIRECTORY),
            LinkEntry(2, b"b", 3),
            described(4),
            LinkEntry(3, b"c", 4),
        ],
    )
    view.apply(segment(2), [UnlinkEntry(1, b"a"), UnlinkEntry(3, b"c"), UnlinkEntry(2, b"b")])
    assert view.counts().inodes == 1
    assert view.counts().names == 0
    assert _nlink(view, 1) == 2


@pytest.mark.parametrize("notes_max", [1, 10_000])
def test_notes_that_went_to_disk_count_as_well(
    view: TapeView, monkeypatch: pytest.MonkeyPatch, notes_max: int
) -> None:
    monkeypatch.setattr(application, "_NOTES_MAX", notes_max)
    entries: list[Entry] = []
    for ino in range(2, 12):
        entries += [described(ino, DIRECTORY), LinkEntry(1, b"%d" % ino, ino)]
    view.apply(segment(1), [*entries, UnlinkEntry(1, b"2")])
    assert _nlink(view, 1) == 2 + 9
    assert not view.has_inode(2)


def test_the_same_tape_file_is_applied_once(view: TapeView) -> None:
    entries: list[Entry] = [described(2), LinkEntry(1, b"a", 2)]
    assert view.apply(segment(1), entries)
    before = dump(view.path)
    assert not view.apply(segment(1), [UnlinkEntry(1, b"a")])
    assert dump(view.path) == before


@pytest.mark.parametrize(
    "tape_file",
    [segment(3), TapeFile(2, TapeFileKind.SEGMENT, 1002, 5, 0)],
    ids=["gap in number", "gap in blocks"],
)
def test_a_gap_is_refused(view: TapeView, tape_file: TapeFile) -> None:
    view.apply(segment(1), [])
    with pytest.raises(WrongTape, match="expects tape file 2 at block 1003"):
        view.apply(tape_file, [])
    assert view.expected_end().block == 1003


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([LinkEntry(1, b"x", 9)], "names inode 9 without describing it"),
        ([described(9), LinkEntry(8, b"x", 9)], "puts a name into 8"),
        ([described(9), LinkEntry(3, b"x", 9)], "puts a name into 3"),
        ([LinkEntry(1, b"again", 2)], "gives directory 2 more than one name"),
        ([LinkEntry(2, b"root", 1)], "gives directory 1 more than one name"),
        ([UnlinkEntry(1, b"dir")], "removes directory 2 but leaves names"),
        ([described(2, FILE)], "changes the type of inode 2"),
        ([LinkEntry(4, b"x", 2), UnlinkEntry(1, b"dir")], "puts directory . below itself"),
        ([described(9, DIRECTORY), LinkEntry(9, b"x", 9)], "puts directory 9 below itself"),
        ([described(9), LinkEntry(1, b"a/b", 9)], "impossible value"),
        ([described(9), LinkEntry(1, b"", 9)], "impossible value"),
        ([described(9), LinkEntry(1, b"..", 9)], "impossible value"),
        ([described(9), LinkEntry(1, b".", 9)], "impossible value"),
        ([described(9), LinkEntry(1, b"a\0", 9)], "impossible value"),
        ([described(9), LinkEntry(1, b"n" * 256, 9)], "impossible value"),
        ([described(0), LinkEntry(1, b"x", 0)], "impossible value"),
        ([described(9, 0o777)], "impossible value"),
        ([described(9, 0o170644)], "impossible value"),
        ([described(9, 0o1100644)], "impossible value"),
        ([described(9, size=-1)], "impossible value"),
        ([described(9, size=2**63)], "impossible value"),
        ([described(9, target=b"t" * 4096)], "impossible value"),
        ([described(9, sha256=b"short")], "impossible value"),
        ([described(9, xattrs={b"user.a": b"v" * 65537})], "impossible value"),
        ([ExtentEntry(3, 0, 0, 0, b"")], "impossible value"),
        ([ExtentEntry(3, -1, 5, 0, b"")], "impossible value"),
        ([ExtentEntry(3, 0, 5, -1, b"")], "impossible value"),
    ],
)
def test_an_impossible_journal_changes_nothing(
    view: TapeView, entries: list[Entry], sentence: str
) -> None:
    view.apply(
        segment(1),
        [
            described(2, DIRECTORY),
            LinkEntry(1, b"dir", 2),
            described(3),
            LinkEntry(2, b"file", 3),
            described(4, DIRECTORY),
            LinkEntry(2, b"sub", 4),
        ],
    )
    before = dump(view.path)
    with pytest.raises(DamagedTape, match=f"journal of tape file 2 .*{sentence}"):
        view.apply(segment(2), entries)
    assert dump(view.path) == before
    assert view.apply(segment(2), [])


def test_a_journal_that_breaks_off_changes_nothing(view: TapeView) -> None:
    def torn() -> Iterator[Entry]:
        yield described(2)
        yield LinkEntry(1, b"a", 2)
        raise DamagedTape("the line is cut off")

    before = dump(view.path)
    with pytest.raises(DamagedTape, match="cut off"):
        view.apply(segment(1), torn())
    assert dump(view.path) == before
    assert view.next_ino == 2


def test_questions_are_answered_from_before_while_applying(view: TapeView) -> None:
    view.apply(segment(1), [described(2), LinkEntry(1, b"old", 2)])
    seen: list[bool] = []

    def ask() -> None:
        seen.append(view.lookup(1, b"old") is not None)
        seen.append(view.lookup(1, b"new") is not None)

    def entries() -> Iterator[Entry]:
        yield UnlinkEntry(1, b"old")
        yield described(3)
        yield LinkEntry(1, b"new", 3)
        asker = threading.Thread(target=ask)
        asker.start()
        asker.join()

    view.apply(segment(2), entries())
    assert seen == [True, False]
    ask()
    assert seen[2:] == [False, True]


def test_memory_does_not_grow_with_the_journal(
    view: TapeView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "_NOTES_MAX", 500)

    def peak_of(sequence: int, files: int) -> int:
        start = view.next_ino

        def entries() -> Iterator[Entry]:
            for ino in range(start, start + files):
                yield described(ino, size=1)
                yield LinkEntry(1, b"%08d" % ino, ino)

        tracemalloc.start()
        view.apply(segment(sequence), entries())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_of(1, 10)
    small_peak, large_peak = peak_of(2, 2_000), peak_of(3, 8_000)
    assert large_peak < 1.3 * small_peak


def test_tape_files_and_their_record_crcs(view: TapeView) -> None:
    crcs = b"\0\0\0\1\xff\xff\xff\xff"
    files = [
        TapeFile(1, TapeFileKind.SEGMENT, 2, 3, 11, crcs),
        TapeFile(2, TapeFileKind.CHECKPOINT, 6, 1, 12),
        TapeFile(3, TapeFileKind.TORN, 8, 0, 13),
        TapeFile(4, TapeFileKind.SEGMENT, 9, 2, 14, b"\0\0\0\2"),
    ]
    for index, tape_file in enumerate(files):
        assert view.files_since_checkpoint() == (files[:index] if index < 2 else files[2:index])
        assert view.apply(tape_file, [])
    assert list(view.tape_files()) == files
    assert view.last_tape_file() == files[-1]
    assert view.last_checkpoint() == files[1]
    assert view.generation_count() == 1
    assert view.tape_file(3) == files[2]
    assert view.tape_file(5) is None
    assert view.expected_end().block == 12


def test_more_crcs_than_records_are_refused(view: TapeView) -> None:
    with pytest.raises(DamagedTape, match="impossible value"):
        view.apply(TapeFile(1, TapeFileKind.SEGMENT, 2, 1, 0, b"12345678"), [])


names = st.sampled_from([b"a", b"b", b"c", b"d"])
operations = st.lists(
    st.tuples(st.sampled_from(["link", "unlink", "describe"]), names, st.integers(2, 5)),
    max_size=12,
)


@given(st.lists(operations, max_size=4))
def test_link_counts_and_inodes_follow_any_journal(
    tmp_path_factory: pytest.TempPathFactory, journals: list[list[tuple[str, bytes, int]]]
) -> None:
    path = tmp_path_factory.mktemp("view")
    view = new_view(path)
    directory: dict[bytes, int] = {}
    for sequence, journal in enumerate(journals, 1):
        # Whatever a name may come to stand for is described somewhere in the same journal.
        entries: list[Entry] = [described(ino) for _, _, ino in journal]
        for operation, name, ino in journal:
            if operation == "link":
                entries.append(LinkEntry(1, name, ino))
                directory[name] = ino
            elif operation == "unlink":
                entries.append(UnlinkEntry(1, name))
                directory.pop(name, None)
        view.apply(segment(sequence), entries)
        assert {name: ino for _, name, ino in view.children(1)} == directory
        for ino in range(2, 6):
            links = list(directory.values()).count(ino)
            inode = view.inode(ino)
            assert (inode.nlink if inode else 0) == links
    view.close()


def test_a_view_is_made_only_where_nothing_is(view: TapeView) -> None:
    with pytest.raises(StateUnusable, match="exists already"):
        TapeView.create(view.path, SETTINGS)
    path = view.path
    view.close()
    remove_database(path)
    TapeView.create(path, SETTINGS).close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def _nlink(view: TapeView, ino: int) -> int:
    inode = view.inode(ino)
    assert inode is not None
    return inode.nlink
