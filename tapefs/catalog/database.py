"""One SQLite file: how it is made, opened and checked, and what its errors become.

Guarantees: a file appears under its name complete or not at all; every SQLite error except a
violated constraint reaches the caller as one sentence that names the file. Constraint violations
stay `sqlite3.IntegrityError`, because only the caller knows whether the tape or a bug is to blame.
"""

from __future__ import annotations

import fcntl
import importlib.resources
import os
import sqlite3
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from tapefs.errors import DriveBusy, SpoolFull, StateUnusable, TapefsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

Row: TypeAlias = tuple[Any, ...]

# Of the library that is in use.
SQLITE_VERSION: Final = sqlite3.sqlite_version

APPLICATION_TAPE: Final = 0x74665456
APPLICATION_LIVE: Final = 0x74664C56
APPLICATION_VERIFIED: Final = 0x74665652
# The layout of each kind of file. A tape view of layout 1 knows no closings and no journal lengths.
LAYOUTS: Final = {APPLICATION_TAPE: 2, APPLICATION_LIVE: 1, APPLICATION_VERIFIED: 1}
# The tables of a tape view beside those of namespace.sql.
TAPE_SCRIPTS: Final = ("tape.sql", "tape_file.sql")
# Page cache of one connection; it bounds memory however many files there are.
CACHE_BYTES: Final = 12 * 1024 * 1024
# The thread that commits folds the write-ahead log into the database only beyond this size (32
# MiB), because folding waits for the disk; `fold_log` in a worker thread does it before that.
LOG_PAGES_MAX: Final = 8192
# Connections of this process only ever wait for each other, and never long.
BUSY_TIMEOUT_S: Final = 2.0
# After these a transaction may be lost, and with it rows that callers believe written.
_FATAL_CODES: Final = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_NOMEM,
    )
)


