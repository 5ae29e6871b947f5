"""Assembling a tape file: members, manifest, journal and tail, as a stream of records.

A `SegmentBuilder` is driven by the archiver, in a worker thread: each method is a generator of full
records, to be consumed to its end before the next one is called. Nothing here knows a catalog.
What stands where is normative in docs/tape-format.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import xxhash

from tapefs.drive import TapeAddress
from tapefs.entries import Entry, ExtentEntry, TapeFile, TapeFileKind
from tapefs.volume import journal
from tapefs.volume.hashing import ContentHashes, KnownHashes
from tapefs.volume.manifest import encode_manifest_line
from tapefs.volume.names import catalog_path, journal_path, manifest_path
from tapefs.volume.notes import MemberNote, encode_note
from tapefs.volume.pax import Member, TapeFileHead, global_header, member_header, pad_length
from tapefs.volume.records import RecordBuffers, RecordPacker
from tapefs.volume.tail import EarlierFile, MemberSpan, Tail, encode_tail

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from uuid import UUID

# Content up to this size is read before its header is written, so that the header can name its
# SHA-256: whole small files of a torn segment can then be proven right.
_HASH_FIRST_BYTES: Final = 64 * 1024
_COPY_BYTES: Final = 1 << 20
# Records of a large file that are filled by one read of the spool: threads that take turns at
# Python lose more time the more often they change.
_RECORDS_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tape file is going to stand and what came before it."""

    volume_uuid: UUID
    record_bytes: int
    sequence: int
    first_block: int
    checkpoint_block: int
    since_checkpoint: tuple[EarlierFile, ...]
    # Number of generations that end up to and including this tape file.
    generation: int
    written_ns: int

    @property
    def start(self) -> TapeAddress:
        """Where the tape file's first record goes."""
        return TapeAddress(self.first_block, self.sequence, 0)


class Source(Protocol):
    """Where a member's content comes from."""

    def fill(self, spaces: Sequence[memoryview], offset: int) -> None:
        """Fill `spaces`, one after the other, with the file's bytes from `offset` on; zeros where
        there are none."""
        ...


class Archived(NamedTuple):
    """The outcome of one file member."""

    entry: ExtentEntry
    xxh128: bytes


class _TapeFileBuilder:
    """What segments and checkpoints have in common."""

    def __init__(self, place: Place, buffers: RecordBuffers, kind: TapeFileKind) -> None:
        self.place = place
        self.kind = kind
        self._index_bytes = 0
        self._packer = RecordPacker(buffers)
        head = TapeFileHead(place.volume_uuid, place.sequence, self.kind, place.checkpoint_block)
        self._packer.put(global_header(head))

    @property
    def position_bytes(self) -> int:
        """Bytes assembled so far."""
        return self._packer.position

    def tape_file(self) -> TapeFile:
        """What was assembled. Valid after the last method's records are consumed."""
        place = self.place
        count, rest = divmod(self._packer.position, place.record_bytes)
        assert rest == 0, "the tape file is not finished"
        crcs = bytes(self._packer.crcs)
        return TapeFile(
            place.sequence,
            self.kind,
            place.first_block,
            count,
            place.written_ns,
            crcs,
            self._index_bytes,
        )

    def _local_file(self, path: bytes, source: Path) -> Iterator[array[int]]:
        """Member `path` with the content of a local file. `_last_member` is its place."""
        size = source.stat().st_size
        packer = self._packer
        packer.put(member_header(Member(path, size=size, mtime_ns=self.place.written_ns)))
        position, sha256 = packer.position, hashlib.sha256()
        with source.open("rb") as stream:
            left = size
            while left:
                data = stream.read(min(left, _COPY_BYTES))
                if not data:
                    raise EOFError(f"{source} became shorter while it was being archived")
                sha256.update(data)
                packer.put(data)
                left -= len(data)
                yield from packer.take_full()
        packer.put(bytes(pad_length(size)))
        yield from packer.take_full()
        self._last_member = MemberSpan(position, size, sha256.digest())

    def _finish(self, index: MemberSpan, manifest: MemberSpan | None) -> Iterator[array[int]]:
        place, self._index_bytes = self.place, index.length
        tail = Tail(
            volume_uuid=place.volume_uuid,
            sequence=place.sequence,
            kind=self.kind,
            first_block=place.first_block,
            record_count=0,
            checkpoint_block=place.checkpoint_block,
            since_checkpoint=place.since_checkpoint,
            index=index,
            manifest=manifest,
            generation=place.generation,
            written_ns=place.written_ns,
        )
        self._packer.put(encode_tail(tail, self._packer.position, place.record_bytes))
        yield from self._packer.take_full()
        self._packer.finish()


