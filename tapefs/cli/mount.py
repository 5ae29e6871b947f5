"""`tapefs mount`: a tape becomes a directory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapefs import telemetry
from tapefs.cli import arguments as shared
from tapefs.cli import mountpoints
from tapefs.cli.mount_words import tell_apart
from tapefs.cli.sd_notify import SdNotify
from tapefs.cli.verdict import verdict_of
from tapefs.config import option_names, parse_options
from tapefs.errors import UsageError
from tapefs.fuse.mountpoint import prepare_mountpoint, require_fuse

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tapefs.cli.terminal import Terminal
    from tapefs.daemon import MountRequest


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs mount`."""
    parser = shared.add_command(
        commands,
        "mount",
        run,
        summary="mount a tape as a directory",
        description="Mount the tape in DRIVE at MOUNTPOINT. Returns when the mount answers; a "
        "daemon serves it until 'tapefs umount MOUNTPOINT'.",
        example="tapefs mount virtual:first.tap /mnt/tape -o spool=4G,fsync=tape",
    )
    parser.add_argument(
        "drive", metavar="DRIVE", help=f"{shared.DRIVE_HELP}; with --offline a volume"
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    parser.add_argument(
        "-o",
        dest="options",
        metavar="OPT[,OPT...]",
        action="append",
        default=[],
        help=f"mount options: ro, nodev, nosuid, noexec, {', '.join(sorted(option_names()))}",
    )
    parser.add_argument("--foreground", action="store_true", help="stay, and log to the terminal")
    parser.add_argument("--read-only", action="store_true", help="refuse every change")
    parser.add_argument(
        "--generation",
        metavar="N",
        type=int,
        help="the volume as it was in generation N, read-only; 'tapefs generations' lists them",
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        help="without a drive: what this computer knows of the volume DRIVE, read-only; bytes that "
        "are only on tape cannot be read",
    )
    shared.add_state_dir(parser)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Mount; see `add_parsers`."""
    drive = arguments.drive if arguments.offline else shared.drive(arguments.drive)
    words = tell_apart(",".join(arguments.options))
    state_dir = shared.state_dir(arguments.state_dir or words.state_dir)
    if arguments.offline:
        drive = _shelved(drive, state_dir, arguments.generation)
    mountpoint = prepare_mountpoint(Path(arguments.mountpoint))
    require_fuse(allow_other=parse_options(words.settings).allow_other)
    # FUSE, USB and trio come with the daemon; `tapefs --help` does without.
    from tapefs import daemon  # noqa: PLC0415

    request = daemon.MountRequest(
        drive=drive,
        mountpoint=mountpoint,
        options=words.settings,
        state_dir=state_dir,
        read_only=arguments.read_only or words.read_only or arguments.generation is not None,
        generation=arguments.generation,
        offline=arguments.offline,
        kernel_flags=words.kernel_flags,
        foreground=arguments.foreground,
        verbose=arguments.verbose,
    )
    if arguments.foreground:
        telemetry.set_up(None, verbose=arguments.verbose)
        return _mount_in_foreground(request, terminal)
    return _mount_in_background(request, terminal)


def _shelved(name: str, state_dir: Path, generation: int | None) -> str:
    """The UUID of the volume that is called so. Raises UsageError."""
    # SQLite comes with it; `tapefs --help` does without.
    from tapefs.archive import known_volumes  # noqa: PLC0415

    if generation is not None:
        raise UsageError(
            "a generation is read from the tape: mount the drive with --generation, without "
            "--offline"
        )
    return known_volumes.find_volume(state_dir, name).uuid


def log_path(state_dir: Path, mountpoint: Path) -> Path:
    """Where the daemon of `mountpoint` logs; the name tells mounts of one user apart."""
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:8]
    return state_dir / "log" / f"{mountpoint.name or 'root'}-{digest}.log"


def _mount_in_background(request: MountRequest, terminal: Terminal) -> int:
    from tapefs import daemon  # noqa: PLC0415 - see run
    from tapefs.cli import background  # noqa: PLC0415 - brings trio

    terminal.if_interrupted = "interrupted; the mount was called off"
    log_file = log_path(request.state_dir, request.mountpoint)
    with terminal.progress() as progress:
        mounted = background.start(
            lambda report: daemon.run_mount(request, report),
            log_file,
            progress,
            verbose=request.verbose,
        )
    helper = mountpoints.call_helper_at_umount(request.mountpoint)
    if helper:
        helper.wait()
    name = mounted.get("name")
    shown = f"volume '{name}', without its cartridge," if request.offline else request.drive
    document = {
        **{name: value for name, value in mounted.items() if name != "event"},
        "mountpoint": str(request.mountpoint),
        "log": str(log_file),
    }
    terminal.answer(
        document,
        f"mounted {shown} at {request.mountpoint}",
        f"log: {log_file}",
        f"when done: tapefs umount {request.mountpoint}",
    )
    return 0


def _mount_in_foreground(request: MountRequest, terminal: Terminal) -> int:
    from tapefs import daemon  # noqa: PLC0415 - see run

    helpers = []
    notify = SdNotify.of_this_process()

    def report(event: dict[str, Any]) -> None:
        notify.report(event)
        if event["event"] == "mounted":
            event = {**event, "message": "mounted; Ctrl-C unmounts and finalizes the tape"}
            helpers.append(mountpoints.call_helper_at_umount(request.mountpoint))
        progress(event)

    try:
        with terminal.progress() as progress:
            code = daemon.run_mount(request, report)
    except BaseException as exc:
        notify.failed(verdict_of(exc).sentence)
        raise
    for helper in filter(None, helpers):
        helper.wait()
    return code


def run_helper(words: Sequence[str], terminal: Terminal) -> int:
    """Mount as mount(8) asks its helper `mount.fuse.tapefs` to.

    It calls with SPEC DIRECTORY and `-s -f -n -v -N NAMESPACE -t TYPE -o OPTIONS`.
    """
    parser = shared.Parser(prog="mount.fuse.tapefs")
    parser.add_argument("drive")
    parser.add_argument("mountpoint")
    parser.add_argument("-o", dest="options", action="append", default=[])
    parser.add_argument("-f", dest="fake", action="store_true")
    parser.add_argument("-t", "-N", dest="ignored")
    for flag in "snv":
        parser.add_argument(f"-{flag}", dest=f"ignored_{flag}", action="store_true")
    parser.set_defaults(
        foreground=False,
        read_only=False,
        generation=None,
        offline=False,
        state_dir=None,
        verbose=False,
    )
    arguments = parser.parse_args(words)
    if arguments.fake:
        return 0
    return run(arguments, terminal)
