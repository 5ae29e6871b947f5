"""The tape view as those read it who only ask: no lock, no write, not even an attempt at one."""

# ruff: noqa: S608 (every part of a statement is a constant)
from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

from tapefs.catalog.database import APPLICATION_TAPE, Database
from tapefs.catalog.namespace import Namespace
from tapefs.catalog.rows import TAPE_FILE_COLUMNS, Counts, VolumeSettings, tape_file_from
from tapefs.entries import Inode, TapeFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tapefs.drive import TapeAddress

_SELECT_FILE: Final = f"SELECT {TAPE_FILE_COLUMNS} FROM tape_file"
# As the index in tape.sql has it: `TapeFile.ends_generation`.
_ENDS_GENERATION: Final = "kind IN ('checkpoint', 'closing')"


class TapeReader(Namespace):
    """Questions about what the tape of one volume says.

    Each answer is of what was committed when it was asked, also while another process mounts the
    volume and writes. Methods raise StateUnusable when the file is damaged or its disk fails.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.path = database.path

    @staticmethod
    def open_for_reading(path: Path) -> TapeReader:
        """The view in `path`, also while a mount has it open. Raises StateUnusable."""
        return TapeReader(Database.open(path, APPLICATION_TAPE, read_only=True, any_thread=True))

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

    def last_checkpoint(self) -> TapeFile | None:
        """The last checkpoint, or None."""
        row = self._database.first(
            f"{_SELECT_FILE} WHERE kind = 'checkpoint' ORDER BY sequence DESC LIMIT 1"
        )
        return tape_file_from(row) if row else None

    def checkpoint_before(self, sequence: int) -> TapeFile | None:
        """The last checkpoint up to tape file `sequence`, which may be it, or None."""
        row = self._database.first(
            f"{_SELECT_FILE} WHERE kind = 'checkpoint' AND sequence <= ?"
            " ORDER BY sequence DESC LIMIT 1",
            (sequence,),
        )
        return tape_file_from(row) if row else None

    def generation_end(self, generation: int) -> TapeFile | None:
        """The tape file that ends generation number `generation`, counted from 1, or None."""
        if generation < 1:
            return None
        row = self._database.first(
            f"{_SELECT_FILE} WHERE {_ENDS_GENERATION} ORDER BY sequence LIMIT 1 OFFSET ?",
            (generation - 1,),
        )
        return tape_file_from(row) if row else None

    def generation_count(self) -> int:
        """How many generations the tape has."""
        row = self._database.first(f"SELECT count(*) FROM tape_file WHERE {_ENDS_GENERATION}")
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

    def has_inode(self, ino: int) -> bool:
        """Whether the tape knows this inode."""
        return self._database.first("SELECT 1 FROM inode WHERE ino = ?", (ino,)) is not None

    @property
    def inode_count_max(self) -> int:
        """A bound on how many inodes there are, at once: each but the root has a name."""
        row = self._database.first("SELECT coalesce(max(cookie), 0) FROM dentry")
        assert row is not None
        return int(row[0]) + 1

    def counts(self) -> Counts:
        """How much the view holds. Reads through whole tables: seconds for millions of files."""
        row = self._database.first(
            "SELECT (SELECT count(*) FROM inode), (SELECT count(*) FROM dentry), count(*),"
            " (SELECT count(*) FROM tape_file), coalesce(sum(length), 0) FROM extent"
        )
        assert row is not None
        return Counts(*row)

    def close(self) -> None:
        """Close the file. May be called again."""
        self._database.close()
