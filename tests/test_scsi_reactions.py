"""The reaction table, row by row: sense bytes in; what it is, and what a drive then does.

The cases are the rules that vendors' manuals and Linux's st driver agree on, in the order of the
sense keys, written down here a second time and in bytes, so that neither table can drift alone.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio
from tape_rig import Rigs, buffer, record, write_files

from tapefs.errors import ExitCode, Fault, TapefsError, errno_of
from tapefs.scsi import cdb as c
from tapefs.scsi import sense as s
from tapefs.scsi.completion import Completion
from tapefs.scsi.sense import REACTIONS, Reaction, Sense, check_condition, reaction_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from log_police import Announcement

    from tapefs.drive import TapeDrive

FM, EOM, ILI = 0x80, 0x40, 0x20
CURRENT, DEFERRED = 0x70, 0x71


def fixed(code: str, flags: int = 0, missing: int | None = None, kind: int = CURRENT) -> bytes:
    """Fixed-format sense data, 18 bytes, for key/asc/ascq."""
    key, asc, ascq = (int(part, 16) for part in code.split("/"))
    valid = 0 if missing is None else 0x80
    information = (missing or 0).to_bytes(4, "big", signed=True)
    return (
        bytes((kind | valid, 0, flags | key))
        + information
        + bytes((10, 0, 0, 0, 0, asc, ascq))
        + bytes(4)
    )


def descriptors(code: str, flags: int = 0, missing: int | None = None, kind: int = 0x72) -> bytes:
    """The same in descriptor format."""
    key, asc, ascq = (int(part, 16) for part in code.split("/"))
    body = bytes((4, 2, 0, flags))
    if missing is not None:
        body += bytes((0, 10, 0x80, 0)) + missing.to_bytes(8, "big", signed=True)
    return bytes((kind, key, asc, ascq, 0, 0, 0, len(body))) + body


class Case(NamedTuple):
    """What comes in on which action, what it is, and what happens.

    `happens`, when the drive is in use: `done` returned after one command; `near end` the same,
    with early warning; `sent again` returned after two; `raised` and the position is still known;
    `lost` raised and the position is not; `doubt` raised, and nothing that moves the tape is sent
    any more; `without` the drive does without. When it is waited for: `waits`; `loads` and
    waits; `gives up` at once.
    """

    meaning: str
    sense: bytes
    action: str
    condition: type[s.CheckCondition]
    reaction: Reaction
    happens: str
    fault: Fault
    errno_value: int = errno.EIO
    exit_code: ExitCode = ExitCode.DRIVE_ERROR
    retry: bool = False


R, F, X = Reaction, Fault, ExitCode
READY = (errno.ENOMEDIUM, X.NOT_READY, True)
FULL = (errno.ENOSPC, X.FULL)
PROTECTED = (errno.EROFS, X.WRITE_PROTECTED)
BUG = (errno.EIO, X.BUG)
fx = fixed
# fmt: off
# ruff: noqa: E501 - a table is read by its columns
CASES = (
    # NO SENSE: results of reading and spacing
    Case("filemark", fx("0/00/01", FM, 4096), "read", s.FilemarkDetected, R.RESULT, "raised", F.BUG, *BUG),
    Case("filemark, code only", fx("0/00/01"), "read", s.FilemarkDetected, R.RESULT, "raised", F.BUG, *BUG),
    Case("filemark, flag only", fx("0/00/00", FM), "space", s.FilemarkDetected, R.RESULT, "lost", F.BUG, *BUG),
    Case("filemark with residue", fx("0/00/01", FM, 1), "space", s.FilemarkDetected, R.RESULT, "raised", F.BUG, *BUG),
    Case("filemark outranks ILI, EOM", fx("0/00/00", FM | ILI | EOM), "read", s.FilemarkDetected, R.RESULT, "raised", F.BUG, *BUG),
    Case("filemark, recovered", fx("1/17/01", FM, 1), "space", s.FilemarkDetected, R.RESULT, "raised", F.BUG, *BUG),
    Case("filemark in descriptors", descriptors("0/00/01", FM, 1), "space", s.FilemarkDetected, R.RESULT, "raised", F.BUG, *BUG),
    Case("short block", fx("0/00/00", ILI, 96), "read", s.IncorrectLength, R.RESULT, "done", F.HOST, *BUG),
    Case("long block", fx("0/00/00", ILI, -500), "read", s.IncorrectLength, R.RESULT, "raised", F.HOST, *BUG),
    Case("ILI outranks EOM", fx("0/00/02", ILI | EOM, -500), "read", s.IncorrectLength, R.RESULT, "raised", F.HOST, *BUG),
    Case("beginning", fx("0/00/04", EOM, 1), "space", s.BeginningOfMedium, R.RESULT, "raised", F.BUG, *BUG),
    Case("end of data under key 0", fx("0/00/05"), "read", s.EndOfData, R.RESULT, "raised", F.BUG, *BUG),
    Case("end of data, key 0, EOM", fx("0/00/05", EOM), "read", s.EndOfData, R.RESULT, "raised", F.BUG, *BUG),
    # NO SENSE: early warning, the data is written
    Case("early warning", fx("0/00/02", EOM, 0), "write", s.EarlyWarning, R.SUCCESS, "near end", F.OPERATOR, *BUG),
    Case("early warning, flag only", fx("0/00/00", EOM), "write", s.EarlyWarning, R.SUCCESS, "near end", F.OPERATOR, *BUG),
    Case("early warning, code only", fx("0/00/02"), "write", s.EarlyWarning, R.SUCCESS, "near end", F.OPERATOR, *BUG),
    Case("early warning, recovered", fx("1/0C/00", EOM), "write", s.EarlyWarning, R.SUCCESS, "near end", F.OPERATOR, *BUG),
    Case("early warning on a flush", fx("0/00/02", EOM), "flush", s.EarlyWarning, R.SUCCESS, "near end", F.OPERATOR, *BUG),
    Case("early warning with a residue", fx("0/00/02", EOM, 7), "write", s.EarlyWarning, R.SUCCESS, "lost", F.OPERATOR, *BUG),
    Case("programmable early warning", fx("0/00/07", EOM), "write", s.EarlyWarning, R.SUCCESS, "near end", F.OPERATOR, *BUG),
    # NO SENSE: progress and advice
    Case("operation in progress", fx("0/00/16"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("erase in progress", fx("0/00/18"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("cleaning wanted", fx("0/00/17"), "write", s.DriveAdvice, R.SUCCESS, "done", F.OPERATOR, *BUG),
    Case("cleaning wanted, recovered", fx("1/00/17"), "write", s.DriveAdvice, R.SUCCESS, "done", F.OPERATOR, *BUG),
    Case("cleaning cartridge", fx("0/30/03"), "write", s.DriveAdvice, R.SUCCESS, "done", F.OPERATOR, *BUG),
    Case("cleaning wanted, one vendor", fx("0/82/82"), "write", s.DriveAdvice, R.SUCCESS, "done", F.OPERATOR, *BUG),
    # By itself harmless; but a WRITE that failed without a word may not have been executed at all.
    Case("nothing at all", fx("0/00/00"), "write", s.Recovered, R.SUCCESS, "lost", F.DRIVE, *BUG),
    Case("nothing at all, deferred", fx("0/00/00", kind=DEFERRED), "write", s.DeferredDriveError, R.SUCCESS, "sent again", F.DRIVE),
    # RECOVERED ERROR
    Case("write error recovered", fx("1/0C/00"), "write", s.Recovered, R.SUCCESS, "done", F.DRIVE, *BUG),
    Case("read with retries", fx("1/17/01"), "read", s.Recovered, R.SUCCESS, "done", F.DRIVE, *BUG),
    Case("rounded parameter", fx("1/37/00"), "write", s.Recovered, R.SUCCESS, "done", F.DRIVE, *BUG),
    Case("failure predicted", fx("1/5D/10"), "write", s.DriveAdvice, R.SUCCESS, "done", F.OPERATOR, *BUG),
    Case("recovered, deferred", fx("1/0C/00", kind=DEFERRED), "write", s.DeferredDriveError, R.SUCCESS, "sent again", F.DRIVE),
    # NOT READY
    Case("not ready", fx("2/04/00"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("not ready, reason unknown", fx("2/EE/00"), "ready", s.NotReadyCondition, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("becoming ready", fx("2/04/01"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("becoming ready, in use", fx("2/04/01"), "write", s.BecomingReady, R.WAIT, "lost", F.OPERATOR, *READY),
    Case("needs LOAD", fx("2/04/02"), "ready", s.BecomingReady, R.LOAD, "loads", F.OPERATOR, *READY),
    Case("needs a hand", fx("2/04/03"), "ready", s.NotReadyCondition, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("formatting", fx("2/04/04"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("operation going on", fx("2/04/07"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("offline", fx("2/04/12"), "ready", s.NotReadyCondition, R.STOP, "gives up", F.OPERATOR, *READY),
    Case("searching", fx("2/04/13"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("being cleaned", fx("2/00/17"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("cleaning cartridge at work", fx("2/30/03"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("cleaning failed", fx("2/30/07"), "ready", s.NotReadyCondition, R.STOP, "gives up", F.OPERATOR, *READY),
    Case("no medium", fx("2/3A/00"), "ready", s.NoMedium, R.NO_MEDIUM, "waits", F.OPERATOR, *READY),
    Case("no medium, loadable", fx("2/3A/04"), "ready", s.NoMedium, R.NO_MEDIUM, "waits", F.OPERATOR, *READY),
    Case("no medium any more", fx("2/3A/02"), "write", s.NoMedium, R.NO_MEDIUM, "doubt", F.OPERATOR, *READY),
    Case("still starting", fx("2/3E/00"), "ready", s.BecomingReady, R.WAIT, "waits", F.OPERATOR, *READY),
    Case("load failed", fx("2/53/00"), "ready", s.NotReadyCondition, R.STOP, "gives up", F.OPERATOR, *READY),
    # MEDIUM ERROR
    Case("physical end on SPACE", fx("3/00/02", EOM), "space", s.EndOfMedium, R.RESULT, "lost", F.OPERATOR, *FULL),
    Case("physical end on WRITE", fx("3/00/02", EOM, 4096), "write", s.EndOfMedium, R.RESULT, "lost", F.OPERATOR, *FULL),
    Case("write fault", fx("3/03/02"), "write", s.MediumError, R.RECOVER, "lost", F.MEDIUM),
    Case("write error", fx("3/0C/00"), "write", s.MediumError, R.RECOVER, "lost", F.MEDIUM),
    Case("write error at the end", fx("3/0C/00", EOM), "flush", s.MediumError, R.RECOVER, "lost", F.MEDIUM),
    Case("write error, deferred", fx("3/0C/00", 0, 8192, DEFERRED), "write", s.DeferredMediumError, R.RECOVER, "lost", F.MEDIUM),
    Case("write error, deferred, descriptors", descriptors("3/0C/00", kind=0x73), "flush", s.DeferredMediumError, R.RECOVER, "lost", F.MEDIUM),
    Case("tracking", fx("3/09/00"), "read", s.MediumError, R.RECOVER, "lost", F.MEDIUM),
    Case("unreadable", fx("3/11/00"), "read", s.MediumError, R.RECOVER, "lost", F.MEDIUM),
    Case("block not found", fx("3/14/01"), "space", s.MediumError, R.RECOVER, "lost", F.MEDIUM),
    Case("append position error", fx("3/27/04"), "write", s.DataProtect, R.READ_ONLY, "lost", F.OPERATOR, *PROTECTED),
    Case("incompatible medium", fx("3/30/00"), "ready", s.MediumError, R.READ_ONLY, "gives up", F.MEDIUM),
    Case("unknown format", fx("3/30/01"), "read", s.MediumError, R.READ_ONLY, "lost", F.MEDIUM),
    Case("medium format corrupted", fx("3/31/00"), "read", s.MediumError, R.READ_ONLY, "lost", F.MEDIUM),
    Case("tape length", fx("3/33/00"), "space", s.MediumError, R.STOP, "lost", F.MEDIUM),
    Case("position lost", fx("3/3B/00"), "space", s.MediumError, R.RECOVER, "lost", F.MEDIUM),
    Case("write append error", fx("3/50/00"), "write", s.MediumError, R.READ_ONLY, "lost", F.MEDIUM),
    Case("erase failed", fx("3/51/00"), "write", s.MediumError, R.STOP, "lost", F.MEDIUM),
    Case("cartridge fault", fx("3/52/00"), "ready", s.MediumError, R.STOP, "gives up", F.MEDIUM),
    Case("load failed, medium", fx("3/53/00"), "ready", s.MediumError, R.STOP, "gives up", F.MEDIUM),
    Case("another medium error", fx("3/EE/EE"), "read", s.MediumError, R.RECOVER, "lost", F.MEDIUM),
    # HARDWARE ERROR
    Case("hardware", fx("4/44/00"), "write", s.HardwareError, R.STOP, "lost", F.DRIVE),
    Case("hardware, waited for", fx("4/40/80"), "ready", s.HardwareError, R.STOP, "gives up", F.DRIVE),
    Case("hardware, deferred", fx("4/44/00", kind=DEFERRED), "write", s.DeferredDriveError, R.STOP, "lost", F.DRIVE),
    # ILLEGAL REQUEST
    Case("unknown opcode", fx("5/20/00"), "log", s.UnknownOpcode, R.FALL_BACK, "without", F.DRIVE),
    Case("unknown opcode that moves nothing", fx("5/20/00"), "space", s.UnknownOpcode, R.FALL_BACK, "raised", F.DRIVE),
    Case("field in CDB", fx("5/24/00"), "log", s.IllegalRequest, R.FALL_BACK, "without", F.DRIVE),
    Case("field in parameters", fx("5/26/00"), "write", s.IllegalRequest, R.FALL_BACK, "lost", F.DRIVE),
    Case("sequence", fx("5/2C/00"), "read", s.IllegalRequest, R.FALL_BACK, "lost", F.DRIVE),
    Case("no such unit", fx("5/25/00"), "ready", s.IllegalRequest, R.STOP, "gives up", F.DRIVE),
    Case("cannot write medium", fx("5/30/05"), "write", s.DataProtect, R.READ_ONLY, "lost", F.OPERATOR, *PROTECTED),
    Case("removal prevented", fx("5/53/02"), "unload", s.IllegalRequest, R.ALLOW, "lost", F.DRIVE),
    # UNIT ATTENTION
    Case("medium changed", fx("6/28/00"), "write", s.MediumChanged, R.REMOUNT, "doubt", F.OPERATOR, errno.EIO, X.WRONG_TAPE),
    Case("power on", fx("6/29/00"), "write", s.PowerOnReset, R.REMOUNT, "doubt", F.DRIVE, errno.ENODEV, X.UNPLUGGED),
    Case("bus reset", fx("6/29/02"), "read", s.PowerOnReset, R.REMOUNT, "doubt", F.DRIVE, errno.ENODEV, X.UNPLUGGED),
    Case("modes changed", fx("6/2A/01"), "write", s.ModeParametersChanged, R.RESELECT, "sent again", F.DRIVE),
    Case("reservations lost", fx("6/2A/03"), "write", s.UnitAttention, R.RESEND, "sent again", F.DRIVE),
    Case("new firmware", fx("6/3F/01"), "write", s.DriveChanged, R.REMOUNT, "doubt", F.DRIVE),
    Case("new identity", fx("6/3F/03"), "space", s.DriveChanged, R.REMOUNT, "doubt", F.DRIVE),
    Case("eject pressed", fx("6/5A/01"), "write", s.EjectRequested, R.RESEND, "sent again", F.OPERATOR),
    Case("another attention", fx("6/EE/EE"), "read", s.UnitAttention, R.RESEND, "sent again", F.DRIVE),
    # DATA PROTECT
    Case("write protected", fx("7/27/00"), "write", s.WriteProtectedCondition, R.READ_ONLY, "raised", F.OPERATOR, *PROTECTED),
    Case("write protected for good", fx("7/27/05"), "flush", s.WriteProtectedCondition, R.READ_ONLY, "raised", F.OPERATOR, *PROTECTED),
    Case("cannot write medium, protect", fx("7/30/05"), "write", s.DataProtect, R.READ_ONLY, "lost", F.OPERATOR, *PROTECTED),
    Case("WORM overwritten", fx("7/30/0C"), "write", s.WriteOnceCondition, R.APPEND, "lost", F.OPERATOR, *PROTECTED),
    Case("WORM integrity", fx("7/30/0D"), "write", s.WriteOnceCondition, R.READ_ONLY, "lost", F.OPERATOR, *PROTECTED),
    Case("WORM append position", fx("7/50/01"), "write", s.DataProtect, R.READ_ONLY, "lost", F.OPERATOR, *PROTECTED),
    Case("key missing", fx("7/74/00"), "read", s.DataProtect, R.STOP, "lost", F.OPERATOR, *PROTECTED),
    Case("key wrong", fx("7/26/10"), "read", s.DataProtect, R.STOP, "lost", F.OPERATOR, *PROTECTED),
    Case("key changed", fx("7/2A/13"), "write", s.DataProtect, R.STOP, "lost", F.OPERATOR, *PROTECTED),
    # BLANK CHECK: the key decides, flags may say anything
    Case("end of data", fx("8/00/05", 0, 4096), "read", s.EndOfData, R.RESULT, "raised", F.BUG, *BUG),
    Case("end of data, EOM and no code", fx("8/00/00", EOM), "read", s.EndOfData, R.RESULT, "raised", F.BUG, *BUG),
    Case("end of data with a filemark flag", fx("8/00/05", FM), "read", s.EndOfData, R.RESULT, "raised", F.BUG, *BUG),
    Case("end of data on SPACE", fx("8/00/05", 0, 1), "space", s.EndOfData, R.RESULT, "raised", F.BUG, *BUG),
    Case("end of data not found", fx("8/14/03"), "space", s.BlankCheck, R.READ_ONLY, "lost", F.MEDIUM),
    Case("void", fx("8/EE/00"), "read", s.BlankCheck, R.READ_ONLY, "lost", F.MEDIUM),
    # The other keys
    Case("aborted, moving", fx("B/47/00"), "write", s.AbortedCommand, R.RETRY, "lost", F.DRIVE),
    Case("aborted, not moving", fx("B/08/00"), "log", s.AbortedCommand, R.RETRY, "sent again", F.DRIVE),
    Case("overlapped", fx("B/4E/00"), "log", s.OverlappedCommands, R.STOP, "raised", F.BUG, *BUG),
    Case("hard end", fx("D/00/02", EOM, 4096), "write", s.EndOfMedium, R.FULL, "lost", F.OPERATOR, *FULL),
    Case("hard end, buffered blocks too", fx("D/00/02", EOM, 1 << 20), "write", s.EndOfMedium, R.FULL, "lost", F.OPERATOR, *FULL),
    Case("hard end on a filemark", fx("D/00/02", EOM, 1), "flush", s.EndOfMedium, R.FULL, "lost", F.OPERATOR, *FULL),
    Case("hard end, deferred", fx("D/00/02", EOM, 4096, DEFERRED), "write", s.DeferredEndOfMedium, R.FULL, "lost", F.OPERATOR, *FULL),
    Case("miscompare", fx("E/1D/00"), "write", s.Unclassified, R.STOP, "lost", F.DRIVE),
    Case("vendor's key", fx("9/80/01"), "read", s.Unclassified, R.STOP, "lost", F.DRIVE),
)
# fmt: on
IDS = [case.meaning.replace(" ", "_") for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_what_it_is(case: Case) -> None:
    found = check_condition(Sense.unpack(case.sense), "THE COMMAND")
    assert (type(found), found.reaction) == (case.condition, case.reaction)
    assert (found.fault, errno_of(found)) == (case.fault, case.errno_value)
    assert (found.exit_code, found.retry) == (case.exit_code, case.retry)
    assert "THE COMMAND" in str(found)


def test_every_row_has_a_case_and_every_reaction_a_row() -> None:
    reached = {reaction_row(Sense.unpack(case.sense)) for case in CASES}
    assert not [row for row in REACTIONS if row not in reached]
    assert {row.reaction for row in REACTIONS} == set(Reaction)


def test_no_row_stands_twice() -> None:
    keys = [(row.key, row.asc, row.ascq, row.flag) for row in REACTIONS]
    assert len(set(keys)) == len(keys)


# What a drive does


COMMANDS: dict[str, type] = {
    "read": c.Read6,
    "write": c.Write6,
    "flush": c.WriteFilemarks6,
    "space": c.Space6,
    "log": c.LogSense,
    "unload": c.LoadUnload,
}


async def perform(drive: TapeDrive, action: str) -> bool:
    """Do it; whether early warning came."""
    if action == "read":
        await drive.read_block(buffer())
    elif action == "write":
        return (await drive.write_block(record(9))).early_warning
    elif action == "flush":
        return (await drive.write_filemarks(0)).early_warning
    elif action == "space":
        await drive.space_blocks(1)
    elif action == "log":
        await drive.health()
    else:
        await drive.unload()
    return False


async def what_happens(rigs: Rigs, case: Case) -> str:
    """Put the sense in the way of the action once, and tell from outside what comes of it."""
    # Without READ POSITION, what is known of the position is what was counted.
    rig = rigs("plain")
    drive = await rig.open()
    await write_files(drive, 3)
    await drive.rewind()
    await drive.space_blocks(1)
    into = memoryview(buffer())
    command = COMMANDS[case.action]
    rig.wire.answer(command, Completion(False, into, 0, Sense.unpack(case.sense)))
    rig.wire.forget()
    try:
        near_end = await perform(drive, case.action)
    except TapefsError:
        assert len(rig.wire.sent(command)) == 1
        if not drive.medium_loaded and case.action != "unload":
            rig.wire.forget()
            with pytest.raises(case.condition):
                await drive.rewind()
            assert not rig.wire.log
            return "doubt"
        return "lost" if (await drive.position()).block is None else "raised"
    first, *others = rig.wire.sent(command)
    sent = 1 + others.count(first)
    if near_end:
        return "near end" if sent == 1 else "sent again near end"
    if sent == 2:
        return "sent again"
    return "without" if case.reaction is Reaction.FALL_BACK else "done"


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.action != "ready"], ids=lambda case: case.meaning
)
async def test_what_happens(
    rigs: Rigs, case: Case, assert_logs: Callable[..., Announcement]
) -> None:
    if case.condition is s.DriveAdvice:
        assert_logs(r"drive\.advice .*see to it", 1)
    assert await what_happens(rigs, case) == case.happens


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.action == "ready"], ids=lambda case: case.meaning
)
async def test_what_waiting_does(
    rigs: Rigs, case: Case, autojump_clock: trio.testing.MockClock
) -> None:
    rig = rigs("plain")
    drive = await rig.open()
    # Answers count when they come three times in a row.
    rig.wire.answer(c.TestUnitReady, *[Sense.unpack(case.sense)] * 9)
    try:
        await drive.wait_ready(60.0)
    except case.condition:
        assert trio.current_time() == 0
        assert case.happens == "gives up"
        return
    assert drive.medium_loaded
    loads = rig.wire.sent(c.LoadUnload)
    assert loads == ([c.LoadUnload(load=True)] if case.happens == "loads" else [])
    assert case.happens in ("waits", "loads")
    assert len(rig.wire.sent(c.TestUnitReady)) == 12
