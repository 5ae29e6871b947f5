"""Completion and manual pages: the shells and roff themselves take what the parser says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import test_tidy

from tapefs import cli
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    import argparse

HOME = Path(__file__).parent.parent
COMMANDS = {command.prog.split()[1] for command in test_tidy.COMMANDS}

# As bash does at Tab: the function that `complete` names, with the words so far.
BASH = r"""
set -u
source "$1"
shift
[[ $(complete -p tapefs) =~ -F\ ([^ ]+) ]]
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
"${BASH_REMATCH[1]}" tapefs "${@: -1}" "${*: -2:1}"
printf '%s\n' "${COMPREPLY[@]}"
"""
# zsh completes only at a terminal; zpty is one.
ZSH = r"""
zmodload zsh/zpty
zpty shell env TERM=dumb zsh -f -i
zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -U compinit; compinit -u -D; echo re''ady"
zpty -r shell line '*ready*'
zpty -w -n shell "$2"$'\t'
zpty -r shell line "*$3*"
print -r -- "${line##*tapefs}"
zpty -d shell
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


def run(*words: str | Path) -> str:
    """A command's output; it must succeed and complain of nothing."""
    done = subprocess.run(
        words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["m"], {"mount"}),
        (["cartridge", ""], {"info", "cat", "serve"}),
        (["mount", "--for"], {"--foreground"}),
        (["completion", "z"], {"zsh"}),
        (["umount", "sub"], {"subdirectory"}),
        (["cartridge", "info", "fi"], {"first.tap"}),
    ],
)
def test_bash_completes(
    words: list[str],
    found: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "completions"
    place.write_text(script("bash", capsys))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "subdirectory").mkdir()
    (tmp_path / "subject").touch()
    (tmp_path / "first.tap").touch()
    assert set(run("bash", "-c", BASH, "bash", place, "tapefs", *words).split()) >= found
    assert set(run("bash", "-c", BASH, "bash", place, "tapefs", "").split()) >= COMMANDS


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tapefs mo", "mount"),
        ("tapefs cartridge i", "info"),
        ("tapefs mount --for", "--foreground"),
        ("tapefs umount sub", "subdirectory/"),
    ],
)
def test_zsh_completes(
    line: str,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "_tapefs").write_text(script("zsh", capsys))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "subdirectory").mkdir()
    (tmp_path / "subject").touch()
    assert found not in line
    assert found in run("zsh", "-f", "-c", ZSH, "zsh", tmp_path, line, found)


def test_a_shell_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "ksh"]) == ExitCode.USAGE
    assert "choose from 'bash', 'zsh'" in capsys.readouterr().err


def test_scripts_get_it_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    text = script("bash", capsys)
    assert cli.main(["completion", "bash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": "bash", "script": text}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of manual pages."""
    place = tmp_path_factory.mktemp("man") / "man1"
    assert run(sys.executable, HOME / "contrib" / "manpages.py", place) == ""
    return place


def test_every_command_has_a_page(pages: Path) -> None:
    names = {command.prog.replace(" ", "-") for command in test_tidy.COMMANDS}
    assert {page.stem for page in pages.iterdir()} == {"tapefs", *names}


def test_man_shows_every_page_without_a_warning(pages: Path) -> None:
    for page in pages.iterdir():
        assert run("groff", "-man", "-ww", "-z", "-Tutf8", page) == ""
        shown = run("man", "--warnings=w", "--encoding=UTF-8", "-l", page)
        assert f"{page.stem.upper()}(1)" in shown.splitlines()[0]
        assert run("lexgrog", page).startswith(f'{page}: "{page.stem} - ')


@pytest.mark.parametrize("command", test_tidy.COMMANDS, ids=lambda command: command.prog)
def test_a_page_says_what_the_help_says(command: argparse.ArgumentParser, pages: Path) -> None:
    page = pages / f"{command.prog.replace(' ', '-')}.1"
    shown = " ".join(run("man", "--nh", "--nj", "--encoding=UTF-8", "-l", page).split())
    for action in command._actions:
        if "--help" in action.option_strings:
            continue
        assert all(option in shown for option in action.option_strings)
        assert " ".join((action.help or "").split()) in shown
    assert command.description
    assert command.epilog
    assert " ".join(command.description.split()) in shown
    assert " ".join(command.epilog.split()) in shown


def test_where_to_write_the_pages_has_to_be_said() -> None:
    done = subprocess.run(
        [sys.executable, HOME / "contrib" / "manpages.py"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"usage: contrib/manpages.py DIRECTORY\n"
