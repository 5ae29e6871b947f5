"""What happened when, during one run of one row."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

_SAMPLE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a mount. Bytes since its start; `block` is None while nobody knows."""

    at_s: float
    state: str
    accepted_bytes: int
    tape_bytes: int
    block: int | None


@dataclass(slots=True)
class Timeline:
    """The samples of one run, in order."""

    samples: list[Sample] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _first_tape_bytes: int | None = None

    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        last = self.samples[-1].at_s if self.samples else -_SAMPLE_S
        return time.monotonic() - self._started >= last + _SAMPLE_S

    def add(self, status: dict[str, Any], image_bytes: int) -> None:
        """A look: what the mount says, and how large its cartridge is."""
        if self._first_tape_bytes is None:
            self._first_tape_bytes = image_bytes
        tape, spool = status["tape"], status["spool"]
        block = tape["position_block"]
        if block is None and status["state"] == "writing":
            # The drive writes at the end of what the image holds by now.
            block = image_bytes // tape["record_bytes"]
        self.samples.append(
            Sample(
                time.monotonic() - self._started,
                status["state"],
                spool["not_on_tape_bytes"] + status["since_mount"]["written_bytes"],
                image_bytes - self._first_tape_bytes,
                block,
            )
        )
