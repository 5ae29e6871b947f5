"""A host for acceptance tests: the real commands, the real daemon, /dev/fuse, a virtual cartridge.

Nothing here imports tapefs: what is tested is what a person would run, and the tape is read by
`tap_reader` and tar. `TAPEFS_TEST_SIZE=whole` makes these tests run at their whole size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from conftest import SEED
from tap_reader import objects
from tree_walk import below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WHOLE = os.environ.get("TAPEFS_TEST_SIZE") == "whole"
PROGRAMS = Path(sys.executable).parent
NOBODY = 65534
# Reached in a failing case only: a command that is stuck would take the test run with it.
STUCK_S = 3600.0 if WHOLE else 300.0
MIB = 1024 * 1024

# -1: compare times to the nanosecond. When copying, rsync would leave a directory's time as it is
# where only the fraction differs.
RSYNC = ("rsync", "-aHAX", "--modify-window=-1")
COMPARE = ("rsync", "-aHAXc", "--delete", "--dry-run", "--itemize-changes", "--modify-window=-1")
# As README.md says, and for root what it means there. The torture tree has times before 1970 and
# far ahead, which GNU tar restores but remarks on.
GNU_TAR = ["tar", "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "--acls"]
GNU_TAR += ["--delay-directory-restore", "--warning=no-timestamp", "-xpf", "-"]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def run(
    words: Sequence[str | Path], stuck_s: float = STUCK_S, *, env: dict[str, str] | None = None
) -> Done:
    """Run a command to its end, whatever that is."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        env=env,
        timeout=stuck_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    out, err = (text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr))
    return Done(done.returncode, out, err)


def quiet(*words: str | Path) -> str:
    """Run a command that must succeed and say nothing on standard error; its output."""
    done = run(words)
    assert (done.code, done.stderr) == (0, ""), (words, done.code, done.stderr[:2000])
    return done.stdout


class Host:
    """A computer with one drive, one cartridge, one mountpoint, and what tapefs keeps there."""

    def __init__(self, root: Path, drive_settings: str = "") -> None:
        self.root = root
        self.image = root / "first.tap"
        self.drive = f"virtual:{self.image}{drive_settings}"
        self.mountpoint = root / "mnt"
        self.state = root / "state"
        self.env = {
            **os.environ,
            "LC_ALL": "C.UTF-8",
            "TAPEFS_STATE_DIR": str(self.state),
            "TAPEFS_RUNTIME_DIR": str(root / "run"),
        }
        self.mountpoint.mkdir()
        self._daemons: list[Daemon] = []

    def tapefs(self, *words: str | Path, before: Sequence[str | Path] = ()) -> Done:
        """Run `tapefs WORDS...`; `before` stands in front of it, as for setpriv(1)."""
        return run([*before, PROGRAMS / "tapefs", *words], env=self.env)

    def ok(self, *words: str | Path, before: Sequence[str | Path] = ()) -> str:
        """Run `tapefs WORDS...`, which must succeed; its output."""
        done = self.tapefs(*words, before=before)
        assert done.code == 0, (words, done.stderr, self.log())
        return done.stdout

    def format(self, name: str = "FIRST") -> Self:
        """Make the cartridge a volume."""
        self.ok("format", self.drive, "--name", name)
        return self

    def mount(
        self, options: str = "", *words: str, before: Sequence[str | Path] = ()
    ) -> dict[str, Any]:
        """Mount; what the command answers."""
        chosen = ["-o", options] if options else []
        answer = self.ok(
            "mount", "--json", *chosen, *words, self.drive, self.mountpoint, before=before
        )
        pid = self.find_daemon()
        assert pid is not None, "nothing serves the mount"
        self._daemons.append(Daemon(pid))
        document: dict[str, Any] = json.loads(answer)
        return document

    def find_daemon(self) -> int | None:
        """The process that came from `tapefs mount ... MOUNTPOINT`, if there is one."""
        wanted = os.fsencode(self.mountpoint) + b"\0"
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes()
                if words.endswith(wanted) and b"\0mount\0" in words:
                    return int(process.name)
        return None

    @property
    def daemon(self) -> Daemon:
        """Of the last mount."""
        return self._daemons[-1]

    def status(self) -> dict[str, Any]:
        """What `tapefs status --json` says about the mount."""
        document: dict[str, Any] = json.loads(self.ok("status", self.mountpoint, "--json"))
        return document

    def umount(self, *, before: Sequence[str | Path] = ()) -> None:
        """`tapefs umount`, which must succeed, and leave nothing mounted and no daemon."""
        self.ok("umount", self.mountpoint, before=before)
        assert not is_mounted(self.mountpoint)
        assert self.daemon.has_ended()

    def forget(self) -> None:
        """Lose everything this host knows about the tape."""
        shutil.rmtree(self.state)

    def forget_recalled(self) -> None:
        """Lose what was kept of earlier recalls, so that reads need the tape."""
        for directory in self.state.glob("volumes/*/recalled"):
            shutil.rmtree(directory)

    def log(self) -> str:
        """Everything the daemons logged."""
        files = sorted(self.state.glob("log/*"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def clean_up(self) -> None:
        """End what was started and unmount what was mounted, however the test ended."""
        for daemon in self._daemons:
            daemon.kill()
        for _ in range(3):
            if is_mounted(self.mountpoint):
                run(["umount", "-i", "-l", self.mountpoint])
        for daemon in self._daemons:
            daemon.close()


class Daemon:
    """The process that serves a mount; not a child of ours, so watched through a pidfd."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """SIGTERM, as `systemctl stop` sends it."""
        signal.pidfd_send_signal(self._fd, signal.SIGTERM)

    def wait(self) -> None:
        """Return when the process has ended."""
        assert select.select([self._fd], [], [], STUCK_S)[0], "the daemon does not end"

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return bool(select.select([self._fd], [], [], 0)[0])

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

    @contextmanager
    def watching_memory(self, samples_kib: list[int]) -> Iterator[None]:
        """Note VmHWM until the block ends; it only grows, so the last note is the peak."""
        ended = threading.Event()

        def watch() -> None:
            while True:
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
                    line = next(line for line in lines if line.startswith("VmHWM:"))
                    samples_kib.append(int(line.split()[1]))
                if ended.wait(0.02):
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def new_host(drive_settings: str = "") -> Iterator[Host]:
    """A host in a directory of its own, which other users can reach; nothing of it stays."""
    root = Path(tempfile.mkdtemp(prefix="tapefs-first-light-"))
    root.chmod(0o755)
    host = Host(root, drive_settings)
    try:
        yield host
    finally:
        host.clean_up()
        assert mounts_below(root) == [], "a mount is left; its files would be deleted with it"
        shutil.rmtree(root)


def mounts_below(root: Path) -> list[str]:
    """The lines of mountinfo for what is mounted below `root` (which has no odd characters)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split(" ")[4].startswith(f"{root}/")]


def is_mounted(path: Path) -> bool:
    """Whether something is mounted on exactly `path`."""
    return any(line.split(" ")[4] == str(path) for line in mounts_below(path.parent))


# -- trees


def copy_share(into: Path, bytes_max: int, inodes_max: int) -> None:
    """Subdirectories of /usr/share in order of name, as many as fit; all of them when WHOLE."""
    share = Path("/usr/share")
    chosen: list[str] = []
    directories = [path for path in share.iterdir() if path.is_dir() and not path.is_symlink()]
    for directory in sorted(directories):
        sizes = [path.lstat().st_size for path in below(directory)]
        if WHOLE or (sum(sizes) <= bytes_max and len(sizes) <= inodes_max):
            bytes_max -= sum(sizes)
            inodes_max -= len(sizes)
            chosen.append(directory.name)
    assert chosen
    into.mkdir()
    quiet(*RSYNC, *(share / name for name in chosen), f"{into}/")


def fingerprint(root: Path) -> dict[bytes, tuple[object, ...]]:
    """What must be equal in a copy besides content, by relative path."""
    found: dict[bytes, tuple[object, ...]] = {}
    first_name: dict[int, bytes] = {}
    for path in below(root):
        status = path.lstat()
        name = os.fsencode(path.relative_to(root))
        kind = stat.S_IFMT(status.st_mode)
        found[name] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_nlink if kind != stat.S_IFDIR else None,
            status.st_rdev,
            status.st_size if kind == stat.S_IFREG else None,
            status.st_mtime_ns,
            first_name.setdefault(status.st_ino, name),
            path.readlink() if kind == stat.S_IFLNK else None,
            {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            },
        )
    return found


