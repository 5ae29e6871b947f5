"""`tapefs format` and `tapefs rebuild`: a volume is made, or its catalog is made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapefs.cli import arguments as shared
from tapefs.cli.terminal import Table, named_rows
from tapefs.config import RECORD_BYTES_MAX, RECORD_BYTES_MIN, parse_bytes
from tapefs.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from tapefs.cli.terminal import Terminal


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs format` and `tapefs rebuild`."""
    formatting = shared.add_command(
        commands,
        "format",
        run_format,
        summary="make a new, empty volume on a tape",
        description="Write a tapefs label to the tape in DRIVE. A tape that holds data is refused "
        "unless --force is given. A virtual cartridge that does not exist yet is made: "
        "virtual:FILE.tap?personality=ait3&capacity=4G chooses its kind and size.",
        example="tapefs format virtual:first.tap --name FIRST",
    )
    shared.add_drive(formatting)
    formatting.add_argument("--name", required=True, help="name of the volume, on tape for good")
    formatting.add_argument(
        "--record-size",
        metavar="N",
        help="bytes per record, a power of two from 64K to 1M; default 512K or what the drive can",
    )
    formatting.add_argument(
        "--force", action="store_true", help="lose for good what is on the tape"
    )
    rebuild = shared.add_command(
        commands,
        "rebuild",
        run_rebuild,
        summary="make the local catalog anew from the tape alone",
        description="Read the last checkpoint of the tape in DRIVE and everything written since, "
        "and make the catalog of it. Nothing on tape is changed.",
        example="tapefs rebuild virtual:first.tap --state-dir /var/lib/tapefs",
    )
    shared.add_drive(rebuild)
    shared.add_state_dir(rebuild)


def run_format(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Format; see `add_parsers`."""
    drive = shared.drive(arguments.drive)
    record_bytes = record_size(arguments.record_size)
    if not arguments.name.strip():
        raise UsageError("a volume needs a name: --name FIRST")
    # trio, pyusb and FUSE come with the daemon; `tapefs --help` does without.
    import trio  # noqa: PLC0415

    from tapefs import daemon  # noqa: PLC0415

    shared.log_if_wanted(arguments)
    terminal.if_interrupted = "interrupted; the tape may have no label now: format it again"
    with terminal.progress() as progress:
        result = trio.run(
            daemon.format_tape, drive, arguments.name, record_bytes, arguments.force, progress
        )
    terminal.answer(
        result,
        f"formatted {drive} as volume '{arguments.name}'",
        Table("volume", named_rows(result)),
        f"next: tapefs mount {drive} MOUNTPOINT",
    )
    return 0


def run_rebuild(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Rebuild; see `add_parsers`."""
    drive = shared.drive(arguments.drive)
    state_dir = shared.state_dir(arguments.state_dir)
    import trio  # noqa: PLC0415 - see run_format

    from tapefs import daemon  # noqa: PLC0415 - see run_format

    shared.log_if_wanted(arguments)
    terminal.if_interrupted = "interrupted; the tape is as it was: run the command again"
    with terminal.progress() as progress:
        result = trio.run(daemon.rebuild, drive, state_dir, progress)
    terminal.answer(result, f"catalog rebuilt from {drive}", Table("volume", named_rows(result)))
    return 0


def record_size(text: str | None) -> int | None:
    """The record size that `--record-size` asks for. Raises UsageError when it cannot be."""
    if text is None:
        return None
    size_bytes = parse_bytes(text)
    if not RECORD_BYTES_MIN <= size_bytes <= RECORD_BYTES_MAX or size_bytes & (size_bytes - 1):
        raise UsageError(f"a record size of {text} cannot be; take 64K, 128K, 256K, 512K or 1M")
    return size_bytes
