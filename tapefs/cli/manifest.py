"""`tapefs manifest`: lists of checksums in the forms that archivists use."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tapefs.cli import arguments as shared
from tapefs.cli import places
from tapefs.cli.terminal import bytes_text, standard_output
from tapefs.entries import printable
from tapefs.errors import Incomplete, OutputFailed, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import BinaryIO

    from tapefs.archive.fixity import Fixity
    from tapefs.archive.retrieval import Source
    from tapefs.catalog import HashTable
    from tapefs.cli.terminal import Terminal

    Report = Callable[[dict[str, Any]], None]

# The first two make a directory what they describe.
_DIRECTORIES: Final = ("bagit", "mhl")
_FORMATS: Final = ("sha256sum", *_DIRECTORIES, "hashdeep", "csv", "json")


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs manifest`."""
    parser = shared.add_command(
        commands,
        "manifest",
        run,
        summary="write a list of checksums: sha256sum, BagIt, ASC MHL, hashdeep, CSV or JSON",
        description="List the files at and below PATH (else all) of VOLUME with the checksums that "
        "were computed when they were archived. No drive is needed. Files of which no checksum is "
        "known are named on standard error, and the exit code is 22; with --read they are read "
        "from the tape. For bagit and mhl, DIR becomes a bag, or begins an ASC MHL history.",
        example="tapefs manifest FIRST:photos --format sha256sum --output photos.sha256",
    )
    parser.add_argument(
        "place",
        metavar="VOLUME[:PATH]",
        help="a volume (its name, its UUID, or the beginning of that), and what in it",
    )
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        default=_FORMATS[0],
        metavar="FORMAT",
        help="sha256sum (default), bagit, mhl, hashdeep, csv or json",
    )
    parser.add_argument(
        "--output",
        metavar="FILE|DIR",
        help="a new file, default: standard output; for bagit and mhl a directory that exists",
    )
    parser.add_argument(
        "--read",
        action="store_true",
        help="read files of which no checksum is known, from the mount or the drive",
    )
    places.add_place_options(parser)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """List; see `add_parsers`. Raises Incomplete when the list lacks something."""
    # SQLite and trio come with these; `tapefs --help` does without.
    from tapefs.archive import known_volumes  # noqa: PLC0415
    from tapefs.archive.fixity import Fixity  # noqa: PLC0415
    from tapefs.catalog import HashTable  # noqa: PLC0415

    state_dir = shared.state_dir(arguments.state_dir)
    volume, path = known_volumes.split_place(state_dir, arguments.place)
    output = None if arguments.output is None else Path(arguments.output).absolute()
    _check_output(arguments.format, output)
    terminal.if_interrupted = "interrupted; the list is not complete"
    with ExitStack() as opened:
        hashes = opened.enter_context(HashTable())
        fixity = Fixity(volume, path, hashes)
        if arguments.read:
            _read(arguments, fixity, hashes, terminal)
        _write(arguments.format, output, fixity, _Named(terminal))
    _tell(fixity, output, terminal)
    return 0


class _Named:
    """Names what is lacking on standard error, however much it is."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def __call__(self, path: bytes, why: str) -> None:
        shown = printable(path)
        event = {"event": "lacking", "path": shown, "reason": why}
        self._terminal.remark(f"{shown}: {why}", event)


def _check_output(form: str, output: Path | None) -> None:
    if form in _DIRECTORIES:
        if output is None or not output.is_dir():
            raise UsageError(
                f"--format {form} needs --output with a directory that exists: recall the files "
                f"{'into DIR/data' if form == 'bagit' else 'into DIR'}"
            )
    elif output is not None and output.exists():
        raise UsageError(f"{output} exists already, and is left alone; name another --output")


def _read(
    arguments: argparse.Namespace, fixity: Fixity, hashes: HashTable, terminal: Terminal
) -> None:
    from tapefs.archive.fixity import read_hashes  # noqa: PLC0415 - see run

    place = places.resolved(arguments.place, arguments)

    def work(source: Source, report: Report) -> None:
        read_hashes(source, fixity.path, hashes, report, _Named(terminal))

    with terminal.progress() as progress:
        places.with_source(place.volume, arguments, work, progress)


def _write(form: str, output: Path | None, fixity: Fixity, lacking: _Named) -> None:
    """Raises OutputFailed; no list is left then that lacks its end."""
    try:
        with standard_output():
            _write_form(form, output, fixity, lacking)
    except OutputFailed:
        if output is not None and form not in _DIRECTORIES:
            output.unlink(missing_ok=True)
        raise


def _write_form(form: str, output: Path | None, fixity: Fixity, lacking: _Named) -> None:
    from tapefs.archive import fixity as writers  # noqa: PLC0415 - see run
    from tapefs.archive.manifest_formats import STREAMED  # noqa: PLC0415 - as above

    now_ns = time.time_ns()
    if form == "bagit":
        assert output is not None
        writers.write_bag(fixity, output, lacking, now_ns)
    elif form == "mhl":
        assert output is not None
        writers.write_mhl(fixity, output, lacking, now_ns, socket.gethostname())
    else:
        with ExitStack() as opened:
            sink: BinaryIO = sys.stdout.buffer
            if output is not None:
                sink = opened.enter_context(_new_file(output))
            fixity.write(STREAMED[form](sink), lacking)
            sink.flush()


def _new_file(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except OSError as exc:
        raise UsageError(f"{path} cannot be made: {exc.strerror}; name another --output") from exc


def _tell(fixity: Fixity, output: Path | None, terminal: Terminal) -> None:
    listing = fixity.listing
    listed = f"{listing.files_count:,} files, {bytes_text(listing.content_bytes)}"
    others = ", ".join(f"{count:,} {kind}" for kind, count in sorted(listing.others.items()))
    without = f"; without {others}, which have no content" if others else ""
    if output is None:
        terminal.remark(f"{listed}{without}")
    else:
        document = {
            "output": str(output),
            "files": listing.files_count,
            "content_bytes": listing.content_bytes,
            "lacking": listing.lacking_count,
            "others": dict(listing.others),
        }
        terminal.answer(document, f"{output}: {listed}{without}")
    if listing.lacking_count:
        raise Incomplete(
            f"{listing.lacking_count:,} files are not in the list, or without a checksum; they are "
            "named above, and --read computes what is not known"
        )
