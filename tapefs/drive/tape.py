"""A tape drive with one medium: read, write, find, and know where the head stands.

Every method sends its commands one after the other and is called by one task at a time: the lane
that owns the drive. The position is counted in software, which costs nothing per block; READ
POSITION is asked only by `position`, `space_to_end_of_data` and whoever calls them.
"""

from __future__ import annotations

import dataclasses
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import trio

from tapefs.drive import probe
from tapefs.drive.health import read_health
from tapefs.drive.initiator import DriveStatistics, Initiator
from tapefs.drive.motion import TapeMotion
from tapefs.drive.position import PositionUnknown
from tapefs.errors import DriveFailed, TapefsError
from tapefs.scsi.cdb import (
    LoadUnload,
    PreventAllowMediumRemoval,
    Read6,
    ReportDensitySupport,
    TestUnitReady,
    Write6,
    WriteFilemarks6,
)
from tapefs.scsi.data import BlockLimits
from tapefs.scsi.density import DENSITY_REPORT_BYTES, nominal_capacity_bytes
from tapefs.scsi.log import (
    TAPE_CAPACITY_PAGE,
    VOLUME_STATISTICS_PAGE,
    TapeCapacity,
)
from tapefs.scsi.sense import (
    CheckCondition,
    EarlyWarning,
    EndOfData,
    EndOfMedium,
    FilemarkDetected,
    IllegalRequest,
    IncorrectLength,
    NotReadyCondition,
    Reaction,
    WriteProtectedCondition,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapefs.drive.activity import Activity
    from tapefs.drive.health import DriveHealth
    from tapefs.drive.probe import DriveIdentity
    from tapefs.drive.transport import Step, Transport
    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import Completion, DataBuffer

POLL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """A write that succeeded. `early_warning`: the end of the medium is near."""

    early_warning: bool


_WRITTEN: Final = WriteOutcome(early_warning=False)
_WRITTEN_NEAR_END: Final = WriteOutcome(early_warning=True)


class TapeDrive(TapeMotion):
    """One drive over one transport. Built by `open` only.

    All methods raise DriveGone and DriveFailed when the wire fails, and a CheckCondition
    (`tapefs.scsi.sense`) when the drive reports something that is not the success of the call.
    MediumChanged, PowerOnReset and NoMedium say that nothing known about the medium holds any
    more: from then on every command that moves the medium raises the same, until `wait_ready`.
    """

    def __init__(self, transport: Transport, initiator: Initiator, identity: DriveIdentity) -> None:
        super().__init__(initiator)
        self._transport = transport
        self.identity = identity
        self.block_limits = BlockLimits(0, 0)
        self.write_protected = False
        # Density code of the medium (SSC-4); 0 where the drive does not say.
        self.density = 0
        # Whether READ ATTRIBUTE has an answer, which only asking tells.
        self._has_chip: bool | None = None
        # Of the loaded tape, as it was when it was loaded; empty when the drive does not tell.
        self.wrap_ends: tuple[int, ...] = ()
        self.wrap_count = 1

    @classmethod
    async def open(cls, transport: Transport) -> TapeDrive:
        """Identify the drive and, when a medium is loaded and ready, set it up; moves no tape.

        Without a ready medium `medium_loaded` is False and only `wait_ready`, `test_ready` and
        `load` make sense. Raises UnsupportedDrive for what is not a tape drive, or accepts no block
        length. The transport stays the caller's until this returns; then `aclose` closes it.
        """
        initiator = Initiator(transport)
        identity = await probe.identify(initiator)
        drive = cls(transport, initiator, identity)
        if await probe.settle(transport) is None:
            await drive._set_up()
        return drive

    @property
    def lost(self) -> bool:
        """The wire is gone for good; the drive must be opened again over a new one."""
        return self._transport.lost

    async def aclose(self) -> None:
        """Close the transport. Nothing is flushed or rewound."""
        await self._initiator.aclose()

    @property
    def activity(self) -> Activity:
        """What the drive is at, and how fast. May be asked at any time, by anybody."""
        return self._initiator.activity

    def statistics(self) -> DriveStatistics:
        """A copy of the counters since `open`."""
        return dataclasses.replace(self._initiator.statistics)

    # Readiness

    @property
    def medium_loaded(self) -> bool:
        """A medium is loaded and set up, and as far as anybody knows it is still the same."""
        return self._initiator.medium_is_known

    async def test_ready(self) -> bool:
        """Whether the medium can be used now.

        Raises MediumChanged or PowerOnReset when that happened since the last command.
        """
        _, condition = await self._initiator.perform(TestUnitReady())
        if condition is None or condition.reaction is Reaction.SUCCESS:
            return self.medium_loaded
        if not isinstance(condition, NotReadyCondition):
            raise condition
        return False

    async def wait_ready(
        self, deadline_s: float, waiting: Callable[[NotReadyCondition], None] | None = None
    ) -> None:
        """Wait until the medium is ready, at most `deadline_s` seconds from now, and set it up.

        Calling it declares that the caller knows nothing about the medium and will look: doubt
        left by MediumChanged and its like ends here, and the position is unknown. Raises the
        NotReadyCondition that still stood at the deadline, at once when waiting cannot help.
        `waiting` is told each second why the drive is not ready (`sense.progress`: how far it is).
        """
        self._initiator.end_session()
        deadline = trio.current_time() + deadline_s
        loaded = False
        while (condition := await probe.settle(self._transport)) is not None:
            hopeless = condition.reaction is Reaction.STOP
            if hopeless or not isinstance(condition, NotReadyCondition):
                raise condition
            if trio.current_time() + POLL_S > deadline:
                raise condition
            if condition.reaction is Reaction.LOAD and not loaded:
                loaded = True
                await self._initiator.perform(LoadUnload(load=True))
                continue
            if waiting is not None:
                waiting(condition)
            await trio.sleep(POLL_S)
        await self._set_up()

    async def load(self, deadline_s: float = LoadUnload.timeout_s) -> None:
        """Load the cartridge that is in the drive, wait for it and set it up.

        Raises NoMedium when there is none, and what `wait_ready` raises.
        """
        self._initiator.end_session()
        await self._initiator.run(LoadUnload(load=True))
        await self.wait_ready(deadline_s)

    async def unload(self) -> None:
        """Write out the drive's buffer, rewind and eject. Allows removal first."""
        await self.prevent_removal(prevent=False)
        try:
            await self._initiator.run(LoadUnload(load=False))
        finally:
            self._initiator.end_session()

    async def prevent_removal(self, prevent: bool) -> bool:
        """Lock the cartridge in the drive, or free it. False: the drive cannot do that."""
        try:
            await self._initiator.run(PreventAllowMediumRemoval(prevent))
        except IllegalRequest:
            return False
        return True

    async def _set_up(self) -> None:
        found = await probe.set_up(self._initiator, self.identity)
        self.block_limits = found.block_limits
        self.block_bytes = found.block_bytes
        self.density = found.density
        self.write_protected = found.write_protected
        self.wrap_ends, self.wrap_count = found.wrap_ends, found.wrap_count
        # Some was learnt from the drive, not from the medium.
        self.capabilities = dataclasses.replace(
            found.capabilities,
            locate=self.capabilities.locate,
            space_tells=self.capabilities.space_tells,
        )
        self._counter.lose()
        self._initiator.begin_session(self._reselect)

    async def _reselect(self) -> None:
        await probe.select_block_bytes(self._initiator, self.block_bytes)

    async def select_block_bytes(self, block_bytes: int) -> None:
        """Use blocks of this length from now on; 0 for blocks that have each their own.

        Holds until the next `wait_ready`. Raises UnsupportedDrive when the drive cannot.
        """
        await probe.select_block_bytes(self._initiator, block_bytes)
        self.block_bytes = block_bytes

    # Reading and writing

    async def read_block(self, into: DataBuffer) -> int:
        """Read the next block into `into` (a `DataBuffer`) and return its length in bytes.

        With blocks of fixed length: as many of them as fill `into`, exactly.

        Raises FilemarkDetected (the head is behind the mark), EndOfData (the head stays there),
        IncorrectLength when the block is longer than `into` (the head is behind the block, `into`
        means nothing), MediumError and others (the position is unknown then).
        """
        lengths, error = await self.read_blocks([into])
        if error is not None:
            raise error
        return lengths[0]

    async def read_blocks(
        self,
        buffers: Sequence[DataBuffer],
        more: Callable[[], Sequence[DataBuffer]] | None = None,
    ) -> tuple[list[int], TapefsError | None]:
        """`read_block` into each of `buffers`, with no pause in between in which the drive waits.

        When they are full, so are those filled that `more` returns, until there are none; that is
        called where the wire is, by any thread. Returns the lengths of the blocks read, up to the
        first that came with anything to report; and what `read_block` would raise for the one after
        the last of these, if so. Raises what says nothing about any of them: DriveGone,
        DriveFailed.
        """
        done, condition = await self._perform_each(self._read_command, buffers, more)
        lengths: list[int] = []
        for into, completion in done:
            last = len(lengths) == len(done) - 1
            try:
                lengths.append(self._block_read(into, completion, condition if last else None))
            except TapefsError as error:
                return lengths, error
        return lengths, None

    def _read_command(self, into: DataBuffer) -> Read6:
        count, fixed = self._block_count(into), bool(self.block_bytes)
        return Read6(count if fixed else len(into), fixed=fixed, block_bytes=self.block_bytes)

    def _block_read(
        self, into: DataBuffer, completion: Completion, condition: CheckCondition | None
    ) -> int:
        """The length of a block that was read; raises when none came."""
        count, length = self._block_count(into), len(into)
        if condition is None:
            length = self._whole_length(completion, length)
        elif self.block_bytes:
            self._blocks_read(condition, count)
            length = self._whole_length(completion, length)
        else:
            length = self._length_read(condition, completion, length)
        self._counter.pass_records(count)
        statistics = self._initiator.statistics
        statistics.blocks_read += count
        statistics.bytes_read += length
        return length

    def _block_count(self, data: DataBuffer) -> int:
        if not self.block_bytes:
            return 1
        count, rest = divmod(len(data), self.block_bytes)
        if rest or not count:
            raise ValueError(f"{len(data)} bytes are not blocks of {self.block_bytes}")
        return count

    def _blocks_read(self, condition: CheckCondition, asked_count: int) -> None:
        """In fixed mode `condition` is a success, or is raised with the blocks before it counted.

        A filemark or the end of data within the blocks asked for makes those before it pass: a
        record that is cut short is none.
        """
        if condition.reaction is Reaction.SUCCESS:
            return
        missing = condition.sense.information
        if not isinstance(condition, FilemarkDetected | EndOfData):
            self._counter.lose()
        elif missing is None or not 0 <= missing <= asked_count:
            self._counter.block = self._counter.block_in_file = None
        else:
            self._counter.pass_records(asked_count - missing)
        if isinstance(condition, FilemarkDetected):
            self._counter.pass_filemarks()
        raise condition

    def _length_read(
        self, condition: CheckCondition, completion: Completion, asked_bytes: int
    ) -> int:
        """Length of the block that came with `condition`; raises when none came.

        INFORMATION outranks what the wire counted: bridges get their residue wrong.
        """
        if isinstance(condition, FilemarkDetected):
            self._counter.pass_filemarks()
            raise condition
        if isinstance(condition, EndOfData):
            raise condition
        if isinstance(condition, IncorrectLength):
            shortage = condition.sense.information
            length = len(completion.data) if shortage is None else asked_bytes - shortage
            # Overlength comes as a negative number, or from some drives as zero or not at all:
            # the buffer is full, and still the length is wrong.
            if not 0 <= length < asked_bytes:
                self._counter.pass_records()
                raise condition
            if length > len(completion.data):
                self._counter.lose()
                raise DriveFailed(
                    f"the drive reports a block of {length} bytes but sent only"
                    f" {len(completion.data)}; check cable and adapter, then try again"
                ) from condition
            return length
        if condition.reaction is not Reaction.SUCCESS:
            self._fail(condition)
        return self._whole_length(completion, asked_bytes)

    def _whole_length(self, completion: Completion, asked_bytes: int) -> int:
        """Length of a block of which the drive says nothing: the one asked for, or the wire lies.

        A block of another length is told by ILI, which is never suppressed here (SSC-4, READ).
        """
        if len(completion.data) != asked_bytes:
            self._counter.lose()
            raise DriveFailed(
                f"the drive reports {asked_bytes} bytes read, but {len(completion.data)} came;"
                " check cable and adapter, then try again"
            )
        return asked_bytes

    async def write_block(self, data: DataBuffer) -> WriteOutcome:
        """Write one block, or with blocks of fixed length as many as `data` fills, exactly.

        Everything behind is logically gone afterwards.
        Success means that the drive has it, in its buffer or on tape; `write_filemarks` makes it
        safe. Raises PositionUnknown when nobody knows where it would go, EndOfMedium at the hard
        end (`sense.information`: bytes missing, earlier blocks in the buffer included), and
        DeferredError when an earlier block was lost.
        """
        _, outcome = await self.write_blocks([data])
        return outcome

    async def write_blocks(
        self,
        blocks: Sequence[DataBuffer],
        more: Callable[[], Sequence[DataBuffer]] | None = None,
    ) -> tuple[int, WriteOutcome]:
        """`write_block` for each of `blocks`, with no pause in between in which the drive waits.

        When the drive has taken them all, so it does with those that `more` returns, until there
        are none; that is called where the wire is, by any thread. Returns how many were written,
        all or those up to the first that came with early warning, and the outcome of the last.
        Raises like `write_block`; unless the position is unknown then, those before the one that
        failed are counted.
        """
        self._demand_position()
        done, condition = await self._perform_each(self._write_command, blocks, more)
        written = len(done)
        try:
            outcome = _WRITTEN if condition is None else self._write_outcome(condition)
        except BaseException:
            written -= 1
            raise
        finally:
            statistics = self._initiator.statistics
            for data, _ in done[:written]:
                count = self._block_count(data)
                self._counter.pass_records(count)
                statistics.blocks_written += count
                statistics.bytes_written += len(data)
        return written, outcome

    def _write_command(self, data: DataBuffer) -> Write6:
        count, fixed = self._block_count(data), bool(self.block_bytes)
        return Write6(count if fixed else len(data), fixed=fixed, block_bytes=self.block_bytes)

    async def _perform_each(
        self,
        command: Callable[[DataBuffer], Command],
        buffers: Sequence[DataBuffer],
        more: Callable[[], Sequence[DataBuffer]] | None,
    ) -> tuple[list[tuple[DataBuffer, Completion]], CheckCondition | None]:
        """One command for each buffer, and how it ended."""

        def steps(of: Sequence[DataBuffer]) -> list[Step]:
            return [(command(buffer), buffer) for buffer in of]

        following = None if more is None else lambda: steps(more())
        done, condition = await self._initiator.perform_each(steps(buffers), following)
        return [(cast("DataBuffer", data), end) for (_, data), end in done], condition

    async def write_filemarks(self, count: int) -> WriteOutcome:
        """Write `count` filemarks, and return when all that was written before is on tape too.

        With `count` 0 that flush is all it does. Never immediate (SSC-4, WRITE FILEMARKS).
        Raises like `write_block`.
        """
        if count:
            self._demand_position()
        _, condition = await self._initiator.perform(WriteFilemarks6(count))
        outcome = _WRITTEN if condition is None else self._write_outcome(condition)
        self._counter.pass_filemarks(count)
        self._initiator.statistics.filemarks_written += count
        return outcome

    def _write_outcome(self, condition: CheckCondition) -> WriteOutcome:
        if isinstance(condition, EarlyWarning):
            if condition.sense.information:
                # Early warning means written. With something left over it is the hard end.
                self._counter.lose()
                raise EndOfMedium(str(condition), condition.sense, Reaction.FULL)
            self._counter.early_warning = True
            return _WRITTEN_NEAR_END
        if condition.reaction is not Reaction.SUCCESS:
            if isinstance(condition, WriteProtectedCondition):
                self.write_protected = True
            self._fail(condition)
        return _WRITTEN_NEAR_END if self._counter.early_warning else _WRITTEN

    def _demand_position(self) -> None:
        counter = self._counter
        if counter.block is None and counter.file is None:
            raise PositionUnknown(
                "nothing may be written while the position on tape is unknown; mount the tape again"
            )

    # What the drive says about itself

    async def capacity(self) -> TapeCapacity | None:
        """Room on the tape without compression, as far as the drive tells; else None.

        What is still in the drive's buffer may not be counted yet.
        """
        if (unit_bytes := self.capabilities.capacity_unit_bytes) is not None:
            page = await probe.log_page(self._initiator, TAPE_CAPACITY_PAGE)
            return TapeCapacity.from_page(page, unit_bytes) if page else None
        if self.capabilities.volume_statistics:
            page = await probe.log_page(self._initiator, VOLUME_STATISTICS_PAGE)
            return TapeCapacity.from_statistics(page) if page else None
        return None

    async def nominal_capacity_bytes(self) -> int | None:
        """What a medium like this one holds without compression (SSC-4, REPORT DENSITY SUPPORT).

        Says nothing about this very tape: it may be shorter, or worn. None when the drive does
        not tell.
        """
        buffer = array("B", bytes(DENSITY_REPORT_BYTES))
        command = ReportDensitySupport(True, len(buffer))
        completion, condition = await self._initiator.perform(command, buffer)
        if condition is not None and condition.reaction is not Reaction.SUCCESS:
            return None
        return nominal_capacity_bytes(completion.data)

    async def health(self) -> DriveHealth:
        """Alerts, errors, wear and compression, as far as the drive tells; moves no tape.

        Reading clears TapeAlert flags: there must be one reader, and it must keep them.
        """
        # READ ATTRIBUTE has 16 bytes, and ATAPI bridges choke on these; LTO has no such bridges.
        asks_chip = self.density in probe.LTO_DENSITIES and self._has_chip is not False
        found = await read_health(self._initiator, asks_chip=asks_chip)
        if found.volume is None:
            self._has_chip = found.attributes is not None
        return found
