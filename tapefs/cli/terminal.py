"""What a command says: its answer to standard output, progress and complaints to standard error.

On a terminal answers are rich tables and progress is a bar; into a pipe both are plain lines that
never wrap. With `--json` standard output carries one JSON document and nothing else; or, where an
answer may be as long as a catalog, one JSON document a line.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tapefs.errors import OutputFailed

if TYPE_CHECKING:
    from tapefs.cli.verdict import Verdict

Event = dict[str, Any]
Report = Callable[[Event], None]

# With `--json` what is over sooner tells nothing but its answer; then an event comes this often.
_JSON_AFTER_S: Final = 2.0
_JSON_EVERY_S: Final = 1.0
# Narrower terminals get no bar, but still say how far it is.
_BAR_COLUMNS: Final = 72
# The bar takes what room there is, and no less than this.
_BAR_COLUMNS_MIN: Final = 8

# Terminals that cannot draw.
_DUMB: Final = ("", "dumb", "unknown")
# A table of so many columns is no table any more where its words do not fit.
_COLUMNS_MANY: Final = 4

_BYTE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Table(NamedTuple):
    """A titled table. Without `columns` it is a list of names and values."""

    title: str
    rows: Sequence[Sequence[str]]
    columns: Sequence[str] = ()


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """What goes wrong in the block is writing what was asked for; raises OutputFailed.

    BrokenPipeError stays one: whoever reads has seen enough.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise OutputFailed(
            f"what this prints cannot be written: {exc.strerror}; make room there, or send it "
            "elsewhere"
        ) from exc


class Terminal:
    """The standard streams of one command."""

    def __init__(self, *, json_output: bool = False) -> None:
        self._json_output = json_output
        # What to say when Ctrl-C ends the command; each command knows what it leaves behind.
        self.if_interrupted = "interrupted; nothing was changed"

    @property
    def columns(self) -> int | None:
        """How wide the terminal is that the answer goes to; None for a pipe or a script."""
        if self._json_output or not sys.stdout.isatty():
            return None
        return shutil.get_terminal_size().columns

    def answer(self, document: Mapping[str, Any], *parts: str | Table) -> None:
        """Print the command's answer: `document` for scripts, `parts` for people."""
        with standard_output():
            if self._json_output:
                print(json.dumps(document, ensure_ascii=False, indent=2))
            elif sys.stdout.isatty():
                _print_rich(parts)
            else:
                for part in parts:
                    _print_plain(part)
            sys.stdout.flush()

    def line(self, document: Mapping[str, Any], text: str) -> None:
        """Print one of the lines of an answer that may have very many."""
        with standard_output():
            print(json.dumps(document, ensure_ascii=False) if self._json_output else text)

    def remark(self, text: str, event: Event | None = None) -> None:
        """Say something beside the answer: `text` to people, `event`, if any, to scripts."""
        if self._json_output:
            if event is not None:
                print(json.dumps(event, ensure_ascii=False), file=sys.stderr, flush=True)
        else:
            with standard_output():
                sys.stdout.flush()
            print(f"tapefs: {text}", file=sys.stderr, flush=True)

    def complain(self, verdict: Verdict) -> None:
        """Print the one sentence that says why the command failed."""
        if self._json_output:
            event = {"event": "error", "message": verdict.sentence, "exit_code": verdict.exit_code}
            print(json.dumps(event, ensure_ascii=False), file=sys.stderr, flush=True)
        else:
            print(f"tapefs: {verdict.sentence}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Report]:
        """Yield the function that shows progress events while the block runs.

        Events carry `phase`, `message`, `done_bytes` and `total_bytes`, all optional. A terminal
        that can draw gets a bar; a pipe a line for each new message; with `--json` standard error
        gets a JSON line now and then of what takes longer than a moment.
        """
        if self._json_output:
            yield _JsonProgress().report
        elif sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in _DUMB:
            with _rich_progress() as report:
                yield report
        else:
            yield _PlainProgress().report


class _PlainProgress:
    """One line for each new phase or message: a log file stays readable."""

    def __init__(self) -> None:
        self._last = ""

    def report(self, event: Event) -> None:
        text = str(event.get("message") or event.get("phase") or "")
        if text and text != self._last:
            self._last = text
            print(f"tapefs: {text}", file=sys.stderr, flush=True)


class _JsonProgress:
    """Events as JSON lines: none of what is over soon, and then one a second at most."""

    def __init__(self) -> None:
        self._due_s = time.monotonic() + _JSON_AFTER_S

    def report(self, event: Event) -> None:
        if (now_s := time.monotonic()) >= self._due_s:
            self._due_s = now_s + _JSON_EVERY_S
            print(json.dumps(event, ensure_ascii=False), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _rich_progress() -> Iterator[Report]:
    # rich costs 80 ms to import: only who looks at a terminal pays for it.
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.console import Console, RenderableType  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    class Bars(Progress):
        """One bar; what is said has lines of its own where it does not fit beside it."""

        def get_renderables(self) -> Iterable[RenderableType]:
            if self.tasks and self.tasks[0].fields["above"]:
                yield Text(self.tasks[0].fields["above"])
            yield from super().get_renderables()

    console = Console(stderr=True)
    narrow = console.width < _BAR_COLUMNS
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        *(
            []
            if narrow
            else [BarColumn(None, style="dim", complete_style="green", finished_style="green")]
        ),
        TextColumn(
            "{task.fields[amounts]}",
            markup=False,
            table_column=Column(no_wrap=True, justify="right"),
        ),
    )
    with Bars(*columns, console=console, transient=True, expand=True) as bars:
        said = "waiting for the drive"
        task = bars.add_task(said, total=None, amounts="", above="")

        def report(event: Event) -> None:
            nonlocal said
            text = str(event.get("message") or event.get("phase") or said)
            done, total = event.get("done_bytes"), event.get("total_bytes") or None
            if text != said:
                bars.reset(task)  # rate and time left are those of what goes on now
            said = text
            bars.update(task, completed=done, total=total)
            now = bars.tasks[0]
            amounts = amounts_text(done, total, now.speed, now.elapsed, narrow=narrow)
            room = console.width - cell_len(amounts) - (1 if narrow else _BAR_COLUMNS_MIN + 2)
            above, beside = ("", text) if cell_len(text) <= room else (text, "")
            bars.update(task, description=beside, amounts=amounts, above=above)

        yield report


def amounts_text(
    done_bytes: float | None,
    total_bytes: float | None,
    rate_bytes_per_s: float | None,
    elapsed_s: float | None,
    *,
    narrow: bool,
) -> str:
    """How much of how much, how fast and how long it takes; what is not known is left out."""
    parts = []
    if total_bytes is not None and done_bytes is not None:
        if narrow:
            parts.append(f"{100 * done_bytes / total_bytes:.0f} %")
        else:
            parts.append(f"{bytes_text(done_bytes)} of {bytes_text(total_bytes)}")
        if rate_bytes_per_s:
            left_s = max(0.0, total_bytes - done_bytes) / rate_bytes_per_s
            parts += [] if narrow else [_rate_text(rate_bytes_per_s)]
            parts.append(f"{duration_text(left_s)} left")
    elif done_bytes is not None:
        parts.append(bytes_text(done_bytes))
    elif elapsed_s is not None and elapsed_s >= 1:
        parts.append(duration_text(elapsed_s))
    return ", ".join(parts)


def _print_rich(parts: Sequence[str | Table]) -> None:
    from rich.console import Console  # noqa: PLC0415 - see _rich_progress
    from rich.padding import Padding  # noqa: PLC0415 - see _rich_progress
    from rich.table import Table as RichTable  # noqa: PLC0415 - see _rich_progress
    from rich.text import Text  # noqa: PLC0415 - see _rich_progress

    console = Console()
    for part in parts:
        if isinstance(part, str):
            # Broken by the terminal alone, so that a command in it can be copied.
            console.print(Text(part), soft_wrap=True)
            continue
        if _is_too_wide(part, console.width):
            console.print(Text(part.title, "italic"))
            for first, *rest in part.rows:
                console.print(Text(first, "bold"), soft_wrap=True)
                named = zip(part.columns[1:], rest, strict=True)
                text = ", ".join(f"{name} {cell}" for name, cell in named)
                console.print(Padding(Text(text), (0, 0, 0, 2)))
            continue
        table = RichTable(
            title=Text(part.title), title_justify="left", show_header=bool(part.columns)
        )
        for column in part.columns or [""] * (len(part.rows[0]) if part.rows else 0):
            # Nothing is cut off where the terminal is narrow.
            table.add_column(Text(column), overflow="fold")
        for row in part.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)