class Closing(ABC):
    """What is closed at the end of a `with`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Database:
    """A connection that commits only when told to and translates errors.

    With `fail_stop`, the first error after which a transaction may be lost makes every later call
    raise `StateUnusable`: what is in memory and what is in the file could disagree from then on.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, *, fail_stop: bool) -> None:
        self.path = path
        self._connection = connection
        self._fail_stop = fail_stop
        self._failed = False

    @classmethod
    def open(
        cls,
        path: Path,
        application: int,
        *,
        read_only: bool = False,
        any_thread: bool = False,
        fail_stop: bool = False,
    ) -> Database:
        """Open the existing file `path`, which must carry the mark `application`.

        With `any_thread` the connection may move between threads, one caller at a time. Raises
        StateUnusable when it is missing, cannot be written, is damaged or of a newer version;
        DriveBusy when another process is writing to it.
        """
        mode = "ro" if read_only else "rw"
        with translated(path):
            if not path.is_file():
                raise StateUnusable(f"{path} does not exist; run 'tapefs rebuild' to make it")
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                timeout=BUSY_TIMEOUT_S,
                cached_statements=256,
                check_same_thread=not any_thread,
            )
        try:
            with translated(path):
                _configure(connection, read_only=read_only)
                if application == APPLICATION_TAPE and not read_only:
                    _bring_up_to_date(connection, path)
            _check_version(connection, path, application)
        except TapefsError:
            connection.close()
            raise
        return cls(connection, path, fail_stop=fail_stop)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._connection.in_transaction

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run one statement that returns no rows; gives the number of rows it changed."""
        self._refuse_after_failure()
        try:
            return self._connection.execute(sql, values).rowcount
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> int:
        """Run one statement for every row; gives the number of rows that all of them changed."""
        self._refuse_after_failure()
        try:
            return self._connection.executemany(sql, rows).rowcount
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def first(self, sql: str, values: Sequence[object] = ()) -> Row | None:
        """The first row of a query, or None."""
        self._refuse_after_failure()
        try:
            row: Row | None = self._connection.execute(sql, values).fetchone()
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc
        return row

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """All rows of a query that is known to give few."""
        self._refuse_after_failure()
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def stream(self, sql: str, values: Sequence[object] = ()) -> Iterator[Row]:
        """The rows of a query one after the other, in bounded memory."""
        self._refuse_after_failure()
        with translated(self.path):
            yield from self._connection.execute(sql, values)

    def setting(self, name: str) -> int | str | None:
        """The value called `name`, or None."""
        row = self.first("SELECT value FROM setting WHERE name = ?", (name,))
        return row[0] if row else None

    def integer_setting(self, name: str, default: int | None = None) -> int:
        """The integer called `name`. Raises StateUnusable when it is missing without a default."""
        value = self.setting(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int):
            raise StateUnusable(f"{self.path} lacks '{name}'; run 'tapefs rebuild'")
        return value

    def set_setting(self, name: str, value: int | str) -> None:
        """Store a value under `name`, replacing the one it had."""
        self.execute("INSERT OR REPLACE INTO setting (name, value) VALUES (?, ?)", (name, value))

    def begin(self) -> None:
        """Start a writing transaction."""
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End the open transaction, keeping it."""
        self.execute("COMMIT")

    def rollback(self) -> None:
        """End the open transaction, dropping it; does nothing when none is open."""
        with suppress(sqlite3.Error):
            self._connection.rollback()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is kept, or nothing when an exception leaves the block."""
        self.begin()
        try:
            yield
            self.commit()
        except BaseException:
            self.rollback()
            raise

    def close(self) -> None:
        """Drop an open transaction and close the connection. May be called again."""
        self.rollback()
        with suppress(sqlite3.Error):
            self._connection.close()

    def _refuse_after_failure(self) -> None:
        if self._failed:
            raise StateUnusable(
                f"{self.path} could not be written earlier; unmount, make sure that its disk "
                "works and has room, and mount again"
            )

    def _failure(self, exc: sqlite3.Error) -> TapefsError:
        if self._fail_stop and primary_code(exc) in _FATAL_CODES:
            self._failed = True
            self.rollback()
        return sentence_of(exc, self.path)


def fold_log(path: Path) -> None:
    """Fold the write-ahead log of `path` into it, as far as its readers allow.

    Uses a connection of its own: any thread may call it while others use the database. Raises
    StateUnusable when the file cannot be opened or written.
    """
    with translated(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None
        )
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            connection.close()


def lock_database(path: Path) -> int:
    """Keep other processes off the database `path`; closing the descriptor lets it go.

    Raises DriveBusy when another process holds it, StateUnusable when its directory is unusable.
    """
    file = path.with_name(path.name + ".lock")
    with translated(file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(descriptor)
            raise DriveBusy(
                f"another tapefs process uses this volume's catalog {path}: where 'tapefs status' "
                "says that it is mounted, with --offline perhaps, unmount it; else wait, and try "
                "again"
            ) from exc
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def remove_database(path: Path) -> None:
    """Delete the file `path` with its log; it must not be open. A missing file is no error.

    The log goes first: a log that is left beside a new file of the same name would be replayed
    into it.
    """
    for suffix in ("-journal", "-wal", "-shm", ".lock", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextmanager
def building(path: Path, application: int, *scripts: str) -> Iterator[sqlite3.Connection]:
    """A connection for filling a new file that appears as `path` when the block ends well.

    The file has the tables of `scripts`, is written without a journal and is on disk, name and
    all, when it appears. Raises StateUnusable when `path` exists or its directory is unusable.
    """
    unfinished = path.with_name(path.name + ".new")
    with translated(path):
        if path.exists():
            raise StateUnusable(f"{path} exists already; remove it to make a new one")
        remove_database(unfinished)
        connection = sqlite3.connect(
            f"{unfinished.absolute().as_uri()}?mode=rwc", uri=True, isolation_level=None
        )
        try:
            for pragma in (
                "journal_mode = OFF",
                "synchronous = OFF",
                "trusted_schema = OFF",
                f"cache_size = -{CACHE_BYTES // 1024}",
            ):
                connection.execute(f"PRAGMA {pragma}")
            run_scripts(connection, *scripts)
            yield connection
            for mark in ("application_id", application), ("user_version", LAYOUTS[application]):
                connection.execute("PRAGMA {} = {}".format(*mark))
            connection.close()
            sync_path(unfinished)
            unfinished.rename(path)
            sync_path(path.parent)
        except BaseException:
            connection.close()
            remove_database(unfinished)
            raise


def run_scripts(connection: sqlite3.Connection, *names: str) -> None:
    """Run SQL files of this package one after the other; transactions are theirs to begin."""
    package = importlib.resources.files("tapefs.catalog")
    connection.executescript(
        "".join(package.joinpath(name).read_text(encoding="utf-8") for name in names)
    )


def sentences(*names: str) -> list[tuple[str, str]]:
    """The queries of SQL files of this package, each with the sentence (`--!`) before it."""
    package = importlib.resources.files("tapefs.catalog")
    texts = [package.joinpath(name).read_text(encoding="utf-8") for name in names]
    parts = [part.partition("\n") for text in texts for part in text.split("--! ")[1:]]
    return [(sentence, query) for sentence, _, query in parts]


def sync_path(path: Path) -> None:
    """Wait until the file or directory `path` is on the disk. No connection may be open on it.

    (Closing any descriptor of a file drops the locks that SQLite holds on it.)
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns errors of SQLite and of the system into sentences about `path`."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as exc:
        raise sentence_of(exc, path) from exc
    except UnicodeDecodeError as exc:
        # SQLite quotes what it found in a damaged schema.
        raise StateUnusable(f"{path} is damaged; run 'tapefs rebuild' to make it anew") from exc
    except OSError as exc:
        raise StateUnusable(f"{path} cannot be used: {exc.strerror}; check its disk") from exc


