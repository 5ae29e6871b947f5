"""One mount, from the drive's name to the finalized tape."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tapefs import control, telemetry
from tapefs.archive.archiver import Archiver
from tapefs.archive.capacity import CapacityAccount
from tapefs.archive.catalogs import make_directory, open_catalogs
from tapefs.archive.contents import Contents
from tapefs.archive.recall import RecallService
from tapefs.archive.scheduler import Scheduler
from tapefs.archive.spool import Spool
from tapefs.config import Config, parse_options
from tapefs.daemon.drives import OpenedDrive, open_drive, require_medium
from tapefs.daemon.service import MountService
from tapefs.errors import NotFinalized, TapefsError
from tapefs.fuse.mountpoint import prepare_mountpoint, require_fuse
from tapefs.fuse.operations import Operations
from tapefs.fuse.session import mount_options, serve
from tapefs.volume.session import read_label

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tapefs.catalog import Catalog, TapeView
    from tapefs.volume.label import Label

    Report = Callable[[dict[str, Any]], None]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What `tapefs mount` was asked for. `options` is what stood behind -o."""

    drive: str
    mountpoint: Path
    options: str
    state_dir: Path
    read_only: bool = False
    foreground: bool = False
    verbose: bool = False


def run_mount(request: MountRequest, report: Report) -> int:
    """Serve the mount until it is unmounted and the tape finalized; returns 0 then.

    `report` gets progress events and one `mounted` event. Raises TapefsError.
    """
    config = parse_options(request.options)
    trio.run(_Mount(request, config, report).run, strict_exception_groups=True)
    return 0


