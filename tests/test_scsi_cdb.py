"""Command blocks against the bytes of the standard, and there and back for every value."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.scsi import cdb as c

# One known encoding per command, worked out by hand from SPC-4 and SSC-4.
KNOWN = [
    (c.TestUnitReady(), "00 00 00 00 00 00"),
    (c.Rewind(), "01 00 00 00 00 00"),
    (c.Rewind(immediate=True), "01 01 00 00 00 00"),
    (c.RequestSense(18), "03 00 00 00 12 00"),
    (c.ReadBlockLimits(), "05 00 00 00 00 00"),
    (c.Read6(0x123456), "08 00 12 34 56 00"),
    (c.Read6(2, fixed=True), "08 01 00 00 02 00"),
    (c.Read6(2, sili=True), "08 02 00 00 02 00"),
    (c.Write6(0x80000), "0A 00 08 00 00 00"),
    (c.Write6(3, fixed=True), "0A 01 00 00 03 00"),
    (c.WriteFilemarks6(0), "10 00 00 00 00 00"),
    (c.WriteFilemarks6(1), "10 00 00 00 01 00"),
    (c.WriteFilemarks6(0x010203, immediate=True), "10 01 01 02 03 00"),
    (c.Space6(c.SpaceCode.BLOCKS, -1), "11 00 FF FF FF 00"),
    (c.Space6(c.SpaceCode.FILEMARKS, 5), "11 01 00 00 05 00"),
    (c.Space6(c.SpaceCode.END_OF_DATA), "11 03 00 00 00 00"),
    (c.Inquiry(), "12 00 00 00 24 00"),
    (c.Inquiry(evpd=True, page=0x80, allocation_bytes=0x0140), "12 01 80 01 40 00"),
    (c.ModeSelect6(12), "15 10 00 00 0C 00"),
    (c.ModeSelect6(12, page_format=False), "15 00 00 00 0C 00"),
    (c.ModeSelect10(0x0110), "55 10 00 00 00 00 00 01 10 00"),
    (c.Reserve6(), "16 00 00 00 00 00"),
    (c.Release6(), "17 00 00 00 00 00"),
    (c.Erase6(), "19 00 00 00 00 00"),
    (c.Erase6(long=True, immediate=True), "19 03 00 00 00 00"),
    (c.ModeSense6(), "1A 00 00 00 0C 00"),
    (
        c.ModeSense6(0x10, 1, 255, c.PageControl.DEFAULT, no_block_descriptor=True),
        "1A 08 90 01 FF 00",
    ),
    (c.ModeSense10(0x0F, 0, 0x0203), "5A 00 0F 00 00 00 00 02 03 00"),
    (c.LoadUnload(load=True), "1B 00 00 00 01 00"),
    (c.LoadUnload(load=False), "1B 00 00 00 00 00"),
    (
        c.LoadUnload(load=True, retension=True, eot=True, hold=True, immediate=True),
        "1B 01 00 00 0F 00",
    ),
    (c.SendDiagnostic(), "1D 04 00 00 00 00"),
    (c.PreventAllowMediumRemoval(prevent=True), "1E 00 00 00 01 00"),
    (c.Locate10(0x01020304), "2B 00 00 01 02 03 04 00 00 00"),
    (c.Locate10(5, partition=1, immediate=True), "2B 03 00 00 00 00 05 00 01 00"),
    (c.Locate16(1 << 40), "92 00 00 00 00 00 01 00 00 00 00 00 00 00 00 00"),
    (
        c.Locate16(7, 2, c.LocateDestination.FILE),
        "92 0A 00 02 00 00 00 00 00 00 00 07 00 00 00 00",
    ),
    (c.ReadPosition(), "34 00 00 00 00 00 00 00 00 00"),
    (c.ReadPosition(c.PositionForm.LONG), "34 06 00 00 00 00 00 00 00 00"),
    (c.ReadPosition(c.PositionForm.EXTENDED), "34 08 00 00 00 00 00 00 20 00"),
    (c.ReportDensitySupport(media=True, allocation_bytes=100), "44 01 00 00 00 00 00 00 64 00"),
    (c.LogSelect(0x2E, reset=True), "4C 02 6E 00 00 00 00 00 00 00"),
    (c.LogSense(0x31, allocation_bytes=256), "4D 00 71 00 00 00 00 01 00 00"),
    (c.LogSense(0x10, 1, 8, c.LogControl.THRESHOLD, 9), "4D 00 10 01 00 00 09 00 08 00"),
    (c.ReadAttribute(0x0401), "8C 00 00 00 00 00 00 00 04 01 00 00 10 00 00 00"),
    (c.WriteAttribute(20, 1), "8D 01 00 00 00 00 00 01 00 00 00 00 00 14 00 00"),
    (
        c.Space16(c.SpaceCode.FILEMARKS, -2),
        "91 01 00 00 FF FF FF FF FF FF FF FE 00 00 00 00",
    ),
    (c.ReadEndOfWrapPosition(0x1804), "A3 1F 45 02 00 00 00 00 18 04 00 00"),
    (c.ReportLuns(16, 2), "A0 00 02 00 00 00 00 00 00 10 00 00"),
]


@pytest.mark.parametrize(
    ("command", "text"), KNOWN, ids=lambda v: str(v) if isinstance(v, str) else v.name
)
def test_known_bytes_both_ways(command: c.Command, text: str) -> None:
    cdb = bytes.fromhex(text)
    assert command.pack() == cdb
    assert c.unpack(cdb) == command
    assert len(cdb) == c.cdb_length_bytes(cdb[0])


def test_every_command_has_a_known_encoding() -> None:
    classes: set[object] = {
        value
        for value in vars(c).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }
    assert classes == {type(command) for command, _ in KNOWN}


@pytest.mark.parametrize("command", [command for command, _ in KNOWN], ids=lambda v: v.name)
def test_direction_agrees_with_transfer_length(command: c.Command) -> None:
    if command.direction is c.Direction.NONE:
        assert command.transfer_length_bytes == 0
    else:
        no_data = isinstance(command, c.LogSelect) or getattr(command, "fixed", False)
        assert command.transfer_length_bytes > 0 or no_data


MOVING = (
    c.Rewind, c.Read6, c.Write6, c.WriteFilemarks6, c.Space6, c.Space16, c.Locate10, c.Locate16,
    c.LoadUnload, c.Erase6, c.SendDiagnostic,
)  # fmt: skip


@pytest.mark.parametrize("command", [command for command, _ in KNOWN], ids=lambda v: v.name)
def test_what_moves_the_medium_and_how_long_it_may_take(command: c.Command) -> None:
    assert command.moves_medium == isinstance(command, MOVING)
    if command.moves_medium:
        assert command.timeout_s >= 900
    else:
        assert command.timeout_s >= 60


def test_fixed_mode_counts_blocks_but_transfers_bytes() -> None:
    assert c.Read6(4, fixed=True, block_bytes=512).transfer_length_bytes == 2048
    assert c.Write6(4, fixed=True, block_bytes=512).transfer_length_bytes == 2048
    assert c.Read6(4).transfer_length_bytes == 4
    assert c.Write6(4).transfer_length_bytes == 4


@pytest.mark.parametrize(
    ("command", "size_bytes"),
    [
        (c.ReadPosition(), 20),
        (c.ReadPosition(c.PositionForm.LONG), 32),
        (c.ReadPosition(c.PositionForm.EXTENDED), 32),
        (c.ReadBlockLimits(), 6),
        (c.Inquiry(), 36),
        (c.RequestSense(), 18),
        (c.LogSelect(), 0),
    ],
)
def test_transfer_lengths_the_standard_fixes(command: c.Command, size_bytes: int) -> None:
    assert command.transfer_length_bytes == size_bytes


@given(length=st.integers(0, 0xFFFFFF), fixed=st.booleans(), sili=st.booleans())
def test_read_round_trip(length: int, *, fixed: bool, sili: bool) -> None:
    command = c.Read6(length, fixed=fixed, sili=sili)
    assert c.unpack(command.pack()) == command


@given(count=st.integers(-(1 << 23), (1 << 23) - 1), code=st.sampled_from(c.SpaceCode))
def test_space_round_trip(count: int, code: c.SpaceCode) -> None:
    assert c.unpack(c.Space6(code, count).pack()) == c.Space6(code, count)
    wide = c.Space16(code, count << 40)
    assert c.unpack(wide.pack()) == wide


@given(block=st.integers(0, (1 << 32) - 1), partition=st.none() | st.integers(0, 255))
def test_locate_round_trip(block: int, partition: int | None) -> None:
    command = c.Locate10(block, partition)
    assert c.unpack(command.pack()) == command
    wide = c.Locate16(block << 32, partition, c.LocateDestination.END_OF_DATA)
    assert c.unpack(wide.pack()) == wide


def test_padding_to_twelve_bytes_is_ignored() -> None:
    assert c.unpack(c.Read6(1000).pack().ljust(12, b"\0")) == c.Read6(1000)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", c.UnknownCommand),
        ("FF 00 00 00 00 00", c.UnknownCommand),
        ("A3 0C 00 00 00 00 00 00 00 00 00 00", c.UnknownCommand),
        ("08 00 00 00", c.UnknownCommand),
        ("2B 00 00 00 00 00", c.UnknownCommand),
        ("11 0F 00 00 00 00", c.InvalidField),
        ("34 03 00 00 00 00 00 00 00 00", c.InvalidField),
        ("92 10 00 00 00 00 00 00 00 00 00 00 00 00 00 00", c.InvalidField),
    ],
)
def test_what_is_not_a_command_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(c.UnknownCommand) as caught:
        c.unpack(bytes.fromhex(text))
    assert type(caught.value) is error


@given(st.binary(max_size=16))
def test_any_bytes_give_a_command_or_a_refusal(cdb: bytes) -> None:
    try:
        command = c.unpack(cdb)
    except c.UnknownCommand:
        return
    assert c.unpack(command.pack()) == command


@pytest.mark.parametrize(
    "command",
    [c.Write6(1 << 24), c.Space6(c.SpaceCode.BLOCKS, 1 << 23), c.Locate10(1 << 32), c.Read6(-1)],
    ids=str,
)
def test_a_value_that_does_not_fit_is_never_cut(command: c.Command) -> None:
    with pytest.raises(OverflowError):
        command.pack()
