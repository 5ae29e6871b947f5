"""One object per inode: what makes it safe to change an Inode in place."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tapefs.entries import Inode

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(weakref_slot=True, slots=True, eq=False)
class CachedInode(Inode):  # noqa: PLW1641 (mutable, so not hashable, as Inode is)
    """An Inode that the cache can find again as long as anyone holds it."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Inode):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in Inode.__slots__)


class InodeCache:
    """Gives the same object for an inode as long as anyone holds it.

    The `capacity_count` used last are held here; modified ones are held until they are written,
    however many came after them.
    """

    def __init__(self, capacity_count: int) -> None:
        self._capacity_count = capacity_count
        self._alive: WeakValueDictionary[int, CachedInode] = WeakValueDictionary()
        self._recent: OrderedDict[int, CachedInode] = OrderedDict()
        self._modified: dict[int, CachedInode] = {}

    @property
    def modified_count(self) -> int:
        """How many inodes wait to be written."""
        return len(self._modified)

    def find(self, ino: int) -> CachedInode | None:
        """The object of this inode, if there is one."""
        inode = self._recent.get(ino)
        if inode is not None:
            self._recent.move_to_end(ino)
            return inode
        inode = self._alive.get(ino)
        if inode is not None:
            self._hold(inode)
        return inode

    def add(self, inode: CachedInode) -> None:
        """Make `inode` the object of its number, which must not have one."""
        assert inode.ino not in self._alive, f"inode {inode.ino} has an object already"
        self._alive[inode.ino] = inode
        self._hold(inode)

    def mark_modified(self, inode: Inode) -> bool:
        """Hold `inode` until it is written; False when it is not the object of its number."""
        known = self._modified.get(inode.ino) or self.find(inode.ino)
        if known is not inode:
            return False
        self._modified[inode.ino] = known
        return True

    def modified(self) -> Iterator[CachedInode]:
        """The inodes to write, in the order of their numbers."""
        return (self._modified[ino] for ino in sorted(self._modified))

    def clear_modified(self) -> None:
        """Take note that all modified inodes were written."""
        self._modified.clear()

    def drop(self, ino: int) -> None:
        """Forget an inode that is gone; objects of it that callers hold have no meaning more."""
        self._modified.pop(ino, None)
        self._recent.pop(ino, None)
        self._alive.pop(ino, None)

    def _hold(self, inode: CachedInode) -> None:
        self._recent[inode.ino] = inode
        if len(self._recent) > self._capacity_count:
            self._recent.popitem(last=False)
