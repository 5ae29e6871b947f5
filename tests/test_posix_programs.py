"""Programs that ask much of a filesystem, in a mount: before archiving, and on what came from tape.

Each program makes something, the cartridge is unmounted, the host forgets it, and the program goes
on with what the tape has.
"""

from __future__ import annotations

import mailbox
import os
import sqlite3
import subprocess
from contextlib import closing
from email.message import EmailMessage
from typing import TYPE_CHECKING, Protocol

import pytest
from first_light_rig import RSYNC, assert_same, deterministic_bytes, new_host, quiet, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse

# Nothing goes to tape but at unmount.
OPTIONS = "settle=3600,idle=3600"


class Program(Protocol):
    """What is done in one directory; asserts that all is well."""

    def before(self, at: Path) -> None:
        """On a fresh mount."""

    def after(self, at: Path) -> None:
        """On what came from tape."""


class Git:
    """Commits, a clone, gc, fsck; after archiving fsck, one more commit, a push, gc, a clone."""

    def before(self, at: Path) -> None:
        quiet("git", "init", "-q", at / "work")
        for number in range(4):
            (at / "work" / f"{number}").write_bytes(deterministic_bytes(number, 20_000))
            (at / "work" / "all").write_text(f"{number}\n" * 500)
            self._commit(at / "work", f"commit {number}")
        self._git(at / "work", "gc", "--quiet", "--prune=now")
        self._git(at, "clone", "--quiet", "--bare", "--no-hardlinks", at / "work", at / "bare")
        self._check(at)

    def after(self, at: Path) -> None:
        self._check(at)
        # An unchanged tree is known by inode numbers and ctime: nothing is read.
        assert self._git(at / "work", "diff-files", "--name-only") == ""
        (at / "work" / "all").write_text("more\n")
        self._commit(at / "work", "after the tape")
        self._git(at / "work", "push", "--quiet", at / "bare", "HEAD")
        self._git(at / "work", "gc", "--quiet", "--aggressive", "--prune=now")
        self._check(at)
        assert self._git(at / "bare", "rev-list", "--count", "HEAD") == "5\n"
        self._git(at, "clone", "--quiet", at / "bare", at / "again")
        assert_same(at / "work", at / "again", "--exclude=.git", "--no-times", "--omit-dir-times")

    def _commit(self, work: Path, message: str) -> None:
        self._git(work, "add", "--all")
        self._git(work, "commit", "--quiet", "--message", message)

    def _check(self, at: Path) -> None:
        for repository in ("work", "bare"):
            self._git(at / repository, "fsck", "--full", "--strict", "--no-progress")
        assert self._git(at / "work", "status", "--porcelain") == ""

    def _git(self, where: Path, *words: str | Path) -> str:
        who = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "gc.auto=0")
        return quiet("git", *who, "-c", "safe.directory=*", "-C", where, *words)


