"""Rows of the table about who may do what, and several processes: access, paths, locks, maps."""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import mmap
import os
import shutil
import signal
import stat
import subprocess
from typing import TYPE_CHECKING

from posix_calls import RENAME_WHITEOUT, USER, Notes, as_user, content, pattern, renameat2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GROUP = 4321
_PATH_MAX = 4096


def access_checks(at: Path, note: Notes) -> None:
    """access(2) and what it foretells: by owner, group, supplementary group, others and root."""
    file, directory = at / "file", at / "dir"
    at.chmod(0o755)
    wishes = {"read": os.R_OK, "write": os.W_OK, "run": os.X_OK, "be": os.F_OK}

    def wanted(path: Path, label: str) -> None:
        for word, wish in wishes.items():
            note(f"{label}: {word}", os.access, path, wish, effective_ids=True)

    for mode in (0o640, 0o070, 0o604, 0o000, 0o711):
        os.chown(file, USER, GROUP)
        file.chmod(mode)
        wanted(file, f"{mode:o} by root")
        for label, uid, groups in (
            ("owner", USER, ()),
            # Whom the owner's bits refuse the group's do not let in.
            ("owner in the group", USER, (GROUP,)),
            ("group", USER + 1, (GROUP,)),
            ("others", USER + 1, ()),
        ):
            with as_user(uid, groups):
                wanted(file, f"{mode:o} by {label}")
                note(f"{mode:o} by {label}: open", _opens, file)
    os.chown(directory, USER + 1, GROUP)
    for mode in (0o711, 0o744, 0o722, 0o770):
        directory.chmod(mode)
        for label, groups in (("others", ()), ("group", (GROUP,))):
            with as_user(USER, groups):
                note(f"{mode:o} by {label}: list", lambda: sorted(os.listdir(directory)))
                note(
                    f"{mode:o} by {label}: stat in it", lambda: (directory / "inner").stat().st_size
                )
                note(f"{mode:o} by {label}: make", os.mkdir, directory / f"{mode:o} {label}")
    note("read-only mounts and absent files", os.access, at / "absent", os.F_OK)


def _opens(path: Path | bytes) -> int:
    os.close(os.open(path, os.O_RDONLY))
    return 0


def paths_at_their_limit(at: Path, note: Notes) -> None:
    """PATH_MAX counts the zero at the end; so many symbolic links are followed and no more."""
    here = os.fsencode(at)

    def path_of(length: int) -> bytes:
        """The path of `file`, so long by steps that lead nowhere."""
        missing = length - len(here) - len(b"/file")
        return here + b"/." * (missing // 2) + b"/" * (missing % 2) + b"/file"

    for length in (4094, 4095, 4096, 5000):
        assert len(path_of(length)) == length
        note(f"stat of {length}", lambda path: os.stat(path).st_size, path_of(length))
        note(
            f"open of {length}", lambda path: os.close(os.open(path, os.O_RDONLY)), path_of(length)
        )
    for number in range(1, 43):
        (at / f"step {number}").symlink_to("file" if number == 1 else f"step {number - 1}")
    note("40 links", lambda: (at / "step 40").stat().st_size)
    note("41 links", os.stat, at / "step 41")
    (at / "too long").symlink_to("x/" * 2047)
    note("through a link that is too long with what follows", os.stat, at / "too long" / "file")
    assert len(path_of(_PATH_MAX - 1)) < _PATH_MAX


def locks_between_processes(at: Path, note: Notes) -> None:
    """POSIX locks: who waits gets it, whoever dies or closes lets go, a circle is noticed."""
    path = at / "file"
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 100, 0)
    waiting = _Child(lambda: _lock(path, 50, 10, wait=True))
    note("taken, at once", lambda: _Child(lambda: _lock(path, 50, 10)).result())
    note("beside it", lambda: _Child(lambda: _lock(path, 100, 10)).result())
    fcntl.lockf(fd, fcntl.LOCK_UN, 20, 45)
    note("the one that waited", waiting.result)
    note("split: before", lambda: _Child(lambda: _lock(path, 44, 1)).result())
    note("split: between", lambda: _Child(lambda: _lock(path, 45, 20)).result())
    note("split: after", lambda: _Child(lambda: _lock(path, 65, 1)).result())
    os.close(os.open(path, os.O_RDONLY))
    note("lost by closing another descriptor", lambda: _Child(lambda: _lock(path, 0, 1)).result())
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
    other = _Child(lambda: _lock(path, 10, 10) or _lock(path, 0, 10, wait=True))
    other.said()
    note("in a circle", _one_is_refused, fd, other)
    os.close(fd)
    killed = _Child(lambda: _sleep_with_lock(at / "second"))
    killed.said()
    note("taken by one that sleeps", lambda: _Child(lambda: _lock(at / "second", 0, 1)).result())
    os.kill(killed.pid, signal.SIGKILL)
    note("killed", killed.result)
    note("free when it is dead", lambda: _Child(lambda: _lock(at / "second", 0, 1)).result())


