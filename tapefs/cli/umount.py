"""`tapefs umount` and `tapefs sync`: both return when everything is on tape, or say why not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tapefs.cli import arguments as shared
from tapefs.cli import mountpoints
from tapefs.cli.terminal import Table, named_rows
from tapefs.errors import NotFinalized, NotMounted
from tapefs.fuse.mountpoint import FILESYSTEM_TYPE, detach_dead_mount, mount_at

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tapefs.cli.terminal import Terminal
    from tapefs.control import Connection

# After the tape is finalized the daemon has nothing left to do but to end.
DAEMON_END_S: Final = 60.0

_IF_INTERRUPTED: Final = (
    "interrupted; the daemon goes on writing: the same command waits for it again, "
    "'tapefs status' shows how far it is"
)


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs umount` and `tapefs sync`."""
    umount = shared.add_command(
        commands,
        "umount",
        run_umount,
        summary="unmount, and wait until the tape is finalized",
        description="Unmount MOUNTPOINT, write everything to the tape, end the generation, "
        "rewind. Success means: the cartridge may be taken out and is complete; or, where the "
        "mount was read-only, as it was.",
        example="tapefs umount /mnt/tape",
    )
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    sync = shared.add_command(
        commands,
        "sync",
        run_sync,
        summary="wait until everything written so far is on tape",
        description="Write everything that is in the spool of MOUNTPOINT to the tape and flush the "
        "drive. Success means: it would survive the loss of this host.",
        example="tapefs sync /mnt/tape",
    )
    sync.add_argument("mountpoint", metavar="MOUNTPOINT")


def run_umount(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Unmount; see `add_parsers`."""
    path = mountpoints.real(arguments.mountpoint)
    result = unmount(path, terminal)
    told = {key: value for key, value in result.items() if key not in ("finalized", "message")}
    terminal.answer(
        {"mountpoint": str(path), **result},
        f"unmounted {path}; {result['message']}",
        Table("tape", named_rows(told)),
    )
    return 0


def run_sync(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Sync; see `add_parsers`."""
    # Brings sockets and JSON; `tapefs --help` does without.
    from tapefs import control  # noqa: PLC0415

    path = mountpoints.real(arguments.mountpoint)
    terminal.if_interrupted = _IF_INTERRUPTED
    with terminal.progress() as progress:
        result = control.request(path, "sync", progress)
    terminal.answer(
        {"mountpoint": str(path), **result},
        f"everything in {path} is on tape",
        *([Table("tape", named_rows(result))] if result else []),
    )
    return 0


def unmount(path: Path, terminal: Terminal, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Unmount `path`, wait for the finalized tape and for the daemon's end; what the daemon says.

    The wait is registered before the unmount, so that no ending can be missed.
    """
    terminal.if_interrupted = _IF_INTERRUPTED
    connection = _connect(path)
    with connection, terminal.progress() as progress:
        connection.start("wait_finalized")
        mount = mount_at(path)
        # Without one, an earlier umount was interrupted while it waited: wait on.
        if mount and mount.filesystem_type == FILESYSTEM_TYPE:
            mountpoints.release(path, flags=flags)
        result = connection.finish("wait_finalized", progress)
        progress({"message": "waiting for the daemon to end"})
        if not connection.wait_gone(DAEMON_END_S):
            raise NotFinalized(
                f"the tape of {path} is finalized, but its daemon has not ended after "
                f"{DAEMON_END_S:.0f} s and may still hold the drive; read its log"
            )
    return result


def _connect(path: Path) -> Connection:
    from tapefs.control import Connection  # noqa: PLC0415 - see run_sync

    try:
        return Connection(path)
    except NotMounted:
        if detach_dead_mount(path):
            raise NotFinalized(
                f"the daemon of {path} had died; the dead mount is cleared, what was fsync'ed is "
                "in the spool: mount the tape again, then unmount it"
            ) from None
        raise


def umount_helper(argv: Sequence[str]) -> tuple[Path, list[str]]:
    """Mountpoint and flags from the words by which umount(8) calls `umount.fuse.tapefs`.

    umount(8) passes `-n -l -f -v -r` and `-t TYPE`; the type is known, the rest is passed on.
    """
    parser = shared.Parser(prog="umount.fuse.tapefs")
    parser.add_argument("mountpoint")
    parser.add_argument("-t", "-N", dest="ignored")
    for flag in "nlfvr":
        parser.add_argument(f"-{flag}", action="store_true")
    found = parser.parse_args(argv)
    flags = [f"-{flag}" for flag in "nlfvr" if getattr(found, flag)]
    return Path(os.path.realpath(found.mountpoint)), flags
