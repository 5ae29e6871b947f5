"""Command descriptor blocks: all commands under one roof, and from bytes back to a command.

A host packs a command (`command.pack()`); a device, real enough to be tested against, unpacks it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from tapefs.scsi.command import Command as Command
from tapefs.scsi.command import Direction as Direction
from tapefs.scsi.command import InvalidField as InvalidField
from tapefs.scsi.command import UnknownCommand as UnknownCommand
from tapefs.scsi.spc import INQUIRY_BYTES as INQUIRY_BYTES
from tapefs.scsi.spc import REQUEST_SENSE_BYTES as REQUEST_SENSE_BYTES
from tapefs.scsi.spc import Inquiry as Inquiry
from tapefs.scsi.spc import LogControl as LogControl
from tapefs.scsi.spc import LogSelect as LogSelect
from tapefs.scsi.spc import LogSense as LogSense
from tapefs.scsi.spc import ModeSelect6 as ModeSelect6
from tapefs.scsi.spc import ModeSelect10 as ModeSelect10
from tapefs.scsi.spc import ModeSense6 as ModeSense6
from tapefs.scsi.spc import ModeSense10 as ModeSense10
from tapefs.scsi.spc import PageControl as PageControl
from tapefs.scsi.spc import PreventAllowMediumRemoval as PreventAllowMediumRemoval
from tapefs.scsi.spc import ReadAttribute as ReadAttribute
from tapefs.scsi.spc import Release6 as Release6
from tapefs.scsi.spc import ReportLuns as ReportLuns
from tapefs.scsi.spc import RequestSense as RequestSense
from tapefs.scsi.spc import Reserve6 as Reserve6
from tapefs.scsi.spc import SendDiagnostic as SendDiagnostic
from tapefs.scsi.spc import TestUnitReady as TestUnitReady
from tapefs.scsi.spc import WriteAttribute as WriteAttribute
from tapefs.scsi.ssc import READ_BLOCK_LIMITS_BYTES as READ_BLOCK_LIMITS_BYTES
from tapefs.scsi.ssc import Erase6 as Erase6
from tapefs.scsi.ssc import LoadUnload as LoadUnload
from tapefs.scsi.ssc import Locate10 as Locate10
from tapefs.scsi.ssc import Locate16 as Locate16
from tapefs.scsi.ssc import LocateDestination as LocateDestination
from tapefs.scsi.ssc import PositionForm as PositionForm
from tapefs.scsi.ssc import Read6 as Read6
from tapefs.scsi.ssc import ReadBlockLimits as ReadBlockLimits
from tapefs.scsi.ssc import ReadEndOfWrapPosition as ReadEndOfWrapPosition
from tapefs.scsi.ssc import ReadPosition as ReadPosition
from tapefs.scsi.ssc import ReportDensitySupport as ReportDensitySupport
from tapefs.scsi.ssc import Rewind as Rewind
from tapefs.scsi.ssc import Space6 as Space6
from tapefs.scsi.ssc import Space16 as Space16
from tapefs.scsi.ssc import SpaceCode as SpaceCode
from tapefs.scsi.ssc import Write6 as Write6
from tapefs.scsi.ssc import WriteFilemarks6 as WriteFilemarks6

if TYPE_CHECKING:
    from collections.abc import Callable


def _int(cdb: bytes, start: int, end: int) -> int:
    return int.from_bytes(cdb[start:end], "big")


def _signed(cdb: bytes, start: int, end: int) -> int:
    return int.from_bytes(cdb[start:end], "big", signed=True)


def _bit(cdb: bytes, index: int, bit: int) -> bool:
    return bool(cdb[index] >> bit & 1)


def _unpack_read(cdb: bytes) -> Command:
    return Read6(_int(cdb, 2, 5), fixed=_bit(cdb, 1, 0), sili=_bit(cdb, 1, 1))


def _unpack_mode_sense(cdb: bytes) -> Command:
    control, page = PageControl(cdb[2] >> 6), cdb[2] & 0x3F
    if cdb[0] == 0x1A:
        return ModeSense6(page, cdb[3], cdb[4], control, _bit(cdb, 1, 3))
    return ModeSense10(page, cdb[3], _int(cdb, 7, 9), control, _bit(cdb, 1, 3))


def _unpack_load_unload(cdb: bytes) -> Command:
    return LoadUnload(
        load=_bit(cdb, 4, 0),
        retension=_bit(cdb, 4, 1),
        eot=_bit(cdb, 4, 2),
        hold=_bit(cdb, 4, 3),
        immediate=_bit(cdb, 1, 0),
    )


def _unpack_locate10(cdb: bytes) -> Command:
    partition = cdb[8] if _bit(cdb, 1, 1) else None
    return Locate10(_int(cdb, 3, 7), partition, immediate=_bit(cdb, 1, 0))


def _unpack_locate16(cdb: bytes) -> Command:
    partition = cdb[3] if _bit(cdb, 1, 1) else None
    destination = LocateDestination(cdb[1] >> 3 & 3)
    return Locate16(_int(cdb, 4, 12), partition, destination, immediate=_bit(cdb, 1, 0))


def _unpack_log_sense(cdb: bytes) -> Command:
    control, page = LogControl(cdb[2] >> 6), cdb[2] & 0x3F
    return LogSense(page, cdb[3], _int(cdb, 7, 9), control, _int(cdb, 5, 7))


def _unpack_log_select(cdb: bytes) -> Command:
    control, page = LogControl(cdb[2] >> 6), cdb[2] & 0x3F
    return LogSelect(page, cdb[3], _int(cdb, 7, 9), _bit(cdb, 1, 1), control)


def _unpack_write_attribute(cdb: bytes) -> Command:
    return WriteAttribute(_int(cdb, 10, 14), cdb[7], write_through=_bit(cdb, 1, 0))


_UNPACKERS: Final[dict[int, Callable[[bytes], Command]]] = {
    0x00: lambda _cdb: TestUnitReady(),
    0x01: lambda cdb: Rewind(immediate=_bit(cdb, 1, 0)),
    0x03: lambda cdb: RequestSense(cdb[4]),
    0x05: lambda _cdb: ReadBlockLimits(),
    0x08: _unpack_read,
    0x0A: lambda cdb: Write6(_int(cdb, 2, 5), fixed=_bit(cdb, 1, 0)),
    0x10: lambda cdb: WriteFilemarks6(_int(cdb, 2, 5), immediate=_bit(cdb, 1, 0)),
    0x11: lambda cdb: Space6(SpaceCode(cdb[1] & 0x0F), _signed(cdb, 2, 5)),
    0x12: lambda cdb: Inquiry(_bit(cdb, 1, 0), cdb[2], _int(cdb, 3, 5)),
    0x15: lambda cdb: ModeSelect6(cdb[4], page_format=_bit(cdb, 1, 4)),
    0x16: lambda _cdb: Reserve6(),
    0x17: lambda _cdb: Release6(),
    0x19: lambda cdb: Erase6(long=_bit(cdb, 1, 0), immediate=_bit(cdb, 1, 1)),
    0x1A: _unpack_mode_sense,
    0x1B: _unpack_load_unload,
    0x1D: lambda cdb: SendDiagnostic(self_test=_bit(cdb, 1, 2)),
    0x1E: lambda cdb: PreventAllowMediumRemoval(prevent=_bit(cdb, 4, 0)),
    0x2B: _unpack_locate10,
    0x34: lambda cdb: ReadPosition(PositionForm(cdb[1] & 0x1F)),
    0x44: lambda cdb: ReportDensitySupport(_bit(cdb, 1, 0), _int(cdb, 7, 9)),
    0x4C: _unpack_log_select,
    0x4D: _unpack_log_sense,
    0x55: lambda cdb: ModeSelect10(_int(cdb, 7, 9), page_format=_bit(cdb, 1, 4)),
    0x5A: _unpack_mode_sense,
    0x8C: lambda cdb: ReadAttribute(_int(cdb, 8, 10), cdb[7], _int(cdb, 10, 14)),
    0x8D: _unpack_write_attribute,
    0x91: lambda cdb: Space16(SpaceCode(cdb[1] & 0x0F), _signed(cdb, 4, 12)),
    0x92: _unpack_locate16,
    0xA0: lambda cdb: ReportLuns(_int(cdb, 6, 10), cdb[2]),
    0xA3: ReadEndOfWrapPosition.unpack,
}

_UNPACKED_KEPT: Final = 64

# The top three bits of an operation code are its group, which fixes the length (SPC-4).
_GROUP_BYTES: Final = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}


def cdb_length_bytes(operation_code: int) -> int:
    """Natural length of a CDB in bytes. Raises UnknownCommand for groups without a fixed one."""
    length = _GROUP_BYTES.get(operation_code >> 5)
    if length is None:
        raise UnknownCommand(f"operation code {operation_code:#04x} has no length of its own")
    return length


# Commands are values, and a device looks at the same block several times: when it comes, when it is
# carried out, and when it is named.
@functools.lru_cache(maxsize=_UNPACKED_KEPT)
def unpack(cdb: bytes) -> Command:
    """The command in `cdb`, which may be longer than natural (bridges pad to 12 bytes).

    READ and WRITE in fixed mode come back with `block_bytes` 0, since only the device knows it.
    Raises UnknownCommand when the operation code is not known or bytes are missing, and its
    subclass InvalidField when a field has a value that the standard does not define.
    """
    unpacker = _UNPACKERS.get(cdb[0]) if cdb else None
    if unpacker is None:
        raise UnknownCommand(f"no command starts with '{bytes(cdb[:1]).hex()}'")
    if len(cdb) < cdb_length_bytes(cdb[0]):
        raise UnknownCommand(f"command block {bytes(cdb).hex()} is too short")
    try:
        return unpacker(cdb)
    except ValueError as exc:
        raise InvalidField(f"command block {bytes(cdb).hex()}: {exc}") from exc
