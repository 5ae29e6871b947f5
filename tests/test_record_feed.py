"""Records reach the drive in order and once, however the thread of the wire comes by them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from tape_rig import MIB, RECORD_BYTES, Rig, Rigs, read_number, record

from tapefs.errors import NotFinalized
from tapefs.scsi import cdb as c
from tapefs.scsi.sense import FilemarkDetected, MediumError, Sense, SenseKey
from tapefs.volume import session
from tapefs.volume.record_feed import RecordFeed
from tapefs.volume.records import RecordBuffers
from tapefs.volume.session import AppendProgress, append

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from tapefs.drive.transport import More, Step
    from tapefs.scsi.completion import Completion

LARGE_BYTES = 65536


def batch(first: int, count: int = 3, size_bytes: int = RECORD_BYTES) -> list[array[int]]:
    return [record(number, size_bytes) for number in range(first, first + count)]


# -- the feed alone


async def test_batches_come_out_in_the_order_in_which_they_went_in() -> None:
    feed = RecordFeed(3)
    given = [batch(0), batch(3), batch(6)]
    for one in given:
        await feed.put(one)
    feed.finish()
    feed.end()
    assert [await feed.wait(), feed.ready(), await feed.wait()] == given
    assert feed.ready() == () == await feed.wait()


async def test_what_is_not_there_yet_is_waited_for_and_not_ready() -> None:
    feed, came = RecordFeed(1), []

    async def take() -> None:
        came.append(await feed.wait())

    async with trio.open_nursery() as nursery:
        assert feed.ready() == ()
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert not came
        await feed.put(batch(0))
    assert came == [batch(0)]


@pytest.mark.parametrize("how", ["wait", "ready", "ready in a thread"])
async def test_whoever_takes_a_batch_makes_room_for_one(how: str) -> None:
    feed, put = RecordFeed(2), []

    async def fill() -> None:
        for number in range(3):
            await feed.put(batch(number, 1))
            put.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        assert put == [0, 1]
        if how == "wait":
            assert await feed.wait() == batch(0, 1)
        elif how == "ready":
            assert feed.ready() == batch(0, 1)
        else:
            assert await trio.to_thread.run_sync(feed.ready) == batch(0, 1)
    assert put == [0, 1, 2]


async def test_a_thread_adds_while_there_is_room_and_wakes_who_waits() -> None:
    feed, came = RecordFeed(2), []

    async def take() -> None:
        came.append(await feed.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert await trio.to_thread.run_sync(feed.offer, batch(0))
    assert came == [batch(0)]
    assert feed.offer(batch(3))
    assert feed.offer(batch(6))
    assert not feed.offer(batch(9))
    assert feed.ready() == batch(3)
    assert feed.offer(batch(9))
    feed.close()
    with pytest.raises(trio.BrokenResourceError):
        feed.offer(batch(12))


async def test_two_threads_lose_and_swap_nothing() -> None:
    """Both sides go on by themselves, and wait in the trio thread where they cannot."""
    feed, taken = RecordFeed(2), list[Any]()

    def offer_all(numbers: list[int]) -> list[int]:
        while numbers and feed.offer(batch(numbers[0], 1)):
            numbers = numbers[1:]
        return numbers

    def take_all() -> None:
        while found := feed.ready():
            taken.extend(found)

    async def assemble() -> None:
        numbers = list(range(2000))
        while numbers := await trio.to_thread.run_sync(offer_all, numbers):
            await feed.put(batch(numbers.pop(0), 1))
        feed.finish()
        feed.end()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(assemble)
            while found := await feed.wait():
                taken.extend(found)
                await trio.to_thread.run_sync(take_all)
    assert taken == batch(0, 2000)


async def test_what_ends_unfinished_is_not_taken_for_whole() -> None:
    feed = RecordFeed(2)
    await feed.put(batch(0))
    feed.end()
    assert await feed.wait() == batch(0)
    with pytest.raises(NotFinalized):
        await feed.wait()


async def test_nobody_waits_for_room_once_nobody_takes() -> None:
    feed = RecordFeed(1)
    await feed.put(batch(0))
    with pytest.RaisesGroup(trio.BrokenResourceError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.put, batch(3))
            await trio.testing.wait_all_tasks_blocked()
            feed.close()
    with pytest.raises(trio.BrokenResourceError):
        await feed.put(batch(3))


# -- on its way to the drive


class Buffers(RecordBuffers):
    """Remembers which records the drive has taken."""

    def __init__(self, size_bytes: int = RECORD_BYTES) -> None:
        super().__init__(size_bytes)
        self.taken: list[int] = []

    def give_back(self, record: array[int]) -> None:
        self.taken.append(int.from_bytes(record[:4].tobytes(), "big"))


async def append_batches(
    rig: Rig, batches: Sequence[list[array[int]]], buffers: Buffers, progress: AppendProgress
) -> None:
    drive = await rig.open()
    await drive.rewind()
    feed = RecordFeed(len(batches))
    for one in batches:
        await feed.put(one)
    feed.finish()
    feed.end()
    await append(drive, feed, buffers, progress)


async def numbers_in_file(rig: Rig) -> list[int]:
    drive = await rig.open()
    await drive.rewind()
    found = []
    with contextlib.suppress(FilemarkDetected):
        while True:
            found.append(await read_number(drive))
    return found


@pytest.mark.parametrize("visit_s", [0.0, 1000.0])
async def test_all_that_is_ready_is_written_once_and_in_order(
    rigs: Rigs, visit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "VISIT_S", visit_s)
    rig, buffers, progress = rigs(), Buffers(), AppendProgress()
    await append_batches(rig, [batch(0), batch(3, 1), batch(4), batch(7)], buffers, progress)
    assert buffers.taken == list(range(10))
    assert (progress.records_written, progress.early_warning) == (10, False)
    assert await numbers_in_file(rig) == list(range(10))


async def test_the_wire_is_not_left_while_records_are_ready(
    rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "VISIT_S", 1000.0)
    rig, visits = rigs(), []
    each = rig.wire.execute_each

    async def counted(steps: Sequence[Step], more: More | None = None) -> list[Completion]:
        ended = await each(steps, more)
        visits.append(len(ended))
        return ended

    monkeypatch.setattr(rig.wire, "execute_each", counted)
    await append_batches(rig, [batch(0), batch(3), batch(6)], Buffers(), AppendProgress())
    assert 9 in visits
    visits.clear()
    monkeypatch.setattr(session, "VISIT_S", 0.0)
    await append_batches(rig, [batch(0), batch(3), batch(6)], Buffers(), AppendProgress())
    assert visits.count(3) == 3


async def test_what_only_informs_within_a_visit_writes_nothing_twice(rigs: Rigs) -> None:
    rig, buffers, progress = rigs(), Buffers(), AppendProgress()
    told = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01)
    rig.wire.answer(c.Write6, None, told, None, None, None, told, told)
    await append_batches(rig, [batch(0), batch(3), batch(6)], buffers, progress)
    assert buffers.taken == list(range(9)) == await numbers_in_file(rig)
    assert progress.records_written == 9


async def test_early_warning_within_a_visit_loses_and_repeats_no_record(
    rigs: Rigs, personality: str
) -> None:
    rig = rigs(personality, capacity_bytes=8 * MIB)
    buffers, progress = Buffers(LARGE_BYTES), AppendProgress()
    drive = await rig.open()
    await drive.rewind()
    before = 0
    while not (await drive.write_block(record(before, LARGE_BYTES))).early_warning:
        before += 1
    # As many as there were, all but the last few, and then some that meet the warning.
    batches = [batch(number, 3, LARGE_BYTES) for number in range(0, before + 3, 3)]
    await append_batches(rig, batches, buffers, progress)
    count = sum(map(len, batches))
    assert buffers.taken == list(range(count))
    assert (progress.records_written, progress.early_warning) == (count, True)


async def test_records_behind_a_failure_do_not_count_as_written(rigs: Rigs) -> None:
    rig, buffers, progress = rigs(), Buffers(), AppendProgress()
    rig.wire.answer(c.Write6, None, None, None, None, Sense(SenseKey.MEDIUM_ERROR, 0x0C))
    with pytest.raises(MediumError):
        await append_batches(rig, [batch(0), batch(3), batch(6)], buffers, progress)
    assert buffers.taken == [0, 1, 2]
    assert progress.records_written == 3
    assert len(rig.wire.sent(c.WriteFilemarks6)) == 0


async def test_an_append_that_was_not_assembled_to_its_end_gets_no_filemark(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await drive.rewind()
    feed = RecordFeed(1)
    await feed.put(batch(0))
    feed.end()
    with pytest.raises(NotFinalized):
        await append(drive, feed, Buffers(), AppendProgress())
    assert len(rig.wire.sent(c.WriteFilemarks6)) == 0
