"""`tapefs cartridge info|cat|serve`: a virtual cartridge by itself, without mounting it."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tapefs.cli import arguments as shared
from tapefs.cli.terminal import Table, bytes_text, named_rows, standard_output
from tapefs.errors import MediumFailed, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from tapefs.cli.terminal import Terminal
    from tapefs.emulator.medium import VirtualCartridge

_PORT_MAX: Final = 0xFFFF
_RECORD_BYTES_MAX: Final = 16 * 1024 * 1024
# Enough of a first record to hold the comment of a global header, or the label's second member.
_BEGINNING_BYTES: Final = 10_240
_TAPEFS_COMMENT: Final = re.compile(rb"tapefs format=\d+ volume=\S+ sequence=\d+ kind=(\w+)")
_LABEL_MEMBER: Final = b"tapefs-label.json"
_USTAR_MAGIC_AT: Final = 257


@dataclass(frozen=True, slots=True)
class TapeFileSummary:
    """What stands between two filemarks. `bytes` counts data only, not the image's framing."""

    number: int
    kind: str
    first_block: int
    record_count: int
    bytes: int
    closed_by_filemark: bool


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs cartridge info`, `tapefs cartridge cat` and `tapefs cartridge serve`."""
    members = shared.add_family(
        commands,
        "cartridge",
        summary="look into a virtual cartridge, or offer it as a USB tape drive",
        description="Look into a virtual cartridge (a SIMH .tap file) without mounting it, "
        "or offer it to Linux as a USB tape drive.",
        example="tapefs cartridge info first.tap",
    )
    info = shared.add_command(
        members,
        "info",
        run_info,
        summary="list the tape files on a virtual cartridge",
        description="Show what a virtual cartridge is and which tape files are on it.",
        example="tapefs cartridge info first.tap --json",
    )
    info.add_argument("file", metavar="FILE.tap")
    cat = shared.add_command(
        members,
        "cat",
        run_cat,
        summary="write one tape file to standard output",
        description="Write tape file N of a virtual cartridge to standard output, as 'dd' would "
        "read it from a real tape after 'mt fsf N'. Tape file 0 is the label.",
        example="tapefs cartridge cat first.tap 1 | tar tvf -",
    )
    cat.add_argument("file", metavar="FILE.tap")
    cat.add_argument("number", metavar="N", type=int, nargs="?", default=0)
    serve = shared.add_command(
        members,
        "serve",
        run_serve,
        summary="offer a virtual cartridge as a USB tape drive over USB/IP",
        description="Export a virtual drive with this cartridge in it over USB/IP. After 'modprobe "
        "vhci-hcd; usbip attach -r HOST -b 1-1' on a Linux machine its kernel has a USB tape "
        "drive, /dev/nst0; tapefs can mount it there, too. Runs until Ctrl-C. USB/IP has no "
        "passwords: whoever can connect to ADDRESS has the drive. 'virtual:FILE.tap?faults=PLAN' "
        "in place of the file makes it a drive that fails.",
        example="tapefs cartridge serve first.tap --listen 127.0.0.1:3240",
    )
    serve.add_argument("file", metavar="FILE.tap")
    serve.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        default="127.0.0.1:3240",
        help="where to wait for hosts; default 127.0.0.1:3240, for this machine only; port 0 "
        "takes a free one",
    )
    serve.add_argument(
        "--once", action="store_true", help="end when the first host that attached has left"
    )


def run_info(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """List tape files; see `add_parsers`."""
    with _opened(arguments.file) as cartridge:
        files = [_summary(cartridge, number) for number in range(_file_count(cartridge))]
        about: dict[str, Any] = {
            "file": str(cartridge.path),
            "personality": cartridge.memory.personality,
            "serial": cartridge.memory.serial,
            "write_protected": cartridge.memory.write_protected or not _may_write(cartridge.path),
            "capacity_bytes": cartridge.memory.capacity_bytes,
            "used_bytes": cartridge.end_bytes,
            "loads_count": cartridge.memory.load_count,
        }
    rows = [
        (
            str(file.number),
            file.kind if file.closed_by_filemark else f"{file.kind}, no filemark after it",
            str(file.first_block),
            str(file.record_count),
            bytes_text(file.bytes),
        )
        for file in files
    ]
    terminal.answer(
        {**about, "tape_files": [asdict(file) for file in files]},
        Table("cartridge", named_rows(about)),
        Table("tape files", rows, ("N", "kind", "first block", "records", "data")),
    )
    return 0


def run_cat(arguments: argparse.Namespace, _terminal: Terminal) -> int:
    """Write one tape file out; see `add_parsers`. A reader that has seen enough is no error."""
    with _opened(arguments.file) as cartridge:
        count = _file_count(cartridge)
        if not 0 <= arguments.number < count:
            held = f"tape files 0 to {count - 1}" if count else "nothing at all"
            raise UsageError(
                f"{arguments.file} has no tape file {arguments.number}: it holds {held}"
            )
        with standard_output():
            for record in _records(cartridge, arguments.number):
                sys.stdout.buffer.write(record)
            sys.stdout.buffer.flush()
    return 0


def run_serve(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Serve until interrupted; see `add_parsers`."""
    address = listening_address(arguments.listen)
    # trio and the emulator are not needed for any other command of this family.
    import trio  # noqa: PLC0415

    from tapefs.cli.drive_server import serve  # noqa: PLC0415
    from tapefs.emulator.name import VirtualDriveName  # noqa: PLC0415

    if VirtualDriveName.matches(arguments.file):
        name = VirtualDriveName.parse(arguments.file)
    else:
        name = VirtualDriveName(Path(arguments.file))
    terminal.if_interrupted = f"interrupted; everything that was written is in {name.path}"
    trio.run(partial(serve, name, address, terminal, once=arguments.once))
    return 0


def listening_address(text: str) -> tuple[str, int]:
    """Host and port of `ADDRESS:PORT`, `[ADDRESS]:PORT` for IPv6. Raises UsageError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > _PORT_MAX:
        raise UsageError(f"'{text}' is no address to listen on; write 127.0.0.1:3240 or [::1]:3240")
    return host, int(port)


@contextmanager
def _opened(text: str) -> Iterator[VirtualCartridge]:
    # The emulator is not needed for any other command.
    from tapefs.emulator.medium import VirtualCartridge  # noqa: PLC0415

    path = text.removeprefix("virtual:")
    with VirtualCartridge.open(Path(path), read_only=True) as cartridge:
        yield cartridge


def _may_write(path: Path) -> bool:
    """Whether the image's mode bits, which stand for the cartridge's tab, allow writing."""
    return bool(path.stat().st_mode & 0o222)


def _file_count(cartridge: VirtualCartridge) -> int:
    """Tape files on the cartridge; data behind the last filemark counts as one."""
    marks = cartridge.filemark_count
    end_of_files = cartridge.filemark(marks - 1) + 1 if marks else 0
    return marks + (cartridge.object_count > end_of_files)


def _blocks(cartridge: VirtualCartridge, number: int) -> range:
    """Object numbers of the records of tape file `number`, its filemark left out."""
    start = cartridge.filemark(number - 1) + 1 if number else 0
    closed = number < cartridge.filemark_count
    return range(start, cartridge.filemark(number) if closed else cartridge.object_count)


def _summary(cartridge: VirtualCartridge, number: int) -> TapeFileSummary:
    blocks = _blocks(cartridge, number)
    nothing = memoryview(bytearray())
    beginning = bytearray(_BEGINNING_BYTES)
    if blocks:
        cartridge.read_record(blocks[0], memoryview(beginning))
    return TapeFileSummary(
        number=number,
        kind=_kind(bytes(beginning)) if blocks else "empty",
        first_block=blocks.start,
        record_count=len(blocks),
        bytes=sum(cartridge.read_record(block, nothing).length_bytes for block in blocks),
        closed_by_filemark=number < cartridge.filemark_count,
    )


def _kind(beginning: bytes) -> str:
    """What a tape file that starts like this is: only a guess, nothing is checked."""
    if found := _TAPEFS_COMMENT.search(beginning):
        return found[1].decode("ascii", errors="replace")
    if beginning[_USTAR_MAGIC_AT:].startswith(b"ustar"):
        return "label" if _LABEL_MEMBER in beginning else "foreign tar archive"
    return "unknown data"


def _records(cartridge: VirtualCartridge, number: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_RECORD_BYTES_MAX))
    for block in _blocks(cartridge, number):
        found = cartridge.read_record(block, buffer)
        if not found.readable:
            raise MediumFailed(
                f"block {block} of {cartridge.path} is marked unreadable; what stands before it "
                "has been written out"
            )
        yield buffer[: found.length_bytes]
