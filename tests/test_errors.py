"""Every error says whose fault it is, whether to repeat, and which numbers it becomes."""

from __future__ import annotations

import errno
import importlib
import inspect
import pkgutil

import pytest

import tapefs
from tapefs import errors
from tapefs.errors import ExitCode, Fault, FilesystemError, TapefsError, errno_of


def all_errors() -> list[type[TapefsError]]:
    """Every error class that any tapefs module defines."""
    for module in pkgutil.walk_packages(tapefs.__path__, "tapefs."):
        if module.name != "tapefs.__main__":
            importlib.import_module(module.name)
    found, waiting = [], [TapefsError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("tapefs."):
            found.append(kind)
    return found


ALL_ERRORS = all_errors()


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_answers_the_three_questions(kind: type[TapefsError]) -> None:
    assert isinstance(kind.fault, Fault)
    assert isinstance(kind.retry, bool)
    assert kind.errno_value in errno.errorcode
    assert isinstance(kind.exit_code, ExitCode)
    assert kind.exit_code is not ExitCode.OK
    assert inspect.getdoc(kind), f"{kind.__name__} does not say what it means"


@pytest.mark.parametrize(
    "kind",
    # What lower layers define and translate (sense conditions) is a bug when a user gets to see it.
    [kind for kind in ALL_ERRORS if kind.__module__ == "tapefs.errors"],
    ids=lambda kind: kind.__name__,
)
def test_only_a_bug_is_called_a_bug(kind: type[TapefsError]) -> None:
    assert (kind.exit_code is ExitCode.BUG) <= (kind.fault is Fault.BUG)


def test_every_exit_code_is_some_errors_and_no_two_mean_the_same() -> None:
    used = {kind.exit_code for kind in vars(errors).values() if _is_error(kind)}
    assert set(ExitCode) - used == {ExitCode.OK, ExitCode.INTERRUPTED}
    assert len(set(map(int, ExitCode))) == len(ExitCode)
    # The shell keeps 126 and above for itself: 130 is what it reports for Ctrl-C.
    assert all(int(code) < 126 for code in ExitCode if code is not ExitCode.INTERRUPTED)


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, TapefsError)


def test_a_file_operation_carries_its_own_errno() -> None:
    error = FilesystemError(errno.ENOTEMPTY)
    assert errno_of(error) == errno.ENOTEMPTY
    assert str(error) == "ENOTEMPTY"
    assert str(FilesystemError(errno.ENOTEMPTY, "it has files")) == "it has files"
    assert errno_of(errors.VolumeFull("full")) == errno.ENOSPC
    assert errno_of(TapefsError("?")) == errno.EIO
