"""Recall: what the tape gives is judged, read once, and kept while there is room."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import random
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import crc32c
import pytest
import trio
import trio.lowlevel
import trio.testing
from volume_rig import RECORD_BYTES, Rig, User

from tapefs.archive import recall_run
from tapefs.archive.policy import JobKind
from tapefs.archive.record_store import RecordStore
from tapefs.archive.spool import CACHE_SHARE, Spool
from tapefs.archive.stretch import Stretch
from tapefs.archive.whole_file_checks import WholeFileChecks
from tapefs.config import Config
from tapefs.entries import Extent
from tapefs.errors import DataMismatch, RecallTooLate, errno_of
from tapefs.scsi.sense import Sense, SenseKey, check_condition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tapefs.drive import TapeDrive

MIB = 1 << 20
# Small enough for its records to be thrown away soon, large enough for what a run reads ahead.
SMALL_MEMORY = Config(
    settle_s=0.0, idle_s=3600.0, commit_s=0.01, record_cache_bytes=0, read_ahead_bytes=RECORD_BYTES
)


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.fixture
def keeps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast records come: otherwise those are kept for which there is time."""
    monkeypatch.setattr(recall_run, "_TO_KEEP_MAX", 10_000)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.format()
    return rig


async def archive(rig: Rig, sizes: dict[str, int]) -> None:
    """Files with `content` of their length on tape, and on this host nothing."""
    async with rig.mounted() as user:
        for name, size in sizes.items():
            await user.write(name, content(size, size))
    shutil.rmtree(rig.state)


def forget_hashes(user: User, *names: str) -> None:
    """As if other bytes than those on tape had been archived under these names."""
    for name in names:
        user.find(name).sha256 = bytes(32)


def records_read(user: User) -> int:
    return user.volume.recall.statistics().records_read


async def run_ended(user: User) -> None:
    """Return when the lane has done what it was asked to; then all that is kept is on disk."""

    async def nothing(_drive: TapeDrive) -> None:
        pass

    await user.volume.scheduler.submit(JobKind.MAINTENANCE, nothing)


def spoil(rig: Rig, piece: bytes) -> None:
    """Flip a bit of the tape, within `piece`."""
    image = bytearray(rig.tap.read_bytes())
    image[image.index(piece)] ^= 1
    rig.tap.write_bytes(image)


# -- judging


@pytest.mark.parametrize("size", [200_000, 3 * MIB, 20 * MIB])
async def test_a_file_whose_whole_is_wrong_never_reads_to_its_end(
    rig: Rig, size: int, assert_logs: Callable[[str], object]
) -> None:
    assert_logs("data.mismatch")
    await archive(rig, {"file": size})
    async with rig.mounted() as user:
        forget_hashes(user, "file")
        with pytest.raises(DataMismatch, match="SHA-256"):
            await user.read("file")


async def test_a_whole_is_checked_although_a_neighbour_brought_its_beginning(
    rig: Rig, assert_logs: Callable[[str], object]
) -> None:
    assert_logs("data.mismatch")
    await archive(rig, {"first": 2 * MIB, "second": 3 * MIB, "third": 2 * MIB})
    async with rig.mounted() as user:
        forget_hashes(user, "second", "third")
        assert await user.read("first") == content(2 * MIB, 2 * MIB)
        for name in ("second", "third"):
            with pytest.raises(DataMismatch, match="SHA-256"):
                await user.read(name)


async def test_two_readers_of_one_file_do_not_spoil_its_hash(rig: Rig) -> None:
    await archive(rig, {"file": 6 * MIB})
    async with rig.mounted() as user, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(user.read, "file")
    async with rig.mounted() as user:
        inode = user.find("file")
        extent = user.volume.catalog.extents(inode.ino)[0]
        await user.read("file")
        assert user.volume.recall._checks.verdict(extent) is True


