"""Which job comes next: every rule of the policy, and that nobody starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tapefs.archive.motion_model import LinearTape, MotionModel, SerpentineTape
from tapefs.archive.policy import (
    Bounds,
    JobKind,
    LaneState,
    Pressure,
    Turns,
    Waiting,
    choose,
    holds_for_burst,
)

CONTROL, RECALL = JobKind.CONTROL, JobKind.RECALL
ARCHIVE, MAINTENANCE = JobKind.ARCHIVE, JobKind.MAINTENANCE

BOUNDS = Bounds(
    recalls_before_archive=3,
    recall_turn_s=100.0,
    archives_before_recall=2,
    recall_overtaken_max=4,
)
LINEAR = LinearTape(100)
# Ten blocks a wrap: block 9 lies beside block 10, block 0 beside block 19.
SERPENTINE = SerpentineTape(range(10, 100, 10), 10)
TAPES = st.sampled_from((LINEAR, SERPENTINE))


def state(
    head: int | None = 0,
    turns: Turns | None = None,
    tape: MotionModel = LINEAR,
    *,
    pressure: Pressure = Pressure.LOW,
) -> LaneState:
    return LaneState(head, pressure, turns or Turns(), tape, BOUNDS)


def recalls(*blocks: int) -> list[Waiting]:
    return [Waiting(RECALL, block) for block in blocks]


def test_control_goes_first_and_maintenance_last() -> None:
    queue = [Waiting(MAINTENANCE), Waiting(ARCHIVE), Waiting(RECALL, 5), Waiting(CONTROL)]
    assert choose(queue, state()) == 3
    assert choose(queue[:3], state()) == 2
    assert choose(queue[:2], state()) == 1
    assert choose(queue[:1], state()) == 0


def test_recalls_are_sweeps_to_and_fro() -> None:
    queue = recalls(50, 10, 30)
    up, down = Turns(sweeps_up=True), Turns(sweeps_up=False)
    assert choose(queue, state(20, up)) == 2
    assert choose(queue, state(20, down)) == 1
    assert choose(queue, state(30, up)) == 2
    assert choose(queue, state(51, up)) == 0, "nothing lies above: the sweep turns"
    assert choose(queue, state(5, down)) == 1, "nothing lies below"
    assert choose(queue, state(None)) == 1


def test_a_sweep_begins_at_the_nearer_end() -> None:
    assert choose(recalls(90, 10, 30), state(20)) == 1
    assert choose(recalls(40, 35, 0), state(30)) == 1


def test_the_sweep_goes_on_the_way_the_last_recall_was() -> None:
    turns = Turns()
    first, *left = recalls(30, 10)
    turns.take(first, 20, left)
    ways = [turns.sweeps_up]
    turns.take(first, 40, left)
    ways.append(turns.sweeps_up)
    turns.take(left[0], 30, [])
    # Nobody waits any more: the next one may begin either way.
    assert [*ways, turns.sweeps_up] == [True, False, None]


def test_on_a_serpentine_tape_the_nearest_along_the_tape_goes_first() -> None:
    # From block 9, at the far end of wrap 0: 10 is on the next wrap beside it, 5 is back.
    assert choose(recalls(5, 10), state(9, tape=SERPENTINE)) == 1
    assert choose(recalls(50, 12), state(0, tape=SERPENTINE)) == 1
    # In blocks it is 20 that is nearer.
    assert choose(recalls(20, 39), state(0, tape=SERPENTINE)) == 0
    assert choose(recalls(29, 39), state(0, tape=SERPENTINE)) == 1


def test_recalls_go_first_however_full_the_spool_is() -> None:
    queue = [Waiting(ARCHIVE), Waiting(RECALL, 50)]
    assert choose(queue, state()) == 1
    assert choose(queue, state(pressure=Pressure.HIGH)) == 1


def test_recalls_have_had_their_turn_when_the_spool_is_full() -> None:
    queue = [Waiting(RECALL, 50), Waiting(ARCHIVE)]
    turns = Turns()
    for seconds in (99.0, 1.0):
        assert choose(queue, state(turns=turns, pressure=Pressure.HIGH)) == 0
        turns.take(queue[0], 0, queue[1:])
        turns.ended(queue[0], seconds)
    assert choose(queue, state(turns=turns, pressure=Pressure.SOME)) == 0
    assert choose(queue, state(turns=turns, pressure=Pressure.HIGH)) == 1
    turns.take(queue[1], 0, queue[:1])
    turns.ended(queue[1], 1000.0)
    assert choose(queue, state(turns=turns, pressure=Pressure.HIGH)) == 1, "it goes on"
    assert choose(queue, state(turns=turns)) == 0, "most is on tape"


def test_a_recall_waits_for_no_more_archiving_than_the_bound() -> None:
    queue = [Waiting(RECALL, 50), Waiting(ARCHIVE)]
    assert choose(queue, state(turns=Turns(archives_in_row=2), pressure=Pressure.HIGH)) == 0


def test_a_burst_goes_on_until_most_is_on_tape() -> None:
    queue, writing = [Waiting(RECALL, 50)], Turns(archives_in_row=1)
    both = [*queue, Waiting(ARCHIVE)]
    assert choose(both, state(pressure=Pressure.SOME)) == 0
    assert choose(both, state(turns=writing, pressure=Pressure.SOME)) == 1
    assert holds_for_burst(queue, state(turns=writing, pressure=Pressure.SOME))
    assert not holds_for_burst(queue, state(turns=writing, pressure=Pressure.LOW))
    assert not holds_for_burst(queue, state(pressure=Pressure.HIGH))
    assert not holds_for_burst(both, state(turns=writing, pressure=Pressure.HIGH))
    at_its_bound = Turns(archives_in_row=2)
    assert not holds_for_burst(queue, state(turns=at_its_bound, pressure=Pressure.HIGH))


def test_a_burst_waits_for_no_more_recalls_than_the_bound() -> None:
    queue = [Waiting(RECALL, 50), Waiting(ARCHIVE)]
    assert choose(queue, state(turns=Turns(recalls_in_row=2))) == 0
    assert choose(queue, state(turns=Turns(recalls_in_row=3))) == 1


def test_a_recall_far_away_is_overtaken_so_often_and_no_more() -> None:
    far = Waiting(RECALL, 90, overtaken=4)
    assert choose([Waiting(RECALL, 1), far], state()) == 1
    assert choose([Waiting(RECALL, 1), far], state(tape=SERPENTINE)) == 1


def test_only_those_that_came_later_overtake() -> None:
    turns = Turns()
    together = [turns.admit(RECALL, 90), turns.admit(RECALL, 1)]
    turns.take(together[1], 0, together[:1])
    assert together[0].overtaken == 0
    later = turns.admit(RECALL, 2)
    turns.take(later, 1, together[:1])
    assert together[0].overtaken == 1


JOBS = st.tuples(st.sampled_from(JobKind), st.integers(0, 99))


@given(
    st.lists(JOBS, min_size=1),
    st.none() | st.integers(0, 99),
    st.sampled_from(Pressure),
    TAPES,
)
def test_everything_is_served_and_archiving_within_its_bound(
    jobs: list[tuple[JobKind, int]], head: int | None, pressure: Pressure, tape: MotionModel
) -> None:
    turns, waited = Turns(), {ARCHIVE: 0, RECALL: 0}
    left = [turns.admit(kind, block) for kind, block in jobs]
    while left:
        job = left.pop(choose(left, state(head, turns, tape, pressure=pressure)))
        turns.take(job, head, left)
        for kind, other in ((ARCHIVE, RECALL), (RECALL, ARCHIVE)):
            waits = job.kind is other and any(rest.kind is kind for rest in left)
            waited[kind] = waited[kind] + 1 if waits else 0
        assert waited[ARCHIVE] <= BOUNDS.recalls_before_archive
        assert waited[RECALL] <= BOUNDS.archives_before_recall
        if job.kind is MAINTENANCE:
            assert all(other.kind is MAINTENANCE for other in left)
        head = job.block if job.block is not None else head


@given(st.lists(st.integers(0, 99), min_size=5, max_size=40), st.data(), TAPES)
def test_no_recall_starves_while_others_keep_coming(
    blocks: list[int], data: st.DataObject, tape: MotionModel
) -> None:
    turns, head = Turns(), 0
    left = [turns.admit(RECALL, block) for block in blocks[:5]]
    later = {id(job): 0 for job in left}
    for block in blocks[5:]:
        job = left.pop(choose(left, state(head, turns, tape)))
        for other in left:
            later[id(other)] += other.round < job.round
            assert later[id(other)] <= BOUNDS.recall_overtaken_max
        turns.take(job, head, left)
        head = job.block or 0
        for _ in range(data.draw(st.integers(0, 2))):
            left.append(turns.admit(RECALL, block))
            later[id(left[-1])] = 0
        if not left:
            break