def _is_too_wide(table: Table, width: int) -> bool:
    """Whether words would have to be broken for all of its many columns to stand side by side."""
    if len(table.columns) < _COLUMNS_MANY:
        return False
    cells = zip(table.columns, *table.rows, strict=True)
    words = (max(len(word) for cell in column for word in cell.split(" ")) for column in cells)
    return sum(words) + 3 * len(table.columns) + 1 > width


def _print_plain(part: str | Table) -> None:
    if isinstance(part, str):
        print(part)
        return
    rows = [*([part.columns] if part.columns else []), *part.rows]
    widths = (
        [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    )
    print(f"{part.title}:")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  " + "  ".join(cells).rstrip())


def bytes_text(count: float) -> str:
    """A number of bytes as people read it: `512 B`, `1.5 GiB`."""
    value = float(count)
    for unit in _BYTE_UNITS[:-1]:
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_BYTE_UNITS[-1]}"


def duration_text(seconds: float) -> str:
    """A duration as people read it: `4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def time_text(time_ns: int) -> str:
    """`time_ns` (since the epoch) in this user's time zone, to the second; a number beyond."""
    try:
        moment = dt.datetime.fromtimestamp(time_ns // 10**9, dt.UTC).astimezone()
    except (ValueError, OverflowError):
        return f"@{time_ns // 10**9}"
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def named_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows for a table of `values`: the unit at the end of each name decides how it is shown."""
    return [_named_row(name, value) for name, value in values.items() if value is not None]


def _named_row(name: str, value: object) -> tuple[str, str]:
    if isinstance(value, bool):
        return name.replace("_", " "), "yes" if value else "no"
    if isinstance(value, int | float):
        for suffix, text in _UNIT_TEXTS:
            if name.endswith(suffix):
                return name.removesuffix(suffix).replace("_", " ") or "bytes", text(value)
    if isinstance(value, list | tuple):
        value = ", ".join(str(item) for item in value) or "none"
    elif isinstance(value, Mapping):
        value = ", ".join(f"{key} {text}" for key, text in named_rows(value)) or "none"
    return name.replace("_", " "), str(value)


def _rate_text(bytes_per_s: float) -> str:
    return f"{bytes_text(bytes_per_s)}/s"


def _number_text(number: float) -> str:
    return f"{number:,}"


# First match wins: a rate ends in `_s` too.
_UNIT_TEXTS: Final[tuple[tuple[str, Callable[[float], str]], ...]] = (
    ("_bytes_per_s", _rate_text),
    ("_bytes", bytes_text),
    ("bytes", bytes_text),
    ("_s", duration_text),
    ("_count", _number_text),
    ("_h", lambda hours: f"{hours:,} h"),
)
