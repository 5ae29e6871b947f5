"""What a filesystem does, said once more: names, links, attributes and content, and every errno.

Nothing here looks at tapefs for an answer, but for the time stamps. Each change is a new photo in
the history of the oracle; attributes that the mount then shows must be those of the photo.
"""

from __future__ import annotations

import dataclasses
import errno
import stat
from typing import TYPE_CHECKING

from oracle import Content, Node, Oracle, Photo, node_of, overwritten, resized, size_of

from tapefs.archive.tree import RENAME_EXCHANGE, RENAME_NOREPLACE
from tapefs.entries import ROOT_INO

if TYPE_CHECKING:
    from tapefs.catalog import Catalog

Place = tuple[int, bytes]
Names = dict[Place, int]
Nodes = dict[int, Node]


class Mismatch(Exception):
    """The mount did something else than a filesystem would."""


class Model:
    """The filesystem that users of one mount should see. All calls are made between two awaits.

    `refuse_*` gives the errno that the request must end with, or 0; the other methods take note
    that it succeeded.
    """

    def __init__(self, oracle: Oracle, catalog: Catalog) -> None:
        self.oracle = oracle
        self._catalog = catalog

    # -- looking

    @property
    def names(self) -> Names:
        """Every name."""
        return self.oracle.last.names

    @property
    def nodes(self) -> Nodes:
        """Every inode that has a name or had one since the mount."""
        return self.oracle.last.nodes

    def of_type(self, file_type: int) -> list[Place]:
        """The names of all files of a type, in the order of their making."""
        nodes = self.nodes
        return [place for place, ino in self.names.items() if nodes[ino].kind == file_type]

    def directories(self) -> list[int]:
        """The root and all other directories."""
        return [ROOT_INO, *(self.names[place] for place in self.of_type(stat.S_IFDIR))]

    def content(self, ino: int) -> Content:
        """What the file holds now."""
        return self.nodes[ino].content

    def _is_directory(self, ino: int) -> bool:
        return ino == ROOT_INO or stat.S_ISDIR(self.nodes[ino].mode)

    def _is_empty(self, ino: int) -> bool:
        return all(parent != ino for parent, _ in self.names)

    def _is_below(self, ino: int, ancestor: int) -> bool:
        parents = {child: parent for (parent, _), child in self.names.items()}
        while ino != ancestor and ino != ROOT_INO:
            ino = parents[ino]
        return ino == ancestor

    # -- names

    def refuse_new_name(self, place: Place) -> int:
        """For whatever makes a name."""
        return errno.EEXIST if place in self.names else 0

    def made(self, place: Place, ino: int, mode: int, target: bytes | None = None) -> None:
        """creat, mkdir, symlink, mknod."""
        is_directory = stat.S_ISDIR(mode)
        size = 0 if target is None else len(target)
        node = Node(mode, size, 2 if is_directory else 1, None, target, ())
        names, nodes = {**self.names, place: ino}, {**self.nodes, ino: node}
        self._touch(nodes, place[0], is_directory)
        self._become(names, nodes, ino, place[0])

    def refuse_link(self, ino: int, place: Place) -> int:
        """link(2)."""
        if place in self.names:
            return errno.EEXIST
        return errno.EPERM if self._is_directory(ino) else 0

    def linked(self, ino: int, place: Place) -> None:
        """link(2)."""
        names, nodes = {**self.names, place: ino}, {**self.nodes}
        nodes[ino] = dataclasses.replace(nodes[ino], nlink=nodes[ino].nlink + 1)
        self._touch(nodes, place[0])
        self._become(names, nodes, ino, place[0])

    def refuse_unlink(self, place: Place) -> int:
        """unlink(2)."""
        return errno.EISDIR if self._is_directory(self.names[place]) else 0

    def refuse_rmdir(self, place: Place) -> int:
        """rmdir(2)."""
        ino = self.names[place]
        if not self._is_directory(ino):
            return errno.ENOTDIR
        return 0 if self._is_empty(ino) else errno.ENOTEMPTY

    def removed(self, place: Place) -> None:
        """unlink(2), rmdir(2)."""
        names, nodes = {**self.names}, {**self.nodes}
        ino = names.pop(place)
        self._touch(nodes, place[0], -self._is_directory(ino))
        self._lose_name(nodes, ino)
        self._become(names, nodes, ino, place[0])

    def refuse_rename(self, old: Place, new: Place, flags: int) -> int:
        """renameat2(2) of a name that exists."""
        ino, replaced = self.names[old], self.names.get(new)
        if replaced is None and flags == RENAME_EXCHANGE:
            return errno.ENOENT
        if replaced is not None and flags == RENAME_NOREPLACE:
            return errno.EEXIST
        if replaced == ino:
            return 0
        if self._is_directory(ino) and self._is_below(new[0], ino):
            return errno.EINVAL
        if replaced is None:
            return 0
        if flags == RENAME_EXCHANGE:
            inside = self._is_directory(replaced) and self._is_below(old[0], replaced)
            return errno.EINVAL if inside else 0
        return self._refuse_replacing(ino, replaced)

    def _refuse_replacing(self, ino: int, replaced: int) -> int:
        if not self._is_directory(ino):
            return errno.EISDIR if self._is_directory(replaced) else 0
        if not self._is_directory(replaced):
            return errno.ENOTDIR
        return 0 if self._is_empty(replaced) else errno.ENOTEMPTY

    def renamed(self, old: Place, new: Place, flags: int) -> None:
        """renameat2(2)."""
        names, nodes = {**self.names}, {**self.nodes}
        ino, replaced = names[old], names.get(new)
        if replaced == ino:
            return
        if flags == RENAME_EXCHANGE and replaced is not None:
            names[old], names[new] = replaced, ino
            balance = self._is_directory(replaced) - self._is_directory(ino)
            self._touch(nodes, old[0], balance)
            self._touch(nodes, new[0], -balance)
        else:
            del names[old]
            names[new] = ino
            self._touch(nodes, old[0], -self._is_directory(ino))
            self._touch(nodes, new[0], self._is_directory(ino))
            if replaced is not None:
                self._touch(nodes, new[0], -self._is_directory(replaced))
                self._lose_name(nodes, replaced)
        self._become(names, nodes, ino, replaced, old[0], new[0])

    def _touch(self, nodes: Nodes, directory: int, subdirectories: int = 0) -> None:
        if directory != ROOT_INO:
            node = nodes[directory]
            nodes[directory] = dataclasses.replace(
                node, nlink=node.nlink + subdirectories, mtime_ns=None
            )

    def _lose_name(self, nodes: Nodes, ino: int) -> None:
        node = nodes[ino]
        nlink = 0 if self._is_directory(ino) else node.nlink - 1
        nodes[ino] = dataclasses.replace(node, nlink=nlink)

    # -- attributes and content

    def chmodded(self, ino: int, mode: int) -> None:
        """chmod(2)."""
        node = self.nodes[ino]
        self._change(ino, dataclasses.replace(node, mode=node.kind | mode))

    def set_time(self, ino: int, mtime_ns: int) -> None:
        """utimensat(2)."""
        self._change(ino, dataclasses.replace(self.nodes[ino], mtime_ns=mtime_ns))

    def set_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        """setxattr(2), removexattr(2)."""
        values = dict(self.nodes[ino].xattrs)
        values.pop(name, None)
        if value is not None:
            values[name] = value
        xattrs = tuple(sorted(values.items()))
        self._change(ino, dataclasses.replace(self.nodes[ino], xattrs=xattrs))

    def written(self, ino: int, offset: int, data: bytes) -> None:
        """pwrite(2)."""
        self._change(ino, self._holding(ino, overwritten(self.content(ino), offset, data)))

    def truncated(self, ino: int, size: int) -> None:
        """truncate(2)."""
        self._change(ino, self._holding(ino, resized(self.content(ino), size)))

    def may_be_written(self, ino: int, offset: int, data: bytes) -> None:
        """The world ends in the middle of a pwrite(2): its bytes may show or not."""
        node = self._holding(ino, overwritten(self.content(ino), offset, data))
        self.oracle.history.append(Photo(self.names, {**self.nodes, ino: node}))

    def touched(self, directory: int) -> None:
        """A name was made in a directory and taken away at once."""
        nodes = {**self.nodes}
        self._touch(nodes, directory)
        self._become(self.names, nodes, directory)

    def unchanged(self, ino: int) -> None:
        """A request failed: the file is what it was."""
        self._become(self.names, {**self.nodes}, ino)

    def _holding(self, ino: int, content: Content) -> Node:
        return dataclasses.replace(
            self.nodes[ino], size=size_of(content), mtime_ns=None, content=content
        )

    def _change(self, ino: int, node: Node) -> None:
        self._become(self.names, {**self.nodes, ino: node}, ino)

    def _become(self, names: Names, nodes: Nodes, *touched: int | None) -> None:
        """This is the tree now, if the mount shows it as well. Unlinked inodes may be gone."""
        for ino in touched:
            node = None if ino is None else nodes.get(ino)
            if ino is None or node is None or not node.nlink:
                continue
            shown = node_of(self._catalog.inode(ino), self._catalog.xattrs(ino), node.content)
            if not node.looks_like(shown):
                raise Mismatch(f"inode {ino} is {shown}, not {node}"[:600])
            nodes[ino] = shown
        self.oracle.history.append(Photo(names, nodes))
