"""What is known of a cartridge's health over all mounts on this host, and what to make of it.

A small JSON file in the volume's directory. Nothing depends on it: when it cannot be read, it is
begun anew. Judging is pure: the same record gives the same sentences.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tapefs.scsi.log import AlertSubject, alert_subject, alert_text

if TYPE_CHECKING:
    from pathlib import Path

RECORD_NAME: Final = "health.json"
_VERSION: Final = 1
_FILE_BYTES_MAX: Final = 1 << 20
# Older mounts are forgotten; what TapeAlert said is not.
SESSIONS_MAX: Final = 64

# A mount tells a rate of errors only when it moved this much.
_JUDGED_BYTES_MIN: Final = 64 << 20
# A rate is too high when it is so many times that of earlier mounts, of which there are so many,
# and when it is no accident of small numbers.
_RATE_FACTOR: Final = 4.0
_EARLIER_MIN: Final = 3
_CORRECTED_MIN: Final = 64

# Alerts after which a cartridge should hold nothing that is not elsewhere as well (SSC-4).
_DYING: Final = frozenset({4, 7, 13, 14, 15, 19, 52, 53, 54, 59})
_COPY: Final = "copy this volume to another cartridge, and write no more to this one"
_CLEAN_FIRST: Final = (
    "clean the drive; should it come again with this cartridge, copy the volume to another one"
)
_ADVICE: Final = {
    AlertSubject.MEDIUM: _CLEAN_FIRST,
    AlertSubject.CLEANING: "unmount, load a cleaning cartridge, and mount again",
    AlertSubject.DRIVE: "unmount and power-cycle the drive; have it repaired if that does not help",
}


@dataclass(slots=True)
class Tally:
    """What happened in one direction during a mount. None: the drive does not count that."""

    moved_bytes: int = 0
    corrected_count: int | None = None
    uncorrected_count: int | None = None

    def rate(self) -> float | None:
        """Corrected errors in a GiB; None when nobody can tell, or too little was moved."""
        if self.corrected_count is None or self.moved_bytes < _JUDGED_BYTES_MIN:
            return None
        return self.corrected_count * (1 << 30) / self.moved_bytes


@dataclass(slots=True)
class HealthSession:
    """One mount of the cartridge. `drive` names maker, model and serial number."""

    started_ns: int
    drive: str
    writing: Tally = field(default_factory=Tally)
    reading: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class AlertNote:
    """When a TapeAlert flag was raised with this cartridge loaded, and in how many mounts."""

    first_ns: int
    last_ns: int
    sessions_count: int = 1


@dataclass(slots=True)
class HealthRecord:
    """All that is kept. The last of `sessions` is the mount that runs, or the last one."""

    sessions: list[HealthSession] = field(default_factory=list)
    alerts: dict[int, AlertNote] = field(default_factory=dict)
    # As the cartridge's chip counts them; None: not known.
    loads_count: int | None = None
    lifetime_written_bytes: int | None = None
    lifetime_read_bytes: int | None = None

    @classmethod
    def load(cls, path: Path) -> HealthRecord | None:
        """The record in the file `path`; None when there is none, or nobody can understand it."""
        try:
            with path.open("rb") as file:
                return cls._from_document(json.loads(file.read(_FILE_BYTES_MAX)))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> HealthRecord:
        if document["version"] != _VERSION:
            raise ValueError("another version")
        sessions = [
            HealthSession(
                int(each["started_ns"]),
                str(each["drive"]),
                Tally(**each["writing"]),
                Tally(**each["reading"]),
            )
            for each in document["sessions"]
        ]
        alerts = {int(flag): AlertNote(**note) for flag, note in document["alerts"].items()}
        record = cls(sessions, alerts, document["loads_count"])
        record.lifetime_written_bytes = document["lifetime_written_bytes"]
        record.lifetime_read_bytes = document["lifetime_read_bytes"]
        # What is no number shows here, and not when somebody looks at it.
        record.concerns()
        json.dumps(dataclasses.asdict(record))
        return record

    def save(self, path: Path) -> None:
        """Replace the file as a whole. Raises OSError."""
        scratch = path.with_name(path.name + ".new")
        document = {"version": _VERSION, **dataclasses.asdict(self)}
        scratch.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(scratch, path)

    def begin(self, session: HealthSession) -> None:
        """Another mount begins."""
        self.sessions = [*self.sessions[-SESSIONS_MAX + 1 :], session]

    def note_alerts(self, flags: frozenset[int], now_ns: int) -> frozenset[int]:
        """These were found raised now; those of them that are new in this mount."""
        started_ns = self.sessions[-1].started_ns
        fresh = set()
        for flag in flags:
            note = self.alerts.get(flag)
            if note is None:
                self.alerts[flag] = AlertNote(now_ns, now_ns)
                fresh.add(flag)
                continue
            if note.last_ns < started_ns:
                note.sessions_count += 1
                fresh.add(flag)
            note.last_ns = now_ns
        return frozenset(fresh)

    def alerts_now(self) -> list[int]:
        """The flags that were raised in this mount."""
        started_ns = self.sessions[-1].started_ns if self.sessions else 0
        return sorted(flag for flag, note in self.alerts.items() if note.last_ns >= started_ns)

    def concerns(self) -> list[str]:
        """Sentences for the user, each with what to do; empty when all is well."""
        if not self.sessions:
            return []
        return [*self._alert_concerns(), *self._error_concerns()]

    def _alert_concerns(self) -> list[str]:
        found = []
        now = self.alerts_now()
        for flag, note in sorted(self.alerts.items()):
            subject, text = alert_subject(flag), alert_text(flag)
            times = f" (in {note.sessions_count} mounts)" if note.sessions_count > 1 else ""
            repeated = subject is AlertSubject.MEDIUM and note.sessions_count > 1
            if flag in _DYING or (repeated and flag in now):
                # Also when it was long ago: the drive says it once, and the cartridge stays bad.
                found.append(f"{text}{times}: {_COPY}")
            elif flag in now and subject in _ADVICE:
                found.append(f"{text}{times}: {_ADVICE[subject]}")
        return found

    def _error_concerns(self) -> list[str]:
        *earlier, now = self.sessions
        found = []
        for done, tally, before in (
            ("written", now.writing, [session.writing for session in earlier]),
            ("read", now.reading, [session.reading for session in earlier]),
        ):
            if tally.uncorrected_count:
                found.append(
                    f"{tally.uncorrected_count} places could not be {done} in this mount: "
                    f"{_CLEAN_FIRST}"
                )
            factor = _times_more(tally, before)
            if factor is not None:
                found.append(
                    f"the drive corrects {factor:.0f} times as many errors as in earlier mounts "
                    f"when this cartridge is {done}: {_CLEAN_FIRST}"
                )
        return found


def _times_more(tally: Tally, before: list[Tally]) -> float | None:
    """How many times more errors than usual are corrected, when that is remarkable."""
    rate = tally.rate()
    usual = [rate for rate in (each.rate() for each in before) if rate is not None]
    if rate is None or len(usual) < _EARLIER_MIN or (tally.corrected_count or 0) < _CORRECTED_MIN:
        return None
    # A tape that never had any is compared with one error in a GiB.
    factor = rate / max(1.0, statistics.median(usual))
    return factor if factor >= _RATE_FACTOR else None
