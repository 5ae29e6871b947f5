"""What each command does to the emulated drive. One function a command, and the table of them.

Each takes the unit, the command and what the host sent, and returns the reply to a command that
ended well; everything else is raised as `CheckConditionStatus`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from tapefs.emulator import parameters, status
from tapefs.emulator.reply import TargetReply
from tapefs.emulator.status import CheckConditionStatus
from tapefs.scsi import cdb as c
from tapefs.scsi.data import LongPosition, ShortPosition
from tapefs.scsi.sense import Sense, SenseKey
from tapefs.scsi.wraps import WRAP_COUNTS, pack_wraps

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.emulator.deck import Deck
    from tapefs.emulator.logical_unit import LogicalUnit
    from tapefs.emulator.personality import Personality

    Handler = Callable[[LogicalUnit, Any, memoryview], TargetReply]

FILEMARKS_PER_COMMAND_MAX: Final = 65_536
# What one fixed-mode READ or WRITE may move; host memory stands behind it.
_TRANSFER_BYTES_MAX: Final = 64 << 20
_DATA_PHASE_ERROR: Final = Sense(SenseKey.ABORTED_COMMAND, 0x4B, 0x00)
_GOOD: Final = TargetReply(good=True)
# Of MODE SENSE(6) (SPC-4).
_MODE_HEADER_BYTES: Final = 4
_DESCRIPTOR_BYTES: Final = 8
# What tgt answers to READ POSITION, wherever it stands.
_NO_POSITION: Final = {
    c.PositionForm.SHORT: bytes.fromhex("14") + bytes(19),
    c.PositionForm.LONG: bytes.fromhex("20") + bytes(31),
    c.PositionForm.EXTENDED: bytes.fromhex("20") + bytes(31),
}


def handlers(personality: Personality) -> dict[type, Handler]:
    """The commands that a drive of this personality has."""
    table: dict[type, Handler] = dict(_EVERY_DRIVE)
    if personality.has_locate:
        table[c.Locate10] = _locate
    if personality.has_wide_addresses:
        table[c.Locate16] = _locate
        table[c.Space16] = _space
    if not personality.has_log_pages:
        del table[c.LogSense], table[c.LogSelect]
    if personality.has_read_position:
        table[c.ReadPosition] = _read_position
    if personality.has_attributes:
        table[c.ReadAttribute] = _read_attribute
    if personality.density_code in WRAP_COUNTS:
        table[c.ReadEndOfWrapPosition] = _read_end_of_wrap_position
    return table


def _nothing(_unit: LogicalUnit, _command: c.Command, _data: memoryview) -> TargetReply:
    return _GOOD


def _test_unit_ready(unit: LogicalUnit, _command: c.Command, _data: memoryview) -> TargetReply:
    unit.ready_deck()
    return _GOOD


# Transfers.


def _block_bytes(unit: LogicalUnit, command: c.Read6 | c.Write6) -> int:
    """Length of a block in fixed mode; 0 in variable mode. Refuses what the drive cannot do."""
    if not command.fixed:
        if unit.personality.fixed_only:
            raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
        return 0
    block_bytes = unit.modes.block_bytes
    if not block_bytes or command.transfer_length * block_bytes > _TRANSFER_BYTES_MAX:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    return block_bytes


def _read(unit: LogicalUnit, command: c.Read6, _data: memoryview) -> TargetReply:
    deck = unit.ready_deck()
    block_bytes = _block_bytes(unit, command)
    if command.fixed and command.sili:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    if not command.transfer_length:
        return _GOOD
    if block_bytes:
        into = unit.storage(command.transfer_length * block_bytes)
        deck.read_fixed(into, block_bytes)
        return TargetReply(True, into)
    into = unit.storage(command.transfer_length)
    overlength_is_error = unit.modes.block_bytes != 0
    shown_bytes = deck.read(into, sili=command.sili, overlength_is_error=overlength_is_error)
    return TargetReply(True, into[:shown_bytes])


def _write(unit: LogicalUnit, command: c.Write6, data: memoryview) -> TargetReply:
    deck = unit.ready_deck()
    block_bytes = _block_bytes(unit, command)
    if not command.transfer_length:
        return _GOOD
    if block_bytes:
        return _write_fixed(deck, _sent(data, command.transfer_length * block_bytes), block_bytes)
    if not parameters.block_limits(unit.personality).allow(command.transfer_length):
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    deck.write(_sent(data, command.transfer_length))
    return TargetReply(True, consumed_bytes=command.transfer_length)


def _write_fixed(deck: Deck, data: memoryview, block_bytes: int) -> TargetReply:
    """Blocks of one length; INFORMATION counts blocks. Early warning does not stop it."""
    warning: CheckConditionStatus | None = None
    for start_bytes in range(0, len(data), block_bytes):
        try:
            deck.write(data[start_bytes : start_bytes + block_bytes])
        except CheckConditionStatus as error:
            if error.sense.key is not SenseKey.NO_SENSE:
                raise _in_blocks(error, start_bytes, len(data), block_bytes) from error
            warning = error
    if warning is not None:
        raise CheckConditionStatus(warning.sense, consumed_bytes=len(data)) from warning
    return TargetReply(True, consumed_bytes=len(data))


def _in_blocks(
    error: CheckConditionStatus, start_bytes: int, total_bytes: int, block_bytes: int
) -> CheckConditionStatus:
    """The failure of the block at `start_bytes`, with the blocks that were not tried added."""
    sense = error.sense
    if sense.information is None or sense.deferred:
        return CheckConditionStatus(sense, consumed_bytes=start_bytes)
    untried = (total_bytes - start_bytes) // block_bytes - 1
    information = -(-sense.information // block_bytes) + untried
    in_blocks = Sense(
        sense.key,
        sense.asc,
        sense.ascq,
        end_of_medium=sense.end_of_medium,
        information=information,
    )
    return CheckConditionStatus(in_blocks, consumed_bytes=start_bytes)


def _sent(data: memoryview, length_bytes: int) -> memoryview:
    if len(data) < length_bytes:
        raise CheckConditionStatus(_DATA_PHASE_ERROR)
    return data[:length_bytes]


def _write_filemarks(
    unit: LogicalUnit, command: c.WriteFilemarks6, _data: memoryview
) -> TargetReply:
    deck = unit.ready_deck()
    # A flush that does not wait would be none (SSC-4).
    if command.count > FILEMARKS_PER_COMMAND_MAX or (command.immediate and not command.count):
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    deck.write_filemarks(command.count, immediate=command.immediate)
    return _GOOD


def _erase(unit: LogicalUnit, _command: c.Erase6, _data: memoryview) -> TargetReply:
    unit.ready_deck().erase()
    return _GOOD


# Movements. IMMED only saves the host the wait, and nothing here makes it wait.


def _rewind(unit: LogicalUnit, _command: c.Rewind, _data: memoryview) -> TargetReply:
    unit.ready_deck().locate(0)
    return _GOOD


def _locate(unit: LogicalUnit, command: c.Locate10 | c.Locate16, _data: memoryview) -> TargetReply:
    deck = unit.ready_deck()
    if command.partition:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    destination = getattr(command, "destination", c.LocateDestination.OBJECT)
    if destination is c.LocateDestination.FILE:
        deck.locate_file(command.block)
    elif destination is c.LocateDestination.END_OF_DATA:
        deck.space_to_end_of_data()
    else:
        deck.locate(command.block)
    return _GOOD


def _space(unit: LogicalUnit, command: c.Space6 | c.Space16, _data: memoryview) -> TargetReply:
    if unit.personality.space_tells:
        return _space_as_standard(unit.ready_deck(), command)
    try:
        return _space_as_tgt(unit.ready_deck(), command)
    except CheckConditionStatus as error:
        sense = error.sense
        if sense.information is None:
            raise
        # Neither how far it got nor the right key.
        told = Sense(asc=sense.asc, ascq=sense.ascq, filemark=sense.filemark)
        raise CheckConditionStatus(told) from error


def _space_as_tgt(deck: Deck, command: c.Space6 | c.Space16) -> TargetReply:
    if command.code is c.SpaceCode.BLOCKS:
        deck.space_objects(command.count)
        return _GOOD
    _space_as_standard(deck, command)
    if command.code is c.SpaceCode.FILEMARKS and command.count < 0:
        # Back over filemarks it goes one object too far.
        deck.space_objects(-1)
    return _GOOD


def _space_as_standard(deck: Deck, command: c.Space6 | c.Space16) -> TargetReply:
    if command.code is c.SpaceCode.BLOCKS:
        deck.space_blocks(command.count)
    elif command.code is c.SpaceCode.FILEMARKS:
        deck.space_filemarks(command.count)
    elif command.code is c.SpaceCode.SEQUENTIAL_FILEMARKS:
        deck.space_filemarks(command.count, adjacent=True)
    elif command.code is c.SpaceCode.END_OF_DATA:
        deck.space_to_end_of_data()
    else:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    return _GOOD


def _load_unload(unit: LogicalUnit, command: c.LoadUnload, _data: memoryview) -> TargetReply:
    if command.load:
        if command.eot:
            raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
        unit.load()
    elif unit.removal_prevented and unit.deck is not None:
        raise CheckConditionStatus(status.REMOVAL_PREVENTED)
    else:
        unit.unload()
    return _GOOD


def _prevent(
    unit: LogicalUnit, command: c.PreventAllowMediumRemoval, _data: memoryview
) -> TargetReply:
    unit.removal_prevented = command.prevent
    return _GOOD


# Parameter data.


def _read_position(unit: LogicalUnit, command: c.ReadPosition, _data: memoryview) -> TargetReply:
    deck = unit.ready_deck()
    if not unit.personality.knows_position:
        return TargetReply(True, _NO_POSITION[command.form])
    objects, data_bytes = deck.buffered
    beginning, end = deck.position == 0, deck.in_early_warning
    if command.form is c.PositionForm.SHORT:
        short = ShortPosition(
            block=deck.position,
            last_block=deck.medium_position if unit.personality.tells_buffered else deck.position,
            beginning=beginning,
            end=end,
            buffered_blocks=objects,
            buffered_bytes=data_bytes,
        )
        return TargetReply(True, short.pack())
    if not unit.personality.has_long_position:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    if command.form is c.PositionForm.LONG:
        long = LongPosition(deck.position, deck.file_number, beginning=beginning, end=end)
        return TargetReply(True, long.pack())
    flags = beginning << 7 | end << 6
    numbers = (objects, deck.position, deck.medium_position, data_bytes)
    return TargetReply(True, struct.pack(">BBHIQQQ", flags, 0, 0x1C, *numbers))


def _read_block_limits(
    unit: LogicalUnit, _command: c.ReadBlockLimits, _data: memoryview
) -> TargetReply:
    return TargetReply(True, parameters.block_limits(unit.personality).pack())


def _inquiry(unit: LogicalUnit, command: c.Inquiry, _data: memoryview) -> TargetReply:
    if command.evpd:
        answer = parameters.vital_product_data(unit.personality, unit.serial, command.page)
    elif command.page:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    else:
        answer = parameters.inquiry(unit.personality)
    return TargetReply(True, answer[: command.allocation_bytes])


def _mode_sense(
    unit: LogicalUnit, command: c.ModeSense6 | c.ModeSense10, _data: memoryview
) -> TargetReply:
    deck = unit.deck
    answer = unit.modes.sense(
        command.page,
        command.subpage,
        command.control,
        write_protected=deck is not None and deck.cartridge.write_protected,
        descriptor=not command.no_block_descriptor,
        ten=isinstance(command, c.ModeSense10),
    )
    if unit.personality.strict_mode_allocation and isinstance(command, c.ModeSense6):
        _check_allocation(command, len(answer))
    return TargetReply(True, answer[: command.allocation_bytes])


def _check_allocation(command: c.ModeSense6, answer_bytes: int) -> None:
    """Sony's rule: exactly header and descriptor for page 0; else ends at a boundary, or beyond."""
    descriptor_bytes = 0 if command.no_block_descriptor else _DESCRIPTOR_BYTES
    head_bytes = _MODE_HEADER_BYTES + descriptor_bytes
    allowed = {head_bytes} if not command.page else {_MODE_HEADER_BYTES, head_bytes, answer_bytes}
    roomy = command.page and command.allocation_bytes >= answer_bytes
    if not roomy and command.allocation_bytes not in allowed:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)


