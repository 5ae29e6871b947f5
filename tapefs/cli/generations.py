"""`tapefs generations`: the states of a volume that can be mounted again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tapefs.cli import arguments as shared
from tapefs.cli import mountpoints
from tapefs.cli.terminal import Table, bytes_text, time_text
from tapefs.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from tapefs.cli.terminal import Terminal


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs generations`."""
    parser = shared.add_command(
        commands,
        "generations",
        run,
        summary="list the earlier states of a volume that can be mounted",
        description="List the generations on the tape, in DRIVE or mounted at MOUNTPOINT. Each is "
        "the volume as it was then: 'tapefs mount DRIVE DIR --generation N' shows it, with every "
        "file that was deleted or overwritten since.",
        example="tapefs generations virtual:first.tap",
    )
    parser.add_argument("tape", metavar="DRIVE|MOUNTPOINT", help="a drive, or where it is mounted")
    shared.add_state_dir(parser)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """List; see `add_parsers`."""
    answer = _ask(arguments, terminal)
    rows = [
        (
            str(row["number"]),
            time_text(row["written_ns"]),
            bytes_text(row["new_bytes"]),
            str(row["sequence"]),
        )
        for row in answer["generations"]
    ]
    table = Table(
        f"volume {answer['name']}", rows, ("generation", "written", "new data", "tape file")
    )
    empty = "no generation yet: the first is written at the first unmount"
    terminal.answer(answer, table if rows else empty)
    return 0


def _ask(arguments: argparse.Namespace, terminal: Terminal) -> dict[str, Any]:
    try:
        drive = shared.drive(arguments.tape)
    except UsageError:
        # Brings sockets and JSON; `tapefs --help` does without.
        from tapefs import control  # noqa: PLC0415

        with control.Connection(mountpoints.real(arguments.tape)) as connection:
            return connection.ask("generations")
    import trio  # noqa: PLC0415 - as above

    from tapefs import daemon  # noqa: PLC0415

    shared.log_if_wanted(arguments)
    state_dir = shared.state_dir(arguments.state_dir)
    terminal.if_interrupted = "interrupted; nothing was changed"
    with terminal.progress() as progress:
        return trio.run(daemon.list_generations, drive, state_dir, progress)
