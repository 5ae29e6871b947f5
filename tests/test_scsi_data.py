"""Parameter data against known bytes, there and back, and with everything cut short."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.errors import MalformedData
from tapefs.scsi import data as d
from tapefs.scsi.attributes import MediumAttributes
from tapefs.scsi.log import (
    KIB,
    MIB,
    AlertSubject,
    CompressionRatios,
    DeviceStatistics,
    ErrorCounters,
    LogPage,
    TapeAlert,
    TapeCapacity,
    VolumeStatistics,
    alert_subject,
    alert_text,
    cleaning_requested,
    supported_pages,
)

INQUIRY = bytes.fromhex("01 80 05 02 1F 00 00 00") + b"HP      Ultrium 5-SCSI  Z39W"


def test_standard_inquiry() -> None:
    inquiry = d.StandardInquiry.unpack(INQUIRY)
    assert inquiry == d.StandardInquiry("HP", "Ultrium 5-SCSI", "Z39W")
    assert inquiry.pack() == INQUIRY
    disk = d.StandardInquiry.unpack(b"\x20\x00" + INQUIRY[2:] + b"vendor bytes")
    assert (disk.device_type, disk.qualifier, disk.removable) == (0, 1, False)


def test_control_characters_of_a_device_never_reach_the_terminal() -> None:
    hostile = INQUIRY[:8] + b"\x1b[2J\xff\x00\x00\x00" + INQUIRY[16:]
    assert d.StandardInquiry.unpack(hostile).vendor == "?[2J?"


def test_vital_product_data() -> None:
    serial = d.UnitSerialNumber("HU1043ABCD")
    assert serial.pack() == bytes.fromhex("01 80 00 0A") + b"HU1043ABCD"
    assert d.UnitSerialNumber.unpack(serial.pack() + b"rest of the buffer") == serial
    assert d.UnitSerialNumber.unpack(bytes.fromhex("01 80 00 04") + b"  7 ").serial == "7"
    pages = d.SupportedPages((0x00, 0x80, 0x83))
    assert pages.pack() == bytes.fromhex("01 00 00 03 00 80 83")
    assert d.SupportedPages.unpack(pages.pack()) == pages
    with pytest.raises(MalformedData, match="page 00h instead of 80h"):
        d.UnitSerialNumber.unpack(pages.pack())


@pytest.mark.parametrize(
    ("text", "limits", "fits", "misfits"),
    [
        ("01 FF FF FE 00 02", d.BlockLimits(2, 0xFFFFFE, 1), [2, 524288], [1, 3, 0xFFFFFF]),
        ("00 80 00 00 00 01", d.BlockLimits(1, 0x800000), [1, 0x800000], [0, 0x800001]),
        ("09 10 00 00 00 04", d.BlockLimits(4, 0x100000, 9), [512, 524288], [4, 1000]),
        ("00 00 00 00 00 01", d.BlockLimits(1, 0), [1, 0xFFFFFF], [0, 0x1000000]),
    ],
)
def test_block_limits(
    text: str, limits: d.BlockLimits, fits: list[int], misfits: list[int]
) -> None:
    raw = bytes.fromhex(text)
    assert d.BlockLimits.unpack(raw) == limits
    assert limits.pack() == raw
    assert not limits.fixed_only
    assert all(limits.allow(size) for size in fits)
    assert not any(limits.allow(size) for size in misfits)


def test_block_limits_of_a_fixed_drive_and_of_a_mad_one() -> None:
    assert d.BlockLimits.unpack(bytes.fromhex("00 00 02 00 02 00")).fixed_only
    with pytest.raises(MalformedData, match="1024 to 512"):
        d.BlockLimits.unpack(bytes.fromhex("00 00 02 00 04 00"))


def test_mode_parameters_six() -> None:
    raw = bytes.fromhex("1B 32 90 08 46 00 00 00 00 00 02 00") + d.DeviceConfigurationPage().pack()
    modes = d.ModeParameters.unpack(raw)
    assert modes == d.ModeParameters(
        medium_type=0x32,
        write_protected=True,
        buffered_mode=1,
        descriptor=d.BlockDescriptor(0x46, 0, 512),
        pages=d.DeviceConfigurationPage().pack(),
    )
    assert modes.pack() == raw
    selecting = modes.pack(select=True)
    assert selecting[:4] == bytes.fromhex("00 32 10 08")
    assert d.ModeParameters.unpack(selecting, select=True).pages == modes.pages


def test_mode_parameters_ten() -> None:
    raw = bytes.fromhex("00 0E 00 10 00 00 00 08 58 00 00 00 00 00 00 00")
    modes = d.ModeParameters.unpack(raw, ten=True)
    assert modes.descriptor == d.BlockDescriptor(0x58)
    assert modes.pack(ten=True) == raw
    assert modes.pack(ten=True, select=True)[:2] == b"\0\0"


def test_bytes_behind_the_mode_data_are_not_pages() -> None:
    raw = bytes.fromhex("0B 00 10 08 46 00 00 00 00 00 00 00") + b"stale"
    assert d.ModeParameters.unpack(raw).pages == b""


def test_mode_pages_are_found_by_code_and_subpage() -> None:
    compression = d.DataCompressionPage(enabled=True, capable=True, algorithm=1)
    extension = bytes.fromhex("50 01 00 02 AA BB")
    pages = compression.pack() + extension + d.DeviceConfigurationPage(1, 300).pack()
    modes = d.ModeParameters(pages=pages)
    found = modes.page(0x0F)
    assert found is not None
    assert d.DataCompressionPage.unpack(found) == compression
    assert modes.page(0x10, 1) == extension
    found = modes.page(0x10)
    assert found is not None
    assert d.DeviceConfigurationPage.unpack(found) == d.DeviceConfigurationPage(1, 300)
    assert modes.page(0x11) is None
    assert d.ModeParameters(pages=pages[:-1]).page(0x10) is None


def test_mode_page_bytes() -> None:
    assert d.DataCompressionPage(True, True).pack() == bytes.fromhex("0F 0E C0 80" + "00" * 12)
    page = d.DeviceConfigurationPage(write_delay_100ms=0x012C, compression_algorithm=1)
    assert page.pack() == bytes.fromhex("10 0E 00 00 00 00 01 2C 40 00 08 00 00 00 01 00")


def test_short_position() -> None:
    raw = bytes.fromhex("40 01 00 00 00 00 12 34 00 00 12 30 00 00 00 04 00 04 00 00")
    position = d.ShortPosition.unpack(raw)
    assert position == d.ShortPosition(
        0x1234, 0x1230, 1, end=True, buffered_blocks=4, buffered_bytes=0x40000
    )
    assert position.pack() == raw
    unknown = d.ShortPosition.unpack(bytes.fromhex("14" + "00" * 19))
    assert unknown.unknown
    assert unknown.buffered_bytes is None
    assert d.ShortPosition.unpack(bytes(20)).unknown
    assert not d.ShortPosition.unpack(b"\x80" + bytes(19)).unknown


def test_long_position() -> None:
    raw = bytes.fromhex("80 00 00 00 00 00 00 00" + "00" * 7 + "05" + "00" * 7 + "02" + "00" * 8)
    position = d.LongPosition.unpack(raw)
    assert position == d.LongPosition(5, 2, beginning=True)
    assert position.pack() == raw
    # The second is what one known target answers: a position that it does not have.
    for flags in ("0C", "20"):
        nothing = d.LongPosition.unpack(bytes.fromhex(flags + "00" * 31))
        assert (nothing.block, nothing.file) == (None, None)
        assert d.LongPosition.unpack(nothing.pack()) == nothing


def test_log_page_bytes_and_a_cut_parameter() -> None:
    page = LogPage(0x31, {1: b"\0\0\1\0", 3: b"\0\0\2\0"})
    raw = bytes.fromhex("31 00 00 10 00 01 03 04 00 00 01 00 00 03 03 04 00 00 02 00")
    assert page.pack() == raw
    assert LogPage.unpack(raw + b"rest") == page
    assert LogPage.unpack(raw[:-1]).parameters == {1: b"\0\0\1\0"}
    assert (page.number(1), page.number(2)) == (256, None)


def test_capacity_in_the_units_that_drives_use() -> None:
    page = LogPage(0x31, {1: b"\0\0\1\0", 3: b"\0\0\2\0"})
    assert TapeCapacity.from_page(page) == TapeCapacity(256 * MIB, 512 * MIB)
    assert TapeCapacity.from_page(page, KIB) == TapeCapacity(256 * KIB, 512 * KIB)
    capacity = TapeCapacity(3 * MIB, 10 * MIB)
    assert TapeCapacity.from_page(LogPage.unpack(capacity.pack(KIB)), KIB) == capacity
    assert TapeCapacity.from_page(LogPage(0x31, {1: b"\1"})) is None
    assert TapeCapacity.from_page(LogPage(0x31, {1: b"\0", 3: b"\0"})) is None
    assert TapeCapacity.from_page(LogPage(0x17, page.parameters)) is None


def test_capacity_from_volume_statistics() -> None:
    def records(first: str, second: str) -> bytes:
        return bytes.fromhex(f"07 00 00 01 {second} 07 00 00 00 {first}")

    total, remaining = records("0000 0064", "0000 0001"), records("0000 000A", "0000 0002")
    page = LogPage(0x17, {0x202: total, 0x204: remaining})
    assert TapeCapacity.from_statistics(page) == TapeCapacity(10_000_000, 100_000_000)
    unknown = LogPage(0x17, {0x202: records("FFFF FFFF", "0000 0001"), 0x204: b""})
    assert TapeCapacity.from_statistics(unknown) is None
    looping = LogPage(0x17, {0x202: bytes(8), 0x204: bytes(8)})
    assert TapeCapacity.from_statistics(looping) is None


def test_tape_alert() -> None:
    alert = TapeAlert(frozenset({3, 20, 64}))
    assert TapeAlert.from_page(LogPage.unpack(alert.pack())) == alert
    assert TapeAlert.from_page(LogPage(0x2E, {0: b"\1", 65: b"\1", 4: b"\1", 5: b""})).flags == {4}
    assert [alert_text(flag) for flag in (20, 64)] == [
        "the drive needs cleaning now",
        "TapeAlert flag 64",
    ]
    assert alert_subject(20) is AlertSubject.CLEANING
    assert alert_subject(64) is AlertSubject.DRIVE


def test_error_counters_as_a_drive_sends_them() -> None:
    full = LogPage(0x02, {0: b"\7", 1: b"\2", 2: b"\0\5", 3: b"\0\0\0\x0a", 6: b"\1"})
    assert ErrorCounters.from_page(full) == ErrorCounters(10, 5, 1)
    without_sum = LogPage(0x03, {0: b"\7", 1: b"\2"})
    assert ErrorCounters.from_page(without_sum) == ErrorCounters(9, None, None)
    unknown = LogPage(0x03, {3: b"\xff\xff\xff\xff", 2: b"", 6: b"\1" * 40})
    assert ErrorCounters.from_page(unknown) == ErrorCounters(None, None, None)


def test_statistics_as_an_lto_drive_sends_them() -> None:
    # Parameters of an LTO-6 drive with a Fujifilm cartridge, as sg_logs shows them.
    volume = {0x01: 107, 0x04: 0, 0x09: 0, 0x10: 151_840, 0x11: 4_750_316, 0x101: 1686}
    page = LogPage(0x17, {code: number.to_bytes(4, "big") for code, number in volume.items()})
    assert VolumeStatistics.from_page(page) == VolumeStatistics(
        107, 0, 0, 151_840_000_000, 4_750_316_000_000, 1686
    )
    device = {0: 95, 1: 1, 2: 3921, 3: 5, 4: 87_631, 8: 2}
    page = LogPage(0x14, {code: number.to_bytes(8, "big") for code, number in device.items()})
    assert DeviceStatistics.from_page(page) == DeviceStatistics(95, 1, 3921, 5, 2)
    page = LogPage(0x1B, {0: b"\0\x72", 1: b"\0\0"})
    assert CompressionRatios.from_page(page) == CompressionRatios(114, 0)
    assert cleaning_requested(LogPage(0x0C, {0x100: b"\1"})) is True
    assert cleaning_requested(LogPage(0x0C, {0x100: bytes(8)})) is False
    assert cleaning_requested(LogPage(0x0C, {0: b"\1"})) is None


def test_attributes_of_a_chip() -> None:
    values = {0x0003: b"\0" * 7 + b"\x11", 0x0220: bytes(7) + b"\2", 0x0401: b"F" * 32}
    body = b"".join(
        code.to_bytes(2, "big") + b"\x80" + len(value).to_bytes(2, "big") + value
        for code, value in values.items()
    )
    data = len(body).to_bytes(4, "big") + body
    assert MediumAttributes.unpack(data) == MediumAttributes(17, 2 << 20, None)
    cut = data[: 4 + 13 + 8]
    assert MediumAttributes.unpack(cut) == MediumAttributes(17, None, None)
    with pytest.raises(MalformedData):
        MediumAttributes.unpack(b"\0\0\0")


Unpack = Callable[[bytes], object]
UNPACKERS: list[Unpack] = [
    d.StandardInquiry.unpack,
    d.SupportedPages.unpack,
    d.UnitSerialNumber.unpack,
    d.BlockLimits.unpack,
    d.BlockDescriptor.unpack,
    d.ModeParameters.unpack,
    lambda raw: d.ModeParameters.unpack(raw, ten=True).page(0x10),
    lambda raw: d.ModeParameters.unpack(raw, select=True).page(0x0F),
    d.DataCompressionPage.unpack,
    d.DeviceConfigurationPage.unpack,
    d.ShortPosition.unpack,
    d.LongPosition.unpack,
    LogPage.unpack,
    lambda raw: TapeAlert.from_page(LogPage.unpack(raw)).flags,
    supported_pages,
    MediumAttributes.unpack,
    lambda raw: TapeCapacity.from_statistics(LogPage(0x17, {0x202: raw, 0x204: raw})),
]


@pytest.mark.parametrize("unpack", UNPACKERS)
@given(raw=st.binary(max_size=80))
def test_any_bytes_are_an_answer_or_malformed(unpack: Unpack, raw: bytes) -> None:
    advice = "; power-cycle"
    try:
        unpack(raw)
    except MalformedData as error:
        advice = str(error)
    assert "; power-cycle" in advice


@pytest.mark.parametrize(
    ("unpack", "whole"),
    [
        (d.StandardInquiry.unpack, INQUIRY),
        (d.BlockLimits.unpack, bytes.fromhex("00 80 00 00 00 01")),
        (d.ModeParameters.unpack, bytes.fromhex("0B 00 10 08 46 00 00 00 00 00 00 00")),
        (d.ShortPosition.unpack, bytes(20)),
        (d.LongPosition.unpack, bytes(32)),
        (d.DataCompressionPage.unpack, d.DataCompressionPage().pack()),
        (d.DeviceConfigurationPage.unpack, d.DeviceConfigurationPage().pack()),
    ],
)
def test_one_byte_short_is_malformed(unpack: Unpack, whole: bytes) -> None:
    unpack(whole)
    with pytest.raises(MalformedData):
        unpack(whole[:-1])


def test_memoryviews_are_read_in_place_of_bytes() -> None:
    assert d.StandardInquiry.unpack(memoryview(INQUIRY)).vendor == "HP"


@given(
    st.builds(
        d.ShortPosition,
        block=st.integers(0, (1 << 32) - 1),
        last_block=st.integers(0, (1 << 32) - 1),
        partition=st.integers(0, 255),
        beginning=st.booleans(),
        end=st.booleans(),
        buffered_blocks=st.none() | st.integers(0, (1 << 24) - 1),
        buffered_bytes=st.none() | st.integers(0, (1 << 32) - 1),
        unknown=st.booleans(),
        error=st.booleans(),
        programmable_early_warning=st.booleans(),
    )
)
def test_short_position_round_trip(position: d.ShortPosition) -> None:
    unknown = position.unknown or not (position.block or position.beginning)
    expected = dataclasses.replace(position, unknown=unknown)
    assert d.ShortPosition.unpack(position.pack()) == expected


@given(
    st.builds(
        d.ModeParameters,
        medium_type=st.integers(0, 255),
        write_protected=st.booleans(),
        buffered_mode=st.integers(0, 7),
        speed=st.integers(0, 15),
        descriptor=st.none()
        | st.builds(
            d.BlockDescriptor,
            density=st.integers(0, 255),
            block_count=st.integers(0, (1 << 24) - 1),
            block_bytes=st.integers(0, (1 << 24) - 1),
        ),
        pages=st.binary(max_size=100),
    ),
    st.booleans(),
)
def test_mode_parameters_round_trip(modes: d.ModeParameters, ten: bool) -> None:
    assert d.ModeParameters.unpack(modes.pack(ten=ten), ten=ten) == modes


def test_what_does_not_fit_is_never_cut() -> None:
    with pytest.raises(OverflowError):
        d.StandardInquiry("TOO LONG A VENDOR", "", "").pack()
    with pytest.raises(OverflowError):
        d.BlockLimits(1 << 16, 1 << 20).pack()
