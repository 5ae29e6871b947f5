"""Reading many files with little motion of the tape, for what they hash to or to have them near."""

from __future__ import annotations

import hashlib
import stat
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xxhash

from tapefs.archive.reading_order import waiting_in_reading_order
from tapefs.archive.retrieval import CHANGED, NotGiven, Retrieved
from tapefs.catalog import RecallOrder
from tapefs.errors import DataMismatch, MediumFailed, TapefsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tapefs.archive.retrieval import Source
    from tapefs.catalog import Item
    from tapefs.entries import Inode

    Report = Callable[[dict[str, Any]], None]

_READ_BYTES: Final = 1 << 20
_PROGRESS_S: Final = 0.25


def hashed_in_tape_order(
    source: Source,
    origins: Sequence[bytes],
    is_wanted: Callable[[Inode], bool],
    report: Report,
    message: str,
) -> Iterator[tuple[Item, tuple[bytes, bytes] | TapefsError]]:
    """Each wanted file at and below `origins` that has content, in the order to read them in.

    With it, SHA-256 and xxh128 of what was read, or what kept it from being read. Memory does not
    grow with the number of files. Raises what keeps `source` from reading at all.
    """
    with ExitStack() as opened:
        work = opened.enter_context(tempfile.TemporaryDirectory(prefix="tapefs-order-"))
        order = RecallOrder.open(Path(work) / "order.sqlite")
        opened.callback(order.close)
        # Where it would go is of no matter here, but tells items apart.
        order.begin(
            item
            for number, origin in enumerate(origins)
            for item in source.items(origin, b"%d" % number)
            if stat.S_ISREG(item.inode.mode) and item.inode.size and is_wanted(item.inode)
        )
        _, total_bytes = order.content()
        told = _Told(report, message, total_bytes)
        for item in waiting_in_reading_order(order, source.layout()):
            try:
                yield item, _hash(source, item, told)
            except (DataMismatch, MediumFailed, NotGiven) as exc:
                yield item, exc


def recall_here(source: Source, origins: Sequence[bytes], report: Report) -> Retrieved:
    """Read what is at and below `origins`, so that a mount has it near, and prove it.

    Raises what keeps `source` from reading at all.
    """
    began_s, result = time.monotonic(), Retrieved()
    found = hashed_in_tape_order(source, origins, lambda _: True, report, "recalling")
    for item, hashes in found:
        if isinstance(hashes, NotGiven):
            result.refuse(item, hashes)
        elif isinstance(hashes, TapefsError):
            result.damage(item, hashes)
        elif item.inode.sha256 not in (None, hashes[0]):
            result.damage(item, "its SHA-256 is not the one it was archived with")
        else:
            result.files_count += 1
            result.copied_bytes += item.inode.size
    result.duration_s = time.monotonic() - began_s
    return result


class _Told:
    """Says how far the reading is, now and then."""

    def __init__(self, report: Report, message: str, total_bytes: int) -> None:
        self._report = report
        self._message = message
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._told_s = time.monotonic()

    def read(self, length: int) -> None:
        self._done_bytes += length
        if time.monotonic() - self._told_s >= _PROGRESS_S:
            self._told_s = time.monotonic()
            self._report(
                {
                    "event": "progress",
                    "phase": "recall",
                    "message": self._message,
                    "done_bytes": self._done_bytes,
                    "total_bytes": self._total_bytes,
                }
            )


def _hash(source: Source, item: Item, told: _Told) -> tuple[bytes, bytes]:
    sha256, xxh128, size = hashlib.sha256(), xxhash.xxh3_128(), item.inode.size
    with source.opened(item) as read_at:
        for offset in range(0, size, _READ_BYTES):
            length = min(_READ_BYTES, size - offset)
            data = read_at(offset, length)
            if len(data) != length:
                raise NotGiven(CHANGED)
            sha256.update(data)
            xxh128.update(data)
            told.read(length)
    return sha256.digest(), xxh128.digest()