def _mode_select(
    unit: LogicalUnit, command: c.ModeSelect6 | c.ModeSelect10, data: memoryview
) -> TargetReply:
    length_bytes = command.parameter_list_bytes
    unit.modes.select(bytes(_sent(data, length_bytes)), ten=isinstance(command, c.ModeSelect10))
    unit.apply_modes()
    return TargetReply(True, consumed_bytes=length_bytes)


def _log_sense(unit: LogicalUnit, command: c.LogSense, _data: memoryview) -> TargetReply:
    if command.subpage:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    answer = parameters.log_page(unit.personality, unit.log, unit.faults, unit.deck, command.page)
    return TargetReply(True, answer[: command.allocation_bytes])


def _log_select(unit: LogicalUnit, command: c.LogSelect, _data: memoryview) -> TargetReply:
    if command.parameter_list_bytes:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    if command.reset:
        unit.log.reset()
    return _GOOD


def _report_density(
    unit: LogicalUnit, command: c.ReportDensitySupport, _data: memoryview
) -> TargetReply:
    if command.media:
        unit.ready_deck()
    answer = parameters.density_support(unit.personality)
    return TargetReply(True, answer[: command.allocation_bytes])


def _read_attribute(unit: LogicalUnit, command: c.ReadAttribute, _data: memoryview) -> TargetReply:
    deck = unit.ready_deck()
    if command.partition:
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    answer = parameters.attributes(unit.personality, deck, command.first)
    return TargetReply(True, answer[: command.allocation_bytes])


