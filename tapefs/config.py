"""Every limit and choice of a mount, with its name, unit and default.

Values come from `-o name=value,...`; an unknown name or a value that does not parse is a
`UsageError` that names it. Names on the command line are the field names without their unit.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from tapefs.errors import UsageError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

RECORD_BYTES_DEFAULT: Final = 512 * KIB
RECORD_BYTES_MIN: Final = 64 * KIB
RECORD_BYTES_MAX: Final = MIB


@dataclass(frozen=True, slots=True)
class Config:
    """What governs one mount. Immutable; every queue, cache, retry and wait has its bound here."""

    # fsync(2) returns when data and metadata are safe in the spool, or when they are on tape.
    fsync: Literal["spool", "tape"] = "spool"
    # Whether each tape file is read back before the spool lets go of what is in it.
    verify: Literal["off", "after-write"] = "off"
    # Most bytes of local disk that staged and cached file content may take.
    spool_bytes: int = 16 * GIB
    # Above this share of the spool the archiver starts without waiting for a full burst, and
    # writers are slowed in proportion to what is left.
    spool_high_water: float = 0.7
    # A closed file counts as settled (will not be renamed or rewritten at once) after this time.
    settle_s: float = 2.0
    # The archiver starts when this much is queued: 36 s of the drive's rate keeps the cost of
    # stops under 10 % (3 s a stop). None: derived from the drive's rate.
    burst_bytes: int | None = None
    # ... or when nothing new has come for this long, or something has waited ten times as long.
    idle_s: float = 60.0
    # One segment ends at this size or number of members, whichever comes first. None: what the
    # drive writes in two minutes.
    segment_bytes_max: int | None = None
    segment_members_max: int = 50_000
    # A file whose queued bytes exceed this is archived in parts while it is still being written.
    part_bytes_min: int = 256 * MIB
    # Tape files between two checkpoints.
    checkpoint_segments: int = 32
    # A checkpoint up to this size (some 90,000 files) is written at each unmount; a larger one when
    # the journals since the last one have grown as large.
    small_checkpoint_bytes: int = 8 * MIB
    # Attempts to write a tape file, each further on, that may fail in a row before the volume
    # turns read-only.
    write_attempts_max: int = 3
    # What the file under way may still lack at early warning for the segment to be finished.
    early_warning_room_bytes: int = 16 * MIB
    # Capacity of the cartridge in bytes where the drive cannot tell it.
    capacity_bytes: int | None = None
    # Record buffers between the assembly of records and the drive. They go round in batches of a
    # quarter of them: the fewer batches, the less the drive waits for other work of this host.
    record_queue_count: int = 32
    # Bytes of files under way into the spool that wait in memory to be hashed; then writers wait.
    unhashed_bytes: int = 32 * MIB
    # Recalled records kept in memory, shared by all readers.
    record_cache_bytes: int = 48 * MIB
    # How far a recall reads ahead of the furthest reader.
    read_ahead_bytes: int = 16 * MIB
    # A read that needs the tape fails with EIO after this time.
    recall_deadline_s: float = 3600.0
    # So often in all a recall is tried when the drive is lost while it runs.
    recall_attempts_max: int = 3
    # One file is read on for this long at most while others wait for the drive.
    recall_run_s: float = 60.0
    # While the drive or its cartridge is away, it is looked for this often.
    drive_poll_s: float = 2.0
    # A drive that nobody uses is asked this often whether it is still there.
    drive_check_s: float = 10.0
    # Drive and cartridge are asked how they are this often, when nobody wants them; 0: never.
    health_s: float = 300.0
    # A file for Prometheus with the mount's figures, absolute; None: none.
    metrics: str | None = None
    # Recalls served in a row before a waiting archive burst gets its turn.
    recalls_before_archive: int = 256
    # So long recalls keep the drive at most while the spool is above its high water mark.
    recall_turn_s: float = 900.0
    # Archive jobs in a row before a waiting recall gets its turn while the spool is not empty.
    archives_before_recall: int = 2
    # So many recalls that came later than others of them may overtake a recall that is far away.
    recall_overtaken_max: int = 32
    # Reads that may wait for tape at one time; more get EAGAIN.
    waiting_recalls_max: int = 1000
    # Local metadata is committed after this time at the latest.
    commit_s: float = 0.1
    # Owner and group to show for everything; None: those stored.
    uid: int | None = None
    gid: int | None = None
    # Permissions to show for everything are what this leaves of 0777; None: those stored.
    umask: int | None = None
    # For other users than the one who mounted; passed to FUSE.
    allow_other: bool = False

    def __post_init__(self) -> None:
        if self.spool_bytes < 16 * MIB:
            raise UsageError("spool must be at least 16M; give it a larger value")
        if not 0.0 < self.spool_high_water < 1.0:
            raise UsageError("spool_high_water must lie between 0 and 1, for example 0.7")
        if self.segment_bytes_max is not None and self.segment_bytes_max < 4 * RECORD_BYTES_MAX:
            raise UsageError("segment_max must be at least 4M; give it a larger value")


_WORDS: Final = {"fsync": ("spool", "tape"), "verify": ("off", "after-write")}
_UNITS: Final = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}


def parse_bytes(text: str) -> int:
    """A size such as `512K`, `4G` or `1000000` in bytes (powers of 1024). Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"'{text}' is not a size; write it like 512K, 64M or 4G")
    return int(match[1]) * _UNITS[match[2].upper()]


def option_names() -> dict[str, str]:
    """Name of each mount option on the command line, mapped to the field it sets."""
    return {_option_name(field.name): field.name for field in dataclasses.fields(Config)}


def parse_options(text: str, ignored: frozenset[str] = frozenset()) -> Config:
    """Build a Config from `a=1,b,c=2G`. Names in `ignored` are skipped. Raises UsageError."""
    names = option_names()
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, has_value, value = item.partition("=")
        if name in ignored:
            continue
        if name not in names:
            known = ", ".join(sorted(names))
            raise UsageError(f"unknown mount option '{name}'; known options: {known}")
        field = names[name]
        values[field] = _parse_value(name, field, value if has_value else None)
    return Config(**values)


def _option_name(field: str) -> str:
    for suffix in ("_bytes", "_s", "_count"):
        field = field.removesuffix(suffix)
    return field.replace("_bytes_", "_")


def _permissions(name: str, value: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", value) or int(value, 8) > 0o777:
        raise UsageError(f"mount option {name} takes an octal number like 022, not '{value}'")
    return int(value, 8)


def _absolute(name: str, value: str) -> str:
    if not value.startswith("/") or value.endswith("/"):
        raise UsageError(f"mount option {name} takes the path of a file, not '{value}'")
    return value


def _parse_value(name: str, field: str, value: str | None) -> object:
    if field == "allow_other":
        return value in (None, "1", "true", "yes", "on")
    if value is None:
        raise UsageError(f"mount option '{name}' needs a value: {name}=...")
    if words := _WORDS.get(field):
        if value not in words:
            raise UsageError(
                f"mount option {name} takes '{words[0]}' or '{words[1]}', not '{value}'"
            )
        return value
    if field == "metrics":
        return _absolute(name, value)
    if "_bytes" in field:
        return parse_bytes(value)
    if field == "umask":
        return _permissions(name, value)
    try:
        number = float(value) if field.endswith("_s") or field == "spool_high_water" else int(value)
    except ValueError as exc:
        raise UsageError(f"mount option '{name}' takes a number, not '{value}'") from exc
    if not 0 <= number < float("inf"):  # and so not nan either
        raise UsageError(f"mount option '{name}' must be a number that is not negative")
    return number
