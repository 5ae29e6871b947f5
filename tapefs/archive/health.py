"""Health of drive and cartridge: asked for when nobody else wants the drive, and kept.

Reading TapeAlert's flags clears them in the drive, so there is one reader, and it keeps what it
reads (`tapefs.archive.health_record`). It asks through a job of the lane, of the kind that waits
for all others: at the start of a mount, soon after something failed, now and then while nothing
happens, and at the end.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs import telemetry
from tapefs.archive.health_record import RECORD_NAME, HealthRecord, HealthSession, Tally
from tapefs.archive.policy import JobKind
from tapefs.archive.resumption import leaves_in_doubt
from tapefs.errors import TapefsError
from tapefs.scsi.log import alert_subject, alert_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.archive.scheduler import Scheduler
    from tapefs.drive import DriveHealth, DriveIdentity, DriveStatistics, TapeDrive
    from tapefs.scsi.attributes import MediumAttributes
    from tapefs.scsi.log import ErrorCounters, VolumeStatistics

# After a failure the drive is asked at once; a drive that fails at everything not more often.
_PAUSE_S: Final = 5.0
# A drive that could not answer so often in a row is not asked again during this mount.
_FAILURES_MAX: Final = 2


@dataclass(frozen=True, slots=True)
class _Counters:
    """One direction, as a look found it: bytes since the drive was opened, and its own counts."""

    moved_bytes: int
    errors: ErrorCounters | None


class HealthKeeper:
    """Asks the drive of one mount, and keeps the record of its cartridge.

    `run` must be running; the rest may be called by any task. A health that cannot be had, or
    kept, is an event and nothing else: no mount depends on it.
    """

    def __init__(
        self,
        lane: Scheduler,
        directory: Path,
        identity: DriveIdentity,
        every_s: float,
        clock_ns: Callable[[], int],
    ) -> None:
        """`directory` is the volume's. The drive is asked every `every_s` seconds; 0: never."""
        self._lane = lane
        self._path = directory / RECORD_NAME
        self._every_s = every_s
        self._clock_ns = clock_ns
        self._record = HealthRecord.load(self._path) or HealthRecord()
        self._record.begin(HealthSession(clock_ns(), _name(identity)))
        self._last: DriveHealth | None = None
        self._asked_ns: int | None = None
        self._trouble_count = 0
        self._failures_in_row = 0
        self._writing: _Counters | None = None
        self._reading: _Counters | None = None
        self._wanted = trio.Event()
        self._told: set[str] = set()
        lane.after_job = self._note_job

    def _note_job(self, drive: TapeDrive) -> None:
        """A job has ended: when the drive had trouble in it, ask what it says of that."""
        count = drive.statistics().failures
        if count != self._trouble_count:
            self._trouble_count = count
            if count:
                self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask now, and whenever it is time, until cancelled."""
        task_status.started()
        while self._every_s:
            await self.look()
            with trio.move_on_after(self._every_s):
                await trio.sleep(_PAUSE_S)
                await self._wanted.wait()
            self._wanted = trio.Event()

    async def look(self) -> None:
        """Ask once, when the lane has time for it. Does nothing where health is not asked for."""
        if not self._every_s:
            return
        try:
            await self._lane.submit(JobKind.MAINTENANCE, self._ask)
        except TapefsError as error:
            # The lane itself tells of a drive that is away.
            if not leaves_in_doubt(error):
                telemetry.event(telemetry.HEALTH_UNKNOWN, reason=error)
            if self._failures_in_row >= _FAILURES_MAX:
                # Some bridges choke on questions: each would cost a reset, and the position.
                self._every_s = 0
                telemetry.event(telemetry.HEALTH_STOPPED, logging.WARNING, reason=error)
        except Exception:  # noqa: BLE001 - logged; the mount, and its end, must outlive a bug here
            telemetry.LOGGER.exception(telemetry.HEALTH_UNKNOWN)

    async def _ask(self, drive: TapeDrive) -> None:
        # A wire that fails is reset, and the head may then be anywhere.
        head_block, self._lane.head_block = self._lane.head_block, None
        self._failures_in_row += 1
        health = await drive.health()
        self._failures_in_row = 0
        self._lane.head_block = head_block
        self._take(health, drive.statistics())

    def _take(self, health: DriveHealth, moved: DriveStatistics) -> None:
        record, now_ns = self._record, self._clock_ns()
        session = record.sessions[-1]
        writing = _Counters(moved.bytes_written, health.write_errors)
        reading = _Counters(moved.bytes_read, health.read_errors)
        _add(session.writing, writing, self._writing)
        _add(session.reading, reading, self._reading)
        self._writing, self._reading = writing, reading
        self._last, self._asked_ns = health, now_ns
        wear: VolumeStatistics | MediumAttributes | None = health.volume or health.attributes
        if wear is not None:
            record.loads_count = wear.loads_count
            record.lifetime_written_bytes = wear.written_bytes
            record.lifetime_read_bytes = wear.read_bytes
        for flag in sorted(record.note_alerts(health.alerts or frozenset(), now_ns)):
            subject, text = alert_subject(flag).value, alert_text(flag)
            telemetry.event(
                telemetry.TAPE_ALERT, logging.WARNING, flag=flag, about=subject, says=text
            )
        for sentence in self.warnings():
            if sentence not in self._told:
                self._told.add(sentence)
                telemetry.event(telemetry.HEALTH_WARNING, logging.WARNING, says=sentence)
        try:
            record.save(self._path)
        except OSError as exc:
            telemetry.event(telemetry.HEALTH_UNKNOWN, reason=exc)

    def warnings(self) -> list[str]:
        """What the user should know of drive and cartridge, each with what to do."""
        found = self._record.concerns()
        if self._last is not None and self._last.cleaning_requested:
            found.insert(0, "the drive asks to be cleaned: unmount, and load a cleaning cartridge")
        return found

    def document(self) -> dict[str, Any]:
        """For `tapefs status`; times in ns. None: the drive does not tell, or was not asked."""
        record, last = self._record, self._last
        session = record.sessions[-1]
        device = last.device if last else None
        compression = last.compression if last else None
        return {
            "asked_ns": self._asked_ns,
            "warnings": self.warnings(),
            "alerts": [
                {
                    "flag": flag,
                    "about": alert_subject(flag).value,
                    "says": alert_text(flag),
                    "last": record.alerts[flag].last_ns,
                    "mounts_count": record.alerts[flag].sessions_count,
                }
                for flag in record.alerts_now()
            ],
            "tells_alerts": None if last is None else last.alerts is not None,
            "cleaning_requested": last.cleaning_requested if last else None,
            "corrected_write_errors_count": session.writing.corrected_count,
            "uncorrected_write_errors_count": session.writing.uncorrected_count,
            "corrected_read_errors_count": session.reading.corrected_count,
            "uncorrected_read_errors_count": session.reading.uncorrected_count,
            "cartridge_loads_count": record.loads_count,
            "cartridge_written_bytes": record.lifetime_written_bytes,
            "cartridge_read_bytes": record.lifetime_read_bytes,
            "drive_power_on_h": device.power_on_h if device else None,
            "drive_cleanings_count": device.cleanings_count if device else None,
            "write_compression_percent": (compression.write_percent or None)
            if compression
            else None,
        }


def _add(tally: Tally, now: _Counters, before: _Counters | None) -> None:
    """Add to a mount's tally what came since the look before; the first one is what is there."""
    if before is None:
        before = now
    tally.moved_bytes += _since(now.moved_bytes, before.moved_bytes)
    if now.errors is None or before.errors is None:
        return
    tally.corrected_count = _sum(
        tally.corrected_count, now.errors.corrected_count, before.errors.corrected_count
    )
    tally.uncorrected_count = _sum(
        tally.uncorrected_count, now.errors.uncorrected_count, before.errors.uncorrected_count
    )


def _sum(total: int | None, count: int | None, before: int | None) -> int | None:
    if count is None or before is None:
        return total
    return (total or 0) + _since(count, before)


def _since(count: int, before: int) -> int:
    """What a counter grew by; one that is smaller than before was reset, by whatever."""
    return count - before if count >= before else count


def _name(identity: DriveIdentity) -> str:
    return " ".join(filter(None, (identity.vendor, identity.product, identity.serial)))