class _Mount:
    """Builds the parts of one mount and lets them run."""

    def __init__(self, request: MountRequest, config: Config, report: Report) -> None:
        self._request = request
        self._config = config
        self._report = report
        self._serving = trio.CancelScope()

    async def run(self) -> None:
        """The whole life of the mount."""
        make_directory(self._request.state_dir)
        require_fuse(allow_other=self._config.allow_other)
        prepare_mountpoint(self._request.mountpoint)
        self._progress("drive", f"opening {self._request.drive}")
        try:
            async with open_drive(self._request.drive) as opened:
                await require_medium(opened)
                self._progress("label", "reading the label")
                label = await read_label(opened.drive)
                await self._run_volume(opened, label)
        except BaseExceptionGroup as group:
            raise _single_cause(group) from group

    def _progress(self, phase: str, message: str) -> None:
        self._report({"event": "progress", "phase": phase, "message": message})

    async def _run_volume(self, opened: OpenedDrive, label: Label) -> None:
        writable = not (self._request.read_only or opened.drive.write_protected)
        directory = make_directory(self._request.state_dir / "volumes" / str(label.volume_uuid))
        self._progress("catalog", f"checking volume '{label.name}' against its catalog")
        view, catalog = await open_catalogs(
            opened.drive, label, directory, time.time_ns(), self._report, writable=writable
        )
        clean = False
        try:
            parts = await self._build(opened, label, directory, view, catalog, writable=writable)
            clean = await self._live(parts)
        finally:
            catalog.close(clean=clean)
            view.close()

    async def _build(
        self,
        opened: OpenedDrive,
        label: Label,
        directory: Path,
        view: TapeView,
        catalog: Catalog,
        *,
        writable: bool,
    ) -> _Parts:
        config, drive = self._config, opened.drive
        scheduler = Scheduler(drive, recalls_before_archive=config.recalls_before_archive)
        if writable:
            # settle_end left the head at the proven end of data.
            scheduler.head_block = view.expected_end_block()
        account = await self._account(opened, label, view)
        spool = Spool(directory / "spool", config.spool_bytes)
        recall = RecallService(scheduler, view, label.record_bytes, config)
        contents = Contents(catalog, spool, recall, account, config, time.time_ns)
        archiver = Archiver(
            catalog=catalog,
            view=view,
            contents=contents,
            spool=spool,
            scheduler=scheduler,
            account=account,
            settings=view.settings,
            config=config,
            work=directory / "work",
            clock_ns=time.time_ns,
        )
        scheduler.spool_pressed = archiver.spool_pressed
        if not writable:
            contents.read_only_reason = (
                "the cartridge is write protected"
                if opened.drive.write_protected
                else "the volume is mounted read-only"
            )
        if not catalog.clean_shutdown:
            count = contents.drop_caches()
            telemetry.event(telemetry.CACHE_DISCARDED, files=count)
        for ino in catalog.orphans():
            contents.discard(ino)
            catalog.remove_inode(ino)
        catalog.begin_session(_BOOT_ID.read_text().strip())
        service = MountService(
            mountpoint=self._request.mountpoint,
            opened=opened,
            label=label,
            catalog=catalog,
            view=view,
            contents=contents,
            spool=spool,
            scheduler=scheduler,
            recall=recall,
            archiver=archiver,
            account=account,
            writable=writable,
        )
        return _Parts(catalog, scheduler, recall, contents, archiver, service, label, writable)

    async def _account(self, opened: OpenedDrive, label: Label, view: TapeView) -> CapacityAccount:
        written = view.expected_end_block() * label.record_bytes
        total = self._config.capacity_bytes
        if total is None:
            capacity = await opened.drive.capacity()
            total = written + capacity.remaining_bytes if capacity else None
        return CapacityAccount(total, written, label.record_bytes, inode_count=view.next_ino)

    async def _live(self, parts: _Parts) -> bool:
        """Run until unmounted and finalized. Returns whether everything is on tape."""
        request = self._request
        operations = Operations(
            parts.catalog, parts.contents, parts.service, parts.label.volume_uuid
        )
        operations.tree.read_only = not parts.writable
        options = mount_options(
            parts.label.name,
            allow_other=self._config.allow_other,
            read_only=not parts.writable,
        )
        socket = control.socket_path(request.mountpoint)
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            server = await nursery.start(control.serve, socket, parts.service)
            await nursery.start(parts.scheduler.run)
            await nursery.start(parts.recall.run)
            await nursery.start(parts.archiver.run)
            nursery.start_soon(_commit_regularly, parts, self._config.commit_s)
            nursery.start_soon(self._end_on_signal)
            error: TapefsError | None = None
            try:
                with self._serving:
                    await serve(operations, request.mountpoint, options, self._mounted(parts))
                with trio.CancelScope(shield=True):
                    error = await _finalize(parts)
            finally:
                with trio.CancelScope(shield=True):
                    await server.finish()
            nursery.cancel_scope.cancel()
        if error is not None:
            raise NotFinalized(str(error)) from error
        return True

    def _mounted(self, parts: _Parts) -> Callable[[], None]:
        def on_ready() -> None:
            label = parts.label
            self._report(
                {
                    "event": "mounted",
                    "volume": str(label.volume_uuid),
                    "name": label.name,
                    "read_only": not parts.writable,
                    "message": f"volume '{label.name}' is mounted",
                }
            )

        return on_ready

    async def _end_on_signal(self) -> None:
        """SIGTERM and Ctrl-C unmount; the tape is finalized all the same, however often."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            arrived: AsyncIterator[int] = signals
            async for number in arrived:
                telemetry.event(telemetry.MOUNT_ENDED, signal=signal.Signals(number).name)
                self._serving.cancel()


@dataclass(frozen=True, slots=True)
class _Parts:
    catalog: Catalog
    scheduler: Scheduler
    recall: RecallService
    contents: Contents
    archiver: Archiver
    service: MountService
    label: Label
    writable: bool


async def _commit_regularly(parts: _Parts, interval_s: float) -> None:
    """Group commit: metadata reaches the disk's cache at least this often without any fsync."""
    while True:
        await trio.sleep(interval_s)
        parts.contents.save_all()
        if parts.catalog.needs_commit:
            parts.catalog.commit()


async def _finalize(parts: _Parts) -> TapefsError | None:
    """Everything to tape, checkpoint, rewind. Tells the service how it went."""
    try:
        if parts.writable:
            parts.contents.save_all()
            parts.catalog.commit(durable=True)
            await parts.archiver.finalize()
            telemetry.event(telemetry.TAPE_FINALIZED, volume=parts.label.name)
        else:
            await parts.archiver.rewind()
    except TapefsError as error:
        telemetry.event(telemetry.SEGMENT_FAILED, logging.ERROR, reason=error)
        parts.service.finalized(error)
        return error
    parts.service.finalized(None)
    return None


def _single_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to tell when a group of tasks failed: the first error of ours, else the first."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        exc = pending.pop()
        if isinstance(exc, BaseExceptionGroup):
            pending.extend(exc.exceptions)
        elif not isinstance(exc, trio.Cancelled):
            flat.append(exc)
    known = [exc for exc in flat if isinstance(exc, TapefsError)]
    return (known or flat or [group])[0]
