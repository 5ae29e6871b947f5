"""The tape view: exactly what the tape says, as of its last closed tape file.

It is written only by applying journals, by the same code while mounted and when rolling forward,
so that a view rebuilt from tape equals the one that was there before, row for row.
"""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tapefs.catalog.application import TEMPORARY_TABLES, Application
from tapefs.catalog.checkpoint import export_view, import_view
from tapefs.catalog.creation import create_tape_view
from tapefs.catalog.database import APPLICATION_TAPE, Database, sync_path, translated
from tapefs.catalog.namespace import Namespace
from tapefs.catalog.rows import TAPE_FILE_COLUMNS, Counts, VolumeSettings, tape_file_from
from tapefs.entries import Entry, Inode, TapeFile
from tapefs.errors import DamagedTape, WrongTape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tapefs.drive import TapeAddress

_SELECT_FILE: Final = f"SELECT {TAPE_FILE_COLUMNS} FROM tape_file"


class TapeView(Namespace):
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
        self.path = writer.path
        for table in TEMPORARY_TABLES:
            writer.execute(table)
        self._next_ino = writer.integer_setting("next_ino")
        self._record_bytes = writer.integer_setting("record_bytes")
        # The last CRCs that were asked for: reads go through a tape file in order.
        self._crcs: tuple[int, bytes] = (0, b"")

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
    def settings(self) -> VolumeSettings:
        """What the volume's label says."""
        return VolumeSettings(
            UUID(str(self._database.setting("volume_uuid"))),
            str(self._database.setting("name")),
            self._database.integer_setting("record_bytes"),
            self._database.integer_setting("created_ns"),
            self._database.integer_setting("block_bytes", 0),
        )

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
                    f"INSERT INTO tape_file ({TAPE_FILE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        tape_file.sequence,
                        tape_file.kind.value,
                        tape_file.first_block,
                        tape_file.record_count,
                        tape_file.written_ns,
                        tape_file.crcs,
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

    def last_tape_file(self) -> TapeFile | None:
        """The last tape file after the label, or None when there is none."""
        row = self._database.first(f"{_SELECT_FILE} ORDER BY sequence DESC LIMIT 1")
        return tape_file_from(row) if row else None

    def expected_end(self) -> TapeAddress:
        """Where end of data must stand: after the last tape file's filemark."""
        last, geometry = self.last_tape_file(), self.settings.geometry
        return geometry.end_address(last) if last else geometry.first_tape_file

    def tape_files(self) -> Iterator[TapeFile]:
        """All tape files after the label in order, read one by one."""
        for row in self._database.stream(f"{_SELECT_FILE} ORDER BY sequence"):
            yield tape_file_from(row)

    def outlines(self) -> Iterator[TapeFile]:
        """All tape files as `tape_files`, each with one of its record checksums at most."""
        columns = TAPE_FILE_COLUMNS.replace("crcs", "substr(crcs, 1, 4)")
        for row in self._database.stream(f"SELECT {columns} FROM tape_file ORDER BY sequence"):
            yield tape_file_from(row)

    def tape_file(self, sequence: int) -> TapeFile | None:
        """The tape file with this number, or None."""
        row = self._database.first(f"{_SELECT_FILE} WHERE sequence = ?", (sequence,))
        return tape_file_from(row) if row else None

    def record_crc(self, sequence: int, record: int) -> int | None:
        """CRC-32C of record number `record` of a tape file, or None where it is not known."""
        if self._crcs[0] != sequence:
            tape_file = self.tape_file(sequence)
            if tape_file is None:
                return None
            self._crcs = (sequence, tape_file.crcs)
        crc = self._crcs[1][4 * record : 4 * record + 4]
        return int.from_bytes(crc, "big") if crc else None

    def last_checkpoint(self) -> TapeFile | None:
        """The last checkpoint, or None."""
        row = self._database.first(
            f"{_SELECT_FILE} WHERE kind = 'checkpoint' ORDER BY sequence DESC LIMIT 1"
        )
        return tape_file_from(row) if row else None

    def checkpoint(self, generation: int) -> TapeFile | None:
        """The checkpoint that is generation number `generation`, counted from 1, or None."""
        if generation < 1:
            return None
        row = self._database.first(
            f"{_SELECT_FILE} WHERE kind = 'checkpoint' ORDER BY sequence LIMIT 1 OFFSET ?",
            (generation - 1,),
        )
        return tape_file_from(row) if row else None

    def checkpoint_count(self) -> int:
        """How many checkpoints the tape has."""
        row = self._database.first("SELECT count(*) FROM tape_file WHERE kind = 'checkpoint'")
        assert row is not None
        return int(row[0])

    def files_since_checkpoint(self) -> list[TapeFile]:
        """The tape files after the last checkpoint, or all when there is none, in order."""
        rows = self._database.rows(
            f"{_SELECT_FILE} WHERE sequence > coalesce((SELECT max(sequence) FROM tape_file"
            " WHERE kind = 'checkpoint'), 0) ORDER BY sequence"
        )
        return [tape_file_from(row) for row in rows]

    def inode(self, ino: int) -> Inode | None:
        """An inode as the tape has it, or None."""
        row = self._inode_values(ino)
        return Inode(*row) if row else None

    def has_link(self, parent: int, name: bytes) -> bool:
        """Whether the tape knows `name` in directory `parent`."""
        return self.lookup(parent, name) is not None

    def has_inode(self, ino: int) -> bool:
        """Whether the tape knows this inode."""
        return self._database.first("SELECT 1 FROM inode WHERE ino = ?", (ino,)) is not None

    def counts(self) -> Counts:
        """How much the view holds. Reads through whole tables: seconds for millions of files."""
        row = self._database.first(
            "SELECT (SELECT count(*) FROM inode), (SELECT count(*) FROM dentry), count(*),"
            " (SELECT count(*) FROM tape_file), coalesce(sum(length), 0) FROM extent"
        )
        assert row is not None
        return Counts(*row)

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
        self._database.close()
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
