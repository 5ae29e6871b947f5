"""A real mount whose drive's cable is pulled: nothing comes from tape until it is in again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from first_light_rig import STUCK_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from first_light_rig import Host


class Cable:
    """A file that says whether the cable is out."""

    def __init__(self, host: Host) -> None:
        self._file = host.root / "out"
        plan = host.root / "plan"
        plan.write_text(f"cable out file={self._file}\n")
        host.drive += f"?faults={plan}"

    def pull(self) -> None:
        """Out."""
        self._file.touch()

    def plug_in(self) -> None:
        """In again."""
        self._file.unlink()


def until_status(host: Host, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask until the status is as wanted; it."""
    give_up = time.monotonic() + STUCK_S
    while not holds(status := host.status()):
        assert time.monotonic() < give_up, status
        time.sleep(0.05)
    return status


def until_away(host: Host) -> dict[str, Any]:
    """The daemon has noticed."""
    return until_status(host, lambda status: status["state"] == "away")
