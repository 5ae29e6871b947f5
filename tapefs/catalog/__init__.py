"""SQLite: the only package that says SQL.

`TapeView` is what the tape says, `Catalog` what users see and what this host still owes the tape,
`Snapshot` a frozen view of the latter for the archiver, `ShelfCatalog` the one for everybody else;
`Verifications` what was read back and found right or wrong, `RecallOrder` what a recall into a
directory has to do.
"""

from tapefs.catalog.checkpoint import export_view, import_view
from tapefs.catalog.copies import CopyTable, HashTable
from tapefs.catalog.database import SQLITE_VERSION, remove_database
from tapefs.catalog.live import Catalog
from tapefs.catalog.namespace import NoSuchInode
from tapefs.catalog.portrait import PortraitCatalog
from tapefs.catalog.recall_order import Item, RecallOrder
from tapefs.catalog.rows import Counts, Staged, VolumeSettings
from tapefs.catalog.shelf import Named, ShelfCatalog, Totals, Wanted
from tapefs.catalog.snapshot import Snapshot, SnapshotFile
from tapefs.catalog.tape_reader import TapeReader
from tapefs.catalog.tape_view import TapeView
from tapefs.catalog.verifications import Verifications

__all__ = [
    "SQLITE_VERSION",
    "Catalog",
    "CopyTable",
    "Counts",
    "HashTable",
    "Item",
    "Named",
    "NoSuchInode",
    "PortraitCatalog",
    "RecallOrder",
    "ShelfCatalog",
    "Snapshot",
    "SnapshotFile",
    "Staged",
    "TapeReader",
    "TapeView",
    "Totals",
    "Verifications",
    "VolumeSettings",
    "Wanted",
    "export_view",
    "import_view",
    "remove_database",
]
