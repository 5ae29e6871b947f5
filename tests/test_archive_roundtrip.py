"""A whole volume on the emulated drive: what goes in comes back, with and without the catalog."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import random
import shutil
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from crash_rig import logs_expected
from volume_rig import Rig, dump

from tapefs.archive.contents import FileState
from tapefs.archive.tree import Tree
from tapefs.config import Config
from tapefs.entries import ROOT_INO, TapeFileKind
from tapefs.errors import (
    DataMismatch,
    FilesystemError,
    StateUnusable,
    TapefsError,
    VolumeFull,
    WrongTape,
)
from tapefs.scsi.cdb import Rewind
from tapefs.volume import journal_file
from tapefs.volume.journal_file import read_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from uuid import UUID

    from tapefs.entries import Entry


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.format()
    return rig


async def fill(rig: Rig) -> dict[str, tuple[object, ...]]:
    """A tree of every kind, archived in two segments; returns what it looks like."""
    async with rig.mounted() as user:
        user.mkdir("a")
        user.mkdir("a/b")
        await user.write("a/small", b"small")
        await user.write("a/b/large", content(1, 1_000_000))
        await user.write("a/empty", b"")
        user.tree.make(*user.place("link"), stat.S_IFLNK | 0o777, 0, 0, target=b"a/small")
        user.tree.make(*user.place("pipe"), stat.S_IFIFO | 0o600, 7, 8)
        user.tree.make(*user.place("socket"), stat.S_IFSOCK | 0o600, 7, 8)
        await user.sync()
        user.tree.link(user.find("a/small").ino, *user.place("hard"))
        user.tree.set_xattr(user.find("a/small").ino, b"user.note", b"\0\xff")
        await user.write("a/b/large", b"changed", 500_000)
        await user.write("später", content(2, 200_000))
        user.rename("a/empty", "a/b/void")
        return await user.snapshot()


async def test_everything_comes_back_from_the_tape_alone(rig: Rig) -> None:
    wanted = await fill(rig)
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert user.volume.contents.state(user.find("a/b/large").ino) is FileState.MIGRATED
        assert await user.snapshot() == wanted


async def test_everything_comes_back_with_the_catalog(rig: Rig) -> None:
    wanted = await fill(rig)
    async with rig.mounted() as user:
        user.evict_everything()
        assert user.volume.spool.used_bytes == 0
        assert await user.snapshot() == wanted
        assert user.volume.recall.statistics().records_read > 0


async def test_a_rebuilt_view_is_the_one_that_was_kept(rig: Rig) -> None:
    await fill(rig)
    async with rig.mounted(read_only=True) as user:
        kept = dump(user.volume.view)
    assert await rig.tape_dump() == kept


async def test_roll_forward_without_any_checkpoint(rig: Rig) -> None:
    async with rig.mounted() as user:
        await user.write("one", content(1, 300_000))
        await user.sync()
        await user.write("one", b"new", 7)
        await user.write("two", content(2, 100))
        await user.sync()
        wanted = await user.snapshot()
        kept = dump(user.volume.view)
        user.crash()
    kinds = [row[1] for row in kept[4]]
    assert kinds == ["segment", "segment"]
    assert await rig.tape_dump() == kept
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.snapshot() == wanted


async def test_fsynced_files_survive_a_crash_without_repair(rig: Rig) -> None:
    async with rig.mounted() as user:
        await user.write("kept", content(3, 150_000))
        await user.fsync("kept")
        user.crash()
    async with rig.mounted() as user:
        assert await user.read("kept") == content(3, 150_000)
        assert user.volume.contents.state(user.find("kept").ino) is FileState.RESIDENT
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.read("kept") == content(3, 150_000)


async def test_changes_after_archiving(rig: Rig) -> None:
    data = bytearray(content(4, 3_000_000))
    async with rig.mounted() as user:
        await user.write("file", bytes(data))
        await user.sync()
        user.evict_everything()
        await user.write("file", b"x" * 70_000, 1_000_001)
        data[1_000_001:1_070_001] = b"x" * 70_000
        await user.write("file", b"tail", len(data))
        data += b"tail"
        assert await user.read("file") == data
        await user.sync()
        user.evict_everything()
        await user.truncate("file", 1_500_000)
        del data[1_500_000:]
        await user.truncate("file", 1_600_000)
        data += bytes(100_000)
        assert await user.read("file") == data
    for _ in range(2):
        async with rig.mounted() as user:
            assert await user.read("file") == data
        shutil.rmtree(rig.state)


async def test_a_shrunk_and_regrown_file_reads_zeros_not_the_old_bytes(rig: Rig) -> None:
    async with rig.mounted() as user:
        await user.write("file", b"secret" * 1000)
        await user.sync()
        user.evict_everything()
        await user.truncate("file", 10)
        await user.truncate("file", 6000)
        assert await user.read("file") == b"secretsecr" + bytes(5990)
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.read("file") == b"secretsecr" + bytes(5990)


async def test_deletion_is_kept_and_the_number_never_comes_again(rig: Rig) -> None:
    async with rig.mounted() as user:
        gone = await user.write("gone", b"1")
        await user.sync()
        user.unlink("gone")
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.snapshot() == {}
        assert await user.write("new", b"2") > gone


async def test_numbers_that_a_lost_catalog_gave_never_come_again(rig: Rig) -> None:
    async with rig.mounted() as user:
        kept = await user.write("kept", b"1")
        await user.sync()
        # Files that somebody saw and the tape never did.
        lost = [await user.write(f"lost{number}", b"2") for number in range(20)]
        user.crash()
    for _ in range(2):
        shutil.rmtree(rig.state)
        async with rig.mounted() as user:
            assert user.find("kept").ino == kept
            mine = [await user.write(f"mine{number}", b"3") for number in range(20)]
            assert min(mine) > max(lost)
            assert user.volume.account.inode_count < 1000, "the checkpoint is no larger for it"
            lost += mine
            user.crash()
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        last = await user.write("last", b"4")
        assert last > max(lost)
    kept_numbers = {kept, last}
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert {user.find(name).ino for name in ("kept", "last")} == kept_numbers
        assert await user.read("last") == b"4"


async def test_writing_while_a_segment_is_being_written_loses_nothing(rig: Rig) -> None:
    async with rig.mounted() as user:
        await user.write("file", b"a" * 2_000_000)
        ino = user.find("file").ino
        await user.volume.contents.open(ino, write=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(user.sync)
            for number in range(60):
                await user.volume.contents.write(ino, number * 20_000, b"%06d" % number)
                await trio.lowlevel.checkpoint()
            await user.volume.contents.truncate(ino, 1_500_000)
            await user.volume.contents.truncate(ino, 1_600_000)
        await user.volume.contents.release(ino, write=True)
        wanted = await user.read("file")
        assert wanted[1_180_000:1_180_006] == b"000059"
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.read("file") == wanted


async def test_a_file_larger_than_the_spool_goes_through_it(tmp_path: Path) -> None:
    config = Config(settle_s=0.0, idle_s=3600.0, commit_s=0.01, spool_bytes=16 << 20)
    rig = Rig(tmp_path, config=config)
    await rig.format()
    block = content(5, 1 << 20)
    async with rig.mounted() as user:
        ino = await user.write("big", b"")
        contents = user.volume.contents
        await contents.open(ino, write=True)
        for number in range(64):
            await contents.write(ino, number << 20, block[number:] + block[:number])
            assert user.volume.spool.used_bytes <= config.spool_bytes
        await contents.release(ino, write=True)
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        for number in (0, 1, 31, 63):
            data = await user.read("big", number << 20, 1 << 20)
            assert data == block[number:] + block[:number]


async def test_many_open_files_cannot_jam_the_spool(tmp_path: Path) -> None:
    config = Config(settle_s=60.0, idle_s=3600.0, commit_s=0.01, spool_bytes=16 << 20)
    rig = Rig(tmp_path, config=config)
    await rig.format()
    block = content(6, 1 << 20)
    async with rig.mounted() as user:
        inos = [await user.write(f"f{number}", b"") for number in range(40)]
        for ino in inos:
            await user.volume.contents.open(ino, write=True)
        for ino in inos:
            await user.volume.contents.write(ino, 0, block)
        for ino in inos:
            await user.volume.contents.release(ino, write=True)
        assert await user.read("f0") == block
        assert await user.read("f39") == block


async def test_enospc_comes_before_the_tape_is_full(tmp_path: Path) -> None:
    rig = Rig(tmp_path, capacity_bytes=32 << 20)
    await rig.format()
    accepted = 0
    async with rig.mounted() as user:
        with suppress(VolumeFull):
            while True:
                await user.write(f"f{accepted}", content(accepted, 1 << 20))
                accepted += 1
        with pytest.raises(VolumeFull):
            await user.write("no room", bytes(1 << 20))
        assert accepted > 20, "most of the tape is usable"
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        for number in range(accepted):
            assert await user.read(f"f{number}") == content(number, 1 << 20)
        with pytest.raises(VolumeFull):
            await user.write("more", bytes(8 << 20))


async def test_a_flipped_bit_is_an_error_and_not_data(
    rig: Rig, assert_logs: Callable[[str], object]
) -> None:
    async with rig.mounted() as user:
        await user.write("file", content(7, 500_000))
    image = bytearray(rig.tap.read_bytes())
    place = image.find(content(7, 500_000)[300_000:300_016])
    image[place] ^= 1
    rig.tap.write_bytes(image)
    shutil.rmtree(rig.state)
    assert_logs("data.mismatch")
    assert_logs("recall.failed")
    async with rig.mounted() as user:
        with pytest.raises(DataMismatch):
            await user.read("file")
        assert await user.read("file", 0, 1000) == content(7, 500_000)[:1000]


async def test_a_torn_segment_is_skipped_and_its_files_go_again(rig: Rig) -> None:
    async with rig.mounted() as user:
        await user.write("first", content(8, 200_000))
        await user.sync()
        await user.write("second", content(9, 200_000))
        await user.fsync("second")
        user.crash()
    image = rig.tap.read_bytes()
    # Three records that a dying writer left behind the last filemark.
    record = (65536).to_bytes(4, "little") + content(10, 65536) + (65536).to_bytes(4, "little")
    with rig.tap.open("r+b") as tap:
        tap.seek(len(image.removesuffix(b"\xff" * 4)))
        tap.write(3 * record)
        tap.truncate()
    async with rig.mounted() as user:
        assert await user.read("second") == content(9, 200_000)
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        kinds = [tape_file.kind for tape_file in user.volume.view.tape_files()]
        assert kinds == [
            TapeFileKind.SEGMENT,
            TapeFileKind.TORN,
            TapeFileKind.SEGMENT,
            TapeFileKind.CHECKPOINT,
        ]
        assert await user.read("first") == content(8, 200_000)
        assert await user.read("second") == content(9, 200_000)


async def test_a_tape_written_elsewhere_is_taken_over_or_refused(rig: Rig, tmp_path: Path) -> None:
    here, elsewhere = rig.state, tmp_path / "elsewhere"
    async with rig.mounted() as user:
        await user.write("mine", b"1")
    async with rig.mounted(state=elsewhere) as user:
        await user.write("theirs", b"2")
    async with rig.mounted(state=here) as user:
        assert await user.read("theirs") == b"2"
        await user.write("pending", b"3")
        await user.fsync("pending")
        user.crash()
    async with rig.mounted(state=elsewhere) as user:
        await user.write("again", b"4")
    with pytest.raises(WrongTape, match="another host"):
        async with rig.mounted(state=here):
            pass


async def test_an_older_copy_of_the_tape_is_refused(rig: Rig) -> None:
    async with rig.mounted() as user:
        await user.write("one", b"1")
    older = rig.tap.read_bytes()
    async with rig.mounted() as user:
        await user.write("two", b"2")
    rig.tap.write_bytes(older)
    with pytest.raises(WrongTape, match="older copy"):
        async with rig.mounted():
            pass
    assert rig.tap.read_bytes() == older


async def test_a_read_only_mount_changes_nothing(rig: Rig) -> None:
    async with rig.mounted() as user:
        await user.write("one", content(1, 100_000))
    before = rig.tap.read_bytes()
    async with rig.mounted(read_only=True) as user:
        user.evict_everything()
        assert await user.read("one") == content(1, 100_000)
        with pytest.raises(FilesystemError, match="read-only"):
            await user.volume.contents.open(user.find("one").ino, write=True)
    assert rig.tap.read_bytes() == before


async def test_a_chmod_while_archiving_does_not_lose_the_hash(rig: Rig) -> None:
    async with rig.mounted() as user:
        ino = await user.write("file", content(11, 2_000_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(user.sync)
            while user.volume.archiver.statistics().state != "writing":
                await trio.lowlevel.checkpoint()
            user.tree.set_attributes(ino, mode=0o600)
        assert user.volume.archiver.statistics().segments == 1
        assert stat.S_IMODE(user.find("file").mode) == 0o600
        assert user.find("file").sha256 == hashlib.sha256(content(11, 2_000_000)).digest()
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert user.find("file").sha256 == hashlib.sha256(content(11, 2_000_000)).digest()
        assert stat.S_IMODE(user.find("file").mode) == 0o600


async def test_what_a_rename_replaced_is_there_when_the_rename_is_not(rig: Rig) -> None:
    """Until the catalog is committed a crash takes a rename back, and then the old file counts."""
    slow = dataclasses.replace(rig.config, commit_s=3600.0)
    async with rig.mounted(config=slow) as user:
        await user.write("name", content(12, 100_000))
        await user.write("gone", b"fsynced")
        await user.write("cut", content(13, 50_000))
        await user.write("other", b"new")
        for path in ("name", "gone", "cut"):
            await user.fsync(path)
        user.rename("other", "name")
        user.unlink("gone")
        await user.truncate("cut", 0)
        user.crash()
    async with rig.mounted() as user:
        assert await user.read("name") == content(12, 100_000)
        assert await user.read("gone") == b"fsynced"
        assert await user.read("cut") == content(13, 50_000)


async def test_the_spool_lets_go_of_files_only_after_a_durable_commit(rig: Rig) -> None:
    async with rig.mounted() as user:
        ino = await user.write("file", content(14, 10_000))
        await user.sync()
        user.evict_everything()
        path = user.volume.spool.path(ino)
        assert user.volume.spool.used_bytes == 0
        assert path.exists(), "nothing has been committed since"
        user.volume.spool.condemn()
        user.volume.catalog.commit(durable=True)
        assert not user.volume.spool.execute(100)
        assert not path.exists()
        await user.write("file", b"again", 5)
        assert (await user.read("file"))[:12] == content(14, 10_000)[:5] + b"again" + content(
            14, 10_000
        )[10:12]


async def test_fsync_covers_what_another_descriptor_wrote(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fdatasync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))

    async with rig.mounted() as user:
        ino = await user.write("file", b"written and closed")
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        await user.fsync("file")
        assert synced == [str(user.volume.spool.path(ino))]


async def test_a_tape_moved_unseen_is_noticed_before_anything_is_written(
    rig: Rig, assert_logs: Callable[[str], object]
) -> None:
    async with rig.mounted() as user:
        await user.write("first", content(15, 300_000))
        await user.sync()
        before = rig.tap.read_bytes()
        # Somebody else's command: the head is at the label now, and nobody told us.
        assert user.target.execute(Rewind().pack(), b"").good
        await user.write("second", content(16, 300_000))
        with assert_logs("segment.failed"), pytest.raises(TapefsError):  # type: ignore[attr-defined]
            await user.sync()
        assert rig.tap.read_bytes()[: len(before) - 4] == before[: len(before) - 4]
        await user.sync()
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.read("first") == content(15, 300_000)
        assert await user.read("second") == content(16, 300_000)


@pytest.mark.parametrize("known_to_tape", [False, True])
async def test_a_removed_directory_that_is_in_use_keeps_nothing_from_tape(
    rig: Rig, known_to_tape: bool
) -> None:
    async with rig.mounted() as user:
        user.mkdir("in-use")
        if known_to_tape:
            await user.sync()
        # Somebody's working directory: the inode stays.
        tree = Tree(user.volume.catalog, lambda _: None)
        tree.rmdir(*user.place("in-use"))
        await user.write("file", b"content")
        await user.sync()
        assert user.volume.view.lookup(ROOT_INO, b"in-use") is None
    async with rig.mounted(state=rig.directory / "elsewhere", read_only=True) as user:
        assert list(await user.snapshot()) == ["/file"]


@pytest.mark.parametrize("emptied_by", ["truncate", "evict"])
async def test_an_open_file_that_was_emptied_keeps_what_is_written_to_it(
    rig: Rig, emptied_by: str
) -> None:
    async with rig.mounted() as user:
        contents = user.volume.contents
        ino = await user.write("log", b"old" * 1000)
        await contents.open(ino, write=True)
        await contents.write(ino, 0, b"first")
        if emptied_by == "truncate":
            await contents.truncate(ino, 0)
        else:
            await user.sync()
            user.evict_everything()
        # What happens by itself after some seconds.
        await user.volume._tidy()
        await contents.write(ino, 0, b"second")
        await contents.fsync(ino)
        await contents.release(ino, write=True)
        assert (await user.read("log")).startswith(b"second")
        spooled = user.volume.spool.path(ino)
        assert spooled.exists()
        await contents.open(ino, write=True)
        await contents.write(ino, 0, b"third")
        await contents.truncate(ino, 0)
        await contents.release(ino, write=True)
        await user.volume._tidy()
        assert not spooled.exists()


async def test_what_became_clean_stays_in_the_spool_until_the_catalog_says_so_durably(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power lost before that: the next mount takes the spool's word, and holes were zeros."""
    async with rig.mounted() as user:
        contents, catalog, data = user.volume.contents, user.volume.catalog, content(5, 300_000)
        ino = await user.write("open", data)
        await contents.open(ino, write=True)
        found: list[bytes] = []
        sync_log = catalog.sync_log

        def look() -> None:
            user.evict_everything()
            found.append(user.volume.spool.path(ino).read_bytes())

        def slow_sync_log() -> None:
            if threading.current_thread() is not threading.main_thread():
                trio.from_thread.run_sync(look)
            sync_log()

        monkeypatch.setattr(catalog, "sync_log", slow_sync_log)
        await user.sync()
        assert set(found) == {data}
        user.evict_everything()
        assert user.volume.spool.used_bytes == 0
        await contents.release(ino, write=True)
        assert await user.read("open") == data


