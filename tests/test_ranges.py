"""RangeSet against a set of integers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tapefs.archive.ranges import RangeSet

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 40), st.integers(0, 40)),
    max_size=30,
)


def apply(operations: list[tuple[str, int, int]]) -> tuple[RangeSet, set[int]]:
    ranges, model = RangeSet(), set[int]()
    for what, start, end in operations:
        if what == "add":
            ranges.add(start, end)
            model |= set(range(start, end))
        else:
            ranges.remove(start, end)
            model -= set(range(start, end))
    return ranges, model


@given(OPERATIONS)
def test_behaves_like_a_set_of_offsets(operations: list[tuple[str, int, int]]) -> None:
    ranges, model = apply(operations)
    pairs = list(ranges)
    assert {i for start, end in pairs for i in range(start, end)} == model
    assert ranges.total_bytes == len(model)
    assert all(start < end for start, end in pairs)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(pairs)), "joined and sorted"


@given(OPERATIONS, st.integers(0, 40), st.integers(0, 40))
def test_questions_agree_with_the_set(
    operations: list[tuple[str, int, int]], start: int, end: int
) -> None:
    ranges, model = apply(operations)
    wanted = set(range(start, end))
    assert ranges.covers(start, end) == (wanted <= model)
    inside = (
        {i for a, b in ranges.within(start, end) for i in range(a, b)} if start < end else set()
    )
    assert inside == wanted & model


@given(OPERATIONS, OPERATIONS)
def test_difference(left: list[tuple[str, int, int]], right: list[tuple[str, int, int]]) -> None:
    a, a_model = apply(left)
    b, b_model = apply(right)
    difference = a.without(b)
    assert {i for s, e in difference for i in range(s, e)} == a_model - b_model
    assert {i for s, e in a for i in range(s, e)} == a_model, "the original is untouched"
