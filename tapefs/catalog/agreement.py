"""Whether the live catalog and the tape view agree, as far as SQL can tell."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tapefs.catalog.database import sentences, translated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Inodes whose extents are not the same rows in both.
_ODD_EXTENTS: Final = """
SELECT DISTINCT ino FROM (
    SELECT * FROM (SELECT * FROM main.extent EXCEPT SELECT * FROM tape.extent)
    UNION ALL
    SELECT * FROM (SELECT * FROM tape.extent EXCEPT SELECT * FROM main.extent)
) WHERE ino IN (SELECT ino FROM main.inode) ORDER BY ino
"""


def complaints(live: Path, view: Path) -> Iterator[str]:
    """A sentence for each thing that is wrong in or between two catalogs of one volume.

    Only what is committed counts; nothing may be committed meanwhile. Raises StateUnusable when
    one of the files cannot be read.
    """
    for path, names in (
        (live, ("namespace_checks.sql",)),
        (view, ("namespace_checks.sql", "view_checks.sql")),
    ):
        with _reading(path) as connection:
            for sentence, query in sentences(*names):
                if connection.execute(query).fetchone():
                    yield f"{path} {sentence}"
    with _reading(live, view) as connection:
        for sentence, query in sentences("agreement_checks.sql"):
            row = connection.execute(query).fetchone()
            if row is not None:
                yield f"{live} {sentence.format(row[0])}"


def inodes_with_odd_extents(live: Path, view: Path) -> list[int]:
    """The files of `live` whose content stands elsewhere on tape than `view` says.

    That is right where the content is about to go to tape again. Raises StateUnusable.
    """
    with _reading(live, view) as connection:
        return [row[0] for row in connection.execute(_ODD_EXTENTS)]


@contextmanager
def _reading(path: Path, tape: Path | None = None) -> Iterator[sqlite3.Connection]:
    with translated(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
        )
        try:
            if tape is not None:
                connection.execute("ATTACH ? AS tape", (f"{tape.absolute().as_uri()}?mode=ro",))
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()
