"""SHA-256 of files that were archived whole, taken as their records come by (P8).

Records are fed in the order of the file, from whichever side they come: by the run that reads them
from tape, as long as it keeps that order, or by the reader of the file, from the record cache, when
some of the file was read for a neighbour's sake before anybody asked for this one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tapefs.archive.stretch import Stretch
    from tapefs.entries import Extent

# Sequence of a tape file and the number of a record in it.
Key = tuple[int, int]

# Checks that may be under way, and results remembered.
_CHECKS_KEPT: Final = 64
_VERIFIED_KEPT: Final = 4096
# Records hashed in one visit to a worker thread, and those in one stretch with the last.
_BATCH_COUNT: Final = 8


class WholeFileCheck:
    """SHA-256 of one archived extent. Whoever feeds it holds `lock`."""

    def __init__(self, extent: Extent, digest: bytes, record_bytes: int) -> None:
        self.sequence = extent.sequence
        self.lock = trio.Lock()
        self._digest = digest
        self._sha256 = hashlib.sha256()
        self._record_bytes = record_bytes
        self._start, self._end = extent.position, extent.position + extent.length
        self.next_record = self._start // record_bytes
        self.last_record = (self._end - 1) // record_bytes

    def feed(self, stretch: Stretch) -> None:
        """Hash of `stretch` what comes next, if it is in there. For any thread."""
        if not self.complete and stretch.first <= self.next_record <= stretch.last:
            start = max(self._start, self.next_record * self._record_bytes)
            self._sha256.update(stretch.part(start, self._end))
            self.next_record = stretch.last + 1

    @property
    def complete(self) -> bool:
        """Whether the last record has been fed."""
        return self.next_record > self.last_record

    def matches(self) -> bool:
        """Whether the bytes are those that were archived. For a complete one."""
        return self._sha256.digest() == self._digest


class WholeFileChecks:
    """The checks under way and what came of those before. For the trio thread."""

    def __init__(self, record_bytes: int) -> None:
        self._record_bytes = record_bytes
        # By tape file and position of the extent.
        self._armed: OrderedDict[Key, WholeFileCheck] = OrderedDict()
        self._verified: OrderedDict[Key, bool] = OrderedDict()

    def verdict(self, extent: Extent) -> bool | None:
        """Whether the bytes of `extent` are right; None while nobody knows."""
        return self._verified.get(_name(extent))

    def arm(self, extent: Extent, digest: bytes) -> None:
        """Have the bytes of `extent`, which is not empty, hashed as its records come by."""
        name = _name(extent)
        if name in self._armed or name in self._verified:
            return
        self._armed[name] = WholeFileCheck(extent, digest, self._record_bytes)
        while len(self._armed) > _CHECKS_KEPT:
            self._armed.popitem(last=False)

    def take(self, sequence: int, first: int, last: int) -> list[WholeFileCheck]:
        """The checks that records `first` to `last` of a tape file carry on, locked."""
        found = []
        for check in self._armed.values():
            if check.sequence == sequence and first <= check.next_record <= last:
                if check.lock.locked():
                    continue
                check.lock.acquire_nowait()
                found.append(check)
        return found

    def give_back(self, checks: Iterable[WholeFileCheck]) -> None:
        """What `take` gave, by the same task; complete ones have their verdict from now on."""
        for check in checks:
            check.lock.release()
        for name in [name for name, check in self._armed.items() if check.complete]:
            self.note(name, matches=self._armed.pop(name).matches())

    async def catch_up(
        self, extent: Extent, cached: Callable[[Key], Stretch | None], *, to_the_end: bool
    ) -> None:
        """Feed the check of `extent`, if there is one, with what `cached` has of its records.

        Who is about to give away the last byte (`to_the_end`) waits for a run that is hashing it:
        a reader who finds the last records on this host's disk is faster than that.
        """
        check = self._armed.get(_name(extent))
        if check is None:
            return
        if not to_the_end and cached((check.sequence, check.next_record)) is None:
            return
        async with check.lock:
            while stretches := _in_a_row(check, cached):
                await trio.to_thread.run_sync(_feed, check, stretches)
        self.give_back(())

    def note(self, name: Key, *, matches: bool) -> None:
        """The extent at this tape file and position has been hashed."""
        self._verified[name] = matches
        while len(self._verified) > _VERIFIED_KEPT:
            self._verified.popitem(last=False)


def _name(extent: Extent) -> Key:
    return extent.sequence, extent.position


def _in_a_row(check: WholeFileCheck, cached: Callable[[Key], Stretch | None]) -> list[Stretch]:
    stretches: list[Stretch] = []
    record = first = check.next_record
    while record <= check.last_record and record < first + _BATCH_COUNT:
        stretch = cached((check.sequence, record))
        if stretch is None:
            break
        stretches.append(stretch)
        record = stretch.last + 1
    return stretches


def _feed(check: WholeFileCheck, stretches: Iterable[Stretch]) -> None:
    for stretch in stretches:
        check.feed(stretch)
