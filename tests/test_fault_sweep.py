"""Each fault, at each phase, of each kind of command: an error or a recovery, and nothing believed.

Whatever the wire does, the call ends with what it promises or with a typed error; a command that
moves the tape goes out once; and where the head is believed to be, there it is.
`TAPEFS_FAULT_SEEDS=N` tries N random plans instead of forty.
"""

from __future__ import annotations

import logging
import os
from array import array
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from crash_rig import logs_expected
from usb_rig import Unthreaded

from tapefs.drive import TapeAddress, TapeDrive
from tapefs.drive.probe import identify
from tapefs.emulator.command_check import command_name
from tapefs.emulator.fault_plan import FaultPlan, seeded
from tapefs.emulator.fault_queue import FaultPoint
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.emulator.wire_faults import EVERYWHERE, IN_PLACE_OF_DATA, FaultEffect
from tapefs.errors import TapefsError
from tapefs.scsi import cdb as c
from tapefs.scsi.sense import CheckCondition, EndOfData, FilemarkDetected
from tapefs.usb.bot import COMMAND_BLOCK_BYTES, COMMAND_SIGNATURE
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    import trio.testing

    Action = Callable[[TapeDrive], Awaitable[object]]

RECORD_BYTES = 2048
SEED_COUNT = int(os.environ.get("TAPEFS_FAULT_SEEDS", "40"))
MOVES = frozenset(
    ["READ(6)", "WRITE(6)", "WRITE FILEMARKS(6)", "SPACE(6)", "LOCATE(10)", "REWIND", "LOAD UNLOAD"]
)


@pytest.fixture(autouse=True)
def _no_waiting(autojump_clock: trio.testing.MockClock) -> None:
    """A drive that becomes ready costs no time here."""


@dataclass
class Wire:
    """A drive on a bus, with what was sent to it."""

    target: Target
    sent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backend = EmulatedUsbBackend(self.target)
        self.device = self.backend.device
        take = self.device.bulk_out

        def bulk_out(data: array[int]) -> int:
            if len(data) == COMMAND_BLOCK_BYTES and bytes(data[:4]) == COMMAND_SIGNATURE:
                self.sent.append(command_name(bytes(data[15:])))
            return take(data)

        self.device.bulk_out = bulk_out  # type: ignore[method-assign, assignment]

    async def open(self) -> TapeDrive:
        return await TapeDrive.open(
            BotTransport(Unthreaded(open_endpoints("usb", self.backend)), settle_s=0)
        )

    def head(self) -> int | None:
        """Where the head really is; None without a threaded cartridge."""
        deck = self.target._unit.deck
        return None if deck is None else deck.position


@contextmanager
def wire(path: Path) -> Iterator[Wire]:
    with VirtualCartridge.create(path, "lto5", 1 << 26) as cartridge:
        yield Wire(Target(cartridge))


