"""What a filesystem may look like after the world stopped: the oracle of the crash tests.

A `Photo` is the whole tree at one moment. The history of photos, and which of them somebody was
promised, decide what a later mount may show. Content is kept in chunks that photos share, so that
a long history of a large file is cheap.
"""

from __future__ import annotations

import dataclasses
import itertools
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tapefs.entries import ROOT_INO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from volume_rig import User

    from tapefs.entries import Inode

CHUNK_BYTES = 64 * 1024
_PIECE_BYTES = 16

Content = tuple[bytes, ...]


def chunked(data: bytes) -> Content:
    """`data` in chunks."""
    return tuple(data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))


def size_of(content: Content) -> int:
    """Bytes in all chunks."""
    return sum(map(len, content))


def overwritten(content: Content, offset: int, data: bytes) -> Content:
    """`content` after a write; what lies between its end and `offset` becomes zeros."""
    first = min(offset, size_of(content)) // CHUNK_BYTES
    stop = (offset + len(data)) // CHUNK_BYTES + 1
    base = first * CHUNK_BYTES
    changed = bytearray(b"".join(content[first:stop]))
    if len(changed) < offset - base:
        changed.extend(bytes(offset - base - len(changed)))
    changed[offset - base : offset - base + len(data)] = data
    return (*content[:first], *chunked(bytes(changed)), *content[stop:])


def resized(content: Content, size: int) -> Content:
    """`content` after a truncate."""
    length = size_of(content)
    if size >= length:
        return overwritten(content, size, b"")
    full, rest = divmod(size, CHUNK_BYTES)
    return (*content[:full], content[full][:rest]) if rest else content[:full]


@dataclass(frozen=True, slots=True)
class Node:
    """One inode in a photo. `mtime_ns` None: not known yet, the change is under way."""

    mode: int
    size: int
    nlink: int
    mtime_ns: int | None
    target: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: Content = ()

    @property
    def kind(self) -> int:
        """The type bits of the mode."""
        return stat.S_IFMT(self.mode)

    def looks_like(self, other: Node, *, nlink: bool = True) -> bool:
        """Whether all attributes agree, as far as both are known."""
        times = (self.mtime_ns, other.mtime_ns)
        return (
            (self.mode, self.size, self.target, self.xattrs)
            == (other.mode, other.size, other.target, other.xattrs)
            and (None in times or times[0] == times[1])
            and (not nlink or self.nlink == other.nlink)
        )


@dataclass(slots=True)
class Photo:
    """The tree at one moment: names by (directory, name), inodes by number."""

    names: dict[tuple[int, bytes], int] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)

    def path(self, place: tuple[int, bytes]) -> bytes:
        """The path of a name."""
        parent, path = place
        while parent != ROOT_INO:
            (parent, name) = next(at for at, ino in self.names.items() if ino == parent)
            path = name + b"/" + path
        return path

    def shows_under_path(self, place: tuple[int, bytes], other: Photo) -> bool:
        """Whether `other` has under the same path the same file, or any directory.

        What is salvaged from a torn segment has its path, but not its directories' numbers.
        """
        ino, path = self.names[place], self.path(place)
        if stat.S_ISDIR(self.nodes[ino].mode):
            return any(
                stat.S_ISDIR(other.nodes[twin].mode) and other.path(at) == path
                for at, twin in other.names.items()
            )
        return any(twin == ino and other.path(at) == path for at, twin in other.names.items())

    def is_at_home(self, ino: int, window: Sequence[Photo]) -> bool:
        """Whether one of `window` has directory `ino` under a name that it has here as well."""
        if ino == ROOT_INO:
            return True
        places = [place for place, named in self.names.items() if named == ino]
        return any(photo.names.get(place) == ino for photo in window for place in places)


def node_of(inode: Inode, xattrs: dict[bytes, bytes], content: Content) -> Node:
    """What a photo shows of an inode."""
    return Node(
        inode.mode,
        inode.size,
        inode.nlink,
        inode.mtime_ns,
        inode.target,
        tuple(sorted(xattrs.items())),
        content,
    )


def names_of(user: User) -> Iterator[tuple[int, bytes, int]]:
    """Every name of a mounted volume."""
    catalog = user.volume.catalog
    stack = [ROOT_INO]
    while stack:
        directory = stack.pop()
        for _, name, ino in catalog.children(directory, 0, 1 << 30):
            yield directory, name, ino
            if stat.S_ISDIR(catalog.inode(ino).mode):
                stack.append(ino)


