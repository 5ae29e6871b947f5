"""What a person means by a place to read from: a path in a mount, a drive, or VOLUME:PATH.

A volume that is mounted is read through its mount, any other in the drive that its cartridge is in;
where it is in none, the person is asked to insert it.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tapefs.cli import arguments as shared
from tapefs.cli import mountpoints
from tapefs.errors import NotMounted, StateUnusable, UsageError
from tapefs.fuse.mountpoint import FILESYSTEM_TYPE, mount_at

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from tapefs.archive.retrieval import Source

    Report = Callable[[dict[str, Any]], None]

T = TypeVar("T")

PLACE_HELP: Final = (
    "a path in a mount; a volume (its name, its UUID, or the beginning of that) and what in it, "
    "like FIRST:photos; or a drive, for all of the cartridge in it"
)
# On a terminal a person is given so long to bring a cartridge.
_WAIT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Place:
    """Something on a volume. `path` is from its root on; empty is all of it.

    Read from the mount at `mountpoint`, else from `drive`, else from wherever the cartridge of
    `uuid` is. `name` is for people.
    """

    name: str
    path: bytes
    uuid: str | None = None
    mountpoint: Path | None = None
    drive: str | None = None

    @property
    def volume(self) -> Place:
        """All of the volume: what one reads from at one time."""
        return replace(self, path=b"")

    @property
    def last_name(self) -> bytes:
        """What the place is called where it is; empty for all of a volume."""
        return posixpath.basename(self.path)


def add_place_options(parser: shared.Parser) -> None:
    """Add `--drive`, `--wait` and `--state-dir`."""
    parser.add_argument(
        "--drive",
        metavar="DRIVE",
        help="the drive that the cartridge of VOLUME is in, or comes into; default: any USB tape "
        "drive",
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=float,
        help="how long to wait for a cartridge that is in no drive; default: 600 on a terminal, "
        "else 0",
    )
    shared.add_state_dir(parser)


def resolved(text: str, arguments: argparse.Namespace) -> Place:
    """The place that `text` means. Raises UsageError, StateUnusable."""
    drive = None if arguments.drive is None else shared.drive(arguments.drive)
    try:
        named_drive = shared.drive(text)
    except UsageError:
        pass
    else:
        mountpoint = _mounted(lambda status: bool(status["drive"]["name"] == named_drive))
        return Place(text, b"", mountpoint=mountpoint, drive=named_drive)
    path = mountpoints.real(text)
    mountpoint = holding_mount(path)
    if mountpoint is not None:
        if not os.path.lexists(path):
            raise UsageError(f"{text} does not exist; 'ls {path.parent}' shows what does")
        return Place(str(mountpoint), os.fsencode(path.relative_to(mountpoint)), None, mountpoint)
    if os.path.lexists(path) or ("/" in text.partition(":")[0]):
        raise UsageError(
            f"{text} is not in a mount of tapefs; name a path in a mount, VOLUME:PATH "
            "('tapefs volumes' lists the volumes), or a drive"
        )
    return _on_volume(text, arguments, drive)


def _on_volume(text: str, arguments: argparse.Namespace, drive: str | None) -> Place:
    # SQLite comes with these; `tapefs --help` does without.
    from tapefs.archive import known_volumes, shelf  # noqa: PLC0415

    volume, path = known_volumes.split_place(shared.state_dir(arguments.state_dir), text)
    mountpoint = _mounted(
        lambda status: (
            status["uuid"] == volume.uuid
            and status["generation"] is None
            and status["state"] != "offline"
        )
    )
    if mountpoint is None:
        # Before anybody fetches its cartridge. Without a catalog the tape itself will say.
        with contextlib.suppress(StateUnusable):
            shelf.require(volume, shelf.clean_path(path))
    name = volume.name or volume.uuid
    return Place(name, shelf.clean_path(path), volume.uuid, mountpoint, drive)


def holding_mount(path: Path) -> Path | None:
    """The mountpoint of tapefs that `path` (resolved) lies in, or None."""
    for place in (path, *path.parents):
        mount = mount_at(place)
        if mount is not None:
            return place if mount.filesystem_type == FILESYSTEM_TYPE else None
    return None


def _mounted(fits: Callable[[dict[str, Any]], bool]) -> Path | None:
    """Where this user has mounted what `fits`, or None."""
    # Brings sockets and JSON; `tapefs --help` does without.
    from tapefs import control  # noqa: PLC0415

    found = (Path(status["mountpoint"]) for status in control.all_statuses() if fits(status))
    return next(found, None)


def by_volume(places: Sequence[Place]) -> dict[Place, list[Place]]:
    """The places by the volumes they are on, in the order in which these were named."""
    groups: dict[Place, list[Place]] = {}
    for place in places:
        groups.setdefault(place.volume, []).append(place)
    return groups


def with_source(
    volume: Place,
    arguments: argparse.Namespace,
    work: Callable[[Source, Report], T],
    report: Report,
) -> T:
    """What `work` returns, given something that reads `volume`, and who to report to.

    Asks for the cartridge where it is in no drive. Raises what finding and opening it raises, and
    what `work` raises.
    """
    from tapefs import daemon  # noqa: PLC0415 - FUSE, USB and trio come with it
    from tapefs.archive.retrieval_sources import MountSource  # noqa: PLC0415 - as above

    if volume.mountpoint is not None:
        return work(MountSource(volume.mountpoint, _uuid_at(volume.mountpoint)), report)
    drive = volume.drive
    if volume.uuid is not None:
        drives = None if drive is None else [drive]
        wait_s = arguments.wait
        if wait_s is None:
            wait_s = _WAIT_S if sys.stderr.isatty() else 0.0
        drive = daemon.find_cartridge(volume.uuid, volume.name, drives, wait_s, report)
    assert drive is not None, "a place has a mount, a drive or a volume"
    state_dir = shared.state_dir(arguments.state_dir)
    return daemon.with_volume(drive, state_dir, work, report, volume.uuid)


def _uuid_at(mountpoint: Path) -> str:
    try:
        return os.getxattr(mountpoint, "user.tapefs.volume").decode()
    except OSError as exc:
        raise NotMounted(
            f"the mount at {mountpoint} does not answer ({exc.strerror}); mount the tape again"
        ) from exc
