"""Salvage: the whole members of a torn segment come back as files, under their names (P5).

Only where nobody else has them: the host that wrote the segment has everything in its spool and
archives it again, so it skips its torn tape files. What was decided stays decided, because every
tail written later says which torn tape files before it count; whoever reads the tape after that
does the same, and arrives at the same rows.
"""

from __future__ import annotations

import logging
from array import array
from typing import TYPE_CHECKING, Any

import trio

from tapefs import telemetry
from tapefs.archive.salvage_journal import SalvageJournal
from tapefs.entries import TapeFile
from tapefs.errors import DamagedTape, MediumFailed
from tapefs.scsi.sense import EndOfData, FilemarkDetected, IncorrectLength
from tapefs.volume.journal_file import read_entries
from tapefs.volume.torn import TornScan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.catalog import TapeView
    from tapefs.drive import TapeDrive
    from tapefs.geometry import Geometry

    Report = Callable[[dict[str, Any]], None]


async def salvage(
    drive: TapeDrive, view: TapeView, torn: TapeFile, work: Path, report: Report
) -> bool:
    """Apply what the whole members of `torn`, the next tape file, say; False if it is nothing.

    Then the view is as it was. Reads the tape file from its start, in bounded memory, and writes
    nothing to tape. Nothing that stands there raises anything; the drive's errors other than an
    unreadable medium come through.
    """
    uuid, sequence = view.settings.volume_uuid, torn.sequence
    path = work / f"salvaged-{sequence}.ndjson"
    scan = TornScan(uuid, sequence)
    try:
        with SalvageJournal(view, sequence, path) as journal:
            await _read(drive, torn, view.settings.geometry, scan, journal, report)
            journal.finish(scan.underway)
        if scan.fault:
            _refuse(sequence, scan.fault)
        if not journal.taken_count:
            return False
        learned = TapeFile(
            sequence, torn.kind, torn.first_block, torn.record_count, 0, bytes(scan.crcs)
        )
        entries = read_entries(path, uuid, sequence)
        await trio.to_thread.run_sync(view.apply, learned, entries)
    except DamagedTape as exc:
        _refuse(sequence, exc)
        return False
    finally:
        path.unlink(missing_ok=True)
    telemetry.event(
        telemetry.TORN_FILE_SALVAGED,
        sequence=sequence,
        records=view.settings.geometry.record_count(torn),
        members=journal.taken_count,
        refused=journal.refused_count,
    )
    return True


async def _read(
    drive: TapeDrive,
    torn: TapeFile,
    geometry: Geometry,
    scan: TornScan,
    journal: SalvageJournal,
    report: Report,
) -> None:
    """Read `torn` up to where nothing can follow, is not whole, or cannot be read."""
    record_bytes, record_count = geometry.record_bytes, geometry.record_count(torn)
    buffer: array[int] = array("B", bytes(record_bytes))
    try:
        await drive.locate(geometry.record_address(torn.sequence, torn.first_block, 0))
        for record in range(record_count):
            if await drive.read_block(buffer) != record_bytes:
                return
            for found in scan.feed(memoryview(buffer)):
                journal.take(found)
            if scan.ended:
                return
            report(
                {
                    "event": "progress",
                    "phase": "salvage",
                    "message": f"reading what is whole in the torn tape file {torn.sequence}",
                    "done_bytes": (record + 1) * record_bytes,
                    "total_bytes": record_count * record_bytes,
                }
            )
    except (FilemarkDetected, EndOfData, IncorrectLength, MediumFailed) as exc:
        _refuse(torn.sequence, exc)


def _refuse(sequence: int, reason: object) -> None:
    """Nothing of tape file `sequence`, or nothing from here on, can be taken."""
    telemetry.event(telemetry.SALVAGE_REFUSED, logging.WARNING, sequence=sequence, reason=reason)
