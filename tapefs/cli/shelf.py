"""`tapefs volumes`, `ls` and `du`: the cartridges on the shelf, without a drive."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from tapefs.cli import arguments as shared
from tapefs.cli.terminal import Table, bytes_text, time_text
from tapefs.entries import printable
from tapefs.errors import StateUnusable, TapefsError

if TYPE_CHECKING:
    import argparse

    from tapefs.archive.known_volumes import KnownVolume
    from tapefs.archive.shelf import ShelfEntry, Usage, VolumeSummary
    from tapefs.cli.terminal import Terminal
    from tapefs.entries import Inode

_PLACE_HELP: Final = "a volume (its name, its UUID, or the beginning of that), and what in it"
# Of a UUID: enough to tell the cartridges of one shelf apart, and to name one on a command line.
UUID_SHOWN: Final = 8
# Narrower terminals get lines without owners, and narrower ones yet without modes and clock times.
_COLUMNS_OF_OWNERS: Final = 100
_COLUMNS_OF_MODES: Final = 80
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs volumes`, `ls` and `du`."""
    volumes = shared.add_command(
        commands,
        "volumes",
        run_volumes,
        summary="list every cartridge that was ever mounted on this computer",
        description="List the volumes that this computer has a catalog of, mounted or on the "
        "shelf: when each was last here, what is on it, since when it is known to be good, and "
        "what still waits for it in the spool.",
        example="tapefs volumes",
    )
    shared.add_state_dir(volumes)
    listing = shared.add_command(
        commands,
        "ls",
        run_ls,
        summary="list a directory of any cartridge, also of one on the shelf",
        description="List PATH (else the root directory) of VOLUME from this computer's catalog, "
        "like ls -l, with where the bytes of each file are. No drive is needed. With --json every "
        "line is one JSON document.",
        example="tapefs ls FIRST:photos/2019",
    )
    listing.add_argument("place", metavar="VOLUME[:PATH]", help=_PLACE_HELP)
    shared.add_state_dir(listing)
    usage = shared.add_command(
        commands,
        "du",
        run_du,
        summary="add up what directories of a cartridge hold",
        description="Add up the files in each directory in PATH (else in the root directory) of "
        "VOLUME, and in all of it. A file with several names counts once in each line. With "
        "--json every line is one JSON document.",
        example="tapefs du FIRST:photos",
    )
    usage.add_argument("place", metavar="VOLUME[:PATH]", help=_PLACE_HELP)
    shared.add_state_dir(usage)


