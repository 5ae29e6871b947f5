"""The cable between the emulated drive and its host: pulled by a fault, a file, or a person.

A switch is a file that people and tests create and delete: while it exists, the cable is out (or
the power off, which takes the cable with it and loses what was only buffered).
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Replug:
    """When a pulled cable is in again: once the host looked `polls` times, or after `after_s`."""

    polls: int | None = None
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Switch:
    """While `file` exists the cable is out, or with `power` the mains off."""

    file: Path
    power: bool = False


class Change(enum.Enum):
    """What a look at the cable found to have happened since the last one."""

    PULLED = "pulled"
    POWERED_OFF = "powered off"
    PLUGGED_IN = "plugged in"


class Cable:
    """Whether the device is connected. The clock is asked only while a `Replug` waits for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.plugged_in = True
        # How often it was plugged in; a handle of an earlier time is dead.
        self.plug_count = 1
        self._clock: Final = clock
        self._switches: list[Switch] = []
        self._pulled_by: Switch | None = None
        self._polls_left: int | None = None
        self._due_s: float | None = None

    def add(self, *switches: Switch) -> None:
        """Obey these files from now on."""
        self._switches.extend(switches)

    def pull(self, replug: Replug | None = None) -> None:
        """It is out. Without `replug` it stays out until `plug_in`."""
        self.plugged_in = False
        self._pulled_by = None
        self._polls_left = replug.polls if replug else None
        after_s = replug.after_s if replug else None
        self._due_s = None if after_s is None else self._clock() + after_s

    def plug_in(self) -> None:
        """It is in."""
        self.pull()
        self.plugged_in = True
        self.plug_count += 1

    def look(self, *, poll: bool = False) -> Change | None:
        """What the plan and the switches make of the cable now; the caller carries it out.

        With `poll` the host is looking for devices on its bus.
        """
        closed = next((each for each in self._switches if each.file.exists()), None)
        if self.plugged_in:
            if closed is None:
                return None
            self.pull()
            self._pulled_by = closed
            return Change.POWERED_OFF if closed.power else Change.PULLED
        if poll and self._polls_left is not None:
            self._polls_left -= 1
        waited = self._polls_left is not None and self._polls_left < 0
        waited = waited or (self._due_s is not None and self._clock() >= self._due_s)
        released = self._pulled_by is not None and closed is None
        return Change.PLUGGED_IN if (waited and closed is None) or released else None