async def test_a_journal_that_cannot_be_read_again_leaves_its_files_dirty(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean in memory, and nothing on tape for the live catalog: evicted, that would be zeros."""
    reads = 0

    def unreliable(path: Path, volume_uuid: UUID, sequence: int) -> Iterator[Entry]:
        nonlocal reads
        reads += 1
        yield from read_entries(path, volume_uuid, sequence)
        if reads == 2:
            raise StateUnusable("the journal cannot be read")

    monkeypatch.setattr(journal_file, "read_entries", unreliable)
    monkeypatch.setattr(journal_file, "ENTRIES_KEPT_MAX", 0)
    data = content(6, 300_000)
    async with rig.mounted() as user:
        await user.write("file", data)
        with logs_expected(up_to=logging.ERROR), pytest.raises(StateUnusable):
            await user.sync()
        user.evict_everything()
        assert await user.read("file") == data
        assert user.volume.account.pending_bytes == len(data)
        await user.sync()
        user.evict_everything()
        assert user.volume.spool.used_bytes == 0
        assert await user.read("file") == data


async def test_a_file_written_anew_while_it_went_to_tape_goes_again(rig: Rig) -> None:
    """Closed again, and of the same length: the ranges alone do not tell."""
    async with rig.mounted() as user:
        contents, account = user.volume.contents, user.volume.account
        ino = await user.write("file", b"a" * 10_000)
        other = await user.write("other", b"c" * 10_000)
        contents.begin_burst()
        await user.write("file", b"b" * 10_000)
        assert contents.confirm(ino, [(0, 10_000)]) == []
        assert contents.confirm(other, [(0, 10_000)]) == [(0, 10_000)]
        contents.end_burst()
        assert (account.pending_bytes, account.pending_count) == (10_000, 1)
        await user.sync()
        user.evict_everything()
        assert await user.read("file") == b"b" * 10_000


async def test_nothing_leaves_the_spool_while_a_burst_reads(rig: Rig) -> None:
    async with rig.mounted() as user:
        contents = user.volume.contents
        ino = await user.write("grows", b"a" * 10_000)
        await user.sync()
        await contents.open(ino, write=True)
        await contents.write(ino, 10_000, b"b")
        contents.begin_burst()
        user.evict_everything()
        assert user.volume.spool.path(ino).read_bytes() == b"a" * 10_000 + b"b"
        contents.end_burst()
        user.evict_everything()
        assert user.volume.spool.path(ino).read_bytes() == bytes(10_000) + b"b"
        await contents.release(ino, write=True)
        assert await user.read("grows") == b"a" * 10_000 + b"b"
