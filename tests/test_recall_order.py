"""Motion models, and the order in which places are read."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.archive.motion_model import LinearTape, MotionModel, SerpentineTape, tape_of
from tapefs.archive.recall_order import Span, recall_order

BLOCKS = 12_000
LINEAR = LinearTape(BLOCKS)
SERPENTINE = SerpentineTape(range(100, BLOCKS, 100), 120)
TAPES = pytest.mark.parametrize("tape", [LINEAR, SERPENTINE], ids=["linear", "serpentine"])


def motion_s(spans: list[Span], order: list[int], tape: MotionModel, head: int = 0) -> float:
    seconds, place = 0.0, tape.place(head)
    for index in order:
        first, behind = spans[index]
        seconds += tape.locate_s(place, tape.place(first))
        place = tape.place(behind)
    return seconds


def random_spans(count: int, seed: int) -> list[Span]:
    dice = random.Random(seed)
    starts = (dice.randrange(BLOCKS - 3) for _ in range(count))
    return [(start, start + 3) for start in starts]


def test_a_serpentine_tape_runs_to_and_fro() -> None:
    tape = SerpentineTape((100, 210), 4)
    assert (tape.place(0).wrap, tape.place(0).along) == (0, 0.0)
    assert (tape.place(99).wrap, tape.place(99).along) == (0, 0.99)
    assert (tape.place(100).wrap, tape.place(100).along) == (1, 1.0)
    assert tape.place(155).along == 0.5
    assert (tape.place(210).wrap, tape.place(210).along) == (2, 0.0)
    # Behind what is known, wraps are like the mean of those that are: 105 blocks.
    assert (tape.place(315).wrap, tape.place(315).along) == (3, 1.0)


def test_the_seconds_of_a_locate_are_the_published_ones() -> None:
    tape = SerpentineTape(range(100, 1300, 100), 12)
    at = tape.place
    end_to_end = 104.3
    assert tape.locate_s(at(10), at(10)) == 0.0
    assert tape.locate_s(at(10), at(60)) == pytest.approx(4.29 + end_to_end / 2)
    assert tape.locate_s(at(60), at(10)) == pytest.approx(4.29 + end_to_end / 2 + 11.32)
    assert tape.locate_s(at(110), at(160)) == pytest.approx(4.29 + end_to_end / 2)
    # Wrap 0 to wrap 2: the same direction; to wrap 1: the other; wrap 3 begins another band.
    assert tape.locate_s(at(10), at(210)) == pytest.approx(4.29 + 6.69)
    assert tape.locate_s(at(10), at(190)) == pytest.approx(4.29 + 6.69 + 5.22)
    assert tape.locate_s(at(10), at(390)) == pytest.approx(4.29 + 6.69 + 5.22 + 3.2)


def test_a_drive_that_does_not_tell_is_taken_for_a_single_track() -> None:
    assert not tape_of((), 208).is_serpentine
    assert tape_of((100, 200), 208).is_serpentine


@TAPES
@pytest.mark.parametrize("seed", range(6))
def test_few_spans_are_read_in_the_best_order_there_is(seed: int, tape: MotionModel) -> None:
    spans = random_spans(6, seed)
    head = random.Random(seed + 100).randrange(BLOCKS)
    best_s = min(
        motion_s(spans, list(order), tape, head) for order in itertools.permutations(range(6))
    )
    found_s = motion_s(spans, recall_order(spans, head, tape), tape, head)
    assert found_s == pytest.approx(best_s)


def test_many_spans_on_a_serpentine_tape_take_a_fraction_of_any_other_order() -> None:
    spans = random_spans(200, 1)
    found_s = motion_s(spans, recall_order(spans, 0, SERPENTINE), SERPENTINE)
    assert 3 * found_s < motion_s(spans, list(range(200)), SERPENTINE)
    assert 2 * found_s < motion_s(spans, recall_order(spans, 0, LINEAR), SERPENTINE)


def test_where_wraps_are_full_of_spans_block_order_is_taken() -> None:
    tape = SerpentineTape(range(10_000, 120_000, 10_000), 12)
    spans = [(block, block + 1) for block in range(0, 120_000, 250)]
    assert recall_order(spans, 0, tape) == list(range(len(spans)))


@TAPES
def test_what_follows_each_other_on_tape_is_read_in_one_go(tape: MotionModel) -> None:
    spans = [(507, 510), (3, 4), (500, 507), (4, 6), (515, 516)]
    order = recall_order(spans, BLOCKS - 1, tape)
    assert [order.index(index) - order.index(2) for index in (2, 0, 4)] == [0, 1, 2]
    assert order.index(3) - order.index(1) == 1


@given(
    st.lists(st.tuples(st.integers(0, BLOCKS), st.integers(0, 50)), max_size=60),
    st.none() | st.integers(0, BLOCKS),
    st.sampled_from((LINEAR, SERPENTINE)),
)
def test_each_span_comes_once_and_no_order_is_slower_than_a_sweep(
    drawn: list[tuple[int, int]], head: int | None, tape: MotionModel
) -> None:
    spans = [(start, start + length) for start, length in drawn]
    order = recall_order(spans, head, tape)
    assert sorted(order) == list(range(len(spans)))
    in_blocks = sorted(order, key=spans.__getitem__)
    swept_s = motion_s(spans, in_blocks, tape, head or 0)
    # What overlaps is read in one go, which this sum does not know.
    if all(spans[a][1] <= spans[b][0] for a, b in itertools.pairwise(in_blocks)):
        assert motion_s(spans, order, tape, head or 0) <= swept_s + 1e-6
