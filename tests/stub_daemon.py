"""A stand-in for tapefs.daemon, for tests of the command line alone."""

from __future__ import annotations

import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import tapefs
from tapefs.fuse import mountpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


@dataclass
class MountRequest:
    """The daemon's request, as far as the command line knows it."""

    drive: str
    mountpoint: Path
    options: str
    state_dir: Path
    read_only: bool
    generation: int | None
    kernel_flags: tuple[str, ...]
    foreground: bool
    verbose: bool
    offline: bool


def install(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Put the stand-in where `from tapefs import daemon` looks; tests give it its functions."""
    module = types.ModuleType("tapefs.daemon")
    module.MountRequest = MountRequest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tapefs.daemon", module)
    monkeypatch.setattr(tapefs, "daemon", module, raising=False)
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", Path(os.devnull))
    return module


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """A function that does nothing but fail."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail
