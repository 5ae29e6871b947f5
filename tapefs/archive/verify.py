"""Verification: read a volume back from the medium and say what is not as it was written.

What is proven when a tape file is found right: at that moment this drive read every record of it
from the tape, and every record, member, journal, manifest, catalog copy and tail was what the
writer had computed its checksum of. Nothing of what recall has in memory or the spool on disk is
looked at. The results are kept, so the next verification can go on where this one ended; a tape
file is the unit of that.
"""

from __future__ import annotations

import enum
import tempfile
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs import telemetry
from tapefs.archive.content_plan import ContentPlan, write_rows
from tapefs.archive.damage_report import DamageReport, log_damage
from tapefs.archive.policy import JobKind
from tapefs.archive.resumption import leaves_in_doubt
from tapefs.archive.tape_file_check import TapeFileCheck
from tapefs.archive.verify_reading import LaneReading, TapeFilePlan
from tapefs.drive import TapeAddress
from tapefs.entries import Damage, DamageKind, TapeFile, TapeFileKind, printable
from tapefs.errors import (
    BlankTape,
    DamagedTape,
    DriveBusy,
    ForeignTape,
    MediumFailed,
    TapefsError,
    WrongTape,
)
from tapefs.geometry import LABEL_BYTES
from tapefs.volume.session import read_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tapefs.archive.scheduler import Scheduler
    from tapefs.catalog import Snapshot, TapeView, Verifications
    from tapefs.drive import TapeDrive

    Report = Callable[[dict[str, Any]], None]

# Progress is told this often.
_PROGRESS_S: Final = 0.25
# A moment that lies before every other: with it, whatever was ever verified is passed over.
_EVER_NS: Final = 1


class Scope(enum.Enum):
    """How much of a volume is verified.

    NEW: the tape files that were never verified on this host. REST: what the last verification of
    everything, on this host, did not come to.
    """

    EVERYTHING = "everything"
    REST = "rest"
    NEW = "new"


def counts(tape_file: TapeFile) -> bool:
    """Whether anything in `tape_file` matters. Of a torn one that was not salvaged nothing does."""
    return tape_file.kind is not TapeFileKind.TORN or tape_file.salvaged


@dataclass(frozen=True, slots=True)
class _Volume:
    """Where a verification gets what it needs."""

    scheduler: Scheduler
    view: TapeView
    names: Callable[[], AbstractContextManager[Snapshot | TapeView]]
    results: Verifications
    work: Path
    clock_ns: Callable[[], int]


