"""The source and the README as a reader finds them: small, finished, and all of it documented."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tapefs import cli
from tapefs.config import option_names
from tapefs.emulator import personality
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = Path(__file__).parent.parent
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
# Put together here so that this file does not find itself.
LEFTOVERS = re.compile("TO" + "DO|FIX" + "ME|raise NotImplemented" + "Error")
README = (HOME / "README.md").read_text()


def tracked(*patterns: str) -> list[Path]:
    """Files under version control, as git sees them; all that match where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--", *patterns], cwd=HOME, capture_output=True, check=True
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        found = [path for pattern in patterns for path in HOME.glob(f"**/{pattern}")]
        return [path for path in found if ".venv" not in path.parts]
    return [HOME / name for name in listed.split("\0") if name and (HOME / name).exists()]


def relative(path: Path) -> str:
    return str(path.relative_to(HOME))


SOURCES = tracked("*.py")
TEXTS = tracked("*.py", "*.sql", "*.sh", "*.md", "*.toml", ".ci/*")


def test_there_is_something_to_check() -> None:
    assert HOME / "tapefs" / "errors.py" in SOURCES
    assert HOME / "README.md" in TEXTS


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    # What is long in a test file is a list of cases.
    if "tests" not in path.parts:
        assert len(text.splitlines()) <= MODULE_LINES_MAX
    long = [
        f"{node.name}: {lines} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_nothing_is_left_for_later(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [line for line in lines if LEFTOVERS.search(line)] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", [p for p in SOURCES if "tests" not in p.parts], ids=relative)
def test_names_say_something(path: Path) -> None:
    assert not set(path.stem.split("_")) & {"helper", "helpers", "util", "utils", "manager", "misc"}


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The commands, without the families that only hold others."""
    below = [
        child
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for child in action.choices.values()
    ]
    if not below:
        yield parser
    for child in below:
        yield from commands(child)


COMMANDS = list(commands(cli.build_parser()))
SHELL_BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.prog)
def test_every_command_has_an_example_in_the_readme(command: argparse.ArgumentParser) -> None:
    assert re.search(rf"^{command.prog}\b", SHELL_BLOCKS, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.prog)
def test_every_option_is_in_the_readme(command: argparse.ArgumentParser) -> None:
    options = {word for action in command._actions for word in action.option_strings}
    assert [word for word in options - {"-h", "-o"} if f"{word}" not in README] == []


def test_every_example_is_understood() -> None:
    """All in README.md and docs/ parse; where a pipe or a file follows, the part before it."""
    pages = "\n".join(page.read_text() for page in sorted((HOME / "docs").glob("*.md")))
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", pages, re.DOTALL))
    examples = [line.split("#")[0] for line in (SHELL_BLOCKS + blocks).splitlines()]
    words = [
        part for line in examples for part in line.split("&&") if part.strip().startswith("tapefs")
    ]
    parser = cli.build_parser()
    for example in words:
        parser.parse_args(re.split("[|>]", example)[0].split()[1:])
    assert len(words) > len(COMMANDS)


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_every_exit_code_is_in_the_readme(code: ExitCode) -> None:
    assert f"\n| {int(code)} | {code.name} | " in README


def test_the_readme_knows_no_other_exit_code() -> None:
    assert len(re.findall(r"^\| \d+ \| [A-Z_]+ \| ", README, re.MULTILINE)) == len(ExitCode)


def test_the_mount_options_of_the_readme_are_those_there_are() -> None:
    table = README.partition("## Mount options")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {
        "ro",
        "state_dir",
        *option_names(),
    }


def test_every_personality_is_in_the_readme() -> None:
    for name in re.findall(
        r'^\s+name="(\w+)"', Path(personality.__file__).read_text(), re.MULTILINE
    ):
        assert f"`{name}`" in README


def test_every_promise_is_in_the_readme() -> None:
    assert re.findall(r"^\| (P\d+) \| \*\*", README, re.MULTILINE) == [
        f"P{n}" for n in range(1, 13)
    ]


def test_the_readme_shows_both_commands_in_its_first_screen() -> None:
    first_screen = "\n".join(README.splitlines()[:25])
    assert "contrib/demo.sh" in first_screen
    assert "contrib/test.sh" in first_screen
    assert "tapefs mount" in first_screen


@pytest.mark.parametrize(
    "name",
    [
        "contrib/demo.sh",
        "contrib/test.sh",
        "contrib/test-guest.sh",
        "contrib/benchmark.sh",
        "contrib/prepare.sh",
        ".ci/run",
    ],
)
def test_scripts_are_executable_and_parse(name: str) -> None:
    path = HOME / name
    assert path.stat().st_mode & 0o111 == 0o111
    shell = path.read_text().partition("\n")[0].removeprefix("#!")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_links_of_the_readme_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert (HOME / target).exists()
