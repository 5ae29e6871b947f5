"""How a command ended, as a transport reports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from array import array

    from tapefs.scsi.sense_data import Sense

# What a command takes its data from or puts it into, in place: an array of bytes, or a view of
# bytes that can be written to and stand in a row.
DataBuffer: TypeAlias = "array[int] | memoryview"


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of one command: GOOD, or CHECK CONDITION with its sense.

    `data` is what the drive sent, and nothing else: a view of the caller's own buffer when one
    was given, cut to the bytes that arrived less what the drive declared irrelevant. After
    CHECK CONDITION on a read only as much of it counts as the sense proves.
    `residue_bytes` is the drive's word (BOT 1.0 §5.2 dCSWDataResidue); bridges lie about it.
    `sense` is present exactly when `good` is False.
    """

    good: bool
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    residue_bytes: int = 0
    sense: Sense | None = None
