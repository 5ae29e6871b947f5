"""SQLite: the only package that says SQL.

`TapeView` is what the tape says, `Catalog` what users see and what this host still owes the tape,
`Snapshot` a frozen view of the latter for the archiver.
"""

from tapefs.catalog.database import remove_database
from tapefs.catalog.live import Catalog
from tapefs.catalog.namespace import NoSuchInode
from tapefs.catalog.rows import Counts, Staged, VolumeSettings
from tapefs.catalog.snapshot import Snapshot
from tapefs.catalog.tape_view import TapeView

__all__ = [
    "Catalog",
    "Counts",
    "NoSuchInode",
    "Snapshot",
    "Staged",
    "TapeView",
    "VolumeSettings",
    "remove_database",
]
