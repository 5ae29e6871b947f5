"""One mount, from the drive's name to the finalized tape."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tapefs import control, telemetry
from tapefs.archive.catalogs import make_directory
from tapefs.archive.health import HealthKeeper
from tapefs.archive.known_volumes import find_volume
from tapefs.archive.mounted import closing_volume, open_volume
from tapefs.archive.offline import DRIVE_NAME, absent_drive, known_label, what_to_insert
from tapefs.archive.reading_order import TapeLayout
from tapefs.archive.tape_attributes import TapeAttributes
from tapefs.config import Config, parse_options
from tapefs.control import server as control_server
from tapefs.daemon.drives import OpenedDrive, open_drive, require_medium
from tapefs.daemon.drives import opened as opened_drive
from tapefs.daemon.metrics_file import MetricsFile
from tapefs.daemon.service import MountService
from tapefs.daemon.state_dump import dump_on_signal, ignoring_signal
from tapefs.errors import NotFinalized, TapefsError, leaves_of
from tapefs.fuse.attributes import Presentation, inode_generation
from tapefs.fuse.mountpoint import prepare_mountpoint, require_fuse
from tapefs.fuse.operations import Operations
from tapefs.fuse.session import mount_options, serve
from tapefs.volume.session import read_label

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tapefs.archive.known_volumes import KnownVolume
    from tapefs.archive.mounted import MountedVolume
    from tapefs.drive import TapeDrive
    from tapefs.volume.label import Label

    Report = Callable[[dict[str, Any]], None]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What `tapefs mount` was asked for. `options` are the settings that stood behind -o.

    `generation`: which one to show, read-only, instead of the volume as it is now.
    """

    drive: str
    mountpoint: Path
    options: str
    state_dir: Path
    read_only: bool = False
    generation: int | None = None
    # `drive` is the UUID of a volume whose cartridge is on the shelf.
    offline: bool = False
    kernel_flags: tuple[str, ...] = ()
    foreground: bool = False
    verbose: bool = False


def run_mount(request: MountRequest, report: Report) -> int:
    """Serve the mount until it is unmounted and the tape finalized; returns 0 then.

    `report` gets events: `progress`; `mounted` when the mount answers; `unmounting` when it does no
    more and the tape is being finalized; `finalized`. Raises TapefsError.
    """
    config = parse_options(request.options)
    # What was imported lives as long as the process. To look at it once more at the end would take
    # a fifth of the time of an unmount.
    gc.freeze()
    with ignoring_signal():
        trio.run(_Mount(request, config, report).run, strict_exception_groups=True)
    return 0


