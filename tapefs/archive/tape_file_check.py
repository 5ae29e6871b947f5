"""Whether one tape file is what was written: a pure judge of the records that somebody reads.

Records come in order, each with the news whether it could be had. They are compared with the
checksums that the catalog knows and with those that the tape file's own journal lists; every member
is hashed on the way and compared with the journal, journal, manifest and catalog copy with the
tail, and the manifest with what the members gave. Memory does not grow with the number of members:
their hashes wait for the journal in a local file.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final

import crc32c

from tapefs.entries import Damage, DamageKind, ExtentEntry, InodeEntry, TapeFileKind
from tapefs.errors import DamagedTape
from tapefs.volume.journal import CorruptJournal, JournalDecoder, RecordCrcs
from tapefs.volume.manifest import encode_manifest_line
from tapefs.volume.member_scan import FoundMember, MemberScan
from tapefs.volume.names import journal_path, manifest_path
from tapefs.volume.pax import Member, MemberKind
from tapefs.volume.tail import find_tail

if TYPE_CHECKING:
    from typing import BinaryIO
    from uuid import UUID

    from tapefs.drive import TapeAddress
    from tapefs.entries import Entry, TapeFile
    from tapefs.volume.tail import MemberSpan, Tail

# Damaged places of one tape file that are told apart; behind that many, all up to the last damaged
# one counts as one place.
PLACES_MAX: Final = 1000
# Position, length, SHA-256 and xxh128 of a member.
_HASHED: Final = struct.Struct(">2Q32s16s")


class DamageList:
    """What is wrong with one tape file: neighbours are joined, and the number is bounded."""

    def __init__(self, sequence: int) -> None:
        self._sequence = sequence
        self._found: list[Damage] = []

    def add(self, position: int, length: int, kind: DamageKind, detail: str) -> None:
        """Bytes [position, position + length) are damaged."""
        last = self._found[-1] if self._found else None
        full = len(self._found) >= PLACES_MAX
        if last is not None and (
            full or (last.kind is kind and position == last.position + last.length)
        ):
            start = min(position, last.position)
            end = max(position + length, last.position + last.length)
            detail = last.detail
            self._found[-1] = Damage(self._sequence, start, end - start, last.kind, detail)
        else:
            self._found.append(Damage(self._sequence, position, length, kind, detail))

    def covers(self, position: int, length: int) -> bool:
        """Whether any of these bytes is known to be damaged."""
        return any(
            item.position < position + length and position < item.position + item.length
            for item in self._found
        )

    def as_tuple(self) -> tuple[Damage, ...]:
        """Everything found, in the order in which it was found."""
        return tuple(self._found)


class TapeFileCheck:
    """Judges tape file `start.file` of volume `volume_uuid`, which begins at `start`.

    `known` is what the catalog says of it, None when it does not know this tape file. Give `feed`
    or `skip` each record in order, then ask `finish`. `hashes` is an empty local file, opened for
    reading and writing. Any thread, one at a time.
    """

    def __init__(
        self,
        volume_uuid: UUID,
        start: TapeAddress,
        record_bytes: int,
        known: TapeFile | None,
        hashes: BinaryIO,
    ) -> None:
        self._volume_uuid = volume_uuid
        self._start = start
        self._sequence = start.file
        self._record_bytes = record_bytes
        self._known = known
        self._scan = _Members(self)
        self._hashes = _HashQueue(hashes)
        self._manifest = hashlib.sha256()
        self._journal: JournalDecoder | None = JournalDecoder(volume_uuid, start.file)
        self._journal_begun = self._journal_done = False
        self._whole: InodeEntry | None = None
        self._own: dict[str, FoundMember] = {}
        self._crcs = bytearray()
        self._last_record: bytes | None = None
        self.damages = DamageList(start.file)
        self.record_count = 0

    # -- what was read

    def feed(self, record: memoryview) -> None:
        """The next record, as it was written as far as the catalog can tell."""
        self._crcs += crc32c.crc32c(record).to_bytes(4, "big")
        self.record_count += 1
        if self._known is None or self.record_count == self._known.record_count:
            self._last_record = bytes(record)
        for found in self._scan.feed(record):
            self._take(found)

    def skip(self, kind: DamageKind, detail: str, count: int = 1) -> None:
        """The next `count` records cannot be had."""
        length = count * self._record_bytes
        self.damages.add(self.record_count * self._record_bytes, length, kind, detail)
        self._crcs += bytes(4 * count)
        self.record_count += count
        self._last_record = None
        self._scan.skip(length)

    def finish(self) -> tuple[Damage, ...]:
        """Nothing follows in this tape file: everything that is wrong with it."""
        known = self._known
        if known is None and not self.record_count:
            return ()
        if known is None or known.kind is not TapeFileKind.TORN:
            if self._scan.fault:
                self._contradicts(f"a header in it cannot be used: {self._scan.fault}")
            self._check_head()
            self._check_tail()
        return self.damages.as_tuple()

    # -- members

    def piece_of(self, member: Member, piece: memoryview) -> None:
        """The next data of a member: of the journal, its lines are looked at as they come."""
        if self._journal is None or member.path != journal_path(self._sequence):
            return
        if not self._journal_begun:
            self._journal_begun = True
            self._hashes.rewind()
        try:
            for entry in self._journal.feed(bytes(piece)):
                self._compare(entry)
        except CorruptJournal as exc:
            self._journal = None
            here = (self.record_count - 1) * self._record_bytes
            self._contradicts(str(exc), here, self._record_bytes)

    def _take(self, found: FoundMember) -> None:
        path = found.member.path
        if path == manifest_path(self._sequence):
            self._own["manifest"] = found
        elif path == journal_path(self._sequence):
            self._own["index"] = found
            self._end_journal()
        elif path.startswith(b".tapefs/catalog-"):
            self._own["index"] = found
        elif found.member.kind is MemberKind.FILE and "manifest" not in self._own:
            self._manifest.update(encode_manifest_line(found.sha256, path))
            if found.member.size:
                self._hashes.put(found)

    def _end_journal(self) -> None:
        if self._journal is None:
            return
        try:
            self._journal.finish()
        except CorruptJournal as exc:
            self._contradicts(str(exc))
        else:
            self._journal_done = True

    def _compare(self, line: Entry | RecordCrcs) -> None:
        if isinstance(line, RecordCrcs):
            self._compare_crcs(line)
        elif isinstance(line, InodeEntry):
            self._whole = line
        elif isinstance(line, ExtentEntry):
            self._compare_extent(line)

    def _compare_crcs(self, line: RecordCrcs) -> None:
        """Records that the catalog has no checksums of are proven by these."""
        for number in range(len(line.crcs) // 4):
            record = line.first_record + number
            read = self._crcs[4 * record : 4 * record + 4]
            position = record * self._record_bytes
            if read == line.crcs[4 * number : 4 * number + 4]:
                continue
            if not self.damages.covers(position, self._record_bytes):
                detail = "the record is not the one that the journal lists"
                self.damages.add(position, self._record_bytes, DamageKind.MISMATCH, detail)

    def _compare_extent(self, entry: ExtentEntry) -> None:
        hashed = self._hashes.at(entry.position)
        if hashed is None:
            if self._undamaged(entry.position, entry.length):
                self._contradicts(
                    "the journal lists a file's bytes where no file stands",
                    entry.position,
                    entry.length,
                )
            return
        length, sha256, xxh128 = hashed
        right = (length, sha256) == (entry.length, entry.sha256)
        whole = self._whole
        if whole is not None and (whole.ino, whole.size) == (entry.ino, entry.length):
            right &= whole.sha256 in (None, sha256) and whole.xxh128 in (None, xxh128)
        if not right:
            self._contradicts(
                "a file's bytes do not have the checksums that the journal lists",
                entry.position,
                entry.length,
            )

    def _undamaged(self, position: int, length: int) -> bool:
        """Whether the members up to here were all seen: no header before is lost to damage."""
        return not self.damages.as_tuple() and position + length <= self.record_count * (
            self._record_bytes
        )

    # -- the tape file as a whole

    def _check_head(self) -> None:
        head = self._scan.head
        if head is None:
            if not self.damages.covers(0, self._record_bytes):
                self._contradicts("it does not start as a tape file of this format does")
            return
        kind = self._known.kind.on_tape if self._known else head.kind
        if (head.volume_uuid, head.sequence, head.kind) != (
            self._volume_uuid,
            self._sequence,
            kind,
        ):
            self._contradicts("its first header is that of another tape file")

    def _check_tail(self) -> None:
        last = max(self.record_count - 1, 0) * self._record_bytes
        if self._last_record is None:
            if not self.damages.covers(last, self._record_bytes):
                self._contradicts("it has no last record", last, self._record_bytes)
            return
        try:
            tail = find_tail(self._last_record)
        except DamagedTape as exc:
            # Of a tape file that the catalog does not know this is no damage: its writer died.
            if self._known is not None:
                self._contradicts(str(exc), last, self._record_bytes)
            return
        if not self._is_ours(tail):
            self._contradicts("its tail is that of another tape file", last, self._record_bytes)
            return
        self._check_span("index", tail.index)
        if tail.manifest is not None:
            self._check_span("manifest", tail.manifest)
            whole = not self.damages.as_tuple()
            if whole and self._manifest.digest() != tail.manifest.sha256:
                self._contradicts("its list of checksums is not that of the files in it")
        if tail.kind is not TapeFileKind.CHECKPOINT and not self._journal_done:
            span = tail.index
            if not self.damages.covers(span.position, span.length):
                self._contradicts("its journal was not found", span.position, span.length)

    def _is_ours(self, tail: Tail) -> bool:
        place = (self._volume_uuid, self._sequence, self._start.block, self.record_count)
        if (tail.volume_uuid, tail.sequence, tail.first_block, tail.record_count) != place:
            return False
        known = self._known
        return known is None or (tail.kind, tail.written_ns) == (known.kind, known.written_ns)

    def _check_span(self, name: str, span: MemberSpan) -> None:
        found = self._own.get(name)
        if found is None:
            return  # lost to damage that is noted, or looked for by the caller
        if (found.position, found.member.size, found.sha256) != (
            span.position,
            span.length,
            span.sha256,
        ):
            self._contradicts(
                f"its {name} is not the one that its tail names", span.position, span.length
            )

    def _contradicts(self, detail: str, position: int = 0, length: int | None = None) -> None:
        length = self._record_bytes if length is None else length
        self.damages.add(position, length, DamageKind.CONTRADICTION, detail)


class _Members(MemberScan):
    """Hands the data of each member to the check as it passes."""

    def __init__(self, check: TapeFileCheck) -> None:
        super().__init__()
        self._check = check

    def _passes(self, member: Member, piece: memoryview) -> None:
        self._check.piece_of(member, piece)


class _HashQueue:
    """Hashes of members in a local file, put and asked for in the order of their positions."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._next: tuple[int, int, bytes, bytes] | None = None

    def put(self, found: FoundMember) -> None:
        self._stream.write(
            _HASHED.pack(found.position, found.member.size, found.sha256, found.xxh128)
        )

    def rewind(self) -> None:
        self._stream.seek(0)
        self._read()

    def at(self, position: int) -> tuple[int, bytes, bytes] | None:
        """Length, SHA-256 and xxh128 of the member whose data begins at `position`."""
        while self._next is not None and self._next[0] < position:
            self._read()
        if self._next is None or self._next[0] != position:
            return None
        return self._next[1:]

    def _read(self) -> None:
        data = self._stream.read(_HASHED.size)
        self._next = _HASHED.unpack(data) if data else None
