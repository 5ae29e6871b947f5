"""What came out: as JSON, as a Markdown table, and beside an earlier run."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from benchmarks.row import Row


def outcome(
    row: Row, place: str, runs: list[Mapping[str, float]], *, judged: bool = True
) -> dict[str, Any]:
    """One row in one place, for JSON: every value, and with `judged` whether it is as wanted."""
    figures = {}
    for name, figure in row.figures.items():
        values = [run[name] for run in runs]
        median = statistics.median(values)
        figures[name] = {
            "unit": figure.unit,
            "values": values,
            "min": min(values),
            "median": median,
            "max": max(values),
            "wanted": figure.wanted(place) if judged else "",
            "reached": figure.is_reached(place, median),
            "or_else": figure.or_else,
        }
    return {
        "row": row.name,
        "place": place,
        "work": row.work,
        "runs": len(runs),
        "figures": figures,
    }


def key(outcome: Mapping[str, Any]) -> tuple[str, str]:
    """What tells the outcomes of a run apart."""
    return outcome["row"], outcome["place"]


def machine_lines(machine: Mapping[str, Any]) -> Iterator[str]:
    """The machine in Markdown."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    places = ", ".join(f"{name} is {kind}" for name, kind in machine["places"].items())
    yield f"- {machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB"
    yield f"- {machine['system']}; {places}"
    yield f"- Python {machine['python']}, SQLite {machine['sqlite']}, {packages}"
    yield f"- SHA-256 on one core: {machine['sha256_mb_per_s']} MB/s"


def table_lines(outcomes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """All rows in Markdown: what the work is, then the table."""
    outcomes = list(outcomes)
    for name, work in {each["row"]: each["work"] for each in outcomes}.items():
        yield f"- **{name}**: {work} ({'; '.join(_occasions(name, outcomes))})"
    yield ""
    yield "| row | on | figure | min | median | max | unit | to reach | |"
    yield "|---|---|---|--:|--:|--:|---|---|---|"
    for each in outcomes:
        for name, found in each["figures"].items():
            numbers = " | ".join(_short(found[key]) for key in ("min", "median", "max"))
            yield (
                f"| {each['row']} | {each['place']} | {name} | {numbers} | {found['unit']} "
                f"| {found['wanted']} | {_verdict(found, each['figures'])} |"
            )


def _verdict(found: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]) -> str:
    if not found["wanted"]:
        return ""
    if found["reached"]:
        return "yes"
    others = (figures.get(name, {}) for name in found["or_else"])
    will_do = any(other.get("wanted") and other["reached"] for other in others)
    return "the other is" if will_do else "**no**"


def comparison_lines(
    before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]
) -> Iterator[str]:
    """Medians then and now, of the figures that both runs have."""
    known = {key(each): each["figures"] for each in before}
    yield "| row | on | figure | then | now | unit | now / then |"
    yield "|---|---|---|--:|--:|---|--:|"
    for each in now:
        then = known.get(key(each), {})
        for name, found in each["figures"].items():
            if name not in then:
                continue
            old, new = then[name]["median"], found["median"]
            ratio = f"{new / old:.2f}" if old else ""
            yield (
                f"| {each['row']} | {each['place']} | {name} | {_short(old)} | {_short(new)} "
                f"| {found['unit']} | {ratio} |"
            )


def _occasions(name: str, outcomes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """When and how often a row was measured, and what the machine was like just before."""
    for each in outcomes:
        if each["row"] != name:
            continue
        count = "once" if each["runs"] == 1 else f"{each['runs']} times"
        occasion = f"{each['started'][:16]}Z, load {each['load_average']:.1f}"
        # Not known of what was measured before it was asked.
        if "new_memory_mb_per_s" in each:
            occasion += f", new memory at {each['new_memory_mb_per_s']:,} MB/s"
        yield f"{each['place']}: {count}, {'at toy size' if each['small'] else occasion}"


def _short(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 10 else f"{number:,.0f}"
