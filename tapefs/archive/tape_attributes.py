"""Windows into the tape: extended attributes that nobody set and that no list shows.

Scripts read where a file's bytes are and what they hash to; the names that tools for ordered
copies look for (`user.ltfs.*`) are answered where they mean the same here.
"""

from __future__ import annotations

import datetime as dt
import stat
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable

    from tapefs.catalog import Catalog, TapeView
    from tapefs.entries import Inode, TapeFile

    Answer = Callable[["TapeAttributes", Inode], bytes | None]

# Setting one of these on the root directory, to whatever value, is a sync.
SYNC: Final = (b"user.tapefs.sync", b"user.ltfs.sync")
STATE: Final = b"user.tapefs.state"
VOLUME: Final = b"user.tapefs.volume"
# For `tapefs recall`, which is another process: see `reading_order.TapeLayout`.
LAYOUT: Final = b"user.tapefs.layout"
# The whole tape is one partition, which LTFS would call a.
_PARTITION: Final = b"a"
_OWN_NAMESPACE: Final = b"user.tapefs."


class _States(Protocol):
    """What is needed of file content."""

    def state(self, ino: int) -> enum.Enum:
        """Where the content of `ino` is; the value is the word to show."""


class TapeAttributes:
    """Answers for one mount. Never waits for the tape. For the trio thread."""

    def __init__(
        self,
        catalog: Catalog,
        view: TapeView,
        contents: _States,
        problem: Callable[[], str | None] = lambda: None,
        verified_ns: Callable[[TapeFile], int] = lambda _: 0,
        layout: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        """`problem`: why nothing can be read from the tape now, if so. `verified_ns`: when a tape
        file was last read from its first to its last record; 0 if it never was. `layout`: how the
        tape lies in its drive, packed.
        """
        self._catalog = catalog
        self._view = view
        self._contents = contents
        self._unreachable_reason = problem
        self._verified_ns = verified_ns
        self._tape_layout = layout
        settings = view.settings
        self._uuid = str(settings.volume_uuid).encode()
        self._name = settings.name.encode()
        self._geometry = settings.geometry

    def value(self, ino: int, name: bytes) -> bytes | None:
        """The value of attribute `name`; None when this inode has no such attribute.

        Raises StateUnusable when the catalog cannot be read.
        """
        answer = _ANSWERS.get(name)
        return answer(self, self._catalog.inode(ino)) if answer else None

    def _volume(self, _: Inode) -> bytes:
        return self._uuid

    def _problem(self, _: Inode) -> bytes | None:
        problem = self._unreachable_reason()
        return problem.encode() if problem else None

    def _layout(self, _: Inode) -> bytes | None:
        return self._tape_layout()

    def _volume_name(self, _: Inode) -> bytes:
        return self._name

    def _generation(self, _: Inode) -> bytes:
        return b"%d" % self._view.generation_count()

    def _state(self, inode: Inode) -> bytes | None:
        if not stat.S_ISREG(inode.mode):
            return None
        return str(self._contents.state(inode.ino).value).encode()

    def _tape_file(self, inode: Inode) -> bytes | None:
        extent = self._catalog.first_extent(inode.ino)
        return b"%d" % extent.sequence if extent else None

    def _start_block(self, inode: Inode) -> bytes | None:
        extent = self._catalog.first_extent(inode.ino)
        tape_file = self._view.tape_file(extent.sequence) if extent else None
        if extent is None or tape_file is None:
            return None
        return b"%d" % self._geometry.extent_address(extent, tape_file.first_block).block

    def _partition(self, inode: Inode) -> bytes | None:
        return _PARTITION if self._catalog.first_extent(inode.ino) else None

    def _verified_at(self, inode: Inode) -> bytes | None:
        """Since when every tape file with content of this one has been verified."""
        sequences = {extent.sequence for extent in self._catalog.extents(inode.ino)}
        moments = [
            self._verified_ns(tape_file)
            for tape_file in map(self._view.tape_file, sequences)
            if tape_file is not None
        ]
        if not moments or not all(moments):
            return None
        moment = dt.datetime.fromtimestamp(min(moments) // 10**9, dt.UTC)
        return moment.isoformat().encode()

    def _sha256(self, inode: Inode) -> bytes | None:
        return inode.sha256.hex().encode() if inode.sha256 else None

    def _xxh128(self, inode: Inode) -> bytes | None:
        return inode.xxh128.hex().encode() if inode.xxh128 else None


_ANSWERS: Final[dict[bytes, Answer]] = {
    STATE: TapeAttributes._state,
    VOLUME: TapeAttributes._volume,
    LAYOUT: TapeAttributes._layout,
    b"user.tapefs.problem": TapeAttributes._problem,
    b"user.tapefs.volume-name": TapeAttributes._volume_name,
    b"user.tapefs.generation": TapeAttributes._generation,
    b"user.tapefs.tape-file": TapeAttributes._tape_file,
    b"user.tapefs.start-block": TapeAttributes._start_block,
    b"user.tapefs.verified-at": TapeAttributes._verified_at,
    b"user.tapefs.sha256": TapeAttributes._sha256,
    b"user.tapefs.xxh128": TapeAttributes._xxh128,
    b"user.ltfs.volumeUUID": TapeAttributes._volume,
    b"user.ltfs.volumeName": TapeAttributes._volume_name,
    b"user.ltfs.indexGeneration": TapeAttributes._generation,
    b"user.ltfs.partition": TapeAttributes._partition,
    b"user.ltfs.startblock": TapeAttributes._start_block,
    b"user.ltfs.hash.sha256sum": TapeAttributes._sha256,
}


def is_reserved(name: bytes) -> bool:
    """Whether no program may set or remove attribute `name`.

    Not `user.ltfs.hash.*`: tools for LTFS store what they computed, and what was stored counts.
    """
    if name.startswith(b"user.ltfs.hash."):
        return False
    return name.startswith(_OWN_NAMESPACE) or name in _ANSWERS