async def _read(user: User, inode: Inode) -> bytes:
    contents, size = user.volume.contents, inode.size
    await contents.open(inode.ino, write=False)
    try:
        pieces = [
            await contents.read(inode.ino, at, min(CHUNK_BYTES, size - at))
            for at in range(0, size, CHUNK_BYTES)
        ]
    finally:
        await contents.release(inode.ino, write=False)
    return b"".join(pieces)


async def photograph(user: User) -> Photo:
    """The tree as a program sees it now, all content read."""
    photo = Photo()
    catalog = user.volume.catalog
    for parent, name, ino in list(names_of(user)):
        photo.names[parent, name] = ino
        if ino not in photo.nodes:
            inode = catalog.inode(ino)
            content: Content = ()
            if stat.S_ISREG(inode.mode):
                content = chunked(await _read(user, inode))
            photo.nodes[ino] = node_of(inode, catalog.xattrs(ino), content)
    return photo


class Oracle:
    """The history of photos, and what was promised about them.

    The last photo may be of a change under way: it may have happened or not.
    """

    def __init__(self, start: Photo) -> None:
        self.history = [start]
        # Everything up to these photos survives the daemon, and the host.
        self.kept = self.on_tape = 0
        # Photo at which the content of an inode was last made safe against power loss.
        self.content_synced: dict[int, int] = {}

    @property
    def now(self) -> int:
        """Number of the last photo."""
        return len(self.history) - 1

    @property
    def last(self) -> Photo:
        """The last photo."""
        return self.history[-1]

    def fsynced(self, ino: int, moment: int) -> None:
        """fsync(2), called at photo `moment`, has returned."""
        self.kept = max(self.kept, moment)
        self.content_synced[ino] = moment

    def synced(self, moment: int) -> None:
        """A sync that was called at photo `moment` has returned."""
        self.kept, self.on_tape = max(self.kept, moment), max(self.on_tape, moment)
        self.content_synced |= dict.fromkeys(self.history[moment].nodes, moment)

    def frozen(self) -> Oracle:
        """What can be said at this moment, whatever happens later."""
        twin = Oracle(self.history[0])
        twin.history = [*self.history]
        twin.kept, twin.on_tape = self.kept, self.on_tape
        twin.content_synced = {**self.content_synced}
        return twin

    def after_crash(self, found: Photo) -> Oracle:
        """The oracle of the life that begins with `found`, which a mount showed after a crash.

        What the tape alone shows may still be as old as the last sync before it.
        """
        following = Oracle(found)
        following.history = [*self.history[self.on_tape :], found]
        following.kept = following.now
        return following

    def judge_same_host(self, found: Photo, *, power_lost: bool = False) -> str | None:
        """None when `found` is a photo taken since the last promise; else what is wrong.

        Bytes written in place later may show: no filesystem orders them with metadata. After
        power loss, bytes that changed since somebody asked them to be safe may be anything.
        """
        reasons = []
        for moment in range(self.now, self.kept - 1, -1):
            reason = self._differs(found, moment, power_lost=power_lost)
            if reason is None:
                return None
            reasons.append(f"photo {moment}: {reason}")
        return f"like none of {self.kept}..{self.now}: " + "; ".join(sorted(reasons, key=len)[:3])

    def _differs(self, found: Photo, moment: int, *, power_lost: bool) -> str | None:
        photo = self.history[moment]
        if found.names != photo.names:
            odd = found.names.items() ^ photo.names.items()
            return f"names differ: {sorted(odd)[:3]}"
        for ino, node in found.nodes.items():
            expected = photo.nodes[ino]
            synced = self.content_synced.get(ino)
            safe = synced is not None and self._content(ino, synced) == expected.content
            if power_lost and not safe:
                expected = dataclasses.replace(expected, size=node.size)
            if not node.looks_like(expected):
                return f"inode {ino} is {_brief(node)}, not {_brief(expected)}"
            if not power_lost or safe:
                bad = _odd_byte(node.content, [expected.content, *self._contents(ino, moment)])
            else:
                versions = [] if synced is None else self._contents(ino, synced)
                bad = _lost_byte(node.content, versions)
            if bad is not None:
                return f"inode {ino} holds at byte {bad} what was never there"
        return None

    def judge_tape_alone(self, found: Photo) -> str | None:
        """None when each name and each file is as it was at some time since the last sync."""
        window = self.history[self.on_tape :]
        for place in found.names.keys() | window[0].names.keys():
            ino = found.names.get(place)
            if any(photo.names.get(place) == ino for photo in window):
                continue
            if ino is None or not any(found.shows_under_path(place, photo) for photo in window):
                return f"{place} is {ino}, which it was not since the last sync"
        for ino, node in found.nodes.items():
            versions = [photo.nodes[ino] for photo in window if ino in photo.nodes]
            if stat.S_ISDIR(node.mode) and not found.is_at_home(ino, window):
                continue  # made for a salvaged file, and judged by its path
            if not any(node.looks_like(version, nlink=False) for version in versions):
                briefs = sorted({_brief(version) for version in versions})
                return f"inode {ino} is {_brief(node)}, not like one of {briefs}"
            bad = _odd_byte(node.content, self._contents(ino, self.on_tape), zeros_if_shorter=True)
            if bad is not None:
                return f"inode {ino} holds at byte {bad} what was never there"
        return None

    def _content(self, ino: int, moment: int) -> Content | None:
        node = self.history[moment].nodes.get(ino)
        return node.content if node else None

    def _contents(self, ino: int, since: int) -> list[Content]:
        """Every content of `ino` from photo `since` on, each once."""
        found: list[Content] = []
        for photo in self.history[since:]:
            node = photo.nodes.get(ino)
            if node is not None and (not found or found[-1] is not node.content):
                found.append(node.content)
        return found


