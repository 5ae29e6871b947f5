"""`tapefs doctor`: can tapes be mounted here, and what should be changed?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapefs.cli import arguments as shared
from tapefs.cli.terminal import Table
from tapefs.errors import ProblemFound

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tapefs.cli.terminal import Terminal


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs doctor`."""
    parser = shared.add_command(
        commands,
        "doctor",
        run,
        summary="check this computer and its drives, and say what to change",
        description="Check kernel, FUSE, permissions, USB, clock, disk and drives: for each 'ok', "
        "'advice' or 'problem', and what to type. Moves no tape and changes nothing. The exit code "
        "is 23 when a problem keeps tapefs from working.",
        example="tapefs doctor usb",
    )
    parser.add_argument(
        "drive",
        metavar="DRIVE",
        nargs="?",
        help=f"look at this drive only: {shared.DRIVE_HELP}; default: every USB tape drive",
    )
    parser.add_argument(
        "--quick", action="store_true", help="do not measure the speed of the spool's disk"
    )
    shared.add_state_dir(parser)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Examine; see `add_parsers`."""
    drive = None if arguments.drive is None else shared.drive(arguments.drive)
    state_dir = shared.state_dir(arguments.state_dir)
    # trio, pyusb and FUSE come with the daemon; `tapefs --help` does without.
    import trio  # noqa: PLC0415

    from tapefs import daemon  # noqa: PLC0415

    shared.log_if_wanted(arguments)
    with terminal.progress() as progress:
        answer = trio.run(daemon.examine, drive, state_dir, arguments.quick, progress)
    findings = answer["findings"]
    rows = [(each["verdict"], each["check"], each["found"]) for each in findings]
    todo = [(each["check"], each["todo"]) for each in findings if each["todo"]]
    terminal.answer(
        answer,
        Table("this computer", rows, ("", "what", "found")),
        *_lines("what to do", todo),
    )
    problems = [each["check"] for each in findings if each["verdict"] == "problem"]
    if problems:
        raise ProblemFound(
            f"tapefs cannot work here as things are: see to {', '.join(problems)}, as said above"
        )
    return 0


def _lines(title: str, todo: Sequence[tuple[str, str]]) -> list[str]:
    """No table: what is to be typed shall not be broken by one."""
    if not todo:
        return ["nothing to do"]
    width = max(len(name) for name, _ in todo)
    return [f"{title}:", *(f"  {name.ljust(width)}  {text}" for name, text in todo)]
