"""Sense data from known reports, and the reaction table row by row."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapefs import errors
from tapefs.errors import ExitCode, Fault, MalformedData
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
REACTIONS = [
    # key 0 and 1: flags outrank the code
    (Sense(filemark=True), s.FilemarkDetected, Reaction.RESULT),
    (Sense(K.NO_SENSE, 0x00, 0x01), s.FilemarkDetected, Reaction.RESULT),
    (Sense(K.RECOVERED_ERROR, 0x17, 0x01, filemark=True), s.FilemarkDetected, Reaction.RESULT),
    (Sense(filemark=True, end_of_medium=True), s.FilemarkDetected, Reaction.RESULT),
    (Sense(incorrect_length=True, information=3), s.IncorrectLength, Reaction.RESULT),
    (Sense(end_of_medium=True), s.EarlyWarning, Reaction.SUCCESS),
    (Sense(K.NO_SENSE, 0x00, 0x02, end_of_medium=True), s.EarlyWarning, Reaction.SUCCESS),
    (Sense(K.RECOVERED_ERROR, 0x0C, 0x00, end_of_medium=True), s.EarlyWarning, Reaction.SUCCESS),
    (Sense(K.NO_SENSE, 0x00, 0x07, end_of_medium=True), s.EarlyWarning, Reaction.SUCCESS),
    (Sense(K.NO_SENSE, 0x00, 0x04, end_of_medium=True), s.BeginningOfMedium, Reaction.RESULT),
    (Sense(K.NO_SENSE, 0x00, 0x05), s.EndOfData, Reaction.RESULT),
    (Sense(K.NO_SENSE, 0x00, 0x05, end_of_medium=True), s.EndOfData, Reaction.RESULT),
    (Sense(K.NO_SENSE, 0x00, 0x16), s.BecomingReady, Reaction.WAIT),
    (Sense(K.NO_SENSE, 0x00, 0x17), s.Recovered, Reaction.SUCCESS),
    (Sense(), s.Recovered, Reaction.SUCCESS),
    (Sense(K.RECOVERED_ERROR, 0x11, 0x00), s.Recovered, Reaction.SUCCESS),
    (Sense(K.RECOVERED_ERROR, 0x5D, 0x10), s.Recovered, Reaction.SUCCESS),
    # not ready
    (Sense(K.NOT_READY, 0x04, 0x01), s.BecomingReady, Reaction.WAIT),
    (Sense(K.NOT_READY, 0x04, 0x02), s.BecomingReady, Reaction.LOAD),
    (Sense(K.NOT_READY, 0x04, 0x12), s.NotReadyCondition, Reaction.STOP),
    (Sense(K.NOT_READY, 0x3A, 0x00), s.NoMedium, Reaction.NO_MEDIUM),
    (Sense(K.NOT_READY, 0x3A, 0x02), s.NoMedium, Reaction.NO_MEDIUM),
    # medium
    (Sense(K.MEDIUM_ERROR, 0x11, 0x00), s.MediumError, Reaction.RECOVER),
    (Sense(K.MEDIUM_ERROR, 0x0C, 0x00, end_of_medium=True), s.MediumError, Reaction.RECOVER),
    (Sense(K.MEDIUM_ERROR, 0x00, 0x02, end_of_medium=True), s.EndOfMedium, Reaction.RESULT),
    (Sense(K.MEDIUM_ERROR, 0x3B, 0x00), s.MediumError, Reaction.RECOVER),
    (Sense(K.MEDIUM_ERROR, 0x50, 0x00), s.MediumError, Reaction.READ_ONLY),
    (Sense(K.MEDIUM_ERROR, 0x77, 0x77), s.MediumError, Reaction.RECOVER),
    (Sense(K.HARDWARE_ERROR, 0x44, 0x00), s.HardwareError, Reaction.STOP),
    # requests
    (Sense(K.ILLEGAL_REQUEST, 0x20, 0x00), s.UnknownOpcode, Reaction.FALL_BACK),
    (Sense(K.ILLEGAL_REQUEST, 0x24, 0x00), s.IllegalRequest, Reaction.FALL_BACK),
    (Sense(K.ILLEGAL_REQUEST, 0x53, 0x02), s.IllegalRequest, Reaction.ALLOW),
    # unit attentions
    (Sense(K.UNIT_ATTENTION, 0x28, 0x00), s.MediumChanged, Reaction.REMOUNT),
    (Sense(K.UNIT_ATTENTION, 0x29, 0x02), s.PowerOnReset, Reaction.REMOUNT),
    (Sense(K.UNIT_ATTENTION, 0x2A, 0x01), s.ModeParametersChanged, Reaction.RESELECT),
    (Sense(K.UNIT_ATTENTION, 0x5A, 0x01), s.EjectRequested, Reaction.ALLOW),
    (Sense(K.UNIT_ATTENTION, 0x2A, 0x03), s.UnitAttention, Reaction.REMOUNT),
    # protection
    (Sense(K.DATA_PROTECT, 0x27, 0x00), s.WriteProtectedCondition, Reaction.READ_ONLY),
    (Sense(K.DATA_PROTECT, 0x74, 0x01), s.DataProtect, Reaction.STOP),
    # blank check: the key decides, flags and code may say anything
    (Sense(K.BLANK_CHECK, 0x00, 0x05), s.EndOfData, Reaction.RESULT),
    (Sense(K.BLANK_CHECK, 0x00, 0x00, end_of_medium=True), s.EndOfData, Reaction.RESULT),
    (Sense(K.BLANK_CHECK, 0x00, 0x05, filemark=True), s.EndOfData, Reaction.RESULT),
    (Sense(K.BLANK_CHECK, 0x14, 0x03), s.BlankCheck, Reaction.READ_ONLY),
    # the rest
    (Sense(K.ABORTED_COMMAND, 0x47, 0x00), s.AbortedCommand, Reaction.RETRY),
    (Sense(K.ABORTED_COMMAND, 0x4E, 0x00), s.OverlappedCommands, Reaction.STOP),
    (Sense(K.VOLUME_OVERFLOW, 0x00, 0x02, end_of_medium=True), s.EndOfMedium, Reaction.FULL),
    (Sense(K.MISCOMPARE, 0x1D, 0x00), s.Unclassified, Reaction.STOP),
]


@pytest.mark.parametrize(
    ("sense", "condition", "reaction"), REACTIONS, ids=lambda v: getattr(v, "code", None)
)
def test_reaction(sense: Sense, condition: type[s.CheckCondition], reaction: Reaction) -> None:
    found = check_condition(sense, "SPACE(6)")
    assert (type(found), found.reaction) == (condition, reaction)
    assert "SPACE(6)" in str(found)


def test_every_row_can_be_reached_and_every_reaction_has_advice() -> None:
    assert len({(row.key, row.asc, row.ascq) for row in s.REACTIONS}) == len(s.REACTIONS)
    for row in s.REACTIONS:
        sense = Sense(row.key, row.asc or 0, row.ascq if row.ascq is not None else 0x7F)
        if row.asc is None:
            sense = Sense(row.key, 0xEE, 0xEE)
        assert s.reaction_row(sense) == row
    for reaction in Reaction:
        assert any(row.reaction is reaction for row in s.REACTIONS), reaction


def test_a_deferred_error_carries_what_it_defers() -> None:
    found = check_condition(Sense(K.MEDIUM_ERROR, 0x0C, 0x00, deferred=True), "WRITE(6)")
    assert isinstance(found, s.DeferredError)
    assert type(found.condition) is s.MediumError
    assert found.reaction is Reaction.RECOVER


@pytest.mark.parametrize(
    ("sense", "root", "errno_value", "exit_code", "fault"),
    [
        (Sense(K.VOLUME_OVERFLOW), errors.VolumeFull, errno.ENOSPC, ExitCode.FULL, Fault.OPERATOR),
        (
            Sense(K.MEDIUM_ERROR, 0x11),
            errors.MediumFailed,
            errno.EIO,
            ExitCode.DRIVE_ERROR,
            Fault.MEDIUM,
        ),
        (Sense(K.HARDWARE_ERROR), errors.DriveFailed, errno.EIO, ExitCode.DRIVE_ERROR, Fault.DRIVE),
        (
            Sense(K.NOT_READY, 0x3A),
            errors.NotReady,
            errno.ENOMEDIUM,
            ExitCode.NOT_READY,
            Fault.OPERATOR,
        ),
        (
            Sense(K.DATA_PROTECT, 0x27),
            errors.WriteProtected,
            errno.EROFS,
            ExitCode.WRITE_PROTECTED,
            Fault.OPERATOR,
        ),
        (
            Sense(K.UNIT_ATTENTION, 0x28),
            errors.WrongTape,
            errno.EIO,
            ExitCode.WRONG_TAPE,
            Fault.OPERATOR,
        ),
        (
            Sense(K.UNIT_ATTENTION, 0x29),
            errors.DriveGone,
            errno.ENODEV,
            ExitCode.UNPLUGGED,
            Fault.DRIVE,
        ),
        (Sense(K.ABORTED_COMMAND, 0x4E), errors.DriveFailed, errno.EIO, ExitCode.BUG, Fault.BUG),
    ],
    ids=lambda v: getattr(v, "code", None),
)
def test_upper_layers_need_not_know_scsi(
    sense: Sense,
    root: type[errors.TapefsError],
    errno_value: int,
    exit_code: ExitCode,
    fault: Fault,
) -> None:
    found = check_condition(sense)
    assert isinstance(found, root)
    assert errors.errno_of(found) == errno_value
    assert (found.exit_code, found.fault) == (exit_code, fault)
