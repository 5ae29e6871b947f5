"""The commands that use a drive for a moment: list, format, rebuild."""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import trio

from tapefs.archive.catalogs import (
    VERIFIED_NAME,
    VIEW_NAME,
    make_directory,
    may_salvage,
    open_view,
)
from tapefs.archive.generations import generations_answer
from tapefs.archive.recovery import rebuild as rebuild_view
from tapefs.archive.resumption import Resumption
from tapefs.archive.scheduler import Scheduler
from tapefs.archive.verify import Scope, Verifier
from tapefs.catalog import TapeView, Verifications, remove_database
from tapefs.config import RECORD_BYTES_DEFAULT, RECORD_BYTES_MIN, Config
from tapefs.daemon.drives import open_drive, require_medium
from tapefs.errors import (
    BlankTape,
    DamagedTape,
    ForeignTape,
    MediumFailed,
    TapefsError,
    TapeHasData,
    UsageError,
    WriteProtected,
    WrongTape,
)
from tapefs.geometry import Geometry
from tapefs.usb.discovery import list_drives as list_usb_drives
from tapefs.volume.label import Label, is_valid_name, is_valid_record_size
from tapefs.volume.session import find_end, read_label, write_label

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.drive import TapeDrive

    Report = Callable[[dict[str, Any]], None]


async def list_drives() -> dict[str, Any]:
    """Every USB tape drive: what it is, whether a medium is loaded, and why others are not listed.

    A drive that cannot be opened now (in use, no permission) is listed with its `problem`.
    """
    found = list_usb_drives()
    drives = []
    for info in found.drives:
        row: dict[str, Any] = {"drive": info.selector, "title": info.title, "place": info.place}
        if info.problem is None:
            row |= await _look_into(info.selector)
        else:
            row["problem"] = info.problem
        drives.append(row)
    return {"drives": drives, "reasons": list(found.reasons)}


async def _look_into(selector: str) -> dict[str, Any]:
    try:
        async with open_drive(selector) as opened:
            drive = opened.drive
            identity = drive.identity
            return {
                "vendor": identity.vendor,
                "product": identity.product,
                "revision": identity.revision,
                "serial": identity.serial,
                "medium_loaded": drive.medium_loaded,
                "write_protected": drive.write_protected if drive.medium_loaded else None,
            }
    except TapefsError as error:
        return {"problem": str(error)}


async def format_tape(
    drive_name: str, name: str, record_bytes: int | None, force: bool, report: Report
) -> dict[str, Any]:
    """Write a new label. A tape with data is refused unless `force`.

    Raises TapeHasData, WriteProtected, UsageError, and the drive's errors.
    """
    if not is_valid_name(name):
        raise UsageError(f"'{name}' cannot name a volume; use 1 to 64 printable characters")
    async with open_drive(drive_name, create=True) as opened:
        drive = opened.drive
        await require_medium(opened, report)
        if drive.write_protected:
            raise WriteProtected("the cartridge is write protected; open its tab and try again")
        chosen = _record_size(record_bytes, drive)
        if not force:
            await _refuse_data(drive)
        report({"event": "progress", "phase": "format", "message": "writing the label"})
        # time.time_ns: the one place where a volume learns its birthday.
        label = Label(uuid.uuid4(), name, chosen, time.time_ns(), drive.block_bytes)
        await write_label(drive, label)
        written = await read_label(drive)
        if written != label:
            raise DamagedTape(
                "the label reads back differently; clean the drive or take a new tape"
            )
        await drive.rewind()
        capacity = await drive.capacity()
        return {
            "name": name,
            "volume": str(label.volume_uuid),
            "record_bytes": chosen,
            "capacity_bytes": capacity.total_bytes if capacity else None,
        }


def _record_size(wanted: int | None, drive: TapeDrive) -> int:
    """The record size to use: what was asked for, or the best up to the default.

    Raises UsageError when the drive cannot use it, or has blocks that tapefs cannot.
    """
    if not Geometry.is_block_size(drive.block_bytes):
        raise UsageError(
            f"this drive knows only blocks of {drive.block_bytes} bytes, which tapefs cannot use; "
            "use another drive"
        )
    if wanted is not None:
        if not is_valid_record_size(wanted) or not _takes(drive, wanted):
            raise UsageError(f"this drive or format cannot use records of {wanted} bytes")
        return wanted
    size = RECORD_BYTES_DEFAULT
    while size >= RECORD_BYTES_MIN:
        if _takes(drive, size):
            return size
        size //= 2
    raise UsageError("this drive takes no records of 64 KiB or more, which tapefs needs")


