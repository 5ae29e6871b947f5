"""Where the head stands: what callers say, what is known, and how it is counted."""

from __future__ import annotations

from dataclasses import dataclass

from tapefs.errors import DriveFailed


class PositionUnknown(DriveFailed):
    """A write was asked for while nobody knows where it would go. A rewind or locate must come
    first.
    """


class PositionMismatch(DriveFailed):
    """The drive stands somewhere else than was counted: something moved the tape unseen.

    The position counts as unknown from then on.
    """


@dataclass(frozen=True, slots=True)
class TapeAddress:
    """One place on tape, in both ways a drive may be able to find it.

    `block` counts records and filemarks from the beginning of the partition (SSC-4 logical object
    identifier). `file` counts filemarks before it, `block_in_file` records since the last one.
    """

    block: int
    file: int
    block_in_file: int


@dataclass(frozen=True, slots=True)
class TapePosition:
    """What is known about where the head stands; None where it is not.

    `early_warning`: behind the early warning mark. `beginning`: nothing before the head.
    """

    block: int | None = None
    file: int | None = None
    block_in_file: int | None = None
    early_warning: bool = False
    beginning: bool = False


class PositionCounter:
    """Counts the position along with what is done. Each of the three numbers may be unknown."""

    __slots__ = ("block", "block_in_file", "early_warning", "file")

    def __init__(self) -> None:
        self.block: int | None = None
        self.file: int | None = None
        self.block_in_file: int | None = None
        self.early_warning = False

    @property
    def unknown(self) -> bool:
        """Neither block nor file number is known."""
        return self.block is None and self.file is None

    def lose(self) -> None:
        """Nothing is known any more."""
        self.block = self.file = self.block_in_file = None
        self.early_warning = False

    def place(self, block: int | None, file: int | None, block_in_file: int | None) -> None:
        """The head was brought here; what early warning there was is behind or ahead again."""
        self.block = block
        self.file = file
        self.block_in_file = block_in_file
        self.early_warning = False

    def pass_records(self, count: int = 1) -> None:
        """`count` records passed under the head, forwards, or backwards when negative."""
        if self.block is not None:
            self.block += count
        if self.block_in_file is not None:
            self.block_in_file += count

    def pass_filemarks(self, count: int = 1) -> None:
        """`count` adjacent filemarks passed, forwards or backwards; 0 passes nothing."""
        if self.block is not None:
            self.block += count
        if self.file is not None:
            self.file += count
        if count:
            self.block_in_file = 0 if count > 0 else None

    def address(self) -> TapeAddress | None:
        """Where the head stands, when all of it is known."""
        if self.block is None or self.file is None or self.block_in_file is None:
            return None
        return TapeAddress(self.block, self.file, self.block_in_file)

    def snapshot(self) -> TapePosition:
        """What is counted, as a value."""
        return TapePosition(
            self.block, self.file, self.block_in_file, self.early_warning, self.block == 0
        )
