"""The shelf: what is on the cartridges that were ever here, without any of them in a drive.

Everything comes row by row, in memory that does not grow with the number of files, and through
readers that a mount does not notice.
"""

from __future__ import annotations

import fnmatch
import posixpath
import stat
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tapefs.archive.catalogs import VERIFIED_NAME
from tapefs.archive.motion_model import LinearTape
from tapefs.archive.open_file import FileState, clean_state
from tapefs.archive.ranges import RangeSet
from tapefs.archive.verify import counts
from tapefs.archive.waiting import waiting_in
from tapefs.catalog import CopyTable, NoSuchInode, ShelfCatalog, TapeReader, Verifications
from tapefs.config import RECORD_BYTES_DEFAULT
from tapefs.entries import ROOT_INO, printable
from tapefs.errors import StateUnusable, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Self

    from tapefs.archive.known_volumes import KnownVolume
    from tapefs.archive.waiting import WaitingVolume
    from tapefs.catalog import Named, Totals, Wanted
    from tapefs.catalog.verifications import VerificationSummary
    from tapefs.entries import Extent, Inode
    from tapefs.errors import TapefsError


@dataclass(frozen=True, slots=True)
class VolumeSummary:
    """One cartridge of the shelf.

    `last_here_ns`: when this host's catalog of it last changed, which the end of a mount does.
    `used_bytes`: what its tape files occupy. `verified`: None where nothing was verified.
    """

    volume: KnownVolume
    last_here_ns: int
    totals: Totals
    used_bytes: int
    generations_count: int
    verified: VerificationSummary | None
    waiting: WaitingVolume


@dataclass(frozen=True, slots=True)
class ShelfEntry:
    """One name on a volume. `path` is from its root, without leading slash; the root's is empty.

    `state` is None for what has no content. `waiting_bytes` of the content are not on tape.
    `extent`: where its first byte on tape stands; only `find` asks for that.
    """

    path: bytes
    inode: Inode
    state: FileState | None
    waiting_bytes: int
    extent: Extent | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What is at and below `path`, counted as by du: bytes as in `Totals`."""

    path: bytes
    totals: Totals


def summary(volume: KnownVolume) -> VolumeSummary:
    """What there is to know about `volume`. Seconds for millions of files. Raises StateUnusable."""
    used_records = generations_count = 0
    with closing(TapeReader.open_for_reading(volume.view_path)) as view:
        geometry = view.settings.geometry
        for tape_file in view.outlines():
            used_records += geometry.record_count(tape_file)
        generations_count = view.generation_count()
        verified = _verified(volume.directory / VERIFIED_NAME, view)
    with _opened(volume) as catalog:
        totals = catalog.totals_of_volume()
    return VolumeSummary(
        volume,
        _last_changed_ns(volume),
        totals,
        used_records * geometry.record_bytes,
        generations_count,
        verified,
        waiting_in(volume),
    )


def listing(volume: KnownVolume, path: bytes) -> Iterator[ShelfEntry]:
    """What `path` holds, sorted by name; or `path` itself when it is no directory.

    Raises UsageError when there is no such path, StateUnusable.
    """
    with _opened(volume) as catalog:
        at, found = _resolved(catalog, volume, path)
        if not stat.S_ISDIR(found.inode.mode):
            yield _entry(at, found)
            return
        for child in catalog.listing(found.inode.ino):
            yield _entry(_below(at, child.name), child)


def find(volume: KnownVolume, pattern: bytes, wanted: Wanted) -> Iterator[ShelfEntry]:
    """Whatever is `wanted` and fits the shell pattern, in the order in which the catalog has it.

    A pattern without a slash is compared with names, one with a slash with whole paths; `*` fits
    slashes too. A hard link is found by each of its names. Raises StateUnusable.
    """
    by_path = b"/" in pattern
    pattern = pattern.removeprefix(b"/")

    def name_fits(name: bytes) -> bool:
        return by_path or fnmatch.fnmatchcase(name, pattern)

    with _opened(volume) as catalog:
        for page in catalog.search(wanted, name_fits):
            # Names that follow each other are often in one directory.
            directories: dict[int, bytes | None] = {ROOT_INO: b""}
            for named in page:
                directory = _directory(catalog, named.parent, directories)
                if directory is None:
                    continue
                path = _below(directory, named.name)
                if not by_path or fnmatch.fnmatchcase(path, pattern):
                    found = _entry(path, named)
                    yield replace(found, extent=catalog.first_extent(named.inode.ino))


class Reach:
    """About how far the content of `volume` is from the beginning of its tape.

    In which drive it will be is not known, so it is taken for a tape with a single track. Raises
    StateUnusable.
    """

    def __init__(self, volume: KnownVolume) -> None:
        with closing(TapeReader.open_for_reading(volume.view_path)) as view:
            self._geometry = view.settings.geometry
            self._first_blocks = {file.sequence: file.first_block for file in view.outlines()}
        self._tape = LinearTape()

    def block(self, extent: Extent) -> int | None:
        """The drive's address of its first record; None when the tape view does not know it yet."""
        first_block = self._first_blocks.get(extent.sequence)
        if first_block is None:
            return None
        record = extent.position // self._geometry.record_bytes
        return self._geometry.record_address(extent.sequence, first_block, record).block

    def wind_s(self, block: int) -> float:
        """About how many seconds a drive winds from the beginning of the tape to `block`."""
        # The model counts blocks of the usual size.
        usual = 1 + self._geometry.bytes_before(block) // RECORD_BYTES_DEFAULT
        return self._tape.locate_s(self._tape.place(0), self._tape.place(usual))


