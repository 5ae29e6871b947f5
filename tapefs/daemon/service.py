"""What a running mount answers over its control socket."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs.archive.generations import generations_answer
from tapefs.archive.verify import Scope
from tapefs.daemon.status import inner_state, status_document
from tapefs.entries import ROOT_INO
from tapefs.errors import NotFinalized, NotMounted, TapefsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tapefs.archive.health import HealthKeeper
    from tapefs.archive.mounted import MountedVolume
    from tapefs.daemon.drives import OpenedDrive

    Report = Callable[[dict[str, Any]], None]

_PROGRESS_S: Final = 0.25
# What the archiver's states are for a person who waits.
_STATES: Final = {
    "idle": "getting ready",
    "writing": "writing to tape",
    "verifying": "reading back what was written",
    "indexing": "noting what is on tape",
    "checkpoint": "writing the checkpoint",
    "rewinding": "rewinding",
    "positioning": "finding the end of the tape",
}


class MountService:
    """Status, sync and the wait for the end. Satisfies `control.Service` and `fuse`'s Service."""

    def __init__(
        self,
        mountpoint: Path,
        opened: OpenedDrive,
        volume: MountedVolume,
        health: HealthKeeper,
    ) -> None:
        self._mountpoint = mountpoint
        self._opened = opened
        self._volume = volume
        self._health = health
        self._ended = trio.Event()
        self._unmounting = False
        self._verifying: set[trio.CancelScope] = set()
        self.error: TapefsError | None = None

    def status(self) -> dict[str, Any]:
        """Everything `tapefs status` shows, as JSON types; never waits."""
        document = status_document(self._mountpoint, self._opened, self._volume, self._health)
        return {**document, "unmounting": self._unmounting}

    def state(self) -> dict[str, Any]:
        """What a bug report needs, by parts; never waits. No name or content of a user's file."""
        return {**self.status(), **inner_state(self._opened, self._volume)}

    def generations(self) -> dict[str, Any]:
        """The checkpoints on this tape, as JSON types; never waits."""
        return generations_answer(self._volume.view)

    async def sync(self, report: Report | None = None) -> dict[str, Any]:
        """Everything written so far is on tape, flushed, when this returns."""
        if self._volume.writable:
            await self.showing_progress(self._volume.archiver.sync, report)
        elif self._volume.catalog.owes_tape():
            reason = self._volume.contents.admission.read_only_reason
            raise NotFinalized(
                f"not everything is on the tape, and this mount writes nothing: {reason}; what "
                "waits is kept in the spool for a mount that may write"
            )
        return {"end_of_data_block": self._volume.view.expected_end().block}

    async def wait_finalized(self, report: Report) -> dict[str, Any]:
        """Return when unmounted and finalized. Raises NotFinalized when that failed."""
        await self.showing_progress(self._ended.wait, report)
        if self.error is not None:
            raise NotFinalized(
                f"not everything is on the tape: {self.error}; what is missing stays in the spool"
            )
        archiver = self._volume.archiver
        last = self._volume.view.last_tape_file()
        warning = (
            {"warning": "; ".join(archiver.migration.remarks)} if archiver.migration.remarks else {}
        )
        return {
            "volume": self._volume.label.name,
            "written_bytes": archiver.statistics().tape_bytes,
            "tape_files": last.sequence if last else 0,
            "finalized": self._volume.writable,
            "message": self.outcome(),
            **warning,
        }

    def outcome(self) -> str:
        """What a mount that ended well has made of its tape, in words."""
        if self._volume.writable:
            return "the tape is finalized"
        kept = "; what waits for it is kept in the spool"
        return f"nothing was written to the tape{kept if self._volume.catalog.owes_tape() else ''}"

    async def verify(self, asked: dict[str, Any], report: Report) -> dict[str, Any]:
        """See `control.Service`. Raises NotMounted when the volume is unmounted meanwhile."""
        scope = trio.CancelScope()
        self._verifying.add(scope)
        if self._unmounting:
            scope.cancel()
        try:
            with scope:
                return await self._verify(asked, report)
        finally:
            self._verifying.discard(scope)
        raise NotMounted(
            f"{self._mountpoint} was unmounted before everything was verified; "
            "'tapefs verify --resume' goes on with what is missing"
        )

    async def _verify(self, asked: dict[str, Any], report: Report) -> dict[str, Any]:
        verifier = self._volume.verifier
        path, scope = asked.get("path"), asked.get("scope")
        if isinstance(path, str):
            name = os.fsencode(path)
            return await verifier.content(self._find(name), name, report)
        if scope not in [each.value for each in Scope]:
            raise UsageError("a verification has a path or a scope: everything, rest or new")
        return await verifier.whole(Scope(scope), report)

    def _find(self, path: bytes) -> int:
        ino: int | None = ROOT_INO
        for name in filter(None, path.split(b"/")):
            ino = None if ino is None else self._volume.catalog.lookup(ino, name)
        if ino is None:
            raise UsageError(f"{os.fsdecode(path)} is not there any more; verify something else")
        return ino

    def unmounting(self) -> None:
        """The mount is about to end: what only reads gives way."""
        self._unmounting = True
        for scope in self._verifying:
            scope.cancel()

    def finalized(self, error: TapefsError | None) -> None:
        """The mount is over; wakes who waits for that."""
        self.error = error
        self._ended.set()

    async def showing_progress(
        self, wait: Callable[[], Awaitable[None]], report: Report | None
    ) -> None:
        """Run `wait`; meanwhile tell `report` how far it is. Raises what `wait` raises, bare."""
        if report is None:  # a FUSE handler, which must not meet exception groups
            await wait()
            return
        error: TapefsError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._show_progress, report)
            try:
                await wait()
            except TapefsError as exc:
                error = exc
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error

    async def _show_progress(self, report: Report) -> None:
        total = self._volume.account.pending_bytes
        while True:
            archiver = self._volume.archiver.statistics()
            total = max(total, self._volume.account.pending_bytes)
            done = total - self._volume.account.pending_bytes + archiver.current_bytes
            report(
                {
                    "event": "progress",
                    "phase": archiver.state,
                    "message": _STATES.get(archiver.state, archiver.state),
                    "done_bytes": min(done, total),
                    "total_bytes": total,
                }
            )
            await trio.sleep(_PROGRESS_S)
