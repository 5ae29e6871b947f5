"""What several commands share on the command line: drives, state directories, `--json`."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from tapefs.cli.terminal import Terminal
from tapefs.errors import UsageError

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

Run = Callable[[argparse.Namespace, Terminal], int]

_TEXT_COLUMNS: Final = 78

DRIVE_HELP: Final = "virtual:FILE.tap, usb (the only one), usb:SERIAL or usb:BUS.PORT"


class Parser(argparse.ArgumentParser):
    """Raises UsageError with one sentence instead of printing the usage and exiting."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse's own signature
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; '{self.prog} --help' shows how it is used")


def add_command(
    commands: Commands, name: str, run: Run, *, summary: str, description: str, example: str
) -> Parser:
    """Add command `name`: every one has a description, an example, `--json` and `--verbose`."""
    parser = _add(commands, name, summary, description, example)
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--verbose", action="store_true", help="log in detail to standard error")
    parser.set_defaults(run=run)
    return parser


def add_family(
    commands: Commands, name: str, *, summary: str, description: str, example: str
) -> Commands:
    """Add command `name`, which has commands of its own; add those to what is returned."""
    family = _add(commands, name, summary, description, example)
    return family.add_subparsers(metavar="COMMAND", required=True)


def _add(commands: Commands, name: str, summary: str, description: str, example: str) -> Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, _TEXT_COLUMNS),
        epilog=f"example:\n  {example}",
    )


def add_drive(parser: Parser) -> None:
    """Add the positional DRIVE."""
    parser.add_argument("drive", metavar="DRIVE", help=DRIVE_HELP)


def add_state_dir(parser: Parser) -> None:
    """Add `--state-dir`."""
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help="where catalog and spool live; default: $TAPEFS_STATE_DIR, else /var/lib/tapefs for "
        "root, ~/.local/state/tapefs for others",
    )


def drive(text: str) -> str:
    """The DRIVE argument with its path made absolute: a daemon changes its directory.

    Raises UsageError when it names no kind of drive.
    """
    kind, has_rest, rest = text.partition(":")
    if kind == "virtual" and rest:
        path, has_settings, settings = rest.partition("?")
        if path:
            absolute = os.path.abspath(os.path.expanduser(path))
            return f"virtual:{absolute}{has_settings}{settings}"
    elif kind == "usb" and (rest or not has_rest):
        return text
    hint = ""
    if text.startswith("/dev/"):
        hint = "tapefs drives the USB device itself, without the kernel's tape devices: "
    elif text.endswith(".tap"):
        hint = f"perhaps virtual:{text} was meant: "
    raise UsageError(f"'{text}' names no drive; {hint}a drive is {DRIVE_HELP}")


def state_dir(chosen: str | None) -> Path:
    """Where this user's catalogs and spools live, absolute. Creates nothing."""
    text = chosen or os.environ.get("TAPEFS_STATE_DIR")
    if text:
        return Path(text).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/tapefs")
    import platformdirs  # noqa: PLC0415 - most commands have no need of it

    return platformdirs.user_state_path("tapefs")


def log_if_wanted(arguments: argparse.Namespace) -> None:
    """Log in detail to standard error when `--verbose` was given."""
    if arguments.verbose:
        from tapefs import telemetry  # noqa: PLC0415 - most commands have no need of it

        telemetry.set_up(None, verbose=True)