class Copies:
    """Which other volumes have the content of a file, by its SHA-256. Use as a context manager.

    `problems`: volumes that could not be read, which count as having nothing. Raises SpoolFull when
    the disk with temporary files is full.
    """

    def __init__(self, volumes: Sequence[KnownVolume]) -> None:
        self.problems: list[TapefsError] = []
        self._volumes = volumes
        self._table = CopyTable()

    def __enter__(self) -> Self:
        for number, volume in enumerate(self._volumes):
            try:
                with _opened(volume) as catalog:
                    self._table.add(number, catalog.hashes())
            except StateUnusable as exc:
                self.problems.append(exc)
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()

    def elsewhere(self, volume: KnownVolume, entry: ShelfEntry) -> list[KnownVolume] | None:
        """The other volumes that have what `entry` of `volume` holds; None when nobody can tell.

        Of a file that was archived in parts, or changed since, no hash is known.
        """
        if entry.inode.sha256 is None:
            return None
        found = (self._volumes[number] for number in self._table.volumes_with(entry.inode.sha256))
        return [other for other in found if other.uuid != volume.uuid]


def usage(volume: KnownVolume, path: bytes) -> Iterator[Usage]:
    """What each directory in `path` comes to, sorted by name, then `path` with all of it.

    Raises UsageError when there is no such path, StateUnusable.
    """
    with _opened(volume) as catalog:
        at, found = _resolved(catalog, volume, path)
        if stat.S_ISDIR(found.inode.mode):
            for child in catalog.listing(found.inode.ino):
                if stat.S_ISDIR(child.inode.mode):
                    yield Usage(_below(at, child.name), catalog.totals(child.inode.ino))
        yield Usage(at, catalog.totals(found.inode.ino))


def require(volume: KnownVolume, path: bytes) -> None:
    """Raises UsageError when `volume` has nothing at `path`, StateUnusable."""
    with _opened(volume) as catalog:
        _resolved(catalog, volume, path)


def clean_path(path: bytes) -> bytes:
    """`path` from a volume's root on, as it is written in a catalog: without `.`, `..`, slashes."""
    return posixpath.normpath(b"/" + path).lstrip(b"/")


def no_such_path(volume_name: str, path: bytes) -> UsageError:
    """What to say when the volume has nothing at `path`."""
    return UsageError(
        f"volume '{volume_name}' has no '{printable(path)}'; "
        f"'tapefs find' looks for names on all volumes"
    )


def _opened(volume: KnownVolume) -> ShelfCatalog:
    return ShelfCatalog.open(volume.live_path, volume.view_path)


def _resolved(catalog: ShelfCatalog, volume: KnownVolume, path: bytes) -> tuple[bytes, Named]:
    """Where `path` leads without following symlinks, and what is there."""
    clean = clean_path(path)
    found = catalog.at(clean)
    if found is None:
        raise no_such_path(volume.name, clean)
    return clean, found


def _directory(catalog: ShelfCatalog, ino: int, known: dict[int, bytes | None]) -> bytes | None:
    """The path of directory `ino`; None when it went while it was looked for."""
    if ino not in known:
        known[ino] = None
        with suppress(NoSuchInode):
            known[ino] = catalog.directory_path(ino)
    return known[ino]


def _below(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _entry(path: bytes, named: Named) -> ShelfEntry:
    staged, inode = named.staged, named.inode
    waiting_bytes = sum(end - start for start, end in staged.dirty) if staged else 0
    state = None
    if stat.S_ISREG(inode.mode):
        resident = RangeSet(staged.resident if staged else ())
        state = FileState.RESIDENT if waiting_bytes else clean_state(resident, inode.size)
    return ShelfEntry(path, inode, state, waiting_bytes)


def _verified(path: Path, view: TapeReader) -> VerificationSummary | None:
    try:
        results = Verifications.open_for_reading(path)
    except StateUnusable:
        return None  # the next verification makes it anew
    with closing(results):
        return results.summary(file for file in view.outlines() if counts(file))


def _last_changed_ns(volume: KnownVolume) -> int:
    path = volume.live_path if volume.live_path.exists() else volume.view_path
    log = path.with_name(path.name + "-wal")
    moments = [path.stat().st_mtime_ns]
    with suppress(FileNotFoundError):
        found = log.stat()
        # Whoever only reads may leave an empty one.
        if found.st_size:
            moments.append(found.st_mtime_ns)
    return max(moments)
