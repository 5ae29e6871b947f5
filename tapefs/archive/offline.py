"""A volume whose cartridge is on the shelf: everything but the bytes that are only on its tape.

What a mount needs of a drive is played by one that is not there: whatever is asked of it fails at
once, with the sentence that says which cartridge to insert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from tapefs.archive.catalogs import LIVE_NAME, fresh_live, make_directory
from tapefs.catalog import Catalog, TapeView, remove_database
from tapefs.drive import DriveIdentity, TapeDrive
from tapefs.drive.initiator import Initiator
from tapefs.errors import Offline
from tapefs.volume.label import Label

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tapefs.archive.known_volumes import KnownVolume
    from tapefs.drive.transport import More, Step
    from tapefs.scsi.cdb import Command

DRIVE_NAME: Final = "offline"
_DIRECTORY: Final = "offline"


class _NoTransport:
    """The wire to a drive that is not there. Satisfies `drive.Transport`."""

    lost = False

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence

    async def execute(self, command: Command, data: object = None) -> NoReturn:
        """Raises Offline."""
        raise Offline(self._sentence)

    async def execute_each(self, steps: Sequence[Step], more: More | None = None) -> NoReturn:
        """Raises Offline."""
        raise Offline(self._sentence)

    async def aclose(self) -> None:
        """There is nothing to close."""


def what_to_insert(volume: KnownVolume) -> str:
    """What is to be done before the tape of `volume` can be read."""
    return (
        f"the cartridge of volume '{volume.name}' ({volume.uuid[:8]}) is not in a drive: insert "
        "it, unmount this, and mount it"
    )


def absent_drive(volume: KnownVolume) -> TapeDrive:
    """A drive that answers everything with Offline and what to insert."""
    transport = _NoTransport(what_to_insert(volume))
    return TapeDrive(transport, Initiator(transport), DriveIdentity("no", "drive", ""))


def known_label(volume: KnownVolume) -> Label:
    """What the label of `volume` said when it was here. Raises StateUnusable."""
    view = TapeView.open_for_reading(volume.view_path)
    try:
        settings = view.settings
    finally:
        view.close()
    return Label(
        settings.volume_uuid,
        settings.name,
        settings.record_bytes,
        settings.created_ns,
        settings.block_bytes,
    )


async def open_shelved(volume: KnownVolume) -> tuple[TapeView, Catalog, Path]:
    """View and live catalog of `volume` as this host knows it, and where its spool is.

    Where it was never mounted here, the live catalog is one that no other mount sees. Raises
    StateUnusable; DriveBusy when the volume is mounted.
    """
    view = TapeView.open(volume.view_path)
    try:
        if volume.live_path.exists():
            return view, Catalog.open(volume.live_path), volume.directory
        directory = make_directory(volume.directory / _DIRECTORY)
        path = directory / LIVE_NAME
        if path.exists():
            Catalog.open(path).close(clean=True)  # refuses when another mount has it
            remove_database(path)
        # Nobody makes a file in there, so what the time is does not matter.
        return view, await fresh_live(view, path, now_ns=0), directory
    except BaseException:
        view.close()
        raise
