"""Records on their way from whoever assembles them to the thread that has the wire.

The drive must never wait while records are ready, and each way back to the trio thread is such a
wait. So the thread of the wire takes what is ready by itself (`ready`), and only where nothing is,
the trio thread waits for more (`wait`).
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
    but `ready`."""

    def __init__(self, batches_max: int) -> None:
        """At most `batches_max` wait to be taken."""
        self._batches_max = batches_max
        self._batches: deque[Sequence[array[int]]] = deque()
        self._token = trio.lowlevel.current_trio_token()
        self._room, self._news = trio.Event(), trio.Event()
        self._complete = self._ended = self._closed = False

    # -- whoever assembles

    async def put(self, batch: Sequence[array[int]]) -> None:
        """Add a batch, when there is room. Raises BrokenResourceError once nobody takes any."""
        while len(self._batches) >= self._batches_max and not self._closed:
            self._room = trio.Event()
            await self._room.wait()
        if self._closed:
            raise trio.BrokenResourceError
        self._batches.append(batch)
        self._news.set()

    def finish(self) -> None:
        """That was all of them."""
        self._complete = True

    def end(self) -> None:
        """Nothing more comes, be it finished or not."""
        self._ended = True
        self._news.set()

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
            self._news = trio.Event()
            await self._news.wait()
        self._room.set()
        return self._batches.popleft()

    def ready(self) -> Sequence[array[int]]:
        """The next batch if it is there, else an empty one. For any thread, one at a time."""
        if not self._batches:
            return ()
        batch = self._batches.popleft()
        self._token.run_sync_soon(self._note_room)
        return batch

    def close(self) -> None:
        """Nothing is taken any more."""
        self._closed = True
        self._room.set()

    def _note_room(self) -> None:
        self._room.set()