def record(number: int) -> array[int]:
    return array("B", number.to_bytes(4, "big") * (RECORD_BYTES // 4))


async def read(drive: TapeDrive) -> int:
    into = array("B", bytes(RECORD_BYTES))
    assert await drive.read_block(into) == RECORD_BYTES
    number = int.from_bytes(into[:4].tobytes(), "big")
    assert into == record(number)
    return number


async def fill(drive: TapeDrive) -> None:
    """Blocks 0 1 2, a filemark, blocks 4 5 6, a filemark; the head before block 1."""
    await drive.rewind()
    for block in range(8):
        await (drive.write_filemarks(1) if block % 4 == 3 else drive.write_block(record(block)))
    await drive.locate(TapeAddress(1, 0, 1))


# Commands.


async def read_block_1(drive: TapeDrive) -> None:
    assert await read(drive) == 1


async def read_to_a_filemark(drive: TapeDrive) -> None:
    await drive.locate(TapeAddress(3, 0, 3))
    with pytest.raises(FilemarkDetected):
        await read(drive)


async def select_modes(drive: TapeDrive) -> None:
    await drive._reselect()


async def ask_who(drive: TapeDrive) -> None:
    assert (await identify(drive._initiator)).vendor == "HP"


async def ask_position(drive: TapeDrive) -> None:
    assert (await drive.position()).block == 1


async def ask_capacity(drive: TapeDrive) -> None:
    found = await drive.capacity()  # None: the drive could not tell
    assert found is None or 0 < found.remaining_bytes <= found.total_bytes


KINDS: dict[str, tuple[str, Action]] = {
    "test unit ready": ("TEST UNIT READY", lambda drive: drive.test_ready()),
    "inquiry": ("INQUIRY", ask_who),
    "limits": ("READ BLOCK LIMITS", lambda drive: drive.wait_ready(5.0)),
    "read": ("READ(6)", read_block_1),
    "sense": ("REQUEST SENSE", read_to_a_filemark),
    "write": ("WRITE(6)", lambda drive: drive.write_block(record(77))),
    "filemark": ("WRITE FILEMARKS(6)", lambda drive: drive.write_filemarks(1)),
    "flush": ("WRITE FILEMARKS(6)", lambda drive: drive.write_filemarks(0)),
    "space blocks": ("SPACE(6)", lambda drive: drive.space_blocks(1)),
    "space filemarks": ("SPACE(6)", lambda drive: drive.space_filemarks(1)),
    "space to end": ("SPACE(6)", lambda drive: drive.space_to_end_of_data()),
    "locate": ("LOCATE(10)", lambda drive: drive.locate(TapeAddress(5, 1, 1))),
    "rewind": ("REWIND", lambda drive: drive.rewind()),
    "position": ("READ POSITION", ask_position),
    "mode sense": ("MODE SENSE(6)", select_modes),
    "mode select": ("MODE SELECT(6)", select_modes),
    "log sense": ("LOG SENSE", ask_capacity),
    "prevent": ("PREVENT ALLOW MEDIUM REMOVAL", lambda drive: drive.prevent_removal(True)),
    "load": ("LOAD UNLOAD", lambda drive: drive.load()),
    "unload": ("LOAD UNLOAD", lambda drive: drive.unload()),
}
WITHOUT_DATA = frozenset(
    ["TEST UNIT READY", "PREVENT ALLOW MEDIUM REMOVAL", *(MOVES - {"READ(6)", "WRITE(6)"})]
)
TO_THE_DRIVE = frozenset(["WRITE(6)", "MODE SELECT(6)"])


def faults_at(point: FaultPoint, command: str) -> list[str]:
    """The rest of the lines of all faults that make sense there."""
    effects = set(EVERYWHERE)
    if point is FaultPoint.DATA:
        effects |= IN_PLACE_OF_DATA
    if point is FaultPoint.STATUS:
        effects = set(FaultEffect) - IN_PLACE_OF_DATA
    if command in TO_THE_DRIVE:
        effects -= IN_PLACE_OF_DATA
    lines = []
    for effect in sorted(effects, key=lambda effect: effect.name):
        variants = [""]
        if effect is FaultEffect.HANG:
            variants = ["until=class_reset", "until=port_reset", "until=replug"]
        elif effect in (FaultEffect.UNPLUG, FaultEffect.POWER_CUT):
            variants = ["replug_polls=0"]
        lines += [f"{effect.name.lower()} {variant}" for variant in variants]
    return lines


PLACES = [
    (kind, point)
    for kind, (command, _) in KINDS.items()
    for point in (FaultPoint.COMMAND, FaultPoint.DATA, FaultPoint.STATUS)
    if not (point is FaultPoint.DATA and command in WITHOUT_DATA)
]


@pytest.mark.parametrize(("kind", "point"), PLACES)
async def test_a_fault_of_the_wire(tmp_path: Path, kind: str, point: FaultPoint) -> None:
    command, action = KINDS[kind]
    faults = faults_at(point, command)
    assert len(faults) >= 7
    for number, fault in enumerate(faults):
        line = f"{point.name.lower()} {fault} command={command.replace(' ', '_')}"
        with wire(tmp_path / f"{number}.tap") as bench, logs_expected(logging.ERROR):
            try:
                await survive(bench, command, action, line)
            except BaseException as exc:
                exc.add_note(line)
                raise


async def survive(bench: Wire, command: str, action: Action, line: str) -> None:
    drive = await bench.open()
    await fill(drive)
    if command == "MODE SELECT(6)":
        bench.target._unit.modes.buffered = False
    bench.sent.clear()
    FaultPlan.parse(line).apply(bench.target, bench.device)
    with suppress(TapefsError):
        await action(drive)
    assert not bench.device.faults._faults, "the fault struck"
    believed = drive._initiator.counter.block
    assert believed in (None, bench.head())
    for each in MOVES:
        assert bench.sent.count(each) <= 1 + (each == "LOCATE(10)"), f"{each} was sent twice"
    drive = await recovered(bench, drive)
    await drive.rewind()
    assert await read(drive) == 0
    assert bench.device.violations == []
    await drive.aclose()


async def recovered(bench: Wire, drive: TapeDrive | None = None) -> TapeDrive:
    """The drive, ready, as an operator would get it back; with patience first, then the cable."""
    for attempt in range(12):
        try:
            if drive is None:
                drive = await bench.open()
            if bench.head() is None:
                await drive.load(5.0)
            elif not drive.medium_loaded or attempt == 0:
                await drive.wait_ready(5.0)
        except TapefsError:
            if drive is not None:
                await drive.aclose()
                drive = None
            if attempt > 3:
                bench.backend.unplug()
                bench.backend.plug_in()
        else:
            return drive
    raise AssertionError("the drive does not come back")


# Random plans over a session.


async def write_session(bench: Wire) -> tuple[list[int], list[int]]:
    """Write files of records, flush each; go on at the proven end after every error.

    Returns what was acknowledged by a flush, and everything that was ever sent.
    """
    proven: list[int] = []
    tried: list[int] = []
    drive = None
    for file in range(6):
        drive = await recovered(bench, drive)
        with suppress(TapefsError):
            await drive.space_to_end_of_data()
            written = []
            for number in range(5):
                tried.append(100 * file + number)
                await drive.write_block(record(tried[-1]))
                written.append(tried[-1])
            await drive.write_filemarks(1)
            proven += written
    assert drive is not None
    await drive.aclose()
    return proven, tried


async def read_session(bench: Wire) -> list[int]:
    """Everything on the tape, in order, from as many attempts as it takes."""
    drive = None
    for _ in range(12):
        found: list[int] = []
        drive = await recovered(bench, drive)
        with suppress(TapefsError):
            await drive.rewind()
            while True:
                try:
                    found.append(await read(drive))
                except FilemarkDetected:
                    continue
                except EndOfData:
                    await drive.aclose()
                    return found
    raise AssertionError("the tape cannot be read")


async def test_random_plans_lose_nothing_that_was_proven(tmp_path: Path) -> None:
    tried_seeds = struck = 0
    for seed in range(SEED_COUNT):
        lines = tuple(each for each in seeded(seed) if "unreadable" not in each)
        path = tmp_path / f"{seed}.tap"
        with wire(path) as bench, logs_expected(logging.ERROR):
            FaultPlan.parse("\n".join(lines)).apply(bench.target, bench.device)
            planned = len(bench.device.faults._faults)
            try:
                proven, tried = await write_session(bench)
                found = await read_session(bench)
                assert is_part_of(proven, found), "a proven record is gone, or out of order"
                assert is_part_of(found, tried), "a record is there that nobody wrote"
                assert bench.device.violations == []
            except BaseException as exc:
                exc.add_note(f"seed {seed}: {lines}")
                raise
            struck += planned - len(bench.device.faults._faults)
        path.unlink()
        tried_seeds += 1
    print(f"{tried_seeds} seeds tried, {struck} faults of the wire struck")
    assert struck > tried_seeds // 2


def is_part_of(part: list[int], whole: list[int]) -> bool:
    """Whether `part` is `whole` with some left out."""
    rest = iter(whole)
    return all(each in rest for each in part)


async def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    runs = []
    for attempt in range(2):
        with wire(tmp_path / f"{attempt}.tap") as bench, logs_expected(logging.ERROR):
            FaultPlan.named("seed:11").apply(bench.target, bench.device)
            outcome = await write_session(bench)
            runs.append((outcome, bench.sent))
    assert runs[0] == runs[1]


def test_conditions_and_commands_of_the_sweep_are_real() -> None:
    names = {getattr(each, "name", "") for each in vars(c).values()}
    assert {command for command, _ in KINDS.values()} <= names
    assert names >= MOVES
    assert issubclass(FilemarkDetected, CheckCondition)
