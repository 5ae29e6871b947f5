"""Hashes taken while files arrive are of the bytes that go to tape, whatever happens meanwhile."""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import os
import random
import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from first_light_rig import MIB, new_host
from volume_rig import RECORD_BYTES, Rig, User

from tapefs.archive import arrival
from tapefs.archive.before_images import BeforeImages
from tapefs.archive.spool_content import SpoolContent
from tapefs.archive.verify import Scope
from tapefs.daemon import commands
from tapefs.volume.hashing import KnownHashes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FROM_BYTES = 8 * 1024
# Only what is broken takes so long.
STUCK_S = 20
PIECE_BYTES = 40_000


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(arrival, "FROM_BYTES", FROM_BYTES)
    rig = Rig(tmp_path)
    # As the daemon lays its state directory out.
    rig.state = tmp_path / "state" / "volumes"
    await rig.format()
    return rig


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The SHA-256 of each file that went to tape with what was hashed on arrival."""
    found: list[bytes] = []
    honest = KnownHashes.digests

    def digests(self: KnownHashes) -> tuple[bytes, bytes]:
        result = honest(self)
        found.append(result[0])
        return result

    monkeypatch.setattr(KnownHashes, "digests", digests)
    return found


class Writer:
    """A file under way, and what should be in it."""

    def __init__(self, user: User, name: str, seed: int) -> None:
        self._user = user
        self._name = name
        self._random = random.Random(f"{name} {seed}")
        self.model = bytearray()
        self.ino = 0

    async def open(self) -> None:
        self.ino = await self._user.write(self._name, b"")
        await self._user.volume.contents.open(self.ino, write=True)

    async def close(self) -> None:
        await self._user.volume.contents.release(self.ino, write=True)

    async def append(self) -> None:
        await self._put(len(self.model))

    async def write_over(self) -> None:
        await self._put(self._random.randrange(len(self.model) + 1))

    async def within(self) -> None:
        middle = len(self.model) // 2
        self.model[middle : middle + 5] = b"other"
        await self._user.volume.contents.write(self.ino, middle, b"other")

    async def behind_the_end(self) -> None:
        await self._put(len(self.model) + self._random.randrange(1, PIECE_BYTES))

    async def cut(self) -> None:
        await self._resize(self._random.randrange(len(self.model) + 1))

    async def cut_and_regrow(self) -> None:
        size = len(self.model)
        await self._resize(size // 2)
        await self._resize(size)

    async def empty(self) -> None:
        await self._resize(0)

    async def extend(self) -> None:
        await self._resize(len(self.model) + self._random.randrange(PIECE_BYTES))

    async def anything(self) -> None:
        how = [self.write_over, self.behind_the_end, self.cut, self.empty, self.extend]
        await self._random.choice([*how, *[self.append] * 15])()

    async def _put(self, offset: int) -> None:
        data = self._random.randbytes(self._random.randrange(1, PIECE_BYTES))
        self.model += bytes(max(0, offset - len(self.model)))
        self.model[offset : offset + len(data)] = data
        await self._user.volume.contents.write(self.ino, offset, data)

    async def _resize(self, size: int) -> None:
        del self.model[size:]
        self.model += bytes(size - len(self.model))
        await self._user.volume.contents.truncate(self.ino, size)


async def sound(rig: Rig) -> bool:
    """Whether each tape file is what its own journal says, each file's SHA-256 included."""
    report = await commands.verify(
        f"virtual:{rig.tap}", rig.state.parent, Scope.EVERYTHING.value, lambda _: None
    )
    return not report["damage"]


async def assert_on_tape(rig: Rig, wanted: dict[str, bytes]) -> None:
    """The tape alone has `wanted`, and is sound. A known SHA-256 of a file is that of its bytes."""
    assert await sound(rig)
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        for name, content in wanted.items():
            assert await user.read(name) == content
            known = user.find(name).sha256
            assert known in (None, hashlib.sha256(content).digest())


@pytest.mark.parametrize("unhashed_bytes", [0, 50_000, 16 << 20])
@pytest.mark.parametrize("seed", range(4))
async def test_files_that_are_written_anyhow(
    rig: Rig, counted: list[bytes], seed: int, unhashed_bytes: int
) -> None:
    choice = random.Random(seed)
    config = dataclasses.replace(rig.config, unhashed_bytes=unhashed_bytes)
    async with rig.mounted(config=config) as user:
        writers = [Writer(user, f"file{number}", seed) for number in range(4)]
        for writer in writers:
            await writer.open()
        for _ in range(60):
            await choice.choice(writers).anything()
            if choice.random() < 0.1:
                await user.sync()
        for writer in writers:
            await writer.close()
        plain = Writer(user, "plain", seed)
        await plain.open()
        for _ in range(8):
            await plain.append()
        await plain.close()
        writers.append(plain)
        wanted = {f"file{n}": bytes(writer.model) for n, writer in enumerate(writers[:4])}
        wanted["plain"] = bytes(plain.model)
    assert hashlib.sha256(plain.model).digest() in counted
    await assert_on_tape(rig, wanted)


