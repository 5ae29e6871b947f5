"""The command line, one module per command family.

Each family module has `add_parser` (or `add_parsers`) and a function per command that takes the
parsed arguments and a `Terminal` and returns the exit code. Whatever goes wrong is an exception;
`main` turns it into one sentence and one exit code, and nothing else does.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import tapefs
from tapefs.cli import (
    cartridge,
    catalog,
    completion,
    doctor,
    drives,
    find,
    generations,
    manifest,
    mount,
    recall,
    report,
    shelf,
    spool,
    status,
    umount,
    verify,
)
from tapefs.cli import format as formatting
from tapefs.cli.arguments import Parser
from tapefs.cli.terminal import Terminal
from tapefs.cli.verdict import verdict_of
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from tapefs.cli.arguments import Commands

_FAMILIES: Final[tuple[Callable[[Commands], None], ...]] = (
    drives.add_parser,
    formatting.add_parsers,
    mount.add_parser,
    umount.add_parsers,
    status.add_parser,
    verify.add_parser,
    shelf.add_parsers,
    report.add_parsers,
    find.add_parser,
    recall.add_parser,
    catalog.add_parsers,
    manifest.add_parser,
    spool.add_parsers,
    generations.add_parser,
    cartridge.add_parsers,
    doctor.add_parser,
    completion.add_parser,
)

_EPILOG: Final = """example, without any hardware:
  tapefs format virtual:first.tap --name FIRST
  mkdir -p /mnt/tape && tapefs mount virtual:first.tap /mnt/tape
  cp -a ~/photos /mnt/tape/ && tapefs status /mnt/tape
  tapefs umount /mnt/tape

exit codes: README.md lists them; 0 success, 2 wrong usage, 130 interrupted."""


def build_parser() -> Parser:
    """The whole argument tree."""
    parser = Parser(
        prog="tapefs",
        description="Mount a USB tape drive, or a virtual one, as a directory.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"tapefs {tapefs.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for add_family in _FAMILIES:
        add_family(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Prints everything there is to say."""
    words = sys.argv[1:] if argv is None else list(argv)
    terminal = Terminal(json_output="--json" in words)

    def command() -> int:
        arguments: argparse.Namespace = build_parser().parse_args(words)
        code: Any = arguments.run(arguments, terminal)
        return int(code)

    return _judged(command, terminal, verbose="--verbose" in words)


def umount_main(argv: Sequence[str] | None = None) -> int:
    """`umount.fuse.tapefs`, which umount(8) calls: umount means the same as `tapefs umount`."""
    words = sys.argv[1:] if argv is None else list(argv)
    terminal = Terminal()

    def command() -> int:
        mountpoint, flags = umount.umount_helper(words)
        umount.unmount(mountpoint, terminal, flags)
        return 0

    return _judged(command, terminal, verbose=False)


def mount_main(argv: Sequence[str] | None = None) -> int:
    """`mount.fuse.tapefs`, which mount(8) calls for a line in /etc/fstab."""
    words = sys.argv[1:] if argv is None else list(argv)
    terminal = Terminal()
    return _judged(lambda: mount.run_helper(words, terminal), terminal, verbose=False)


def _judged(command: Callable[[], int], terminal: Terminal, *, verbose: bool) -> int:
    """Run `command`; whatever it raises becomes one sentence and one exit code."""
    try:
        code = command()
        # Not left to Python's end, where a reader that has gone would be an error.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as exc:  # noqa: BLE001 - the last frame
        verdict = verdict_of(exc)
        if verdict.exit_code == ExitCode.INTERRUPTED:
            verdict = replace(verdict, sentence=terminal.if_interrupted)
        if verdict.traceback_wanted and verbose:
            traceback.print_exc()
        terminal.complain(verdict)
        return verdict.exit_code
