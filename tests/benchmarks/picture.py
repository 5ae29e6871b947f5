"""Timelines as an SVG: throughput, drive states and head position over time, one panel a row."""

from __future__ import annotations

from html import escape
from itertools import pairwise
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
# Rates are taken over this long.
_WINDOW_S: Final = 0.5
_COLOURS: Final = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def svg(timelines: Mapping[str, Timeline]) -> str:
    """One panel for each timeline that has anything to show, under its title."""
    shown = {title: line.samples for title, line in timelines.items() if len(line.samples) > 1}
    states = sorted({sample.state for samples in shown.values() for sample in samples})
    colours = {state: _COLOURS[i % len(_COLOURS)] for i, state in enumerate(states)}
    height = 30 + _PANEL_HEIGHT * len(shown)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            'font-family="sans-serif" font-size="11">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        *_legend(colours),
    ]
    for number, (title, samples) in enumerate(shown.items()):
        lines.append(f'<g transform="translate(0 {30 + number * _PANEL_HEIGHT})">')
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
    accepted = _rates(samples, [sample.accepted_bytes for sample in samples])
    to_tape = _rates(samples, [sample.tape_bytes for sample in samples])
    top = max([1.0, *(rate for _, rate in accepted), *(rate for _, rate in to_tape)])
    yield from _axis(_RATE_TOP, _RATE_HEIGHT, f"{top:.0f} MB/s")
    yield _line(accepted, end_s, top, _RATE_TOP, _RATE_HEIGHT, "#bbbbbb")
    yield _line(to_tape, end_s, top, _RATE_TOP, _RATE_HEIGHT, "#000000")
    yield _text(_LEFT + 4, _RATE_TOP + 10, "grey: into the mount; black: to the cartridge")
    yield _text(4, _STATE_TOP + 14, "drive")
    for sample, following in pairwise(samples):
        x, x_end = _x(sample.at_s, end_s), _x(following.at_s, end_s)
        yield (
            f'<rect x="{x:.1f}" y="{_STATE_TOP}" width="{x_end - x:.1f}" '
            f'height="{_STATE_HEIGHT}" fill="{colours[sample.state]}"/>'
        )
    blocks = [(sample.at_s, float(sample.block)) for sample in samples if sample.block is not None]
    highest = max([1.0, *(block for _, block in blocks)])
    yield from _axis(_HEAD_TOP, _HEAD_HEIGHT, f"block {highest:.0f}")
    yield _line(blocks, end_s, highest, _HEAD_TOP, _HEAD_HEIGHT, "#4477aa")
    yield _text(_LEFT, _PANEL_HEIGHT - 8, "0 s")
    yield _text(_WIDTH - 60, _PANEL_HEIGHT - 8, f"{end_s:.1f} s")


def _rates(samples: Sequence[Sample], totals: Sequence[int]) -> list[tuple[float, float]]:
    """MB/s at each sample, over the time just before it."""
    found, first = [], 0
    for last in range(1, len(samples)):
        while samples[last].at_s - samples[first + 1].at_s >= _WINDOW_S:
            first += 1
        span_s = samples[last].at_s - samples[first].at_s
        found.append((samples[last].at_s, max(totals[last] - totals[first], 0) / 1e6 / span_s))
    return found


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


def _text(x: float, y: float, words: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}"{weight}>{escape(words)}</text>'
