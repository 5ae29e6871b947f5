"""The command line, one module per command family.

Each family module has `add_parsers` and a function per command that takes the
parsed arguments and a `Terminal` and returns the exit code. Whatever goes wrong is an exception;
`main` turns it into one sentence and one exit code, and nothing else does.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import tapefs
from tapefs.cli.arguments import Parser
from tapefs.cli.terminal import Terminal, standard_output
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

# What each family module adds, in the order of `--help`. A command imports its own family alone:
# to import all of them took longer than all the rest of `tapefs umount`.
FAMILIES: Final[Mapping[str, tuple[str, ...]]] = {
    "drives": ("drives",),
    "format": ("format", "rebuild"),
    "mount": ("mount",),
    "umount": ("umount", "sync"),
    "status": ("status",),
    "verify": ("verify",),
    "shelf": ("volumes", "ls", "du"),
    "report": ("report", "label"),
    "find": ("find",),
    "recall": ("recall",),
    "catalog": ("catalog",),
    "manifest": ("manifest",),
    "spool": ("spool",),
    "generations": ("generations",),
    "cartridge": ("cartridge",),
    "doctor": ("doctor",),
    "completion": ("completion",),
}

_EPILOG: Final = """example, without any hardware:
  tapefs format virtual:first.tap --name FIRST
  mkdir -p /mnt/tape && tapefs mount virtual:first.tap /mnt/tape
  cp -a ~/photos /mnt/tape/ && tapefs status /mnt/tape
  tapefs umount /mnt/tape

exit codes: README.md lists them; 0 success, 2 wrong usage, 130 interrupted."""


def build_parser(command: str | None = None) -> Parser:
    """The whole argument tree, or only what `command` needs when it is one."""
    parser = Parser(
        prog="tapefs",
        description="Mount a USB tape drive, or a virtual one, as a directory.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"tapefs {tapefs.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    own = [family for family, names in FAMILIES.items() if command in names]
    for family in own or FAMILIES:
        importlib.import_module(f"tapefs.cli.{family}").add_parsers(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Prints everything there is to say."""
    words = sys.argv[1:] if argv is None else list(argv)
    terminal = Terminal(json_output="--json" in words)

    def command() -> int:
        parser = build_parser(words[0] if words else None)
        arguments: argparse.Namespace = parser.parse_args(words)
        code: Any = arguments.run(arguments, terminal)
        return int(code)

    return _judged(command, terminal, verbose="--verbose" in words)


def umount_main(argv: Sequence[str] | None = None) -> int:
    """`umount.fuse.tapefs`, which umount(8) calls: umount means the same as `tapefs umount`."""
    from tapefs.cli import umount  # noqa: PLC0415 - see FAMILIES

    words = sys.argv[1:] if argv is None else list(argv)
    terminal = Terminal()

    def command() -> int:
        mountpoint, flags = umount.umount_helper(words)
        umount.unmount(mountpoint, terminal, flags)
        return 0

    return _judged(command, terminal, verbose=False)


def mount_main(argv: Sequence[str] | None = None) -> int:
    """`mount.fuse.tapefs`, which mount(8) calls for a line in /etc/fstab."""
    from tapefs.cli import mount  # noqa: PLC0415 - see FAMILIES

    words = sys.argv[1:] if argv is None else list(argv)
    terminal = Terminal()
    return _judged(lambda: mount.run_helper(words, terminal), terminal, verbose=False)


def _judged(command: Callable[[], int], terminal: Terminal, *, verbose: bool) -> int:
    """Run `command`; whatever it raises becomes one sentence and one exit code."""
    _stand_in_for_closed_streams()
    try:
        code = command()
        # Not left to Python's end, where a reader that has gone would be an error.
        with standard_output():
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _silence()
        return int(ExitCode.OK)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as exc:  # noqa: BLE001 - the last frame
        # Only who fails needs them.
        import traceback  # noqa: PLC0415

        from tapefs.cli.verdict import verdict_of  # noqa: PLC0415

        verdict = verdict_of(exc)
        if verdict.exit_code == ExitCode.OUTPUT_FAILED:
            _silence()
        if verdict.exit_code == ExitCode.INTERRUPTED:
            verdict = verdict._replace(sentence=terminal.if_interrupted)
        if verdict.traceback_wanted and verbose:
            traceback.print_exception(exc)
        terminal.complain(verdict)
        return verdict.exit_code


def _stand_in_for_closed_streams() -> None:
    """Open what the caller closed: else the next file, a catalog perhaps, gets its number.

    Libraries print to number 2.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _silence() -> None:
    """Python must not complain about standard output once more, at its own end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
