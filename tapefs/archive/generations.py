"""Generations: the volume as it was at an unmount or checkpoint can be seen again, read-only.

Nothing on tape is ever overwritten, so all that an earlier catalog points to is still there. A
generation ends in a checkpoint, or in a closing: then its catalog is the last checkpoint before
that, rolled forward.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from tapefs.archive.catalogs import LIVE_NAME, VIEW_NAME, fresh_live, make_directory, open_view
from tapefs.archive.recovery import rebuild_as_of
from tapefs.catalog import remove_database
from tapefs.errors import DamagedTape, MediumFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tapefs.catalog import Catalog, TapeView
    from tapefs.drive import TapeDrive
    from tapefs.entries import TapeFile
    from tapefs.volume.label import Label

    Report = Callable[[dict[str, Any]], None]

_DIRECTORY: Final = "generations"


@dataclass(frozen=True, slots=True)
class Generation:
    """What ended in tape file `sequence`.

    `new_bytes`: what went to tape since the one before, without the tape files that end them.
    """

    number: int
    sequence: int
    written_ns: int
    new_bytes: int


def generations(view: TapeView) -> Iterator[Generation]:
    """All generations on the tape of `view`, the oldest first."""
    number = new_records = 0
    for tape_file in view.tape_files():
        if not tape_file.ends_generation:
            new_records += view.settings.geometry.record_count(tape_file)
            continue
        number += 1
        new_bytes = new_records * view.settings.record_bytes
        yield Generation(number, tape_file.sequence, tape_file.written_ns, new_bytes)
        new_records = 0


def generations_answer(view: TapeView) -> dict[str, Any]:
    """The generations of `view` as JSON types, for `tapefs generations`."""
    settings = view.settings
    return {
        "name": settings.name,
        "volume": str(settings.volume_uuid),
        "generations": [asdict(generation) for generation in generations(view)],
    }


def directory_of(directory: Path, number: int) -> Path:
    """Where generation `number` of the volume in `directory` has its catalogs."""
    return directory / _DIRECTORY / str(number)


async def open_generation(
    drive: TapeDrive, label: Label, directory: Path, number: int, report: Report
) -> tuple[TapeView, Catalog]:
    """View and live catalog of the loaded volume as they were at generation `number`.

    Read from tape each time; what this host knows of the volume today stays as it is. Raises
    UsageError when there is no such generation, DamagedTape when what it takes cannot be read, and
    what `open_view` raises.
    """
    end = await _find(drive, label, directory, number, report)
    target = make_directory(directory_of(directory, number))
    for name in (VIEW_NAME, LIVE_NAME):
        remove_database(target / name)
    try:
        work = make_directory(directory / "work")
        view = await rebuild_as_of(drive, label, end, target / VIEW_NAME, work, report)
    except (DamagedTape, MediumFailed) as exc:
        raise DamagedTape(
            f"the catalog of generation {number} cannot be read ({exc}); mount another one, "
            "'tapefs generations' lists them"
        ) from exc
    try:
        # Nobody makes a file in there, so what the time is does not matter.
        catalog = await fresh_live(view, target / LIVE_NAME, now_ns=0)
    except BaseException:
        view.close()
        raise
    return view, catalog


async def _find(
    drive: TapeDrive, label: Label, directory: Path, number: int, report: Report
) -> TapeFile:
    view = await open_view(drive, label, directory, report, writable=False)
    try:
        end, count = view.generation_end(number), view.generation_count()
    finally:
        view.close()
    if end is None:
        known = f"it has 1 to {count}" if count else "it has none yet"
        raise UsageError(f"volume '{label.name}' has no generation {number}; {known}")
    return end