async def test_the_last_byte_waits_for_a_run_that_is_hashing_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The reader had the record on disk, and was there before the run's worker came back."""
    stretch = Stretch(1, 0, memoryview(content(1, RECORD_BYTES)), RECORD_BYTES)
    extent = Extent(ino=2, offset=0, length=RECORD_BYTES, sequence=1, position=0)
    checks = WholeFileChecks(RECORD_BYTES)
    checks.arm(extent, hashlib.sha256(b"something else").digest())
    verdicts = []

    async def read(*, to_the_end: bool) -> None:
        await checks.catch_up(extent, {(1, 0): stretch}.get, to_the_end=to_the_end)
        verdicts.append(checks.verdict(extent))

    async with trio.open_nursery() as nursery:
        in_the_run = checks.take(1, 0, 0)
        for check in in_the_run:
            check.feed(stretch)
        await read(to_the_end=False)
        nursery.start_soon(partial(read, to_the_end=True))
        await trio.testing.wait_all_tasks_blocked()
        assert verdicts == [None]
        checks.give_back(in_the_run)
    assert verdicts == [None, False]


async def test_what_reads_wrong_once_is_read_again_with_what_follows(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, assert_logs: Callable[[str], object]
) -> None:
    await archive(rig, {"file": 3 * MIB})
    assert_logs("data.mismatch")
    calls = 0
    async with rig.mounted() as user:
        drive = user.volume.scheduler._drive
        read_blocks = drive.read_blocks

        async def read_wrong_once(
            buffers: Sequence[memoryview], more: Callable[[], Sequence[memoryview]]
        ) -> Any:
            arrived = buffers

            def spoil() -> None:
                nonlocal calls
                calls += len(arrived)
                if calls - len(arrived) < 12 <= calls:
                    arrived[-1][5] ^= 1

            def following() -> Sequence[memoryview]:
                nonlocal arrived
                spoil()
                arrived = more()
                return arrived

            found = await read_blocks(buffers, following)
            spoil()
            return found

        monkeypatch.setattr(drive, "read_blocks", read_wrong_once)
        assert await user.read("file") == content(3 * MIB, 3 * MIB)
        assert user.volume.recall.statistics().mismatches == 1
        inode = user.find("file")
        extent = user.volume.catalog.extents(inode.ino)[0]
        assert user.volume.recall._checks.verdict(extent) is True, "hashed in order all the same"


async def test_what_stands_in_place_of_a_record_is_a_mismatch_and_read_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, assert_logs: Callable[[str], object]
) -> None:
    await archive(rig, {"file": 3 * MIB})
    assert_logs("data.mismatch")
    mark = check_condition(Sense(SenseKey.NO_SENSE, 0x00, 0x01, filemark=True), "READ")
    async with rig.mounted() as user:
        drive = user.volume.scheduler._drive
        honest = drive.read_blocks
        answers: list[Any] = [(list[int](), mark)]

        async def read_blocks(*given: Any) -> Any:
            return answers.pop() if answers else await honest(*given)

        monkeypatch.setattr(drive, "read_blocks", read_blocks)
        assert await user.read("file") == content(3 * MIB, 3 * MIB)
        assert user.volume.recall.statistics().mismatches == 1


@pytest.mark.parametrize(
    ("takes_s", "at_once"), [(0.0, range(8, 9)), (0.01, range(9, 49)), (60.0, range(1, 2))]
)
async def test_a_slow_drive_brings_fewer_records_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, takes_s: float, at_once: range
) -> None:
    """Of a visit, 8 records are handed out together: nobody waits for many slow ones."""
    await archive(rig, {"file": 100 * RECORD_BYTES})
    now_s = 0.0
    monkeypatch.setattr(trio, "current_time", lambda: now_s)
    async with rig.mounted() as user:
        drive = user.volume.scheduler._drive
        honest, counts = drive.read_blocks, list[int]()

        async def read_blocks(
            buffers: Sequence[memoryview], more: Callable[[], Sequence[memoryview]]
        ) -> Any:
            nonlocal now_s
            now_s += takes_s
            lengths, error = await honest(buffers, more)
            counts.append(len(lengths))
            return lengths, error

        monkeypatch.setattr(drive, "read_blocks", read_blocks)
        assert await user.read("file") == content(100 * RECORD_BYTES, 100 * RECORD_BYTES)
    assert max(counts[3:]) in at_once


