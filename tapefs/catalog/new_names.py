"""Names given since the catalog wrote last: kept here, and written in one go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tapefs.catalog.database import Database

# Names kept until they are written.
_PENDING_MAX: Final = 2_000

_LINK: Final = (
    "INSERT INTO dentry (parent, name, ino) VALUES (?, ?, ?)"
    " ON CONFLICT (parent, name) DO UPDATE SET ino = excluded.ino"
)
_NOTE: Final = "INSERT OR REPLACE INTO dentry_change (parent, name, epoch) VALUES (?, ?, ?)"
_UNLINK: Final = "DELETE FROM dentry WHERE parent = ? AND name = ?"

Place = tuple[int, bytes]


class NewNames:
    """What is to be written to `dentry` and `dentry_change` within the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._given: dict[Place, int] = {}
        # The last place that was asked for in vain: whoever looks before making asks twice.
        self._free: Place | None = None

    def lookup(self, place: Place) -> int | None:
        """What has this name, or None."""
        if place == self._free:
            return None
        ino = self._given.get(place)
        if ino is not None:
            return ino
        row = self._database.first("SELECT ino FROM dentry WHERE parent = ? AND name = ?", place)
        if row is None:
            self._free = place
            return None
        found: int = row[0]
        return found

    def give(self, place: Place, ino: int, epoch: int) -> None:
        """`ino` has this name from now on, instead of what had it."""
        self._free = None
        self._given[place] = ino
        if len(self._given) >= _PENDING_MAX:
            self.write(epoch)

    def take(self, place: Place, epoch: int) -> None:
        """Nothing has this name any more."""
        self.write(epoch)
        self._free = None
        if self._database.execute(_UNLINK, place):
            self._database.execute(_NOTE, (*place, epoch))

    def write(self, epoch: int) -> None:
        """Let the tables say everything; these are changes of `epoch`."""
        if not self._given:
            return
        given, self._given = self._given, {}
        self._database.execute_many(_LINK, ((*place, ino) for place, ino in given.items()))
        self._database.execute_many(_NOTE, ((*place, epoch) for place in given))

    def forget(self) -> None:
        """The transaction was dropped back to where `write` was called last."""
        self._given.clear()
        self._free = None
