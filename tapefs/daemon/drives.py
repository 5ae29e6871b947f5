"""From the name of a drive to an open `TapeDrive`: `virtual:PATH`, `usb`, `usb:SERIAL`, ..."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.drive import TapeDrive
from tapefs.emulator.name import VirtualDriveName, open_cartridge
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend, UsbIdentity
from tapefs.errors import NotReady, UsageError
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# A drive that is still loading gets this long at the start of a command.
READY_DEADLINE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class OpenedDrive:
    """An open drive and how to call it in messages. `virtual`: made of a file."""

    drive: TapeDrive
    name: str
    virtual: bool


@asynccontextmanager
async def open_drive(name: str, *, create: bool = False) -> AsyncIterator[OpenedDrive]:
    """Open the drive called `name`; closed when the block ends, not rewound, not flushed.

    `create` makes a virtual cartridge that does not exist yet. Raises UsageError for a name that
    means nothing, and NoDrive, DriveBusy, DamagedTape, ... for a drive that cannot be had.
    """
    if VirtualDriveName.matches(name):
        virtual = VirtualDriveName.parse(name)
        with open_cartridge(virtual, create=create) as cartridge:
            target = Target(cartridge)
            personality = target.personality
            identity = UsbIdentity.of(personality, target.serial)
            backend = EmulatedUsbBackend(
                target, identity=identity, subclass=personality.usb_subclass
            )
            if virtual.faults is not None:
                virtual.faults.apply(target, backend.device)
            async with _opened(BotTransport(open_endpoints("usb", backend))) as drive:
                yield OpenedDrive(drive, name, virtual=True)
        return
    if name != "usb" and not name.startswith("usb:"):
        raise UsageError(
            f"'{name}' is no drive; write virtual:PATH, usb, usb:SERIAL or usb:BUS.PORT"
        )
    async with _opened(BotTransport(open_endpoints(name))) as drive:
        yield OpenedDrive(drive, name, virtual=False)


@asynccontextmanager
async def _opened(transport: BotTransport) -> AsyncIterator[TapeDrive]:
    try:
        drive = await TapeDrive.open(transport)
        yield drive
    finally:
        await transport.aclose()


async def require_medium(opened: OpenedDrive) -> None:
    """Wait until a cartridge is loaded and ready. Raises NotReady."""
    if not opened.drive.medium_loaded:
        await opened.drive.wait_ready(READY_DEADLINE_S)
    if not opened.drive.medium_loaded:
        raise NotReady(f"no cartridge is loaded in {opened.name}; insert one")
