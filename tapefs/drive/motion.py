"""The part of a drive that moves: rewind, locate, space, and say where the head stands."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, NoReturn

from tapefs.drive.position import PositionMismatch, PositionUnknown, TapeAddress, TapePosition
from tapefs.drive.probe import Capabilities
from tapefs.errors import DriveFailed
from tapefs.scsi.cdb import (
    Locate10,
    Locate16,
    PositionForm,
    Read6,
    ReadPosition,
    Rewind,
    Space6,
    SpaceCode,
)
from tapefs.scsi.data import LongPosition, ShortPosition
from tapefs.scsi.sense import (
    BeginningOfMedium,
    CheckCondition,
    EndOfData,
    FilemarkDetected,
    IllegalRequest,
    IncorrectLength,
    Reaction,
    Sense,
    SenseKey,
    check_condition,
)

if TYPE_CHECKING:
    from tapefs.drive.initiator import Initiator

# The largest count that SPACE(6) can carry.
SPACE_COUNT_MAX: Final = 0x7FFFFF
# For counting blocks by reading them; longer ones pass under the head all the same.
_COUNTING_BYTES: Final = 64 * 1024
# More tape files than fit on any tape: a drive that tells of more does not move.
COUNTED_MOTIONS_MAX: Final = 1_000_000
# ... and more blocks than fit on any.
COUNTED_READS_MAX: Final = 1 << 32


class TapeMotion:
    """Positioning over an initiator. `TapeDrive` is what callers use."""

    def __init__(self, initiator: Initiator) -> None:
        self._initiator = initiator
        self._counter = initiator.counter
        self.capabilities = Capabilities()
        # Length of every block in bytes; 0 where each has its own.
        self.block_bytes = 0

    async def rewind(self) -> None:
        """Go to the beginning; what the drive has buffered is written first."""
        await self._initiator.run(Rewind())
        self._counter.place(0, 0, 0)

    async def position(self) -> TapePosition:
        """What is known about where the head stands.

        Asks the drive where READ POSITION works, and returns what was counted where it does not.
        Raises PositionMismatch when drive and count disagree; the position is unknown then, and
        the next call returns the drive's word.
        """
        reported = await self._reported_position()
        here = self._counter
        if reported.block is None:
            return here.snapshot()
        if here.block is not None and here.block != reported.block:
            counted = here.block
            here.lose()
            raise PositionMismatch(
                f"the drive stands at block {reported.block} instead of {counted}; make sure that"
                " nothing else uses the drive, and mount the tape again"
            )
        here.block = reported.block
        if here.file is None:
            here.file = reported.file
        if reported.block == 0:
            here.file = here.block_in_file = 0
        counted_position = here.snapshot()
        return dataclasses.replace(
            counted_position,
            early_warning=reported.early_warning or counted_position.early_warning,
        )

    async def _reported_position(self) -> TapePosition:
        form = self.capabilities.position_form
        if form is None:
            return TapePosition()
        data = (await self._initiator.run(ReadPosition(form))).data
        if form is PositionForm.LONG:
            long = LongPosition.unpack(data)
            return TapePosition(long.block, long.file, early_warning=long.end)
        short = ShortPosition.unpack(data)
        return TapePosition(None if short.unknown else short.block, early_warning=short.end)

    async def locate(self, address: TapeAddress) -> None:
        """Go to `address`. No command is sent when the head is known to be there.

        With LOCATE where the drive has it, else over filemarks, from the beginning when the
        address lies in an earlier file. Raises EndOfData when the tape ends before it, and
        leaves the position unknown then.
        """
        here = self._counter
        if (here.block, here.file, here.block_in_file) == dataclasses.astuple(address):
            return
        self._initiator.statistics.locates += 1
        if self.capabilities.locate is False or not await self._locate_block(address.block):
            await self._space_to(address)
        here.place(address.block, address.file, address.block_in_file)

    async def _locate_block(self, block: int) -> bool:
        """LOCATE; False when this turns out to be a drive without it."""
        try:
            await self._initiator.run(Locate10(block) if block <= 0xFFFFFFFF else Locate16(block))
        except IllegalRequest:
            if self.capabilities.locate:
                raise
            self.capabilities = dataclasses.replace(self.capabilities, locate=False)
            return False
        if not self.capabilities.locate:
            self.capabilities = dataclasses.replace(self.capabilities, locate=True)
        return True

    async def _space_to(self, address: TapeAddress) -> None:
        here = self._counter
        file, block_in_file = here.file, here.block_in_file
        if file is None or file > address.file or (file == address.file and block_in_file is None):
            await self.rewind()
            file, block_in_file = 0, 0
        if file < address.file:
            block_in_file = 0
        try:
            await self.space_filemarks(address.file - file)
            left = address.block_in_file - (block_in_file or 0)
            while left:
                step = max(-SPACE_COUNT_MAX, min(left, SPACE_COUNT_MAX))
                await self.space_blocks(step)
                left -= step
        except (FilemarkDetected, EndOfData):
            here.lose()
            raise

    async def space_filemarks(self, count: int) -> None:
        """Go over `count` filemarks: behind the last one forwards, before it backwards.

        Raises EndOfData when there are fewer ahead (the head is there), BeginningOfMedium when
        there are fewer behind (the head is there).
        """
        if not count:
            return
        if count < 0 and self.capabilities.space_tells is False:
            await self._approach_filemark(-count)
            return
        here = self._counter
        file = here.file
        # Back over one filemark: over the records since then, and the mark itself.
        known = count == -1 and here.block is not None and here.block_in_file is not None
        block = (here.block or 0) - (here.block_in_file or 0) - 1 if known else None
        condition = await self._space(SpaceCode.FILEMARKS, count)
        if condition is None:
            here.place(block, None if file is None else file + count, 0 if count > 0 else None)
            return
        here.lose()
        left = condition.sense.information
        if isinstance(condition, EndOfData) and file is not None and left is not None:
            here.file = file + count - abs(left)
        raise condition

    async def _approach_filemark(self, count: int) -> None:
        """Go before the filemark that is the `count`-th backwards, from behind it.

        Drives that do not say how far they got are not asked to go back over filemarks: tgt goes
        one record too far. One block back from behind a filemark is before it on every drive.
        """
        here = self._counter
        start, file = here.address(), here.file
        if file is None:
            raise PositionUnknown(
                "the place on tape is not known, and this drive cannot tell; mount the tape again"
            )
        if file < count:
            await self.rewind()
            sense = Sense(asc=0x00, ascq=0x04, end_of_medium=True)
            raise check_condition(sense, "SPACE over filemarks")
        await self._space_to(TapeAddress(0, file - count + 1, 0))
        await self._space(SpaceCode.BLOCKS, -1)
        known = start is not None and count == 1
        block = start.block - start.block_in_file - 1 if start and known else None
        here.place(block, file - count, None)

    async def space_blocks(self, count: int) -> None:
        """Go over `count` blocks, backwards when negative.

        Raises FilemarkDetected when a filemark comes first (the head is beyond it, seen in the
        direction of travel), EndOfData or BeginningOfMedium (the head is there). A drive that does
        not say how far it got may have run over filemarks, so the position is unknown then.
        """
        if not count:
            return
        here = self._counter
        direction = 1 if count > 0 else -1
        condition = await self._space(SpaceCode.BLOCKS, count)
        left = 0 if condition is None else condition.sense.information
        runs_over = self.capabilities.space_tells is False and condition is None
        if runs_over or (left is None and isinstance(condition, EndOfData)):
            # Drives that do not say how far they got may also have run over filemarks.
            here.lose()
        elif left is None:
            here.block = here.block_in_file = None
        else:
            # Some drives give the residue of a backward SPACE with the wrong sign.
            here.pass_records((abs(count) - abs(left)) * direction)
        here.early_warning = False
        if isinstance(condition, FilemarkDetected):
            here.pass_filemarks(direction)
        if condition is not None:
            raise condition

    async def _space(self, code: SpaceCode, count: int) -> CheckCondition | None:
        """SPACE; returns the condition for the caller to count with, or raises."""
        _, condition = await self._initiator.perform(Space6(code, count))
        if condition is None or condition.reaction is Reaction.SUCCESS:
            return None
        if isinstance(condition, BeginningOfMedium):
            self._counter.place(0, 0, 0)
            raise condition
        if not isinstance(condition, EndOfData | FilemarkDetected):
            self._fail(condition)
        return condition

    async def space_to_end_of_data(self, near: TapeAddress | None = None) -> TapePosition:
        """Go to where an append goes, and return where that is; its `block` is always known.

        A drive with READ POSITION says the block (and with its long form the file). On others the
        blocks are counted, which takes one motion per tape file; and where SPACE does not say how
        far it got, they are read over. Counting starts from `near`, the beginning of a tape file
        that the caller knows, when there are as many filemarks before it as `near` says: then only
        that number is proven, and its block taken for granted. Else it starts from where the head
        is known to be, or from the beginning.
        """
        start = self._counter.address()
        if self.capabilities.read_position:
            condition = await self._space(SpaceCode.END_OF_DATA, 0)
            if isinstance(condition, FilemarkDetected):
                self._fail(condition)
            self._counter.lose()
            position = await self.position()
            if position.block is not None:
                return position
        await self._return_to(await self._counting_start(start, near))
        for _ in range(COUNTED_MOTIONS_MAX):
            if await self._count_file():
                return self._counter.snapshot()
        raise self._endless()

    async def _counting_start(
        self, start: TapeAddress | None, near: TapeAddress | None
    ) -> TapeAddress:
        if near is not None and (start is None or start.file < near.file):
            try:
                await self._space_to(near)
            except EndOfData:
                pass
            else:
                self._counter.place(near.block, near.file, near.block_in_file)
                return near
        return start or TapeAddress(0, 0, 0)

    async def pass_tape_file(self) -> int:
        """Go behind the next filemark, and return the block there.

        The head must be at a known place. Raises EndOfData when no filemark follows (the head is
        at the end then). Counts where `space_to_end_of_data` would.
        """
        start = self._counter.address()
        if self.capabilities.read_position:
            await self.space_filemarks(1)
            block = (await self.position()).block
            if block is not None:
                return block
        if start is None:
            raise PositionUnknown(
                "the place on tape is not known, and this drive cannot tell; mount the tape again"
            )
        await self._return_to(start)
        ended = await self._count_file()
        assert self._counter.block is not None
        if ended:
            sense = Sense(SenseKey.BLANK_CHECK, 0x00, 0x05)
            raise check_condition(sense, "SPACE over the last tape file")
        return self._counter.block

    async def _return_to(self, address: TapeAddress) -> None:
        """Go to `address`, of a place the head has been at, or else to where its tape file begins.

        Over filemarks only: tgt fails when it spaces blocks up to the end of data.
        """
        if self._counter.address() != address:
            beginning = TapeAddress(address.block - address.block_in_file, address.file, 0)
            await self._space_to(beginning)
            self._counter.place(beginning.block, beginning.file, 0)

    async def _count_file(self) -> bool:
        """From a known place go behind the next filemark, or else to the end of data: then True.

        Where that is, is known in either case.
        """
        start = self._counter.address()
        assert start is not None
        for _ in range(COUNTED_MOTIONS_MAX):
            if self.capabilities.space_tells is False:
                await self._return_to(start)
                return await self._read_over_file()
            try:
                await self.space_blocks(SPACE_COUNT_MAX)
            except (FilemarkDetected, EndOfData) as condition:
                tells = self._counter.block is not None
                self.capabilities = dataclasses.replace(self.capabilities, space_tells=tells)
                if tells:
                    return isinstance(condition, EndOfData)
        raise self._endless()

    async def _read_over_file(self) -> bool:
        for _ in range(COUNTED_READS_MAX):
            command = Read6(_COUNTING_BYTES)
            if self.block_bytes:
                command = Read6(1, fixed=True, block_bytes=self.block_bytes)
            _, condition = await self._initiator.perform(command)
            if isinstance(condition, FilemarkDetected):
                self._counter.pass_filemarks()
                return False
            if isinstance(condition, EndOfData):
                return True
            passed = condition is None or condition.reaction is Reaction.SUCCESS
            if condition is not None and not passed and not isinstance(condition, IncorrectLength):
                self._fail(condition)
            self._counter.pass_records()
        raise self._endless()

    def _endless(self) -> DriveFailed:
        self._counter.lose()
        return DriveFailed(
            f"the drive found no end of data in {COUNTED_MOTIONS_MAX} tape files or"
            f" {COUNTED_READS_MAX} blocks; power-cycle the drive and try again"
        )

    def _fail(self, condition: CheckCondition) -> NoReturn:
        """Raise `condition`, which is the result of nothing that was asked for."""
        if condition.reaction is Reaction.RESULT:
            self._counter.lose()
        raise condition
