"""What stands between a request handler and pyfuse3.

An exception other than FUSEError that leaves a handler ends the mount for everybody. So every
handler is wrapped by `answers` (synchronous handlers) or `answers_later` (asynchronous ones):
a TapefsError becomes its errno, anything else is logged with its traceback and becomes EIO.
FORGET has no answer, so not even FUSEError may leave its handler: `unanswered` logs everything.
Cancellation passes: it means that the mount is ending.
"""

from __future__ import annotations

import errno
import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pyfuse3 import FUSEError

from tapefs import telemetry
from tapefs.errors import TapefsError, errno_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")


def answers(handler: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a pyfuse3 handler of a function that does not wait for anything."""

    @functools.wraps(handler)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return handler(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - the guard
            raise _as_fuse_error(handler.__name__, exc) from None

    return guarded


def answers_later(
    handler: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a pyfuse3 handler of a function that waits for content."""

    @functools.wraps(handler)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - the guard
            raise _as_fuse_error(handler.__name__, exc) from None

    return guarded


def unanswered(handler: Callable[P, None]) -> Callable[P, Coroutine[Any, Any, None]]:
    """Make a pyfuse3 handler of a function whose caller cannot be told of an error."""

    @functools.wraps(handler)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            handler(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - the guard
            _log_failure(handler.__name__, exc)

    return guarded


def _as_fuse_error(handler_name: str, exc: Exception) -> FUSEError:
    if isinstance(exc, FUSEError):
        return exc
    if isinstance(exc, TapefsError):
        return FUSEError(errno_of(exc))
    _log_failure(handler_name, exc)
    return FUSEError(errno.EIO)


def _log_failure(handler_name: str, exc: Exception) -> None:
    telemetry.LOGGER.error("%s handler=%s", telemetry.HANDLER_FAILED, handler_name, exc_info=exc)