async def test_records_are_handed_out_while_the_same_visit_reads_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 60 * RECORD_BYTES
    await archive(rig, {"file": size})
    read_rest, ends = trio.Event(), list[int]()
    async with rig.mounted() as user, trio.open_nursery() as nursery:
        recall, drive = user.volume.recall, user.volume.scheduler._drive
        honest, gone_on = drive.read_blocks, trio.Event()

        async def read_blocks(
            buffers: Sequence[memoryview], more: Callable[[], Sequence[memoryview]]
        ) -> Any:
            lengths, error = await honest(buffers)
            assert recall._run is not None
            while error is None and (following := more()):
                ends.append(recall._run.record + len(lengths))
                gone_on.set()
                await read_rest.wait()
                found, error = await honest(following)
                lengths += found
            return lengths, error

        monkeypatch.setattr(drive, "read_blocks", read_blocks)
        nursery.start_soon(user.read, "file")
        with trio.fail_after(30):
            await gone_on.wait()
            start = (ends[0] - 1) * RECORD_BYTES
            data = await user.read("file", start, 100)
        assert data == content(size, size)[start : start + 100]
        read_rest.set()


async def test_what_lies_before_and_behind_a_bad_record_can_be_read(
    rig: Rig, assert_logs: Callable[[str], object]
) -> None:
    await archive(rig, {"file": 4 * MIB})
    data = content(4 * MIB, 4 * MIB)
    spoil(rig, data[2 * MIB : 2 * MIB + 100])
    assert_logs("data.mismatch")
    assert_logs("recall.failed")
    async with rig.mounted() as user:
        good = 2 * MIB - RECORD_BYTES
        assert await user.read("file", 0, good) == data[:good]
        with pytest.raises(DataMismatch):
            await user.read("file", 2 * MIB, 100)
        behind = 2 * MIB + 2 * RECORD_BYTES
        assert await user.read("file", behind) == data[behind:]


# -- reading once


async def test_a_directory_of_small_files_costs_one_pass(rig: Rig) -> None:
    sizes = {f"f{number:03}": 4096 + number for number in range(300)}
    await archive(rig, sizes)
    async with rig.mounted() as user:
        for name, size in sizes.items():
            assert await user.read(name) == content(size, size)
        tape_file = user.volume.view.tape_file(1)
        assert tape_file is not None
        assert tape_file.record_count - 3 <= records_read(user) <= tape_file.record_count
        assert user.volume.recall.statistics().runs <= 2


async def test_the_reading_end_of_a_slow_deadline_is_an_input_output_error(rig: Rig) -> None:
    await archive(rig, {"file": 100_000})
    hasty = dataclasses.replace(rig.config, recall_deadline_s=0.05)
    async with rig.mounted(config=hasty) as user, trio.open_nursery() as nursery:
        release = trio.Event()

        async def occupy(_drive: TapeDrive) -> None:
            await release.wait()

        nursery.start_soon(user.volume.scheduler.submit, JobKind.CONTROL, occupy)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RecallTooLate) as caught:
            await user.read("file")
        assert errno_of(caught.value) == errno.EIO
        release.set()


async def test_whoever_has_a_file_open_reads_from_where_it_stands_now(rig: Rig) -> None:
    await archive(rig, {"file": 300_000})
    data = bytearray(content(300_000, 300_000))
    async with rig.mounted() as user:
        contents, ino = user.volume.contents, user.find("file").ino
        await contents.open(ino, write=False)
        assert bytes(await contents.read(ino, 0, len(data))) == data
        await user.write("file", b"new" * 1000, 100_000)
        data[100_000:103_000] = b"new" * 1000
        await user.sync()
        user.evict_everything()
        assert bytes(await contents.read(ino, 0, len(data))) == data
        await user.truncate("file", 50_000)
        await user.truncate("file", 300_000)
        assert bytes(await contents.read(ino, 0, len(data))) == data[:50_000] + bytes(250_000)
        await contents.release(ino, write=False)


