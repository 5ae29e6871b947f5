"""How a mount ends on tape: with a checkpoint, or with a word that names the last one. Pure.

A checkpoint holds the whole catalog. Where that is large, a slow drive writes it for minutes, for
one changed file as for thousands. The segments since the last checkpoint hold all that changed, so
a closing, one record, ends the generation just as well. What it costs is paid by whoever mounts
from the tape alone: their journals are read as well, and the drive goes from one to the next. So
there is a bound to both, and where a checkpoint is small there is nothing to be saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapefs.config import Config
    from tapefs.entries import TapeFile


def closing_suffices(
    checkpoint_bytes: int, since_checkpoint: Sequence[TapeFile], config: Config
) -> bool:
    """Whether a closing may follow the tape files `since_checkpoint`, of which the last is written.

    The last checkpoint has `checkpoint_bytes`. A new one is due when it would be small; when the
    journals since have grown as large, so that it costs no more than has been written anyway; when
    they are many; and when what was salvaged would have to be salvaged again.
    """
    journal_bytes = sum(file.index_bytes for file in since_checkpoint)
    if checkpoint_bytes + journal_bytes <= config.small_checkpoint_bytes:
        return False
    if journal_bytes >= checkpoint_bytes or any(file.salvaged for file in since_checkpoint):
        return False
    return len(since_checkpoint) < config.checkpoint_segments