def assert_same(one: Path, other: Path, *options: str) -> None:
    """rsync, asked both ways, finds nothing to do between two directories."""
    for source, target in ((one, other), (other, one)):
        done = run([*COMPARE, *options, f"{source}/", f"{target}/"])
        complaints = done.stderr[:2000], done.stdout[:2000]
        assert (done.code, *complaints) == (0, "", ""), (source, target, complaints)


def deterministic_bytes(label: str | int, size: int) -> bytes:
    """Bytes that look random, and are the same for the same label and seed."""
    return hashlib.shake_128(f"{SEED} {label}".encode()).digest(size)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- tapes


def feed_tape_files(image: Path, reader: Callable[[int], subprocess.Popen[bytes]]) -> int:
    """Feed each tape file to a process of its own, as read from a drive; how many there were.

    Every process must end with exit code 0 and nothing on standard error.
    """
    number = 0
    process: subprocess.Popen[bytes] | None = None
    for item in objects(image):
        if item is not None:
            process = process or reader(number)
            assert process.stdin
            # A reader may stop at the archive's end; what pads the last record is lost on it.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(item)
            continue
        if process is not None:
            finish_reading(process, number)
        process = None
        number += 1
    assert process is None, "the last tape file is not closed by a filemark"
    return number


def finish_reading(process: subprocess.Popen[bytes], number: int) -> None:
    """The end of one tape file's reader."""
    _, complaints = process.communicate(timeout=STUCK_S)
    assert (process.returncode, complaints) == (0, b""), (number, complaints[:2000])


def pipe_into(words: Sequence[str | Path], directory: Path) -> Callable[[int], Any]:
    """What `feed_tape_files` wants: starts `words` in `directory`."""

    def start(_number: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            words,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )

    return start


def restore_with_tar(image: Path, directory: Path) -> None:
    """Extract every tape file in order with GNU tar; every manifest's checksums must hold."""
    directory.mkdir()
    count = feed_tape_files(image, pipe_into(GNU_TAR, directory))
    manifests = sorted(directory.glob(".tapefs/segments/*.sha256"))
    assert 0 < len(manifests) < count, (len(manifests), count)
    for manifest in manifests:
        check = ["sha256sum", "--check", "--quiet", "--strict", str(manifest)]
        done = subprocess.run(check, cwd=directory, capture_output=True, check=False)
        # A later segment may hold a newer content of the same name: the caller knows whether.
        complaints = done.stdout[:2000], done.stderr[:2000]
        assert (done.returncode, *complaints) == (0, b"", b""), (manifest, complaints)
