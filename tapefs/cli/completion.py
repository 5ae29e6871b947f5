"""`tapefs completion`: what a shell completes commands from."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tapefs.cli import arguments as shared
from tapefs.cli.terminal import standard_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapefs.cli.terminal import Terminal


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs completion`."""
    parser = shared.add_command(
        commands,
        "completion",
        run,
        summary="print what a shell completes tapefs commands from",
        description="Print a script that teaches SHELL to complete the commands, options and files "
        "of tapefs when Tab is pressed. bash loads it by itself from "
        "/usr/share/bash-completion/completions/tapefs, zsh from a file _tapefs in its fpath.",
        example="tapefs completion bash >/usr/share/bash-completion/completions/tapefs",
    )
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Print; see `add_parsers`."""
    script = completion_script(arguments.shell)
    if arguments.json:
        terminal.answer({"shell": arguments.shell, "script": script})
    else:
        # Not for reading: a terminal must not wrap it.
        with standard_output():
            sys.stdout.write(script)
    return 0


def completion_script(shell: str) -> str:
    """What bash or zsh completes commands from."""
    import shtab  # noqa: PLC0415 - no other command needs it

    from tapefs.cli import build_parser  # noqa: PLC0415 - which has to know this module

    parser = build_parser()
    # By what stands in the usage, so that no command has to know of completion.
    completions = {
        "MOUNTPOINT": shtab.DIRECTORY,
        "DIR": shtab.DIRECTORY,
        "FILE.tap": shtab.FILE,
        "DRIVE|MOUNTPOINT": shtab.DIRECTORY,
        "DRIVE|MOUNTPOINT|PATH": shtab.FILE,
    }
    for action in _actions(parser):
        if isinstance(action.metavar, str) and action.metavar in completions:
            action.complete = completions[action.metavar]
        if isinstance(action, argparse._SubParsersAction):
            # zsh shows the description, of which one line is no sentence.
            for choice in action._get_subactions():
                action.choices[choice.dest].description = choice.help
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
