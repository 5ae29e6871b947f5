"""The command: runs rows, prints the table, writes what was asked for."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import machine, picture, results
from benchmarks.registry import ROWS
from benchmarks.row import Run
from benchmarks.sources import Sources
from benchmarks.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.row import Row

_RUNS_DEFAULT: Final = 5
_NOWHERE: Final = "anywhere"
_HEADING: Final = """\
# How fast tapefs is

This page and the values behind it are made by `contrib/benchmark.sh --json docs/benchmarks.json >
docs/benchmarks.md`; with `--add ROW` some rows are measured anew. What each row does is in
`tests/benchmarks/`; what the simulated ones mean, in [scheduling.md](scheduling.md). No figure is
one of a real drive. "New memory" is how fast free memory could be written to when a row began: in a
virtual machine that changes with its host, and whatever fills files in memory changes with it.
Linux makes a file on an ext4 without a journal only after a look at each inode freed there within
minutes, so on such a disk a row of small files pays for what was removed before it.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="contrib/benchmark.sh",
        description="Measure tapefs against a reference, in turn, and print a Markdown table of "
        "minimum, median and maximum.",
        epilog="rows: " + ", ".join(row.name for row in ROWS),
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows; without: all")
    parser.add_argument(
        "--runs",
        type=int,
        default=_RUNS_DEFAULT,
        help="of each (default 5); of what comes out the same each time, one",
    )
    parser.add_argument("--small", action="store_true", help="toy sizes: the figures mean nothing")
    parser.add_argument(
        "--tmpfs", type=Path, default=Path("/dev/shm"), help="a directory in memory (/dev/shm)"
    )
    parser.add_argument(
        "--disk", type=Path, default=Path("/var/tmp"), help="a directory on disk (/var/tmp)"
    )
    parser.add_argument("--only-on", choices=("tmpfs", "disk"), help="leave out the other one")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all values there, after each row"
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="to what --json FILE has of other rows, measured on this machine before",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE.svg", help="draw the last run of each row over time"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="with an earlier run's --json FILE"
    )
    return parser


def main(words: Sequence[str]) -> int:
    """Run what `words` ask for; 0, or 2 when they make no sense."""
    parser = _parser()
    asked = parser.parse_args(words)
    by_name = {row.name: row for row in ROWS}
    unknown = set(asked.rows) - set(by_name)
    if unknown or asked.runs < 1:
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}" if unknown else "--runs is 1 up")
    rows = [by_name[name] for name in asked.rows] or list(ROWS)
    if asked.add and not asked.json:
        parser.error("--add needs --json FILE")
    before = json.loads(asked.compare.read_text()) if asked.compare else None
    places = {"tmpfs": asked.tmpfs, "disk": asked.disk}
    found: dict[str, Any] = {"machine": machine.describe(places), "outcomes": []}
    if asked.add and asked.json.exists():
        kept = json.loads(asked.json.read_text())
        if not machine.is_the_same(kept["machine"], found["machine"]):
            parser.error(f"{asked.json} was measured on another machine, or with other software")
        found["outcomes"] = kept["outcomes"]
    if asked.only_on:
        places = {asked.only_on: places[asked.only_on]}
    timelines: dict[str, Timeline] = {}
    for outcome in _measure(rows, places, asked, timelines):
        found["outcomes"] = _in_order(found["outcomes"], outcome)
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")
    _show(found, before)
    if asked.picture:
        asked.picture.write_text(picture.svg(timelines))
    return 0


def _in_order(outcomes: Sequence[dict[str, Any]], outcome: dict[str, Any]) -> list[dict[str, Any]]:
    """With `outcome` in place of an earlier one, in the order of the registry."""
    others = [each for each in outcomes if results.key(each) != results.key(outcome)]
    names = [row.name for row in ROWS]
    return sorted(
        [*others, outcome],
        key=lambda each: (names.index(each["row"]) if each["row"] in names else -1, each["place"]),
    )


def _measure(
    rows: Sequence[Row],
    places: Mapping[str, Path],
    asked: argparse.Namespace,
    timelines: dict[str, Timeline],
) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="tapefs-sources-", dir=asked.disk) as kept:
        sources = Sources(Path(kept))
        for row in rows:
            for place, parent in places.items() if row.in_every_place else [(_NOWHERE, asked.disk)]:
                runs = []
                count = asked.runs if row.varies else 1
                circumstances = {
                    "started": dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
                    "load_average": os.getloadavg()[0],
                    "new_memory_mb_per_s": round(machine.new_memory_megabytes_per_s()),
                    "small": asked.small,
                }
                for number in range(count):
                    print(f"{row.name} on {place}: {number + 1} of {count}", file=sys.stderr)
                    is_drawn = asked.picture is not None and number == count - 1
                    timeline = Timeline() if is_drawn else None
                    runs.append(_run_once(row, parent, sources, timeline, small=asked.small))
                    if timeline is not None:
                        title = f"{row.name} on {place}" if row.in_every_place else row.name
                        timelines[title] = timeline
                outcome = results.outcome(row, place, runs, judged=not asked.small)
                yield {**outcome, **circumstances}


def _run_once(
    row: Row, parent: Path, sources: Sources, timeline: Timeline | None, *, small: bool
) -> Mapping[str, float]:
    directory = Path(tempfile.mkdtemp(prefix="tapefs-benchmark-", dir=parent))
    try:
        return row.measure(Run(directory, small, sources, timeline))
    finally:
        shutil.rmtree(directory)


def _show(found: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    print(_HEADING)
    print("\n".join(results.machine_lines(found["machine"])))
    print()
    print("\n".join(results.table_lines(found["outcomes"])))
    measured = {each["row"] for each in found["outcomes"]}
    if missing := [row.name for row in ROWS if row.name not in measured]:
        print(f"\nNot measured: {', '.join(missing)}.")
    if before is not None:
        print()
        print("Against an earlier run:")
        print()
        print("\n".join(results.comparison_lines(before["outcomes"], found["outcomes"])))
