"""The drive's mechanics: a cartridge, a head somewhere on it, and a buffer in between.

Every method is one movement that a command asks for, with the stops and residues of SSC-4; what
ends it early is raised as `CheckConditionStatus`. Which commands exist, unit attentions and mode
parameters are not known here.

When the buffer holds anything, the head is at the end of data: whatever goes elsewhere writes the
buffer out first, and waits until it is on the medium.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tapefs import telemetry
from tapefs.emulator import status
from tapefs.emulator.fault_queue import FaultPoint, FaultQueue, PlannedFault
from tapefs.emulator.motion import MotionModel
from tapefs.emulator.status import CheckConditionStatus
from tapefs.emulator.write_buffer import WriteBuffer
from tapefs.errors import MediumFailed
from tapefs.scsi.sense import SenseKey

if TYPE_CHECKING:
    from tapefs.emulator.medium import VirtualCartridge
    from tapefs.emulator.personality import Personality
    from tapefs.emulator.tape_stream import TapeStream

# The zone behind early warning is at most this share of a tape, so that small ones work too.
_EARLY_WARNING_SHARE: Final = 20


@dataclass(frozen=True, slots=True)
class AlertFault(PlannedFault):
    """TapeAlert flags that a reading of the page finds raised."""

    point: FaultPoint = FaultPoint.REPORT
    flags: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"alert {sorted(self.flags)}"


@dataclass(slots=True)
class Faults:
    """Blocks that fail, by number, and how often each still will: `faults.unreadable[17] = 2`.

    An unwritable block fails when it goes from the buffer to the medium, not when the host sends
    it: the host learns of it later, as with a real drive.
    """

    unreadable: Counter[int] = field(default_factory=Counter)
    unwritable: Counter[int] = field(default_factory=Counter)
    # TapeAlert flags that the drive raises, and errors that it corrects in each MiB it moves.
    alerts: FaultQueue[AlertFault] = field(default_factory=FaultQueue[AlertFault])
    corrected_per_mib: int = 0
    wants_cleaning: bool = False
    # The tape ends, or warns of its end, sooner than its chip says; in bytes of the image.
    end_bytes: int | None = None
    early_warning_bytes: int | None = None

    def raised_alerts(self) -> frozenset[int]:
        """The planned TapeAlert flags that stand at this reading of them."""
        fault = self.alerts.take(FaultPoint.REPORT, "LOG SENSE")
        return frozenset() if fault is None else fault.flags

    def corrected_in(self, byte_count: int) -> int:
        """Errors that were corrected while so many bytes were moved."""
        return self.corrected_per_mib * byte_count >> 20

    def writable_count(self, block: int, count: int) -> int:
        """How many of so many blocks can be written; MediumFailed when this one is to fail."""
        if _fails(self.unwritable, block, "unwritable"):
            raise MediumFailed(f"block {block} cannot be written, as a fault plan has it")
        bad = (ahead for ahead in range(1, count) if self.unwritable[block + ahead] > 0)
        return next(bad, count) if self.unwritable else count


@dataclass(slots=True)
class DriveLog:
    """What log pages report since power on or the last LOG SELECT; it outlives a cartridge."""

    written_bytes: int = 0
    read_bytes: int = 0
    write_errors: int = 0
    read_errors: int = 0
    # Cartridges threaded; like a drive's own memory it survives a reset.
    loads: int = 0
    # TapeAlert flags that stand (SSC-4, numbers 1 to 64).
    alerts: set[int] = field(default_factory=set)

    def reset(self) -> None:
        """Back to zero."""
        self.written_bytes = self.read_bytes = self.write_errors = self.read_errors = 0
        self.alerts.clear()


class Deck:
    """A threaded cartridge. Not thread-safe.

    `position` is the object that the next transfer with the host would be; `busy_s` adds up how
    long a real drive would have been at work.
    """

    def __init__(
        self,
        cartridge: VirtualCartridge,
        personality: Personality,
        faults: Faults | None = None,
        log: DriveLog | None = None,
        stream: TapeStream | None = None,
    ) -> None:
        """The head stands at the beginning of the partition.

        With a `stream`, writing costs the host what the drive's buffer does not hide.
        """
        self.cartridge: Final = cartridge
        self.position = 0
        self.buffered_mode = True
        self.busy_s = 0.0
        self._faults = faults or Faults()
        self._log = log or DriveLog()
        self._personality = personality
        self._motion = MotionModel(personality, self.capacity_bytes)
        self._stream = stream
        self._buffer = WriteBuffer()
        self._warned = False

    @property
    def capacity_bytes(self) -> int:
        """Where the physical end is, in bytes of the image."""
        end_bytes = self._faults.end_bytes
        promised_bytes = self.cartridge.memory.capacity_bytes
        return promised_bytes if end_bytes is None else min(promised_bytes, end_bytes)

    @property
    def early_warning_bytes(self) -> int:
        """Where the early-warning zone begins, in bytes of the image."""
        if self._faults.early_warning_bytes is not None:
            return min(self._faults.early_warning_bytes, self.capacity_bytes)
        return self._before_warning_bytes(self.capacity_bytes)

    @property
    def nominal_bytes(self) -> int:
        """What the drive believes to fit before early warning; a worn tape holds less."""
        return self._before_warning_bytes(self.cartridge.memory.capacity_bytes)

    @property
    def remaining_bytes(self) -> int:
        """What the drive believes to fit between the end of data, buffer included, and warning."""
        end_bytes = self.cartridge.end_bytes + self._buffer.span_bytes
        return max(0, self.nominal_bytes - end_bytes)

    def _before_warning_bytes(self, capacity_bytes: int) -> int:
        zone_bytes = self._personality.early_warning_bytes
        return capacity_bytes - min(zone_bytes, capacity_bytes // _EARLY_WARNING_SHARE)

    def wrap_ends(self) -> list[int]:
        """The last object of each wrap that is written to; that of the last is the end of data."""
        cartridge = self.cartridge
        count, limits = cartridge.object_count, self._motion.wrap_limits(cartridge.end_bytes)
        starts = [bisect_left(range(count), at, key=cartridge.offset_bytes) for at in limits]
        return [start - 1 for start in (*starts, count)] if count else []

    @property
    def in_early_warning(self) -> bool:
        """Whether the head stands behind the early-warning point."""
        return self._head_bytes() > self.early_warning_bytes

    @property
    def file_number(self) -> int:
        """Filemarks between the beginning and the head, those in the buffer included."""
        return self.cartridge.filemarks_before(self.position) + self._buffer.filemark_count

    @property
    def medium_position(self) -> int:
        """The object that the next transfer with the medium would be (READ POSITION, last)."""
        return self.position - self._buffer.object_count

    @property
    def buffered(self) -> tuple[int, int]:
        """Objects and bytes in the buffer."""
        return self._buffer.object_count, self._buffer.data_bytes

    def lose_power(self) -> None:
        """What is in the buffer is gone; the head is at the beginning when power is back."""
        self._buffer.discard()
        if self._stream is not None:
            self._stream.discard()
        self.position = 0

    # Writing.

    def write(self, data: memoryview) -> None:
        """Accept one record. An error of a record accepted earlier is deferred (SPC-4): then this
        one was not accepted. Raises CheckConditionStatus, for early warning too.
        """
        self._start_writing()
        room_bytes = self._personality.buffer_bytes - len(data)
        try:
            self._write_out(down_to_bytes=max(0, room_bytes))
        except CheckConditionStatus as error:
            raise self._about_earlier(error, len(data)) from error
        self._buffer.add_record(data)
        self.position += 1
        self._log.written_bytes += len(data)
        if self._stream is not None:
            self.busy_s += self._stream.accept(len(data))
        else:
            self.busy_s += self._motion.transfer_s(len(data))
        self._finish_writing(len(data))

    def write_filemarks(self, count: int, *, immediate: bool) -> None:
        """Accept filemarks and, unless `immediate`, return when everything is on the medium."""
        if count:
            self._start_writing()
            self._buffer.add_filemarks(count)
            self.position += count
        if not immediate:
            self.flush()
        if count or self._warned:
            self._finish_writing(0)

    def flush(self) -> None:
        """Return when everything that was accepted is on the medium and stays there."""
        if self._buffer:
            stream = self._stream
            self.busy_s += self._motion.stop_s() if stream is None else stream.flush()
        self._write_out(down_to_bytes=0)
        try:
            self.cartridge.sync()
        except MediumFailed as exc:
            raise CheckConditionStatus(status.write_error(0, deferred=False)) from exc

    def erase(self) -> None:
        """Make the head's place the end of data."""
        self.flush()
        self._start_writing()
        self.flush()

    def _start_writing(self) -> None:
        if self.cartridge.write_protected:
            self._log.alerts.add(9)
            raise CheckConditionStatus(status.WRITE_PROTECTED)
        if not self._buffer and self.position < self.cartridge.object_count:
            # Behind the very first object a label may be followed by something new.
            if self._personality.appends_only and self.position > 1:
                raise CheckConditionStatus(status.WRITE_APPEND_ERROR)
            try:
                self.cartridge.truncate(self.position)
            except MediumFailed as exc:
                raise CheckConditionStatus(status.write_error(0, deferred=False)) from exc
        if not self.in_early_warning:
            self._warned = False

    def _finish_writing(self, consumed_bytes: int) -> None:
        """Write through where that is asked for, and give early warning."""
        in_zone = self.in_early_warning
        # At the first warning everything goes to the medium (mode page 10h, SEW).
        if (in_zone and not self._warned) or not self._may_buffer(in_zone=in_zone):
            self._write_out(down_to_bytes=0)
        if in_zone:
            self._warned = True
            warning = status.early_warning(bare=self._personality.bare_early_warning)
            raise CheckConditionStatus(warning, consumed_bytes=consumed_bytes)

    def _may_buffer(self, *, in_zone: bool) -> bool:
        return self.buffered_mode and (not in_zone or self._personality.buffers_past_early_warning)

    def _write_out(self, *, down_to_bytes: int) -> None:
        """Write the oldest objects, in runs, until the buffer holds no more than so many bytes.

        What cannot be written is lost, with everything behind it; the head is then where the
        first lost object would have been.
        """
        buffer = self._buffer
        while buffer and (down_to_bytes == 0 or buffer.held_bytes > down_to_bytes):
            run_length = buffer.run_length(self.capacity_bytes - self.cartridge.end_bytes)
            if not run_length:
                raise CheckConditionStatus(status.volume_overflow(self._lose_buffer()))
            block = self.cartridge.object_count
            try:
                run_length = self._faults.writable_count(block, run_length)
                buffer.write_oldest(self.cartridge, run_length)
            except MediumFailed as exc:
                self._log.write_errors += 1
                self._log.alerts |= {3, 6}
                lost = self._lose_buffer()
                raise CheckConditionStatus(status.write_error(lost, deferred=False)) from exc

    def _lose_buffer(self) -> int:
        lost = self._buffer.discard()
        self.position = self.cartridge.object_count
        return lost

    def _about_earlier(
        self, error: CheckConditionStatus, length_bytes: int
    ) -> CheckConditionStatus:
        """The same failure, told to a WRITE whose own record was not even accepted."""
        missing = error.sense.information or 0
        if error.sense.key is SenseKey.VOLUME_OVERFLOW:
            return CheckConditionStatus(status.volume_overflow(missing + length_bytes))
        return CheckConditionStatus(status.write_error(missing, deferred=True))

    # Reading.

    def read(self, into: memoryview, *, sili: bool, overlength_is_error: bool) -> int:
        """Read the block at the head; its length. Raises CheckConditionStatus at a filemark, at
        the end of data, on a read error, and (with the data that fits) when lengths differ.
        """
        length_bytes = self._read_block(into, len(into))
        difference_bytes = len(into) - length_bytes
        shown_bytes = min(len(into), length_bytes)
        if (difference_bytes > 0 and not sili) or (
            difference_bytes < 0 and (overlength_is_error or not sili)
        ):
            raise CheckConditionStatus(
                status.incorrect_length(difference_bytes), into[:shown_bytes]
            )
        return shown_bytes

    def read_fixed(self, into: memoryview, block_bytes: int) -> None:
        """Read blocks of one length until `into`, a multiple of it, is full. Residues count
        blocks; a block of another length stops the reading behind it.
        """
        wanted_count = len(into) // block_bytes
        for index in range(wanted_count):
            start_bytes = index * block_bytes
            done, missing = into[:start_bytes], wanted_count - index
            try:
                length_bytes = self._read_block(
                    into[start_bytes : start_bytes + block_bytes], missing
                )
            except CheckConditionStatus as error:
                raise CheckConditionStatus(error.sense, done) from error
            if length_bytes != block_bytes:
                raise CheckConditionStatus(status.incorrect_length(missing), done)

    def _read_block(self, into: memoryview, missing: int) -> int:
        """Read into `into` what fits of the next block; its full length. Residue `missing`."""
        if self._buffer:
            self.flush()
        block, cartridge = self.position, self.cartridge
        if block >= cartridge.object_count:
            raise CheckConditionStatus(status.end_of_data(missing))
        self.position += 1
        if cartridge.is_filemark(block):
            raise CheckConditionStatus(status.filemark_detected(missing))
        try:
            record = cartridge.read_record(block, into)
        except MediumFailed as exc:
            raise CheckConditionStatus(status.read_error(missing)) from exc
        self.busy_s += self._motion.transfer_s(record.length_bytes)
        if not record.readable or _fails(self._faults.unreadable, block, "unreadable"):
            self._log.read_errors += 1
            self._log.alerts |= {3, 5}
            raise CheckConditionStatus(status.read_error(missing))
        self._log.read_bytes += record.length_bytes
        return record.length_bytes

    # Moving.

    def locate(self, block: int) -> None:
        """Go before object `block`. Raises CheckConditionStatus at the end of data."""
        self.flush()
        end = self.cartridge.object_count
        self._move(min(block, end))
        if block > end:
            raise CheckConditionStatus(status.end_of_data(block - end))

    def locate_file(self, file_number: int) -> None:
        """Go behind filemark number `file_number`, counted from 1; 0 is the beginning."""
        self.flush()
        count = self.cartridge.filemark_count
        if file_number > count:
            self._move(self.cartridge.object_count)
            raise CheckConditionStatus(status.end_of_data(file_number - count))
        self._move(self.cartridge.filemark(file_number - 1) + 1 if file_number else 0)

    def space_to_end_of_data(self) -> None:
        """Go where an append would go."""
        self.flush()
        self._move(self.cartridge.object_count)

    def space_blocks(self, count: int) -> None:
        """Go over blocks; a filemark stops that, on its far side."""
        self.flush()
        cartridge, start = self.cartridge, self.position
        file_number = cartridge.filemarks_before(start)
        if count >= 0:
            has_mark = file_number < cartridge.filemark_count
            stop = cartridge.filemark(file_number) if has_mark else cartridge.object_count
            if start + count <= stop:
                self._move(start + count)
                return
            missing = count - (stop - start)
            self._move(stop + has_mark)
            sense = status.filemark_detected if has_mark else status.end_of_data
        else:
            has_mark = file_number > 0
            stop = cartridge.filemark(file_number - 1) + 1 if has_mark else 0
            if start + count >= stop:
                self._move(start + count)
                return
            missing = -count - (start - stop)
            self._move(stop - has_mark)
            sense = status.filemark_detected if has_mark else status.beginning_of_partition
        raise CheckConditionStatus(sense(missing))

    def space_objects(self, count: int) -> None:
        """Go over `count` records and filemarks alike, as tgt does for records.

        Whoever arrives at the end of data is told so, also where nothing is missing.
        """
        self.flush()
        end = self.cartridge.object_count
        target = self.position + count
        self._move(max(0, min(target, end)))
        if count > 0 and target >= end:
            raise CheckConditionStatus(status.end_of_data(target - end))

    def space_filemarks(self, count: int, *, adjacent: bool = False) -> None:
        """Go over `count` filemarks, to the far side of the last; backwards when negative.

        With `adjacent`, to the far side of the next `count` filemarks that stand side by side.
        """
        self.flush()
        run = abs(count) if adjacent else 1
        passed = self.cartridge.filemarks_before(self.position)
        if count > 0:
            self._space_forward(passed, count, run)
        elif count < 0:
            self._space_backward(passed, -count, run)

    def _space_forward(self, passed: int, count: int, run: int) -> None:
        cartridge = self.cartridge
        last = self._find_run(range(passed + count - 1, cartridge.filemark_count), run)
        if last is None:
            self._move(cartridge.object_count)
            missing = max(0, count - (cartridge.filemark_count - passed))
            raise CheckConditionStatus(status.end_of_data(missing))
        self._move(cartridge.filemark(last) + 1)

    def _space_backward(self, passed: int, count: int, run: int) -> None:
        last = self._find_run(range(passed - count + run - 1, -1, -1), run)
        if last is None:
            self._move(0)
            raise CheckConditionStatus(status.beginning_of_partition(max(0, count - passed)))
        self._move(self.cartridge.filemark(last - run + 1))

    def _find_run(self, ends: range, run: int) -> int | None:
        """The first filemark among `ends` that closes a run of `run` adjacent ones."""
        filemark, before = self.cartridge.filemark, run - 1
        runs = (i for i in ends if i >= before and filemark(i) - filemark(i - before) == before)
        return next(runs, None)

    def _head_bytes(self) -> int:
        if self._buffer:
            return self.cartridge.end_bytes + self._buffer.span_bytes
        return self.cartridge.offset_bytes(self.position)

    def _move(self, block: int) -> None:
        start_bytes = self._head_bytes()
        self.position = block
        self.busy_s += self._motion.search_s(start_bytes, self._head_bytes())


def _fails(faults: Counter[int], block: int, kind: str) -> bool:
    if not faults or faults[block] <= 0:
        return False
    faults[block] -= 1
    telemetry.event(telemetry.FAULT_STRUCK, fault=kind, block=block)
    return True
