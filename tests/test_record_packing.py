"""Records are filled several at a time, and not before the hash of what stood there is taken."""

from __future__ import annotations

import hashlib
import random
import uuid
from typing import TYPE_CHECKING

import crc32c
import pytest

from tapefs.volume.notes import MemberNote
from tapefs.volume.pax import Member
from tapefs.volume.records import RecordBuffers, RecordPacker
from tapefs.volume.segment import Place, SegmentBuilder

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Any

RECORD_BYTES = 65536


class Source:
    """A file in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.fills: list[int] = []

    def fill(self, spaces: Sequence[memoryview], offset: int) -> None:
        self.fills.append(len(spaces))
        for space in spaces:
            space[:] = self._data[offset : offset + len(space)]
            offset += len(space)


@pytest.mark.parametrize("seed", range(20))
def test_spaces_are_the_next_bytes_of_the_records(seed: int) -> None:
    choice = random.Random(seed)
    packer = RecordPacker(RecordBuffers(64))
    wanted = bytearray()
    found: list[array[int]] = []
    while len(wanted) < 1000 or len(wanted) % 64:
        left = choice.randrange(1, 300) if len(wanted) < 1000 else 64 - len(wanted) % 64
        if choice.random() < 0.3:
            data = choice.randbytes(left)
            packer.put(data)
            wanted += data
        while choice.random() < 0.7 and len(wanted) < 1000:
            spaces = packer.spaces(left, choice.randrange(1, 6))
            assert 0 < sum(map(len, spaces)) <= left
            for space in spaces:
                space[:] = data = choice.randbytes(len(space))
                wanted += data
            for space in spaces:
                packer.advance(len(space))
        found += packer.take_full()
    found += packer.take_full()
    packer.finish()
    assert b"".join(record.tobytes() for record in found) == wanted
    assert packer.position == len(wanted)
    crcs = [crc32c.crc32c(record).to_bytes(4, "big") for record in found]
    assert packer.crcs == b"".join(crcs)


class LastFirst(RecordBuffers):
    """Gives out again what came back last."""

    def __init__(self, record_bytes: int) -> None:
        super().__init__(record_bytes)
        self._stack: list[array[int]] = []

    def take(self) -> array[int]:
        return self._stack.pop() if self._stack else super().take()

    def give_back(self, record: array[int]) -> None:
        self._stack.append(record)


class Behind:
    """An executor that does nothing before its result is waited for."""

    def submit(self, work: Callable[..., None], *words: Any) -> Future[None]:
        return _Late(work, words)  # type: ignore[return-value]

    def shutdown(self, *, wait: bool) -> None:
        pass


class _Late:
    def __init__(self, work: Callable[..., None], words: tuple[Any, ...]) -> None:
        self._work, self._words = work, words

    def result(self) -> None:
        self._work(*self._words)


@pytest.mark.parametrize("record_count", [1, 4, 5, 9, 23])
def test_a_record_is_not_filled_again_before_it_was_hashed(
    tmp_path: Path, record_count: int
) -> None:
    data = random.Random(record_count).randbytes(record_count * RECORD_BYTES + 77)
    buffers = LastFirst(RECORD_BYTES)
    place = Place(uuid.uuid4(), RECORD_BYTES, 1, 2, 0, (), 0, 0)
    builder = SegmentBuilder(place, buffers, tmp_path)
    builder._hasher = Behind()  # type: ignore[assignment]
    source = Source(data)
    written = bytearray()
    for record in builder.add_file(Member(b"file", size=len(data)), MemberNote(5), source):
        written += record.tobytes()
        buffers.give_back(record)  # the drive is as fast as can be
    builder.abandon()
    assert builder.archived.entry.sha256 == hashlib.sha256(data).digest()
    assert data[: len(written) - builder.archived.entry.position] in written
    assert max(source.fills) == min(4, record_count + 1)
