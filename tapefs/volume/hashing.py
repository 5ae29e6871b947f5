"""The hashes of one member's content, computed beside everything else that happens to it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future


class ContentHashes:
    """SHA-256 and xxh128 of content that comes in pieces. For one thread.

    SHA-256 takes longer than all else that is done to a byte on its way to tape: `executor`, with
    one worker, has a piece hashed while the next one is read.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._sha256 = hashlib.sha256()
        self._xxh128 = xxhash.xxh3_128()
        self._under_way: Future[Any] | None = None

    def update(self, piece: memoryview, *, last: bool) -> None:
        """Take the next piece, which must stay as it is until the next call of a method here."""
        self._wait()
        if last:
            self._sha256.update(piece)
        else:
            self._under_way = self._executor.submit(self._sha256.update, piece)
        self._xxh128.update(piece)

    def digests(self) -> tuple[bytes, bytes]:
        """SHA-256 and xxh128 of everything so far."""
        self._wait()
        return self._sha256.digest(), self._xxh128.digest()

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None