class _Mount:
    """Builds the parts of one mount and lets them run."""

    def __init__(self, request: MountRequest, config: Config, report: Report) -> None:
        self._request = request
        self._config = config
        self._report = report
        self._serving = trio.CancelScope()
        self._service: MountService | None = None

    async def run(self) -> None:
        """The whole life of the mount."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(dump_on_signal, self._state)
                await self._run()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise single_cause(group) from group

    def _state(self) -> dict[str, Any]:
        """For SIGUSR1, from the first moment to the last."""
        parts = {} if self._service is None else self._service.state()
        return {"config": dataclasses.asdict(self._config), **parts}

    async def _run(self) -> None:
        make_directory(self._request.state_dir)
        require_fuse(allow_other=self._config.allow_other)
        prepare_mountpoint(self._request.mountpoint)
        if self._request.offline:
            await self._run_shelved(find_volume(self._request.state_dir, self._request.drive))
            return
        self._progress("drive", f"opening {self._request.drive}")
        async with open_drive(self._request.drive) as opened:
            await require_medium(opened, self._report)
            self._progress("label", "reading the label")
            label = await read_label(opened.drive)
            await self._run_volume(opened, label)

    def _progress(self, phase: str, message: str) -> None:
        self._report({"event": "progress", "phase": phase, "message": message})

    async def _run_volume(self, opened: OpenedDrive, label: Label) -> None:
        directory = make_directory(self._request.state_dir / "volumes" / str(label.volume_uuid))
        self._progress("catalog", f"checking volume '{label.name}' against its catalog")
        reason = None
        if opened.drive.write_protected:
            reason = "the cartridge is write protected"
        elif self._request.generation is not None:
            reason = f"generation {self._request.generation} is history and cannot be changed"
        elif self._request.read_only:
            reason = "the volume is mounted read-only"
        volume = await open_volume(
            opened.drive,
            label,
            directory,
            self._config,
            self._report,
            boot_id=boot_id(),
            read_only_reason=reason,
            reopen=opened.reopen,
            generation=self._request.generation,
        )
        await self._live_with(volume, opened, directory)

    async def _run_shelved(self, known: KnownVolume) -> None:
        """Mount what this host knows of a volume, without its cartridge."""

        async def connect() -> TapeDrive:
            return absent_drive(known)

        # A drive that is not there need not be asked how it is.
        self._config = dataclasses.replace(
            self._config, recall_attempts_max=1, drive_check_s=math.inf, health_s=0.0
        )
        async with opened_drive(DRIVE_NAME, connect, virtual=False) as opened:
            volume = await open_volume(
                opened.drive,
                known_label(known),
                known.directory,
                self._config,
                self._report,
                boot_id=boot_id(),
                read_only_reason=what_to_insert(known),
                reopen=opened.reopen,
                shelved=known,
            )
            await self._live_with(volume, opened, known.directory)

    async def _live_with(self, volume: MountedVolume, opened: OpenedDrive, directory: Path) -> None:
        with closing_volume(volume):
            health = HealthKeeper(
                volume.scheduler,
                directory,
                opened.drive.identity,
                self._config.health_s,
                time.time_ns,
            )
            service = MountService(self._request.mountpoint, opened, volume, health)
            self._service = service
            await self._live(volume, health, service)

    async def _live(
        self, volume: MountedVolume, health: HealthKeeper, service: MountService
    ) -> None:
        """Run until unmounted and finalized. Raises NotFinalized when the tape lacks something."""
        request = self._request
        async with trio.open_nursery() as nursery:
            await nursery.start(volume.run)
            server = await nursery.start(
                control_server.serve, control.socket_path(request.mountpoint), service
            )
            nursery.start_soon(self._end_on_signal)
            await nursery.start(health.run)
            if self._config.metrics:
                await nursery.start(MetricsFile(Path(self._config.metrics), service.status).run)
            try:
                with self._serving:
                    await self._serve(volume, service)
                with trio.CancelScope(shield=True):
                    await self._finalize(volume, health, service)
            finally:
                with trio.CancelScope(shield=True):
                    await server.finish()
            nursery.cancel_scope.cancel()
        if service.error is not None:
            raise NotFinalized(str(service.error)) from service.error

    async def _serve(self, volume: MountedVolume, service: MountService) -> None:
        label = volume.label
        tape = TapeAttributes(
            volume.catalog,
            volume.view,
            volume.contents,
            lambda: volume.unreachable_reason,
            volume.verifications.verified_ns,
            lambda: TapeLayout.of(volume.scheduler, label.geometry).pack(),
        )
        shown = Presentation(
            self._config.uid,
            self._config.gid,
            self._config.umask,
            inode_generation(label.volume_uuid),
        )
        operations = Operations(volume.catalog, volume.contents, service, tape, shown)
        operations.tree.read_only = not volume.writable
        operations.tree.require_open = volume.contents.admission.check_writable
        options = mount_options(
            label.name,
            allow_other=self._config.allow_other,
            read_only=not volume.writable,
            kernel_flags=self._request.kernel_flags,
        )

        def on_ready() -> None:
            self._report(
                {
                    "event": "mounted",
                    "volume": str(label.volume_uuid),
                    "name": label.name,
                    "read_only": not volume.writable,
                    "message": f"volume '{label.name}' is mounted",
                }
            )

        await serve(operations, self._request.mountpoint, options, on_ready)

    async def _finalize(
        self, volume: MountedVolume, health: HealthKeeper, service: MountService
    ) -> None:
        """Bring everything to tape and tell the service how it went."""
        service.unmounting()
        ending = "unmounted, finalizing the tape" if volume.writable else "unmounted"
        self._report_last({"event": "unmounting", "message": ending})
        try:
            await service.showing_progress(volume.finalize, self._report_last)
            # What the drive has to say of this mount; afterwards it is forgotten.
            if volume.offline_reason is None:
                await health.look()
        except TapefsError as error:
            telemetry.event(telemetry.SEGMENT_FAILED, logging.ERROR, reason=error)
            service.finalized(error)
        else:
            self._report_last({"event": "finalized", "message": service.outcome()})
            service.finalized(None)

    def _report_last(self, event: dict[str, Any]) -> None:
        """Report if somebody still listens: a terminal that was closed must not cost the end."""
        with contextlib.suppress(OSError):
            self._report(event)

    async def _end_on_signal(self) -> None:
        """SIGTERM and Ctrl-C unmount; the tape is finalized all the same, however often."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            arrived: AsyncIterator[int] = signals
            async for number in arrived:
                telemetry.event(telemetry.MOUNT_ENDED, signal=signal.Signals(number).name)
                self._serving.cancel()


def boot_id() -> str:
    """What tells this run of the kernel from any other."""
    return _BOOT_ID.read_text().strip()


def single_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to tell when a group of tasks failed: the first error of ours, else the first."""
    flat = [exc for exc in leaves_of(group) if not isinstance(exc, trio.Cancelled)]
    known = [exc for exc in flat if isinstance(exc, TapefsError)]
    return (known or flat or [group])[0]
