"""`tapefs verify`: read a tape back and say what is not as it was written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tapefs.cli import arguments as shared
from tapefs.cli import mountpoints, places
from tapefs.cli.terminal import Table, named_rows
from tapefs.errors import DamageFound, NotMounted, UsageError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from tapefs.cli.terminal import Terminal


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs verify`."""
    parser = shared.add_command(
        commands,
        "verify",
        run,
        summary="read a tape back and compare it with its checksums",
        description="Read back from the tape, with every checksum there is: the whole cartridge in "
        "DRIVE, or mounted at MOUNTPOINT (reading and archiving go on meanwhile), or one file or "
        "directory of a mount. Goes on behind damage and names it; the exit code is 21 then.",
        example="tapefs verify /mnt/tape --new",
    )
    parser.add_argument(
        "what", metavar="DRIVE|MOUNTPOINT|PATH", help="a drive, a mount, or what is in a mount"
    )
    some = parser.add_mutually_exclusive_group()
    some.add_argument(
        "--new", action="store_true", help="only tape files that were never verified on this host"
    )
    some.add_argument(
        "--resume", action="store_true", help="only what an interrupted verification left"
    )
    shared.add_state_dir(parser)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Verify; see `add_parsers`."""
    scope = "new" if arguments.new else "rest" if arguments.resume else "everything"
    again = "--new" if arguments.new else "--resume"
    terminal.if_interrupted = (
        f"interrupted; the tape files that were read are noted: "
        f"'tapefs verify {again} {arguments.what}' goes on with the others"
    )
    try:
        drive = shared.drive(arguments.what)
    except UsageError:
        report = _ask_mount(arguments.what, scope, terminal)
    else:
        # trio and pyusb come with the daemon; `tapefs --help` does without.
        import trio  # noqa: PLC0415

        from tapefs import daemon  # noqa: PLC0415

        shared.log_if_wanted(arguments)
        state_dir = shared.state_dir(arguments.state_dir)
        with terminal.progress() as progress:
            report = trio.run(daemon.verify, drive, state_dir, scope, progress)
    terminal.answer(report, *_parts(report))
    if report["damage_count"]:
        raise DamageFound(
            f"{report['damage_count']} places on the tape are damaged, and "
            f"{report['damaged_files_count']} files have lost bytes: restore these from another "
            "copy, and write what is left to a new tape"
        )
    return 0


def mount_holding(path: Path) -> Path:
    """The mountpoint of tapefs that `path` (resolved) lies in. Raises NotMounted."""
    mountpoint = places.holding_mount(path)
    if mountpoint is None:
        raise NotMounted(
            f"{path} is neither a drive nor in a mount of tapefs; a drive is {shared.DRIVE_HELP}"
        )
    return mountpoint


def _ask_mount(what: str, scope: str, terminal: Terminal) -> dict[str, Any]:
    # Brings sockets and JSON; `tapefs --help` does without.
    from tapefs import control  # noqa: PLC0415

    path = mountpoints.real(what)
    mountpoint = mount_holding(path)
    asked = {"scope": scope}
    if path != mountpoint:
        if scope != "everything":
            raise UsageError("--new and --resume go with a whole tape, not with a file in it")
        asked = {"path": os.fsdecode(path.relative_to(mountpoint))}
        terminal.if_interrupted = "interrupted; damage found so far is noted"
    with terminal.progress() as progress:
        return control.request(mountpoint, "verify", progress, **asked)


def _parts(report: dict[str, Any]) -> list[str | Table]:
    summary = {key: value for key, value in report.items() if not isinstance(value, list)}
    parts: list[str | Table] = [Table("verification", named_rows(summary))]
    if not report["damage_count"]:
        parts.append(_sentence(report))
        return parts
    places = [
        (
            str(place["tape_file"]),
            _span(place["first_record"], place["last_record"]),
            str(place["first_block"]),
            place["kind"],
            place["detail"],
        )
        for place in report["damage"]
    ]
    parts.append(Table("damage", places, ("tape file", "records", "block", "what", "detail")))
    files = [
        (file["path"], ", ".join(_span(start, end - 1) for start, end in file["ranges"]))
        for file in report["damaged_files"]
    ]
    if files:
        parts.append(Table("damaged files", files, ("file", "bytes")))
    elif not report["damaged_files_count"]:
        parts.append("no file that is there today has lost any byte")
    return parts


def _sentence(report: dict[str, Any]) -> str:
    if report["records_count"]:
        return "everything that was read is as it was written"
    return "there was nothing to read: everything asked for is verified, or not on tape yet"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
