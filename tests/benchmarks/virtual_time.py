"""A whole mounted volume in virtual time: hours of it in seconds, and the same each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import trio
import trio.testing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

# 2023-11-14, when simulated time begins.
_BEGINNING_NS = 1_700_000_000 * 10**9


def clock_ns() -> int:
    """Wall-clock time along trio's clock."""
    return _BEGINNING_NS + int(trio.current_time() * 1e9)


async def inline(function: Callable[..., Any], *words: Any, **_options: Any) -> Any:
    """A worker's visit without the worker: a real thread would be given no time at all."""
    await trio.lowlevel.checkpoint()
    return function(*words)


def in_virtual_time(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work`; nobody waits for its sleeps, and worker threads are done without."""
    with mock.patch.object(trio.to_thread, "run_sync", inline):
        found: T = trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))
    return found
