"""From an exception to the sentence and the exit code that a command ends with."""

from __future__ import annotations

from typing import NamedTuple

from tapefs.errors import ExitCode, TapefsError


class Verdict(NamedTuple):
    """How a command ended. `traceback_wanted`: it is a bug, its developers need to see where."""

    sentence: str
    exit_code: int
    traceback_wanted: bool = False


def verdict_of(error: BaseException) -> Verdict:
    """Judge `error`; what trio wrapped into a group counts as what it wraps."""
    if found := _first(error, TapefsError):
        assert isinstance(found, TapefsError)
        return Verdict(_one_line(found), int(found.exit_code))
    if _first(error, KeyboardInterrupt):
        return Verdict("interrupted", int(ExitCode.INTERRUPTED))
    inner = _first(error, Exception) or error
    if isinstance(inner, ImportError):
        # pyfuse3 and pyusb load shared libraries; these are the packages that bring them.
        return Verdict(
            f"a library that tapefs needs cannot be loaded ({_one_line(inner)}); "
            "install the packages fuse3 and libusb-1.0-0",
            int(ExitCode.NO_FUSE),
        )
    return Verdict(
        f"this is a bug in tapefs: {type(inner).__name__}: {_one_line(inner)}; "
        "repeat it with --verbose and report what it prints",
        int(ExitCode.BUG),
        traceback_wanted=True,
    )


def _first(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The first exception of `kind` in `error`, looking into groups."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _first(inner, kind))), None)
    return error if isinstance(error, kind) else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
