"""What is installed elsewhere is what is here: sdist, wheel, and what comes beside the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import test_tidy

import tapefs
from tapefs.cli.completion import completion_script

if TYPE_CHECKING:
    from collections.abc import Iterable

HOME = Path(__file__).resolve().parent.parent


def build(kind: str, source: Path, into: Path) -> Path:
    """Build that kind of distribution without a network."""
    words = [f"--{kind}", "--no-isolation", "--outdir", str(into), str(source)]
    command = [sys.executable, "-m", "build", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = into.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", HOME, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from what the sdist holds, as installers do."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-C", unpacked, "-xf", sdist], check=True)
    (source,) = unpacked.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def relative(paths: Iterable[Path]) -> set[str]:
    return {path.relative_to(HOME).as_posix() for path in paths}


def test_the_sdist_holds_what_is_needed_to_test_it(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=HOME, capture_output=True, text=True, check=False
    )
    if tracked.returncode == 0:
        assert set(tracked.stdout.split()) <= names
    assert {"README.md", "LICENSE", "contrib/test.sh", "tests/conftest.py"} <= names


def test_the_wheel_holds_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    ours = [
        path for path in (HOME / "tapefs").rglob("*") if path.is_file() and path.suffix != ".pyc"
    ]
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".data/" not in name}
    code = {name for name in names if ".dist-info/" not in name}
    assert code == relative(ours)


def test_what_was_installed_says_its_version_and_has_its_manual(
    wheel: Path, tmp_path: Path
) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    place = tmp_path / "installed"
    subprocess.run([*pip, "--no-deps", "--no-index", "--target", place, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(place)}
    said = subprocess.run(
        [sys.executable, "-m", "tapefs", "--version"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert tapefs.__version__ in said.stdout
    share = place / "share"
    commands = {command.prog.replace(" ", "-") for command in test_tidy.COMMANDS}
    assert {page.stem for page in (share / "man/man1").iterdir()} == {"tapefs", *commands}
    assert "tapefs" in (share / "man/man1/tapefs.1").read_text()
    completions = share / "bash-completion/completions/tapefs"
    assert completions.read_text() == completion_script("bash")
    assert (share / "zsh/site-functions/_tapefs").read_text() == completion_script("zsh")
    for folder in ("systemd", "udev"):
        there = {path.name: path.read_text() for path in (share / "tapefs" / folder).iterdir()}
        here = {path.name: path.read_text() for path in (HOME / "contrib" / folder).iterdir()}
        assert there == here


def test_what_the_readme_installs_by_hand_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shared = {name.partition(".data/data/")[2] for name in archive.namelist()}
    asked = re.findall(r"^install .* (share/\S+)", (HOME / "README.md").read_text(), re.MULTILINE)
    assert len(asked) == 2
    assert set(asked) <= shared
