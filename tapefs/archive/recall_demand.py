"""Who waits for which record, and how far ahead of the readers a run may go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from tapefs.archive.whole_file_checks import Key
    from tapefs.errors import TapefsError

# How long a run waits at its end for the next request of a sequential reader.
_LINGER_S: Final = 0.02


class RecallDemand:
    """What readers want from tape. Both sides of a recall use it, in the trio thread."""

    def __init__(self, ahead_count: int) -> None:
        """Runs read at most `ahead_count` records ahead of the furthest reader."""
        self.ahead_count = ahead_count
        self.wanted: dict[Key, trio.Event] = {}
        self._failed: dict[Key, TapefsError] = {}
        # The last record that somebody asked for, by tape file.
        self._furthest: dict[int, int] = {}
        self._news = trio.Event()

    def announce(self, sequence: int, last: int) -> None:
        """A reader is about to ask for records up to `last`."""
        self._furthest[sequence] = last
        self._news.set()

    def arrival(self, key: Key) -> trio.Event:
        """What is set when it pays to look for `key` again. Raises what kept it from coming."""
        if key in self._failed:
            raise self._failed.pop(key)
        self._news.set()
        return self.wanted.setdefault(key, trio.Event())

    def wake(self, key: Key) -> None:
        """`key` has come, or must be asked for again."""
        event = self.wanted.pop(key, None)
        if event is not None:
            event.set()

    def fail(self, key: Key, error: TapefsError) -> bool:
        """Nobody will bring `key`; who waits for it gets `error`. False when nobody does."""
        if key not in self.wanted:
            return False
        self._failed[key] = error
        self.wake(key)
        return True

    async def wants_more(self, sequence: int, first: int, record: int, known_count: int) -> bool:
        """Whether the run that started at `first` goes on with `record`.

        Somebody who reads on needs a moment to ask, and is waited for. Read-ahead grows with what a
        reader has taken, so that one small file from the middle of a slow tape does not drag
        megabytes with it; it ends with the `known_count` records whose checksums are known.
        """
        end = record + self.ahead_count
        if any(seq == sequence and record <= at <= end for seq, at in self.wanted):
            return True
        with trio.move_on_after(_LINGER_S):
            while not self.reads_ahead(sequence, first, record, known_count):
                self._news = trio.Event()
                await self._news.wait()
        return self.reads_ahead(sequence, first, record, known_count)

    def reads_ahead(self, sequence: int, first: int, record: int, known_count: int) -> bool:
        """Whether `record` lies where a run from `first` on reads although nobody waits for it."""
        if record >= known_count:
            return False  # behind what was salvaged: nobody could tell whether it is right
        furthest = self._furthest.get(sequence, -1)
        taken = furthest - first + 1
        return taken > 0 and record <= furthest + min(self.ahead_count, 2 * (taken - 1))
