"""A volume's catalog as a file for another computer, and back: to look into, never to write by.

The file is one line of JSON that carries its own checksum and says what follows: the tape view as a
checkpoint has it, compressed. What is imported goes through the same checks, row by row, as what
comes from a tape. It is kept beside the name that a mount looks for: a mount makes its own catalog
from the tape, as if nothing had been imported.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import zstandard

from tapefs.archive import placement
from tapefs.archive.catalogs import IMPORTED_NAME, VIEW_NAME, make_directory
from tapefs.archive.known_volumes import KnownVolume
from tapefs.catalog import TapeReader, export_view, import_view, remove_database
from tapefs.entries import printable
from tapefs.errors import DamagedTape, StateUnusable, TapefsError, UsageError
from tapefs.volume import sealed_json
from tapefs.volume.label import is_valid_name, is_valid_record_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    Report = Callable[[dict[str, Any]], None]

_FORMAT: Final = "catalog"
_VERSION: Final = 1
_HEADER_BYTES_MAX: Final = 4096
_COPY_BYTES: Final = 1 << 20
_LEVEL: Final = 3


def export_catalog(volume: KnownVolume, path: Path, report: Report) -> dict[str, Any]:
    """Write what the tape of `volume` says, as far as this computer knows, to the new file `path`.

    What waits in the spool is not on tape, and not in the file. The file is whole and on its disk
    when it appears. Returns what its first line says. Raises UsageError when `path` exists or
    cannot be written, StateUnusable.
    """
    exists = f"{path} exists already; name a file that does not"
    if os.path.lexists(path):
        raise UsageError(exists)
    try:
        with tempfile.TemporaryDirectory(prefix=".tapefs-export-", dir=path.parent) as work:
            plain = Path(work) / "catalog.sqlite"
            _progress(report, "copying the catalog")
            export_view(volume.view_path, plain)
            header = _header(plain)
            parent = os.open(path.parent, placement.OPEN_DIRECTORY & ~os.O_NOFOLLOW)
            try:
                name = os.fsencode(path.name)
                with placement.made_whole(parent, name + b".new", name) as fd:
                    _write(header, plain, fd, report)
                os.fsync(parent)
            finally:
                os.close(parent)
    except FileExistsError as exc:
        raise UsageError(exists) from exc
    except OSError as exc:
        raise UsageError(f"{path} cannot be written: {exc.strerror}; name another file") from exc
    return header


def _write(header: dict[str, object], plain: Path, fd: int, report: Report) -> None:
    total_bytes = plain.stat().st_size
    with plain.open("rb") as source, open(fd, "wb", closefd=False) as sink:
        sink.write(sealed_json.seal(header))
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        with compressor.stream_writer(sink, closefd=False) as packed:
            while data := source.read(_COPY_BYTES):
                packed.write(data)
                _progress(report, "compressing it", source.tell(), total_bytes)
    os.fchmod(fd, 0o644)
    os.fsync(fd)


def _header(plain: Path) -> dict[str, object]:
    with closing(TapeReader.open_for_reading(plain)) as view:
        settings, last = view.settings, view.last_tape_file()
        generations_count = view.generation_count()
    with plain.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = file.seek(0, os.SEEK_END)
    return {
        "tapefs": _FORMAT,
        "format": _VERSION,
        "volume": str(settings.volume_uuid),
        "name": settings.name,
        "generations": generations_count,
        "tape_files": last.sequence if last else 0,
        "bytes": size_bytes,
        "sha256": sha256,
    }


def import_catalog(state_dir: Path, path: Path, report: Report) -> KnownVolume:
    """Take the catalog in the file `path`, for looking into; the volume that it is of.

    Raises UsageError when `path` cannot be read, or when this computer knows the volume better;
    DamagedTape when the file is not what `export_catalog` writes, intact; StateUnusable.
    """
    try:
        with path.open("rb") as file:
            return _import(state_dir, path, file, report)
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}; name another file") from exc
    except (sealed_json.MalformedJson, zstandard.ZstdError) as exc:
        raise _refusal(path, str(exc)) from exc


def _import(state_dir: Path, path: Path, file: BinaryIO, report: Report) -> KnownVolume:
    header = sealed_json.unseal(file.readline(_HEADER_BYTES_MAX))
    sealed_json.check_format(header, _FORMAT, _VERSION)
    uuid = str(sealed_json.uuid(header.get("volume")))
    make_directory(state_dir)
    directory = make_directory(state_dir / "volumes" / uuid)
    if (directory / VIEW_NAME).exists():
        raise UsageError(
            f"this computer has a catalog of this volume that was made from its tape; "
            f"'tapefs ls {uuid[:8]}' looks into it"
        )
    plain, making = directory / "importing.sqlite", directory / "imported.new.sqlite"
    try:
        _progress(report, "unpacking the catalog")
        _unpack(file, plain, header)
        _progress(report, "checking every row of it")
        remove_database(making)
        import_view(plain, making)
        name = _judge(making, header, directory / IMPORTED_NAME)
        making.rename(directory / IMPORTED_NAME)
    except DamagedTape as exc:
        found = str(exc).partition(";")[0].removeprefix("the catalog in the checkpoint ")
        raise _refusal(path, found) from exc
    finally:
        for left in (making, plain):
            remove_database(left)
        with suppress(OSError):
            directory.rmdir()  # nothing is known of a volume whose catalog was refused
    return KnownVolume(directory, uuid, name)


def _unpack(file: BinaryIO, plain: Path, header: dict[str, Any]) -> None:
    """Never more than the first line says, which must be true."""
    rest_bytes = sealed_json.whole_number(header.get("bytes"))
    sha256 = hashlib.sha256()
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file)
    try:
        with plain.open("wb") as sink:
            while data := reader.read(_COPY_BYTES):
                rest_bytes -= len(data)
                if rest_bytes < 0:
                    raise sealed_json.MalformedJson("it holds more than it says")
                sha256.update(data)
                sink.write(data)
    except OSError as exc:
        raise StateUnusable(
            f"{plain} cannot be written: {exc.strerror}; make room, or use another --state-dir"
        ) from exc
    if rest_bytes or sha256.digest() != sealed_json.digest(header.get("sha256"), 32):
        raise sealed_json.MalformedJson("what it holds is not what was exported")


def _judge(view_path: Path, header: dict[str, Any], known: Path) -> str:
    """The volume's name. Raises MalformedJson, or UsageError when the catalog `known` is newer."""
    with closing(TapeReader.open_for_reading(view_path)) as view:
        settings, last = view.settings, view.last_tape_file()
    if str(settings.volume_uuid) != header["volume"]:
        raise sealed_json.MalformedJson("it holds the catalog of another volume")
    if not (is_valid_name(settings.name) and is_valid_record_size(settings.record_bytes)):
        raise sealed_json.MalformedJson("no label says what it says of the volume")
    with suppress(StateUnusable), closing(TapeReader.open_for_reading(known)) as before:
        newest = before.last_tape_file()
        if newest and (last is None or newest.sequence > last.sequence):
            raise UsageError(
                f"a newer catalog of volume '{settings.name}' was imported before; export it again "
                "where the volume was mounted last"
            )
    return settings.name


def _refusal(path: Path, why: str) -> TapefsError:
    text = printable(os.fsencode(why[:200]))
    return DamagedTape(
        f"{path} is no catalog that can be imported ({text}); export it again with "
        "'tapefs catalog export'"
    )


def _progress(report: Report, message: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
    event: dict[str, Any] = {"event": "progress", "phase": "catalog", "message": message}
    if total_bytes:
        event |= {"done_bytes": done_bytes, "total_bytes": total_bytes}
    report(event)
