"""Sense data from known reports, and the reaction table row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs.errors import MalformedData
from tapefs.scsi import sense as s
from tapefs.scsi.sense import Reaction, Sense, SenseKey, check_condition


def fixed(text: str) -> Sense:
    return Sense.unpack(bytes.fromhex(text))


def test_filemark_in_fixed_format() -> None:
    report = fixed("F0 00 80 00 00 20 00 0A 00 00 00 00 00 01 00 00 00 00")
    assert report == Sense(SenseKey.NO_SENSE, 0x00, 0x01, filemark=True, information=0x2000)
    assert report.valid
    assert report.code == "0/00/01"


def test_information_of_an_overlength_block_is_negative() -> None:
    report = fixed("F0 00 20 FF FF FE 0C 0A 00 00 00 00 00 00 00 00 00 00")
    assert report == Sense(incorrect_length=True, information=-500)


def test_information_without_valid_bit_means_nothing() -> None:
    report = fixed("70 00 48 00 00 20 00 0A 00 00 00 00 00 05 00 00 00 00")
    assert report.information is None
    assert not report.valid
    assert (report.key, report.end_of_medium) == (SenseKey.BLANK_CHECK, True)


def test_bytes_behind_the_additional_length_are_not_believed() -> None:
    report = fixed("70 00 03 00 00 00 00 04 00 00 00 00 0C 02 FF FF FF FF")
    assert (report.asc, report.ascq, report.key_specific) == (0, 0, None)


def test_progress_and_deferred() -> None:
    report = fixed("71 00 02 00 00 00 00 0A 00 00 00 00 04 01 00 80 80 00")
    assert report.deferred
    assert report.progress == 0.5
    assert fixed("70 00 05 00 00 00 00 0A 00 00 00 00 24 00 00 C0 00 04").progress is None


def test_descriptor_format() -> None:
    text = "72 00 00 01 14 00 00 14 00 0A 80 00 00 00 00 00 00 00 20 00 04 02 00 C0" + "00" * 4
    report = fixed(text)
    assert report == Sense(
        SenseKey.NO_SENSE, 0x00, 0x01, filemark=True, end_of_medium=True, information=0x2000
    )
    report = fixed("73 03 0C 00 00 00 00 08 02 06 00 00 80 40 00 00")
    assert (report.key, report.deferred, report.key_specific) == (3, True, b"\x80\x40\x00")
    assert fixed("72 05 20 00") == Sense(SenseKey.ILLEGAL_REQUEST, 0x20)


@pytest.mark.parametrize("text", ["", "70 00", "72 05 20", "7F" + "00" * 17, "00" * 18])
def test_what_is_no_sense_data_is_malformed(text: str) -> None:
    with pytest.raises(MalformedData, match="sense data"):
        Sense.unpack(bytes.fromhex(text))


SENSES = st.builds(
    Sense,
    key=st.sampled_from(SenseKey),
    asc=st.integers(0, 255),
    ascq=st.integers(0, 255),
    filemark=st.booleans(),
    end_of_medium=st.booleans(),
    incorrect_length=st.booleans(),
    information=st.none() | st.integers(-(1 << 31), (1 << 31) - 1),
    deferred=st.booleans(),
    key_specific=st.none()
    | st.binary(min_size=3, max_size=3).map(lambda b: bytes((b[0] | 0x80,)) + b[1:]),
)


@given(SENSES)
def test_pack_and_unpack(sense: Sense) -> None:
    assert Sense.unpack(sense.pack()) == sense


def test_information_beyond_32_bits_is_left_out() -> None:
    assert Sense.unpack(Sense(information=1 << 31).pack()).information is None
    assert Sense.unpack(Sense(information=(1 << 31) - 1).pack()).information == (1 << 31) - 1


@given(st.binary(max_size=40))
def test_any_bytes_give_sense_or_malformed(report: bytes) -> None:
    try:
        sense = Sense.unpack(report)
    except MalformedData:
        return
    assert isinstance(check_condition(sense), s.CheckCondition)


@given(SENSES)
def test_every_sense_has_a_condition_with_a_sentence(sense: Sense) -> None:
    condition = check_condition(sense, "WRITE(6)")
    assert condition.sense is sense
    assert sense.code in str(condition)
    assert "; " in str(condition)
    assert isinstance(condition, s.DeferredError) == sense.deferred


K = SenseKey


def test_a_deferred_error_carries_what_it_defers() -> None:
    found = check_condition(Sense(K.MEDIUM_ERROR, 0x0C, 0x00, deferred=True), "WRITE(6)")
    assert isinstance(found, s.DeferredMediumError)
    assert type(found.condition) is s.MediumError
    assert found.reaction is Reaction.RECOVER
