"""Getting data back: many files of a volume into a directory, proven on the way.

Records are checked against their CRC-32C, a file against the catalog's SHA-256 before it gets its
name. What was cut off is simply done again: what is there is hashed and compared, and left alone
where it differs. Blocking; memory does not grow with the number of files.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import stat
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from tapefs.archive import placement
from tapefs.archive.reading_order import waiting_in_reading_order
from tapefs.catalog import RecallOrder, remove_database
from tapefs.entries import printable
from tapefs.errors import (
    DataMismatch,
    DriveBusy,
    ExitCode,
    Fault,
    MediumFailed,
    MountpointUnusable,
    SpoolFull,
    TapefsError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tapefs.archive.reading_order import TapeLayout
    from tapefs.catalog import Item

    Report = Callable[[dict[str, Any]], None]
    ReadAt = Callable[[int, int], bytes]

ORDER_NAME: Final = ".tapefs-recall.sqlite"
LISTED_MAX: Final = 1000
_COPY_BYTES: Final = 1 << 20
_PROGRESS_S: Final = 0.25
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_hard_link: Final = partial(os.link, follow_symlinks=False)
_DIFFERS: Final = "something else is there; --overwrite replaces it"
CHANGED: Final = "it was changed while it was read; run the same command again"
# With these nothing more can be put there.
_NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
_NO_PLACE: Final = frozenset((errno.EIO, errno.EROFS, errno.ENODEV, errno.ESTALE))


class NotGiven(TapefsError):
    """The source does not give a file now, though nothing is wrong with the tape."""

    fault = Fault.OPERATOR
    exit_code = ExitCode.INCOMPLETE


class Source(Protocol):
    """A volume that can be read. Methods raise TapefsError when it cannot be, not any more.

    `volume` is its UUID.
    """

    volume: str

    def items(self, origin: bytes, path: bytes) -> Iterator[Item]:
        """What is at and below `origin` on the volume, directories before what is in them.

        `path` is where that goes; with an empty one the root directory itself is no item.
        """
        ...

    def layout(self) -> TapeLayout | None:
        """How the tape lies; None when nobody knows."""
        ...

    def xattrs(self, item: Item) -> dict[bytes, bytes]:
        """The extended attributes of `item`."""
        ...

    def opened(self, item: Item) -> AbstractContextManager[ReadAt]:
        """Reads `length` bytes at `offset` of the file `item`, fewer only at its end.

        Raises DataMismatch or MediumFailed when just these cannot be had; NotGiven, at the end of
        the block at the latest, when the file is not what it was.
        """
        ...


@dataclass(slots=True)
class Retrieved:
    """What became of a retrieval. Of `damaged` and `refused` LISTED_MAX are listed.

    `files_count` and `copied_bytes` are what was copied, `found_count` files were there already,
    proven. `others_count`: directories, links, nodes. `damaged`: path and what is wrong with it on
    tape. `refused`: path and why it is not, or not as it was, at its place.
    """

    files_count: int = 0
    copied_bytes: int = 0
    found_count: int = 0
    others_count: int = 0
    damaged_count: int = 0
    refused_count: int = 0
    damaged: list[tuple[bytes, str]] = field(default_factory=list)
    refused: list[tuple[bytes, str]] = field(default_factory=list)
    # What was not kept in every respect: a sentence about a file, the first one, and how many.
    remarks: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    duration_s: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether everything that was asked for is at its place."""
        return not (self.damaged_count or self.refused_count)

    def damage(self, item: Item, reason: object) -> None:
        """The tape does not give what was written."""
        self.damaged_count += 1
        if len(self.damaged) < LISTED_MAX:
            self.damaged.append((item.path, str(reason)))

    def refuse(self, item: Item, reason: object) -> None:
        """It is not at its place."""
        self.refused_count += 1
        if len(self.refused) < LISTED_MAX:
            self.refused.append((item.path, str(reason)))

    def remark(self, item: Item, sentence: str) -> None:
        """`sentence`, with `{}` for the file, says what of `item` was not kept."""
        if sentence in self.remarks or len(self.remarks) < LISTED_MAX:
            first, count = self.remarks.get(sentence, (item.path, 0))
            self.remarks[sentence] = (first, count + 1)

    def add(self, other: Retrieved) -> None:
        """What became of another retrieval of the same command."""
        for name in (
            "files_count", "copied_bytes", "found_count", "others_count", "damaged_count",
            "refused_count", "duration_s",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.damaged += other.damaged[: LISTED_MAX - len(self.damaged)]
        self.refused += other.refused[: LISTED_MAX - len(self.refused)]
        for sentence, (first, count) in other.remarks.items():
            known, before = self.remarks.get(sentence, (first, 0))
            self.remarks[sentence] = (known, before + count)

    def remarked(self) -> list[str]:
        """The remarks for people."""
        return [
            sentence.format(printable(first) + (f" and {count - 1:,} others" if count > 1 else ""))
            for sentence, (first, count) in self.remarks.items()
        ]


@contextmanager
def destination(target: Path) -> Iterator[int]:
    """A descriptor of the directory `target`, for one retrieval at a time.

    Raises MountpointUnusable when it is no directory that can be used, DriveBusy.
    """
    try:
        root = os.open(target, placement.OPEN_DIRECTORY & ~os.O_NOFOLLOW)
    except OSError as exc:
        raise MountpointUnusable(
            f"{target} is no usable directory: {exc.strerror}; name one that exists with --to"
        ) from exc
    try:
        try:
            fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise DriveBusy(
                f"another recall into {target} is running; wait for its end, or name another "
                "directory"
            ) from exc
        yield root
    finally:
        os.close(root)


def retrieve(
    source: Source,
    wanted: Sequence[tuple[bytes, bytes]],
    target: Path,
    report: Report,
    *,
    overwrites: bool = False,
) -> Retrieved:
    """Copy what `wanted` names (where it is on the volume, where it goes) into `target`.

    `report` gets progress, and may raise to end this. Raises UsageError when two things would go
    to one path; MountpointUnusable, SpoolFull when `target` takes nothing more; DriveBusy; and what
    keeps `source` from reading at all. Then, too, what is at its place is whole.
    """
    with ExitStack() as opened:
        root = opened.enter_context(destination(target))
        order_path = target / ORDER_NAME
        order = RecallOrder.open(order_path)
        opened.callback(order.close)
        run = _Retrieval(source, order, root, target, report, overwrites=overwrites)
        run.list(wanted)
        run.copy_all()
        order.close()
        if run.found.is_complete:
            remove_database(order_path)
        return run.found


class _Retrieval:
    """One retrieval from one volume."""

    def __init__(
        self,
        source: Source,
        order: RecallOrder,
        root: int,
        target: Path,
        report: Report,
        *,
        overwrites: bool,
    ) -> None:
        self._source = source
        self._order = order
        self._root = root
        self._target = target
        self._report = report
        self._overwrites = overwrites
        self._began_s = self._told_s = time.monotonic()
        self._done_bytes = self._total_bytes = 0
        self.found = Retrieved()

    # -- what is to be done

    def list(self, wanted: Sequence[tuple[bytes, bytes]]) -> None:
        """Take note of everything that is wanted."""

        def items() -> Iterator[Item]:
            for origin, path in wanted:
                for item in self._source.items(origin, path):
                    self._tell("listing what is to be recalled", item)
                    yield item

        try:
            self._order.begin(items())
        except FileExistsError as exc:
            raise UsageError(
                "two of the things to recall would get the same name; recall them one by one, "
                "into different directories"
            ) from exc
        _, self._total_bytes = self._order.content()

    def copy_all(self) -> None:
        """Directories, what is there already, files as the tape has them, links, attributes."""
        for item in self._order.directories():
            self._try(item, self._make_directory)
        for item in self._order.nodes():
            self._try(item, self._make_node)
        for item in self._order.files():
            self._try(item, self._prove)
        for item in waiting_in_reading_order(self._order, self._source.layout()):
            self._try(item, self._copy)
        for item, first in self._order.further_names():
            self._try(item, partial(self._link, first))
        for item in self._order.directories_upwards():
            self._try(item, self._finish_directory)
        self._tell("making it last")
        self._make_last()
        self.found.duration_s = time.monotonic() - self._began_s

    def _try(self, item: Item, action: Callable[[Item], None]) -> None:
        """What goes wrong with one item must not keep the others from their places."""
        try:
            action(item)
        except (DataMismatch, MediumFailed) as exc:
            self.found.damage(item, exc)
        except NotGiven as exc:
            self.found.refuse(item, exc)
        except FileExistsError:
            self.found.refuse(item, _DIFFERS)
        except OSError as exc:
            self._judge(exc)
            self.found.refuse(item, exc.strerror)

    def _judge(self, exc: OSError) -> None:
        """Raise when no other item can do better."""
        if exc.errno in _NO_ROOM:
            raise SpoolFull(
                f"{self._target} is full; make room, then run the same command again"
            ) from exc
        if exc.errno in _NO_PLACE:
            raise MountpointUnusable(
                f"{self._target} does not keep what is put there ({exc.strerror}); look after its "
                "disk, then run the same command again"
            ) from exc

    # -- directories and what has no content

    @contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        directory, _, name = path.rpartition(b"/")
        with placement.opened_below(self._root, directory) as fd:
            yield fd, name

    def _make_directory(self, item: Item) -> None:
        with self._parent(item.path) as (directory, name):
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=directory)
            if not placement.is_directory(directory, name):
                raise FileExistsError

    def _finish_directory(self, item: Item) -> None:
        with self._parent(item.path) as (directory, name):
            if not placement.is_directory(directory, name):
                return  # refused before
            self._set_attributes(item, directory, name)
        self.found.others_count += 1

    def _make_node(self, item: Item) -> None:
        with self._parent(item.path) as (directory, name):
            there = placement.status_of(directory, name)
            if there is None or not placement.is_same_node(item.inode, directory, name, there):
                self._clear(item, directory, name, there)
                placement.make_node(item.inode, directory, name)
            self._set_attributes(item, directory, name)
        self._order.note_done(item)
        self.found.others_count += 1

    def _link(self, first: bytes, item: Item) -> None:
        with self._parent(first) as (source, source_name), self._parent(item.path) as place:
            directory, name = place
            there = placement.status_of(directory, name)
            original = os.stat(source_name, dir_fd=source, follow_symlinks=False)
            if there is None or not os.path.samestat(there, original):
                self._clear(item, directory, name, there)
                _hard_link(source_name, name, src_dir_fd=source, dst_dir_fd=directory)
        self.found.others_count += 1

    def _clear(self, item: Item, directory: int, name: bytes, there: os.stat_result | None) -> None:
        """Make room for `name`. Raises FileExistsError unless what is there may go: it may be
        overwritten, or is the same, from before the item's first name was made anew.
        """
        if there is None:
            return
        may_go = self._overwrites or self._is_equal(item, directory, name, there)
        if stat.S_ISDIR(there.st_mode) or not may_go:
            raise FileExistsError
        os.unlink(name, dir_fd=directory)

    def _set_attributes(self, item: Item, directory: int, name: bytes) -> None:
        xattrs = self._source.xattrs(item)
        remark = partial(self.found.remark, item)
        placement.set_attributes(item.inode, xattrs, directory, name, remark)

    # -- files

    def _prove(self, item: Item) -> None:
        """What is there already counts if its content is what it has to be."""
        try:
            with self._parent(item.path) as (directory, name):
                there = placement.status_of(directory, name)
                if there is not None:
                    self._prove_content(item, directory, name, there)
        except OSError:
            self._order.note_dismissed(item)
            self._done_bytes += item.inode.size
            raise

    def _prove_content(
        self, item: Item, directory: int, name: bytes, there: os.stat_result
    ) -> None:
        is_equal = self._is_equal(item, directory, name, there)
        if is_equal is None:
            return  # only the tape can tell
        if is_equal:
            self._is_there(item, directory, name)
        elif not self._overwrites or stat.S_ISDIR(there.st_mode):
            raise FileExistsError

    def _is_equal(
        self, item: Item, directory: int, name: bytes, there: os.stat_result
    ) -> bool | None:
        """Whether what has the name already is what has to be there; None: only the tape knows."""
        if not stat.S_ISREG(item.inode.mode):
            return placement.is_same_node(item.inode, directory, name, there)
        if not stat.S_ISREG(there.st_mode) or there.st_size != item.inode.size:
            return False
        known = item.inode.sha256 or self._order.proof(self._source.volume, item.inode)
        return None if known is None else self._hash_of_file(item, directory, name) == known

    def _is_there(self, item: Item, directory: int, name: bytes) -> None:
        self._set_attributes(item, directory, name)
        self._order.note_done(item)
        self._done_bytes += item.inode.size
        self.found.found_count += 1

    def _copy(self, item: Item) -> None:
        done_bytes = self._done_bytes + item.inode.size
        try:
            with self._parent(item.path) as (directory, name):
                if self._overwrites or placement.status_of(directory, name) is None:
                    self._copy_to(item, directory, name)
                else:
                    self._compare(item, directory, name)
        finally:
            self._done_bytes = done_bytes

    def _copy_to(self, item: Item, directory: int, name: bytes) -> None:
        making = b".tapefs-recalling-%d" % item.inode.ino
        replaces = self._overwrites
        with placement.made_whole(directory, making, name, replaces=replaces) as fd:
            os.ftruncate(fd, item.inode.size)
            sha256 = self._read_all(
                item, lambda offset, data: placement.write_without_zeros(fd, offset, data)
            )
            self._set_attributes(item, directory, making)
        self.found.files_count += 1
        self.found.copied_bytes += item.inode.size
        self._proven(item, sha256)

    def _compare(self, item: Item, directory: int, name: bytes) -> None:
        """Something of the right size is there, and nobody but the tape knows what it has to be."""
        sha256 = self._read_all(item, lambda _, __: None)
        if self._hash_of_file(item, directory, name) != sha256:
            raise FileExistsError
        self._is_there(item, directory, name)
        self._proven(item, sha256)

    def _proven(self, item: Item, sha256: bytes) -> None:
        self._order.note_done(item)
        if item.inode.sha256 is None:
            self._order.note_proof(self._source.volume, item.inode, sha256)

    def _read_all(self, item: Item, take: Callable[[int, bytes], None]) -> bytes:
        """SHA-256 of the content, which `take` got piece by piece.

        Raises DataMismatch when it is not the one that the catalog knows.
        """
        size, sha256 = item.inode.size, hashlib.sha256()
        with self._source.opened(item) as read_at:
            for offset in range(0, size, _COPY_BYTES):
                length = min(_COPY_BYTES, size - offset)
                data = read_at(offset, length)
                if len(data) != length:
                    raise NotGiven(CHANGED)
                sha256.update(data)
                take(offset, data)
                self._done_bytes += length
                self._tell("recalling", item)
        if item.inode.sha256 not in (None, sha256.digest()):
            raise DataMismatch("its SHA-256 is not the one it was archived with")
        return sha256.digest()

    def _hash_of_file(self, item: Item, directory: int, name: bytes) -> bytes:
        sha256, offset = hashlib.sha256(), 0
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            while data := os.pread(fd, _COPY_BYTES, offset):
                sha256.update(data)
                offset += len(data)
                self._tell("proving what is there already", item)
        finally:
            os.close(fd)
        return sha256.digest()

    # -- the end, and on the way there

    def _make_last(self) -> None:
        """Everything is on the disk; raises what the disk says against it."""
        # Of os.sync() no error comes back; of fsync(2) for each of a million files no end.
        if _LIBC.syncfs(self._root):
            code = ctypes.get_errno()
            error = OSError(code, os.strerror(code))
            self._judge(error)
            raise MountpointUnusable(f"{self._target}: {error.strerror}")

    def _tell(self, message: str, item: Item | None = None) -> None:
        now_s = time.monotonic()
        if item is not None and now_s - self._told_s < _PROGRESS_S:
            return
        self._told_s = now_s
        self._report(
            {
                "event": "progress",
                "phase": "recall",
                "message": message,
                "path": None if item is None else printable(item.path),
                "done_bytes": min(self._done_bytes, self._total_bytes),
                "total_bytes": self._total_bytes,
            }
        )
