"""Finding out what a drive is and can do, and putting it into the mode tapefs works in.

No command sent here moves the medium. A command that a drive does not have is remembered as a
capability that is missing, never as an error, except where tapefs cannot do without.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.errors import DriveFailed, Fault, MalformedData, NoDrive
from tapefs.scsi.cdb import (
    Inquiry,
    LogSense,
    ModeSelect6,
    ModeSelect10,
    ModeSense6,
    ModeSense10,
    PositionForm,
    ReadBlockLimits,
    ReadEndOfWrapPosition,
    ReadPosition,
    TestUnitReady,
)
from tapefs.scsi.data import (
    TAPE_DEVICE_TYPE,
    BlockDescriptor,
    BlockLimits,
    LongPosition,
    ModeParameters,
    ShortPosition,
    StandardInquiry,
    UnitSerialNumber,
)
from tapefs.scsi.log import (
    KIB,
    MIB,
    TAPE_CAPACITY_PAGE,
    VOLUME_STATISTICS_PAGE,
    LogPage,
    TapeCapacity,
)
from tapefs.scsi.sense import (
    CheckCondition,
    DeferredError,
    IllegalRequest,
    Reaction,
    UnitAttention,
    check_condition,
)
from tapefs.scsi.wraps import WRAP_COUNTS, written_wrap_ends

if TYPE_CHECKING:
    from tapefs.drive.initiator import Initiator
    from tapefs.drive.transport import Transport

# A drive may give one false good after power on: the answer must come this often in a row.
STABLE_ANSWERS: Final = 3
SETTLE_ATTEMPTS_MAX: Final = 30

_SERIAL_BYTES: Final = 64
_BUFFERED: Final = 1
# Densities of LTO-1 to LTO-10, M8 included.
LTO_DENSITIES: Final = frozenset(bytes.fromhex("40 42 44 46 58 5A 5C 5D 5E 60 62"))
# OnStream's drives call themselves tapes but do not speak SSC.
_ONSTREAM_PRODUCTS: Final = ("SC-", "DI-", "DP-", "USB", "FW-")


class UnsupportedDrive(NoDrive):
    """Something answers, but it is no tape drive that tapefs can work with."""

    fault = Fault.OPERATOR


@dataclass(frozen=True, slots=True)
class DriveIdentity:
    """Who the drive is. `serial` is empty when the drive does not tell."""

    vendor: str
    product: str
    revision: str
    serial: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this drive can do beyond the commands that every tape drive has."""

    # Form of READ POSITION that gives a block number; None when there is none.
    position_form: PositionForm | None = None
    # None until the first locate: there is no way to ask without moving.
    locate: bool | None = None
    # SPACE says how far it got; None until it had to say so.
    space_tells: bool | None = None
    # Unit of log page 31h in bytes; None when the drive has no such page.
    capacity_unit_bytes: int | None = None
    volume_statistics: bool = False

    @property
    def read_position(self) -> bool:
        """The drive can say where the head stands."""
        return self.position_form is not None


@dataclass(frozen=True, slots=True)
class MediumSetup:
    """What was found with the medium in place, after the block length was selected.

    `block_bytes` is 0 for blocks of variable length.
    """

    block_limits: BlockLimits
    block_bytes: int
    # Density code of the medium (SSC-4); 0 where the drive does not say.
    density: int
    write_protected: bool
    capabilities: Capabilities
    # The blocks behind the wraps that are full, and how many wraps the tape has; nothing and 1
    # where nobody knows.
    wrap_ends: tuple[int, ...] = ()
    wrap_count: int = 1


async def identify(initiator: Initiator) -> DriveIdentity:
    """Ask who the drive is. Raises UnsupportedDrive when it is no tape drive, or OnStream's."""
    inquiry = StandardInquiry.unpack((await initiator.run(Inquiry())).data)
    name = f"{inquiry.vendor} {inquiry.product}"
    if inquiry.device_type != TAPE_DEVICE_TYPE or inquiry.qualifier:
        raise UnsupportedDrive(
            f"{name} is not a tape drive (device type {inquiry.device_type:02X}h);"
            " name another device"
        )
    if inquiry.vendor == "OnStream" and inquiry.product.startswith(_ONSTREAM_PRODUCTS):
        raise UnsupportedDrive(
            f"{name} does not use the tape drives' standard commands; use a drive of another make"
        )
    try:
        page = Inquiry(evpd=True, page=0x80, allocation_bytes=_SERIAL_BYTES)
        serial = UnitSerialNumber.unpack((await initiator.run(page)).data).serial
    except (IllegalRequest, MalformedData):
        serial = ""
    return DriveIdentity(inquiry.vendor, inquiry.product, inquiry.revision, serial)


async def settle(transport: Transport) -> CheckCondition | None:
    """Ask TEST UNIT READY until the answer is stable; return it, None for ready.

    Unit attentions and deferred errors met on the way belong to whoever used the drive before.
    Raises DriveFailed when the drive never gives the same answer a few times in a row.
    """
    code: str | None = None
    count = 0
    for _ in range(SETTLE_ATTEMPTS_MAX):
        completion = await transport.execute(TestUnitReady())
        condition: CheckCondition | None = None
        if not completion.good and completion.sense is not None:
            condition = check_condition(completion.sense, TestUnitReady.name)
        if isinstance(condition, UnitAttention | DeferredError):
            count = 0
            continue
        answer = condition.sense.code if condition else ""
        count = count + 1 if answer == code else 1
        code = answer
        if count == STABLE_ANSWERS:
            succeeded = condition is None or condition.reaction is Reaction.SUCCESS
            return None if succeeded else condition
    raise DriveFailed(
        f"the drive gave no stable answer to {SETTLE_ATTEMPTS_MAX} questions whether it is ready;"
        " power-cycle it and try again"
    )