# -- kept while there is room


@pytest.mark.usefixtures("keeps_all")
async def test_what_was_recalled_is_not_read_from_tape_again(rig: Rig) -> None:
    await archive(rig, {"one": 3 * MIB, "two": 3 * MIB})
    async with rig.mounted(config=SMALL_MEMORY) as user:
        await user.read("one")
        await user.read("two")
        await run_ended(user)
        before = records_read(user)
        assert await user.read("one") == content(3 * MIB, 3 * MIB)
        kept = user.volume.recall.statistics().kept_bytes
        assert records_read(user) == before
        assert kept >= 6 * MIB
        assert user.volume.spool.used_bytes == 0, "it is not content that the spool answers for"
    async with rig.mounted(config=SMALL_MEMORY) as user:
        assert user.volume.recall.statistics().kept_bytes == kept
        assert await user.read("two") == content(3 * MIB, 3 * MIB)
        assert records_read(user) == 0


@pytest.mark.usefixtures("keeps_all")
async def test_a_record_that_rotted_on_disk_comes_from_tape(rig: Rig) -> None:
    await archive(rig, {"file": 3 * MIB})
    async with rig.mounted(config=SMALL_MEMORY) as user:
        await user.read("file")
        await run_ended(user)
        (store,) = (user.directory / "recalled").iterdir()
    image = bytearray(store.read_bytes())
    image[MIB] ^= 1
    store.write_bytes(image)
    async with rig.mounted(config=SMALL_MEMORY) as user:
        assert await user.read("file") == content(3 * MIB, 3 * MIB)
        assert records_read(user) == 1


@pytest.mark.usefixtures("keeps_all")
async def test_what_was_recalled_gives_way_to_what_is_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path, config=dataclasses.replace(SMALL_MEMORY, spool_bytes=16 * MIB))
    await rig.format()
    await archive(rig, {"file": 6 * MIB})
    async with rig.mounted() as user:
        await user.read("file")
        await run_ended(user)
        volume = user.volume
        assert volume.recall.statistics().kept_bytes >= 6 * MIB
        for number in range(12):
            await user.write("new", content(number, MIB), number * MIB)
            kept_bytes = volume.recall.statistics().kept_bytes
            assert volume.spool.used_bytes - MIB + kept_bytes <= max(
                volume.spool.used_bytes - MIB, CACHE_SHARE * 16 * MIB
            )
        assert volume.recall.statistics().kept_bytes == 0
        assert await user.read("file") == content(6 * MIB, 6 * MIB)


async def test_what_is_clean_in_the_spool_counts_until_the_computer_was_restarted(
    rig: Rig,
) -> None:
    async with rig.mounted() as user:
        ino = await user.write("file", content(1, 300_000))
    spooled = user.volume.spool.path(ino)
    assert spooled.exists()
    async with rig.mounted() as user:
        assert await user.read("file") == content(1, 300_000)
        assert records_read(user) == 0
    # What a power cut after the end of the mount may leave of bytes that nobody made safe.
    spooled.write_bytes(bytes(300_000))
    rig.boot_id = "the next"
    async with rig.mounted() as user:
        assert await user.read("file") == content(1, 300_000)


@pytest.mark.usefixtures("keeps_all")
async def test_a_full_disk_takes_what_was_recalled_before_a_write_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archive(rig, {"file": 2 * MIB})
    async with rig.mounted() as user:
        await user.read("file")
        await run_ended(user)
        pwrite = os.pwrite

        def full_as_long_as_there_is_something(fd: int, data: bytes, offset: int) -> int:
            if user.volume.store.used_bytes:
                raise OSError(errno.ENOSPC, "")
            return pwrite(fd, data, offset)

        assert user.volume.store.used_bytes
        monkeypatch.setattr(os, "pwrite", full_as_long_as_there_is_something)
        await user.write("new", content(5, 100_000))
        assert await user.read("new") == content(5, 100_000)
        monkeypatch.setattr(os, "pwrite", pwrite)


# -- the store by itself


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", limit_bytes=40 * RECORD_BYTES)


