"""A cartridge that is a file: objects (records and filemarks) in a SIMH .tap image.

Objects are numbered from 0 as READ POSITION counts them (SSC-4 4.2.7). The cartridge can append at
its end, cut everything behind an object, and read one object; where the head stands and what the
drive still holds in its buffer is the business of `tapefs.emulator.target`.

At any moment the file is what the writes so far made of it: there is no index to update and no
trailer to write, so the image is valid whenever no write is in progress.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs.emulator import cartridge_memory, tap
from tapefs.emulator.cartridge_memory import CartridgeMemory
from tapefs.emulator.personality import DEFAULT_PERSONALITY
from tapefs.errors import DamagedTape, DriveBusy, MediumFailed, NoDrive, StateUnusable, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Self

    from tapefs.emulator.personality import Personality

_SERIAL_PREFIX: Final = "VT"
_SERIAL_RANDOM_BYTES: Final = 5
# The host is told to begin writing to its disk after so much, lest all of it be left for `sync`.
_WRITE_OUT_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class RecordRead:
    """One record as it came from the tape: its full length, and whether its data can be trusted."""

    length_bytes: int
    readable: bool


class VirtualCartridge:
    """One image, held exclusively from `open` to `close` (shared when opened read-only).

    Not thread-safe: one drive, one caller. Memory in use is 8 bytes an object.
    """

    def __init__(
        self, path: Path, fd: int, memory: CartridgeMemory, *, write_protected: bool
    ) -> None:
        """Use `create` or `open`; this takes over `fd`, scans it and raises DamagedTape."""
        self.path: Final = path
        self.memory: Final = memory
        self.write_protected: Final = write_protected
        self._fd: int | None = fd
        size_bytes = os.fstat(fd).st_size
        self._layout = tap.scan(fd, size_bytes, str(path))
        self._size_bytes = size_bytes
        self._written_since_load = False
        self._synced = True
        # Up to here the host was told to write.
        self._written_out_bytes = size_bytes
        self._words = (bytearray(tap.WORD_BYTES), bytearray(tap.WORD_BYTES + 1))

    @classmethod
    def create(
        cls, path: Path, personality: str, capacity_bytes: int, serial: str | None = None
    ) -> Self:
        """Make a blank cartridge and open it. Raises UsageError when something is at `path`
        already, and StateUnusable when it cannot be made there.
        """
        serial = serial or _SERIAL_PREFIX + secrets.token_hex(_SERIAL_RANDOM_BYTES).upper()
        memory = CartridgeMemory(personality, capacity_bytes, serial)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            cartridge_memory.save(cartridge_memory.memory_path(path), memory)
        except FileExistsError as exc:
            raise UsageError(
                f"{path} exists already; open it as it is or choose another name"
            ) from exc
        except OSError as exc:
            raise StateUnusable(
                f"no cartridge can be made at {path}: {exc.strerror}; choose another place"
            ) from exc
        return cls.open(path)

    @classmethod
    def open(
        cls, path: Path, *, read_only: bool = False, default: CartridgeMemory | None = None
    ) -> Self:
        """Open the image at `path`.

        An image without a memory chip is taken for `default`, or for the default personality's
        cartridge. Read-only opening locks out writers, not other readers, and
        changes nothing on disk. Raises NoDrive when nothing is there, DriveBusy when another
        process uses it, DamagedTape when image or chip cannot be understood, UsageError when it
        is no regular file, and StateUnusable when permissions forbid even reading.
        """
        fd, writable = _open_image(path, read_only=read_only)
        try:
            mode = os.fstat(fd).st_mode
            _lock(fd, path, mode, shared=read_only)
            chip = cartridge_memory.load(cartridge_memory.memory_path(path))
            memory = chip or default or found_memory(path)
            # Root may write to any file; the mode bits are the tab all the same.
            tab_set = not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
            protected = tab_set or not writable or memory.write_protected
            cartridge = cls(path, fd, memory, write_protected=protected)
            if chip is None and not cartridge.object_count and not tap.is_empty(fd):
                # With a chip it is a cartridge of ours whose first record was cut off.
                raise DamagedTape(  # noqa: TRY301
                    f"{path} is no SIMH tape image that tapefs can read: nothing in it is a "
                    "record; name another file"
                )
            return cartridge
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Let go of the image. Does not sync; may be called twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def object_count(self) -> int:
        """Records and filemarks on tape: the number that an object at end of data would get."""
        return len(self._layout.offsets)

    @property
    def filemark_count(self) -> int:
        """Filemarks on tape."""
        return len(self._layout.marks)

    @property
    def end_bytes(self) -> int:
        """Bytes of the image in use, which is what capacity is counted in."""
        return self._layout.end_bytes

    def offset_bytes(self, block: int) -> int:
        """Where object `block` starts in the image; the end for the number after the last."""
        offsets = self._layout.offsets
        return offsets[block] if block < len(offsets) else self._layout.end_bytes

    def is_filemark(self, block: int) -> bool:
        """Whether object `block`, which must exist, is a filemark."""
        return self.offset_bytes(block + 1) - self._layout.offsets[block] == tap.WORD_BYTES

    def filemarks_before(self, block: int) -> int:
        """How many filemarks stand before object `block`: its file number."""
        return bisect_left(self._layout.marks, block)

    def filemark(self, index: int) -> int:
        """Object number of the filemark `index`, counted from 0, which must exist."""
        return self._layout.marks[index]

    def read_record(self, block: int, into: memoryview) -> RecordRead:
        """Read record `block` into `into`, as much of it as fits, in one system call.

        Raises MediumFailed when the image no longer is what it was when it was opened.
        """
        start_bytes = self._layout.offsets[block]
        padded_bytes = self.offset_bytes(block + 1) - start_bytes - tap.FRAMING_BYTES
        wanted_bytes = min(len(into), padded_bytes)
        spare_bytes = padded_bytes - wanted_bytes
        header, trailer = self._words
        buffers: list[bytearray | memoryview] = [header, into[:wanted_bytes]]
        whole = spare_bytes <= 1
        if whole:
            # Padding that the caller has no room for comes along in front of the trailer.
            buffers.append(memoryview(trailer)[: spare_bytes + tap.WORD_BYTES])
        expected_bytes = sum(map(len, buffers))
        got_bytes = os.preadv(self._descriptor, buffers, start_bytes)
        length_bytes, bad = tap.unpack_word(header)
        if (
            got_bytes != expected_bytes
            or tap.record_span_bytes(length_bytes) != padded_bytes + tap.FRAMING_BYTES
            or (whole and trailer[spare_bytes : spare_bytes + tap.WORD_BYTES] != header)
        ):
            raise MediumFailed(
                f"{self.path} was changed by somebody else while it was loaded; load it again"
            )
        return RecordRead(length_bytes, not bad)

    def append_records(self, records: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write records of 1 to 16,777,215 bytes after the last object, in one system call.

        Raises MediumFailed when the host cannot store them all; the image then ends where it did.
        """
        buffers: list[bytes | bytearray | memoryview] = []
        spans: list[int] = []
        for data in records:
            length_bytes = len(data)
            if not 0 < length_bytes <= tap.RECORD_BYTES_MAX:
                raise ValueError(f"a record of {length_bytes} bytes cannot be written")
            word = tap.pack_word(length_bytes)
            buffers += (word, data, b"\0" + word if length_bytes & 1 else word)
            spans.append(tap.record_span_bytes(length_bytes))
        self._append(buffers, sum(spans))
        layout = self._layout
        for span_bytes in spans:
            layout.offsets.append(layout.end_bytes)
            layout.end_bytes += span_bytes

    def append_filemarks(self, count: int) -> None:
        """Write `count` filemarks after the last object. Raises MediumFailed."""
        layout = self._layout
        span_bytes = count * tap.WORD_BYTES
        self._append([tap.pack_filemarks(count)], span_bytes)
        layout.marks.extend(range(len(layout.offsets), len(layout.offsets) + count))
        end_bytes = layout.end_bytes + span_bytes
        layout.offsets.extend(range(layout.end_bytes, end_bytes, tap.WORD_BYTES))
        layout.end_bytes = end_bytes

    def truncate(self, block: int) -> None:
        """Make object `block` and everything behind it gone, as writing at it does on tape.

        Raises MediumFailed when the host cannot shorten the file.
        """
        layout = self._layout
        end_bytes = self.offset_bytes(block)
        self._before_write()
        self._cut(end_bytes)
        del layout.offsets[block:]
        del layout.marks[bisect_left(layout.marks, block) :]
        layout.end_bytes = end_bytes

    def sync(self) -> None:
        """Return when everything written survives power loss of the host. Raises MediumFailed."""
        if not self._synced:
            with self._host_errors():
                os.fdatasync(self._descriptor)
            self._synced = True

    def count_load(self) -> None:
        """Note in the chip that a drive took the cartridge in. A protected chip stays as it is."""
        self._written_since_load = False
        if not self.write_protected:
            self.memory.load_count += 1
            self._save_memory()

    def _append(self, buffers: list[bytes | bytearray | memoryview], span_bytes: int) -> None:
        self._before_write()
        end_bytes = self._layout.end_bytes
        # A torn record or an end-of-medium word may stand behind the end of data.
        if self._size_bytes != end_bytes:
            self._cut(end_bytes)
        with self._host_errors():
            written_bytes = os.pwritev(self._descriptor, buffers, end_bytes)
        self._size_bytes = end_bytes + written_bytes
        self._write_out()
        if written_bytes != span_bytes:
            self._cut(end_bytes)
            raise MediumFailed(
                f"the file system of {self.path} took only part of it; make room there"
            )

    def _write_out(self) -> None:
        start_bytes, count = self._written_out_bytes, self._size_bytes - self._written_out_bytes
        if count >= _WRITE_OUT_BYTES:
            # Linux starts to write what is dirty there, and lets only go of what is not.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, start_bytes, count, os.POSIX_FADV_DONTNEED)
            self._written_out_bytes = self._size_bytes

    def _cut(self, size_bytes: int) -> None:
        with self._host_errors():
            os.ftruncate(self._descriptor, size_bytes)
        self._size_bytes = size_bytes
        self._written_out_bytes = min(self._written_out_bytes, size_bytes)

    def _before_write(self) -> None:
        """Change the chip's reference before the first byte, so that no crash can hide a write."""
        self._synced = False
        if not self._written_since_load:
            self.memory.volume_change_reference += 1
            self._save_memory()
            self._written_since_load = True

    def _save_memory(self) -> None:
        with self._host_errors():
            cartridge_memory.save(cartridge_memory.memory_path(self.path), self.memory)

    @property
    def _descriptor(self) -> int:
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        return self._fd

    @contextlib.contextmanager
    def _host_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise MediumFailed(
                f"the host cannot store {self.path}: {exc.strerror}; make room or repair the disk"
            ) from exc


