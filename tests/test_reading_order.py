"""In which order `tapefs recall` reads: as the lane would, with what is known of the tape."""

from __future__ import annotations

import random
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volume_rig import Rig

from tapefs.archive.reading_order import TapeLayout, waiting_in_reading_order
from tapefs.archive.recall_order import recall_order
from tapefs.archive.retrieval_sources import VolumeSource
from tapefs.archive.tape_attributes import LAYOUT, TapeAttributes
from tapefs.catalog import Item, RecallOrder
from tapefs.entries import ROOT_INO, Inode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

REGULAR = stat.S_IFREG | 0o644
ENDS = tuple(range(100, 10_000, 100))
LAYOUT_KNOWN = TapeLayout(4_321, ENDS, 120, 1000)


@pytest.fixture
def order(tmp_path: Path) -> Iterator[RecallOrder]:
    order = RecallOrder.open(tmp_path / "order.sqlite")
    yield order
    order.close()


def items(count: int, seed: int = 1) -> list[Item]:
    dice = random.Random(seed)
    return [
        Item(b"%d" % number, b"%d" % number, Inode(number, REGULAR, size=2500), block)
        for number, block in enumerate(dice.sample(range(1, 9_900), count))
    ]


def test_it_is_the_order_of_the_mounts_recalls(order: RecallOrder) -> None:
    wanted = sorted(items(300), key=lambda item: item.place)
    order.begin(wanted)
    found = [item.place for item in waiting_in_reading_order(order, LAYOUT_KNOWN)]
    spans = [(item.place, item.place + 3) for item in wanted]
    best = recall_order(spans, LAYOUT_KNOWN.head_block, LAYOUT_KNOWN.tape)
    assert found == [spans[index][0] for index in best]
    assert found != sorted(found)


def test_without_knowledge_it_is_the_order_of_blocks(order: RecallOrder) -> None:
    order.begin(items(300))
    found = [item.place for item in waiting_in_reading_order(order, None)]
    assert found == sorted(found)


def test_very_many_go_in_the_order_of_blocks(
    order: RecallOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapefs.archive.reading_order._PLANNED_MAX", 299)
    order.begin(items(300))
    found = [item.place for item in waiting_in_reading_order(order, LAYOUT_KNOWN)]
    assert found == sorted(found)
    assert len(found) == 300


def test_what_is_not_on_tape_comes_first_and_what_is_done_not_at_all(order: RecallOrder) -> None:
    order.begin([*items(20), Item(b"near", b"near", Inode(99, REGULAR, size=1))])
    done = next(item for item in order.files() if item.path == b"3")
    order.note_done(done)
    found = [item.path for item in waiting_in_reading_order(order, LAYOUT_KNOWN)]
    assert found[0] == b"near"
    assert b"3" not in found
    assert len(set(found)) == len(found) == 20


@given(st.none() | st.integers(0, 2**40), st.sets(st.integers(1, 2**40)), st.integers(1, 300))
def test_a_layout_comes_through(head: int | None, ends: set[int], count: int) -> None:
    layout = TapeLayout(head, tuple(sorted(ends)), count, 512)
    assert TapeLayout.unpack(layout.pack()) == layout


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"[0,[2,1],4,512]", b'["0",[],1,512]', b"[0,[],1,0]", b"\xff"]
)
def test_other_words_are_no_layout(data: bytes) -> None:
    assert TapeLayout.unpack(data) is None


async def test_a_volume_tells_its_layout_and_where_its_files_are(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "lto8", 208 * 200_000)
    await rig.format()
    async with rig.mounted() as user:
        for number in range(8):
            await user.write(f"{number}", bytes(100_000))
        await user.sync()
    async with rig.mounted() as user:
        volume = user.volume

        def ask(function: Callable[..., Any], *words: Any) -> Any:
            try:
                function(*words).send(None)
            except StopIteration as done:
                return done.value
            raise AssertionError("it waits for something")

        source = VolumeSource(volume, ask)
        layout = TapeLayout.of(volume.scheduler, rig.label.geometry)
        assert source.layout() == layout
        assert len(layout.wrap_ends) == 4, "200 kB each"
        attributes = TapeAttributes(
            volume.catalog, volume.view, volume.contents, layout=layout.pack
        )
        assert attributes.value(ROOT_INO, LAYOUT) == layout.pack()
        for item in source.items(b"", b""):
            block = attributes.value(item.inode.ino, b"user.tapefs.start-block")
            assert item.place == int(block or 0) > 0
