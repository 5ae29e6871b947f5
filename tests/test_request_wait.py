"""How the next request of the kernel is waited for: first looked for, then slept for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

import pyfuse3
import pytest
import trio

from tapefs.fuse.request_wait import REQUESTS_IN_A_ROW_MAX, taking_turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tapefs.fuse.negotiation import Negotiation

_A_LOOK_NS: Final = 10_000
_NEVER: Final = 1_000_000
_FD: Final = 99


class Kernel:
    """Has the next request ready after so many looks at its descriptor, each of which takes 10 us.

    `sleeps` counts how often it was waited for through trio instead.
    """

    def __init__(self) -> None:
        self.looks_needed = 0
        self.looks = 0
        self.sleeps = 0
        self._now_ns = 0

    def register(self, fd: int, events: int) -> None:
        assert (fd, events) == (_FD, 1)

    def poll(self, timeout_ms: int) -> list[tuple[int, int]]:
        assert timeout_ms == 0, "it does not sleep here"
        self._now_ns += _A_LOOK_NS
        self.looks += 1
        return [(_FD, 1)] if self.looks > self.looks_needed else []

    def monotonic_ns(self) -> int:
        return self._now_ns

    async def wait_readable(self, fd: int) -> None:
        assert fd == _FD
        self.sleeps += 1


@pytest.fixture
async def kernel(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kernel]:
    kernel = Kernel()
    module = "tapefs.fuse.request_wait"
    monkeypatch.setattr(f"{module}.select", SimpleNamespace(poll=lambda: kernel, POLLIN=1))
    monkeypatch.setattr(f"{module}.time", kernel)
    monkeypatch.setattr(trio.lowlevel, "wait_readable", kernel.wait_readable)
    agreed = SimpleNamespace(begin=lambda fd: None, is_under_way=False)
    with taking_turns(cast("Negotiation", agreed)):
        await _next_request()
        assert kernel.sleeps == 1, "the first one is what the two sides agree on"
        kernel.sleeps = 0
        yield kernel


async def _next_request() -> None:
    """As pyfuse3's loop waits for it."""
    await vars(pyfuse3)["trio"].lowlevel.wait_readable(_FD)


async def test_a_request_that_comes_in_a_moment_is_not_slept_for(kernel: Kernel) -> None:
    for kernel.looks_needed in (0, 3):
        kernel.looks = 0
        await _next_request()
        assert (kernel.looks, kernel.sleeps) == (kernel.looks_needed + 1, 0)


async def test_the_look_ends_and_the_other_tasks_have_their_turn(kernel: Kernel) -> None:
    kernel.looks_needed = _NEVER
    await _next_request()
    assert kernel.sleeps == 1
    assert kernel.looks * _A_LOOK_NS < 100_000, "other tasks wait no longer than that"


async def test_requests_that_never_cease_leave_others_their_turn(kernel: Kernel) -> None:
    for _ in range(3 * (REQUESTS_IN_A_ROW_MAX + 1)):
        await _next_request()
    assert kernel.sleeps == 3
