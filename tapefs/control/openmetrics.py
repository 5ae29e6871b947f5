"""A mount's status as OpenMetrics text (OpenMetrics 1.0), for Prometheus.

Only gauges and counters are used, so that the node exporter's textfile collector, which reads the
older text format, understands it as well. Pure: status documents in, text out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Status = Mapping[str, Any]
Sample = tuple[Mapping[str, str], float]
Samples = Callable[[Status], Iterable[Sample]]

# What the lane can be at; one of them is 1.
LANE_STATES: Final = (
    "away",
    "flushing",
    "idle",
    "positioning",
    "recalling",
    "rewinding",
    "verifying",
    "writing",
)
_HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without `_total`, what it says, and how it is had of a status."""

    name: str
    help: str
    samples: Samples
    counter: bool = False
    unit: str = ""


def openmetrics(statuses: Iterable[Status]) -> str:
    """The text for these mounts, with its end mark. What a mount does not know is left out."""
    known = list(statuses)
    lines = []
    for family in FAMILIES:
        found = [
            f"{family.name}{'_total' * family.counter}{_labels(status, more)} {_number(value)}"
            for status in known
            for more, value in family.samples(status)
        ]
        if found:
            lines.append(f"# TYPE {family.name} {'counter' if family.counter else 'gauge'}")
            if family.unit:
                lines.append(f"# UNIT {family.name} {family.unit}")
            lines += [f"# HELP {family.name} {family.help}", *found]
    return "\n".join([*lines, "# EOF\n"])


def _labels(status: Status, more: Mapping[str, str]) -> str:
    labels = {"mountpoint": status["mountpoint"], "volume": status["volume"], **more}
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    # Bytes of a mountpoint that are no UTF-8 came as lone surrogates.
    clean = text.encode("utf-8", "replace").decode()
    return clean.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _find(status: Status, path: str) -> Any:  # noqa: ANN401 - any JSON
    found: Any = status
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _value(path: str, factor: float = 1) -> Samples:
    """The number, or yes and no, at `path`; nothing when it is not known."""

    def samples(status: Status) -> Iterable[Sample]:
        value = _find(status, path)
        return [] if value is None else [({}, value * factor)]

    return samples


def _is_set(path: str) -> Samples:
    return lambda status: [({}, bool(_find(status, path)))]


def _each(label: str, path: str) -> Samples:
    """One sample for each name in the mapping at `path`."""
    return lambda status: [
        ({label: name}, value) for name, value in (_find(status, path) or {}).items()
    ]


def _several(label: str, paths: Mapping[str, str]) -> Samples:
    """One sample for each of `paths` whose number is known."""

    def samples(status: Status) -> Iterable[Sample]:
        values = {name: _find(status, path) for name, path in paths.items()}
        return [({label: name}, value) for name, value in values.items() if value is not None]

    return samples


def _mount(status: Status) -> Iterable[Sample]:
    drive = status["drive"]
    labels = {
        "uuid": status["uuid"],
        "drive": f"{drive['vendor']} {drive['product']}",
        "serial": drive["serial"],
        "mode": status["mode"],
    }
    return [(labels, 1)]


def _lane_state(status: Status) -> Iterable[Sample]:
    now = _find(status, "lane.state")
    return [({"state": state}, state == now) for state in LANE_STATES]


def _proven_good(status: Status) -> Iterable[Sample]:
    text = _find(status, "verification.proven_good")
    return [] if text is None else [({}, dt.datetime.fromisoformat(text).timestamp())]


def _alerts(status: Status) -> Iterable[Sample]:
    return [
        ({"flag": str(alert["flag"]), "about": alert["about"], "says": alert["says"]}, 1)
        for alert in _find(status, "health.alerts") or ()
    ]


def _warnings(status: Status) -> Iterable[Sample]:
    return [({}, len(_find(status, "health.warnings") or ()))]


