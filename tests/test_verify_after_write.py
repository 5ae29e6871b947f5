"""`-o verify=after-write`: what went to tape wrong is noticed while the spool still has it."""

from __future__ import annotations

import logging
import random
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from crash_rig import logs_expected
from test_verify import records_of
from volume_rig import RECORD_BYTES, Rig, User, dump

from tapefs.archive.tape_writer import TapeWriter
from tapefs.archive.verify import Scope, counts
from tapefs.emulator.medium import VirtualCartridge
from tapefs.entries import TapeFileKind
from tapefs.errors import DriveFailed, TapefsError
from tapefs.volume.tail import find_tail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tapefs.entries import TapeFile


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


class Medium:
    """What reaches the medium, counted from the last `forget`; `wrong` are changed on the way.

    As in KB 817765 the drive reports success: nothing but reading tells.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.wrong: set[int] = set()
        # Changed is the byte where this stands; else one in the middle of the record.
        self.where = b""
        honest = VirtualCartridge.append_records

        def append_records(
            cartridge: VirtualCartridge, records: Sequence[bytes | bytearray | memoryview]
        ) -> None:
            honest(cartridge, [self._on_its_way(record) for record in records])

        monkeypatch.setattr(VirtualCartridge, "append_records", append_records)

    def _on_its_way(self, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        if self.count in self.wrong:
            changed = bytearray(data)
            at = changed.index(self.where) if self.where else len(changed) // 2
            changed[at] ^= 0x80
            data = changed
        self.count += 1
        return data

    def forget(self) -> None:
        self.count = 0


@pytest.fixture
def medium(monkeypatch: pytest.MonkeyPatch) -> Medium:
    return Medium(monkeypatch)


@pytest.fixture(params=["lto5", "plain"])
async def rig(tmp_path: Path, request: Any) -> Rig:
    rig = Rig(tmp_path, request.param)
    rig.config = replace(rig.config, verify="after-write")
    await rig.format()
    return rig


async def write_and_sync(user: User) -> None:
    for number in range(3):
        await user.write(f"f{number}", content(number, 2 * RECORD_BYTES + 5))
    await user.sync()


async def assert_everything_is_there(rig: Rig, names: int = 3) -> None:
    """From the tape alone, on another host."""
    shutil.rmtree(rig.state)
    async with rig.mounted(read_only=True) as user:
        found = {name for _, name, _ in user.volume.catalog.children(1)}
        assert found == {b"f%d" % number for number in range(names)}
        for number in range(names):
            assert await user.read(f"f{number}") == content(number, 2 * RECORD_BYTES + 5)


async def test_a_sound_medium_is_never_called_wrong(rig: Rig, medium: Medium) -> None:
    async with rig.mounted() as user:
        await write_and_sync(user)
        await user.write("f1", content(9, 100))
        await user.sync()
        await user.write("f1", content(1, 2 * RECORD_BYTES + 5))
        statistics = user.volume.archiver.statistics()
        assert statistics.segments == 2
        # It is a verification, and nothing is left for another one.
        report = await user.volume.verifier.whole(Scope.NEW, lambda _: None)
        assert report["records_count"] == 0
        outlines = filter(counts, user.volume.view.outlines())
        assert user.volume.verifications.summary(outlines).proven_good_ns is not None
    async with rig.mounted() as user:
        outlines = filter(counts, user.volume.view.outlines())
        assert user.volume.verifications.summary(outlines).unverified_count == 0
    await assert_everything_is_there(rig)


# Records of the first segment: its last one holds the end of the last file and all that follows.
PLACES = {
    "header": (0, b"ustar"),
    "content": (2, b""),
    "manifest": (6, b"  f0\n"),
    "journal": (6, b'{"inode"'),
    "tail": (6, b'"tapefs":"tail"'),
    "padding": (6, bytes(30_000)),
}


@pytest.fixture
def one_failure(assert_logs: Callable[..., Any]) -> None:
    assert_logs(r"verify\.damage tape_file=1", 1)
    assert_logs(r"segment\.failed kind=WrittenWrong", 1)


@pytest.mark.usefixtures("one_failure")
@pytest.mark.parametrize("place", PLACES)
async def test_a_record_that_was_changed_on_the_way_is_noticed_and_written_again(
    rig: Rig, medium: Medium, place: str, log_police: Any
) -> None:
    if place in ("journal", "tail"):
        log_police.announce(r"catalog\.roll_forward")
    async with rig.mounted() as user:
        medium.forget()
        record, medium.where = PLACES[place]
        medium.wrong = {record}
        await write_and_sync(user)
        assert user.volume.catalog.owes_tape() is False
        user.evict_everything()
        for number in range(3):
            ino = user.find(f"f{number}").ino
            assert {extent.sequence for extent in user.volume.catalog.extents(ino)} == {2}
            assert await user.read(f"f{number}") == content(number, 2 * RECORD_BYTES + 5)
        assert [damage.sequence for damage in user.volume.verifications.damages()] == [1]
    await assert_everything_is_there(rig)


@pytest.mark.usefixtures("one_failure")
@pytest.mark.parametrize("place", PLACES)
async def test_the_tape_alone_is_enough_before_there_is_a_checkpoint(
    rig: Rig, medium: Medium, place: str, log_police: Any
) -> None:
    if place in ("journal", "tail"):
        log_police.announce(r"catalog\.roll_forward")
    async with rig.mounted() as user:
        medium.forget()
        record, medium.where = PLACES[place]
        medium.wrong = {record}
        await write_and_sync(user)
        user.crash()
    await assert_everything_is_there(rig)


@pytest.mark.usefixtures("one_failure")
@pytest.mark.parametrize("place", PLACES)
async def test_a_daemon_that_dies_when_it_has_noticed_writes_again_after_the_next_mount(
    rig: Rig, medium: Medium, place: str, log_police: Any
) -> None:
    if place in ("journal", "tail"):
        log_police.announce(r"catalog\.roll_forward")
    log_police.announce(r"volume\.read_only", 1)
    async with rig.mounted(config=replace(rig.config, write_attempts_max=1)) as user:
        medium.forget()
        record, medium.where = PLACES[place]
        medium.wrong = {record}
        with pytest.raises(TapefsError):
            await write_and_sync(user)
        user.crash()
    async with rig.mounted() as user:
        assert user.volume.account.pending_count == 3
        await user.sync()
        user.evict_everything()
        for number in range(3):
            assert await user.read(f"f{number}") == content(number, 2 * RECORD_BYTES + 5)
    await assert_everything_is_there(rig)


async def test_until_then_the_spool_keeps_everything(
    rig: Rig, medium: Medium, assert_logs: Callable[..., Any]
) -> None:
    assert_logs(r"verify\.damage", 3)
    assert_logs(r"segment\.failed|volume\.read_only")
    dirty: list[int] = []
    async with rig.mounted() as user:
        medium.forget()
        medium.wrong = set(range(1000))
        with pytest.raises(TapefsError):
            await write_and_sync(user)
        dirty.append(user.volume.account.pending_bytes)
        user.evict_everything()
        for number in range(3):
            assert await user.read(f"f{number}") == content(number, 2 * RECORD_BYTES + 5)
        assert user.volume.contents.admission.read_only_reason is not None
        user.crash()
    assert dirty == [3 * (2 * RECORD_BYTES + 5)]


async def test_a_checkpoint_that_went_wrong_is_written_again(
    rig: Rig, medium: Medium, assert_logs: Callable[..., Any]
) -> None:
    assert_logs(r"verify\.damage tape_file=2", 1)
    assert_logs(r"segment\.failed kind=WrittenWrong", 1)
    async with rig.mounted() as user:
        await write_and_sync(user)
        medium.forget()
        medium.wrong = {0}
    assert medium.count >= 2
    async with rig.mounted() as user:
        last = user.volume.view.last_tape_file()
        assert last is not None
        assert (last.sequence, last.kind) == (3, TapeFileKind.CHECKPOINT)
    await assert_everything_is_there(rig)


async def test_without_the_option_nothing_is_read_back(
    rig: Rig, medium: Medium, assert_logs: Callable[..., Any]
) -> None:
    """And so nobody notices: this is what the option is for."""
    assert_logs(r"verify\.damage", 1)
    rig.config = replace(rig.config, verify="off")
    async with rig.mounted() as user:
        medium.forget()
        medium.wrong = {2}
        await write_and_sync(user)
        assert user.volume.catalog.owes_tape() is False
        report = await user.volume.verifier.whole(Scope.NEW, lambda _: None)
        assert report["damage_count"] == 1


async def many(user: User) -> None:
    """A segment whose journal has several records."""
    for number in range(300):
        await user.write(f"f{number}", content(number, 10))
    await user.sync()


async def test_what_its_writer_could_not_read_is_passed_over_by_every_reader(
    tmp_path: Path, assert_logs: Callable[..., Any]
) -> None:
    """A journal that one drive cannot read and another one can: both hold the same for true."""
    scratch, rig = (Rig(tmp_path / name) for name in ("scratch", "rig"))
    for each in (scratch, rig):
        each.directory.mkdir()
        each.config = replace(each.config, verify="after-write")
        await each.format()
    async with scratch.mounted() as user:
        await many(user)
        first = user.volume.view.tape_file(1)
        assert first is not None
    index = find_tail(records_of(scratch.tap, 1)[-1]).index
    record = index.position // RECORD_BYTES + 1
    assert record < first.record_count - 1
    assert_logs(r"verify\.damage tape_file=1 .* kind=unreadable", 1)
    assert_logs(r"segment\.failed kind=WrittenWrong", 1)
    assert_logs(r"catalog\.roll_forward unread_journal=1", 1)
    async with rig.mounted() as user:
        user.target.faults.unreadable[first.first_block + record] = 1000
        await many(user)
        user.target.faults.unreadable.clear()
        torn = user.volume.view.tape_file(1)
        assert torn is not None
        assert torn.kind is TapeFileKind.TORN
        known = dump(user.volume.view)
        user.crash()
    assert await rig.tape_dump() == known


async def test_a_checkpoint_that_was_not_read_back_leaves_no_room_that_is_not_there(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who writes more than fits would wait for that room, and not be refused."""

    async def fails(_: TapeWriter, tape_file: TapeFile) -> None:
        raise DriveFailed(f"tape file {tape_file.sequence} cannot be asked for")

    async with rig.mounted() as user:
        await write_and_sync(user)
        with monkeypatch.context() as patched, logs_expected(up_to=logging.ERROR):
            patched.setattr(TapeWriter, "read_back", fails)
            with pytest.raises(DriveFailed, match="tape file 2"):
                await user.volume.archiver.finalize()
        assert not user.volume.account.counts_twice
