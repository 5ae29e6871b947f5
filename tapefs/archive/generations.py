"""Generations: every checkpoint is the volume as it was then, and can be seen again, read-only.

Nothing on tape is ever overwritten, so all that an earlier catalog points to is still there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from tapefs.archive.catalogs import LIVE_NAME, VIEW_NAME, fresh_live, make_directory, open_view
from tapefs.archive.recovery import load_checkpoint
from tapefs.catalog import remove_database
from tapefs.entries import TapeFileKind
from tapefs.errors import DamagedTape, MediumFailed, UsageError
from tapefs.volume.session import read_tail

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
    """One checkpoint. `new_bytes`: what went to tape since the one before, without checkpoints."""

    number: int
    sequence: int
    written_ns: int
    new_bytes: int


def generations(view: TapeView) -> Iterator[Generation]:
    """All generations on the tape of `view`, the oldest first."""
    number = new_records = 0
    for tape_file in view.tape_files():
        if tape_file.kind is not TapeFileKind.CHECKPOINT:
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

    Read from its checkpoint each time; what this host knows of the volume today stays as it is.
    Raises UsageError when there is no such generation, DamagedTape when its checkpoint cannot be
    read, and what `open_view` raises.
    """
    checkpoint = await _find(drive, label, directory, number, report)
    target = make_directory(directory_of(directory, number))
    for name in (VIEW_NAME, LIVE_NAME):
        remove_database(target / name)
    try:
        last = checkpoint.record_count - 1
        geometry = label.geometry
        address = geometry.record_address(checkpoint.sequence, checkpoint.first_block, last)
        tail = await read_tail(drive, address, geometry)
        work = make_directory(directory / "work")
        view = await load_checkpoint(drive, tail, label, target / VIEW_NAME, work, report)
    except (DamagedTape, MediumFailed) as exc:
        raise DamagedTape(
            f"the checkpoint of generation {number} cannot be read ({exc}); mount another one, "
            "'tapefs generations' lists them"
        ) from exc
    try:
        catalog = await fresh_live(view, target / LIVE_NAME)
    except BaseException:
        view.close()
        raise
    return view, catalog


async def _find(
    drive: TapeDrive, label: Label, directory: Path, number: int, report: Report
) -> TapeFile:
    view = await open_view(drive, label, directory, report, writable=False)
    try:
        checkpoint, count = view.checkpoint(number), view.checkpoint_count()
    finally:
        view.close()
    if checkpoint is None:
        known = f"it has 1 to {count}" if count else "it has none yet"
        raise UsageError(f"volume '{label.name}' has no generation {number}; {known}")
    return checkpoint
