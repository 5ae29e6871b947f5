"""Which volumes this host has a catalog of, and which of them a person means.

Nothing here takes a lock or writes: it may be asked while any of them is mounted.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tapefs.archive.catalogs import IMPORTED_NAME, LIVE_NAME, VIEW_NAME
from tapefs.catalog import TapeReader
from tapefs.errors import StateUnusable, TapefsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CATALOGS: Final = (LIVE_NAME, VIEW_NAME, IMPORTED_NAME)


@dataclass(frozen=True, slots=True)
class KnownVolume:
    """A volume that was here. Without a readable tape view its name is not known, and empty."""

    directory: Path
    uuid: str
    name: str

    @property
    def live_path(self) -> Path:
        """Its live catalog, which it lacks until it was mounted."""
        return self.directory / LIVE_NAME

    @property
    def view_path(self) -> Path:
        """Its tape view: made from the tape here, else the one that was imported."""
        return self.directory / (IMPORTED_NAME if self.is_imported else VIEW_NAME)

    @property
    def is_imported(self) -> bool:
        """Whether all that is known of it comes from another computer."""
        return (
            not (self.directory / VIEW_NAME).exists() and (self.directory / IMPORTED_NAME).exists()
        )


def known_volumes(state_dir: Path) -> Iterator[KnownVolume]:
    """The volumes in `state_dir` that have a catalog, by UUID. Raises StateUnusable."""
    try:
        names = sorted(os.listdir(state_dir / "volumes"))
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StateUnusable(
            f"the state directory {state_dir} cannot be read: {exc.strerror}; name another "
            "one with --state-dir"
        ) from exc
    for name in names:
        directory = state_dir / "volumes" / name
        if _is_uuid(name) and any((directory / file).exists() for file in _CATALOGS):
            volume = KnownVolume(directory, name, "")
            yield replace(volume, name=_name(volume.view_path))


def find_volume(state_dir: Path, wanted: str) -> KnownVolume:
    """The volume called `wanted`: by name, or by UUID or the beginning of it.

    Raises UsageError when there is none or several, StateUnusable.
    """
    found = _called(list(known_volumes(state_dir)), wanted)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"several volumes are called '{wanted}'; give the UUID of one")
    raise UsageError(f"no volume in {state_dir} is called '{wanted}'; 'tapefs volumes' lists them")


def split_place(state_dir: Path, text: str) -> tuple[KnownVolume, bytes]:
    """VOLUME[:PATH] as a volume and a path in it; names of volumes may hold colons.

    Raises as `find_volume` does.
    """
    known = list(known_volumes(state_dir))
    parts = text.split(":")
    for count in range(len(parts), 0, -1):
        volume = ":".join(parts[:count])
        if _called(known, volume):
            return find_volume(state_dir, volume), os.fsencode(":".join(parts[count:]))
    return find_volume(state_dir, parts[0]), b""


def _called(known: list[KnownVolume], wanted: str) -> list[KnownVolume]:
    found = [volume for volume in known if volume.name == wanted]
    return found or [volume for volume in known if wanted and volume.uuid.startswith(wanted)]


def _name(view_path: Path) -> str:
    try:
        with closing(TapeReader.open_for_reading(view_path)) as view:
            return view.settings.name
    except TapefsError:
        return ""  # without its tape view a volume is only a number here


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
