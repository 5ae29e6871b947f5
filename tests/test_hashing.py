"""Hashing beside other work gives the hashes of what was handed over, in its order."""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tapefs.volume.hashing import ContentHashes

if TYPE_CHECKING:
    from collections.abc import Callable


class AtTheLastMoment(Executor):
    """Does what it is asked for only when somebody waits for it."""

    class _Late(Future[Any]):
        def __init__(self, work: Callable[[], Any]) -> None:
            super().__init__()
            self._work = work

        def result(self, timeout: float | None = None) -> Any:
            if not self.done():
                self.set_result(self._work())
            return super().result(timeout)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._Late(lambda: fn(*args, **kwargs))


@pytest.mark.parametrize("executor", [AtTheLastMoment(), ThreadPoolExecutor(1)])
@given(pieces=st.lists(st.binary(max_size=5000), max_size=6))
def test_the_hashes_are_those_of_all_pieces(executor: Executor, pieces: list[bytes]) -> None:
    hashes = ContentHashes(executor)
    buffers = [bytearray(5000), bytearray(5000)]
    for number, piece in enumerate(pieces):
        # As records go round: the one before may still be at work, the one before that is not.
        buffer = buffers[number % 2]
        buffer[: len(piece)] = piece
        last = number == len(pieces) - 1
        hashes.update(memoryview(buffer)[: len(piece)], last=last)
    whole = b"".join(pieces)
    expected = hashlib.sha256(whole).digest(), xxhash.xxh3_128_digest(whole)
    assert hashes.digests() == expected
    assert hashes.digests() == expected


def test_an_error_in_the_other_thread_is_not_lost() -> None:
    class Failing(AtTheLastMoment):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            failed: Future[Any] = Future()
            failed.set_exception(MemoryError("no room"))
            return failed

    hashes = ContentHashes(Failing())
    hashes.update(memoryview(b"first"), last=False)
    with pytest.raises(MemoryError, match="no room"):
        hashes.update(memoryview(b"second"), last=True)