class SegmentBuilder(_TapeFileBuilder):
    """Assembles one segment. `work` is a local directory for journal and manifest.

    The journal stays there as `journal_path` until the caller has applied and deleted it. One that
    `closes` ends a generation; nothing may be added to it.
    """

    def __init__(
        self, place: Place, buffers: RecordBuffers, work: Path, *, closes: bool = False
    ) -> None:
        kind = TapeFileKind.CLOSING if closes else TapeFileKind.SEGMENT
        super().__init__(place, buffers, kind)
        self.journal_path = work / f"segment-{place.sequence}.ndjson"
        self._manifest_path = work / f"segment-{place.sequence}.sha256"
        self._journal = self.journal_path.open("wb")
        self._manifest = self._manifest_path.open("wb")
        head = journal.JournalHead(place.volume_uuid, place.sequence)
        self._journal.write(journal.encode_head(head))
        # Its thread is started by the first file that is large enough.
        self._hasher = ThreadPoolExecutor(1, "sha256")

    def log(self, entry: Entry) -> None:
        """Put `entry` into the journal."""
        self._journal.write(journal.encode_entry(entry))

    def add_member(self, member: Member) -> Iterator[array[int]]:
        """A member without content: a directory, link, fifo, device or empty file."""
        self._put_header(member)
        if member.kind.value == b"0":
            self._manifest.write(encode_manifest_line(hashlib.sha256().digest(), member.path))
        yield from self._packer.take_full()

    def add_file(
        self, member: Member, note: MemberNote, source: Source, known: KnownHashes | None = None
    ) -> Iterator[array[int]]:
        """`member.size` bytes of `source`, from `note.offset` on (None: from 0).

        The member's comment is made here. `archived` then holds what to log. With `known` hashes
        none are taken, but the content is seen to be what they are of. Raises OSError when the
        local file cannot be read, SpoolMismatch when it is not what is known.
        """
        if member.size <= _HASH_FIRST_BYTES:
            self._small_file(member, note, source)
        else:
            yield from self._large_file(member, note, source, known)
        self._manifest.write(encode_manifest_line(self.archived.entry.sha256, member.path))
        self._packer.put(bytes(pad_length(member.size)))
        yield from self._packer.take_full()

    archived: Archived

    def _small_file(self, member: Member, note: MemberNote, source: Source) -> None:
        offset = note.offset or 0
        data = bytearray(member.size)
        source.fill([memoryview(data)], offset)
        sha256 = hashlib.sha256(data).digest()
        self._put_header(member, encode_note(note, sha256))
        entry = ExtentEntry(note.ino, offset, member.size, self._packer.position, sha256)
        self.archived = Archived(entry, xxhash.xxh3_128_digest(data))
        self._packer.put(data)

    def _large_file(
        self, member: Member, note: MemberNote, source: Source, known: KnownHashes | None
    ) -> Iterator[array[int]]:
        offset = note.offset or 0
        self._put_header(member, encode_note(note))
        packer, position = self._packer, self._packer.position
        hashes = known or ContentHashes(self._hasher)
        done = 0
        spaces = packer.spaces(member.size, _RECORDS_AT_ONCE)
        while spaces:
            source.fill(spaces, offset + done)
            for space in spaces:
                done += len(space)
                hashes.update(space, last=done == member.size)
                packer.advance(len(space))
            left = member.size - done
            # A record's buffer comes back when it is written, which may be at once. The next ones
            # are taken before, so that it is filled again after the next hash at the earliest: by
            # then its own has been waited for.
            spaces = packer.spaces(left, _RECORDS_AT_ONCE) if left else []
            yield from packer.take_full()
        sha256, xxh128 = hashes.digests()
        entry = ExtentEntry(note.ino, offset, member.size, position, sha256)
        self.archived = Archived(entry, xxh128)

    def finish(self) -> Iterator[array[int]]:
        """Manifest, journal with the record checksums known by then, and tail."""
        self._manifest.close()
        sequence = self.place.sequence
        yield from self._local_file(manifest_path(sequence), self._manifest_path)
        manifest = self._last_member
        self._manifest_path.unlink()
        crcs = journal.RecordCrcs(0, bytes(self._packer.crcs))
        self._journal.writelines(journal.encode_crcs(crcs))
        self._journal.close()
        yield from self._local_file(journal_path(sequence), self.journal_path)
        yield from self._finish(self._last_member, manifest)

    def abandon(self) -> None:
        """The segment is finished, or will not be: remove the local files, end the thread."""
        self._hasher.shutdown(wait=False)
        for stream, path in (
            (self._journal, self.journal_path),
            (self._manifest, self._manifest_path),
        ):
            stream.close()
            path.unlink(missing_ok=True)

    def _put_header(self, member: Member, comment: bytes | None = None) -> None:
        try:
            header = member_header(member, comment)
        except ValueError:
            # More extended attributes than an archive can hold; the journal has them all.
            header = member_header(dataclasses.replace(member, xattrs={}), comment)
        self._packer.put(header)


class CheckpointBuilder(_TapeFileBuilder):
    """Assembles one checkpoint: the compressed catalog copy `source` and the tail."""

    def __init__(self, place: Place, buffers: RecordBuffers) -> None:
        super().__init__(place, buffers, TapeFileKind.CHECKPOINT)

    def records(self, source: Path) -> Iterator[array[int]]:
        """All records of the checkpoint."""
        yield from self._packer.take_full()
        yield from self._local_file(catalog_path(self.place.generation), source)
        yield from self._finish(self._last_member, None)
