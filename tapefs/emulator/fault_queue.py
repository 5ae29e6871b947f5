"""Faults that wait for their moment: the one mechanism behind everything that is made to fail.

Wire and device server each have a queue of their own kind of fault; what the medium refuses is
counted by block (`tapefs.emulator.deck`). `tapefs.emulator.fault_plan` fills all of them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from tapefs import telemetry


class FaultPoint(enum.Enum):
    """Where a planned fault strikes."""

    COMMAND = "command"
    DATA = "data"
    STATUS = "status"
    CLASS_RESET = "class reset"
    PORT_RESET = "port reset"
    # In place of the execution of a command, behind the wire.
    EXECUTION = "execution"
    # The drive reports on itself.
    REPORT = "report"


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """Strikes at `point` of commands called `command` (of any when empty), after `skip_count` such
    passes went well, `times` in a row (None: from then on always).
    """

    point: FaultPoint
    skip_count: int = field(default=0, kw_only=True)
    times: int | None = field(default=1, kw_only=True)
    command: str = field(default="", kw_only=True)


F = TypeVar("F", bound=PlannedFault)


class FaultQueue(Generic[F]):
    """Faults in the order in which they were planned: of those that a pass concerns, the first
    alone counts and strikes; the next one's turn comes when that is spent.
    """

    def __init__(self) -> None:
        self._faults: list[F] = []

    def plan(self, *faults: F) -> None:
        """Add faults behind those that are planned already."""
        self._faults.extend(faults)

    def take(self, point: FaultPoint, command: str) -> F | None:
        """The fault that strikes at this pass, or None. What strikes is logged."""
        for index, fault in enumerate(self._faults):
            if fault.point is point and fault.command in ("", command):
                return self._pass(index, fault, command)
        return None

    def _pass(self, index: int, fault: F, command: str) -> F | None:
        if fault.skip_count:
            self._faults[index] = replace(fault, skip_count=fault.skip_count - 1)
            return None
        if fault.times == 1:
            del self._faults[index]
        elif fault.times is not None:
            self._faults[index] = replace(fault, times=fault.times - 1)
        telemetry.event(telemetry.FAULT_STRUCK, fault=fault, command=command)
        return fault
