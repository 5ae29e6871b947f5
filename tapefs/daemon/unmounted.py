"""Work on the volume in a drive without a mount; and finding the drive that a cartridge is in."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from tapefs.archive.catalogs import make_directory
from tapefs.archive.mounted import closing_volume, open_volume
from tapefs.archive.resumption import leaves_in_doubt
from tapefs.archive.retrieval_sources import VolumeSource
from tapefs.config import Config
from tapefs.daemon.drives import open_drive, require_medium
from tapefs.daemon.mount import boot_id, single_cause
from tapefs.errors import (
    BlankTape,
    DamagedTape,
    DriveGone,
    ForeignTape,
    MediumFailed,
    NotReady,
    TapefsError,
    WrongTape,
)
from tapefs.usb.discovery import list_drives as list_usb_drives
from tapefs.volume.session import read_label

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.archive.mounted import MountedVolume
    from tapefs.drive import TapeDrive

    Report = Callable[[dict[str, Any]], None]

T = TypeVar("T")

# Between two looks for a cartridge.
_POLL_S: Final = 2.0
_NO_VOLUME: Final = (BlankTape, ForeignTape, DamagedTape, WrongTape, MediumFailed)


def with_volume(
    drive_name: str,
    state_dir: Path,
    work: Callable[[VolumeSource, Report], T],
    report: Report,
    volume_uuid: str | None = None,
) -> T:
    """What `work` returns, which is run in a thread while the volume in the drive is open.

    The volume is read-only, and agrees with the tape; the tape is rewound at the end. `work` gets a
    `report` of its own, which ends it after Ctrl-C. Raises WrongTape when the cartridge is not that
    of `volume_uuid`; DriveGone when the drive is lost, whatever it did before; what opening raises;
    what `work` raises.
    """
    try:
        return trio.run(
            partial(_with_volume, drive_name, state_dir, work, report, volume_uuid),
            strict_exception_groups=True,
        )
    except BaseExceptionGroup as group:
        raise single_cause(group) from group


async def _with_volume(
    drive_name: str,
    state_dir: Path,
    work: Callable[[VolumeSource, Report], T],
    report: Report,
    volume_uuid: str | None,
) -> T:
    make_directory(state_dir)
    async with open_drive(drive_name) as opened:
        await require_medium(opened, report)
        label = await read_label(opened.drive)
        if volume_uuid not in (None, str(label.volume_uuid)):
            raise WrongTape(f"{drive_name} holds volume '{label.name}', which is another one")
        directory = make_directory(state_dir / "volumes" / str(label.volume_uuid))
        report({"event": "progress", "message": f"opening volume '{label.name}'"})
        volume = await open_volume(
            opened.drive,
            label,
            directory,
            # Who waits for the drive to come back should be told, and can run the command again.
            Config(recall_attempts_max=1),
            report,
            boot_id=boot_id(),
            read_only_reason="the volume is only read",
            reopen=opened.reopen,
        )
        with closing_volume(volume):
            return await _work_on(volume, work, report)


async def _work_on(
    volume: MountedVolume, work: Callable[[VolumeSource, Report], T], report: Report
) -> T:
    def report_or_end(event: dict[str, Any]) -> None:
        trio.from_thread.check_cancelled()
        report(event)

    source = VolumeSource(volume, trio.from_thread.run)
    interrupted = False

    async def end_on_interrupt(scope: trio.CancelScope) -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                interrupted = True
                scope.cancel()

    results: list[T] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(volume.run)
        with trio.CancelScope() as working:
            nursery.start_soon(end_on_interrupt, working)
            try:
                results.append(await trio.to_thread.run_sync(work, source, report_or_end))
            except TapefsError as exc:
                if leaves_in_doubt(exc):
                    raise DriveGone(
                        f"{exc}; connect the drive, with the cartridge, and run the same command "
                        "again: it goes on with what is missing"
                    ) from exc
                raise
        await volume.finalize()
        nursery.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt
    return results[0]


def find_cartridge(
    volume_uuid: str, name: str, drives: list[str] | None, wait_s: float, report: Report
) -> str:
    """The drive that the cartridge of a volume is in: one of `drives`, or any USB tape drive.

    Where it is in none, it is asked for through `report` and waited for, up to `wait_s`; then
    raises NotReady.
    """
    return trio.run(partial(_find_cartridge, volume_uuid, name, drives, wait_s, report))


async def _find_cartridge(
    volume_uuid: str, name: str, drives: list[str] | None, wait_s: float, report: Report
) -> str:
    wanted = f"'{name}' ({volume_uuid[:8]})"
    known: dict[str, _Watched] = {}
    deadline = trio.current_time() + wait_s
    async with AsyncExitStack() as ended:
        while True:
            for drive in await trio.to_thread.run_sync(_usb_drives) if drives is None else drives:
                if drive not in known:
                    known[drive] = _Watched(drive)
                    ended.push_async_callback(known[drive].let_go)
                if await known[drive].holds(volume_uuid):
                    return drive
            found = "; ".join(f"{drive} {watched.finding}" for drive, watched in known.items())
            found = found or "there is no USB tape drive"
            rest_s = deadline - trio.current_time()
            if rest_s <= 0:
                raise NotReady(
                    f"the cartridge of volume {wanted} is in no drive ({found}); insert it and run "
                    "the same command again, or name its drive with --drive"
                )
            message = f"insert the cartridge of volume {wanted} ({found}); Ctrl-C gives up"
            report({"event": "progress", "phase": "insert", "message": message})
            await trio.sleep(min(_POLL_S, rest_s))


def _usb_drives() -> list[str]:
    return [info.selector for info in list_usb_drives().drives]


class _Watched:
    """One drive that the cartridge may come into. `finding`: what was found there last.

    While a cartridge is in it that is not wanted, the drive is only asked whether it still is.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._held = AsyncExitStack()
        self._drive: TapeDrive | None = None
        self.finding = ""

    async def holds(self, volume_uuid: str) -> bool:
        """Whether the cartridge of this volume is in the drive, which is free again then."""
        if self._drive is not None and await _is_unchanged(self._drive):
            return False
        await self.let_go()
        try:
            opened = await self._held.enter_async_context(open_drive(self._name))
            found = await self._volume_in(opened.drive)
        except TapefsError as exc:
            self.finding = f"cannot be used: {exc}"
            await self.let_go()
            return False
        if found != volume_uuid and opened.drive.medium_loaded and not opened.virtual:
            self._drive = opened.drive
        else:
            await self.let_go()
        return found == volume_uuid

    async def let_go(self) -> None:
        """Close the drive, so that others can have it. May be called again."""
        self._drive = None
        held, self._held = self._held, AsyncExitStack()
        await held.aclose()

    async def _volume_in(self, drive: TapeDrive) -> str | None:
        if not drive.medium_loaded:
            self.finding = "is empty"
            return None
        try:
            label = await read_label(drive)
        except _NO_VOLUME as exc:
            self.finding = f"holds none ({exc})"
            return None
        self.finding = f"holds '{label.name}'"
        return str(label.volume_uuid)


async def _is_unchanged(drive: TapeDrive) -> bool:
    try:
        return not drive.lost and await drive.test_ready()
    except TapefsError:
        return False
