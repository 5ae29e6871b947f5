"""The status document of a mount: what `tapefs status` shows, as JSON types. Never waits."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs.archive.admission import Flow
from tapefs.archive.policy import JobKind
from tapefs.archive.verify import counts
from tapefs.drive import Motion
from tapefs.entries import TapeFileKind

if TYPE_CHECKING:
    from pathlib import Path

    from tapefs.archive.health import HealthKeeper
    from tapefs.archive.mounted import MountedVolume
    from tapefs.daemon.drives import OpenedDrive

# How many characters the drawn tape has.
MAP_CELLS: Final = 100
_CELLS: Final = {
    TapeFileKind.SEGMENT: "=",
    TapeFileKind.CLOSING: "|",
    TapeFileKind.CHECKPOINT: "|",
    TapeFileKind.TORN: "!",
}
_ROOM: Final = "."
# So many of the recalls that wait are listed.
_RECALLS_LISTED: Final = 20
# ... and so many of the open files.
_FILES_LISTED: Final = 50

# What a job is at while the drive reads for it, or has nothing to do for it yet.
_READING_FOR: Final = {
    JobKind.RECALL.value: "recalling",
    JobKind.ARCHIVE.value: "verifying",
    JobKind.MAINTENANCE.value: "verifying",
    JobKind.CONTROL.value: "positioning",
}
_BEGINNING: Final = {
    **_READING_FOR,
    JobKind.ARCHIVE.value: "writing",
    # A question about its health, which takes no time, or a verification that begins.
    JobKind.MAINTENANCE.value: "idle",
}

_WHY: Final = {
    Flow.FREE: "there is room in the spool, which is {fill_percent} % full",
    Flow.SLOWED: "the spool is {fill_percent} % full; the room that is left has to last until the "
    "drive has made more",
    Flow.WAITING: "the spool is {fill_percent} % full; the drive has to make room first",
}


def status_document(
    mountpoint: Path, opened: OpenedDrive, volume: MountedVolume, health: HealthKeeper
) -> dict[str, Any]:
    """Everything there is to know about a mount now."""
    identity = opened.drive.identity
    archiver = volume.archiver.statistics()
    away = volume.scheduler.away
    recall = volume.recall.statistics()
    rate = archiver.tape_bytes / archiver.tape_s if archiver.tape_s else 0.0
    admission = volume.contents.admission
    lane = _lane(opened, volume)
    return {
        "mountpoint": str(mountpoint),
        "volume": volume.label.name,
        "uuid": str(volume.label.volume_uuid),
        "pid": os.getpid(),
        "mode": "read-write" if volume.writable else "read-only",
        "generation": volume.generation,
        "state": "offline"
        if volume.offline_reason
        else lane["state"]
        if away or archiver.state == "idle"
        else archiver.state,
        "problem": admission.closed_reason or admission.stuck_reason,
        "away_since": away.since if away else None,
        "all_on_tape": not volume.catalog.owes_tape(),
        "drive": {
            "name": opened.name,
            "vendor": identity.vendor,
            "product": identity.product,
            "serial": identity.serial,
            "virtual": opened.virtual,
        },
        "lane": lane,
        "tape": _tape(volume),
        "spool": {
            "used_bytes": volume.spool.used_bytes,
            "limit_bytes": volume.spool.limit_bytes,
            "not_on_tape_bytes": volume.account.pending_bytes,
            "not_on_tape_files": volume.account.pending_count,
            "going_to_tape_bytes": archiver.current_bytes,
        },
        "writers": _writers(volume),
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
        "verification": _verification(volume),
        "health": _health(health),
    }


def inner_state(opened: OpenedDrive, volume: MountedVolume) -> dict[str, Any]:
    """What only a developer wants to know: drive, archiver, caches, and which files are open."""
    drive = opened.drive
    files = [
        {
            "ino": ino,
            "opens": file.opens,
            "writers": file.writers,
            "bytes": file.inode.size,
            "dirty_ranges": len(file.dirty),
            "resident_ranges": len(file.resident),
            "unsaved": file.unsaved,
        }
        for ino, file in volume.contents.in_use()
    ]
    return {
        "drive_identity": dataclasses.asdict(drive.identity),
        "drive_capabilities": dataclasses.asdict(drive.capabilities),
        "drive_statistics": dataclasses.asdict(drive.statistics()),
        "drive_lost": drive.lost,
        "jobs": dataclasses.asdict(volume.scheduler.statistics()),
        "archiver": dataclasses.asdict(volume.archiver.statistics()),
        "recall": dataclasses.asdict(volume.recall.statistics()),
        "account": dataclasses.asdict(volume.account),
        "open_files_count": len(files),
        "open_files": files[:_FILES_LISTED],
    }


def _writers(volume: MountedVolume) -> dict[str, Any]:
    """How writes into the mount get on, and why."""
    found = volume.contents.admission.backpressure()
    fill_percent = round(100 * volume.spool.pressure())
    return {
        "flow": found.flow.value,
        "reason": _WHY[found.flow].format(fill_percent=fill_percent),
        "slowed_to_bytes_per_s": found.bytes_per_s and round(found.bytes_per_s),
        "room_expected_s": found.next_room_s and round(found.next_room_s),
    }


def _health(keeper: HealthKeeper) -> dict[str, Any]:
    document = keeper.document()
    return {
        "asked": _moment(document.pop("asked_ns")),
        **document,
        "alerts": [{**alert, "last": _moment(alert["last"])} for alert in document["alerts"]],
    }


def _lane(opened: OpenedDrive, volume: MountedVolume) -> dict[str, Any]:
    """What the drive is at, for whom, how fast, and who waits for it."""
    now_s = trio.current_time()
    lane = volume.scheduler.statistics()
    activity = opened.drive.activity
    since_s, away = lane.since_s, volume.scheduler.away
    if away is not None:
        state = "away"
    elif lane.running is None:
        state = "idle"
    else:
        motion = activity.since(lane.since_s)
        state = _state(lane.running, motion)
        if motion is not None:
            since_s = max(since_s, activity.motion_since_s)
    rates = activity.rates(now_s)
    busy = rates.busy_share
    return {
        "state": state,
        "for_s": round(now_s - since_s, 1),
        "written_bytes_per_s": round(rates.written_bytes_per_s),
        "read_bytes_per_s": round(rates.read_bytes_per_s),
        "drive_busy_percent": None if busy is None else round(100 * busy),
        "jobs_waiting": lane.waiting,
        "recalls_waiting_at_blocks": list(lane.recall_blocks[:_RECALLS_LISTED]),
    }


def _state(running: str, motion: Motion | None) -> str:
    if motion is None:
        return _BEGINNING[running]
    return _READING_FOR[running] if motion is Motion.READING else motion.value


def _tape(volume: MountedVolume) -> dict[str, Any]:
    account, end_block = volume.account, volume.view.expected_end().block
    geometry, head_block = volume.label.geometry, volume.scheduler.head_block
    end_bytes = geometry.bytes_before(end_block)
    shown_bytes = max(account.total_bytes or 0, end_bytes, 1)
    kinds = dict.fromkeys(TapeFileKind, 0)
    cells = [_ROOM] * MAP_CELLS
    for tape_file in volume.view.outlines():
        kinds[tape_file.kind] += 1
        first_bytes = geometry.bytes_before(tape_file.first_block)
        last_bytes = geometry.bytes_before(geometry.end_address(tape_file).block) - 1
        first, last = (
            min(MAP_CELLS - 1, place * MAP_CELLS // shown_bytes)
            for place in (first_bytes, last_bytes)
        )
        mark = _CELLS[tape_file.kind]
        for cell in range(first, last + 1):
            # A small checkpoint or torn tape file among segments is worth being seen.
            if mark != _CELLS[TapeFileKind.SEGMENT] or cells[cell] == _ROOM:
                cells[cell] = mark
    known = account.total_bytes is not None
    return {
        "record_bytes": volume.label.record_bytes,
        "position_block": head_block,
        "position_bytes": None if head_block is None else geometry.bytes_before(head_block),
        "end_of_data_block": end_block,
        "capacity_bytes": account.total_bytes,
        "written_bytes": account.written_bytes,
        "free_bytes": account.free_bytes() if known else None,
        "segments": kinds[TapeFileKind.SEGMENT],
        "checkpoints": kinds[TapeFileKind.CHECKPOINT],
        "closings": kinds[TapeFileKind.CLOSING],
        "torn_tape_files": kinds[TapeFileKind.TORN],
        "map": "".join(cells),
        "map_covers_bytes": shown_bytes,
    }


def _verification(volume: MountedVolume) -> dict[str, Any]:
    outlines = (file for file in volume.view.outlines() if counts(file))
    summary = volume.verifications.summary(outlines)
    return {
        "proven_good": _moment(summary.proven_good_ns),
        "last_verified": _moment(summary.last_ns),
        "verified_tape_files": summary.verified_count,
        "unverified_tape_files": summary.unverified_count,
        "damaged_places": summary.damage_count,
        "damaged_bytes": summary.damaged_bytes,
    }


def _moment(time_ns: int | None) -> str | None:
    """`time_ns` since the epoch for people and scripts, to the second."""
    if time_ns is None:
        return None
    return dt.datetime.fromtimestamp(time_ns // 10**9, dt.UTC).isoformat()