def run_volumes(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """List the shelf; see `add_parsers`."""
    # SQLite and trio come with these; `tapefs --help` does without.
    from tapefs.archive import known_volumes, shelf  # noqa: PLC0415

    state_dir = shared.state_dir(arguments.state_dir)
    problems: list[TapefsError] = []
    found: list[VolumeSummary] = []
    for volume in known_volumes.known_volumes(state_dir):
        try:
            found.append(shelf.summary(volume))
        except TapefsError as exc:
            problems.append(exc)
    found.sort(key=lambda item: (item.volume.name, item.volume.uuid))
    columns = (
        "volume", "UUID", "last here", "files", "content", "on tape", "generations",
        "proven good", "waiting",
    )  # fmt: skip
    table = Table("volumes", [_volume_row(item) for item in found], columns)
    empty = f"no volume is known in {state_dir}; a mount makes one known"
    terminal.answer(
        {"volumes": [volume_document(item) for item in found]},
        *([table] if found else [] if problems else [empty]),
    )
    raise_first(problems)
    return 0


def run_ls(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """List a directory; see `add_parsers`."""
    from tapefs.archive import known_volumes, shelf  # noqa: PLC0415 - see run_volumes

    state_dir = shared.state_dir(arguments.state_dir)
    volume, path = known_volumes.split_place(state_dir, arguments.place)
    for entry in shelf.listing(volume, path):
        name = entry.path.rpartition(b"/")[2]
        text = entry_text(entry, printable(name), terminal.columns)
        terminal.line(entry_document(volume, entry), text)
    return 0


def run_du(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Add up; see `add_parsers`."""
    from tapefs.archive import known_volumes, shelf  # noqa: PLC0415 - see run_volumes

    state_dir = shared.state_dir(arguments.state_dir)
    volume, path = known_volumes.split_place(state_dir, arguments.place)
    for usage in shelf.usage(volume, path):
        totals = usage.totals
        text = (
            f"{bytes_text(totals.size_bytes):>10}  {bytes_text(totals.tape_bytes):>10} on tape"
            f"  {totals.files_count:>9,} {'file ' if totals.files_count == 1 else 'files'}"
            f"  /{printable(usage.path)}"
        )
        terminal.line(usage_document(volume, usage), text)
    return 0


def volume_document(item: VolumeSummary) -> dict[str, object]:
    """A cartridge for scripts."""
    verified = item.verified
    return {
        "name": item.volume.name,
        "uuid": item.volume.uuid,
        "last_here_ns": None if item.volume.is_imported else item.last_here_ns,
        "files": item.totals.files_count,
        "size_bytes": item.totals.size_bytes,
        "used_bytes": item.used_bytes,
        "generations": item.generations_count,
        "proven_good_ns": verified.proven_good_ns if verified else None,
        "last_verified_ns": verified.last_ns if verified else None,
        "damaged_places": verified.damage_count if verified else None,
        "waiting_files": item.waiting.files_count,
        "waiting_bytes": item.waiting.waiting_bytes,
        "waiting_changes": item.waiting.changes_count,
    }


def entry_document(volume: KnownVolume, entry: ShelfEntry) -> dict[str, object]:
    """A file for scripts."""
    inode = entry.inode
    return {
        "volume": volume.name,
        "uuid": volume.uuid,
        "path": printable(entry.path),
        "kind": _KINDS[stat.S_IFMT(inode.mode)],
        "mode": f"{stat.S_IMODE(inode.mode):04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "size_bytes": inode.size,
        "mtime_ns": inode.mtime_ns,
        "state": entry.state.value if entry.state else None,
        "waiting_bytes": entry.waiting_bytes,
        "target": None if inode.target is None else printable(inode.target),
        "sha256": inode.sha256.hex() if inode.sha256 else None,
    }


def usage_document(volume: KnownVolume, usage: Usage) -> dict[str, object]:
    """A directory's sums for scripts."""
    return {
        "volume": volume.name,
        "uuid": volume.uuid,
        "path": printable(usage.path),
        "files": usage.totals.files_count,
        "size_bytes": usage.totals.size_bytes,
        "tape_bytes": usage.totals.tape_bytes,
        "waiting_bytes": usage.totals.waiting_bytes,
    }


def _volume_row(item: VolumeSummary) -> tuple[str, ...]:
    return (
        item.volume.name,
        item.volume.uuid[:UUID_SHOWN],
        "never" if item.volume.is_imported else _day(item.last_here_ns),
        f"{item.totals.files_count:,}",
        bytes_text(item.totals.size_bytes),
        bytes_text(item.used_bytes),
        str(item.generations_count),
        _proof(item),
        _waiting_text(item),
    )


def _day(time_ns: int) -> str:
    return time_text(time_ns).partition(" ")[0]


def _proof(item: VolumeSummary) -> str:
    verified = item.verified
    if verified is None or verified.last_ns is None:
        return "never verified"
    if verified.damage_count:
        return "DAMAGED"
    return _day(verified.proven_good_ns) if verified.proven_good_ns else "in part"


def _waiting_text(item: VolumeSummary) -> str:
    waiting = item.waiting
    if waiting.files_count:
        return f"{waiting.files_count:,} files, {bytes_text(waiting.waiting_bytes)}"
    return f"{waiting.changes_count:,} changes" if waiting.changes_count else "nothing"


def entry_text(entry: ShelfEntry, name: str, columns: int | None) -> str:
    """A file for people, on one line; on a terminal of few `columns` less of it."""
    inode = entry.inode
    state = entry.state.value if entry.state else "-"
    arrow = "" if inode.target is None else f" -> {printable(inode.target)}"
    mode, when = stat.filemode(inode.mode), time_text(inode.mtime_ns)
    what = f"{_size_text(inode):>14} {when} {state:<11} {name}{arrow}"
    if columns is None or columns >= _COLUMNS_OF_OWNERS:
        return f"{mode} {inode.uid:>5} {inode.gid:>5} {what}"
    if columns >= _COLUMNS_OF_MODES:
        return f"{mode} {what}"
    return f"{_size_text(inode):>14} {when.partition(' ')[0]} {state:<11} {name}{arrow}"


def _size_text(inode: Inode) -> str:
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        return f"{os.major(inode.rdev)}, {os.minor(inode.rdev)}"
    return str(inode.size)


def label_of(volume: KnownVolume) -> str:
    """What people call the volume."""
    return volume.name or volume.uuid


def raise_first(problems: list[TapefsError]) -> None:
    """Raises StateUnusable when there are any."""
    if problems:
        raise StateUnusable(
            f"{len(problems)} volumes could not be read and are missing here: {problems[0]}"
        ) from problems[0]
