"""Verification beside everything else: it gives way, goes on where it was, and is remembered."""

from __future__ import annotations

import dataclasses
import logging
import random
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from crash_rig import logs_expected
from volume_rig import RECORD_BYTES, Rig, User

from tapefs.archive import verify, verify_reading
from tapefs.archive.catalogs import VERIFIED_NAME
from tapefs.archive.record_reader import RecordReader
from tapefs.archive.verify import Scope, counts
from tapefs.errors import DriveBusy, DriveGone
from tapefs.scsi.sense import MediumChanged, Sense, SenseKey, check_condition

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Callable

    from tapefs.archive.record_reader import RecordRead, Wanted
    from tapefs.catalog.verifications import VerificationSummary
    from tapefs.drive import TapeDrive
    from tapefs.volume.label import Label


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def silent(_event: dict[str, Any]) -> None:
    """Nobody watches."""


class Reads:
    """What verifications ask the drive for; `then` runs before the read of a number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[int] = []
        self.then: dict[int, Callable[[], Awaitable[None]]] = {}
        honest = RecordReader._attempt

        async def attempt(
            reader: RecordReader, drive: TapeDrive, wanted: Wanted, into: array[int]
        ) -> RecordRead:
            self.blocks.append(wanted.address.block)
            if (action := self.then.pop(len(self.blocks), None)) is not None:
                await action()
            return await honest(reader, drive, wanted, into)

        monkeypatch.setattr(RecordReader, "_attempt", attempt)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture(autouse=True)
def short_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_reading, "_QUIET_S", 0.01)


@pytest.fixture
async def rig(tmp_path: Any) -> Rig:
    rig = Rig(tmp_path)
    await rig.format()
    return rig


async def three_segments(user: User) -> None:
    for number in range(3):
        await user.write(f"f{number}", content(number, 6 * RECORD_BYTES))
        await user.sync()


def summary(user: User) -> VerificationSummary:
    outlines = filter(counts, user.volume.view.outlines())
    return user.volume.verifications.summary(outlines)


async def test_a_recall_is_served_between_two_records(rig: Rig, reads: Reads) -> None:
    async with rig.mounted() as user:
        await three_segments(user)
        user.evict_everything()
        served: list[int] = []

        async def read() -> None:
            assert await user.read("f2") == content(2, 6 * RECORD_BYTES)
            served.append(len(reads.blocks))

        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()

            reads.then[4] = ask
            report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        assert served == [4]  # not one record later than the one that was under way
        assert report["damage_count"] == 0
        total = sum(file.record_count + 1 for file in user.volume.view.outlines())
        assert (len(reads.blocks), reads.blocks) == (total, sorted(reads.blocks))


async def test_archiving_goes_on_meanwhile_and_what_it_adds_is_verified(
    rig: Rig, reads: Reads
) -> None:
    async with rig.mounted() as user:
        await three_segments(user)
        await user.write("late", content(9, 3 * RECORD_BYTES))
        archived: list[int] = []

        async def sync() -> None:
            await user.sync()
            archived.append(len(reads.blocks))

        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                nursery.start_soon(sync)
                await trio.testing.wait_all_tasks_blocked()

            reads.then[5] = ask
            report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        assert archived[0] < len(reads.blocks)
        assert (report["damage_count"], report["tape_files_count"]) == (0, 4)
        # The end of the tape was found again, and proven, each time.
        await user.write("later", content(10, RECORD_BYTES))
        await user.sync()
    async with rig.mounted(read_only=True) as user:
        assert await user.read("late") == content(9, 3 * RECORD_BYTES)


async def test_an_interrupted_verification_goes_on_with_the_rest(rig: Rig, reads: Reads) -> None:
    async with rig.mounted() as user:
        await three_segments(user)
        files = list(user.volume.view.outlines())
        with trio.CancelScope() as scope:

            async def interrupt() -> None:
                scope.cancel()

            reads.then[files[0].record_count + 4] = interrupt
            await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        assert scope.cancelled_caught
        assert len(reads.blocks) <= files[0].record_count + 5  # the record under way, no more
        reads.blocks.clear()
        report = await user.volume.verifier.whole(Scope.REST, silent)
        assert set(reads.blocks) == set(
            range(files[1].first_block, files[2].first_block + files[2].record_count + 1)
        )
        assert len(reads.blocks) == files[1].record_count + files[2].record_count + 2
        assert (report["tape_files_count"], summary(user).unverified_count) == (2, 0)
        reads.blocks.clear()
        assert (await user.volume.verifier.whole(Scope.REST, silent))["records_count"] == 0
        assert (await user.volume.verifier.whole(Scope.NEW, silent))["records_count"] == 0
        assert reads.blocks == []
        # A new one reads everything again, and one that was interrupted is gone on with.
        report = await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        assert report["tape_files_count"] == 3


async def test_new_is_what_was_written_since_also_after_a_remount(rig: Rig, reads: Reads) -> None:
    async with rig.mounted() as user:
        await three_segments(user)
        await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        proven = summary(user).proven_good_ns
        assert proven is not None
    reads.blocks.clear()
    async with rig.mounted() as user:
        assert (summary(user).verified_count, summary(user).unverified_count) == (3, 1)
        assert summary(user).proven_good_ns is None
        await user.write("more", content(7, RECORD_BYTES))
        await user.sync()
        report = await user.volume.verifier.whole(Scope.NEW, silent)
        assert report["tape_files_count"] == 2
        first_new = user.volume.view.tape_file(4)
        assert first_new is not None
        assert min(reads.blocks) == first_new.first_block
        # As old as the oldest proof.
        good = summary(user).proven_good_ns
        assert good is not None
        assert good <= proven + 10**9 * 3600
        assert summary(user).unverified_count == 0


async def test_damage_is_remembered_until_it_is_found_well(
    rig: Rig, assert_logs: Callable[..., Any]
) -> None:
    assert_logs(r"verify\.damage", 1)
    async with rig.mounted() as user:
        await three_segments(user)
        second = user.volume.view.tape_file(2)
        assert second is not None
        user.target.faults.unreadable[second.first_block + 1] = 1000
        await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        user.target.faults.unreadable.clear()
    async with rig.mounted() as user:
        state = summary(user)
        assert (state.damage_count, state.damaged_bytes) == (1, RECORD_BYTES)
        assert state.proven_good_ns is None
        # What is known is not read again for nothing; all of it can be.
        assert (await user.volume.verifier.whole(Scope.NEW, silent))["damage_count"] == 0
        assert summary(user).damage_count == 1
        await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        assert summary(user).damage_count == 0
        assert summary(user).proven_good_ns is not None


async def test_rest_lists_what_the_interrupted_one_had_found(
    rig: Rig, reads: Reads, assert_logs: Callable[..., Any]
) -> None:
    assert_logs(r"verify\.damage", 1)
    async with rig.mounted() as user:
        await three_segments(user)
        first, second = list(user.volume.view.outlines())[:2]
        user.target.faults.unreadable[first.first_block + 1] = 1000
        with trio.CancelScope() as scope:

            async def interrupt() -> None:
                scope.cancel()

            reads.then[first.record_count + 3] = interrupt
            await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        reads.blocks.clear()
        report = await user.volume.verifier.whole(Scope.REST, silent)
        assert min(reads.blocks) == second.first_block
        assert report["damage_count"] == 1
        assert [file["path"] for file in report["damaged_files"]] == ["f0"]
        user.target.faults.unreadable.clear()


async def test_two_at_a_time_are_refused(rig: Rig, reads: Reads) -> None:
    async with rig.mounted() as user:
        await three_segments(user)

        async def second() -> None:
            with pytest.raises(DriveBusy):
                await user.volume.verifier.whole(Scope.NEW, silent)

        reads.then[2] = second
        await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        assert reads.then == {}


async def test_a_drive_that_goes_is_no_damage(
    rig: Rig, reads: Reads, assert_logs: Callable[..., Any]
) -> None:
    assert_logs("drive.away kind=DriveGone reason=unplugged", 1)
    async with rig.mounted() as user:
        await three_segments(user)

        async def unplug() -> None:
            raise DriveGone("unplugged")

        reads.then[10] = unplug
        with pytest.raises(DriveGone):
            await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        state = summary(user)
        assert (state.verified_count, state.damage_count) == (1, 0)
        assert await user.volume.scheduler.is_back_at_once()
        assert (await user.volume.verifier.whole(Scope.REST, silent))["tape_files_count"] == 2


async def test_results_that_cannot_be_read_are_no_obstacle(
    rig: Rig, assert_logs: Callable[..., Any]
) -> None:
    async with rig.mounted() as user:
        await three_segments(user)
        await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        path = user.directory / VERIFIED_NAME
    path.write_bytes(b"no database" * 1000)
    assert_logs(r"verify\.results_lost", 1)
    async with rig.mounted() as user:
        assert (summary(user).verified_count, summary(user).unverified_count) == (0, 4)


async def test_another_tape_file_under_the_same_number_counts_as_new(rig: Rig) -> None:
    async with rig.mounted() as user:
        await three_segments(user)
        await user.volume.verifier.whole(Scope.EVERYTHING, silent)
        other, *_ = user.volume.view.outlines()
        assert user.volume.verifications.verified_ns(other)
        for field in ("first_block", "record_count", "written_ns"):
            changed = dataclasses.replace(other, **{field: getattr(other, field) + 1})
            assert not user.volume.verifications.verified_ns(changed)


async def test_a_cartridge_that_goes_while_its_label_is_read_is_no_damage(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(_: TapeDrive) -> Label:
        raise check_condition(Sense(SenseKey.UNIT_ATTENTION, 0x28, 0x00), "READ")

    async with rig.mounted() as user:
        await user.write("file", b"content")
        await user.sync()
        with monkeypatch.context() as patched, logs_expected(up_to=logging.WARNING):
            patched.setattr(verify, "read_label", gone)
            with pytest.raises(MediumChanged):
                await user.volume.verifier.whole(Scope.EVERYTHING, silent)
            assert summary(user).damage_count == 0
            while user.volume.scheduler.away is not None:
                await user.volume.scheduler.is_back_at_once()
