"""Several readers on a drive that takes its time, in virtual time: one search for each file."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from benchmarks.virtual_time import inline
from volume_rig import Rig

from tapefs.config import Config
from tapefs.emulator.transport import TargetTransport

if TYPE_CHECKING:
    from pathlib import Path

    from volume_rig import User

FILES = 12
FILE_BYTES = 2 << 20
REQUEST_BYTES = 128 << 10
# What a program needs between two reads.
THINKING_S = 0.0005


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's visit takes no time: while a thread runs, the virtual clock would."""
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)


async def filled(tmp_path: Path, **limits: Any) -> Rig:
    config = Config(settle_s=0.0, idle_s=3600.0, drive_check_s=1e9, **limits)
    rig = Rig(tmp_path, "ait3", 1 << 30, config)
    rig.wire = functools.partial(TargetTransport, paced=True)
    await rig.format()
    async with rig.mounted() as user:
        for number in range(FILES):
            await user.write(f"f{number}", random.Random(number).randbytes(FILE_BYTES))
    return rig


async def read(user: User, numbers: list[int], finished: list[int]) -> None:
    contents = user.volume.contents
    for number in numbers:
        ino = user.find(f"f{number}").ino
        await contents.open(ino, write=False)
        data = b""
        for at in range(0, FILE_BYTES, REQUEST_BYTES):
            data += await contents.read(ino, at, REQUEST_BYTES)
            await trio.sleep(THINKING_S)
        await contents.release(ino, write=False)
        assert data == random.Random(number).randbytes(FILE_BYTES)
        finished.append(number)


async def test_who_reads_on_is_not_left_for_others_who_wait(
    tmp_path: Path, autojump_clock: object
) -> None:
    rig = await filled(tmp_path)
    numbers = random.Random(1).sample(range(FILES), FILES)
    async with rig.mounted() as user:
        user.evict_everything()
        async with trio.open_nursery() as nursery:
            for reader in range(4):
                nursery.start_soon(read, user, numbers[reader::4], [])
        assert user.volume.recall.statistics().runs <= FILES


async def test_a_long_file_is_left_after_a_while_when_others_wait(
    tmp_path: Path, autojump_clock: object
) -> None:
    # A file takes a fifth of a second to read; the last one is not on the way.
    rig = await filled(tmp_path, recall_run_s=0.05, recall_overtaken_max=1)
    finished: list[int] = []
    async with rig.mounted() as user:
        user.evict_everything()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, user, [0], finished)
            await trio.sleep(0.01)
            nursery.start_soon(read, user, [FILES - 1], finished)
        assert user.volume.recall.statistics().runs >= 6
