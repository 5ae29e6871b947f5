"""Whatever a device answers is understood or refused with a typed error, and nothing ever hangs."""

from __future__ import annotations

import dataclasses
from array import array
from typing import TYPE_CHECKING, Any

import pytest
import trio
from fuzz_rig import Mutator, Stuck, Tally, fuzz, input_count, randomness, unstuck

from tapefs.drive import TapeAddress, TapeDrive, motion
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.target import Target
from tapefs.emulator.transport import TargetTransport
from tapefs.errors import DriveGone, MalformedData, TapefsError
from tapefs.scsi.cdb import Inquiry, ModeSelect6, Read6, TestUnitReady, Write6
from tapefs.scsi.completion import Completion
from tapefs.scsi.data import (
    BlockDescriptor,
    BlockLimits,
    DataCompressionPage,
    DeviceConfigurationPage,
    LongPosition,
    ModeParameters,
    ShortPosition,
    StandardInquiry,
    SupportedPages,
    UnitSerialNumber,
)
from tapefs.scsi.log import (
    KIB,
    TAPE_CAPACITY_PAGE,
    VOLUME_STATISTICS_PAGE,
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
from tapefs.scsi.sense import REACTIONS, Reaction, Sense, SenseKey, check_condition
from tapefs.usb.bot import Pipe, StatusBlock
from tapefs.usb.transport import BotTransport, EndpointStalled, TransferOverflow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import DataBuffer

INT64_MAX = 2**63 - 1


def descriptor_sense(sense: Sense) -> bytes:
    """The descriptor format of `sense`, with an information, a key specific and a stream block."""
    flags = sense.filemark << 7 | sense.end_of_medium << 6 | sense.incorrect_length << 5
    blocks = b"\x00\x0a\x80\x00" + (sense.information or 0).to_bytes(8, "big", signed=True)
    blocks += b"\x02\x06\x00\x00\x80\x12\x34\x00" + bytes((0x04, 0x02, 0, flags))
    head = bytes((0x72, sense.key, sense.asc, sense.ascq, 0, 0, 0, len(blocks)))
    return head + blocks


SENSES = [
    Sense(row.key, row.asc or 0, row.ascq or 0, information=number, filemark=bool(number))
    for row in REACTIONS
    for number in (None, 0, -5, 4096)
]
SENSE_REPORTS = [s.pack() for s in SENSES] + [descriptor_sense(s) for s in SENSES]


def use_sense(data: bytes) -> None:
    sense = Sense.unpack(data)
    assert isinstance(sense.key, SenseKey)
    assert sense.progress is None or 0 <= sense.progress < 1
    condition = check_condition(sense, "READ(6)")
    assert isinstance(condition.reaction, Reaction)
    assert str(condition).isprintable()


def use_inquiry(data: bytes) -> None:
    inquiry = StandardInquiry.unpack(data)
    assert (inquiry.vendor + inquiry.product + inquiry.revision).isprintable()
    assert inquiry.vendor.isascii()


def use_vital_pages(data: bytes) -> None:
    # Both, since a device may answer with the page that was not asked for.
    try:
        assert all(0 <= page <= 255 for page in SupportedPages.unpack(data).pages)
    except TapefsError:
        serial = UnitSerialNumber.unpack(data).serial
        assert serial.isprintable()
        assert serial.isascii()


def use_block_limits(data: bytes) -> None:
    limits = BlockLimits.unpack(data)
    for length in (0, 1, 512, 65536, 1 << 20, 0xFFFFFF):
        assert limits.allow(length) in (True, False)
    assert limits.fixed_only in (True, False)


def use_modes(data: bytes) -> None:
    # Which header it has depends on the command, and a drive may mix them up.
    understood = 0
    for ten in (False, True):
        try:
            modes = ModeParameters.unpack(data, ten=ten)
        except TapefsError:
            continue
        understood += 1
        assert len(modes.pages) <= len(data)
        compression, configuration = modes.page(0x0F), modes.page(0x10)
        if compression is not None and len(compression) >= 16:
            DataCompressionPage.unpack(compression)
        if configuration is not None and len(configuration) >= 16:
            DeviceConfigurationPage.unpack(configuration)
        modes.page(0x3F, 0xFF)
    if not understood:
        raise MalformedData("neither header")


def use_log(data: bytes) -> None:
    page = LogPage.unpack(data)
    found = (TapeCapacity.from_page(page, KIB), TapeCapacity.from_statistics(page))
    for capacity in filter(None, found):
        # It goes into statvfs(2) and into arithmetic with tape addresses.
        assert 0 <= capacity.remaining_bytes <= INT64_MAX
        assert 0 < capacity.total_bytes <= INT64_MAX
    for flag in TapeAlert.from_page(page).flags:
        assert alert_text(flag).isprintable()
        assert alert_subject(flag) in AlertSubject
    counters = (
        dataclasses.astuple(ErrorCounters.from_page(page)),
        dataclasses.astuple(VolumeStatistics.from_page(page)),
        dataclasses.astuple(DeviceStatistics.from_page(page)),
        dataclasses.astuple(CompressionRatios.from_page(page)),
    )
    assert all(0 <= number <= INT64_MAX for each in counters for number in each if number)
    assert cleaning_requested(page) in (None, False, True)
    assert supported_pages(data) <= set(range(64))


def use_position(data: bytes) -> None:
    for position in (ShortPosition.unpack(data), LongPosition.unpack(data)):
        assert position.block is None or position.block >= 0


def statistics_page() -> LogPage:
    records = bytes((7, 0, 0, 0, 0, 1, 0x86, 0xA0)) + bytes((7, 0, 0, 1, 0, 0, 0, 9))
    return LogPage(VOLUME_STATISTICS_PAGE, {0x0202: records, 0x0204: records})


PARAMETERS: dict[str, tuple[list[bytes], Callable[[bytes], None]]] = {
    "sense": (SENSE_REPORTS, use_sense),
    "INQUIRY": (
        [
            StandardInquiry("SONY", "SDX-500C", "0204").pack(),
            StandardInquiry("HP", "Ultrium 5-SCSI", "Z64D", qualifier=3, removable=False).pack(),
        ],
        use_inquiry,
    ),
    "vital pages": (
        [SupportedPages((0, 0x80, 0x83)).pack(), UnitSerialNumber("HU123456789").pack()],
        use_vital_pages,
    ),
    "block limits": (
        [
            BlockLimits(1, 0xFFFFFF).pack(),
            BlockLimits(512, 512).pack(),
            BlockLimits(4, 0, 2).pack(),
        ],
        use_block_limits,
    ),
    "mode parameters": (
        [
            ModeParameters(
                buffered_mode=1,
                descriptor=BlockDescriptor(density, 0, length),
                pages=DataCompressionPage(True, True).pack() + DeviceConfigurationPage().pack(),
            ).pack(ten=ten)
            for density, length in ((0x30, 0), (0x58, 512))
            for ten in (False, True)
        ],
        use_modes,
    ),
    "log pages": (
        [
            TapeCapacity(1 << 40, 1 << 41).pack(),
            statistics_page().pack(),
            TapeAlert(frozenset((3, 20, 60))).pack(),
            LogPage(TAPE_CAPACITY_PAGE, {1: b"\xff" * 200, 3: b"\x7f" * 255}).pack(),
            LogPage(VOLUME_STATISTICS_PAGE, dict.fromkeys((514, 516), b"\x80" * 200)).pack(),
        ],
        use_log,
    ),
    "READ POSITION": (
        [
            ShortPosition(block=1000, last_block=990, buffered_blocks=10).pack() + bytes(12),
            LongPosition(block=1 << 40, file=7).pack(),
        ],
        use_position,
    ),
}


@pytest.mark.parametrize("group", PARAMETERS)
def test_parameter_data(group: str) -> None:
    corpus, use = PARAMETERS[group]
    for data in corpus:
        use(data)
    fuzz(group, corpus, use, input_count(14_000)).report()


# -- status blocks, through the whole transport


# A command and its REQUEST SENSE have six stages each at most, a reset three.
MOVES_MAX = 20
# Commands that one drive gets before it is plugged in again.
SESSION_COMMANDS = 6


class LyingEndpoints:
    """Pipes of a drive whose every answer may be damaged, stalled, short or left out."""

    subclass = 0x06
    max_packet_bytes = 512

    def __init__(self, mutator: Mutator) -> None:
        self.mutator = mutator
        self.moves = 0
        self._tag = 0
        self._data_left = False

    def send(self, data: DataBuffer, _timeout_s: float) -> int:
        self._count()
        if len(data) == 31:
            self._tag = int.from_bytes(data[4:8].tobytes(), "little")
            self._data_left = bool(data[12] & 0x80)
        return len(data) if self.mutator.rng.random() < 0.97 else len(data) // 2

    def receive(self, into: DataBuffer, _timeout_s: float) -> int:
        self._count()
        rng = self.mutator.rng
        if rng.random() < 0.05:
            raise rng.choice((EndpointStalled, TransferOverflow))("said the wire")
        answer = self._status()
        if self._data_left:
            self._data_left = rng.random() < 0.1
            answer = rng.choice((rng.choice(SENSE_REPORTS), StandardInquiry("A", "B", "1").pack()))
        if rng.random() < 0.4:
            answer = self.mutator.mutated(answer)
        answer = answer[: len(into)]
        into[: len(answer)] = array("B", answer)
        return len(answer)

    def _status(self) -> bytes:
        rng = self.mutator.rng
        residue = rng.choice((0, 0, 0, 1, 64, 0xFFFFFFFF))
        return StatusBlock(self._tag, residue, rng.choice((0, 0, 0, 1, 1, 2, 3))).pack()

    def clear_halt(self, _pipe: Pipe) -> None:
        self._count()

    def class_reset(self) -> None:
        self._count()
        if self.mutator.rng.random() < 0.3:
            raise EndpointStalled("said the wire")

    def port_reset(self) -> None:
        self._count()
        if self.mutator.rng.random() < 0.3:
            raise DriveGone("said the wire")

    def close(self) -> None:
        self._count()

    def _count(self) -> None:
        self.moves += 1
        if self.moves > MOVES_MAX:
            raise Stuck

    async def run(self, work: Callable[[], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return work()


COMMANDS: list[tuple[Command, int | None]] = [
    (TestUnitReady(), None),
    (Inquiry(), None),
    (Read6(64), 64),
    (Write6(64), 64),
    (ModeSelect6(12), 12),
]


async def test_status_blocks(assert_logs: Callable[..., object]) -> None:
    for pattern in ("usb.reset_recovery", "usb.port_reset", "drive.gone"):
        assert_logs(pattern)
    mutator, tally = Mutator(randomness("status blocks")), Tally("status blocks")
    with unstuck():
        for session in range(input_count(14_000) // SESSION_COMMANDS + 1):
            endpoints = LyingEndpoints(mutator)
            transport = BotTransport(endpoints, settle_s=0)
            for at in range(SESSION_COMMANDS):
                endpoints.moves = 0
                command, length = mutator.rng.choice(COMMANDS)
                data = None if length is None else array("B", bytes(length))
                with tally.input((session, at), command):
                    completion = await transport.execute(command, data)
                    assert completion.good is (completion.sense is None)
                    assert len(completion.data) <= command.transfer_length_bytes
    tally.report()


# -- a whole drive


class LyingTransport(TargetTransport):
    """Carries commands to an honest drive, and damages what comes back.

    A stubborn liar tells the same lie each time it is asked the same.
    """

    def __init__(self, target: Target, mutator: Mutator, commands_max: int) -> None:
        super().__init__(target)
        self._mutator = mutator
        self._commands_left = commands_max
        self._lies = mutator.rng.choice((0.02, 0.1, 0.4, 1.0))
        self._stubborn = mutator.rng.random() < 0.5
        self._told: dict[bytes, Completion | None] = {}

    async def execute(self, command: Command, data: DataBuffer | bytes | None = None) -> Completion:
        self._commands_left -= 1
        if self._commands_left < 0:
            raise Stuck
        completion = await super().execute(command, data)
        key = command.pack()
        if not self._stubborn or key not in self._told:
            self._told[key] = self._lie(command, completion)
        lie = self._told[key]
        if lie is None:
            return completion
        if not isinstance(data, array) or not lie.data or isinstance(command, Write6):
            return lie
        memoryview(data)[: len(lie.data)] = lie.data
        return Completion(lie.good, memoryview(data)[: len(lie.data)], 0, lie.sense)

    def _lie(self, command: Command, completion: Completion) -> Completion | None:
        rng = self._mutator.rng
        if rng.random() > self._lies:
            return None
        if not completion.good or rng.random() < 0.3:
            return self._failed(completion)
        answer = self._mutator.mutated(bytes(completion.data))[: command.transfer_length_bytes]
        return Completion(True, memoryview(answer))

    def _failed(self, completion: Completion) -> Completion:
        while True:
            report = self._mutator.mutated(self._mutator.rng.choice(SENSE_REPORTS))
            try:
                return Completion(False, completion.data, 0, Sense.unpack(report))
            except TapefsError:
                continue


async def use_drive(transport: LyingTransport, rng: Any) -> None:
    """Open it and do everything once, in any order; each may fail with a typed error."""
    drive = await TapeDrive.open(transport)
    record = array("B", bytes(4096))
    steps: list[Callable[[], Any]] = [
        lambda: drive.wait_ready(10),
        drive.rewind,
        drive.position,
        lambda: drive.read_block(record),
        lambda: drive.write_block(record),
        lambda: drive.write_filemarks(1),
        lambda: drive.space_filemarks(rng.choice((-1, 1, 2))),
        lambda: drive.space_blocks(rng.choice((-1, 1, 100))),
        lambda: drive.locate(TapeAddress(3, 1, 1)),
        drive.capacity,
        drive.health,
        drive.space_to_end_of_data,
        lambda: drive.prevent_removal(prevent=True),
        drive.test_ready,
    ]
    rng.shuffle(steps)
    for step in steps:
        try:
            found = await step()
        except TapefsError:
            continue
        if isinstance(found, TapeCapacity):
            assert found.total_bytes <= INT64_MAX


@pytest.mark.parametrize("personality", ["lto5", "ait3", "dat72", "plain"])
async def test_a_drive_that_lies(
    personality: str,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    assert_logs: Callable[[str], object],
) -> None:
    del autojump_clock  # waits of minutes pass at once
    assert_logs(r"drive\.advice ")
    monkeypatch.setattr(motion, "COUNTED_MOTIONS_MAX", 300)
    monkeypatch.setattr(motion, "COUNTED_READS_MAX", 300)
    group = f"drive {personality}"
    mutator, tally = Mutator(randomness(group)), Tally(group)
    with VirtualCartridge.create(tmp_path / "c.tap", personality, 1 << 24) as cartridge, unstuck():
        honest = await TapeDrive.open(TargetTransport(Target(cartridge)))
        await honest.rewind()
        for _ in range(3):
            await honest.write_block(array("B", bytes(4096)))
            await honest.write_filemarks(1)
        for number in range(input_count(500)):
            transport = LyingTransport(Target(cartridge), mutator, commands_max=1500)
            with tally.input(number):
                await use_drive(transport, mutator.rng)
    tally.report()
