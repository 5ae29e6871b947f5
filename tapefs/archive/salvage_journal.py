"""The journal that a torn segment would have had, as far as its whole members tell it.

What stands in a torn tape file is proven by little, so it is believed little. A name or an inode
number that contradicts what came before is refused, and nothing that the tape has from closed
segments is lost by it: a file whose only name now belongs to another keeps one of its own making.
Directories go by their path; renames and deletions, which only a journal tells, stay undone.
"""

from __future__ import annotations

import logging
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tapefs import telemetry
from tapefs.entries import ROOT_INO, Entry, ExtentEntry, Inode, InodeEntry, LinkEntry
from tapefs.volume.journal import (
    CorruptJournal,
    JournalHead,
    decode_line,
    encode_entry,
    encode_head,
)
from tapefs.volume.names import NAME_BYTES_MAX, RESERVED_NAME
from tapefs.volume.notes import MemberNote, decode_note
from tapefs.volume.pax import Member, MemberKind

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from tapefs.catalog import TapeView
    from tapefs.volume.member_scan import FoundMember

# Names and parts that one torn segment can bring; a writer stops a segment far below.
_NAMES_MAX: Final = 500_000
# What Linux takes as one path.
_PATH_BYTES_MAX: Final = 4095
# How far the inode numbers of one segment lie beyond those of all before it.
_INO_AHEAD_MAX: Final = 1 << 52
# Refused members that are logged one by one; the rest is counted.
_REFUSALS_LOGGED: Final = 20
# A name that is taken but may turn out not to be needed.
_RESERVED: Final = 0

_TYPES: Final = {
    MemberKind.FILE: stat.S_IFREG,
    MemberKind.SYMLINK: stat.S_IFLNK,
    MemberKind.CHARACTER_DEVICE: stat.S_IFCHR,
    MemberKind.BLOCK_DEVICE: stat.S_IFBLK,
    MemberKind.DIRECTORY: stat.S_IFDIR,
    MemberKind.FIFO: stat.S_IFIFO,
}


class _Refused(Exception):
    """This member is not taken; the text says why."""


@dataclass(eq=False, slots=True)
class _Directory:
    """A directory on the way to some member. `ino` is None until a member or `finish` gives it."""

    ino: int | None
    # Whether the tape has it from before.
    known: bool
    # Owner and time of the first file in it, in case it has no member of its own.
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    mode: int = 0o755
    described: bool = False
    children: dict[bytes, _Directory | int] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Parts:
    """The parts of one file so far; they count together or not at all."""

    ino: int
    member: Member
    size: int
    extents: list[ExtentEntry] = field(default_factory=list)
    refused: bool = False


