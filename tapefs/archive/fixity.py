"""What the files of a volume hash to: from its catalog, and for what that lacks from the tape."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import xxhash

import tapefs
from tapefs.archive import manifest_formats
from tapefs.archive.manifest_formats import ListedFile
from tapefs.archive.shelf import clean_path, no_such_path
from tapefs.archive.tape_order import hashed_in_tape_order
from tapefs.catalog import ShelfCatalog
from tapefs.errors import TapefsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from tapefs.archive.known_volumes import KnownVolume
    from tapefs.archive.retrieval import Source
    from tapefs.catalog import HashTable, Named
    from tapefs.entries import Inode

    Report = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Listing:
    """What became of a list. `others`: what is no file, by kind; it is in no list of checksums."""

    files_count: int = 0
    content_bytes: int = 0
    lacking_count: int = 0
    others: Counter[str] = field(default_factory=Counter)


class Fixity:
    """The files at and below `path` of `volume`, and their hashes. For one thread.

    `hashes`: what was read from the tape for this. Raises UsageError when there is no such path,
    StateUnusable.
    """

    def __init__(self, volume: KnownVolume, path: bytes, hashes: HashTable | None = None) -> None:
        self.volume = volume
        self.path = clean_path(path)
        self._hashes = hashes
        self.listing = Listing()

    def files(self) -> Iterator[ListedFile]:
        """Every name of every file, sorted within each directory; what is no file is counted."""
        with ShelfCatalog.open(self.volume.live_path, self.volume.view_path) as catalog:
            found = catalog.at(self.path)
            if found is None:
                raise no_such_path(self.volume.name, self.path)
            is_directory = stat.S_ISDIR(found.inode.mode)
            start = b"" if is_directory else os.path.basename(self.path)
            levels: list[Iterator[tuple[bytes, Named]]] = [iter([(start, found)])]
            while levels:
                entry = next(levels[-1], None)
                if entry is None:
                    levels.pop()
                elif stat.S_ISDIR(entry[1].inode.mode):
                    levels.append(_children(catalog, *entry))
                elif stat.S_ISREG(entry[1].inode.mode):
                    yield self._listed(*entry)
                else:
                    self.listing.others[_kind(entry[1].inode.mode)] += 1

    def _listed(self, path: bytes, named: Named) -> ListedFile:
        inode = named.inode
        sha256, xxh128 = inode.sha256, inode.xxh128
        if self._hashes is not None and (sha256 is None or xxh128 is None):
            sha256, xxh128 = self._hashes.find(inode) or (sha256, xxh128)
        if not inode.size:
            # Nothing hashes to what nothing does, whatever became of the file before.
            sha256, xxh128 = hashlib.sha256().digest(), xxhash.xxh3_128().digest()
        return ListedFile(path, inode, sha256, xxh128)

    def write(
        self, manifest: manifest_formats.ManifestFormat, lacking: Callable[[bytes, str], None]
    ) -> None:
        """Write all of it; `lacking` is told what is not in the list, or without hash, and why."""
        manifest.begin()
        for file in self.files():
            self.listing.files_count += 1
            self.listing.content_bytes += file.inode.size
            if why := manifest.add(file):
                self.listing.lacking_count += 1
                lacking(file.path, why)


def write_bag(
    fixity: Fixity, directory: Path, lacking: Callable[[bytes, str], None], now_ns: int
) -> None:
    """Make `directory` a bag whose payload, in its `data`, is or will be what `fixity` lists.

    Raises UsageError when it is a bag already, or cannot be written.
    """
    tags: dict[str, bytes] = {}
    with _tag_file(directory, "manifest-sha256.txt") as sink:
        payload = manifest_formats.BagPayload(sink)
        fixity.write(payload, lacking)
    volume = fixity.volume
    tags["bag-info.txt"] = manifest_formats.bag_tags(
        now_ns, tapefs.__version__, volume.uuid, volume.name, payload
    )
    tags["bagit.txt"] = manifest_formats.BAG_DECLARATION
    for name, data in tags.items():
        with _tag_file(directory, name) as sink:
            sink.write(data)
    with _tag_file(directory, "tagmanifest-sha256.txt") as sink:
        for name in ("bag-info.txt", "bagit.txt", "manifest-sha256.txt"):
            with (directory / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sink.write(f"{digest}  {name}\n".encode())


def write_mhl(
    fixity: Fixity,
    directory: Path,
    lacking: Callable[[bytes, str], None],
    now_ns: int,
    host: str,
) -> None:
    """Begin an ASC MHL history in `directory`, which holds or will hold what `fixity` lists.

    Raises UsageError when it has one already, or cannot be written.
    """
    place = directory / "ascmhl"
    stamp = time.strftime("%Y-%m-%d_%H%M%SZ", time.gmtime(now_ns // 10**9))
    name = f"0001_{directory.name}_{stamp}.mhl"
    try:
        place.mkdir()
    except OSError as exc:
        raise _refusal(place, exc) from exc
    with _tag_file(place, name) as sink:
        sink.write(manifest_formats.mhl_head(now_ns, host, tapefs.__version__))
        fixity.write(manifest_formats.MediaHashes(sink), lacking)
        sink.write(manifest_formats.MHL_END)
    with (place / name).open("rb") as file:
        sha512 = hashlib.file_digest(file, "sha512").digest()
    with _tag_file(place, "ascmhl_chain.xml") as sink:
        sink.write(manifest_formats.mhl_chain(name, sha512))


def _tag_file(directory: Path, name: str) -> BinaryIO:
    try:
        return (directory / name).open("xb")
    except OSError as exc:
        raise _refusal(directory / name, exc) from exc


def _refusal(path: Path, exc: OSError) -> UsageError:
    if isinstance(exc, FileExistsError):
        return UsageError(f"{path} exists already, and is left alone; name another --output")
    return UsageError(f"{path} cannot be made: {exc.strerror}; name another --output")


def read_hashes(
    source: Source,
    path: bytes,
    hashes: HashTable,
    report: Report,
    lacking: Callable[[bytes, str], None],
) -> None:
    """Read, in tape order, what no hashes are known of at and below `path`, into `hashes`.

    `lacking` is told what could not be read, and why. Raises what keeps `source` from reading.
    """
    message = "reading files of which no hash is known"
    for item, found in hashed_in_tape_order(source, [path], _lacks_hash, report, message):
        if isinstance(found, TapefsError):
            lacking(item.origin, str(found))
        else:
            hashes.add(item.inode, *found)


def _lacks_hash(inode: Inode) -> bool:
    return None in (inode.sha256, inode.xxh128)


def _children(
    catalog: ShelfCatalog, path: bytes, directory: Named
) -> Iterator[tuple[bytes, Named]]:
    for child in catalog.listing(directory.inode.ino):
        yield os.path.join(path, child.name), child


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "symbolic links", stat.S_IFIFO: "fifos", stat.S_IFSOCK: "sockets"}
    return kinds.get(stat.S_IFMT(mode), "device nodes")