class Verifier:
    """Verifies one volume, for one caller at a time. The lane must be running.

    `view` says what is on tape; `names` opens a catalog to name files by, for a worker thread;
    `work` is a local directory. All of it belongs to the trio thread.

    All methods return the report as JSON types: what was read, and what is damaged. They raise
    DriveBusy while another verification runs, and what keeps the drive from reading at all; then,
    and when they are cancelled, what was found until then is kept.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        view: TapeView,
        names: Callable[[], AbstractContextManager[Snapshot | TapeView]],
        results: Verifications,
        work: Path,
        clock_ns: Callable[[], int],
    ) -> None:
        self._volume = _Volume(scheduler, view, names, results, work, clock_ns)
        self._busy = False

    async def whole(
        self, scope: Scope, report: Report, unfollowed: TapefsError | None = None
    ) -> dict[str, Any]:
        """The volume, or what `scope` leaves of it.

        `unfollowed` is what kept the catalog from learning the last tape files: they are read as
        well, and judged by what they say themselves. It is raised if no damage explains it.
        """
        results = self._volume.results
        with self._run(scope.value, report) as run:
            since_ns = _EVER_NS if scope is Scope.NEW else run.started_ns
            if scope is Scope.REST and results.pass_started_ns:
                # The report lists what the interrupted one found as well.
                since_ns = run.reported_ns = results.pass_started_ns
            elif scope is not Scope.NEW:
                results.begin_pass(run.started_ns)
                await run.label()
            return await run.tape_files(since_ns, unfollowed)

    async def content(self, ino: int, path: bytes, report: Report) -> dict[str, Any]:
        """The content of the file `ino`, or of everything below the directory `ino`.

        What the tape has of it: content that waits in the spool cannot be verified. `path` is for
        the report.
        """
        with self._run(printable(path), report) as run:
            return await run.content(ino)

    @contextmanager
    def _run(self, what: str, report: Report) -> Iterator[_Run]:
        if self._busy:
            raise DriveBusy("a verification of this volume runs already; wait for its end")
        self._busy = True
        try:
            yield _Run(self._volume, what, report)
        finally:
            self._busy = False


class _Run:
    """One verification from its first to its last record."""

    def __init__(self, volume: _Volume, what: str, report: Report) -> None:
        self._volume = volume
        self._settings = volume.view.settings
        self._what = what
        self._report = report
        self._total_records = self._damage_count = self._tape_file_count = 0
        self._began_s = self._told_s = trio.current_time()
        self.started_ns = self.reported_ns = volume.clock_ns()
        geometry = self._settings.geometry
        self._reading = LaneReading(volume.scheduler, geometry, self._progressed)

    # -- whole tape files

    async def label(self) -> None:
        """Read the label and compare it with what the catalog knows."""
        damages: list[Damage] = []

        async def job(drive: TapeDrive) -> None:
            self._volume.scheduler.head_block = None
            try:
                label = await read_label(drive)
            except (DamagedTape, ForeignTape, BlankTape, WrongTape, MediumFailed) as exc:
                if leaves_in_doubt(exc):
                    raise
                damages.append(_of_label(DamageKind.UNREADABLE, str(exc)))
                return
            known = self._settings
            said = (label.volume_uuid, label.name, label.geometry, label.created_ns)
            if said != (known.volume_uuid, known.name, known.geometry, known.created_ns):
                damages.append(_of_label(DamageKind.MISMATCH, "it is that of another volume"))

        await self._volume.scheduler.submit(JobKind.MAINTENANCE, job, block=0)
        self._volume.results.note_label(damages, self.started_ns)
        self._found(damages)

    async def tape_files(
        self, since_ns: int, unfollowed: TapefsError | None = None
    ) -> dict[str, Any]:
        """All tape files that were not verified at `since_ns` or later; the report.

        Raises `unfollowed`, what kept the catalog from following the tape, if nothing explains it.
        """
        volume = self._volume
        for outline in volume.view.outlines():
            if self._is_due(outline, since_ns):
                self._total_records += self._settings.geometry.record_count(outline)
        sequence = 1
        while (tape_file := volume.view.tape_file(sequence)) is not None:
            if self._is_due(tape_file, since_ns):
                start = TapeAddress(tape_file.first_block, sequence, 0)
                _, damages = await self._tape_file(start, tape_file)
                volume.results.note(tape_file, damages, volume.clock_ns())
                self._found(damages)
            sequence += 1
        if unfollowed is not None:
            await self._unknown_tape_files(sequence)
            if not self._damage_count:
                raise unfollowed
        return await self._finish()

    def _is_due(self, tape_file: TapeFile, since_ns: int) -> bool:
        return counts(tape_file) and self._volume.results.verified_ns(tape_file) < since_ns

    async def _unknown_tape_files(self, sequence: int) -> None:
        block = self._volume.view.expected_end().block
        while True:
            start = TapeAddress(block, sequence, 0)
            plan, damages = await self._tape_file(start, None)
            self._volume.results.add_damage(damages, self._volume.clock_ns())
            self._found(damages)
            if plan.filemark_block is None:
                return
            block, sequence = plan.filemark_block + 1, sequence + 1

    async def _tape_file(
        self, start: TapeAddress, known: TapeFile | None
    ) -> tuple[TapeFilePlan, tuple[Damage, ...]]:
        """Read one tape file; everything that is wrong with it."""
        with tempfile.TemporaryFile(dir=self._volume.work) as hashes:
            settings = self._settings
            check = TapeFileCheck(settings.volume_uuid, start, settings.record_bytes, known, hashes)
            plan = TapeFilePlan(check, start, known, settings.geometry)
            await self._reading.run(plan)
            plan.give_up_rest()
            damages = await trio.to_thread.run_sync(check.finish)
        self._tape_file_count += check.record_count > 0
        telemetry.event(
            telemetry.VERIFIED,
            sequence=start.file,
            records=check.record_count,
            damages=len(damages),
        )
        return plan, damages

    # -- files

    async def content(self, ino: int) -> dict[str, Any]:
        """Read what the tape has of the files at and below `ino`."""
        volume = self._volume
        with tempfile.TemporaryFile(dir=volume.work) as rows:
            with volume.names() as names:
                contents = names.content_below(ino)
                content_bytes = await trio.to_thread.run_sync(write_rows, contents, rows)
            self._total_records = -(-content_bytes // self._settings.record_bytes)
            plan = ContentPlan(rows, self._settings.geometry, volume.view.tape_file)
            try:
                await self._reading.run(plan)
            finally:
                found = plan.found()
                volume.results.add_damage(found, volume.clock_ns())
                self._found(found)
        return await self._finish()

    # -- the report

    def _found(self, damages: Iterator[Damage] | tuple[Damage, ...] | list[Damage]) -> None:
        for damage in damages:
            self._damage_count += 1
            log_damage(damage)

    def _progressed(self) -> None:
        now_s = trio.current_time()
        if now_s - self._told_s >= _PROGRESS_S:
            self._told_s = now_s
            self._tell()

    def _tell(self) -> None:
        record_bytes = self._settings.record_bytes
        done = self._reading.record_count
        self._report(
            {
                "event": "progress",
                "phase": "verify",
                "message": f"verifying volume '{self._settings.name}'",
                "done_bytes": done * record_bytes,
                "total_bytes": max(done, self._total_records) * record_bytes,
                "damage_count": self._damage_count,
            }
        )

    async def _finish(self) -> dict[str, Any]:
        self._tell()
        volume, reading = self._volume, self._reading
        duration_s = trio.current_time() - self._began_s
        read_bytes = reading.record_count * self._settings.record_bytes
        damages = DamageReport(self._settings.geometry)
        with volume.names() as names:
            for damage in volume.results.damages(self.reported_ns):
                damages.add(damage, volume.view.tape_file(damage.sequence))
            await trio.to_thread.run_sync(damages.name_files, names)
        return {
            "name": self._settings.name,
            "volume": str(self._settings.volume_uuid),
            "verified": self._what,
            "tape_files_count": self._tape_file_count,
            "torn_tape_files_count": sum(not counts(item) for item in volume.view.outlines()),
            "records_count": reading.record_count,
            "read_bytes": read_bytes,
            "duration_s": round(duration_s, 3),
            "rate_bytes_per_s": round(read_bytes / duration_s) if duration_s else 0,
            "records_reread_count": reading.reader.reread_count,
            **damages.document(),
        }


def _of_label(kind: DamageKind, detail: str) -> Damage:
    return Damage(0, 0, LABEL_BYTES, kind, detail)
