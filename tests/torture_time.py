"""How long the tests go on that may run for as long as one likes.

`TAPEFS_TORTURE_S` is the time for all of them together, in seconds: a quarter of a minute by
default, an hour on demand. Each ends with the round that it is in.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

TORTURE_S: Final = float(os.environ.get("TAPEFS_TORTURE_S", "15"))
# stress-ng; fio and bonnie++; random operations.
SHARES: Final = 3
# No command goes on for much longer than it was told; reached in a failing case only.
STUCK_S: Final = TORTURE_S + 300


def share_s() -> float:
    """The time of one test, in seconds."""
    return TORTURE_S / SHARES


def rounds() -> Iterator[int]:
    """Numbers from 1 on until the time of one test is over; one at least."""
    end = time.monotonic() + share_s()
    number = 0
    while number == 0 or time.monotonic() < end:
        number += 1
        yield number