def _lock(path: Path, start: int, length: int, *, wait: bool = False) -> int:
    """In a child: an errno, or 0 and the lock for as long as the process lives."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, start)
    except OSError as exc:
        return exc.errno or 0
    _Child.say()
    return 0


def _sleep_with_lock(path: Path) -> int:
    _lock(path, 0, 10)
    signal.pause()
    return 0


def _one_is_refused(fd: int, other: _Child) -> tuple[int, ...]:
    """Both wait for each other: the kernel refuses one of them, whichever came second."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 10)
    except OSError as exc:
        fcntl.lockf(fd, fcntl.LOCK_UN)
        return tuple(sorted((exc.errno or 0, other.result())))
    return tuple(sorted((0, other.result())))


class _Child:
    """A process that does one thing and ends with what it gave."""

    _voice = -1

    def __init__(self, action: Callable[[], int]) -> None:
        self._ear, voice = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # A signal that kills it is no news.
            faulthandler.disable()
            _Child._voice = voice
            code = 255
            try:
                code = action()
            finally:
                os._exit(code)
        os.close(voice)

    @classmethod
    def say(cls) -> None:
        """In the child: it has what it wanted."""
        os.write(cls._voice, b".")

    def said(self) -> None:
        """Wait until it has what it wanted."""
        assert os.read(self._ear, 1) == b"."

    def result(self) -> int:
        """Its exit code, or minus the signal that killed it."""
        os.close(self._ear)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def mappings_beyond_the_end(at: Path, note: Notes) -> None:
    """A page behind the end of the file is a SIGBUS, and what is behind the end in the last page
    is zero and goes nowhere."""
    file, page = at / "second", mmap.PAGESIZE
    size = file.stat().st_size
    behind = (size // page + 1) * page
    for label, offset in (("the last byte", size - 1), ("its page", size), ("behind", behind)):
        note(f"touch {label}", lambda where: _Child(lambda: _touch(file, where)).result(), offset)
    note("as before", content, file)
    fd = os.open(file, os.O_RDWR)
    with _mapped_beyond_the_end(fd) as view:
        note("zeros behind the end", lambda: bytes(view[size : size + 50]))
        view[size : size + 5] = b"vapor"
        view.flush()
        os.ftruncate(fd, size + 100)
        note("what was written there is gone", lambda: os.pread(fd, 100, size)[5:])
        os.ftruncate(fd, behind + 10)
        view[behind : behind + 10] = b"now inside"
    os.close(fd)
    note("grown", content, file)
    write_only = os.open(file, os.O_WRONLY)
    note("map a write-only one", mmap.mmap, write_only, 10)
    os.close(write_only)
    directory = os.open(at / "dir", os.O_RDONLY)
    note("map a directory", mmap.mmap, directory, 10)
    os.close(directory)


def _touch(path: Path, offset: int) -> int:
    with _mapped_beyond_the_end(os.open(path, os.O_RDWR)) as view:
        return 0 if view[offset] in range(256) else 1


def _mapped_beyond_the_end(fd: int) -> mmap.mmap:
    """Python maps no more than there is, so it has to be there for a moment."""
    size = os.fstat(fd).st_size
    os.ftruncate(fd, size + 3 * mmap.PAGESIZE)
    view = mmap.mmap(fd, size + 3 * mmap.PAGESIZE)
    os.ftruncate(fd, size)
    return view


def descriptor_flags(at: Path, note: Notes) -> None:
    """What fcntl(2) turns on and off, and what a duplicate shares."""
    fd = os.open(at / "file", os.O_RDWR)
    again = os.dup(fd)
    for name in ("O_APPEND", "O_NONBLOCK", "O_NOATIME"):
        flag = getattr(os, name)
        note(f"set {name}", fcntl.fcntl, fd, fcntl.F_SETFL, flag)
        note(f"{name} of both", lambda flag: _has_flag(fd, flag) and _has_flag(again, flag), flag)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    note("append", os.write, again, b"at the end")
    note("where both stand", lambda: (os.lseek(fd, 0, 1), os.lseek(again, 0, 1)))
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    note("in place", os.pwrite, fd, b"no more", 3)
    os.close(fd)
    note("the duplicate lives", os.pread, again, 20, 0)
    os.close(again)
    note("content", content, at / "file")


def _has_flag(fd: int, flag: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & flag)


def programs_that_run(at: Path, note: Notes) -> None:
    """execve(2), and that a program that runs may not be written."""
    program, script = at / "program", at / "script"
    shutil.copyfile("/bin/sleep", program)
    script.write_text("#!/bin/sh\nexit 7\n")
    for path in (program, script):
        note(f"{path.name}: not yet", lambda path: subprocess.run([path], check=False), path)
        path.chmod(0o755)
    note("script", lambda: subprocess.run([script], check=False).returncode)
    with subprocess.Popen([program, "60"]) as running:
        note("write while it runs", os.open, program, os.O_WRONLY)
        note("truncate while it runs", os.truncate, program, 0)
        note("replace while it runs", os.rename, script, program)
        running.kill()
    note("then", lambda: subprocess.run([program], check=False).returncode)


def what_linux_adds(at: Path, note: Notes) -> None:
    """Beyond POSIX, and a mount does not have it all."""
    white = at / "white"
    white.mkdir()
    (white / "moved").write_bytes(b"x")
    note("whiteout", renameat2, white / "moved", white / "there", RENAME_WHITEOUT)
    shutil.rmtree(white)
    birth = subprocess.run(["stat", "-c", "%W", at / "file"], check=True, capture_output=True)
    note("time of birth", lambda: int(birth.stdout) > 0)
    fd = os.open(at / "file", os.O_RDONLY)
    note("readahead", os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_WILLNEED)
    os.close(fd)
    through = os.open(at, os.O_PATH)
    note("relative to O_PATH", lambda: os.stat("file", dir_fd=through).st_size)
    note("chmod of O_PATH", os.fchmod, through, 0o755)
    os.close(through)


def removals_by_others(at: Path, note: Notes) -> None:
    """Who may remove a name: whoever may write the directory, unless it is sticky."""
    crowd = at / "crowd"
    crowd.mkdir()
    os.chown(crowd, 0, GROUP)
    for name in ("one", "two", "three"):
        (crowd / name).write_bytes(pattern(name, 10))
    at.chmod(0o755)
    for mode in (0o755, 0o775, 0o1775):
        crowd.chmod(mode)
        for label, groups in (("member", (GROUP,)), ("stranger", ())):
            with as_user(USER, groups):
                note(f"{mode:o}, {label}: rename", os.rename, crowd / "one", crowd / "uno")
                note(f"{mode:o}, {label}: back", os.rename, crowd / "uno", crowd / "one")
                note(f"{mode:o}, {label}: link", os.link, crowd / "one", crowd / f"{mode} {label}")
    crowd.chmod(0o775)
    with as_user(USER, (GROUP,)):
        note("remove", os.unlink, crowd / "two")
        note("is not one's own", os.chmod, crowd / "three", 0o600)
    note("left", lambda: sorted(os.listdir(crowd)))
    note("mode", lambda: stat.filemode(crowd.stat().st_mode))


ROWS = (
    access_checks,
    paths_at_their_limit,
    locks_between_processes,
    mappings_beyond_the_end,
    descriptor_flags,
    programs_that_run,
    what_linux_adds,
    removals_by_others,
)

# What a mount gives instead, by row and label; README.md, "What a mount does not do".
INSTEAD: dict[str, dict[str, object]] = {
    "what_linux_adds": {"whiteout": errno.errorcode[errno.EINVAL], "time of birth": False},
}
