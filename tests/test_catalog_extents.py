"""Extents never overlap and always say where the latest copy of each byte stands."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from catalog_rig import FILE, new_view
from hypothesis import given
from hypothesis import strategies as st

from tapefs.catalog import Catalog
from tapefs.entries import ExtentEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapefs.entries import Extent

SIZE = 40
# For each byte of a file: the tape file and the byte position in it, or None.
Model = list[tuple[int, int] | None]


@pytest.fixture(scope="module")
def catalog() -> Iterator[Catalog]:
    with tempfile.TemporaryDirectory() as name:
        new_view(Path(name)).close()
        catalog = Catalog.create_from(Path(name) / "tape.sqlite", Path(name) / "live.sqlite")
        yield catalog
        catalog.close(clean=True)


ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)).map(
    lambda pair: (min(pair), max(pair) + 1)
)
writes = st.tuples(st.just("write"), ranges)
cuts = st.tuples(st.just("cut"), st.integers(0, SIZE).map(lambda size: (size, SIZE)))


@given(st.lists(writes | cuts, max_size=25), ranges)
def test_each_byte_is_where_it_was_written_last(
    catalog: Catalog, steps: list[tuple[str, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    ino = catalog.new_inode(FILE, 0, 0).ino
    model: Model = [None] * SIZE
    for sequence, (step, (start, end)) in enumerate(steps, 1):
        if step == "cut":
            catalog.cut_extents(ino, start)
        else:
            entry = ExtentEntry(ino, start, end - start, 1000 * sequence, b"")
            catalog.confirm(sequence, 1, extents=[(entry, [(start, end)])])
        for offset in range(start, end):
            model[offset] = None if step == "cut" else (sequence, 1000 * sequence + offset - start)
    extents = catalog.extents(ino)
    assert _bytes_of(extents) == model
    start, end = asked
    touching = [e for e in extents if e.offset < end and e.offset + e.length > start]
    assert catalog.extents(ino, start, end - start) == touching


@given(st.lists(ranges, max_size=4))
def test_only_kept_ranges_of_a_written_extent_are_recorded(
    catalog: Catalog, kept: list[tuple[int, int]]
) -> None:
    ino = catalog.new_inode(FILE, 0, 0).ino
    catalog.confirm(3, 1, extents=[(ExtentEntry(ino, 0, SIZE, 500, b""), kept)])
    model: Model = [
        (3, 500 + offset) if any(start <= offset < end for start, end in kept) else None
        for offset in range(SIZE)
    ]
    assert _bytes_of(catalog.extents(ino)) == model


def test_extents_of_other_files_stay(catalog: Catalog) -> None:
    before, changed, after = (catalog.new_inode(FILE, 0, 0).ino for _ in range(3))
    whole = [(0, SIZE)]
    for ino in (before, changed, after):
        catalog.confirm(1, 1, extents=[(ExtentEntry(ino, 0, SIZE, 0, b""), whole)])
    catalog.cut_extents(changed, 0)
    assert catalog.extents(changed) == []
    assert [len(catalog.extents(ino)) for ino in (before, after)] == [1, 1]


def test_extents_reach_beyond_any_file_size(catalog: Catalog) -> None:
    ino = catalog.new_inode(FILE, 0, 0).ino
    offset = 2**62
    catalog.confirm(1, 1, extents=[(ExtentEntry(ino, offset, 10, 0, b""), [(offset, offset + 10)])])
    assert [extent.length for extent in catalog.extents(ino, offset + 9, 2**62)] == [10]
    catalog.cut_extents(ino, offset + 4)
    assert [extent.length for extent in catalog.extents(ino)] == [4]


def test_a_range_outside_of_what_was_written_is_a_bug(catalog: Catalog) -> None:
    ino = catalog.new_inode(FILE, 0, 0).ino
    with pytest.raises(AssertionError, match="range outside"):
        catalog.confirm(1, 1, extents=[(ExtentEntry(ino, 10, 5, 0, b""), [(10, 16)])])


def _bytes_of(extents: list[Extent]) -> Model:
    model: Model = [None] * SIZE
    for extent in extents:
        for index in range(extent.length):
            assert model[extent.offset + index] is None, "extents overlap"
            model[extent.offset + index] = (extent.sequence, extent.position + index)
    return model
