"""Which job comes next: every rule of the policy, and that nobody starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tapefs.archive.policy import JobKind, LaneState, Waiting, choose

CONTROL, RECALL = JobKind.CONTROL, JobKind.RECALL
ARCHIVE, MAINTENANCE = JobKind.ARCHIVE, JobKind.MAINTENANCE


def state(head: int | None = 0, recalls: int = 0, *, pressed: bool = False) -> LaneState:
    return LaneState(head, recalls, pressed, recalls_before_archive=3)


def test_control_goes_first_and_maintenance_last() -> None:
    queue = [Waiting(MAINTENANCE), Waiting(ARCHIVE), Waiting(RECALL, 5), Waiting(CONTROL)]
    assert choose(queue, state()) == 3
    assert choose(queue[:3], state()) == 2
    assert choose(queue[:2], state()) == 1
    assert choose(queue[:1], state()) == 0


def test_recalls_are_one_sweep_from_the_head() -> None:
    queue = [Waiting(RECALL, 50), Waiting(RECALL, 10), Waiting(RECALL, 30)]
    assert choose(queue, state(20)) == 2
    assert choose(queue, state(30)) == 2
    assert choose(queue, state(51)) == 1
    assert choose(queue, state(None)) == 1


def test_a_burst_goes_first_when_the_spool_is_pressed() -> None:
    queue = [Waiting(RECALL, 50), Waiting(ARCHIVE)]
    assert choose(queue, state()) == 0
    assert choose(queue, state(pressed=True)) == 1


def test_a_burst_waits_for_no_more_recalls_than_the_bound() -> None:
    queue = [Waiting(RECALL, 50), Waiting(ARCHIVE)]
    assert choose(queue, state(recalls=2)) == 0
    assert choose(queue, state(recalls=3)) == 1


@given(
    st.lists(
        st.builds(Waiting, st.sampled_from(JobKind), st.none() | st.integers(0, 99)), min_size=1
    ),
    st.none() | st.integers(0, 99),
    st.booleans(),
)
def test_everything_is_served_and_a_burst_within_its_bound(
    queue: list[Waiting], head: int | None, pressed: bool
) -> None:
    recalls, waited, left = 0, 0, list(queue)
    while left:
        index = choose(left, LaneState(head, recalls, pressed, recalls_before_archive=3))
        job = left.pop(index)
        archive_waits = any(other.kind is ARCHIVE for other in left)
        recalls = recalls + 1 if job.kind is RECALL else 0
        waited = waited + 1 if job.kind is RECALL and archive_waits else 0
        assert waited <= 3
        if job.kind is MAINTENANCE:
            assert all(other.kind is MAINTENANCE for other in left)
        head = job.block if job.block is not None else head
