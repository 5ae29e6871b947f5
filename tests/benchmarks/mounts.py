"""Mounts to measure: tapefs as a person runs it, and the pass-through reference.

Each is a process of its own, started for the purpose and ended by its unmount. What it costs is
read from /proc, from the moment at which the mount answers.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.row import MIB
from tapefs.control import Connection
from tapefs.errors import NotMounted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.timeline import Timeline

# Reached only when something is stuck.
STUCK_S: Final = 3600.0
_SAMPLE_S: Final = 0.02
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PROGRAMS: Final = Path(sys.executable).parent


class Mount:
    """A mount that is being served. `cpu_s` and `peak_memory_mib` hold once it was unmounted."""

    def __init__(self, mountpoint: Path, words: Sequence[str | Path], log: Path) -> None:
        self.path = mountpoint
        mountpoint.mkdir(exist_ok=True)
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=self.environment(),
            )
        self._log = log
        self._watching = threading.Event()
        self._watcher: threading.Thread | None = None
        self.cpu_s = self.peak_memory_mib = 0.0

    def environment(self) -> dict[str, str]:
        """Of the process that serves, and of commands about it."""
        return {**os.environ, "LC_ALL": "C.UTF-8"}

    def wait_until_mounted(self) -> None:
        """Return when the mount answers; everything from here on is measured."""
        deadline = time.monotonic() + STUCK_S
        while not os.path.ismount(self.path):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nothing mounted: {self._log.read_text()[-2000:]}")
            time.sleep(0.005)
        os.stat(self.path)
        self._before_cpu_s = self._cpu_s()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def umount(self) -> None:
        """Unmount; returns when all is done that belongs to it."""
        self._unmount()
        self._process.wait(STUCK_S)
        self._watching.set()
        if self._watcher is not None:
            self._watcher.join()
        self.cpu_s -= self._before_cpu_s

    def _unmount(self) -> None:
        run(["umount", self.path])

    def sample(self) -> None:
        """Called while the mount is watched."""

    def _watch(self) -> None:
        while not self._watching.wait(_SAMPLE_S):
            with contextlib.suppress(OSError, StopIteration):
                self.cpu_s = self._cpu_s()
                lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
                peak = next(line for line in lines if line.startswith("VmHWM:"))
                self.peak_memory_mib = int(peak.split()[1]) / 1024
            self.sample()

    def _cpu_s(self) -> float:
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / _TICKS_PER_S

    def end(self) -> None:
        """Leave nothing mounted and nothing running, however the row ended."""
        if self._process.poll() is None:
            subprocess.run(["umount", "-i", "-l", self.path], capture_output=True, check=False)
            self._process.kill()
            self._process.wait()
        self._watching.set()
        if self._watcher is not None:
            self._watcher.join()
        if self._process.stdout:
            self._process.stdout.close()


class TapefsMount(Mount):
    """`tapefs mount`, with cartridge and state directory below `directory`."""

    def __init__(
        self, directory: Path, options: str, drive_settings: str, timeline: Timeline | None
    ) -> None:
        self._directory = directory
        self._image = directory / "cartridge.tap"
        self._timeline = timeline
        drive = f"virtual:{self._image}{drive_settings}"
        program = _PROGRAMS / "tapefs"
        if not self._image.exists():
            run([program, "format", drive, "--name", "BENCHMARK"], env=self.environment())
        chosen = ["-o", options] if options else []
        words: list[str | Path] = [
            program,
            "mount",
            "--foreground",
            *chosen,
            drive,
            directory / "mnt",
        ]
        super().__init__(directory / "mnt", words, directory / "mount.log")

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "TAPEFS_STATE_DIR": str(self._directory / "state"),
            "TAPEFS_RUNTIME_DIR": str(self._directory / "run"),
        }

    def _unmount(self) -> None:
        run([_PROGRAMS / "tapefs", "umount", self.path], env=self.environment())

    def status(self) -> dict[str, object]:
        """What `tapefs status --json` says. Raises NotMounted."""
        sockets = list((self._directory / "run").glob("*.sock"))
        if not sockets:
            raise NotMounted("the mount has ended")
        with Connection(self.path, sockets[0]) as connection:
            return connection.status()

    def sample(self) -> None:
        if self._timeline is not None and self._timeline.is_due():
            with contextlib.suppress(NotMounted, OSError):
                self._timeline.add(self.status(), self._image.stat().st_size)


@contextmanager
def tapefs(
    directory: Path,
    options: str = "",
    *,
    drive_settings: str = "",
    timeline: Timeline | None = None,
) -> Iterator[TapefsMount]:
    """tapefs mounted; formats the cartridge below `directory` if there is none yet."""
    directory.mkdir(exist_ok=True)
    mount = TapefsMount(directory, options, drive_settings, timeline)
    try:
        mount.wait_until_mounted()
        yield mount
    finally:
        mount.end()


@contextmanager
def pass_through(directory: Path, *, hashing: bool = False) -> Iterator[Mount]:
    """The reference, with its files in `directory`/files; it hashes them if told to."""
    files = directory / "files"
    files.mkdir(parents=True, exist_ok=True)
    program = Path(__file__).with_name("pass_through.py")
    words: list[str | Path] = [sys.executable, program, files, directory / "mnt"]
    if hashing:
        words.append("hashing")
    mount = Mount(directory / "mnt", words, directory / "mount.log")
    try:
        mount.wait_until_mounted()
        yield mount
    finally:
        mount.end()


@contextmanager
def least(directory: Path) -> Iterator[Mount]:
    """The least that can be written into; what is written becomes `directory`/content."""
    directory.mkdir()
    program = Path(__file__).with_name("least.py")
    words: list[str | Path] = [
        sys.executable,
        program,
        directory / "content",
        directory / "mnt",
    ]
    mount = Mount(directory / "mnt", words, directory / "mount.log")
    try:
        mount.wait_until_mounted()
        yield mount
    finally:
        mount.end()


def run(words: Sequence[str | Path], *, env: dict[str, str] | None = None) -> float:
    """Run a command that must succeed; how many seconds it took."""
    started = time.monotonic()
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=env or {**os.environ, "LC_ALL": "C.UTF-8"},
        timeout=STUCK_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{words} failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return time.monotonic() - started


def megabytes_per_s(size: int, seconds: float) -> float:
    """In millions of bytes, as drives are rated."""
    return size / 1e6 / seconds


def dd(source: Path, target: Path) -> float:
    """`dd bs=1M` from one to the other; seconds."""
    return run(["dd", f"if={source}", f"of={target}", f"bs={MIB}", "status=none"])
