"""The cartridge file: what is written can be read by another reader, and damage is recognised."""

from __future__ import annotations

import itertools
import os
import stat
import struct
from typing import TYPE_CHECKING

import pytest
import tap_reader
from hypothesis import given, settings
from hypothesis import strategies as st

from tapefs.emulator import cartridge_memory, medium
from tapefs.emulator.cartridge_memory import CartridgeMemory, memory_path
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.tap import FILEMARKS_IN_A_ROW_MAX, RECORD_BYTES_MAX
from tapefs.errors import DamagedTape, DriveBusy, MediumFailed, NoDrive, StateUnusable, UsageError

if TYPE_CHECKING:
    from pathlib import Path

CAPACITY_BYTES = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cartridge.tap"


def create(path: Path) -> VirtualCartridge:
    return VirtualCartridge.create(path, "lto5", CAPACITY_BYTES)


def fill(cartridge: VirtualCartridge, content: list[bytes | None]) -> None:
    """Records that follow one another at once."""
    for is_mark, run in itertools.groupby(content, lambda item: item is None):
        items = list(run)
        if is_mark:
            cartridge.append_filemarks(len(items))
        else:
            cartridge.append_records([item for item in items if item is not None])


def content_of(cartridge: VirtualCartridge) -> list[bytes | None]:
    content: list[bytes | None] = []
    for block in range(cartridge.object_count):
        if cartridge.is_filemark(block):
            content.append(None)
            continue
        buffer = bytearray(100_000)
        record = cartridge.read_record(block, memoryview(buffer))
        assert record.readable
        content.append(bytes(buffer[: record.length_bytes]))
    return content


def frame(data: bytes, word: int | None = None) -> bytes:
    length = struct.pack("<I", len(data) if word is None else word)
    return length + data + b"\0" * (len(data) % 2) + length


SAMPLE = [b"label", None, b"x" * 1024, b"odd" * 101, None, None, b"tail"]


def test_another_reader_sees_what_was_written(path: Path) -> None:
    with create(path) as cartridge:
        fill(cartridge, SAMPLE)
    assert list(tap_reader.objects(path)) == SAMPLE
    assert list(tap_reader.tape_files(path)) == [
        [b"label"],
        [b"x" * 1024, b"odd" * 101],
        [],
        [b"tail"],
    ]


def test_reopened_cartridge_is_the_same(path: Path) -> None:
    with create(path) as cartridge:
        fill(cartridge, SAMPLE)
        end_bytes = cartridge.end_bytes
    with VirtualCartridge.open(path) as cartridge:
        assert content_of(cartridge) == SAMPLE
        assert (cartridge.object_count, cartridge.filemark_count) == (7, 3)
        assert cartridge.end_bytes == end_bytes == path.stat().st_size
        assert [cartridge.filemark(i) for i in range(3)] == [1, 4, 5]
        assert [cartridge.filemarks_before(i) for i in range(8)] == [0, 0, 1, 1, 1, 2, 3, 3]


OBJECTS = st.lists(st.none() | st.binary(min_size=1, max_size=40), max_size=12)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 12), OBJECTS), min_size=1, max_size=5))
def test_any_history_of_cuts_and_appends(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, list[bytes | None]]]
) -> None:
    path = tmp_path_factory.mktemp("history") / "c.tap"
    model: list[bytes | None] = []
    create(path).close()
    for wanted_cut, appended in steps:
        with VirtualCartridge.open(path) as cartridge:
            cut = min(wanted_cut, len(model))
            cartridge.truncate(cut)
            fill(cartridge, appended)
            model[cut:] = appended
            assert content_of(cartridge) == model
            assert cartridge.filemark_count == model.count(None)
        assert list(tap_reader.objects(path)) == model


