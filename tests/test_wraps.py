"""Where the wraps of a tape end: the drive's answer, taken apart, and asked of a drive."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.drive import TapeDrive
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.target import Target
from tapefs.emulator.transport import TargetTransport
from tapefs.errors import MalformedData
from tapefs.scsi import cdb as c
from tapefs.scsi.wraps import pack_wraps, written_wrap_ends

if TYPE_CHECKING:
    from pathlib import Path

    from tapefs.scsi.completion import Completion, DataBuffer

BLOCK_BYTES = 4096
WRAPS = 208


def test_the_last_wrap_is_not_full() -> None:
    assert written_wrap_ends(pack_wraps([99, 205, 230])) == (100, 206)
    assert written_wrap_ends(pack_wraps([42])) == ()
    assert written_wrap_ends(pack_wraps([])) == ()


def test_the_bytes_of_an_answer() -> None:
    # Length; then wrap, partition, reserved and the last object of each.
    report = bytes.fromhex("001A 00000000 0000 0000 0000000000630001 0000 0000 0000000000CD")
    assert pack_wraps([0x63, 0xCD]) == report
    assert written_wrap_ends(report) == (0x64,)


def test_other_partitions_are_not_looked_at() -> None:
    other = bytes.fromhex("0002 0001 0000 000000000001")
    report = pack_wraps([10, 20])
    whole = (len(report) + len(other) - 2).to_bytes(2, "big") + report[2:] + other
    assert written_wrap_ends(whole) == (11,)


@pytest.mark.parametrize("blocks", [[10, 10, 20], [20, 10, 30], [10, 20, 5]])
def test_wraps_that_do_not_ascend_are_nonsense(blocks: list[int]) -> None:
    with pytest.raises(MalformedData, match="end before they start"):
        written_wrap_ends(pack_wraps(blocks))


def test_wraps_out_of_order_are_nonsense() -> None:
    report = pack_wraps([10, 20, 30])
    with pytest.raises(MalformedData, match="wrap 1 after 0"):
        written_wrap_ends(report[:4] + report[16:28] + report[4:16] + report[28:])


@given(st.binary(max_size=80))
def test_any_answer_is_understood_or_refused(report: bytes) -> None:
    try:
        ends = written_wrap_ends(report)
    except MalformedData:
        return
    assert list(ends) == sorted(set(ends))


@pytest.mark.parametrize("text", ["A3 0C 00", "A3 1F 01", "A3 1F 45 00", "A3 1F 45 02 00 01"])
def test_other_questions_are_not_known(text: str) -> None:
    with pytest.raises(c.UnknownCommand):
        c.unpack(bytes.fromhex(text).ljust(12, b"\0"))


async def test_a_drive_tells_where_its_wraps_end(tmp_path: Path) -> None:
    # Ten blocks and their framing a wrap.
    wrap_bytes = 10 * (BLOCK_BYTES + 8)
    with VirtualCartridge.create(tmp_path / "x.tap", "lto8", WRAPS * wrap_bytes) as cartridge:
        drive = await TapeDrive.open(TargetTransport(Target(cartridge)))
        assert len(drive.wrap_ends) == 0
        await drive.rewind()
        for _ in range(35):
            await drive.write_block(array("B", bytes(BLOCK_BYTES)))
        await drive.write_filemarks(1)
        assert len(drive.wrap_ends) == 0, "as it was when the tape was loaded"
        await drive.wait_ready(1.0)
        assert [*drive.wrap_ends, drive.wrap_count] == [10, 20, 30, WRAPS]


@pytest.mark.parametrize("personality", ["lto5", "ait3", "plain"])
async def test_older_drives_are_not_asked(tmp_path: Path, personality: str) -> None:
    with VirtualCartridge.create(tmp_path / "x.tap", personality, 1 << 20) as cartridge:
        asked: list[bytes] = []

        class Watched(TargetTransport):
            async def execute(
                self, command: c.Command, data: DataBuffer | bytes | None = None
            ) -> Completion:
                asked.append(command.pack())
                return await super().execute(command, data)

        drive = await TapeDrive.open(Watched(Target(cartridge)))
        assert drive.wrap_ends == ()
        assert asked
        assert not any(cdb[0] == 0xA3 for cdb in asked)


async def test_a_drive_that_refuses_to_tell_is_read_in_block_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VirtualCartridge.create(tmp_path / "x.tap", "lto8", 1 << 20) as cartridge:
        target = Target(cartridge)
        monkeypatch.delitem(target._handlers, c.ReadEndOfWrapPosition)
        drive = await TapeDrive.open(TargetTransport(target))
        assert drive.wrap_ends == ()
