"""A device server small enough to see through: records in a list, sense kept, rules obeyed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tapefs.emulator.reply import TargetReply
from tapefs.scsi.cdb import unpack
from tapefs.scsi.command import Direction, UnknownCommand
from tapefs.scsi.sense import Sense, SenseKey

if TYPE_CHECKING:
    from array import array

NO_SENSE = Sense(SenseKey.NO_SENSE)


@dataclass
class TapeServer:
    """Appends what is written, reads it back in order. `refuse` fails the next commands."""

    records: list[bytes] = field(default_factory=list)
    refuse: list[Sense] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    last_data: object = None
    next_read: int = 0
    reset_count: int = 0
    class_reset_count: int = 0
    power_cut_count: int = 0
    sense: Sense = NO_SENSE

    def expects(self, cdb: bytes) -> tuple[Direction, int]:
        try:
            command = unpack(cdb)
        except UnknownCommand:
            return Direction.NONE, 0
        return command.direction, command.transfer_length_bytes

    def execute(self, cdb: bytes, data_out: bytes | memoryview | array[int]) -> TargetReply:
        self.last_data = data_out
        try:
            name = unpack(cdb).name
        except UnknownCommand:
            name = "?"
        self.executed.append(name)
        if name == "REQUEST SENSE":
            report, self.sense = self.sense.pack(), NO_SENSE
            return TargetReply(True, report[: cdb[4]])
        self.sense = NO_SENSE
        if self.refuse and name != "INQUIRY":
            return self.fail(self.refuse.pop(0))
        if name == "INQUIRY":
            return TargetReply(
                True, b"\x01\x80\x03\x02\x1f\0\0\0TAPEFS  TEST            0001"[: cdb[4]]
            )
        if name == "READ BLOCK LIMITS":
            return TargetReply(True, b"\0\x10\0\0\0\x01")
        if name.startswith("WRITE") and "FILEMARKS" not in name:
            self.records.append(bytes(data_out))
            return TargetReply(True, consumed_bytes=len(data_out))
        if name.startswith("READ") and "POSITION" not in name:
            return self.read(int.from_bytes(cdb[2:5], "big"))
        if name == "REWIND":
            self.next_read = 0
        if name == "?":
            return self.fail(Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00))
        return TargetReply(True)

    def read(self, wanted: int) -> TargetReply:
        if self.next_read >= len(self.records):
            return self.fail(Sense(SenseKey.BLANK_CHECK, 0x00, 0x05))
        record = self.records[self.next_read]
        self.next_read += 1
        if len(record) != wanted:
            ili = Sense(SenseKey.NO_SENSE, incorrect_length=True, information=wanted - len(record))
            return TargetReply(self.fail(ili).good, record[:wanted])
        return TargetReply(True, record)

    def fail(self, sense: Sense) -> TargetReply:
        self.sense = sense
        return TargetReply(False)

    def class_reset(self) -> None:
        self.class_reset_count += 1

    def reset(self) -> None:
        self.reset_count += 1

    def power_cut(self) -> None:
        self.power_cut_count += 1