def test_records_of_the_largest_and_smallest_size(path: Path) -> None:
    large = bytes(range(256)) * (RECORD_BYTES_MAX // 256 + 1)
    with create(path) as cartridge:
        cartridge.append_records([memoryview(large)[:RECORD_BYTES_MAX]])
        cartridge.append_records([b"1"])
        for wrong in (b"", large):
            with pytest.raises(ValueError, match="cannot be written"):
                cartridge.append_records([b"good", wrong])
        assert cartridge.object_count == 2
    with VirtualCartridge.open(path) as cartridge:
        buffer = memoryview(bytearray(RECORD_BYTES_MAX))
        assert cartridge.read_record(0, buffer).length_bytes == RECORD_BYTES_MAX
        assert buffer == large[:RECORD_BYTES_MAX]
        assert cartridge.read_record(1, buffer).length_bytes == 1


@pytest.mark.parametrize("room", [0, 1, 100, 302, 303, 304, 305, 1000])
def test_a_read_gives_what_the_buffer_has_room_for(path: Path, room: int) -> None:
    data = os.urandom(303)
    with create(path) as cartridge:
        fill(cartridge, [b"before", data, b"after"])
        buffer = bytearray(b"\xaa" * room)
        assert cartridge.read_record(1, memoryview(buffer)).length_bytes == 303
        assert buffer[:303] == data[:room]
        assert not buffer[304:].strip(b"\xaa"), "nothing behind record and padding is touched"


def test_a_second_opener_is_told_that_the_cartridge_is_in_use(path: Path) -> None:
    with create(path):
        for read_only in (False, True):
            with pytest.raises(DriveBusy, match="in use by another process"):
                VirtualCartridge.open(path, read_only=read_only)
    with (
        VirtualCartridge.open(path, read_only=True),
        VirtualCartridge.open(path, read_only=True) as reader,
    ):
        assert reader.write_protected


def test_names_that_are_no_cartridge(path: Path, tmp_path: Path) -> None:
    with pytest.raises(NoDrive, match="no cartridge at"):
        VirtualCartridge.open(path)
    with pytest.raises(UsageError, match="is a directory"):
        VirtualCartridge.open(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="no regular file"):
        VirtualCartridge.open(tmp_path / "fifo")
    with pytest.raises(StateUnusable, match="cannot be opened"):
        VirtualCartridge.open(tmp_path / ("n" * 300))
    create(path).close()
    with pytest.raises(UsageError, match="exists already"):
        create(path)
    with pytest.raises(StateUnusable, match="no cartridge can be made"):
        create(tmp_path / "missing" / "c.tap")


@pytest.mark.parametrize("kept", range(1, 8 + 12))
def test_a_record_cut_off_by_a_crash_is_end_of_data(path: Path, kept: int) -> None:
    torn = frame(b"x" * 12)[:kept]
    path.write_bytes(frame(b"whole") + bytes(4) + torn)
    with VirtualCartridge.open(path) as cartridge:
        assert content_of(cartridge) == [b"whole", None]
        cartridge.append_records([b"next"])
    assert list(tap_reader.objects(path)) == [b"whole", None, b"next"]


def test_a_last_record_whose_trailer_never_arrived_is_end_of_data(path: Path) -> None:
    path.write_bytes(frame(b"whole") + frame(b"x" * 12)[:-4] + bytes(4))
    with VirtualCartridge.open(path) as cartridge:
        assert content_of(cartridge) == [b"whole"]


def test_unwritten_zeros_at_the_end_are_one_filemark(path: Path) -> None:
    path.write_bytes(frame(b"whole"))
    for extra in (4 * FILEMARKS_IN_A_ROW_MAX + 1, 1 << 40):
        os.truncate(path, len(frame(b"whole")) + extra)
        with VirtualCartridge.open(path) as cartridge:
            assert content_of(cartridge) == [b"whole", None]
    with VirtualCartridge.open(path) as cartridge:
        cartridge.append_records([b"next"])
    assert list(tap_reader.objects(path)) == [b"whole", None, b"next"]


DAMAGED = {
    "length word changed in the middle": frame(b"a" * 10, word=12) + frame(b"b"),
    "trailer disagrees": frame(b"a" * 10)[:-4] + struct.pack("<I", 9) + frame(b"b"),
    "the same, and the last record is torn besides": frame(b"a" * 10)[:-4]
    + struct.pack("<I", 9)
    + frame(b"b")
    + frame(b"torn" * 9)[:20],
    "length points behind the end": frame(b"a" * 10, word=5000) + frame(b"b" * 20) + bytes(8),
    "the same, before an end-of-medium word": frame(b"a" * 10, word=5000)
    + frame(b"b" * 20)
    + b"\xff" * 4,
    "reserved record class": frame(b"a" * 10, word=0x1000000A),
    "erase gap": frame(b"a") + b"\xfe\xff\xff\xff" + frame(b"b"),
    "text file": b"This is no tape image at all, but somebody's letter.\n",
    "record longer than any drive writes": struct.pack("<I", 0x0F000000) + bytes(64),
}


@pytest.mark.parametrize("image", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_refused_with_a_sentence(path: Path, image: bytes) -> None:
    path.write_bytes(frame(b"label") + image)
    with pytest.raises(DamagedTape, match="use an intact copy"):
        VirtualCartridge.open(path)


def test_more_filemarks_than_any_tape_has_are_refused(path: Path) -> None:
    path.write_bytes(frame(b"label"))
    os.truncate(path, 4 * FILEMARKS_IN_A_ROW_MAX + 1000)
    with path.open("ab") as file:
        file.write(frame(b"more"))
    with pytest.raises(DamagedTape, match="filemarks in a row"):
        VirtualCartridge.open(path)


@settings(max_examples=150, deadline=None)
@given(
    image=st.binary(max_size=64)
    | st.lists(
        st.sampled_from(
            [b"\0" * 4, b"\xff" * 4, b"\x02\0\0\0", b"ab", b"\x03\0\0\0", b"abc\0", b"\x02\0\0\x80"]
        ),
        max_size=12,
    ).map(b"".join)
)
def test_any_bytes_open_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, image: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "c.tap"
    path.write_bytes(image)
    try:
        cartridge = VirtualCartridge.open(path)
    except DamagedTape:
        return
    with cartridge:
        assert cartridge.end_bytes <= len(image)
        cartridge.truncate(cartridge.object_count)
        cartridge.append_filemarks(1)
        last = cartridge.object_count - 1
        assert cartridge.is_filemark(last)


def test_end_of_medium_word_ends_the_data(path: Path) -> None:
    path.write_bytes(frame(b"a") + b"\xff" * 4 + frame(b"from an older use"))
    with VirtualCartridge.open(path) as cartridge:
        assert content_of(cartridge) == [b"a"]
        cartridge.append_records([b"b"])
    assert list(tap_reader.objects(path)) == [b"a", b"b"]


def test_a_record_marked_bad_says_so(path: Path) -> None:
    path.write_bytes(frame(b"good") + frame(b"bad!", word=0x80000004) + frame(b"good"))
    with VirtualCartridge.open(path) as cartridge:
        buffer = memoryview(bytearray(10))
        assert [cartridge.read_record(i, buffer).readable for i in range(3)] == [True, False, True]


def test_an_image_changed_under_us_is_noticed(path: Path) -> None:
    with create(path) as cartridge:
        fill(cartridge, [b"a" * 10, b"b" * 10])
        buffer = memoryview(bytearray(10))
        path.write_bytes(frame(b"c" * 8) + frame(b"d" * 12))
        with pytest.raises(MediumFailed, match="changed by somebody else"):
            cartridge.read_record(0, buffer)
        os.truncate(path, 20)
        with pytest.raises(MediumFailed, match="changed by somebody else"):
            cartridge.read_record(1, buffer)


def test_a_full_disk_leaves_the_image_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev

    def short(fd: int, buffers: list[bytes], offset: int) -> int:
        return real(fd, [b"".join(buffers)[:50]], offset)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with create(path) as cartridge:
        fill(cartridge, [b"first", None])
        for failure in (short, full):
            monkeypatch.setattr(os, "pwritev", failure)
            with pytest.raises(MediumFailed, match="make room"):
                cartridge.append_records([b"x" * 30, b"x" * 100])
            assert list(tap_reader.objects(path)) == [b"first", None]
        monkeypatch.setattr(os, "pwritev", real)
        cartridge.append_records([b"second"])
    assert list(tap_reader.objects(path)) == [b"first", None, b"second"]


def test_protection_by_mode_bits_and_by_the_chip(path: Path) -> None:
    create(path).close()
    path.chmod(stat.S_IRUSR)
    with VirtualCartridge.open(path) as cartridge:
        assert cartridge.write_protected
    path.chmod(0o644)
    memory = cartridge_memory.load(memory_path(path))
    assert memory is not None
    memory.write_protected = True
    cartridge_memory.save(memory_path(path), memory)
    with VirtualCartridge.open(path) as cartridge:
        assert cartridge.write_protected


def test_the_chip_counts_loads_and_tells_of_writes(path: Path) -> None:
    create(path).close()

    def seen() -> tuple[int, int]:
        memory = cartridge_memory.load(memory_path(path))
        assert memory is not None
        return memory.load_count, memory.volume_change_reference

    assert seen() == (0, 0)
    with VirtualCartridge.open(path) as cartridge:
        cartridge.count_load()
        assert seen() == (1, 0)
        cartridge.append_records([b"a"])
        assert seen() == (1, 1), "before anybody could see the data"
        cartridge.append_records([b"b"])
        cartridge.truncate(0)
        assert seen() == (1, 1)
        cartridge.count_load()
        cartridge.append_records([b"c"])
        assert seen() == (2, 2)


def test_the_host_writes_while_more_comes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medium, "_WRITE_OUT_BYTES", 10_000)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _fd, start, count, _: told.append((start, count))
    )
    with VirtualCartridge.create(path, "lto5", 1 << 20) as cartridge:
        for _ in range(10):
            cartridge.append_records([bytes(4000)])
        cartridge.truncate(2)
        for _ in range(10):
            cartridge.append_records([bytes(4000)])
    # Three records make enough; where the tape was cut, it begins again.
    span = 4008
    assert told == [(at * span, 3 * span) for at in (0, 3, 6, 2, 5, 8)]