@pytest.mark.parametrize("change", ["within", "cut", "cut_and_regrow", "extend", "behind_the_end"])
async def test_what_is_not_just_appended_to_is_hashed_on_its_way_to_tape(
    rig: Rig, counted: list[bytes], change: str
) -> None:
    async with rig.mounted() as user:
        writer = Writer(user, "file", 6)
        await writer.open()
        for _ in range(10):
            await writer.append()
        await getattr(writer, change)()
        if not change.startswith("cut"):
            await writer.append()
        await writer.close()
        content = bytes(writer.model)
    assert counted == []
    await assert_on_tape(rig, {"file": content})


class Disturbed:
    """Lets `happen` have its way before each piece that is read of a file for the tape."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, happen: Callable[[], Any]) -> None:
        self.count = 0
        honest = SpoolContent.fill

        def fill(content: SpoolContent, spaces: Sequence[memoryview], offset: int) -> None:
            self.count += 1
            trio.from_thread.run(happen)
            honest(content, spaces, offset)

        monkeypatch.setattr(SpoolContent, "fill", fill)


@pytest.mark.parametrize("unhashed_bytes", [0, 16 << 20])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("change", ["write_over", "append", "cut", "empty", "anything"])
async def test_what_changes_while_it_is_copied_goes_to_tape_as_it_was(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    counted: list[bytes],
    unhashed_bytes: int,
    change: str,
    *,
    closed: bool,
) -> None:
    config = dataclasses.replace(rig.config, unhashed_bytes=unhashed_bytes)
    async with rig.mounted(config=config) as user:
        writer = Writer(user, "file", 1)
        await writer.open()
        while len(writer.model) < 44 * RECORD_BYTES:
            await writer.append()
        if closed:
            await writer.close()
            await user.volume.contents.open(writer.ino, write=True)
        before = hashlib.sha256(writer.model).digest()
        with monkeypatch.context() as while_copied:
            disturbed = Disturbed(while_copied, getattr(writer, change))
            await user.sync()
        assert disturbed.count > 10
        assert counted == [before]
        await writer.close()
        # What changed is still to be written; a crash now leaves what was copied.
        content = bytes(writer.model)
    await assert_on_tape(rig, {"file": content})


async def test_a_spool_that_gives_back_other_bytes_is_noticed(
    rig: Rig, assert_logs: Callable[..., Any], counted: list[bytes]
) -> None:
    assert_logs(r"segment\.failed kind=SpoolMismatch .*file", 1)
    async with rig.mounted() as user:
        writer = Writer(user, "file", 2)
        await writer.open()
        while len(writer.model) < 6 * RECORD_BYTES:
            await writer.append()
        await writer.close()
        await user.write("other", b"goes with it")
        path = user.volume.spool.path(writer.ino)
        content = bytearray(path.read_bytes())
        user.volume.contents.arrivals._hasher.submit(int).result()  # all is hashed by now
        content[100_000] ^= 1
        path.write_bytes(content)
        await user.sync()
        assert counted == []
        migration = user.volume.archiver.migration
        assert "'file'" in migration.remarks[0]
        assert migration.failures_in_row == 0
    # The bytes that there are went to tape, and their hash is theirs.
    await assert_on_tape(rig, {"file": bytes(content), "other": b"goes with it"})


async def test_without_room_for_the_old_bytes_the_file_goes_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, assert_logs: Callable[..., Any]
) -> None:
    assert_logs(r"segment\.failed kind=SpoolMismatch", 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BeforeImages, "_put_aside", full)
    async with rig.mounted() as user:
        writer = Writer(user, "file", 3)
        await writer.open()
        while len(writer.model) < 44 * RECORD_BYTES:
            await writer.append()
        with monkeypatch.context() as while_copied:
            Disturbed(while_copied, writer.write_over)
            await user.sync()
        await writer.close()
        content = bytes(writer.model)
    await assert_on_tape(rig, {"file": content})


async def test_what_waits_to_be_hashed_is_bounded(
    rig: Rig, counted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(rig.config, unhashed_bytes=100_000)
    async with rig.mounted(config=config) as user:
        arrivals, go_on = user.volume.contents.arrivals, threading.Event()
        # Whoever does not wait: what has no room is read from the spool.
        monkeypatch.setattr(arrivals, "is_behind", lambda *_: False)
        arrivals._hasher.submit(go_on.wait)
        writer = Writer(user, "file", 4)
        await writer.open()
        for _ in range(50):
            await writer.append()
            assert arrivals._unhashed_bytes <= 100_000
        go_on.set()
        await writer.close()
    assert arrivals._unhashed_bytes == 0
    assert counted == [hashlib.sha256(writer.model).digest()]


async def test_who_writes_faster_than_is_hashed_waits_and_nobody_else(
    rig: Rig, counted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(rig.config, unhashed_bytes=100_000)
    async with rig.mounted(config=config) as user:
        arrivals, go_on = user.volume.contents.arrivals, threading.Event()
        waiting = trio.Event()
        honest = arrivals.wait_for_hashing

        async def wait_for_hashing() -> None:
            waiting.set()
            await honest()

        monkeypatch.setattr(arrivals, "wait_for_hashing", wait_for_hashing)
        writer, other = Writer(user, "file", 4), Writer(user, "small", 5)
        await writer.open()
        await other.open()
        while not arrivals.knows(writer.ino):
            await writer.append()
        arrivals._hasher.submit(go_on.wait, STUCK_S)

        async def write_much() -> None:
            for _ in range(50):
                await writer.append()

        with trio.fail_after(STUCK_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_much)
                await waiting.wait()
                length = len(writer.model)
                await other.append()
                await trio.testing.wait_all_tasks_blocked()
                assert other.model
                assert len(writer.model) == length
                go_on.set()
        assert len(writer.model) > length
        await writer.close()
        await other.close()
        content, small = bytes(writer.model), bytes(other.model)
    assert hashlib.sha256(content).digest() in counted
    await assert_on_tape(rig, {"file": content, "small": small})


async def test_who_waits_for_hashing_does_not_keep_the_mount_from_ending(rig: Rig) -> None:
    config = dataclasses.replace(rig.config, unhashed_bytes=100_000)
    async with rig.mounted(config=config) as user:
        arrivals = user.volume.contents.arrivals
        arrivals._unhashed_bytes += 90_000
        waiter = threading.Thread(target=arrivals._wait_for_hashing, daemon=True)
        waiter.start()
        waiter.join(0.1)
        assert waiter.is_alive()
    waiter.join(STUCK_S)
    assert not waiter.is_alive()


async def test_a_file_that_goes_to_tape_in_parts_is_hashed_no_more(rig: Rig) -> None:
    async with rig.mounted() as user:
        arrivals = user.volume.contents.arrivals
        writer = Writer(user, "file", 5)
        await writer.open()
        await writer.append()
        await writer.append()
        assert writer.ino in arrivals._hashes
        await user.sync()
        assert writer.ino not in arrivals._hashes
        await writer.append()
        assert writer.ino not in arrivals._hashes
        await writer.close()
        wanted = bytes(writer.model)
    await assert_on_tape(rig, {"file": wanted})


@pytest.mark.fuse
@pytest.mark.parametrize("seed", range(2))
def test_mapped_and_overlapping_writes_through_the_kernel(seed: int) -> None:
    """What the tape says that a file hashes to is what the file hashes to."""
    choice = random.Random(seed)
    with new_host() as host:
        host.format().mount()
        wanted = {}
        for name in ("appended", "mapped", "changed"):
            path, model = host.mountpoint / name, bytearray()
            with path.open("w+b", buffering=0) as stream:
                for _ in range(12):
                    data = choice.randbytes(choice.randrange(1, MIB))
                    stream.write(data)
                    model += data
                    at = choice.randrange(len(model))
                    if name == "changed" and choice.random() < 0.3:
                        stream.seek(at)
                        stream.write(b"other")
                        model[at : at + 5] = b"other"
                        stream.seek(0, os.SEEK_END)
                if name == "mapped":
                    with mmap.mmap(stream.fileno(), len(model)) as mapped:
                        for _ in range(20):
                            at = choice.randrange(len(model) - 5)
                            mapped[at : at + 5] = model[at : at + 5] = b"other"
            wanted[name] = hashlib.sha256(model).hexdigest()
        host.umount()
        host.forget()
        host.mount()
        for name, expected in wanted.items():
            path = host.mountpoint / name
            assert os.getxattr(path, "user.tapefs.sha256").decode() == expected
            assert hashlib.sha256(path.read_bytes()).hexdigest() == expected
        host.umount()