def _read_end_of_wrap_position(
    unit: LogicalUnit, command: c.ReadEndOfWrapPosition, _data: memoryview
) -> TargetReply:
    answer = pack_wraps(unit.ready_deck().wrap_ends())
    return TargetReply(True, answer[: command.allocation_bytes])


def _report_luns(_unit: LogicalUnit, command: c.ReportLuns, _data: memoryview) -> TargetReply:
    return TargetReply(True, struct.pack(">I4x8x", 8)[: command.allocation_bytes])


_EVERY_DRIVE: Final[dict[type, Handler]] = {
    c.TestUnitReady: _test_unit_ready,
    c.Rewind: _rewind,
    c.ReadBlockLimits: _read_block_limits,
    c.Read6: _read,
    c.Write6: _write,
    c.WriteFilemarks6: _write_filemarks,
    c.Space6: _space,
    c.Inquiry: _inquiry,
    c.ModeSelect6: _mode_select,
    c.ModeSelect10: _mode_select,
    c.ModeSense6: _mode_sense,
    c.ModeSense10: _mode_sense,
    c.Reserve6: _nothing,
    c.Release6: _nothing,
    c.SendDiagnostic: _nothing,
    c.Erase6: _erase,
    c.LoadUnload: _load_unload,
    c.PreventAllowMediumRemoval: _prevent,
    c.ReportDensitySupport: _report_density,
    c.LogSense: _log_sense,
    c.LogSelect: _log_select,
    c.ReportLuns: _report_luns,
}
