"""What goes into one segment: assembled from a snapshot, in a worker thread.

The snapshot is the catalog at one moment, so what a segment says is consistent whatever users do
meanwhile. File *content* is read from the spool as it is when its turn comes; bytes written after
the snapshot may therefore be in it, and are written again by the next segment.

Two rules keep the tape's own view whole. A file whose new content is not in this segment is
withheld: its attributes and, if tape never saw it, its names wait with it. And removals come after
everything else, so a file that moved is at both places for a moment rather than at none.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from tapefs.archive.ranges import RangeSet
from tapefs.archive.spool_content import SpoolContent
from tapefs.entries import (
    ROOT_INO,
    Inode,
    InodeEntry,
    LinkEntry,
    UnlinkEntry,
)
from tapefs.errors import SpoolMismatch, VolumeFull
from tapefs.volume.names import member_path, part_path
from tapefs.volume.notes import MemberNote, encode_note
from tapefs.volume.pax import Member, MemberKind

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Generator, Iterator

    from tapefs.archive.arrival import Arrivals
    from tapefs.archive.selection import Limits, Selection
    from tapefs.archive.spool import Spool
    from tapefs.catalog import Snapshot, SnapshotFile, Staged
    from tapefs.volume.hashing import KnownHashes
    from tapefs.volume.segment import SegmentBuilder

# Files up to this size are archived whole even when only a part of them changed.
WHOLE_BYTES: Final = 1 << 20
_PATHS_KEPT: Final = 20_000
_FILES_PER_QUERY: Final = 200

_KINDS: Final = {
    stat.S_IFREG: MemberKind.FILE,
    stat.S_IFDIR: MemberKind.DIRECTORY,
    stat.S_IFLNK: MemberKind.SYMLINK,
    stat.S_IFIFO: MemberKind.FIFO,
    stat.S_IFCHR: MemberKind.CHARACTER_DEVICE,
    stat.S_IFBLK: MemberKind.BLOCK_DEVICE,
}


class Burst:
    """Assembles the content of one segment. `records` is consumed in a worker thread."""

    def __init__(
        self,
        snapshot: Snapshot,
        selection: Selection,
        limits: Limits,
        spool: Spool,
        arrivals: Arrivals,
        on_tape: Callable[[int], bool],
        tape_lookup: Callable[[int, bytes], int | None],
    ) -> None:
        self._snapshot = snapshot
        self._selection = selection
        self._limits = limits
        self._spool = spool
        self._arrivals = arrivals
        self._on_tape = on_tape
        self._tape_lookup = tape_lookup
        self._selected = frozenset(selection.inos)
        self._linked: set[int] = set()
        self._directories: set[int] = set()
        # Changed symlinks by the directory of their first name.
        self._symlinks: dict[int, list[int]] = {}
        self._paths: dict[int, bytes] = {ROOT_INO: b""}
        # Changes that this segment settles although its journal has no entry for them.
        self.gone_inodes: list[int] = []
        self.gone_names: list[tuple[int, bytes]] = []
        # Names that its journal removes for now, and that a later one has to give to a new file.
        self.vacated_names: set[tuple[int, bytes]] = set()
        self.entry_count = 0
        # Asked before each file: whether the segment must end with what is in it.
        self.ends_early: Callable[[], bool] = lambda: False

    def records(self, builder: SegmentBuilder) -> Generator[array[int], None, None]:
        """Everything from the first member to the tail, as full records."""
        self.gone_inodes, self.gone_names = [], []
        self.vacated_names.clear()
        yield from self._files(builder)
        for ino in self._snapshot.changed_inodes():
            yield from self._changed_inode(builder, ino)
        yield from self._names(builder)
        yield from self._directory_members(builder)
        yield from builder.finish()

    def is_empty(self) -> bool:
        """True when a segment would say nothing; then the `gone` lists are complete as well."""
        snapshot = self._snapshot
        if self._selection.inos:
            return False
        for ino in snapshot.changed_inodes():
            if snapshot.inode(ino) is None:
                self.gone_inodes.append(ino)
            elif ino == ROOT_INO or (snapshot.links(ino) and not self._withheld(ino)):
                return False
        for parent, name, named in snapshot.changed_dentries():
            if self._tellable(parent, name, named):
                return False
            if named is None:
                self.gone_names.append((parent, name))
        return True

    # -- files with content

    def _files(self, builder: SegmentBuilder) -> Iterator[array[int]]:
        inos = self._selection.inos
        for start in range(0, len(inos), _FILES_PER_QUERY):
            some = inos[start : start + _FILES_PER_QUERY]
            found = self._snapshot.files(some)
            for number, ino in enumerate(some, start):
                if self.ends_early():
                    self._selected = frozenset(inos[:number])
                    return
                file = found.get(ino)
                if file is not None and file.links:
                    yield from self._file(builder, file)

    def _file(self, builder: SegmentBuilder, file: SnapshotFile) -> Iterator[array[int]]:
        inode, row, links, xattrs = file.inode, file.staged, file.links, file.xattrs
        ino = inode.ino
        path = member_path(self._path(*links[0]), ino)
        with SpoolContent(self._spool, row, self._arrivals.images) as content:
            whole = self._is_whole(inode, row)
            if whole:
                member = self._member(inode, path, xattrs, size=inode.size)
                yield from self._whole(builder, member, inode, content)
                builder.log(self._entry(inode, xattrs, *_hashes(builder)))
                builder.log(builder.archived.entry)
                self.entry_count += 2
            else:
                yield from self._parts(builder, inode, row, path, xattrs, content)
        yield from self._other_links(builder, inode, links, path if whole else None)
        self._linked.add(ino)

    def _whole(
        self, builder: SegmentBuilder, member: Member, inode: Inode, content: SpoolContent
    ) -> Iterator[array[int]]:
        """A whole file, with the hashes that were taken when it arrived, if there are any."""
        note = MemberNote(inode.ino)
        if not self._arrivals.knows(inode.ino):
            yield from self._content(builder, member, note, content)
            return
        with self._arrivals.copying(inode) as known:
            try:
                yield from self._content(builder, member, note, content, known)
            except SpoolMismatch as exc:
                name, failure = os.fsdecode(member.path), self._arrivals.images.failure
                raise SpoolMismatch(
                    f"{name!r} changed while it was copied, and its old bytes could not be put "
                    f"aside: {failure.strerror}; make room on the spool's disk"
                    if failure
                    else f"the spool does not give back what was written to {name!r}; compare the "
                    "file with its source, and look after the spool's disk"
                ) from exc

    def _is_whole(self, inode: Inode, row: Staged) -> bool:
        """Whether the file goes to tape in one piece: all of it here, and worth it."""
        if inode.ino in self._limits.open_for_writing and not self._limits.everything:
            return False
        if row.dirty == row.resident == [(0, inode.size)]:
            return True  # nearly every file
        here = RangeSet(row.resident)
        dirty = RangeSet(row.dirty)
        if self._limits.room_bytes is not None:
            worth_it = dirty.total_bytes >= inode.size
        else:
            worth_it = inode.size <= WHOLE_BYTES or 2 * dirty.total_bytes >= inode.size
        for start, end in row.dirty:
            here.add(start, end)
        return worth_it and here.covers(0, inode.size)

    def _parts(
        self,
        builder: SegmentBuilder,
        inode: Inode,
        row: Staged,
        path: bytes,
        xattrs: dict[bytes, bytes],
        content: SpoolContent,
    ) -> Iterator[array[int]]:
        # The inode comes first: applying it cuts at the size, then the extents are laid over.
        builder.log(self._entry(inode, xattrs, None, None))
        for start, end in row.dirty:
            name, rest = part_path(path, inode.ino, start, builder.place.sequence)
            member = self._member(inode, name, xattrs, size=end - start)
            note = MemberNote(inode.ino, start, None, rest, inode.size)
            yield from self._content(builder, member, note, content)
            builder.log(builder.archived.entry)
            self.entry_count += 1

    def _content(
        self,
        builder: SegmentBuilder,
        member: Member,
        note: MemberNote,
        content: SpoolContent,
        known: KnownHashes | None = None,
    ) -> Iterator[array[int]]:
        """One file member; gives up when the segment must end and too much of it is missing."""
        end_bytes = builder.position_bytes + member.size
        for record in builder.add_file(member, note, content, known):
            yield record
            missing_bytes = end_bytes - builder.position_bytes
            if missing_bytes > self._limits.cut_bytes_max and self.ends_early():
                raise VolumeFull(
                    f"the end of the tape came with {missing_bytes} bytes of a file to go; "
                    "continue on another cartridge"
                )

    def _other_links(
        self,
        builder: SegmentBuilder,
        inode: Inode,
        links: list[tuple[int, bytes]],
        first_path: bytes | None,
    ) -> Iterator[array[int]]:
        for parent, _ in links:
            self._note_directory(parent)
        if first_path is None:
            return
        for parent, name in links[1:]:
            path = member_path(self._path(parent, name), inode.ino)
            yield from builder.add_member(self._hard_link(inode, path, first_path))

    # -- everything else

    def _changed_inode(self, builder: SegmentBuilder, ino: int) -> Iterator[array[int]]:
        if ino in self._selected:
            return
        snapshot = self._snapshot
        inode = snapshot.inode(ino)
        if inode is None:
            self.gone_inodes.append(ino)
            return
        links = snapshot.links(ino)
        if not links and ino != ROOT_INO:
            return  # removed, but still in use
        if stat.S_ISDIR(inode.mode):
            self._log_attributes(builder, inode)
            self._directories.add(ino)
            return
        if self._withheld(ino):
            return
        self._log_attributes(builder, inode)
        self._linked.add(ino)
        kind = _KINDS.get(stat.S_IFMT(inode.mode))
        if kind is MemberKind.SYMLINK:
            self._note_directory(links[0][0])
            self._symlinks.setdefault(links[0][0], []).append(ino)
            return
        if kind is None or (kind is MemberKind.FILE and inode.size):
            return  # a socket has no place in an archive; content already on tape stays there
        yield from self._plain_member(builder, inode, links)

    def _plain_member(
        self, builder: SegmentBuilder, inode: Inode, links: list[tuple[int, bytes]]
    ) -> Iterator[array[int]]:
        path = member_path(self._path(*links[0]), inode.ino)
        xattrs = self._snapshot.xattrs(inode.ino)
        yield from builder.add_member(self._member(inode, path, xattrs))
        yield from self._other_links(builder, inode, links, path)

    def _log_attributes(self, builder: SegmentBuilder, inode: Inode) -> None:
        xattrs = self._snapshot.xattrs(inode.ino)
        builder.log(self._entry(inode, xattrs, inode.sha256, inode.xxh128))
        self.entry_count += 1

    def _names(self, builder: SegmentBuilder) -> Iterator[array[int]]:
        """New and moved names first, removed ones after them."""
        for parent, name, ino in self._snapshot.changed_dentries():
            if ino is not None and self._tellable(parent, name, ino):
                builder.log(LinkEntry(parent, name, ino))
                self.entry_count += 1
                yield from self._new_link(builder, parent, name, ino)
        for parent, name, ino in self._snapshot.changed_dentries():
            tellable = self._tellable(parent, name, ino)
            vacated = ino is not None and not tellable and self._was_moved_directory(parent, name)
            if vacated:
                self.vacated_names.add((parent, name))
            if vacated or (ino is None and tellable):
                builder.log(UnlinkEntry(parent, name))
                self.entry_count += 1
            elif ino is None:
                self.gone_names.append((parent, name))

    def _was_moved_directory(self, parent: int, name: bytes) -> bool:
        """Whether on tape this is a directory that has another name by now.

        A file may have two names until the one that takes its old name is on tape as well; for
        a directory that would be no tree.
        """
        ino = self._tape_lookup(parent, name)
        inode = None if ino is None else self._snapshot.inode(ino)
        return inode is not None and stat.S_ISDIR(inode.mode)

    def _tellable(self, parent: int, name: bytes, ino: int | None) -> bool:
        if ino is None:
            return self._tape_lookup(parent, name) is not None
        return not self._withheld(ino) or self._on_tape(ino)

    def _new_link(
        self, builder: SegmentBuilder, parent: int, name: bytes, ino: int
    ) -> Iterator[array[int]]:
        """A second name for a file that tape has already: a hard-link member."""
        if ino in self._selected:
            return  # its member came with all its names
        inode = self._snapshot.inode(ino)
        if inode is None or stat.S_ISDIR(inode.mode):
            return
        self._note_directory(parent)
        if ino in self._linked or inode.nlink < 2:
            return
        for other in self._snapshot.links(ino):
            if other != (parent, name):
                path = member_path(self._path(parent, name), ino)
                target = member_path(self._path(*other), ino)
                yield from builder.add_member(self._hard_link(inode, path, target))
                return

    def _directory_members(self, builder: SegmentBuilder) -> Iterator[array[int]]:
        """Directories last, parents before children, each followed by its symlinks.

        Extraction then sets their times when nothing in them changes any more. GNU tar makes
        some symlinks only at its very end, and remembers to mend the times of a directory after
        that only if the directory stood before the symlink.
        """
        yield from self._symlink_members(builder, ROOT_INO)
        named: list[tuple[list[bytes], Inode]] = []
        for ino in self._directories:
            inode = self._snapshot.inode(ino)
            if inode is not None and ino != ROOT_INO:
                named.append((self._directory_path(ino).split(b"/"), inode))
        # By components, so that everything below a directory follows it without a gap.
        named.sort(key=lambda pair: pair[0])
        for components, inode in named:
            xattrs = self._snapshot.xattrs(inode.ino)
            path = member_path(b"/".join(components), inode.ino)
            yield from builder.add_member(self._member(inode, path, xattrs))
            yield from self._symlink_members(builder, inode.ino)

    def _symlink_members(self, builder: SegmentBuilder, parent: int) -> Iterator[array[int]]:
        for ino in self._symlinks.get(parent, ()):
            inode = self._snapshot.inode(ino)
            if inode is not None:
                yield from self._plain_member(builder, inode, self._snapshot.links(ino))

    # -- inside

    def _withheld(self, ino: int) -> bool:
        """Whether the file has content for tape that is not in this segment."""
        if ino in self._selected:
            return False
        row = self._snapshot.staged(ino)
        return row is not None and bool(row.dirty)

    def _note_directory(self, ino: int) -> None:
        while ino not in self._directories and ino != ROOT_INO:
            self._directories.add(ino)
            ino = self._snapshot.parent_of(ino)

    def _path(self, parent: int, name: bytes) -> bytes:
        directory = self._directory_path(parent)
        return directory + b"/" + name if directory else name

    def _directory_path(self, ino: int) -> bytes:
        path = self._paths.get(ino)
        if path is None:
            if len(self._paths) >= _PATHS_KEPT:
                self._paths = {ROOT_INO: b""}
            path = self._paths[ino] = self._snapshot.directory_path(ino)
        return path

    @staticmethod
    def _member(
        inode: Inode, path: bytes, xattrs: dict[bytes, bytes], size: int | None = None
    ) -> Member:
        """With a `size` it has content, and gets its comment from whoever knows that."""
        kind = _KINDS[stat.S_IFMT(inode.mode)]
        return Member(
            path,
            kind,
            stat.S_IMODE(inode.mode),
            inode.uid,
            inode.gid,
            size or 0,
            inode.mtime_ns,
            inode.target or b"",
            inode.rdev,
            xattrs,
            encode_note(MemberNote(inode.ino)) if size is None else b"",
        )

    @staticmethod
    def _hard_link(inode: Inode, path: bytes, target: bytes) -> Member:
        mode = stat.S_IMODE(inode.mode)
        comment = encode_note(MemberNote(inode.ino))
        return Member(
            path,
            MemberKind.HARD_LINK,
            mode,
            inode.uid,
            inode.gid,
            0,
            inode.mtime_ns,
            target,
            comment=comment,
        )

    @staticmethod
    def _entry(
        inode: Inode,
        xattrs: dict[bytes, bytes],
        sha256: bytes | None,
        xxh128: bytes | None,
    ) -> InodeEntry:
        return InodeEntry(
            inode.ino,
            inode.mode,
            inode.uid,
            inode.gid,
            inode.size,
            inode.rdev,
            inode.atime_ns,
            inode.mtime_ns,
            inode.ctime_ns,
            inode.target,
            sha256,
            xxh128,
            xattrs,
        )


def _hashes(builder: SegmentBuilder) -> tuple[bytes, bytes]:
    return builder.archived.entry.sha256, builder.archived.xxh128
