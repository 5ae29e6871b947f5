"""The tape view: exactly what the tape says, as of its last closed tape file.

It is written only by applying journals, by the same code while mounted and when rolling forward,
so that a view rebuilt from tape equals the one that was there before, row for row.
"""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tapefs.catalog.application import TEMPORARY_TABLES, Application
from tapefs.catalog.checkpoint import export_view, import_view
from tapefs.catalog.creation import create_tape_view
from tapefs.catalog.database import APPLICATION_TAPE, Database, sync_path, translated
from tapefs.catalog.rows import TAPE_FILE_COLUMNS, VolumeSettings
from tapefs.catalog.tape_reader import TapeReader
from tapefs.errors import DamagedTape, WrongTape

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tapefs.entries import Entry, TapeFile


class TapeView(TapeReader):
    """The catalog of one volume as the tape has it.

    Synchronous. One thread at a time may call `apply`, and one `export`; meanwhile others may ask
    questions and get the answers from before `apply`, until it returns. Methods raise
    StateUnusable when the file is damaged or its disk fails.
    """

    def __init__(self, writer: Database, reader: Database) -> None:
        # Questions have their own connection: on the writer's they would wait for the long
        # statements at the end of a journal, and see it half applied.
        super().__init__(reader)
        self._writer = writer
        for table in TEMPORARY_TABLES:
            writer.execute(table)
        self._next_ino = writer.integer_setting("next_ino")
        self._record_bytes = writer.integer_setting("record_bytes")

    @classmethod
    def create(cls, path: Path, settings: VolumeSettings) -> TapeView:
        """Make the view of a volume that holds nothing but its label and its root directory.

        Raises StateUnusable when `path` exists or cannot be made.
        """
        create_tape_view(path, settings)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> TapeView:
        """Open the view in `path`. Raises StateUnusable or DriveBusy as `Database.open` does."""
        with ExitStack() as opened:
            writer = Database.open(path, APPLICATION_TAPE, any_thread=True)
            opened.callback(writer.close)
            reader = Database.open(path, APPLICATION_TAPE, any_thread=True, read_only=True)
            opened.callback(reader.close)
            view = cls(writer, reader)
            opened.pop_all()
        return view

    @classmethod
    def import_checkpoint(cls, checkpoint: Path, path: Path) -> TapeView:
        """Make a view in `path` from the (decompressed) copy that a checkpoint holds.

        Nothing in the copy is believed: every row is checked and written anew. Raises DamagedTape
        when it is not a sound view, StateUnusable when `path` exists or cannot be made.
        """
        import_view(checkpoint, path)
        return cls.open(path)

    def export(self, path: Path) -> None:
        """Write a standalone copy of what is committed to the new file `path`.

        Equal rows give equal bytes (with one version of SQLite). The copy has no indexes. May run
        in another thread while this view is in use. Raises StateUnusable.
        """
        export_view(self.path, path)

    @property
    def next_ino(self) -> int:
        """One more than the highest inode number that was ever on this tape."""
        return self._next_ino

    def apply(self, tape_file: TapeFile, entries: Iterable[Entry]) -> bool:
        """Record `tape_file` and apply its journal's `entries`, all or nothing.

        Entries are taken one by one; memory does not grow with their number. Returns False, and
        takes none, when this tape file was applied before. Raises WrongTape when it does not
        follow the last one without a gap, DamagedTape when the entries contradict each other or
        hold what no filesystem would. Whatever `entries` raises comes through; nothing is kept.
        """
        if not self._follows(tape_file):
            return False
        try:
            with self._writer.transaction():
                application = Application(
                    self._writer,
                    tape_file.sequence,
                    self._next_ino,
                    tape_file.record_count * self._record_bytes,
                )
                application.add_all(entries)
                application.finish()
                self._writer.execute(
                    f"INSERT INTO tape_file ({TAPE_FILE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        tape_file.sequence,
                        tape_file.kind.value,
                        tape_file.first_block,
                        tape_file.record_count,
                        tape_file.written_ns,
                        tape_file.crcs,
                        tape_file.index_bytes,
                    ),
                )
                self._writer.set_setting("next_ino", application.next_ino)
        except (sqlite3.IntegrityError, OverflowError) as exc:
            raise DamagedTape(
                f"the journal of tape file {tape_file.sequence} holds an impossible value "
                f"({exc}); mount an earlier checkpoint or restore with tar"
            ) from exc
        self._next_ino = application.next_ino
        return True

    def sync(self) -> None:
        """Wait until everything applied survives power loss. May run in any thread.

        Raises StateUnusable when the disk fails.
        """
        log = self.path.with_name(self.path.name + "-wal")
        with translated(self.path):
            if log.exists():
                sync_path(log)

    def close(self) -> None:
        """Close the file. May be called again."""
        super().close()
        self._writer.close()

    def _follows(self, tape_file: TapeFile) -> bool:
        """Whether `tape_file` comes next; False when it is there already."""
        expected = self.expected_end()
        expected_sequence, expected_block = expected.file, expected.block
        if tape_file.sequence < expected_sequence:
            return False
        if tape_file.sequence > expected_sequence or tape_file.first_block != expected_block:
            raise WrongTape(
                f"tape file {tape_file.sequence} at block {tape_file.first_block} does not follow: "
                f"the catalog expects tape file {expected_sequence} at block {expected_block}; "
                "run 'tapefs rebuild'"
            )
        return True