class SalvageJournal:
    """Writes the journal of torn tape file `sequence` to the local file `path`.

    `taken_count` and `refused_count` tell how many members it holds and how many not.
    `take` every member in the order of the tape, then `finish`, then leave the context, which
    closes the file. `view` is the tape view as of the tape file before; it must not change in
    between. The same members and the same view give the same bytes.
    """

    def __init__(self, view: TapeView, sequence: int, path: Path) -> None:
        self._view = view
        self._stream = path.open("wb")
        self._stream.write(encode_head(JournalHead(view.settings.volume_uuid, sequence)))
        self._ino_max = view.next_ino + _INO_AHEAD_MAX
        self._next_ino = view.next_ino
        self._root = _Directory(ROOT_INO, known=True)
        # Inodes that have an entry here, and those that have a name here and are no directories.
        self._described = {ROOT_INO}
        self._linked: set[int] = set()
        # Names that closed segments gave to other inodes: directory, name, name to keep, inode.
        self._displaced: list[tuple[_Directory, bytes, bytes, int]] = []
        self._parts: _Parts | None = None
        self._name_count = 0
        self.taken_count = 0
        self.refused_count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stream.close()

    def take(self, found: FoundMember) -> None:
        """Take a member, or refuse it with an event. tapefs's own are passed over."""
        member = found.member
        components = member.path.split(b"/")
        if components[0] == RESERVED_NAME or member.path == b".":
            return
        try:
            self._take(found, components)
        except _Refused as reason:
            self._refuse(member, reason)

    def finish(self, following: Member | None) -> None:
        """All members were taken; `following` began after them and is not whole."""
        if following is not None:
            note = decode_note(following.comment)
            self._end_parts(note.ino if note else None)
        if self._parts is not None:
            # More parts of this file may have been lost, and a mixture of old and new is neither.
            self._refuse(self._parts.member, "it may not be the last part", logging.INFO)
            self._parts = None
        self._write_names()
        self._keep_displaced()

    # -- members

    def _take(self, found: FoundMember, components: list[bytes]) -> None:
        member = found.member
        note = self._note(member)
        self._end_parts(note.ino)
        self._count()
        if member.kind is MemberKind.FILE and note.offset is not None:
            self._part(found, note, note.offset)
            return
        if len(member.path) > _PATH_BYTES_MAX:
            raise _Refused("its path is too long")
        if member.kind is MemberKind.DIRECTORY:
            self._directory(member, components, note)
        elif member.kind is MemberKind.HARD_LINK:
            self._hard_link(member, components, note)
        else:
            self._whole(found, components, note)
        self.taken_count += 1

    def _note(self, member: Member) -> MemberNote:
        note = decode_note(member.comment)
        if note is None:
            raise _Refused("it has no note")
        if not ROOT_INO < note.ino <= self._ino_max:
            raise _Refused(f"no file can have the inode number {note.ino}")
        return note

    def _whole(self, found: FoundMember, components: list[bytes], note: MemberNote) -> None:
        member, ino = found.member, note.ino
        mode = _TYPES[member.kind] | member.mode
        known = self._view.inode(ino)
        if ino in self._described:
            raise _Refused(f"inode {ino} came before")
        if known is not None and stat.S_IFMT(known.mode) != stat.S_IFMT(mode):
            raise _Refused(f"inode {ino} is of another type")
        is_file = member.kind is MemberKind.FILE
        if is_file and note.sha256 not in (None, found.sha256):
            raise _Refused("its SHA-256 is not the one in its note")
        hashes = (found.sha256, found.xxh128) if is_file else (None, None)
        entries: list[Entry] = [_described(ino, mode, member, member.size, *hashes)]
        if member.size:
            entries.append(ExtentEntry(ino, 0, member.size, found.position, found.sha256))
        lines = _encoded(entries)
        self._name(components, member, ino)
        self._stream.write(lines)
        self._note_ino(ino)

    def _hard_link(self, member: Member, components: list[bytes], note: MemberNote) -> None:
        known = self._view.inode(note.ino)
        on_tape = known is not None and not stat.S_ISDIR(known.mode)
        if note.ino not in self._linked and not on_tape:
            raise _Refused(f"inode {note.ino}, to which it is a link, is not there")
        self._name(components, member, note.ino)

    def _directory(self, member: Member, components: list[bytes], note: MemberNote) -> None:
        parent = self._walk(components[:-1], member)
        ino = note.ino
        taken = ino in self._described or self._view.has_inode(ino)
        if taken and not self._holds_directory(parent, components[-1]):
            raise _Refused(f"inode {ino} has another name, and renames are not known")
        directory = self._walk(components, member)
        if directory.described:
            raise _Refused("this directory came before")
        directory.described = True
        if taken and directory.ino is None:
            # What is in it came before, so it is there, with a number of its own.
            directory.mode, directory.mtime_ns = member.mode, member.mtime_ns
            directory.uid, directory.gid = member.uid, member.gid
            return
        ino = ino if directory.ino is None else directory.ino
        self._stream.write(_encoded([_described(ino, stat.S_IFDIR | member.mode, member, 0)]))
        directory.ino = ino
        self._note_ino(ino)

    def _holds_directory(self, parent: _Directory, name: bytes) -> bool:
        if name in parent.children:
            return True
        known = self._known(parent, name)
        return known is not None and stat.S_ISDIR(known.mode)

    # -- parts

    def _part(self, found: FoundMember, note: MemberNote, offset: int) -> None:
        member, ino = found.member, note.ino
        if self._parts is None:
            known = self._view.inode(ino)
            is_file = known is not None and stat.S_ISREG(known.mode)
            self._parts = _Parts(ino, member, known.size if known else 0)
            self._parts.refused = not is_file or ino in self._described
        parts = self._parts
        end = offset + member.size
        too_long = note.file_bytes is not None and end > note.file_bytes
        parts.refused |= too_long or note.sha256 not in (None, found.sha256)
        if parts.refused:
            reason = "it is part of a file that is not there, or not as it was written"
            self._refuse(member, reason, logging.INFO)
            return
        parts.member = member
        parts.size = max(parts.size, end) if note.file_bytes is None else note.file_bytes
        if member.size:
            extent = ExtentEntry(ino, offset, member.size, found.position, found.sha256)
            parts.extents.append(extent)

    def _end_parts(self, ino: int | None) -> None:
        """Something of inode `ino` follows: the parts of another file are complete."""
        parts = self._parts
        if parts is None or parts.ino == ino:
            return
        self._parts = None
        if parts.refused:
            return
        mode = stat.S_IFREG | parts.member.mode
        inode = _described(parts.ino, mode, parts.member, parts.size)
        try:
            self._stream.write(_encoded([inode, *parts.extents]))
        except _Refused as reason:
            self._refuse(parts.member, reason)
        else:
            self._note_ino(parts.ino)
            self.taken_count += 1

    # -- names

    def _name(self, components: list[bytes], member: Member, ino: int) -> None:
        """Give `ino` its name. Raises _Refused before anything is changed."""
        directory = self._walk(components[:-1], member)
        name = components[-1]
        if name in directory.children:
            raise _Refused("its name came before")
        known = self._known(directory, name)
        if known is not None and known.ino != ino:
            self._displace(directory, name, known.ino)
        directory.children[name] = ino
        self._linked.add(ino)

    def _walk(self, components: list[bytes], member: Member) -> _Directory:
        """The directory at a path, made when it is not there. Raises _Refused."""
        at = self._root
        for name in components:
            child = at.children.get(name)
            if child is None:
                child = at.children[name] = self._new_directory(at, name, member)
            if not isinstance(child, _Directory):
                raise _Refused("a directory on its path is a file")
            at = child
        return at

    def _new_directory(self, parent: _Directory, name: bytes, member: Member) -> _Directory:
        self._count()
        known = self._known(parent, name)
        if known is not None and stat.S_ISDIR(known.mode):
            return _Directory(known.ino, known=True)
        if known is not None:
            self._displace(parent, name, known.ino)
        return _Directory(None, False, member.uid, member.gid, member.mtime_ns)

    def _known(self, directory: _Directory, name: bytes) -> Inode | None:
        """What the tape has under this name from before."""
        if not directory.known or directory.ino is None:
            return None
        ino = self._view.lookup(directory.ino, name)
        return None if ino is None else self._view.inode(ino)

    def _displace(self, directory: _Directory, name: bytes, ino: int) -> None:
        """`name` is to stand for something else; find a name under which `ino` could stay."""
        suffix = b".tapefs-ino-%d" % ino
        kept = name[: NAME_BYTES_MAX - len(suffix)] + suffix
        if kept in directory.children or self._known(directory, kept) is not None:
            raise _Refused("it would replace another file")
        directory.children[kept] = _RESERVED
        self._displaced.append((directory, name, kept, ino))

    def _write_names(self) -> None:
        """All names, directories before what is in them; those without a member get defaults."""
        pending = [self._root]
        while pending:
            directory = pending.pop()
            assert directory.ino is not None
            for name, child in directory.children.items():
                if isinstance(child, _Directory):
                    ino = child.ino if child.ino is not None else self._default_directory(child)
                    pending.append(child)
                    if child.known:
                        continue
                elif child == _RESERVED:
                    continue
                else:
                    ino = child
                self._stream.write(encode_entry(LinkEntry(directory.ino, name, ino)))

    def _default_directory(self, directory: _Directory) -> int:
        ino = directory.ino = self._next_ino
        self._next_ino += 1
        time_ns = directory.mtime_ns
        owner = directory.uid, directory.gid
        mode = stat.S_IFDIR | directory.mode
        entry = InodeEntry(ino, mode, *owner, 0, 0, time_ns, time_ns, time_ns)
        self._stream.write(encode_entry(entry))
        return ino

    def _keep_displaced(self) -> None:
        """Whatever lost its last name stays under another one."""
        lost = {(directory.ino, name) for directory, name, _, _ in self._displaced}
        for directory, _, kept, ino in self._displaced:
            if ino in self._linked or set(self._view.links(ino)) - lost:
                continue
            assert directory.ino is not None
            self._stream.write(encode_entry(LinkEntry(directory.ino, kept, ino)))
            self._linked.add(ino)

    # -- inside

    def _note_ino(self, ino: int) -> None:
        self._described.add(ino)
        self._next_ino = max(self._next_ino, ino + 1)

    def _count(self) -> None:
        self._name_count += 1
        if self._name_count > _NAMES_MAX:
            raise _Refused("there are more than a segment holds")

    def _refuse(self, member: Member, reason: object, level: int = logging.WARNING) -> None:
        self.refused_count += 1
        if self.refused_count <= _REFUSALS_LOGGED:
            telemetry.event(telemetry.SALVAGE_REFUSED, level, path=member.path[:200], reason=reason)


def _described(
    ino: int,
    mode: int,
    member: Member,
    size: int,
    sha256: bytes | None = None,
    xxh128: bytes | None = None,
) -> InodeEntry:
    """The attributes that a member's headers state; its other times are taken to be mtime."""
    target = member.linkpath if member.kind is MemberKind.SYMLINK else None
    time_ns = member.mtime_ns
    return InodeEntry(
        ino,
        mode,
        member.uid,
        member.gid,
        size if target is None else len(target),
        member.rdev,
        time_ns,
        time_ns,
        time_ns,
        target,
        sha256,
        xxh128,
        member.xattrs,
    )


def _encoded(entries: list[Entry]) -> bytes:
    """The entries' lines. Raises _Refused for what no journal may say."""
    try:
        lines = [encode_entry(entry) for entry in entries]
        for line in lines:
            decode_line(line)
    except (ValueError, CorruptJournal) as exc:
        raise _Refused(f"its attributes are out of range ({exc})") from exc
    return b"".join(lines)
