"""Records on their way from whoever assembles them to the thread that has the wire.

The drive must never wait while records are ready, and each way back to the trio thread is such a
wait. So the thread of the wire takes what is ready by itself (`ready`), and only where nothing is,
the trio thread waits for more (`wait`). In the same way whoever assembles goes on while there is
room (`offer`), and only where there is none, the trio thread waits for some (`put`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from tapefs.errors import NotFinalized

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence


class RecordFeed:
    """Batches of records, none of them empty, in order. Made in the trio thread, as all its calls
    but `offer` and `ready`; one task or thread at a time on either side."""

    def __init__(self, batches_max: int) -> None:
        """At most `batches_max` wait to be taken."""
        self._batches_max = batches_max
        self._batches: deque[Sequence[array[int]]] = deque()
        self._token = trio.lowlevel.current_trio_token()
        # What the trio thread waits for, if it does; set before it looks for the last time.
        self._room: trio.Event | None = None
        self._news: trio.Event | None = None
        self._complete = self._ended = self._closed = False

    # -- whoever assembles

    async def put(self, batch: Sequence[array[int]]) -> None:
        """Add a batch, when there is room. Raises BrokenResourceError once nobody takes any."""
        while not self.offer(batch):
            self._room = room = trio.Event()
            if self._is_full() and not self._closed:
                await room.wait()
            self._room = None

    def offer(self, batch: Sequence[array[int]]) -> bool:
        """Add a batch if there is room: whether there was. For any thread.

        Raises BrokenResourceError once nobody takes any.
        """
        if self._closed:
            raise trio.BrokenResourceError
        if self._is_full():
            return False
        self._batches.append(batch)
        if self._news is not None:
            self._token.run_sync_soon(self._wake)
        return True

    def finish(self) -> None:
        """That was all of them."""
        self._complete = True

    def end(self) -> None:
        """Nothing more comes, be it finished or not."""
        self._ended = True
        self._wake()

    # -- whoever writes

    async def wait(self) -> Sequence[array[int]]:
        """The next batch; an empty one behind the last.

        Raises NotFinalized when what comes has ended and was not finished.
        """
        while not self._batches:
            if self._ended:
                if self._complete:
                    return ()
                raise NotFinalized(
                    "the segment could not be assembled; see the log, and try sync again"
                )
            self._news = news = trio.Event()
            if not self._batches:
                await news.wait()
            self._news = None
        return self.ready()

    def ready(self) -> Sequence[array[int]]:
        """The next batch if it is there, else an empty one. For any thread, one at a time."""
        if not self._batches:
            return ()
        batch = self._batches.popleft()
        if self._room is not None:
            self._token.run_sync_soon(self._wake)
        return batch

    def close(self) -> None:
        """Nothing is taken any more."""
        self._closed = True
        self._wake()

    def _is_full(self) -> bool:
        return len(self._batches) >= self._batches_max

    def _wake(self) -> None:
        """Whoever waits in the trio thread looks again."""
        for event in (self._room, self._news):
            if event is not None:
                event.set()