def test_sync_reaches_the_disk_only_when_something_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fdatasync

    def counted(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    with create(path) as cartridge:
        cartridge.sync()
        assert not synced
        cartridge.append_records([b"a"])
        cartridge.sync()
        cartridge.sync()
        assert len(synced) == 1
        cartridge.truncate(0)
        cartridge.sync()
        assert len(synced) == 2


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"personality": "lto5"}',
        b'{"personality": 5, "capacity_bytes": 1, "serial": "x"}',
        b'{"personality": "lto5", "capacity_bytes": -1, "serial": "x"}',
        b'{"personality": "lto5", "capacity_bytes": true, "serial": "x"}',
    ],
)
def test_a_garbled_chip_is_refused_with_a_sentence(path: Path, text: bytes) -> None:
    create(path).close()
    memory_path(path).write_bytes(text)
    with pytest.raises(DamagedTape, match="delete it to have"):
        VirtualCartridge.open(path)


def test_an_image_without_a_chip_gets_one(path: Path) -> None:
    path.write_bytes(frame(b"found"))
    default = CartridgeMemory("ait3", 12345, "ABC")
    with VirtualCartridge.open(path, default=default) as cartridge:
        assert cartridge.memory == default
    assert not memory_path(path).exists(), "opening alone changes nothing"
    with VirtualCartridge.open(path) as first:
        serial = first.memory.serial
    with VirtualCartridge.open(path) as again:
        assert again.memory.serial == serial
        again.count_load()
    assert cartridge_memory.load(memory_path(path)) == again.memory


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"hi\n", id="shorter than a word"),
        pytest.param(bytes.fromhex("1f8b080000000000") + b"\x5a" * 300, id="gzip"),
        pytest.param("a letter".encode("utf-16-le"), id="UTF-16"),
    ],
)
def test_what_is_no_image_is_no_blank_cartridge(path: Path, content: bytes) -> None:
    """Its first word passes for the length of a record that a crash cut off."""
    path.write_bytes(content)
    with pytest.raises(DamagedTape, match="nothing in it is a record; name another file"):
        VirtualCartridge.open(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\xff" * 4, b"\xff" * 4 + b"left over"])
def test_an_image_without_anything_is_blank(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with VirtualCartridge.open(path) as cartridge:
        assert cartridge.object_count == 0


def test_a_field_of_a_later_version_is_ignored(path: Path) -> None:
    create(path).close()
    chip = memory_path(path)
    chip.write_text(chip.read_text().replace("{", '{"colour": "red",', 1))
    with VirtualCartridge.open(path) as cartridge:
        assert cartridge.memory.capacity_bytes == CAPACITY_BYTES
