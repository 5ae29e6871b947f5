"""What a running mount answers over its control socket."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs.errors import NotFinalized

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.archive.archiver import Archiver
    from tapefs.archive.capacity import CapacityAccount
    from tapefs.archive.contents import Contents
    from tapefs.archive.recall import RecallService
    from tapefs.archive.scheduler import Scheduler
    from tapefs.archive.spool import Spool
    from tapefs.catalog import Catalog, TapeView
    from tapefs.daemon.drives import OpenedDrive
    from tapefs.errors import TapefsError
    from tapefs.volume.label import Label

    Report = Callable[[dict[str, Any]], None]

_PROGRESS_S: Final = 0.25


@dataclasses.dataclass(eq=False, slots=True, kw_only=True)
class MountService:
    """Status, sync and the wait for the end. Satisfies `control.Service` and `fuse`'s Service."""

    mountpoint: Path
    opened: OpenedDrive
    label: Label
    catalog: Catalog
    view: TapeView
    contents: Contents
    spool: Spool
    scheduler: Scheduler
    recall: RecallService
    archiver: Archiver
    account: CapacityAccount
    writable: bool
    _ended: trio.Event = dataclasses.field(default_factory=trio.Event)
    _error: TapefsError | None = None

    def status(self) -> dict[str, Any]:
        """Everything `tapefs status` shows, as JSON types; never waits."""
        identity = self.opened.drive.identity
        archiver = self.archiver.statistics()
        lane = self.scheduler.statistics()
        recall = self.recall.statistics()
        rate = archiver.tape_bytes / archiver.tape_s if archiver.tape_s else 0.0
        return {
            "mountpoint": str(self.mountpoint),
            "volume": self.label.name,
            "uuid": str(self.label.volume_uuid),
            "pid": os.getpid(),
            "mode": "read-write" if self.writable else "read-only",
            "state": archiver.state if archiver.state != "idle" else (lane.running or "idle"),
            "problem": self.contents.read_only_reason or self.contents.tape_stuck_reason,
            "all_on_tape": not self.catalog.owes_tape(),
            "drive": {
                "name": self.opened.name,
                "vendor": identity.vendor,
                "product": identity.product,
                "serial": identity.serial,
                "virtual": self.opened.virtual,
            },
            "tape": {
                "record_bytes": self.label.record_bytes,
                "position_block": self.scheduler.head_block,
                "end_of_data_block": self.view.expected_end_block(),
                "capacity_bytes": self.account.total_bytes,
                "written_bytes": self.account.written_bytes,
                "free_bytes": None
                if self.account.total_bytes is None
                else self.account.free_bytes(),
            },
            "spool": {
                "used_bytes": self.spool.used_bytes,
                "limit_bytes": self.spool.limit_bytes,
                "not_on_tape_bytes": self.account.pending_bytes,
                "not_on_tape_files": self.account.pending_count,
            },
            "since_mount": {
                "segments": archiver.segments,
                "checkpoints": archiver.checkpoints,
                "written_bytes": archiver.tape_bytes,
                "rate_bytes_per_s": round(rate),
                "recalls": recall.runs,
                "records_read": recall.records_read,
                "checksum_mismatches": recall.mismatches,
                "reads_waiting": recall.waiting,
            },
        }

    async def sync(self, report: Report | None = None) -> dict[str, Any]:
        """Everything written so far is on tape, flushed, when this returns."""
        if not self.writable:
            return {}
        async with trio.open_nursery() as nursery:
            if report is not None:
                nursery.start_soon(self._show_progress, report)
            await self.archiver.sync()
            nursery.cancel_scope.cancel()
        return {"end_of_data_block": self.view.expected_end_block()}

    async def wait_finalized(self, report: Report) -> dict[str, Any]:
        """Return when unmounted and finalized. Raises NotFinalized when that failed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._show_progress, report)
            await self._ended.wait()
            nursery.cancel_scope.cancel()
        if self._error is not None:
            raise NotFinalized(
                f"not everything is on the tape: {self._error}; what is missing stays in the spool"
            )
        archiver = self.archiver.statistics()
        last = self.view.last_tape_file()
        return {
            "volume": self.label.name,
            "written_bytes": archiver.tape_bytes,
            "tape_files": last.sequence if last else 0,
        }

    def finalized(self, error: TapefsError | None) -> None:
        """The mount is over; wakes who waits for that."""
        self._error = error
        self._ended.set()

    async def _show_progress(self, report: Report) -> None:
        total = self.account.pending_bytes
        while True:
            archiver = self.archiver.statistics()
            total = max(total, self.account.pending_bytes)
            done = total - self.account.pending_bytes + archiver.current_bytes
            report(
                {
                    "event": "progress",
                    "phase": archiver.state,
                    "message": f"{archiver.state}",
                    "done_bytes": min(done, total),
                    "total_bytes": total,
                }
            )
            await trio.sleep(_PROGRESS_S)
