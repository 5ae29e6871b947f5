#!/usr/bin/env python3
"""Write the manual pages, which the argument parser says: tapefs(1), and one for each command.

    .venv/bin/python contrib/manpages.py DIRECTORY

Needs `pip install -e '.[manual]'`. With $SOURCE_DATE_EPOCH the pages carry that day.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from argparse_manpage.manpage import Manpage

from tapefs import __version__
from tapefs.cli import build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator


def pages() -> Iterator[tuple[str, str]]:
    """Name and text of every page."""
    top = build_parser()
    commands = dict(_commands(top))
    top_page = Manpage(top)
    see_also = [f".BR {_roff(name)} (1)" for name in commands]
    yield _page(top_page, "a tape drive as a directory", see_also)
    for parser, summary in commands.values():
        yield _page(Manpage(parser), summary, [".BR tapefs (1)"])


def _commands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, tuple[argparse.ArgumentParser, str]]]:
    """Every command with its summary, by its words; families only hold others."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        summaries = {choice.dest: choice.help or "" for choice in action._get_subactions()}
        for name, child in action.choices.items():
            below = list(_commands(child))
            yield from below
            if not below:
                yield child.prog, (child, summaries[name])


def _roff(prog: str) -> str:
    return prog.replace(" ", "-").replace("-", r"\-")


def _page(page: Manpage, summary: str, see_also: list[str]) -> tuple[str, str]:
    page.prog = page.prog.replace(" ", "-")
    page.description = summary
    page.manual = "tapefs"
    page.source = f"tapefs {__version__}"
    page.add_section("see also", ">", ",\n".join(see_also))
    text = str(page).replace("\n.SH COMMENTS\n", "\n.SH EXAMPLES\n", 1)
    # A line of text that begins with an apostrophe is a request to roff.
    return f"{page.prog}.1", re.sub(r"^'", r"\\&'", text, flags=re.MULTILINE)


def main(words: list[str]) -> int:
    """Write them; the exit code."""
    if len(words) != 1:
        sys.stderr.write("usage: contrib/manpages.py DIRECTORY\n")
        return 2
    directory = Path(words[0])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (directory / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
