"""What every test gets: the log police, a seeded trio scheduler, and directories of its own."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import trio
from tape_rig import PERSONALITIES, Rigs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest_plugins = ("log_police",)

# No timing decides a result, and one run tries what the next one tries.
hypothesis.settings.register_profile("tapefs", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tapefs")

SEED = int(os.environ.get("TAPEFS_TEST_SEED", "1"))

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def seeded_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trio's choice among ready tasks repeatable; TAPEFS_TEST_SEED chooses another one."""
    core: Any = trio._core._run
    monkeypatch.setattr(core, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    core._r.seed(SEED)


@pytest.fixture(scope="session")
def _private_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("private", numbered=True)


@pytest.fixture(autouse=True)
def private_directories(_private_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State and control sockets of this test go where no other test and no user looks.

    The path stays short: a Unix socket's has 107 bytes.
    """
    root = _private_root / str(next(_numbers))
    monkeypatch.setenv("TAPEFS_STATE_DIR", str(root / "state"))
    monkeypatch.setenv("TAPEFS_RUNTIME_DIR", str(root / "run"))
    return root


@pytest.fixture(autouse=True, scope="module")
def _no_leaks() -> Iterator[None]:
    """What a module's tests forgot to close is reported there, not in a later module."""
    yield
    gc.collect()


def pytest_report_header() -> str:
    """Say which seed a failure is to be repeated with."""
    return f"tapefs: TAPEFS_TEST_SEED={SEED}"


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    """Drives on a bench, closed at the end."""
    with contextlib.closing(Rigs(tmp_path)) as rigs:
        yield rigs


@pytest.fixture(params=PERSONALITIES)
def personality(request: pytest.FixtureRequest) -> str:
    """Each of those that differ in what matters to positioning."""
    name: str = request.param
    return name