def _takes(drive: TapeDrive, record_bytes: int) -> bool:
    """Whether a record of this size is one block of the drive, or several of fixed length."""
    return bool(drive.block_bytes) or drive.block_limits.allow(record_bytes)


async def _refuse_data(drive: TapeDrive) -> None:
    again = "use --force to lose that for good"
    try:
        label = await read_label(drive)
    except BlankTape:
        return
    except ForeignTape:
        raise TapeHasData(f"the tape holds data that tapefs did not write; {again}") from None
    except (DamagedTape, WrongTape) as error:
        raise TapeHasData(
            f"the tape holds a volume that cannot be read ({error}); {again}"
        ) from None
    end = await find_end(drive)
    if end.block > label.geometry.first_tape_file_block:
        raise TapeHasData(f"the tape is the volume '{label.name}' and holds files; {again}")
    raise TapeHasData(f"the tape is already the volume '{label.name}', still empty; {again}")


async def list_generations(drive_name: str, state_dir: Path, report: Report) -> dict[str, Any]:
    """The generations of the loaded volume; this computer's catalog follows the tape first.

    Writes nothing to tape.
    """
    make_directory(state_dir)
    async with open_drive(drive_name) as opened:
        await require_medium(opened, report)
        label = await read_label(opened.drive)
        directory = make_directory(state_dir / "volumes" / str(label.volume_uuid))
        view = await open_view(opened.drive, label, directory, report, writable=False)
        try:
            answer = generations_answer(view)
        finally:
            view.close()
        await opened.drive.rewind()
        return answer


async def verify(drive_name: str, state_dir: Path, scope: str, report: Report) -> dict[str, Any]:
    """Read the loaded volume back, as far as `scope` (a `Scope`) says; the report.

    This computer's catalog follows the tape first. Writes nothing to tape.
    """
    make_directory(state_dir)
    async with open_drive(drive_name) as opened:
        drive = opened.drive
        await require_medium(opened, report)
        label = await read_label(drive)
        directory = make_directory(state_dir / "volumes" / str(label.volume_uuid))
        with ExitStack() as closing:
            results = Verifications.open(directory / VERIFIED_NAME)
            closing.callback(results.close)
            view, unfollowed = await _view_as_far_as_possible(drive, label, directory, report)
            closing.callback(view.close)
            config = Config()
            lookout = Resumption(
                drive, label, view, opened.reopen, config.drive_poll_s, writable=False
            )
            scheduler = Scheduler(drive, lookout, config)
            work = directory / "work"
            verifier = Verifier(
                scheduler, view, lambda: nullcontext(view), results, work, time.time_ns
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(scheduler.run)
                answer = await verifier.whole(Scope(scope), report, unfollowed)
                nursery.cancel_scope.cancel()
        await opened.drive.rewind()
        return answer


async def _view_as_far_as_possible(
    drive: TapeDrive, label: Label, directory: Path, report: Report
) -> tuple[TapeView, TapefsError | None]:
    """The tape view, and what kept it from following the tape to its end."""
    try:
        return await open_view(drive, label, directory, report, writable=False), None
    except (DamagedTape, MediumFailed) as exc:
        path = directory / VIEW_NAME
        if not path.exists():
            raise
        return TapeView.open(path), exc


async def rebuild(drive_name: str, state_dir: Path, report: Report) -> dict[str, Any]:
    """Make the tape view of the loaded volume anew from the tape alone. Writes nothing to tape.

    The live catalog and the spool stay: what is not on tape yet is there. The next mount brings
    both together.
    """
    make_directory(state_dir)
    async with open_drive(drive_name) as opened:
        await require_medium(opened, report)
        label = await read_label(opened.drive)
        directory = make_directory(state_dir / "volumes" / str(label.volume_uuid))
        work = make_directory(directory / "work")
        target = directory / VIEW_NAME
        fresh = directory / "rebuilt.sqlite"
        view = await rebuild_view(
            opened.drive,
            label,
            fresh,
            work,
            report,
            writable=False,
            salvages=may_salvage(directory),
        )
        counts = view.counts()
        view.close()
        remove_database(target)
        fresh.rename(target)
        await opened.drive.rewind()
        return {
            "name": label.name,
            "volume": str(label.volume_uuid),
            "inodes": counts.inodes,
            "names": counts.names,
            "tape_files": counts.tape_files,
            "archived_bytes": counts.archived_bytes,
        }
