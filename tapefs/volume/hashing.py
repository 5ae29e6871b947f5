"""The hashes of one member's content, computed beside everything else that happens to it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import xxhash

from tapefs.errors import SpoolMismatch

if TYPE_CHECKING:
    from collections.abc import Callable
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


class KnownHashes:
    """SHA-256 and xxh128 that somebody else takes of the content; the xxh128 is taken again."""

    def __init__(self, digests: Callable[[], tuple[bytes, bytes] | None]) -> None:
        """`digests` waits for SHA-256 and xxh128; None where they could not be taken."""
        self._digests = digests
        self._xxh128 = xxhash.xxh3_128()

    def update(self, piece: memoryview, *, last: bool) -> None:
        """Take the next piece."""
        self._xxh128.update(piece)

    def digests(self) -> tuple[bytes, bytes]:
        """SHA-256 and xxh128 of everything so far. Raises SpoolMismatch: they are of others."""
        known = self._digests()
        if known is None or known[1] != self._xxh128.digest():
            raise SpoolMismatch("a file is not what was hashed")
        return known
