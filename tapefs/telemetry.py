"""Log set-up and event names: every log line is an event with fields, its name a constant here.

On a terminal a line reads `event key=value ...`. Names are code so that they cannot drift.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

LOGGER: Final = logging.getLogger("tapefs")

MOUNT_READY: Final = "mount.ready"
MOUNT_ENDED: Final = "mount.ended"
TAPE_FINALIZED: Final = "tape.finalized"
SEGMENT_STARTED: Final = "segment.started"
SEGMENT_COMMITTED: Final = "segment.committed"
SEGMENT_FAILED: Final = "segment.failed"
CHECKPOINT_COMMITTED: Final = "checkpoint.committed"
GENERATION_CLOSED: Final = "generation.closed"
RECALL_STARTED: Final = "recall.started"
RECALL_FAILED: Final = "recall.failed"
RECALLED_NOT_KEPT: Final = "recall.not_kept"
DATA_MISMATCH: Final = "data.mismatch"
ROLL_FORWARD: Final = "catalog.roll_forward"
TORN_FILE: Final = "tape.torn_file"
TORN_FILE_SALVAGED: Final = "tape.torn_file_salvaged"
SALVAGE_REFUSED: Final = "salvage.refused"
CACHE_DISCARDED: Final = "spool.cache_discarded"
SPOOL_CONTENT_LOST: Final = "spool.content_lost"
VERIFIED: Final = "verify.tape_file"
VERIFY_DAMAGE: Final = "verify.damage"
VERIFICATIONS_LOST: Final = "verify.results_lost"
EARLY_WARNING: Final = "tape.early_warning"
VOLUME_FULL: Final = "volume.full"
VOLUME_READ_ONLY: Final = "volume.read_only"
REWIND_FAILED: Final = "tape.rewind_failed"
HANDLER_FAILED: Final = "fuse.handler_failed"
RESET_RECOVERY: Final = "usb.reset_recovery"
PORT_RESET: Final = "usb.port_reset"
DRIVE_GONE: Final = "drive.gone"
DRIVE_AWAY: Final = "drive.away"
DRIVE_REFUSED: Final = "drive.refused"
DRIVE_BACK: Final = "drive.back"
DRIVE_CHECK_FAILED: Final = "drive.check_failed"
UNIT_ATTENTION: Final = "drive.unit_attention"
DRIVE_ADVICE: Final = "drive.advice"
TAPE_ALERT: Final = "drive.tape_alert"
HEALTH_WARNING: Final = "health.warning"
METRICS_FAILED: Final = "metrics.failed"
STATE_DUMP: Final = "state"
HEALTH_UNKNOWN: Final = "health.unknown"
HEALTH_STOPPED: Final = "health.stopped"
SYSTEMD_DEAF: Final = "systemd.deaf"
FAULTS_PLANNED: Final = "emulator.faults_planned"
FAULT_STRUCK: Final = "emulator.fault"


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """Log event `name` with its fields, at `level`. Values are rendered with str()."""
    if LOGGER.isEnabledFor(level):
        parts = [name, *(f"{key}={_quoted(value)}" for key, value in fields.items())]
        LOGGER.log(level, "%s", " ".join(parts))


def set_up(log_file: Path | None, *, verbose: bool) -> None:
    """Send events to `log_file`, or to standard error when None. Called once by a process."""
    handler: logging.Handler
    handler = logging.FileHandler(log_file) if log_file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)


def _quoted(value: object) -> str:
    text = str(value)
    return repr(text) if any(c.isspace() for c in text) or not text else text
