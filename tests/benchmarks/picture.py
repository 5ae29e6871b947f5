"""Timelines as an SVG: throughput, drive states and head position over time, one panel a row."""

from __future__ import annotations

from html import escape
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from benchmarks.timeline import Sample, Timeline

_WIDTH: Final = 900
_LEFT: Final = 90
_PLOT_WIDTH: Final = _WIDTH - _LEFT - 20
_PANEL_HEIGHT: Final = 250
_RATE_TOP, _RATE_HEIGHT = 30, 90
_STATE_TOP, _STATE_HEIGHT = 130, 20
_HEAD_TOP, _HEAD_HEIGHT = 160, 60
# Rates are taken over this long at least, and over this share of the whole.
_WINDOW_S: Final = 0.5
_WINDOW_SHARE: Final = 1 / 200
# Higher rates than this share of all looks has are cut off: a spool fills at once.
_SHOWN_SHARE: Final = 0.95
_COLOURS: Final = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
_RESTING: Final = ("idle", "standing")
_RESTING_COLOUR: Final = "#dddddd"


def svg(timelines: Mapping[str, Timeline]) -> str:
    """One panel for each timeline that has anything to show, under its title."""
    shown = {title: line.samples for title, line in timelines.items() if len(line.samples) > 1}
    states = sorted({sample.state for samples in shown.values() for sample in samples})
    busy = [state for state in states if state not in _RESTING]
    colours = {state: _COLOURS[i % len(_COLOURS)] for i, state in enumerate(busy)}
    colours |= dict.fromkeys(set(states).intersection(_RESTING), _RESTING_COLOUR)
    tops = list(accumulate(map(_height, shown.values()), initial=30))
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{tops[-1]}" '
            'font-family="sans-serif" font-size="11">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        "<style>rect { shape-rendering: crispEdges }</style>",
        *_legend(colours),
    ]
    for top, (title, samples) in zip(tops, shown.items(), strict=False):
        lines.append(f'<g transform="translate(0 {top})">')
        lines += _panel(title, samples, colours)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>", ""])


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    x = _LEFT
    for state, colour in colours.items():
        yield f'<rect x="{x}" y="8" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 16, 18, state)
        x += 30 + 7 * len(state)


def _panel(title: str, samples: Sequence[Sample], colours: Mapping[str, str]) -> Iterator[str]:
    end_s = max(samples[-1].at_s, 1e-3)
    yield _text(_LEFT, 20, title, bold=True)
    if _has_rates(samples):
        yield from _rate_part(samples, end_s)
    yield f'<g transform="translate(0 {_height(samples) - _PANEL_HEIGHT})">'
    yield _text(4, _STATE_TOP + 14, "drive")
    for state, run in groupby(pairwise(samples), key=lambda pair: pair[0].state):
        pairs = list(run)
        x, x_end = _x(pairs[0][0].at_s, end_s), _x(pairs[-1][1].at_s, end_s)
        yield (
            f'<rect x="{x:.2f}" y="{_STATE_TOP}" width="{x_end - x:.2f}" '
            f'height="{_STATE_HEIGHT}" fill="{colours[state]}"/>'
        )
    blocks = [(sample.at_s, float(sample.block)) for sample in samples if sample.block is not None]
    highest = max([1.0, *(block for _, block in blocks)])
    yield from _axis(_HEAD_TOP, _HEAD_HEIGHT, f"block {_short(highest)}")
    yield _line(blocks, end_s, highest, _HEAD_TOP, _HEAD_HEIGHT, "#4477aa")
    for quarter in range(5):
        anchor = ("start", "middle", "middle", "middle", "end")[quarter]
        words = _duration(quarter / 4 * end_s, end_s)
        yield _text(_x(quarter / 4, 1.0), _PANEL_HEIGHT - 12, words, anchor=anchor)
    yield "</g>"


def _has_rates(samples: Sequence[Sample]) -> bool:
    return bool(samples[-1].accepted_bytes or samples[-1].tape_bytes)


def _height(samples: Sequence[Sample]) -> int:
    return _PANEL_HEIGHT if _has_rates(samples) else _PANEL_HEIGHT - (_STATE_TOP - _RATE_TOP)


def _rate_part(samples: Sequence[Sample], end_s: float) -> Iterator[str]:
    window_s = max(_WINDOW_S, end_s * _WINDOW_SHARE)
    accepted = _rates(samples, [sample.accepted_bytes for sample in samples], window_s)
    to_tape = _rates(samples, [sample.tape_bytes for sample in samples], window_s)
    by_size = sorted(rate for _, rate in accepted)
    usual = by_size[int(_SHOWN_SHARE * (len(by_size) - 1))]
    top = 1.1 * max([1.0, usual, *(rate for _, rate in to_tape)])
    yield from _axis(_RATE_TOP, _RATE_HEIGHT, f"{top:.0f} MB/s")
    shown = [(at_s, min(rate, top)) for at_s, rate in accepted]
    yield _line(shown, end_s, top, _RATE_TOP, _RATE_HEIGHT, "#bbbbbb")
    yield _line(to_tape, end_s, top, _RATE_TOP, _RATE_HEIGHT, "#000000")
    words = "grey: into the mount; black: to the cartridge"
    yield _text(_LEFT + _PLOT_WIDTH, 20, words, anchor="end")


def _rates(
    samples: Sequence[Sample], totals: Sequence[int], window_s: float
) -> list[tuple[float, float]]:
    """MB/s at each sample, over the time just before it."""
    found, first = [], 0
    for last in range(1, len(samples)):
        while samples[last].at_s - samples[first + 1].at_s >= window_s:
            first += 1
        span_s = samples[last].at_s - samples[first].at_s
        found.append((samples[last].at_s, max(totals[last] - totals[first], 0) / 1e6 / span_s))
    return found


def _short(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _duration(seconds: float, end_s: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if end_s >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _axis(top: int, height: int, label: str) -> Iterable[str]:
    yield (
        f'<rect x="{_LEFT}" y="{top}" width="{_PLOT_WIDTH}" height="{height}" '
        'fill="none" stroke="#dddddd"/>'
    )
    yield _text(4, top + 10, label)


def _line(
    points: Sequence[tuple[float, float]],
    end_s: float,
    highest: float,
    top: int,
    height: int,
    colour: str,
) -> str:
    places = " ".join(
        f"{_x(at_s, end_s):.1f},{top + height * (1 - value / highest):.1f}"
        for at_s, value in points
    )
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _x(at_s: float, end_s: float) -> float:
    return _LEFT + _PLOT_WIDTH * at_s / end_s


def _text(x: float, y: float, words: str, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
