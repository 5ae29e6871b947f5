"""The screen of `tapefs status --watch`, drawn from one status document. Pure.

Lines of styled text that fit the width; colours are the terminal's own sixteen, and nothing is
told by colour alone, so it reads on light and dark and without any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.cells import cell_len
from rich.text import Text

from tapefs.cli.terminal import bytes_text, duration_text

Status = Mapping[str, Any]

WIDTH_MIN: Final = 20
_WIDTH_MAX: Final = 110
_LABEL_COLUMNS: Final = 7
# Narrower than this, what belongs together stands below each other.
_NARROW: Final = 60
_STYLES: Final = {
    "writing": "bold green",
    "flushing": "bold green",
    "recalling": "bold green",
    "verifying": "bold green",
    "positioning": "bold cyan",
    "rewinding": "bold cyan",
    "idle": "bold",
    "away": "bold red",
}
_BAD: Final = "bold red"
_RATE_BYTES_MIN: Final = 1000


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What bars and the tape are drawn with. `marks`: for the letters of the document's map."""

    marks: Mapping[str, str]
    head: str
    full: str
    empty: str
    dot: str


UNICODE: Final = Glyphs({"=": "█", "|": "┃", "!": "▒", ".": "·"}, "▼", "█", "░", "●")
ASCII: Final = Glyphs({"=": "=", "|": "|", "!": "!", ".": "."}, "v", "#", ".", "*")
# Of several places of the map that one column shows, this decides.
_PRECEDENCE: Final = "!|=."


def draw(status: Status, width: int, clock: str, glyphs: Glyphs = UNICODE) -> list[Text]:
    """The lines of the screen, none wider than `width` columns; `clock` is the time of day."""
    width = max(WIDTH_MIN, min(width, _WIDTH_MAX))
    lines = [
        *_head(status, width, clock),
        Text(),
        *_lane(status, width, glyphs),
        Text(),
        *_tape(status, width, glyphs),
        Text(),
        *_spool(status, width, glyphs),
        *_safe(status),
        *_queue(status, width),
        *_verified(status),
        *_alarms(status),
    ]
    folded = (piece for line in lines for piece in _folded(line, width))
    return list(folded)


def summary(status: Status) -> str:
    """The same in one line, for a log or a terminal that cannot draw."""
    lane, spool = status["lane"], status["spool"]
    parts = [_doing(status)]
    if rate := _rate(lane):
        parts.append(f"{bytes_text(rate)}/s")
    parts.append(_not_on_tape(status) or "everything is on tape")
    if spool["limit_bytes"]:
        parts.append(f"spool {100 * spool['used_bytes'] // spool['limit_bytes']} %")
    parts += _sentences(status)
    return ", ".join(parts)


# -- the parts


def _head(status: Status, width: int, clock: str) -> list[Text]:
    drive = status["drive"]
    name = " ".join(filter(None, (drive["vendor"], drive["product"], drive["serial"])))
    kind = "virtual drive" if drive["virtual"] else drive["name"]
    generation = status.get("generation")
    shown = status["mode"] if generation is None else f"generation {generation}, read-only"
    return [
        *_sides(Text(f"{status['volume']}  {status['mountpoint']}", "bold"), clock, width),
        *_sides(Text(name), f"{kind}, {shown}", width),
    ]


def _lane(status: Status, width: int, glyphs: Glyphs) -> list[Text]:
    lane = status["lane"]
    state = lane["state"]
    since = f" for {duration_text(lane['for_s'])}"
    line = Text.assemble((f"{glyphs.dot} {_doing(status)}", _STYLES.get(state, "bold")), since)
    right = []
    if rate := _rate(lane):
        right.append(f"{bytes_text(rate)}/s")
    if lane["drive_busy_percent"] is not None and state not in ("idle", "away"):
        right.append(f"drive busy {lane['drive_busy_percent']} %")
    return _sides(line, ", ".join(right), width)