FAMILIES: Final = (
    Family("tapefs_mount", "A mount of tapefs; always 1.", _mount),
    Family("tapefs_all_on_tape", "Whether everything is safe on tape.", _value("all_on_tape")),
    Family("tapefs_problem", "Whether something keeps it from going to tape.", _is_set("problem")),
    Family("tapefs_lane_state", "What the drive is at; one of them is 1.", _lane_state),
    Family(
        "tapefs_lane_state_seconds",
        "Since when it is at that.",
        _value("lane.for_s"),
        unit="seconds",
    ),
    Family(
        "tapefs_drive_rate_bytes_per_second",
        "What goes through the drive now.",
        _several(
            "direction",
            {"write": "lane.written_bytes_per_s", "read": "lane.read_bytes_per_s"},
        ),
    ),
    Family(
        "tapefs_drive_busy_ratio",
        "The part of the last seconds in which the drive took or gave data.",
        _value("lane.drive_busy_percent", 0.01),
    ),
    Family("tapefs_jobs_waiting", "What waits for the drive.", _each("kind", "lane.jobs_waiting")),
    Family(
        "tapefs_reads_waiting",
        "Reads of programs that wait for the tape.",
        _value("since_mount.reads_waiting"),
    ),
    Family(
        "tapefs_tape_capacity_bytes",
        "What the cartridge holds without compression.",
        _value("tape.capacity_bytes"),
        unit="bytes",
    ),
    Family(
        "tapefs_tape_written_bytes",
        "Where the end of data stands.",
        _value("tape.written_bytes"),
        unit="bytes",
    ),
    Family(
        "tapefs_tape_free_bytes",
        "What may still be written to the mount.",
        _value("tape.free_bytes"),
        unit="bytes",
    ),
    Family(
        "tapefs_tape_files",
        "Tape files on the cartridge.",
        _several(
            "kind",
            {
                "segment": "tape.segments",
                "closing": "tape.closings",
                "checkpoint": "tape.checkpoints",
                "torn": "tape.torn_tape_files",
            },
        ),
    ),
    Family(
        "tapefs_spool_used_bytes",
        "Local disk that the mount uses.",
        _value("spool.used_bytes"),
        unit="bytes",
    ),
    Family(
        "tapefs_spool_limit_bytes",
        "Local disk that the mount may use.",
        _value("spool.limit_bytes"),
        unit="bytes",
    ),
    Family(
        "tapefs_not_on_tape_bytes",
        "Content that is in the spool only.",
        _value("spool.not_on_tape_bytes"),
        unit="bytes",
    ),
    Family(
        "tapefs_not_on_tape_files",
        "Files that are not on tape as they are now.",
        _value("spool.not_on_tape_files"),
    ),
    Family(
        "tapefs_segments",
        "Segments written since the mount.",
        _value("since_mount.segments"),
        counter=True,
    ),
    Family(
        "tapefs_checkpoints",
        "Checkpoints written since the mount.",
        _value("since_mount.checkpoints"),
        counter=True,
    ),
    Family(
        "tapefs_archived_bytes",
        "What went to tape since the mount.",
        _value("since_mount.written_bytes"),
        counter=True,
        unit="bytes",
    ),
    Family(
        "tapefs_recalls",
        "Runs of the tape to read files since the mount.",
        _value("since_mount.recalls"),
        counter=True,
    ),
    Family(
        "tapefs_records_read",
        "Records recalled since the mount.",
        _value("since_mount.records_read"),
        counter=True,
    ),
    Family(
        "tapefs_checksum_mismatches",
        "Records that were not what was written, since the mount.",
        _value("since_mount.checksum_mismatches"),
        counter=True,
    ),
    Family(
        "tapefs_proven_good_timestamp_seconds",
        "Since when all of the tape is known to be good.",
        _proven_good,
        unit="seconds",
    ),
    Family(
        "tapefs_unverified_tape_files",
        "Tape files that were never verified on this computer.",
        _value("verification.unverified_tape_files"),
    ),
    Family(
        "tapefs_damaged_places",
        "Places on the tape that are known to be damaged.",
        _value("verification.damaged_places"),
    ),
    Family("tapefs_warnings", "Warnings that 'tapefs status' shows.", _warnings),
    Family("tapefs_tape_alert", "TapeAlert flags of this mount; always 1.", _alerts),
    Family(
        "tapefs_cleaning_requested",
        "Whether the drive asks to be cleaned.",
        _value("health.cleaning_requested"),
    ),
    Family(
        "tapefs_corrected_errors",
        "Errors that the drive corrected in this mount.",
        _several(
            "direction",
            {
                "write": "health.corrected_write_errors_count",
                "read": "health.corrected_read_errors_count",
            },
        ),
        counter=True,
    ),
    Family(
        "tapefs_uncorrected_errors",
        "Errors that the drive could not correct in this mount.",
        _several(
            "direction",
            {
                "write": "health.uncorrected_write_errors_count",
                "read": "health.uncorrected_read_errors_count",
            },
        ),
        counter=True,
    ),
    Family(
        "tapefs_cartridge_loads",
        "How often the cartridge was loaded in its life.",
        _value("health.cartridge_loads_count"),
        counter=True,
    ),
    Family(
        "tapefs_cartridge_moved_bytes",
        "What was written to and read from the cartridge in its life.",
        _several(
            "direction",
            {
                "write": "health.cartridge_written_bytes",
                "read": "health.cartridge_read_bytes",
            },
        ),
        counter=True,
        unit="bytes",
    ),
    Family(
        "tapefs_drive_powered_seconds",
        "How long the drive was switched on in its life.",
        _value("health.drive_power_on_h", _HOUR_S),
        counter=True,
        unit="seconds",
    ),
    Family(
        "tapefs_drive_cleanings",
        "How often the drive was cleaned in its life.",
        _value("health.drive_cleanings_count"),
        counter=True,
    ),
)
