"""A mounted volume: all parts between the filesystem and the drive, built, running, closed.

The daemon puts FUSE and the control socket on top; tests put a model on top. Both get the same
thing.
"""

from __future__ import annotations

import logging
import math
import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs import telemetry
from tapefs.archive.archiver import Archiver
from tapefs.archive.capacity import CapacityAccount
from tapefs.archive.catalogs import VERIFIED_NAME, make_directory, open_catalogs
from tapefs.archive.contents import Contents
from tapefs.archive.generations import directory_of, open_generation
from tapefs.archive.offline import open_shelved
from tapefs.archive.recall import RecallService
from tapefs.archive.reconcile import reconcile_spool
from tapefs.archive.record_store import RecordStore
from tapefs.archive.resumption import Resumption
from tapefs.archive.scheduler import Scheduler
from tapefs.archive.spool import Spool
from tapefs.archive.tape_writer import TapeWriter, measure_room
from tapefs.archive.tree import reap_orphans
from tapefs.archive.verify import Verifier
from tapefs.catalog import TapeView, Verifications
from tapefs.entries import ROOT_INO
from tapefs.errors import MediumFailed, VolumeFull
from tapefs.scsi.sense import AbortedCommand, DeferredError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tapefs.archive.known_volumes import KnownVolume
    from tapefs.catalog import Catalog
    from tapefs.config import Config
    from tapefs.drive import TapeDrive
    from tapefs.volume.label import Label

    Report = Callable[[dict[str, Any]], None]


# How often the spool is rid of doomed files and the catalog's log folded into its file.
_TIDY_S: Final = 5.0
# Files deleted between two looks at the event loop.
_DELETE_BATCH: Final = 100


@dataclass(eq=False, slots=True)
class MountedVolume:
    """The parts. Built by `open_volume` only; `run` must be running for anything to happen."""

    label: Label
    catalog: Catalog
    # For everybody but the archiver, whose worker threads have their own connection.
    view: TapeView
    scheduler: Scheduler
    recall: RecallService
    store: RecordStore
    spool: Spool
    contents: Contents
    archiver: Archiver
    verifications: Verifications
    verifier: Verifier
    account: CapacityAccount
    config: Config
    writable: bool
    # The generation that is shown; None for the volume as it is now.
    generation: int | None = None
    # Why nothing can be read from the tape, ever: it is not in a drive.
    offline_reason: str | None = None
    clean: bool = False

    @property
    def unreachable_reason(self) -> str | None:
        """Why nothing can be read from the tape now, and what to do about it; None if it can."""
        away = self.scheduler.away
        return self.offline_reason or (away.sentence if away else None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Lane, recall, archiver and the regular commits, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.scheduler.run)
            await nursery.start(self.recall.run)
            await nursery.start(self.archiver.run)
            nursery.start_soon(self._commit_regularly)
            task_status.started()

    async def _commit_regularly(self) -> None:
        """Group commit: metadata outlives the process at least this often, without any fsync.

        Some time after a change a durable one, after which the files that left the spool are
        deleted. While nothing changes, nothing runs here.
        """
        changed = trio.Event()

        def note() -> None:
            changed.set()

        self.catalog.on_change = note
        tidy_at = trio.current_time() + _TIDY_S
        while True:
            with trio.move_on_at(tidy_at):
                await changed.wait()
            if changed.is_set():
                changed = trio.Event()
                tidy_at = min(tidy_at, trio.current_time() + _TIDY_S)
                await trio.sleep(self.config.commit_s)
                if self.catalog.needs_commit:
                    self.catalog.commit()
            if trio.current_time() >= tidy_at:
                await self._tidy()
                tidy_at = trio.current_time() + _TIDY_S if self.spool.pinned else math.inf

    async def _tidy(self) -> None:
        if self.spool.has_doomed:
            self.spool.condemn()
            self.catalog.commit()
            await trio.to_thread.run_sync(self.catalog.sync_log)
            while self.spool.execute(_DELETE_BATCH):
                await trio.lowlevel.checkpoint()
        # In a thread, before a commit would have to do it and hold up everybody.
        await trio.to_thread.run_sync(self.catalog.fold_log)

    async def finalize(self) -> None:
        """After the last user has gone: everything to tape, checkpoint, rewind.

        Raises what kept it from that; what is missing on tape is in the spool then.
        """
        if not self.writable:
            if self.offline_reason is None:
                await self.archiver.migration.rewind()
            self.clean = True
            return
        self.catalog.commit(durable=True)
        await self.archiver.finalize()
        await self._tidy()
        self.clean = True
        telemetry.event(telemetry.TAPE_FINALIZED, volume=self.label.name)