async def set_up(initiator: Initiator, identity: DriveIdentity) -> MediumSetup:
    """With a medium loaded: limits, block length, and what the drive can do.

    Blocks are of variable length, or of the only length that the drive knows. Raises
    UnsupportedDrive when it accepts neither.
    """
    block_limits = BlockLimits.unpack((await initiator.run(ReadBlockLimits())).data)
    block_bytes = block_limits.maximum_bytes if block_limits.fixed_only else 0
    modes = await select_block_bytes(initiator, block_bytes)
    capabilities = Capabilities(
        position_form=await _position_form(initiator),
        capacity_unit_bytes=await _capacity_unit_bytes(initiator, identity, modes),
        volume_statistics=await _has_volume_statistics(initiator),
    )
    density = modes.descriptor.density if modes.descriptor else 0
    wrap_count = WRAP_COUNTS.get(density, 1)
    wrap_ends = await _wrap_ends(initiator) if wrap_count > 1 else ()
    return MediumSetup(
        block_limits,
        block_bytes,
        density,
        modes.write_protected,
        capabilities,
        wrap_ends,
        wrap_count,
    )


async def select_block_bytes(initiator: Initiator, block_bytes: int) -> ModeParameters:
    """MODE SELECT of this block length (0: variable) and buffered mode, checked with MODE SENSE.

    Returns the parameters in force. Raises UnsupportedDrive when the drive keeps another length.
    """
    modes, ten = await _sensed_modes(initiator)
    if not (_has_block_bytes(modes, block_bytes) and modes.buffered_mode):
        await _select_modes(initiator, modes, block_bytes, ten=ten)
        modes, ten = await _sensed_modes(initiator)
    if not _has_block_bytes(modes, block_bytes):
        kind = f"of {block_bytes} bytes" if block_bytes else "of variable length"
        raise UnsupportedDrive(f"the drive does not accept blocks {kind}; use another drive")
    return modes


def _has_block_bytes(modes: ModeParameters, block_bytes: int) -> bool:
    return modes.descriptor is not None and modes.descriptor.block_bytes == block_bytes


async def _sensed_modes(initiator: Initiator) -> tuple[ModeParameters, bool]:
    """The current parameters, and whether it took the ten-byte command to get them."""
    try:
        completion = await initiator.run(ModeSense6())
    except IllegalRequest:
        completion = await initiator.run(ModeSense10())
        return ModeParameters.unpack(completion.data, ten=True), True
    return ModeParameters.unpack(completion.data), False


async def _select_modes(
    initiator: Initiator, modes: ModeParameters, block_bytes: int, *, ten: bool
) -> None:
    density = modes.descriptor.density if modes.descriptor else 0
    descriptor = BlockDescriptor(density, 0, block_bytes)
    wanted = ModeParameters(buffered_mode=_BUFFERED, descriptor=descriptor)
    parameters = wanted.pack(ten=ten, select=True)
    command = ModeSelect10 if ten else ModeSelect6
    try:
        await initiator.run(command(len(parameters)), parameters)
    except IllegalRequest:
        # SCSI-1 and some SCSI-2 drives know no PF bit. What a refusal leaves, MODE SENSE will say.
        with suppress(IllegalRequest):
            await initiator.run(command(len(parameters), page_format=False), parameters)


async def _position_form(initiator: Initiator) -> PositionForm | None:
    """The form to ask for. One that says nothing now may know more later, but the long one is only
    believed to exist when it does.
    """
    try:
        long = LongPosition.unpack((await initiator.run(ReadPosition(PositionForm.LONG))).data)
    except (IllegalRequest, MalformedData):
        pass
    else:
        if long.block is not None:
            return PositionForm.LONG
    try:
        ShortPosition.unpack((await initiator.run(ReadPosition())).data)
    except (IllegalRequest, MalformedData):
        return None
    return PositionForm.SHORT


async def log_page(initiator: Initiator, page: int) -> LogPage | None:
    """Log page `page`; None when the drive does not have it."""
    try:
        return LogPage.unpack((await initiator.run(LogSense(page))).data)
    except (IllegalRequest, MalformedData):
        return None


async def _wrap_ends(initiator: Initiator) -> tuple[int, ...]:
    """Where wraps end. A drive that does not say so, or nonsense, is read in block order."""
    try:
        return written_wrap_ends((await initiator.run(ReadEndOfWrapPosition())).data)
    except (IllegalRequest, MalformedData):
        return ()


async def _capacity_unit_bytes(
    initiator: Initiator, identity: DriveIdentity, modes: ModeParameters
) -> int | None:
    page = await log_page(initiator, TAPE_CAPACITY_PAGE)
    if page is None or TapeCapacity.from_page(page) is None:
        return None
    # The standard leaves the unit open: LTO drives count MiB, the older families KiB, and the
    # numbers alone do not tell (34 million is an AIT-1 in KiB and an LTO-10 in MiB).
    density = modes.descriptor.density if modes.descriptor else 0
    is_lto = density in LTO_DENSITIES or identity.product.upper().startswith("UL")
    return MIB if is_lto else KIB


async def _has_volume_statistics(initiator: Initiator) -> bool:
    page = await log_page(initiator, VOLUME_STATISTICS_PAGE)
    return page is not None and TapeCapacity.from_statistics(page) is not None
