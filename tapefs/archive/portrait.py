"""A volume as a whole, in numbers for a picture: what lies where, since when, and in what state.

From this computer's catalogs, without a drive. Bounded whatever the volume holds: the largest
files, the heaviest directories, and one entry for each tape file.
"""

from __future__ import annotations

import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final

from tapefs.archive.catalogs import VERIFIED_NAME
from tapefs.archive.health_record import RECORD_NAME, HealthRecord
from tapefs.archive.shelf import summary
from tapefs.catalog import NoSuchInode, PortraitCatalog, TapeReader, Verifications
from tapefs.entries import ROOT_INO, TapeFileKind, printable
from tapefs.errors import StateUnusable
from tapefs.scsi.log import alert_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tapefs.archive.known_volumes import KnownVolume
    from tapefs.archive.shelf import VolumeSummary

    Report = Callable[[dict[str, Any]], None]

# Files in the table, directories in the picture of the contents, names told of a tape file, and
# places of damage told.
FILES_MAX: Final = 20_000
DIRECTORIES_MAX: Final = 400
NAMES_OF_TAPE_FILE: Final = 5
DAMAGES_MAX: Final = 1_000
# What is less than this share of everything is not drawn by itself.
_SHARE_MIN: Final = 1 / 2_000


def portrait(volume: KnownVolume, report: Report, *, files_max: int = FILES_MAX) -> dict[str, Any]:
    """What is known of `volume`, as JSON types. Seconds for millions of files.

    Raises StateUnusable.
    """
    report({"event": "progress", "phase": "sums", "message": "adding up the volume"})
    told = summary(volume)
    with (
        closing(TapeReader.open_for_reading(volume.view_path)) as view,
        PortraitCatalog.open(volume.live_path, volume.view_path) as catalog,
    ):
        settings = view.settings
        report({"event": "progress", "phase": "tape", "message": "looking at what lies where"})
        tape_files = _tape_files(volume, view, catalog)
        report({"event": "progress", "phase": "contents", "message": "adding up directories"})
        contents = _contents(catalog)
        report({"event": "progress", "phase": "files", "message": "listing the largest files"})
        files = list(_files(catalog, files_max))
    return {
        "name": settings.name,
        "uuid": str(settings.volume_uuid),
        "record_bytes": settings.record_bytes,
        "created_ns": settings.created_ns,
        **_sums(told),
        "tape_files": tape_files,
        "contents": contents,
        "files": files,
        "files_complete": len(files) < files_max,
        "damages": list(_damages(volume)),
        "health": _health(volume),
    }


def _sums(told: VolumeSummary) -> dict[str, Any]:
    totals, verified = told.totals, told.verified
    return {
        "last_here_ns": told.last_here_ns,
        "files_count": totals.files_count,
        "size_bytes": totals.size_bytes,
        "live_bytes": totals.tape_bytes,
        "used_bytes": told.used_bytes,
        "waiting_bytes": totals.waiting_bytes,
        "generations_count": told.generations_count,
        "verified_count": verified.verified_count if verified else 0,
        "proven_good_ns": verified.proven_good_ns if verified else None,
        "damage_count": verified.damage_count if verified else 0,
    }


def _tape_files(
    volume: KnownVolume, view: TapeReader, catalog: PortraitCatalog
) -> list[dict[str, Any]]:
    live = {sequence: (count, files) for sequence, count, files in catalog.live_content()}
    names: dict[int, list[list[Any]]] = {}
    for sequence, ino, count in catalog.largest_in_each(NAMES_OF_TAPE_FILE):
        if (path := _path(catalog, ino)) is not None:
            names.setdefault(sequence, []).append([printable(path), count])
    geometry = view.settings.geometry
    moments = _verified_moments(volume, view)
    found, generation = [], 0
    for tape_file in view.outlines():
        generation += tape_file.ends_generation
        live_bytes, files_count = live.get(tape_file.sequence, (0, 0))
        found.append(
            {
                "sequence": tape_file.sequence,
                "kind": tape_file.kind.value,
                "first_block": tape_file.first_block,
                "size_bytes": geometry.record_count(tape_file) * geometry.record_bytes,
                "live_bytes": live_bytes,
                "files_count": files_count,
                "written_ns": tape_file.written_ns,
                "generation": generation if tape_file.ends_generation else None,
                "verified_ns": moments.get(tape_file.sequence, 0),
                "largest": names.get(tape_file.sequence, []),
            }
        )
    return found