def primary_code(exc: sqlite3.Error) -> int:
    """SQLite's primary result code of an error, 0 when it came from Python's binding."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF


def sentence_of(exc: sqlite3.Error, path: Path) -> TapefsError:
    """The error that a caller of this package gets for `exc`."""
    code = primary_code(exc)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DriveBusy(f"another process is using {path}; end it first")
    if code == sqlite3.SQLITE_FULL:
        return SpoolFull(f"no room is left on the disk for {path}; free some and mount again")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StateUnusable(f"{path} is damaged ({exc}); run 'tapefs rebuild' to make it anew")
    if code == sqlite3.SQLITE_READONLY:
        return StateUnusable(f"{path} cannot be written; check its permissions and its disk")
    return StateUnusable(f"{path} cannot be used ({exc}); check its disk and its permissions")


def _configure(connection: sqlite3.Connection, *, read_only: bool) -> None:
    for pragma in (
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "foreign_keys = OFF",
        # Pages come through read(2): a mapped file that is cut short would kill the daemon
        # with SIGBUS where a read gives an error.
        "mmap_size = 0",
        f"cache_size = -{CACHE_BYTES // 1024}",
        "synchronous = NORMAL",
        f"wal_autocheckpoint = {LOG_PAGES_MAX}",
        f"journal_size_limit = {LOG_PAGES_MAX * 4096}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    if read_only:
        return
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    # A file that may not be written opens without complaint; only a write tells.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")


def _check_version(connection: sqlite3.Connection, path: Path, application: int) -> None:
    with translated(path):
        (mark,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if mark != application:
        raise StateUnusable(f"{path} is not what its name says; move it away")
    layout = LAYOUTS[application]
    if version < layout:
        raise StateUnusable(
            f"{path} has layout {version} of an older tapefs; mount its volume once, which brings "
            "it up to date"
        )
    if version > layout:
        raise StateUnusable(
            f"{path} has layout {version}, this tapefs knows {layout}; "
            "use the tapefs that made it, or run 'tapefs rebuild'"
        )


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """Give a tape view of layout 1 the layout of today: all of it, or nothing."""
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (mark, version) != (APPLICATION_TAPE, 1):
        return
    try:
        run_scripts(connection, "tape_layout_1.sql", "tape_file.sql", "tape_layout_2.sql")
    except sqlite3.IntegrityError as exc:
        raise StateUnusable(
            f"{path} is damaged ({exc}); run 'tapefs rebuild' to make it anew"
        ) from exc
