"""Programs that a kill of the daemon cuts off, and what they were promised before that.

Nothing here imports tapefs. A *ledger* knows for every path which contents it may have: one once
somebody was promised it, several while a program is about to replace it.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import stat
import subprocess
from typing import TYPE_CHECKING, NoReturn

import pytest
from first_light_rig import RSYNC, STUCK_S, deterministic_bytes, digest_of
from tree_walk import below

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_BROKEN = (errno.ENOTCONN, errno.ECONNABORTED)


def sync_directory(directory: Path) -> None:
    """fsync(2) of a directory: whatever was done before it is kept."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Scribe:
    """Writes files and remembers what it was promised to keep, until the mount breaks."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self._directory = directory
        self._rng = rng
        self._count = 0
        # Name -> content that must be there; None: must not be there.
        self.promised: dict[str, bytes | None] = {}
        # Without a descriptor of its own to sync: kept once any later fsync has returned.
        self._written: dict[str, bytes] = {}

    def write_until_it_breaks(self) -> None:
        """Return when an operation fails, as they all do once the daemon is gone."""
        with pytest.raises(OSError, match="Errno") as caught:
            self._write_on()
        assert caught.value.errno in _BROKEN, caught.value

    def _write_on(self) -> NoReturn:
        while True:
            self.step()

    def step(self) -> None:
        """Make, replace or remove one file."""
        self._directory.mkdir(exist_ok=True)
        self._count += 1
        name = f"{self._count:05d}"
        content = deterministic_bytes(name, self._rng.choice([0, 1, 500, 70_000, 700_000]))
        kinds = [self._create, self._create_and_rename, self._overwrite, self._unlink, self._leave]
        self._rng.choice(kinds)(name, content)

    def _create(self, name: str, content: bytes) -> None:
        self._put(name, content)
        self._keep(name, content)

    def _create_and_rename(self, name: str, content: bytes) -> None:
        self._put(f".{name}.new", content)
        (self._directory / f".{name}.new").rename(self._directory / name)
        sync_directory(self._directory)
        self._keep(name, content)

    def _overwrite(self, _name: str, content: bytes) -> None:
        if name := self._some_promised():
            del self.promised[name]
            self._put(name, content)
            self._keep(name, content)

    def _unlink(self, _name: str, _content: bytes) -> None:
        if name := self._some_promised():
            del self.promised[name]
            (self._directory / name).unlink()
            sync_directory(self._directory)
            self._keep(name, None)

    def _leave(self, name: str, content: bytes) -> None:
        (self._directory / name).write_bytes(content)
        self._written[name] = content

    def _keep(self, name: str, content: bytes | None) -> None:
        self.promised[name] = content
        self.promised.update(self._written)
        self._written.clear()

    def _some_promised(self) -> str | None:
        names = [name for name, content in self.promised.items() if content is not None]
        return self._rng.choice(names) if names else None

    def _put(self, name: str, content: bytes) -> None:
        fd = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)

    def check(self) -> None:
        """Everything that was promised is so; a new life begins."""
        # Nobody asked for these before the daemon died.
        self._written.clear()
        for name, content in self.promised.items():
            path = self._directory / name
            if content is None:
                assert not path.exists(), name
            else:
                assert path.read_bytes() == content, name


class Ledger:
    """Which contents each path below the mountpoint may have; `None`: it may be missing."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._allowed: dict[str, set[str | None]] = {}

    def will_become(self, name: str, source: Path | None) -> dict[str, str | None]:
        """The tree `name` is about to become like `source` (None: removed), file by file, each
        the old or the new one. Returns what `became` wants.
        """
        target: dict[str, str | None] = {
            path: None for path in self._allowed if path.startswith(f"{name}/")
        }
        target |= {} if source is None else digests(source, name)
        for path, digest in target.items():
            self._allowed.setdefault(path, {None}).add(digest)
        return target

    def became(self, target: Mapping[str, str | None]) -> None:
        """It was promised."""
        for path, digest in target.items():
            self._allowed[path] = {digest}

    def is_anything(self, name: str) -> None:
        """Whatever was promised of the tree `name` does not count any more."""
        for path in [path for path in self._allowed if path.startswith(f"{name}/")]:
            del self._allowed[path]

    def check(self) -> int:
        """Every file is one of those it may be; how many were looked at."""
        for path, allowed in self._allowed.items():
            file = self._mountpoint / path
            found = digest_of(file) if file.is_file() else None
            assert found in allowed, (path, found, allowed)
        return len(self._allowed)