def _tape(status: Status, width: int, glyphs: Glyphs) -> list[Text]:
    tape = status["tape"]
    columns = width - _LABEL_COLUMNS
    cells = _resampled(tape["map"], columns)
    drawn = Text("tape".ljust(_LABEL_COLUMNS))
    for cell in cells:
        drawn.append(glyphs.marks.get(cell, cell), _BAD if cell == "!" else "")
    lines = [drawn]
    head_bytes = tape["position_bytes"]
    if head_bytes is None and status["lane"]["state"] in ("writing", "flushing"):
        head_bytes = tape["written_bytes"] + status["spool"]["going_to_tape_bytes"]
    if head_bytes is not None:
        column = min(columns - 1, head_bytes * columns // tape["map_covers_bytes"])
        lines.insert(0, Text(" " * (_LABEL_COLUMNS + column) + glyphs.head, "bold"))
    amounts = f"{bytes_text(tape['written_bytes'])} written"
    if tape["free_bytes"] is not None:
        amounts += f", {bytes_text(tape['free_bytes'])} free"
        if (rate := status["since_mount"]["rate_bytes_per_s"]) > _RATE_BYTES_MIN:
            amounts += f" ({duration_text(tape['free_bytes'] / rate)} of writing)"
    files = f"{_count(tape['segments'], 'segment')}, {_count(tape['checkpoints'], 'checkpoint')}"
    if tape["torn_tape_files"]:
        files += f", {tape['torn_tape_files']} torn"
    return [*lines, _labelled("", amounts), _labelled("", files)]


def _spool(status: Status, width: int, glyphs: Glyphs) -> list[Text]:
    spool = status["spool"]
    used, limit = spool["used_bytes"], max(1, spool["limit_bytes"])
    text = f"  {bytes_text(used)} of {bytes_text(limit)}"
    narrow = width < _NARROW
    columns = width - _LABEL_COLUMNS - (0 if narrow else len(text))
    full = min(columns, used * columns // limit)
    bar = Text("spool".ljust(_LABEL_COLUMNS) + glyphs.full * full + glyphs.empty * (columns - full))
    if narrow:
        return [bar, _labelled("", text.strip())]
    return [bar.append(text)]


def _safe(status: Status) -> list[Text]:
    waiting = _not_on_tape(status)
    if not waiting:
        return [_labelled("safe", "everything is on tape", "bold green")]
    lane, spool = status["lane"], status["spool"]
    lines = [_labelled("safe", waiting, "bold")]
    rate = lane["written_bytes_per_s"] or status["since_mount"]["rate_bytes_per_s"]
    if going := spool["going_to_tape_bytes"]:
        text = f"{bytes_text(going)} on the way"
        left = spool["not_on_tape_bytes"] - going
        if rate > _RATE_BYTES_MIN and left > 0:
            text += f", the rest takes {duration_text(left / rate)}"
        lines.append(_labelled("", text))
    return lines


def _queue(status: Status, width: int) -> list[Text]:
    waiting = {kind: count for kind, count in status["lane"]["jobs_waiting"].items() if count}
    reads = status["since_mount"]["reads_waiting"]
    parts = [f"{_count(count, kind)}" for kind, count in waiting.items()]
    if reads:
        parts.append(f"{_count(reads, 'read')} of programs")
    lines = [_labelled("queue", ", ".join(parts) + (" wait" if parts else "nobody waits"))]
    if blocks := status["lane"]["recalls_waiting_at_blocks"]:
        text = f"recalls at block {', '.join(f'{block:,}' for block in blocks)}"
        room = width - _LABEL_COLUMNS
        lines.append(_labelled("", text if len(text) <= room else text[: room - 3] + "..."))
    return lines


def _verified(status: Status) -> list[Text]:
    found = status["verification"]
    if found["damaged_places"]:
        text = f"{_count(found['damaged_places'], 'damaged place')}: see 'tapefs verify'"
        return [_labelled("proven", text, _BAD)]
    if found["proven_good"]:
        return [_labelled("proven", f"all of the tape was good on {found['proven_good'][:10]}")]
    return []


def _alarms(status: Status) -> list[Text]:
    sentences = _sentences(status)
    if not sentences:
        return []
    return [Text(), *(Text(f"! {sentence}", _BAD) for sentence in sentences)]


# -- what they are made of


def _doing(status: Status) -> str:
    """The lane's state, and where the mount is at something of its own as well, that."""
    state, mount = status["lane"]["state"], status["state"]
    text = str(state) if mount in (state, "idle") else f"{state} ({mount})"
    return f"{text}, unmounting" if status.get("unmounting") else text


def _rate(lane: Mapping[str, Any]) -> int:
    """What goes through the drive now, in bytes a second; 0 when it is at something else."""
    rate = max(lane["written_bytes_per_s"], lane["read_bytes_per_s"])
    return int(rate) if rate > _RATE_BYTES_MIN and lane["state"] != "idle" else 0


def _not_on_tape(status: Status) -> str:
    """What would be lost with this computer, in words; empty when nothing would."""
    if status["all_on_tape"]:
        return ""
    spool = status["spool"]
    if not spool["not_on_tape_files"]:
        return "changes of names are not on tape yet"
    files = _count(spool["not_on_tape_files"], "file")
    return f"{files} ({bytes_text(spool['not_on_tape_bytes'])}) not on tape yet"


def _sentences(status: Status) -> list[str]:
    problem = [status["problem"]] if status["problem"] else []
    return [*problem, *status["health"]["warnings"]]


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _labelled(label: str, text: str, style: str = "") -> Text:
    return Text.assemble(label.ljust(_LABEL_COLUMNS), (text, style))


def _sides(left: Text, right: str, width: int) -> list[Text]:
    """On one line where both fit, `right` at its end; else below each other."""
    if not right:
        return [left]
    gap = width - left.cell_len - Text(right).cell_len
    if gap < 2:
        return [left, Text(right)]
    return [Text.assemble(left, " " * gap, right)]


def _folded(line: Text, width: int) -> Sequence[Text]:
    """`line` in pieces that fit; those of a labelled line stand below its text."""
    if line.cell_len <= width:
        return [line]
    label = line.plain[:_LABEL_COLUMNS]
    indent = _LABEL_COLUMNS if label.endswith(" ") else 2
    pieces: list[Text] = []
    rest = line
    while rest.cell_len > width:
        fitting = _fitting_count(rest.plain, width)
        # Not within the label or the indent of the line before.
        cut = rest.plain.rfind(" ", indent + 1, fitting + 1)
        cut = cut if cut > 0 else fitting
        pieces.append(rest[:cut])
        tail = rest[cut:]
        tail = tail[len(tail.plain) - len(tail.plain.lstrip(" ")) :]
        rest = Text.assemble(" " * indent, tail)
    return [*pieces, rest]


def _fitting_count(text: str, width: int) -> int:
    """How many characters of `text` fit; some take two columns, some none."""
    columns = 0
    for count, char in enumerate(text):
        columns += cell_len(char)
        if columns > width:
            return count
    return len(text)


def _resampled(cells: str, columns: int) -> str:
    """The map in so many columns."""
    if not cells:
        return "." * columns
    drawn = []
    for column in range(columns):
        first = column * len(cells) // columns
        last = max(first + 1, (column + 1) * len(cells) // columns)
        drawn.append(min(cells[first:last], key=_PRECEDENCE.index))
    return "".join(drawn)
