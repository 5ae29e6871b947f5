"""`tapefs find`: files on all cartridges, and how many cartridges have what they hold."""

from __future__ import annotations

import datetime as dt
import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tapefs.cli import arguments as shared
from tapefs.cli.shelf import UUID_SHOWN, entry_document, entry_text, label_of, raise_first
from tapefs.cli.terminal import bytes_text
from tapefs.entries import printable
from tapefs.errors import OutputFailed, TapefsError, UsageError

if TYPE_CHECKING:
    import argparse

    from tapefs.archive.known_volumes import KnownVolume
    from tapefs.archive.shelf import Copies, Reach, ShelfEntry
    from tapefs.catalog import Wanted
    from tapefs.cli.terminal import Terminal

_SIZE: Final = re.compile(r"(\d+)([KMGTP]?)")
_SIZE_UNITS: Final = ("", *"KMGTP")
# The largest number of a catalog; what is asked for beyond it means the same.
_NUMBER_MAX: Final = 2**63 - 1


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs find`."""
    parser = shared.add_command(
        commands,
        "find",
        run,
        summary="find files on all cartridges, and say which one to insert",
        description="Find files on every volume that this computer has a catalog of. PATTERN is a "
        "shell pattern in quotes: for names, or for whole paths when it has a slash. With --json "
        "every line is one JSON document.",
        example="tapefs find '*.nef' --newer 2019-06-01 --size 10M..",
    )
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*")
    parser.add_argument(
        "--size", metavar="MIN..MAX", help="only files of 10M.. , ..4K or 1G..2G bytes"
    )
    parser.add_argument(
        "--newer",
        metavar="TIME",
        help="only what was modified after 2019-06-01 or 2019-06-01T12:00",
    )
    parser.add_argument("--sha256", metavar="HEX", help="only files with this content")
    copies = parser.add_mutually_exclusive_group()
    copies.add_argument(
        "--duplicates",
        action="store_true",
        help="only files whose content is on another cartridge as well",
    )
    copies.add_argument(
        "--single-copy",
        action="store_true",
        help="only files whose content is known on no other cartridge",
    )
    shared.add_state_dir(parser)


@dataclass(slots=True)
class _Found:
    """What was found on one volume. Seconds of winding to the first and the last of it."""

    count: int = 0
    size_bytes: int = 0
    unknown_count: int = 0
    winding_s: list[float] = field(default_factory=list)

    def take(self, entry: ShelfEntry, wind_s: float | None) -> None:
        self.count += 1
        self.size_bytes += entry.inode.size if stat.S_ISREG(entry.inode.mode) else 0
        if wind_s is not None:
            several = [*self.winding_s, wind_s]
            self.winding_s = [min(several), max(several)]


@dataclass(slots=True)
class _Search:
    """One command."""

    terminal: Terminal
    pattern: bytes
    wanted: Wanted
    copies: Copies | None
    duplicates: bool
    columns: int | None

    def volume(self, volume: KnownVolume) -> _Found:
        """Print what is found on `volume`. Raises StateUnusable."""
        from tapefs.archive import shelf  # noqa: PLC0415 - see run

        found, reach = _Found(), None
        for entry in shelf.find(volume, self.pattern, self.wanted):
            elsewhere = self.copies.elsewhere(volume, entry) if self.copies else []
            if self.copies and not self._is_listed(entry, elsewhere, found):
                continue
            reach = reach or shelf.Reach(volume)
            block, wind_s = _distance(reach, entry)
            found.take(entry, wind_s)
            document = entry_document(volume, entry) | {
                "start_block": block,
                "winding_s": None if wind_s is None else round(wind_s, 1),
            }
            place = f"{label_of(volume)}:/{printable(entry.path)}"
            if self.copies is not None:
                names = None if elsewhere is None else [label_of(other) for other in elsewhere]
                document["also_on"] = names
                place += _also(names)
            self.terminal.line(document, entry_text(entry, place, self.columns))
        return found

    def _is_listed(
        self, entry: ShelfEntry, elsewhere: list[KnownVolume] | None, found: _Found
    ) -> bool:
        """Whether so many have it as were asked for."""
        if not stat.S_ISREG(entry.inode.mode) or not entry.inode.size:
            return False
        if elsewhere is None:
            found.unknown_count += 1
        return bool(elsewhere) if self.duplicates else not elsewhere


def _distance(reach: Reach, entry: ShelfEntry) -> tuple[int | None, float | None]:
    block = None if entry.extent is None else reach.block(entry.extent)
    return block, None if block is None else reach.wind_s(block)


def _also(names: list[str] | None) -> str:
    if names is None:
        return "  (its hash is not known)"
    return f"  also on {', '.join(names)}" if names else ""


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Search the shelf; see `add_parsers`."""
    # SQLite and trio come with these; `tapefs --help` does without.
    from tapefs.archive import known_volumes, shelf  # noqa: PLC0415
    from tapefs.catalog import Wanted  # noqa: PLC0415

    size_min, size_max = _size_range(arguments.size)
    wanted = Wanted(size_min, size_max, _moment_ns(arguments.newer), _sha256(arguments.sha256))
    state_dir = shared.state_dir(arguments.state_dir)
    volumes = sorted(known_volumes.known_volumes(state_dir), key=lambda item: item.name)
    if not volumes:
        raise UsageError(f"no volume is known in {state_dir}; a mount makes one known")
    problems: list[TapefsError] = []
    results: list[tuple[KnownVolume, _Found]] = []
    with ExitStack() as opened:
        copies = None
        if arguments.duplicates or arguments.single_copy:
            copies = opened.enter_context(shelf.Copies(volumes))
        pattern = os.fsencode(arguments.pattern)
        search = _Search(terminal, pattern, wanted, copies, arguments.duplicates, terminal.columns)
        for volume in volumes:
            try:
                results.append((volume, search.volume(volume)))
            except OutputFailed:
                raise
            except TapefsError as exc:
                problems.append(exc)
    _remark(results, terminal, arguments)
    raise_first(problems)
    return 0


def _remark(
    results: list[tuple[KnownVolume, _Found]], terminal: Terminal, arguments: argparse.Namespace
) -> None:
    """What to do about what was found."""
    places = []
    for volume, found in results:
        if not found.count:
            continue
        label = f"{label_of(volume)} ({volume.uuid[:UUID_SHOWN]})"
        if arguments.duplicates or arguments.single_copy:
            places.append(f"{label} has {found.count:,}, {bytes_text(found.size_bytes)}")
        else:
            places.append(f"insert {label} for {found.count:,}{_winding_text(found)}")
    terminal.remark("; ".join(places) or "nothing like that is on any volume known here")
    unknown_count = sum(found.unknown_count for _, found in results)
    if unknown_count:
        terminal.remark(
            f"{unknown_count:,} files have no known hash, because they were archived in parts, "
            "changed since, or are not on tape yet: whether others have them cannot be told"
        )


def _winding_text(found: _Found) -> str:
    if not found.winding_s:
        return ""
    first, last = (_about(seconds) for seconds in found.winding_s)
    return f", about {first}{'' if first == last else f' to {last}'} of winding"


def _about(seconds: float) -> str:
    return f"{round(seconds)} s" if seconds < 99.5 else f"{round(seconds / 60)} min"


def _size_range(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    low, is_range, high = text.partition("..")
    if not is_range:
        return _size(text, text), _size(text, text)
    return _size(low, text) if low else None, _size(high, text) if high else None


def _size(part: str, text: str) -> int:
    matched = _SIZE.fullmatch(part)
    if matched is None:
        raise UsageError(f"--size {text} is no range of sizes; write it like 10M.. or 4K..1G")
    return min(int(matched[1]) << 10 * _SIZE_UNITS.index(matched[2]), _NUMBER_MAX)


def _moment_ns(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment_us = round(dt.datetime.fromisoformat(text).astimezone().timestamp() * 10**6)
    except (ValueError, OverflowError) as exc:
        raise UsageError(
            f"--newer {text} is no time; write it like 2019-06-01 or 2019-06-01T12:00"
        ) from exc
    return max(-_NUMBER_MAX, min(moment_us * 1000, _NUMBER_MAX))


def _sha256(text: str | None) -> bytes | None:
    if text is None:
        return None
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise UsageError(f"--sha256 {text} is no SHA-256; that has 64 hexadecimal digits")
    return bytes.fromhex(text)
