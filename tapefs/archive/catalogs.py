"""Opening a volume's two catalogs at mount, and deciding whose word counts when they disagree.

The tape view follows the tape. The live catalog may know more (what is not on tape yet) or less
(the tape was written elsewhere). What this host wrote itself and did not take note of, because it
died in between, is told from what another host wrote by the time stamp noted before each segment.
"""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs import telemetry
from tapefs.archive.recovery import rebuild, settle_end
from tapefs.catalog import Catalog, Snapshot, TapeView, remove_database
from tapefs.entries import TapeFileKind
from tapefs.errors import StateUnusable, WrongTape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.drive import TapeDrive
    from tapefs.entries import TapeFile
    from tapefs.volume.label import Label
    from tapefs.volume.tail import Tail

    Report = Callable[[dict[str, Any]], None]

VIEW_NAME: Final = "tape.sqlite"
LIVE_NAME: Final = "live.sqlite"
VERIFIED_NAME: Final = "verified.sqlite"
# What another computer exported, which no mount looks at.
IMPORTED_NAME: Final = "imported.sqlite"
# More than a computer gives to files in a hurry before its clock has anything to say.
_INOS_BESIDE_AGE: Final = 1 << 32


def make_directory(path: Path) -> Path:
    """`path` as a directory of ours; created when missing. Raises StateUnusable."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as exc:
        raise StateUnusable(
            f"the state directory {path} cannot be written: {exc.strerror}; "
            "choose another one with --state-dir"
        ) from exc
    return path


def may_salvage(directory: Path) -> bool:
    """Whether whole members of torn segments at the end of the tape are to be taken as files.

    Not where there is a live catalog: what this host wrote last is in its spool and goes to tape
    again, changed as it may have been since. It is made after the torn tape files were judged, so
    a mount that died before is simply done again. But what was salvaged once stays so.
    """
    if not (directory / LIVE_NAME).exists():
        return True
    path = directory / VIEW_NAME
    if not path.exists():
        return False
    try:
        view = TapeView.open(path)
    except StateUnusable:
        return False
    last = view.last_tape_file()
    view.close()
    return last is not None and last.salvaged


def _unconfirmed(path: Path) -> Callable[[Tail], bool]:
    """Whether a tail is that of the segment which this host began last and took no note of.

    Then everything in it is still dirty in the live catalog `path`.
    """
    written_ns, confirmed = 0, 0
    if path.exists():
        with suppress(StateUnusable), closing(Snapshot.open(path)) as snapshot:
            written_ns, confirmed = snapshot.segment_written_ns, snapshot.confirmed_sequence
    return lambda tail: tail.written_ns == written_ns and tail.sequence > confirmed


async def open_catalogs(
    drive: TapeDrive,
    label: Label,
    directory: Path,
    report: Report,
    *,
    writable: bool,
    now_ns: int,
) -> tuple[TapeView, Catalog]:
    """The tape view and the live catalog of the loaded volume, agreeing with the tape at `now_ns`.

    Raises WrongTape when the tape was changed elsewhere while this host still has something for
    it, or is older than what this host knows; DamagedTape; StateUnusable; DriveBusy.
    """
    view = await open_view(drive, label, directory, report, writable=writable)
    try:
        catalog = await _open_live(view, directory / LIVE_NAME, now_ns)
    except BaseException:
        view.close()
        raise
    return view, catalog


async def open_view(
    drive: TapeDrive,
    label: Label,
    directory: Path,
    report: Report,
    *,
    writable: bool,
) -> TapeView:
    """The tape view of the loaded volume in `directory`, made when missing, agreeing with the tape.

    Raises WrongTape when the tape is older than what this host knows, or was changed elsewhere
    while this host still has something for it; DamagedTape; StateUnusable; DriveBusy.
    """
    work = make_directory(directory / "work")
    for left_over in work.iterdir():
        left_over.unlink()
    path = directory / VIEW_NAME
    salvages = may_salvage(directory)
    if not path.exists():
        view = await rebuild(drive, label, path, work, report, writable=writable, salvages=salvages)
        remove_database(directory / IMPORTED_NAME)
        return view
    view = TapeView.open(path)
    try:
        if view.settings.volume_uuid != label.volume_uuid:
            raise StateUnusable(f"{path} belongs to another volume; move it away")  # noqa: TRY301
        await settle_end(
            drive,
            view,
            work,
            report,
            writable=writable,
            salvages=salvages,
            is_dispensable=_unconfirmed(directory / LIVE_NAME),
            admit=_refusing_foreign(directory / LIVE_NAME),
        )
    except BaseException:
        view.close()
        raise
    return view


async def _open_live(view: TapeView, path: Path, now_ns: int) -> Catalog:
    if not path.exists():
        return await fresh_live(view, path, now_ns)
    catalog = Catalog.open(path)
    last = view.last_tape_file()
    if catalog.confirmed_sequence > (last.sequence if last else 0):
        catalog.close(clean=catalog.clean_shutdown)
        raise WrongTape(
            f"this host has seen {catalog.confirmed_sequence} tape files on this volume, but the "
            "tape ends before; it is an older copy, so mount it with another --state-dir"
        )
    if not written_elsewhere(view, catalog):
        # What a crash of ours left unconfirmed is still dirty here and goes to tape once more.
        catalog.set_confirmed_sequence(last.sequence if last else 0)
        return catalog
    refusal = _refusal(catalog)
    catalog.close(clean=catalog.clean_shutdown)
    if refusal is not None:
        raise refusal
    telemetry.event(telemetry.ROLL_FORWARD, written_elsewhere=True)
    remove_database(path)
    return await fresh_live(view, path, now_ns)


def _refusing_foreign(path: Path) -> Callable[[Tail], None]:
    """What to say to a tape file that the view does not know: refuse another host's segments.

    Only while something waits here. Then the view stays as it is: it is what the live catalog in
    `path` was made from, and an older image of the tape may still be mounted.
    """
    if not path.exists():
        return lambda _: None
    catalog = Catalog.open(path)
    try:
        refusal, is_foreign = _refusal(catalog), foreign_to(catalog)
    finally:
        catalog.close(clean=False, commit=False)

    def admit(tail: Tail) -> None:
        if refusal is not None and is_foreign(tail):
            raise refusal

    return admit


def _refusal(catalog: Catalog) -> WrongTape | None:
    """Why a tape that was written elsewhere cannot be taken over; None when nothing waits."""
    files, dirty_bytes, _ = catalog.staged_totals()
    with catalog.snapshot() as snapshot:
        changes = sum(snapshot.change_counts())
    if not (dirty_bytes or changes):
        return None
    return WrongTape(
        f"this tape was written by another host since it was last here, but {files} files and "
        f"{changes} changes of this host are not on it yet; mount it with another --state-dir "
        "to read it; 'tapefs spool move' takes what is missing to another one"
    )


def first_new_ino(view: TapeView, now_ns: int) -> int:
    """A number above all that any catalog of this volume may have given to an inode by now.

    A catalog that is lost, or that of another computer, has given numbers to files that never got
    to tape, and somebody may hold a file handle with one (NFS). Nobody makes a file in less than a
    microsecond, so the volume's age is a bound on how many there were, unless a clock runs behind.
    Where nothing is on tape yet, nothing was lost that anybody could have kept.
    """
    if view.last_tape_file() is None:
        return 0
    age_us = max(0, now_ns - view.settings.created_ns) // 1000
    return _INOS_BESIDE_AGE + age_us


async def fresh_live(view: TapeView, path: Path, now_ns: int) -> Catalog:
    """A live catalog in the new file `path` that says what `view` says. Raises StateUnusable."""
    first_ino = first_new_ino(view, now_ns)

    def create() -> None:
        # What was salvaged stands nowhere but in the view, and the catalog will rely on it.
        view.sync()
        Catalog.create_from(view.path, path, first_ino).close(clean=True)

    await trio.to_thread.run_sync(create)
    return Catalog.open(path)


def written_elsewhere(view: TapeView, catalog: Catalog) -> bool:
    """Whether the tape has segments that neither this catalog nor a crash of ours explains."""
    is_foreign, last = foreign_to(catalog), view.last_tape_file()
    for sequence in range(catalog.confirmed_sequence + 1, (last.sequence if last else 0) + 1):
        tape_file = view.tape_file(sequence)
        if tape_file is not None and is_foreign(tape_file):
            return True
    return False


def foreign_to(catalog: Catalog) -> Callable[[TapeFile | Tail], bool]:
    """Whether a tape file is a segment that neither `catalog`, as it is now, nor a crash explains.

    Of what is not confirmed only the segment that was begun last can be this host's.
    """
    confirmed, written_ns = catalog.confirmed_sequence, catalog.segment_written_ns

    def is_foreign(found: TapeFile | Tail) -> bool:
        new = found.kind is TapeFileKind.SEGMENT and found.sequence > confirmed
        return new and found.written_ns != written_ns

    return is_foreign
