"""`tapefs status`: what each mount is doing, and what is not on tape yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tapefs.cli import arguments as shared
from tapefs.cli import mountpoints, watch
from tapefs.cli.terminal import Table, named_rows, standard_output
from tapefs.errors import NotMounted, UsageError

if TYPE_CHECKING:
    import argparse

    from tapefs.cli.terminal import Terminal


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs status`."""
    parser = shared.add_command(
        commands,
        "status",
        run,
        summary="show drive, tape, spool and what is not on tape yet",
        description="Show what the mount at MOUNTPOINT is doing; all mounts of this user without "
        "it. Answers at once, also while the mount waits for the tape. In a pipe, and with --json, "
        "it tells every figure.",
        example="tapefs status /mnt/tape --json",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        "--watch",
        action="store_true",
        help="one screen, redrawn until Ctrl-C; with --json one document a line when it changed",
    )
    forms.add_argument(
        "--metrics", action="store_true", help="print figures for Prometheus (OpenMetrics text)"
    )
    parser.add_argument(
        "--interval", metavar="SECONDS", help="between two looks of --watch; default 1"
    )


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Show status; see `add_parsers`."""
    # Brings sockets and JSON; `tapefs --help` does without.
    from tapefs import control  # noqa: PLC0415

    if arguments.interval is not None and not arguments.watch:
        raise UsageError("--interval goes with --watch only")
    if arguments.metrics:
        return _print_metrics(arguments)
    if arguments.watch:
        seconds = watch.interval(arguments.interval)
        chosen = arguments.mountpoint
        mountpoint = watch.the_only_mount() if chosen is None else mountpoints.real(chosen)
        return watch.watch(mountpoint, seconds, terminal, as_json=arguments.json)
    if arguments.mountpoint is not None:
        with control.Connection(mountpoints.real(arguments.mountpoint)) as connection:
            status = connection.status()
        _answer(terminal, status, [status])
        return 0
    statuses = list(control.all_statuses())
    if not statuses:
        raise NotMounted("no tape of this user is mounted; 'tapefs mount --help' shows how")
    _answer(terminal, {"mounts": statuses}, statuses)
    return 0


def _answer(
    terminal: Terminal, document: Mapping[str, Any], statuses: Sequence[dict[str, Any]]
) -> None:
    """On a terminal the screen that --watch draws; else everything there is to say."""
    if terminal.columns is None or not watch.draw_once(statuses):
        terminal.answer(document, *(table for status in statuses for table in tables(status)))


def _print_metrics(arguments: argparse.Namespace) -> int:
    """OpenMetrics text; with no mount its end mark alone, which is an answer as well."""
    from tapefs import control  # noqa: PLC0415 - see run
    from tapefs.control.openmetrics import openmetrics  # noqa: PLC0415 - see run

    if arguments.json:
        raise UsageError("--metrics is a format of its own: leave out --json")
    if arguments.mountpoint is None:
        statuses = list(control.all_statuses())
    else:
        with control.Connection(mountpoints.real(arguments.mountpoint)) as connection:
            statuses = [connection.status()]
    with standard_output():
        print(openmetrics(statuses), end="")
    return 0


def tables(status: Mapping[str, Any]) -> list[Table]:
    """One table for what stands alone in `status`, then one for each group in it."""
    single = {name: value for name, value in status.items() if not isinstance(value, Mapping)}
    groups = {name: value for name, value in status.items() if isinstance(value, Mapping)}
    found = [Table(str(status.get("mountpoint", "mount")), named_rows(single))]
    for name, group in groups.items():
        plain = {key: _sentences(value) for key, value in group.items()}
        found.append(Table(name.replace("_", " "), named_rows(plain)))
    return found


def _sentences(value: object) -> object:
    """Of things with more to say each, such as alerts, what people want to know."""
    if isinstance(value, list):
        return [item["says"] if isinstance(item, Mapping) else item for item in value]
    return value