def _open_image(path: Path, *, read_only: bool) -> tuple[int, bool]:
    """A descriptor, and whether it can be written to."""
    # Without O_NONBLOCK a fifo given by mistake would hang here for ever.
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if not read_only:
            try:
                return os.open(path, os.O_RDWR | flags), True
            except OSError as exc:
                if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
        return os.open(path, os.O_RDONLY | flags), False
    except FileNotFoundError as exc:
        raise NoDrive(
            f"there is no cartridge at {path}; create it first or correct the name"
        ) from exc
    except IsADirectoryError as exc:
        raise UsageError(f"{path} is a directory; a cartridge is a .tap file") from exc
    except OSError as exc:
        raise StateUnusable(
            f"{path} cannot be opened: {exc.strerror}; check its permissions"
        ) from exc


def _lock(fd: int, path: Path, mode: int, *, shared: bool) -> None:
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is no regular file; a cartridge is a .tap file")
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise DriveBusy(
            f"the cartridge {path} is in use by another process; unmount it there first"
        ) from exc


def found_memory(
    path: Path, personality: Personality = DEFAULT_PERSONALITY, capacity_bytes: int | None = None
) -> CartridgeMemory:
    """A chip for an image that came without one; the same path gets the same serial number."""
    capacity_bytes = capacity_bytes or personality.capacity_bytes
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return CartridgeMemory(personality.name, capacity_bytes, _SERIAL_PREFIX + digest[:10].upper())