def differences(one: Photo, other: Photo) -> str | None:
    """What two photos show differently, or None."""
    if one.names != other.names:
        return f"names differ: {sorted(one.names.items() ^ other.names.items())[:6]}"
    for ino, node in one.nodes.items():
        twin = other.nodes[ino]
        if node != twin:
            same_content = node.content == twin.content
            return f"inode {ino}: {_brief(node)} and {_brief(twin)}, {same_content=}"
    return None


def _brief(node: Node) -> str:
    return f"{node.mode:o} {node.size} bytes {node.nlink} links, {node.mtime_ns} {node.xattrs}"


def _odd_byte(
    found: Content, allowed: Sequence[Content], *, zeros_if_shorter: bool = False
) -> int | None:
    """Offset of the first byte that is in none of `allowed` at its place; None when all are.

    With `zeros_if_shorter`, zeros are allowed where one of `allowed` ends before.
    """
    for index, chunk in enumerate(found):
        candidates = [content[index] for content in allowed if index < len(content)]
        if any(candidate[: len(chunk)] == chunk for candidate in candidates):
            continue
        candidates = list(dict.fromkeys(candidates))
        if zeros_if_shorter and _some_shorter(allowed, index, len(chunk)):
            candidates.append(bytes(len(chunk)))
        at = _first_odd(chunk, candidates)
        if at is not None:
            return index * CHUNK_BYTES + at
    return None


def _lost_byte(found: Content, versions: Sequence[Content]) -> int | None:
    """Offset of the first piece that all `versions` agree about and `found` does not have."""
    stable = min(map(size_of, versions), default=0)
    if size_of(found) < stable:
        return size_of(found)
    for index in range(-(-stable // CHUNK_BYTES)):
        chunks = [version[index] for version in versions]
        length = min(map(len, chunks))
        if any(chunk[:length] == found[index][:length] for chunk in chunks):
            continue
        # By pieces, because single bytes may agree by chance.
        for at in range(0, length - _PIECE_BYTES + 1, _PIECE_BYTES):
            pieces = {chunk[at : at + _PIECE_BYTES] for chunk in chunks}
            if len(pieces) == 1 and found[index][at : at + _PIECE_BYTES] not in pieces:
                return index * CHUNK_BYTES + at
    return None


def _some_shorter(allowed: Iterable[Content], index: int, length: int) -> bool:
    return any(len(content) <= index or len(content[index]) < length for content in allowed)


def _first_odd(chunk: bytes, candidates: list[bytes]) -> int | None:
    rows = list(itertools.zip_longest(*candidates)) if candidates else []
    for at, byte in enumerate(chunk):
        if at >= len(rows) or byte not in rows[at]:
            return at
    return None