def _verified_moments(volume: KnownVolume, view: TapeReader) -> dict[int, int]:
    with (
        suppress(StateUnusable),
        closing(Verifications.open_for_reading(volume.directory / VERIFIED_NAME)) as results,
    ):
        return {each.sequence: results.verified_ns(each) for each in view.outlines()}
    return {}  # nothing was verified, or the next verification makes it anew


def _damages(volume: KnownVolume) -> Iterator[dict[str, Any]]:
    with (
        suppress(StateUnusable),
        closing(Verifications.open_for_reading(volume.directory / VERIFIED_NAME)) as results,
    ):
        for damage, _ in zip(results.damages(), range(DAMAGES_MAX), strict=False):
            yield {
                "sequence": damage.sequence,
                "position": damage.position,
                "length": damage.length,
                "kind": damage.kind.value,
                "detail": damage.detail,
            }


def _contents(catalog: PortraitCatalog) -> dict[str, Any]:
    """The heaviest directories as a tree: each with its name, bytes, files, and those in it.

    The heaviest that is not opened yet is opened next; so what is drawn is what matters.
    """
    totals = catalog.totals_of_volume()
    root: dict[str, Any] = {
        "name": "",
        "bytes": totals.size_bytes,
        "files": totals.files_count,
        "in": [],
    }
    closed = [(ROOT_INO, root)]
    count, least = 0, totals.size_bytes * _SHARE_MIN
    while closed and count < DIRECTORIES_MAX:
        closed.sort(key=lambda each: each[1]["bytes"])
        ino, node = closed.pop()
        for child in catalog.listing(ino):
            if not stat.S_ISDIR(child.inode.mode) or count >= DIRECTORIES_MAX:
                continue
            inside = catalog.totals(child.inode.ino)
            if inside.size_bytes > least:
                below = {
                    "name": printable(child.name),
                    "bytes": inside.size_bytes,
                    "files": inside.files_count,
                    "in": [],
                }
                node["in"].append(below)
                closed.append((child.inode.ino, below))
                count += 1
    return root


def _files(catalog: PortraitCatalog, limit: int) -> Iterator[list[Any]]:
    """Path, size, time of change, tape file and SHA-256 of the largest files."""
    directories: dict[int, bytes | None] = {}
    # Read to its end before anything else is asked: no transaction stays open.
    for parent, name, ino, size, mtime_ns, sha256 in list(catalog.largest_names(limit)):
        if parent not in directories:
            directories[parent] = None
            with suppress(NoSuchInode):
                directories[parent] = catalog.directory_path(parent)
        directory = directories[parent]
        if directory is None:
            continue  # it went while it was looked for
        path = directory + b"/" + name if directory else name
        extent = catalog.first_extent(ino)
        yield [
            printable(path),
            size,
            mtime_ns // 10**9,
            extent.sequence if extent else None,
            sha256.hex() if sha256 else None,
        ]


def _path(catalog: PortraitCatalog, ino: int) -> bytes | None:
    with suppress(NoSuchInode):
        for link in catalog.links(ino):
            return catalog.path_of(*link)
    return None


def _health(volume: KnownVolume) -> dict[str, Any] | None:
    record = HealthRecord.load(volume.directory / RECORD_NAME)
    if record is None:
        return None
    return {
        "concerns": record.concerns(),
        "loads_count": record.loads_count,
        "lifetime_written_bytes": record.lifetime_written_bytes,
        "lifetime_read_bytes": record.lifetime_read_bytes,
        "alerts": [
            {
                "flag": flag,
                "text": alert_text(flag),
                "first_ns": note.first_ns,
                "last_ns": note.last_ns,
                "sessions_count": note.sessions_count,
            }
            for flag, note in sorted(record.alerts.items())
        ],
        "sessions": [
            {
                "started_ns": session.started_ns,
                "drive": session.drive,
                "written_bytes": session.writing.moved_bytes,
                "read_bytes": session.reading.moved_bytes,
                "corrected_writing": session.writing.corrected_count,
                "corrected_reading": session.reading.corrected_count,
                "uncorrected": _sum(
                    session.writing.uncorrected_count, session.reading.uncorrected_count
                ),
            }
            for session in record.sessions
        ],
    }


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def first_and_last_ns(tape_files: list[dict[str, Any]]) -> tuple[int, int] | None:
    """When the first and the last of the closed tape files was written; None without any."""
    torn = TapeFileKind.TORN.value
    moments = [each["written_ns"] for each in tape_files if each["kind"] != torn]
    return (min(moments), max(moments)) if moments else None