def digests(root: Path, name: str) -> dict[str, str]:
    """SHA-256 of every regular file below `root`, by its path with `name` instead of `root`."""
    files = [path for path in below(root) if stat.S_ISREG(path.lstat().st_mode)]
    return {f"{name}/{path.relative_to(root)}": digest_of(path) for path in files}


class ChangingTree:
    """A directory on the local disk that changes a little from round to round."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root = root
        self._rng = rng
        self._count = 0
        for number in range(40):
            self._grow(f"{number % 7}/{number}")

    def change(self) -> None:
        """Some files are new, some changed, some gone, one moved."""
        for _ in range(5):
            self._count += 1
            self._grow(f"{self._rng.randrange(9)}/new-{self._count}")
        for path in self._some(4):
            path.write_bytes(self._bytes())
        for path in self._some(5):
            path.unlink()
        for path in self._some(1):
            path.rename(path.with_name(f"moved-{self._count}"))

    def _some(self, count: int) -> Sequence[Path]:
        return self._rng.sample([path for path in below(self.root) if path.is_file()], count)

    def _grow(self, name: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._bytes())

    def _bytes(self) -> bytes:
        size = self._rng.choice((0, 3, 4_000, 90_000, 300_000))
        return hashlib.shake_128(self._rng.randbytes(16)).digest(size)


class Cut:
    """Programs that may be cut off by a kill. Each method tells the ledger what is about to happen
    and returns what starts the program and waits for its end; that may run in another thread.
    """

    def __init__(self, ledger: Ledger, mountpoint: Path, source: Path) -> None:
        self._ledger = ledger
        self._mountpoint = mountpoint
        self._source = source

    def rsync(self) -> Callable[[], None]:
        """Replaces files one by one, each under its name only when it is complete."""
        target = self._ledger.will_become("tree", self._source)
        words = [*RSYNC, "--fsync", "--delete", f"{self._source}/", f"{self._mountpoint}/tree/"]
        return functools.partial(self._run, words, target)

    def cp(self) -> Callable[[], None]:
        """A second copy, whose files grow under their names."""
        self._ledger.is_anything("copy")
        script = 'rm -rf "$2" && cp -aT "$1" "$2"'
        words = ["sh", "-c", script, "-", str(self._source), f"{self._mountpoint}/copy"]
        return functools.partial(self._run, words, digests(self._source, "copy"))

    def tar(self) -> Callable[[], None]:
        """A third one, out of an archive."""
        self._ledger.is_anything("unpacked")
        script = 'rm -rf "$2" && mkdir "$2" && tar -cf - -C "$1" . | tar -xf - -C "$2"'
        words = ["sh", "-c", script, "-", str(self._source), f"{self._mountpoint}/unpacked"]
        return functools.partial(self._run, words, digests(self._source, "unpacked"))

    def rm(self) -> Callable[[], None]:
        """Away with the second copy."""
        target = self._ledger.will_become("copy", None)
        return functools.partial(self._run, ["rm", "-rf", f"{self._mountpoint}/copy"], target)

    def _run(self, words: Sequence[str], target: Mapping[str, str | None]) -> None:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=STUCK_S,
            check=False,
        )
        if done.returncode == 0 and self._acknowledged():
            self._ledger.became(target)

    def _acknowledged(self) -> bool:
        try:
            sync_directory(self._mountpoint / "scribe")
        except OSError as exc:
            if exc.errno not in _BROKEN:
                raise
            return False
        return True