class Sqlite:
    """A database with a write-ahead log and one with a rollback journal; both stay sound."""

    MODES = ("wal", "delete")

    def before(self, at: Path) -> None:
        for mode in self.MODES:
            with closing(sqlite3.connect(at / mode)) as database:
                assert database.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
                database.execute("CREATE TABLE noted (number INTEGER PRIMARY KEY, data BLOB)")
                self._insert(database, range(300))
                self._roll_back(database)
        self._check(at, 300)

    def after(self, at: Path) -> None:
        self._check(at, 300)
        for mode in self.MODES:
            with closing(sqlite3.connect(at / mode)) as database:
                assert database.execute("PRAGMA journal_mode").fetchone() == (mode,)
                self._insert(database, range(300, 400))
                database.execute("UPDATE noted SET data = x'00' WHERE number % 7 = 0")
                database.commit()
                self._roll_back(database)
                self._second_writer_waits(at / mode, database)
                database.execute("VACUUM")
        self._check(at, 400)

    def _insert(self, database: sqlite3.Connection, numbers: range) -> None:
        for number in numbers:
            data = deterministic_bytes(number, 1000)
            database.execute("INSERT INTO noted VALUES (?, ?)", (number, data))
            if number % 50 == 49:
                database.commit()

    def _roll_back(self, database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM noted")
        database.rollback()

    def _second_writer_waits(self, file: Path, database: sqlite3.Connection) -> None:
        database.execute("BEGIN IMMEDIATE")
        with (
            closing(sqlite3.connect(file, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")
        database.rollback()

    def _check(self, at: Path, count: int) -> None:
        for mode in self.MODES:
            with closing(sqlite3.connect(at / mode)) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert database.execute("SELECT count(*) FROM noted").fetchone() == (count,)


class Rsync:
    """Every way of writing it has: anew, in place, appended, linked, and after a stop midway."""

    # The second file of an interrupted run ends here.
    STOPPED_BYTES = 300 * 1024

    def before(self, at: Path) -> None:
        self._source(at)
        quiet(*RSYNC, f"{at / 'source'}/", f"{at / 'copy'}/")
        assert_same(at / "source", at / "copy")
        self._all_ways(at, "before")
        self._stop_midway(at)

    def after(self, at: Path) -> None:
        assert_same(at / "source", at / "copy")
        assert_same(at / "source", at / "linked before")
        # What is there of it came from tape as well.
        self._go_on(at)
        self._all_ways(at, "after")
        self._stop_midway(at)
        self._go_on(at)

    def _all_ways(self, at: Path, when: str) -> None:
        source, copy, linked = at / "source", at / "copy", at / f"linked {when}"
        ino = (copy / "large").stat().st_ino
        with (source / "large").open("r+b") as file:
            file.seek(200_000)
            file.write(f"in place {when}".encode())
        quiet(*RSYNC, "--inplace", "--no-whole-file", f"{source}/", f"{copy}/")
        assert (copy / "large").stat().st_ino == ino
        assert_same(source, copy)
        with (source / "growing").open("ab") as file:
            file.write(deterministic_bytes(when, 50_000))
        quiet(*RSYNC, "--append-verify", f"{source}/", f"{copy}/")
        assert_same(source, copy)
        (source / f"new {when}").write_bytes(b"new")
        links = (copy / "growing").stat().st_nlink
        quiet(*RSYNC, f"--link-dest={copy}", f"{source}/", f"{linked}/")
        assert_same(source, linked)
        assert (linked / "growing").samefile(copy / "growing")
        assert (copy / "growing").stat().st_nlink == links + 1
        assert (linked / f"new {when}").stat().st_nlink == 1
        quiet(*RSYNC, f"{source}/", f"{copy}/")
        assert_same(source, copy)

    def _stop_midway(self, at: Path) -> None:
        """A limit of the process stands for the cable that is pulled."""
        (at / "arrives").mkdir(exist_ok=True)
        (at / "arrives" / "large").unlink(missing_ok=True)
        limited = f"trap '' XFSZ; ulimit -f {self.STOPPED_BYTES // 1024}; exec \"$@\""
        words = (*RSYNC, "--partial", at / "source" / "large", f"{at / 'arrives'}/")
        assert run(["bash", "-c", limited, "bash", *words]).code == 11
        assert os.listdir(at / "arrives") == ["large"]
        assert 0 < (at / "arrives" / "large").stat().st_size <= self.STOPPED_BYTES

    def _go_on(self, at: Path) -> None:
        words = ("--partial", "--no-whole-file", "--stats")
        said = quiet(*RSYNC, *words, at / "source" / "large", f"{at / 'arrives'}/")
        matched = next(line for line in said.splitlines() if line.startswith("Matched data: "))
        assert int(matched.split()[2].replace(",", "")) > self.STOPPED_BYTES // 2
        large = (at / "source" / "large").read_bytes()
        assert (at / "arrives" / "large").read_bytes() == large

    def _source(self, at: Path) -> None:
        (at / "source" / "below").mkdir(parents=True)
        (at / "source" / "large").write_bytes(deterministic_bytes("large", 700_000))
        (at / "source" / "growing").write_bytes(deterministic_bytes("growing", 90_000))
        for number in range(10):
            file = at / "source" / "below" / f"{number}"
            file.write_bytes(deterministic_bytes(number, 3_000))


class Zip:
    """An archive made, tested and unpacked in place, and updated when it came from tape."""

    def before(self, at: Path) -> None:
        (at / "packed").mkdir()
        for number in range(8):
            (at / "packed" / f"{number}").write_bytes(deterministic_bytes(number, 9_000) * 3)
        self._zip(at, "-q", "-r", at / "all.zip", "packed")
        self._unpack(at, "one")

    def after(self, at: Path) -> None:
        quiet("unzip", "-tqq", at / "all.zip")
        (at / "packed" / "new").write_bytes(b"new")
        self._zip(at, "-q", "-r", "-u", at / "all.zip", "packed")
        self._unpack(at, "two")

    def _zip(self, at: Path, *words: str | Path) -> None:
        subprocess.run(["zip", *words], cwd=at, check=True, stdin=subprocess.DEVNULL)

    def _unpack(self, at: Path, name: str) -> None:
        quiet("unzip", "-q", at / "all.zip", "-d", at / name)
        assert_same(at / "packed", at / name / "packed", "--no-times", "--omit-dir-times")


class Compile:
    """Objects, a library and a program that runs from the mount; then only what changed."""

    MAKEFILE = (
        "program: main.o libnoted.a\n\tcc -o $@ main.o -L. -lnoted\n"
        "libnoted.a: noted.o\n\tar rcs $@ noted.o\n%.o: %.c\n\tcc -g -c -o $@ $<\n"
    )

    def before(self, at: Path) -> None:
        (at / "Makefile").write_text(self.MAKEFILE)
        (at / "noted.c").write_text("int noted(void) { return 42; }\n")
        (at / "main.c").write_text("int noted(void);\nint main(void) { return noted(); }\n")
        quiet("make", "-s", "-j2", "-C", at)
        assert run([at / "program"]).code == 42

    def after(self, at: Path) -> None:
        assert run(["make", "-q", "-C", at]).code == 0, "times changed: all would be made again"
        assert run([at / "program"]).code == 42
        (at / "noted.c").write_text("int noted(void) { return 43; }\n")
        made = quiet("make", "-C", at)
        assert "main.c" not in made
        assert "noted.c" in made
        assert run([at / "program"]).code == 43


class Maildir:
    """Deliveries by link and rename, flags in names, a removal."""

    def before(self, at: Path) -> None:
        box = mailbox.Maildir(at / "box")
        for number in range(20):
            box.add(self._message(number))
        self._check(at, range(20))

    def after(self, at: Path) -> None:
        self._check(at, range(20))
        box = mailbox.Maildir(at / "box", create=False)
        for key in box.keys():  # noqa: SIM118 - not a mapping: iterating gives messages
            message = box[key]
            if message["Subject"] == "number 7":
                box.remove(key)
                continue
            message.set_subdir("cur")
            message.add_flag("S")
            box[key] = message
        box.add(self._message(20))
        self._check(at, (number for number in range(21) if number != 7))
        assert len(os.listdir(at / "box" / "cur")) == 19
        assert os.listdir(at / "box" / "tmp") == []

    def _message(self, number: int) -> EmailMessage:
        message = EmailMessage()
        message["Subject"] = f"number {number}"
        message.set_content("text\n" * number)
        return message

    def _check(self, at: Path, numbers: Iterable[int]) -> None:
        box = mailbox.Maildir(at / "box", create=False)
        found = {message["Subject"]: message.get_payload() for message in box}
        assert found == {f"number {n}": self._message(n).get_payload() for n in numbers}


PROGRAMS: tuple[Program, ...] = (Git(), Sqlite(), Rsync(), Zip(), Compile(), Maildir())


@pytest.fixture(scope="module")
def from_tape() -> Iterator[Path]:
    """A mount where every program's first half was done, archived, and read back from tape."""
    with new_host() as host:
        host.format().mount(OPTIONS)
        for program in PROGRAMS:
            program.before(directory_of(program, host.mountpoint))
        host.umount()
        host.forget()
        host.mount(OPTIONS)
        yield host.mountpoint
        host.umount()
        assert host.tapefs("verify", host.drive).code == 0


def directory_of(program: object, root: Path) -> Path:
    path = root / type(program).__name__
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: type(program).__name__)
def test_a_program_goes_on_with_what_came_from_tape(program: Program, from_tape: Path) -> None:
    program.after(directory_of(program, from_tape))
