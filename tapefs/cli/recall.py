"""`tapefs recall`: many files from tape into a directory, with little motion, proven."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tapefs.cli import arguments as shared
from tapefs.cli import mountpoints, places
from tapefs.cli.terminal import Table, bytes_text, duration_text
from tapefs.entries import printable
from tapefs.errors import DamageFound, Incomplete, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tapefs.archive.retrieval import Retrieved, Source
    from tapefs.cli.places import Place
    from tapefs.cli.terminal import Terminal

    Report = Callable[[dict[str, Any]], None]


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs recall`."""
    parser = shared.add_command(
        commands,
        "recall",
        run,
        summary="copy files and directories from tape into a directory, in tape order, proven",
        description="Copy what is at each PLACE into DIR, under its last name, with owners, modes, "
        "times, attributes and links, in the order that moves the tape least. Every record "
        "is checked, and every file whose SHA-256 is known. What differs in DIR is left alone. "
        "If this is interrupted, the same command goes on; what is there already is proven by "
        "its content. Damaged files are named, the others copied; the exit code is 21 then.",
        example="tapefs recall FIRST:photos/2031 FIRST:letters --to /home/me/back",
    )
    parser.add_argument("places", metavar="PLACE", nargs="+", help=places.PLACE_HELP)
    parser.add_argument(
        "--to",
        metavar="DIR",
        help="where to; it must exist. Without it, what is in a mount is read, so that this "
        "computer has it near",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files in DIR that differ")
    places.add_place_options(parser)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Recall; see `add_parsers`."""
    shared.log_if_wanted(arguments)
    groups = places.by_volume([places.resolved(text, arguments) for text in arguments.places])
    if arguments.to is None:
        return _recall_here(groups, arguments, terminal)
    target = mountpoints.real(arguments.to)
    _refuse_same_names([place for group in groups.values() for place in group])
    _refuse_own_mount(target, list(groups))
    terminal.if_interrupted = (
        f"interrupted; what is in {target} is whole, and the same command goes on with the rest"
    )
    # SQLite and trio come with it; `tapefs --help` does without.
    from tapefs.archive import retrieval  # noqa: PLC0415

    # Before anybody fetches a cartridge.
    with retrieval.destination(target):
        found = retrieval.Retrieved()
    for volume, group in groups.items():
        wanted = [(place.path, place.last_name) for place in group]

        def work(
            source: Source, report: Report, wanted: list[tuple[bytes, bytes]] = wanted
        ) -> Retrieved:
            return retrieval.retrieve(
                source, wanted, target, report, overwrites=arguments.overwrite
            )

        with terminal.progress() as progress:
            found.add(places.with_source(volume, arguments, work, progress))
    terminal.answer(document(found, target), *_parts(found, target))
    _judge(found, target)
    return 0


def _recall_here(
    groups: dict[Place, list[Place]], arguments: argparse.Namespace, terminal: Terminal
) -> int:
    """Without `--to`: have the mounts read it, which keep what they read."""
    from tapefs.archive import retrieval  # noqa: PLC0415 - see run
    from tapefs.archive.tape_order import recall_here  # noqa: PLC0415 - as above

    if any(volume.mountpoint is None for volume in groups):
        raise UsageError(
            "only what is in a mount can be recalled without --to DIR; name a directory with --to, "
            "or mount the tape"
        )
    terminal.if_interrupted = "interrupted; what was recalled is near, the same command goes on"
    found = retrieval.Retrieved()
    for volume, group in groups.items():
        origins = [place.path for place in group]

        def work(source: Source, report: Report, origins: list[bytes] = origins) -> Retrieved:
            return recall_here(source, origins, report)

        with terminal.progress() as progress:
            found.add(places.with_source(volume, arguments, work, progress))
    terminal.answer(document(found, None), *_parts(found, "this computer's cache"))
    _judge(found, "the cache")
    return 0


def _refuse_same_names(wanted: Sequence[Place]) -> None:
    seen: set[bytes] = set()
    for place in wanted:
        if place.last_name in seen and place.last_name:
            raise UsageError(
                f"two places are called '{printable(place.last_name)}'; recall them one by one, "
                "into different directories"
            )
        seen.add(place.last_name)


def _refuse_own_mount(target: Path, volumes: Sequence[Place]) -> None:
    inside = places.holding_mount(target)
    if inside is not None and any(volume.mountpoint == inside for volume in volumes):
        raise UsageError(f"{target} is on the same tape; name a directory on a disk with --to")


def _judge(found: Retrieved, target: Path | str) -> None:
    if found.damaged_count:
        raise DamageFound(
            f"{found.damaged_count} files could not be read as they were written, and are not in "
            f"{target}: take them from another copy"
        )
    if found.refused_count:
        are = "1 thing is" if found.refused_count == 1 else f"{found.refused_count} things are"
        raise Incomplete(f"{are} not in {target} as on tape; the list says why")


def document(found: Retrieved, target: Path | None) -> dict[str, object]:
    """What became of a recall, for scripts."""
    return {
        "to": None if target is None else str(target),
        "copied_files": found.files_count,
        "copied_bytes": found.copied_bytes,
        "found_files": found.found_count,
        "others": found.others_count,
        "duration_s": round(found.duration_s, 3),
        "remarks": found.remarked(),
        "damaged_count": found.damaged_count,
        "damaged": _listed(found.damaged),
        "refused_count": found.refused_count,
        "refused": _listed(found.refused),
    }


def _listed(items: list[tuple[bytes, str]]) -> list[dict[str, str]]:
    return [{"path": printable(path), "reason": reason} for path, reason in items]


def _parts(found: Retrieved, target: Path | str) -> list[str | Table]:
    rate = f", {bytes_text(found.copied_bytes / found.duration_s)}/s" if found.duration_s else ""
    there = f"; {found.found_count:,} were there already, proven" if found.found_count else ""
    summary = (
        f"recalled {found.files_count:,} files ({bytes_text(found.copied_bytes)}) to {target} in "
        f"{duration_text(found.duration_s)}{rate}{there}"
    )
    parts: list[str | Table] = [summary, *found.remarked()]
    for title, items in (("damaged", found.damaged), ("not recalled", found.refused)):
        if items:
            rows = [(printable(path), reason) for path, reason in items]
            parts.append(Table(title, rows, ("file", "because")))
    return parts
