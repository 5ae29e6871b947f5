"""`tapefs spool list` and `tapefs spool move`: what waits for a tape, and taking it to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tapefs.cli import arguments as shared
from tapefs.cli.shelf import UUID_SHOWN
from tapefs.cli.terminal import Table, bytes_text
from tapefs.entries import printable
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    import argparse

    from tapefs.archive.moving import Moved
    from tapefs.archive.waiting import WaitingFile, WaitingVolume
    from tapefs.cli.terminal import Terminal


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs spool list` and `tapefs spool move`."""
    members = shared.add_family(
        commands,
        "spool",
        summary="what waits for a tape: list it, or move it to the next cartridge",
        description="Show what waits in the spools of this computer, or move it elsewhere.",
        example="tapefs spool list",
    )
    listing = shared.add_command(
        members,
        "list",
        run_list,
        summary="list what is not on tape yet, also of volumes that are not mounted",
        description="List the volumes that this computer knows and how much waits for each; with "
        "VOLUME (its name, its UUID, or the beginning of that) the files as well.",
        example="tapefs spool list FIRST",
    )
    listing.add_argument("volume", metavar="VOLUME", nargs="?")
    shared.add_state_dir(listing)
    moving = shared.add_command(
        members,
        "move",
        run_move,
        summary="take what waits for one volume to another cartridge, or into any directory",
        description="Copy everything that waits for VOLUME, which must not be mounted, into DIR, "
        "with owners, modes, times, attributes and links; make it last there; then forget it "
        "here. DIR is a directory of the next cartridge's mount, or any other. For cartridges "
        "that are full, worn out, or were written by another computer.",
        example="tapefs spool move FIRST --to /mnt/tape",
    )
    moving.add_argument("volume", metavar="VOLUME")
    moving.add_argument("--to", metavar="DIR", required=True, help="where to; it must exist")
    shared.add_state_dir(moving)


def run_list(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """List; see `add_parsers`."""
    # SQLite comes with it; `tapefs --help` does without.
    from tapefs.archive import waiting  # noqa: PLC0415

    state_dir = shared.state_dir(arguments.state_dir)
    if arguments.volume is None:
        found = list(waiting.volumes(state_dir))
        rows = [
            (
                volume.name,
                volume.uuid[:UUID_SHOWN],
                f"{volume.files_count:,}",
                bytes_text(volume.waiting_bytes),
                f"{volume.changes_count:,}",
            )
            for volume in found
        ]
        columns = ("volume", "UUID", "files waiting", "content", "changes")
        part = Table("spools", rows, columns) if rows else f"no volume is known in {state_dir}"
        terminal.answer({"volumes": [volume_document(volume) for volume in found]}, part)
        return 0
    volume = waiting.find_volume(state_dir, arguments.volume)
    files = list(waiting.waiting_files(volume))
    file_rows = [
        (
            printable(file.path),
            bytes_text(file.size_bytes),
            bytes_text(file.waiting_bytes),
            "spool" if file.is_whole else "spool and tape",
        )
        for file in files
    ]
    file_columns = ("file", "size", "waiting", "its bytes are in")
    terminal.answer(
        {**volume_document(volume), "files": [file_document(file) for file in files]},
        Table(f"waiting for {volume.name}", file_rows, file_columns),
    )
    return 0


def run_move(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Move; see `add_parsers`. NOT_FINALIZED when something had to stay."""
    from tapefs.archive import moving, waiting  # noqa: PLC0415 - see run_list

    volume = waiting.find_volume(shared.state_dir(arguments.state_dir), arguments.volume)
    target = Path(arguments.to).absolute()
    terminal.if_interrupted = (
        "interrupted; nothing left the spool, and what was copied is found when the same command "
        "is run again"
    )
    with terminal.progress() as progress:
        moved = moving.move(volume, target, progress)
    terminal.answer(
        {**move_document(moved), "volume": volume.uuid, "name": volume.name, "to": str(target)},
        f"moved {moved.files_count:,} files ({bytes_text(moved.moved_bytes)}) of '{volume.name}' "
        f"to {target}",
        *_remarks(moved),
    )
    return int(ExitCode.NOT_FINALIZED if moved.left else ExitCode.OK)


def _remarks(moved: Moved) -> list[str | Table]:
    parts: list[str | Table] = list(moved.remarks)
    if moved.changes_count:
        parts.append(
            f"{moved.changes_count:,} changes of names and attributes concern what is on the old "
            "tape; they cannot be moved and still wait for it"
        )
    if moved.left:
        rows = [(printable(path), reason) for path, reason in moved.left]
        parts.append(Table("not moved", rows, ("file", "because")))
    return parts


def volume_document(volume: WaitingVolume) -> dict[str, object]:
    """A volume for scripts."""
    return {
        "name": volume.name,
        "uuid": volume.uuid,
        "waiting_files": volume.files_count,
        "waiting_bytes": volume.waiting_bytes,
        "waiting_changes": volume.changes_count,
    }


def file_document(file: WaitingFile) -> dict[str, object]:
    """A file for scripts."""
    return {
        "path": printable(file.path),
        "size_bytes": file.size_bytes,
        "waiting_bytes": file.waiting_bytes,
        "whole": file.is_whole,
    }


def move_document(moved: Moved) -> dict[str, object]:
    """What became of a move, for scripts."""
    return {
        "moved_files": moved.files_count,
        "moved_bytes": moved.moved_bytes,
        "remarks": moved.remarks,
        "remaining_changes": moved.changes_count,
        "left": [{"path": printable(path), "reason": reason} for path, reason in moved.left],
    }
