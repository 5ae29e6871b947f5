"""System calls as rows of a table: each row does something in a directory and notes what it saw.

A row knows nothing of tapefs. Run in a local directory it is the oracle for the same row run in a
mount: results and errno must be equal.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

P = ParamSpec("P")

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FALLOC_FL_COLLAPSE_RANGE = 8
FALLOC_FL_ZERO_RANGE = 16
FALLOC_FL_INSERT_RANGE = 32
FILE_BYTES = 70_001
SECOND_BYTES = 5_000
USER = 12_345

_LIBC = ctypes.CDLL(None, use_errno=True)
# Linux has one number for both; the manual pages of its calls say EOPNOTSUPP.
_ERRNO_NAMES = dict(errno.errorcode) | {errno.EOPNOTSUPP: "EOPNOTSUPP"}


class Notes:
    """What a row saw, by label: a value, or the name of an errno."""

    def __init__(self) -> None:
        self.seen: dict[str, object] = {}

    def __call__(
        self, label: str, call: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Note what `call` returns or which errno it raises; returns the value or None."""
        assert label not in self.seen, label
        try:
            value = call(*args, **kwargs)
        except OSError as exc:
            self.seen[label] = _ERRNO_NAMES[exc.errno or 0]
            return None
        self.seen[label] = value
        return value

    def fd(self, label: str, path: Path | bytes, flags: int, mode: int = 0o666) -> int:
        """Note whether open(2) succeeds; the descriptor, or -1."""
        opened: list[int] = []
        self(label, lambda: opened.append(os.open(path, flags, mode)))
        return opened[0] if opened else -1

    def use(self, label: str, path: Path, flags: int, *actions: Callable[[int], object]) -> None:
        """Open, do `actions` with the descriptor, note what each gave, close."""
        fd = self.fd(f"{label}: open", path, flags)
        if fd < 0:
            return
        for number, action in enumerate(actions):
            self(f"{label}: {number}", action, fd)
        self(f"{label}: close", os.close, fd)


Row: TypeAlias = "Callable[[Path, Notes], None]"


def pattern(label: str, size: int) -> bytes:
    """Bytes that are the same for the same label."""
    return hashlib.shake_128(label.encode()).digest(size)


def content(path: Path) -> tuple[int, str]:
    """Size and digest of all that a file holds."""
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def make_subjects(at: Path) -> None:
    """What every row finds in its directory."""
    at.mkdir()
    (at / "file").write_bytes(pattern("file", FILE_BYTES))
    (at / "second").write_bytes(pattern("second", SECOND_BYTES))
    os.link(at / "file", at / "hard")
    (at / "link").symlink_to("file")
    (at / "empty").mkdir()
    (at / "dir").mkdir()
    (at / "dir" / "inner").write_bytes(b"inner")
    os.mkfifo(at / "fifo")
    os.setxattr(at / "file", "user.kept", b"kept")


def change_subjects(at: Path) -> None:
    """Part of the content is new, part is as it was, one file got shorter and then longer."""
    with (at / "file").open("r+b") as file:
        file.seek(30_000)
        file.write(pattern("middle", 20_000))
    with (at / "hard").open("ab") as file:
        file.write(b"appended")
    os.truncate(at / "second", 1_000)
    os.truncate(at / "second", 9_000)
    (at / "dir" / "inner").write_bytes(b"changed")


@contextmanager
def as_user(uid: int = USER, groups: tuple[int, ...] = ()) -> Iterator[None]:
    """Be somebody without privileges until the block ends."""
    had = os.getgroups()
    os.setgroups(groups)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(had)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Have this umask until the block ends."""
    had = os.umask(mask)
    try:
        yield
    finally:
        os.umask(had)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: Path, new: Path, flags: int) -> int:
    """renameat2(2)."""
    return _checked(_LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2)."""
    return _checked(_LIBC.fallocate(fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length)))


def syncfs(fd: int) -> int:
    """syncfs(2)."""
    return _checked(_LIBC.syncfs(fd))


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> int:
    """utimensat(2) with raw values; the symbolic link itself, not its target."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    return _checked(_LIBC.utimensat(AT_FDCWD, os.fsencode(path), times, 0x100))


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("length", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


class DirectoryStream:
    """opendir(3), readdir(3), telldir(3), seekdir(3), rewinddir(3)."""

    def __init__(self, path: Path) -> None:
        _LIBC.opendir.restype = ctypes.c_void_p
        _LIBC.readdir64.restype = ctypes.POINTER(_Dirent)
        _LIBC.telldir.restype = ctypes.c_long
        opened = _LIBC.opendir(os.fsencode(path))
        assert opened
        self._stream = ctypes.c_void_p(opened)

    def read(self) -> bytes | None:
        """The next name, None at the end."""
        entry = _LIBC.readdir64(self._stream)
        return bytes(entry.contents.name) if entry else None

    def rest(self) -> list[bytes]:
        """All names from here on."""
        return list(iter(self.read, None))

    def tell(self) -> int:
        """Where the stream stands."""
        return int(_LIBC.telldir(self._stream))

    def seek(self, position: int) -> None:
        """Go back (or on) to what `tell` gave."""
        _LIBC.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        """Go to the start and see what is new."""
        _LIBC.rewinddir(self._stream)

    def close(self) -> None:
        """closedir(3)."""
        _LIBC.closedir(self._stream)


def bind_socket(path: Path) -> None:
    """Leave a Unix socket at `path`, however long that is."""
    here = os.open(".", os.O_PATH)
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)
