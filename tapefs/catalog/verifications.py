"""What verifications of a volume found, and when: a file of its own beside the two catalogs.

It says nothing about files and can be made from nothing, so it is never in the way: one that cannot
be read is made anew, and what it held is found out by verifying again.
"""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapefs import telemetry
from tapefs.catalog.database import (
    APPLICATION_VERIFIED,
    Database,
    building,
    lock_database,
)
from tapefs.entries import Damage, DamageKind
from tapefs.errors import StateUnusable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tapefs.entries import TapeFile

_STARTED: Final = "pass_started_ns"
_DAMAGE: Final = "sequence, position, length, kind, detail"


@dataclass(frozen=True, slots=True)
class VerificationSummary:
    """What is known about a volume's state.

    `proven_good_ns`: every tape file has been read since then and none is damaged; None when that
    cannot be said. Tape files of which nothing counts (torn ones) are not counted.
    """

    verified_count: int
    unverified_count: int
    damage_count: int
    damaged_bytes: int
    last_ns: int | None
    proven_good_ns: int | None


class Verifications:
    """The results for one volume, for one process at a time. For the trio thread."""

    def __init__(self, database: Database, lock: int | None) -> None:
        self._database = database
        self._lock: int | None = lock

    @classmethod
    def open(cls, path: Path) -> Verifications:
        """The results in `path`, made when missing or damaged.

        Raises DriveBusy when another process has them open, StateUnusable when the file can be
        neither used nor made.
        """
        lock = lock_database(path)
        try:
            if not path.exists():
                _create(path)
            try:
                database = Database.open(path, APPLICATION_VERIFIED)
            except StateUnusable as exc:
                telemetry.event(telemetry.VERIFICATIONS_LOST, logging.WARNING, reason=exc)
                # Not its lock, which is held here.
                for suffix in ("-wal", "-shm", ""):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                _create(path)
                database = Database.open(path, APPLICATION_VERIFIED)
        except BaseException:
            os.close(lock)
            raise
        return cls(database, lock)

    @classmethod
    def open_for_reading(cls, path: Path) -> Verifications:
        """The results in `path` for questions only, also while a mount has them open.

        Raises StateUnusable when there are none or they cannot be read.
        """
        return cls(Database.open(path, APPLICATION_VERIFIED, read_only=True), None)

    @property
    def pass_started_ns(self) -> int:
        """When the last verification of everything began; 0 when there was none."""
        return int(self._database.setting(_STARTED) or 0)

    def begin_pass(self, now_ns: int) -> None:
        """A verification of everything begins."""
        with self._database.transaction():
            self._database.set_setting(_STARTED, now_ns)

    def verified_ns(self, tape_file: TapeFile) -> int:
        """When `tape_file` was last read from its first to its last record; 0 if it never was."""
        row = self._database.first(
            "SELECT verified_ns FROM verified WHERE sequence = ? AND first_block = ?"
            " AND record_count = ? AND written_ns = ?",
            _identity(tape_file),
        )
        return row[0] if row else 0

    def note(self, tape_file: TapeFile, damages: Iterable[Damage], now_ns: int) -> None:
        """`tape_file` has been read; `damages` is all that is wrong with it."""
        with self._database.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?, ?)",
                (*_identity(tape_file), now_ns),
            )
            self._forget(tape_file.sequence)
            self._add(damages, now_ns)

    def note_label(self, damages: Iterable[Damage], now_ns: int) -> None:
        """The label has been read."""
        with self._database.transaction():
            self._forget(0)
            self._add(damages, now_ns)

    def add_damage(self, damages: Iterable[Damage], now_ns: int) -> None:
        """Some of the tape has been read, and this was found."""
        with self._database.transaction():
            self._add(damages, now_ns)

    def damages(self, since_ns: int = 0) -> Iterator[Damage]:
        """What is damaged and was found at `since_ns` or later, in tape order."""
        for row in self._database.stream(
            f"SELECT {_DAMAGE} FROM damage WHERE found_ns >= ? ORDER BY sequence, position",
            (since_ns,),
        ):
            sequence, position, length, kind, detail = row
            yield Damage(sequence, position, length, DamageKind(kind), detail)

    def summary(self, tape_files: Iterable[TapeFile]) -> VerificationSummary:
        """What is known about a volume that consists of `tape_files`."""
        moments: list[int] = []
        unverified = 0
        for tape_file in tape_files:
            if moment := self.verified_ns(tape_file):
                moments.append(moment)
            else:
                unverified += 1
        row = self._database.first("SELECT count(*), coalesce(sum(length), 0) FROM damage")
        assert row is not None
        good = bool(moments) and not unverified and not row[0]
        return VerificationSummary(
            verified_count=len(moments),
            unverified_count=unverified,
            damage_count=row[0],
            damaged_bytes=row[1],
            last_ns=max(moments, default=None),
            proven_good_ns=min(moments) if good else None,
        )

    def close(self) -> None:
        """Close the file. May be called again."""
        self._database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _forget(self, sequence: int) -> None:
        self._database.execute("DELETE FROM damage WHERE sequence = ?", (sequence,))

    def _add(self, damages: Iterable[Damage], now_ns: int) -> None:
        self._database.execute_many(
            f"INSERT OR REPLACE INTO damage ({_DAMAGE}, found_ns) VALUES (?, ?, ?, ?, ?, ?)",
            (
                (item.sequence, item.position, item.length, item.kind.value, item.detail, now_ns)
                for item in damages
            ),
        )


def _create(path: Path) -> None:
    with building(path, APPLICATION_VERIFIED, "verification.sql"):
        pass


def _identity(tape_file: TapeFile) -> tuple[int, int, int, int]:
    return (
        tape_file.sequence,
        tape_file.first_block,
        tape_file.record_count,
        tape_file.written_ns,
    )
