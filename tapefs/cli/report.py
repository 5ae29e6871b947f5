"""`tapefs report` and `tapefs label`: a cartridge to look at, and for its case."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapefs.cli import arguments as shared
from tapefs.cli.terminal import bytes_text
from tapefs.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from tapefs.cli.terminal import Terminal

_VOLUME_HELP = "its name, its UUID, or the beginning of that"


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs report` and `tapefs label`."""
    report = shared.add_command(
        commands,
        "report",
        run_report,
        summary="show a cartridge as a web page: map, contents, history, health",
        description="Write a page about VOLUME that any browser shows, without a network: a map of "
        "the tape, what its directories hold, what each mount brought, when it was verified, how "
        "drive and cartridge are, and a table of files to search. From this computer's catalog; "
        "no drive is needed.",
        example="tapefs report FIRST --html first.html",
    )
    report.add_argument("volume", metavar="VOLUME", help=_VOLUME_HELP)
    report.add_argument("--html", metavar="FILE", required=True, help="the page to write")
    label = shared.add_command(
        commands,
        "label",
        run_label,
        summary="print an insert for the case of a cartridge",
        description="Write a PDF with an insert for the case of VOLUME's cartridge: name, UUID as "
        "text and QR code, dates, what is on it, and how to read it without tapefs. From this "
        "computer's catalog; no drive is needed.",
        example="tapefs label FIRST --pdf first.pdf --size 8mm",
    )
    label.add_argument("volume", metavar="VOLUME", help=_VOLUME_HELP)
    label.add_argument("--pdf", metavar="FILE", required=True, help="the PDF to write")
    label.add_argument(
        "--size",
        metavar="SIZE",
        default="lto",
        help="lto (99 x 102 mm; also DLT), 8mm (92 x 59 mm; AIT), dat (70 x 51 mm), or "
        "WIDTHxHEIGHT in mm; default: lto",
    )
    for parser in (report, label):
        parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
        shared.add_state_dir(parser)


def run_report(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Write the page; see `add_parsers`."""
    from tapefs.report.page import page  # noqa: PLC0415 - no other command needs it

    path = _new_file(arguments.html, force=arguments.force)
    told = _portrait(arguments, terminal)
    text = page(told, time.time_ns()).encode("utf-8")
    _answer(terminal, told, path, text, f"the report of volume '{told['name']}'")
    return 0


def run_label(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Write the insert; see `add_parsers`."""
    from tapefs.report.insert import insert_pdf  # noqa: PLC0415 - no other command needs it

    size_mm = _size_mm(arguments.size)
    path = _new_file(arguments.pdf, force=arguments.force)
    told = _portrait(arguments, terminal)
    made = insert_pdf(told, size_mm, time.time_ns(), bytes_text)
    _answer(terminal, told, path, made, f"the insert for volume '{told['name']}'")
    return 0


def _portrait(arguments: argparse.Namespace, terminal: Terminal) -> dict[str, Any]:
    # SQLite comes with these; `tapefs --help` does without.
    from tapefs.archive import known_volumes  # noqa: PLC0415
    from tapefs.archive.portrait import portrait  # noqa: PLC0415

    volume = known_volumes.find_volume(shared.state_dir(arguments.state_dir), arguments.volume)
    terminal.if_interrupted = "interrupted; nothing was written"
    with terminal.progress() as progress:
        return portrait(volume, progress)


def _size_mm(text: str) -> tuple[float, float]:
    from tapefs.report.insert import SIZE_MAX_MM, SIZE_MIN_MM, SIZES_MM  # noqa: PLC0415 - as above

    if text in SIZES_MM:
        return SIZES_MM[text]
    width, by, height = text.partition("x")
    try:
        found = float(width), float(height)
    except ValueError:
        by = ""
        found = 0.0, 0.0
    limits = zip(SIZE_MIN_MM, found, SIZE_MAX_MM, strict=True)
    if not by or not all(least <= each <= most for least, each, most in limits):
        least, most = (
            "x".join(f"{side:.0f}" for side in each) for each in (SIZE_MIN_MM, SIZE_MAX_MM)
        )
        raise UsageError(
            f"'{text}' is no size; give lto, 8mm, dat, or width and height in mm, from {least} to "
            f"{most}"
        )
    return found


def _new_file(text: str, *, force: bool) -> Path:
    path = Path(text).absolute()
    if path.is_dir():
        raise UsageError(f"{path} is a directory; give the name of a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent}; make it, or name another")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; --force replaces it")
    return path


def _answer(
    terminal: Terminal, told: dict[str, Any], path: Path, content: bytes, what: str
) -> None:
    making = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        making.write_bytes(content)
        making.replace(path)
    except OSError as exc:
        making.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {exc.strerror}") from exc
    terminal.answer(
        {"name": told["name"], "uuid": told["uuid"], "file": str(path), "bytes": len(content)},
        f"{what} is in {path}, {bytes_text(len(content))}",
    )
