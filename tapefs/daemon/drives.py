"""From the name of a drive to an open `TapeDrive`: `virtual:PATH`, `usb`, `usb:SERIAL`, ..."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs.drive import TapeDrive, UnsupportedDrive
from tapefs.emulator.name import VirtualDriveName, open_cartridge
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend, UsbIdentity
from tapefs.errors import NotReady, UsageError
from tapefs.scsi.sense import NotReadyCondition, reaction_row
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import SETTLE_S, BotTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tapefs.usb.device import UsbEndpoints
    from tapefs.usb.discovery import UsbDriveInfo

    Connect = Callable[[], Awaitable[TapeDrive]]
    Report = Callable[[dict[str, Any]], None]

# A drive that is still loading gets this long at the start of a command.
READY_DEADLINE_S: Final = 300.0


class OpenedDrive:
    """An open drive and how to call it in messages. `virtual`: made of a file.

    `drive` is another object after `reopen`. One caller at a time.
    """

    def __init__(self, name: str, connect: Connect, drive: TapeDrive, *, virtual: bool) -> None:
        """Not for direct use: `opened` makes these."""
        self.name = name
        self.drive = drive
        self.virtual = virtual
        self._connect = connect

    async def reopen(self) -> TapeDrive:
        """Close the drive for good, then open the same one again; the drive as it is now.

        Raises NoDrive, DriveBusy, DriveGone and others while it cannot be had.
        """
        await self.drive.aclose()
        self.drive = await self._connect()
        return self.drive


@asynccontextmanager
async def opened(name: str, connect: Connect, *, virtual: bool) -> AsyncIterator[OpenedDrive]:
    """The drive that `connect` opens; closed when the block ends, not rewound, not flushed."""
    holder = OpenedDrive(name, connect, await connect(), virtual=virtual)
    try:
        yield holder
    finally:
        await holder.drive.aclose()


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
            async with opened(name, UsbConnection("usb", backend), virtual=True) as drive:
                yield drive
        return
    if name != "usb" and not name.startswith("usb:"):
        raise UsageError(
            f"'{name}' is no drive; write virtual:PATH, usb, usb:SERIAL or usb:BUS.PORT"
        )
    async with opened(name, UsbConnection(name), virtual=False) as drive:
        yield drive


class UsbConnection:
    """Opens the drive called `selector`; after the first time only that very drive."""

    def __init__(
        self,
        selector: str,
        backend: Any = None,  # noqa: ANN401 pyusb has no types
        settle_s: float = SETTLE_S,
    ) -> None:
        """`backend` and `settle_s` as for `open_endpoints` and `BotTransport`."""
        self._selector = selector
        self._backend = backend
        self._settle_s = settle_s
        self._known: UsbDriveInfo | None = None

    async def __call__(self) -> TapeDrive:
        """Search the bus (in a thread: it takes a while) and open the drive."""
        endpoints = await trio.to_thread.run_sync(
            partial(open_endpoints, self._selector, self._backend, known=self._known)
        )
        self._known = endpoints.info
        try:
            return await self._open_unit(endpoints)
        except BaseException:
            with trio.CancelScope(shield=True):
                await endpoints.run(endpoints.close)
            raise

    async def _open_unit(self, endpoints: UsbEndpoints) -> TapeDrive:
        """The first logical unit that is a tape drive; an autoloader has its changer beside it."""
        refusals: list[UnsupportedDrive] = []
        for lun in range(await endpoints.run(endpoints.max_lun) + 1):
            transport = BotTransport(endpoints, lun=lun, settle_s=self._settle_s)
            try:
                return await TapeDrive.open(transport)
            except UnsupportedDrive as error:
                refusals.append(error)
        raise refusals[0]


async def require_medium(opened: OpenedDrive, report: Report) -> None:
    """Wait until a cartridge is loaded and ready, and report why not yet. Raises NotReady."""

    def waiting(condition: NotReadyCondition) -> None:
        message = f"waiting for the drive, which reports {reaction_row(condition.sense).meaning}"
        if (share := condition.sense.progress) is not None:
            message += f", {int(share * 10)}0 % done"
        report({"event": "progress", "phase": "ready", "message": message})

    if not opened.drive.medium_loaded:
        await opened.drive.wait_ready(READY_DEADLINE_S, waiting)
    if not opened.drive.medium_loaded:
        raise NotReady(f"no cartridge is loaded in {opened.name}; insert one")
