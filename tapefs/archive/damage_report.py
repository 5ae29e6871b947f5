"""From damaged bytes of tape files to the records, blocks and files that a person asks for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from tapefs import telemetry
from tapefs.catalog import NoSuchInode
from tapefs.entries import printable

if TYPE_CHECKING:
    from tapefs.catalog import Snapshot, TapeView
    from tapefs.entries import Damage, TapeFile
    from tapefs.geometry import Geometry

# What one report lists; how much there is in all is always said.
PLACES_LISTED_MAX: Final = 1000
FILES_LISTED_MAX: Final = 1000
_RANGES_LISTED_MAX: Final = 100


class DamageReport:
    """Collects damages in tape order, then names the files they are in."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._damages: dict[int, list[Damage]] = {}
        self._count = 0
        self._places: list[dict[str, Any]] = []
        self._files: dict[int, list[tuple[int, int]]] = {}
        self._paths: list[tuple[str, int]] = []

    def add(self, damage: Damage, tape_file: TapeFile | None) -> None:
        """Take note of `damage`, which is in `tape_file`."""
        self._count += 1
        self._damages.setdefault(damage.sequence, []).append(damage)
        if len(self._places) >= PLACES_LISTED_MAX:
            return
        size = self._geometry.record_bytes
        first = damage.position // size
        last = max(first, (damage.position + damage.length - 1) // size)
        start = tape_file.first_block if tape_file else 0
        first_block = self._geometry.record_address(damage.sequence, start, first).block
        self._places.append(
            {
                "tape_file": damage.sequence,
                "kind": damage.kind.value,
                "first_record": first,
                "last_record": last,
                "first_block": first_block if tape_file or not damage.sequence else None,
                "position": damage.position,
                "length_bytes": damage.length,
                "detail": damage.detail,
            }
        )

    def name_files(self, names: Snapshot | TapeView) -> None:
        """Find the files that have lost bytes. May take seconds; for a worker thread."""
        for sequence, damages in self._damages.items():
            for extent in names.extents_in(sequence) if sequence else ():
                for damage in damages:
                    start = max(extent.position, damage.position)
                    end = min(extent.position + extent.length, damage.position + damage.length)
                    if start < end:
                        shift = extent.offset - extent.position
                        self._files.setdefault(extent.ino, []).append((start + shift, end + shift))
        for ino in sorted(self._files)[:FILES_LISTED_MAX]:
            for parent, name in names.links(ino)[:1]:
                try:
                    self._paths.append((printable(names.path_of(parent, name)), ino))
                except NoSuchInode:
                    continue  # it went, with its directory, while it was looked for

    def document(self) -> dict[str, Any]:
        """What was found, as JSON types. `[start, end)` of each damaged range of a file."""
        return {
            "damage_count": self._count,
            "damage": self._places,
            "damaged_files_count": len(self._files),
            "damaged_files": [
                {"path": path, "ranges": sorted(self._files[ino])[:_RANGES_LISTED_MAX]}
                for path, ino in sorted(self._paths)
            ],
        }


def log_damage(damage: Damage) -> None:
    """Log that `damage` was found."""
    telemetry.event(
        telemetry.VERIFY_DAMAGE,
        logging.ERROR,
        tape_file=damage.sequence,
        position=damage.position,
        length=damage.length,
        kind=damage.kind.value,
        detail=damage.detail,
    )
