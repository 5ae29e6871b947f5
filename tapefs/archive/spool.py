"""The spool: one plain local file per inode that has bytes here, under `spool/XX/INO`.

This module only handles files; which bytes of them count is in the catalog's `staged` rows. A spool
file has the same offsets as the file it stands for and is sparse where bytes are not here.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tapefs.errors import StateUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_FANOUT: Final = 256
# Up to this share of the spool's room is used for what is on tape as well.
CACHE_SHARE: Final = 0.5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Spool:
    """Files of staged and cached content below one directory.

    `used_bytes` counts the bytes that the catalog calls resident; `contents` keeps it.

    A file is never deleted at once: after a crash the catalog may be the one from before, and it
    must find what it believes in. `remove` dooms a file, `condemn` lists the doomed ones before a
    durable commit of the catalog, and `execute` deletes them after it. While an archive burst
    reads, nothing is executed.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.directory: Final = directory
        # Names are made as text: there are several for each small file.
        self._root = os.fspath(directory)
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._pinned = False
        self._doomed: set[int] = set()
        self._condemned: set[int] = set()
        self._new_in: set[int] = set()
        is_new = not directory.exists()
        try:
            for number in range(_FANOUT):
                (directory / f"{number:02x}").mkdir(parents=True, exist_ok=True)
            if is_new:
                # What a later fsync makes last must not hang on a directory that does not.
                _sync_directory(directory)
                _sync_directory(directory.parent)
        except OSError as exc:
            raise StateUnusable(f"the spool {directory} cannot be created: {exc.strerror}") from exc

    def path(self, ino: int) -> Path:
        """Where the spool file of `ino` is, or would be."""
        return Path(self._name(ino))

    def _name(self, ino: int) -> str:
        return f"{self._root}/{ino % _FANOUT:02x}/{ino}"

    def open(self, ino: int, *, is_new: bool = False) -> int:
        """A file descriptor on the spool file of `ino`, created when missing. Caller closes.

        `is_new`: probably there is none yet.
        """
        self.keep(ino)
        path = self._name(ino)
        if not is_new:
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._new_in.add(ino % _FANOUT)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def open_for_reading(self, ino: int) -> int:
        """A file descriptor on the spool file of `ino`, which must exist. Caller closes. For any
        thread. Raises OSError."""
        return os.open(self._name(ino), os.O_RDONLY | os.O_CLOEXEC)

    @contextmanager
    def reading(self, ino: int) -> Iterator[int]:
        """`open_for_reading`, closed at the end."""
        fd = self.open_for_reading(ino)
        try:
            yield fd
        finally:
            os.close(fd)

    def file_bytes(self, ino: int) -> int:
        """Length of the spool file of `ino`; 0 when there is none."""
        try:
            return os.stat(self._name(ino)).st_size
        except FileNotFoundError:
            return 0

    def sync_directories(self) -> None:
        """Make the names of spool files created so far survive power loss."""
        for number in self._new_in:
            _sync_directory(self.directory / f"{number:02x}")
        self._new_in.clear()

    def remove(self, ino: int) -> None:
        """The spool file of `ino` is not needed any more, once the catalog durably says so."""
        self._doomed.add(ino)

    def keep(self, ino: int) -> None:
        """The spool file of `ino` is needed again: something is written to it."""
        self._doomed.discard(ino)
        self._condemned.discard(ino)

    @property
    def pinned(self) -> bool:
        """Whether a burst reads, and nothing is deleted."""
        return self._pinned

    @property
    def has_doomed(self) -> bool:
        """Whether some file waits for a durable commit to be deleted."""
        return bool(self._doomed or self._condemned) and not self._pinned

    def condemn(self) -> None:
        """A durable commit of the catalog begins: it covers all removals so far."""
        self._condemned |= self._doomed
        self._doomed.clear()

    def execute(self, count_max: int) -> bool:
        """Delete up to `count_max` condemned files, after the commit. False when none is left."""
        while self._condemned and count_max and not self._pinned:
            with suppress(FileNotFoundError):
                os.unlink(self._name(self._condemned.pop()))
            count_max -= 1
        return bool(self._condemned) and not self._pinned

    def pin(self) -> None:
        """A burst begins to read: delete nothing until `unpin`. One burst at a time."""
        assert not self._pinned, "two bursts at once"
        self._pinned = True

    def unpin(self) -> None:
        """The burst has ended."""
        self._pinned = False

    def pressure(self) -> float:
        """How full the spool is, 0.0 to 1.0 and beyond."""
        return self.used_bytes / self.limit_bytes

    def sweep(self, known: set[int]) -> int:
        """Delete spool files of inodes not in `known` (left by a crash). Returns how many."""
        count = 0
        for number in range(_FANOUT):
            for name in os.listdir(self.directory / f"{number:02x}"):
                if not name.isdigit() or int(name) not in known:
                    (self.directory / f"{number:02x}" / name).unlink()
                    count += 1
        return count


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def punch(fd: int, start: int, end: int) -> None:
    """Give the disk blocks under [start, end) back; the file keeps its size. Raises OSError."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(fd, mode, start, end - start) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