async def open_volume(
    drive: TapeDrive,
    label: Label,
    directory: Path,
    config: Config,
    report: Report,
    *,
    boot_id: str,
    read_only_reason: str | None,
    reopen: Callable[[], Awaitable[TapeDrive]],
    generation: int | None = None,
    shelved: KnownVolume | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> MountedVolume:
    """Recover what there is to recover, prove the end of the tape, and build the parts.

    With `generation`, the volume as it was when that ended; with `shelved`, as this host knows it
    without its cartridge, over an `absent_drive`. Both need a `read_only_reason`. A tape that can
    only be read is opened read-only. The drive is for the volume alone; `reopen` for `Resumption`.
    Pair with `closing_volume`. Raises WrongTape, DamagedTape, StateUnusable, DriveBusy, and more.
    """
    with ExitStack() as opened:
        verifications = Verifications.open(directory / VERIFIED_NAME)
        opened.callback(verifications.close)
        if shelved is not None:
            view, catalog, directory = await open_shelved(shelved)
        elif generation is not None:
            view, catalog = await open_generation(drive, label, directory, generation, report)
            directory = directory_of(directory, generation)
        else:
            found = _open_catalogs(drive, label, directory, report, read_only_reason, clock_ns())
            view, catalog, read_only_reason = await found
        opened.callback(_abandon, catalog, view)
        account = await _account(None if shelved else drive, label, view, config)
        reading = TapeView.open(view.path)
        opened.callback(reading.close)
        writable = read_only_reason is None
        lookout = Resumption(drive, label, reading, reopen, config.drive_poll_s, writable=writable)
        scheduler = Scheduler(drive, lookout, config, clock_ns)
        scheduler.head_block = view.expected_end().block if writable else None  # left by recovery
        spool, store = _open_spool(directory, config, catalog, view, boot_id)
        recall = RecallService(scheduler, reading, label.geometry, store, config)
        contents = Contents(catalog, spool, recall, account, config, clock_ns, store)
        contents.admission.read_only_reason = read_only_reason
        work = make_directory(directory / "work")
        writer = TapeWriter(view, scheduler, account, config, work, clock_ns, verifications)
        archiver = Archiver(catalog, scheduler, writer, contents, spool, account, config, clock_ns)
        verifier = Verifier(scheduler, reading, catalog.snapshot, verifications, work, clock_ns)
        if writable:
            await _close_at_end(drive, catalog, writer, contents)
        _begin_session(catalog, contents, boot_id, new=writable and view.last_tape_file() is None)
        opened.pop_all()
    return MountedVolume(
        label=label,
        catalog=catalog,
        view=reading,
        scheduler=scheduler,
        recall=recall,
        store=store,
        spool=spool,
        contents=contents,
        archiver=archiver,
        verifications=verifications,
        verifier=verifier,
        account=account,
        config=config,
        writable=writable,
        generation=generation,
        offline_reason=None if shelved is None else read_only_reason,
    )


async def _open_catalogs(
    drive: TapeDrive,
    label: Label,
    directory: Path,
    report: Report,
    read_only_reason: str | None,
    now_ns: int,
) -> tuple[TapeView, Catalog, str | None]:
    """View, catalog, and why nothing can be written, if so."""
    writable = read_only_reason is None
    try:
        view, catalog = await open_catalogs(
            drive, label, directory, report, writable=writable, now_ns=now_ns
        )
    except (VolumeFull, MediumFailed, DeferredError, AbortedCommand) as exc:
        # A torn tape file at the end of a full or worn tape: it cannot be closed any more.
        if not writable:
            raise
        read_only_reason = f"nothing can be appended to the tape: {exc}"
        telemetry.event(telemetry.VOLUME_READ_ONLY, logging.ERROR, reason=exc)
        view, catalog = await open_catalogs(
            drive, label, directory, report, writable=False, now_ns=now_ns
        )
    return view, catalog, read_only_reason


@contextmanager
def closing_volume(volume: MountedVolume) -> Iterator[MountedVolume]:
    """Close the catalogs at the end; the next mount knows whether this one ended well."""
    try:
        yield volume
    finally:
        volume.contents.arrivals.close()
        volume.catalog.close(clean=volume.clean)
        volume.view.close()
        volume.archiver.close()
        volume.verifications.close()


def _open_spool(
    directory: Path, config: Config, catalog: Catalog, view: TapeView, boot_id: str
) -> tuple[Spool, RecordStore]:
    """The spool, holding what the catalog says that it holds, and what is kept beside it.

    Nothing is asked to be safe on disk when it becomes clean. So after a restart of the computer,
    which may have been a power cut, the copy on tape is the one to believe.
    """
    spool = Spool(directory / "spool", config.spool_bytes)
    if catalog.clean_shutdown and catalog.boot_id == boot_id:
        # What left the spool just before the end may not have been deleted any more.
        spool.sweep(set(catalog.staged_inos()))
    else:
        count = reconcile_spool(catalog, view, spool)
        telemetry.event(telemetry.CACHE_DISCARDED, files=count)
    return spool, RecordStore(directory / "recalled", view.settings.record_bytes, spool)


async def _close_at_end(
    drive: TapeDrive, catalog: Catalog, writer: TapeWriter, contents: Contents
) -> None:
    """The end of the tape is near since an earlier mount, or says so: nothing more goes to it."""
    if catalog.end_is_reached or (await drive.position()).early_warning:
        writer.is_near_end = True
        contents.admission.close_full()


def _abandon(catalog: Catalog, view: TapeView) -> None:
    catalog.close(clean=False)
    view.close()


def _begin_session(catalog: Catalog, contents: Contents, boot_id: str, *, new: bool) -> None:
    reap_orphans(catalog, contents)
    root = catalog.inode(ROOT_INO)
    if new and root.uid == 0 and os.geteuid() != 0:
        # A new volume's root directory belongs to who mounts it first, as with a new disk.
        root.uid, root.gid = os.geteuid(), os.getegid()
        catalog.changed(root)
    catalog.begin_session(boot_id)


async def _account(
    drive: TapeDrive | None, label: Label, view: TapeView, config: Config
) -> CapacityAccount:
    account = CapacityAccount(None, 0, label.record_bytes, inode_count=view.inode_count_max)
    end_bytes = label.geometry.bytes_before(view.expected_end().block)
    account.measured(end_bytes, None)
    if drive is not None:
        await measure_room(drive, account, config, end_bytes)
    return account
