"""In which order the files of a recall are read: what the tape is like, and what waits.

The mount's lane orders what waits for it. Whoever wants many files knows all of them beforehand,
and asks for one after the other in the order that takes the least motion.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.archive.motion_model import tape_of
from tapefs.archive.recall_order import recall_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapefs.archive.motion_model import MotionModel
    from tapefs.archive.scheduler import Scheduler
    from tapefs.catalog import Item, RecallOrder
    from tapefs.geometry import Geometry

# More files are read in block order: it is as good where there are so many everywhere on the tape,
# and memory must not grow with their number.
_PLANNED_MAX: Final = 20_000


@dataclass(frozen=True, slots=True)
class TapeLayout:
    """How the loaded tape lies in its drive, and how many bytes of a file a block of it holds."""

    head_block: int | None
    wrap_ends: tuple[int, ...]
    wrap_count: int
    block_bytes: int

    @classmethod
    def of(cls, scheduler: Scheduler, geometry: Geometry) -> TapeLayout:
        """As the lane knows it."""
        ends, count = scheduler.wraps
        block_bytes = geometry.block_bytes or geometry.record_bytes
        return cls(scheduler.head_block, ends, count, block_bytes)

    def pack(self) -> bytes:
        """For another process."""
        fields = [self.head_block, self.wrap_ends, self.wrap_count, self.block_bytes]
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, data: bytes) -> TapeLayout | None:
        """What `pack` made, or None when it is nothing of that kind."""
        try:
            head_block, ends, count, block_bytes = json.loads(data)
            layout = cls(head_block, tuple(map(int, ends)), int(count), int(block_bytes))
        except (ValueError, TypeError):
            return None
        is_sound = list(layout.wrap_ends) == sorted(set(ends)) and layout.block_bytes > 0
        return layout if is_sound and isinstance(head_block, int | None) else None

    @property
    def tape(self) -> MotionModel:
        """What motion costs on it."""
        return tape_of(self.wrap_ends, self.wrap_count)


def waiting_in_reading_order(order: RecallOrder, layout: TapeLayout | None) -> Iterator[Item]:
    """The files of `order` that bring content and wait, in the order in which to read them.

    Where nothing is known of the tape (`layout` None), and of very many, in the order of blocks.
    What is not on tape comes first. Items must be placed by block.
    """
    places = None if layout is None else order.waiting_places(_PLANNED_MAX)
    if layout is None or places is None:
        yield from order.waiting_files()
        return
    on_tape = [place for place in places if place.block]
    spans = [
        (place.block, place.block + max(1, -(-place.size // layout.block_bytes)))
        for place in on_tape
    ]
    found = recall_order(spans, layout.head_block, layout.tape)
    numbers = [place.number for place in places if not place.block]
    numbers += [on_tape[index].number for index in found]
    for number in numbers:
        yield order.item(number)