def record(number: int) -> memoryview:
    return memoryview(content(number, RECORD_BYTES))


def crc(data: memoryview) -> bytes:
    return crc32c.crc32c(data).to_bytes(4, "big")


def new_store(tmp_path: Path, spool: Spool) -> RecordStore:
    return RecordStore(tmp_path / "recalled", RECORD_BYTES, spool)


def test_the_store_finds_again_what_it_holds(tmp_path: Path, spool: Spool) -> None:
    store = new_store(tmp_path, spool)
    for key in ((1, 3), (1, 4), (7, 0)):
        store.write(key, record(key[1]))
    again = new_store(tmp_path, spool)
    assert again.used_bytes == 3 * RECORD_BYTES
    for key in ((1, 3), (1, 4), (7, 0)):
        found = again.read(key, crc(record(key[1])))
        assert found is not None
        assert (found.sequence, found.first, found.data) == (*key, record(key[1]))
    for key in ((1, 2), (1, 5), (7, 1), (2, 0)):
        assert again.read(key, crc(record(key[1]))) is None


def test_the_store_throws_away_the_longest_unused(tmp_path: Path, spool: Spool) -> None:
    store = new_store(tmp_path, spool)
    room = int(40 * CACHE_SHARE)
    for number in range(room):
        store.write((1 + number % 2, number), record(number))
    assert store.read((1, 0), crc(record(0))) is not None
    store.write((3, 0), record(99))
    assert store.used_bytes == room * RECORD_BYTES
    assert store.read((2, 1), crc(record(1))) is None
    assert store.read((1, 0), crc(record(0))) is not None
    on_disk = sum(os.stat(tmp_path / "recalled" / name).st_blocks for name in "123")
    assert on_disk * 512 <= (room + 1) * RECORD_BYTES, "what was thrown away takes no room"


def test_the_store_leaves_nothing_behind(tmp_path: Path, spool: Spool) -> None:
    store = new_store(tmp_path, spool)
    for number in range(4):
        store.write((number, number), record(number))
    spool.used_bytes = int(40 * CACHE_SHARE - 2) * RECORD_BYTES
    store.shrink()
    assert store.used_bytes == 2 * RECORD_BYTES
    store.clear()
    assert store.used_bytes == 0
    assert list((tmp_path / "recalled").iterdir()) == []


def test_the_store_leaves_the_disk_to_the_spool(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)

    def nearly_full(_path: object) -> os.statvfs_result:
        values = list(real)
        values[4] = 41 * RECORD_BYTES // real.f_frsize
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    store = new_store(tmp_path, spool)
    store.write((1, 0), record(0))
    assert store.used_bytes == RECORD_BYTES
    monkeypatch.setattr(
        os, "statvfs", lambda path: os.statvfs_result([*nearly_full(path)][:4] + [0] + [0] * 5)
    )
    store.write((1, 1), record(1))
    assert store.used_bytes <= RECORD_BYTES


def test_a_disk_that_cannot_keep_records_is_left_alone(
    tmp_path: Path, spool: Spool, assert_logs: Callable[[str], object]
) -> None:
    (tmp_path / "recalled").write_bytes(b"not a directory")
    assert_logs("recall.not_kept")
    store = RecordStore(tmp_path / "recalled", RECORD_BYTES, spool)
    store.write((1, 0), record(0))
    store.write((1, 1), record(1))
    assert store.used_bytes == 0


@pytest.mark.parametrize(("short", "good"), [(None, 3), (2, 2), (0, 0)])
def test_a_record_of_another_length_is_none_whatever_stood_in_memory(
    short: int | None, good: int
) -> None:
    """Memory is used again: it may hold the very record that the drive did not bring."""
    data = memoryview(content(2, 3 * RECORD_BYTES))
    stretch = Stretch(1, 7, data, RECORD_BYTES)
    lengths = [RECORD_BYTES - (number == short) for number in range(3)]
    crcs = b"".join(map(crc, stretch.records()))
    assert recall_run._good_count(recall_run._Unjudged(stretch, lengths, crcs)) == good
