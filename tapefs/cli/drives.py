"""`tapefs drives`: which USB tape drives are there, and why none is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tapefs.cli import arguments as shared
from tapefs.cli.terminal import Table
from tapefs.errors import NoDrive

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from tapefs.cli.terminal import Terminal

_UNKNOWN: Final = "-"


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs drives`."""
    shared.add_command(
        commands,
        "drives",
        run,
        summary="list USB tape drives",
        description="List the USB tape drives of this machine: what they are, whether a cartridge "
        "is loaded, whether it is write protected. Says why when there is none.",
        example="tapefs drives --json",
    )


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """List drives; see `add_parsers`."""
    # trio, pyusb and FUSE come with the daemon; `tapefs --help` does without.
    import trio  # noqa: PLC0415

    from tapefs import daemon  # noqa: PLC0415

    found = trio.run(daemon.list_drives)
    reasons = [str(reason) for reason in found.get("reasons", [])]
    if not found["drives"]:
        terminal.answer(found)
        raise NoDrive("; ".join(reasons) or "no USB tape drive is connected; plug one in")
    columns = tuple(dict.fromkeys(name for drive in found["drives"] for name in drive))
    rows = [[_cell(drive, name) for name in columns] for drive in found["drives"]]
    headings = [name.replace("_", " ") for name in columns]
    terminal.answer(found, Table("USB tape drives", rows, headings), *reasons)
    return 0


def _cell(drive: Mapping[str, Any], name: str) -> str:
    value = drive.get(name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _UNKNOWN if value is None else str(value)
