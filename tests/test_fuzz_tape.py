"""What a hostile tape holds is taken as a sound catalog or refused with a typed error.

Two kinds of input: bytes damaged anywhere, and forgeries, odd values under right checksums.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sqlite3
import stat
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest
import zstandard
from catalog_rig import DIRECTORY, SETTINGS, described, new_view, segment
from crash_rig import logs_expected, scratch
from fuzz_rig import Mutator, Tally, fuzz, input_count, randomness, unstuck
from hostile_rig import (
    NAMES,
    NUMBERS,
    assert_sound,
    odd,
    resealed,
    resummed,
    some_entries,
)
from torn_rig import HandMade, append
from volume_rig import Rig, User

from tapefs.catalog import TapeView, VolumeSettings, remove_database
from tapefs.config import Config
from tapefs.entries import ROOT_INO, ExtentEntry, LinkEntry, TapeFileKind
from tapefs.errors import DamagedTape, DataMismatch, Fault, TapefsError, WrongTape, leaves_of
from tapefs.geometry import Geometry
from tapefs.volume.acl import acl_from_text, acl_to_text
from tapefs.volume.journal import (
    JournalDecoder,
    JournalHead,
    RecordCrcs,
    decode_line,
    encode_crcs,
    encode_entry,
    encode_head,
)
from tapefs.volume.journal_file import read_crcs, read_entries
from tapefs.volume.label import Label, decode_label, encode_label, is_valid_name
from tapefs.volume.notes import MemberNote, decode_note, encode_note
from tapefs.volume.pax import Member, MemberKind, TapeFileHead, global_header, member_header
from tapefs.volume.pax_reader import HeaderReader, MemberHeader
from tapefs.volume.session import fetch_span
from tapefs.volume.tail import EarlierFile, MemberSpan, Tail, encode_tail, find_tail

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tapefs.entries import Entry

UUID_7 = UUID(int=7)
RECORD_BYTES = 65536
INT64_MAX = 2**63 - 1

# -- what is decoded from bytes alone

LABEL = encode_label(Label(UUID_7, "shelf 3", RECORD_BYTES, 10**18))


def use_label(data: bytes) -> None:
    label = decode_label(data)
    assert is_valid_name(label.name)
    assert label.name.isprintable()
    assert RECORD_BYTES <= label.record_bytes <= 2**20


def forged_label(rng: random.Random) -> bytes:
    start = LABEL.index(b'{"tapefs"')
    line = resealed(rng, LABEL[start : LABEL.index(b"\n", start) + 1])
    header = bytearray(LABEL[start - 512 : start])
    header[124:136] = b"%011o\0" % len(line)
    return (LABEL[: start - 512] + resummed(bytes(header)) + line).ljust(len(LABEL), b"\0")[:10_240]


def some_tail(kind: TapeFileKind = TapeFileKind.SEGMENT) -> Tail:
    is_segment = kind is not TapeFileKind.CHECKPOINT
    span = MemberSpan(1024, 400, bytes(32))
    since = (EarlierFile(3, 10, 4), EarlierFile(4, 15, 2, TapeFileKind.TORN, True))
    return Tail(UUID_7, 5, kind, 18, 1, span, span if is_segment else None, 6, since, 1, 10**18)


TAILS = [
    encode_tail(some_tail(kind), 4096, RECORD_BYTES).rstrip(b"\0") + bytes(1024)
    for kind in (TapeFileKind.SEGMENT, TapeFileKind.CLOSING, TapeFileKind.CHECKPOINT)
]


def use_tail(data: bytes) -> None:
    tail = find_tail(data)
    assert tail.kind is not TapeFileKind.TORN
    for number in (tail.sequence, tail.first_block, tail.record_count, tail.index.position):
        assert 0 <= number <= INT64_MAX
    assert len(tail.since_checkpoint) <= 1024


def forged_tail(rng: random.Random) -> bytes:
    data = rng.choice(TAILS)
    start = data.index(b'{"tapefs"')
    line = resealed(rng, data[start : data.index(b"\n", start) + 1])
    header = bytearray(data[start - 512 : start])
    header[124:136] = b"%011o\0" % len(line)
    return data[: start - 512] + resummed(bytes(header)) + line + bytes(-len(line) % 512 + 1024)


MEMBERS = [
    Member(b"dir/file", size=10, mtime_ns=5, xattrs={b"user.a": b"1", b"user.=%": b"\0\n"}),
    Member("ü".encode() * 90, kind=MemberKind.DIRECTORY, mode=0o7755, mtime_ns=-(10**18)),
    Member(b"l", kind=MemberKind.SYMLINK, linkpath=b"/etc/" + b"x" * 200),
    Member(b"h", kind=MemberKind.HARD_LINK, linkpath=b"dir/file"),
    Member(b"d", kind=MemberKind.BLOCK_DEVICE, rdev=0x10300),
    Member(b"\xff" * 150, size=2**40, uid=2**31, comment=encode_note(MemberNote(7, 5, bytes(32)))),
]
HEADERS = [member_header(member) for member in MEMBERS]
HEADERS.append(global_header(TapeFileHead(UUID_7, 3, TapeFileKind.SEGMENT)))


def use_header(data: bytes) -> None:
    parsed = HeaderReader().parse(data)
    if not isinstance(parsed, MemberHeader):
        return
    member = parsed.member
    parts = member.path.split(b"/")
    assert member.path == b"." or not {b"", b".", b".."} & set(parts)
    assert b"\0" not in member.path
    assert member.mode <= 0o7777, "the type of a member is its kind alone"
    assert 0 <= member.size <= INT64_MAX
    assert 0 <= member.rdev < 2**32
    assert not member.rdev or member.kind.name.endswith("DEVICE")
    if member.kind is MemberKind.HARD_LINK:
        assert not {b"", b".", b".."} & set(member.linkpath.split(b"/"))
    decode_note(member.comment)
    for name, value in member.xattrs.items():
        assert b"\0" not in name
        acl_from_text(acl_to_text(value) or value)


def forged_header(rng: random.Random) -> bytes:
    """A header with a right checksum, and fields or pax records that are odd."""
    data = rng.choice(HEADERS)
    for at in range(0, len(data), 512):
        if data[at + 257 : at + 262] == b"ustar" and rng.random() < 0.6:
            block = bytearray(data[at : at + 512])
            fields = ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (345, 8))
            start, size = rng.choice(fields)
            value = rng.choice(
                (b"../../x", b"/etc/passwd", b"..", b"\x80" + b"\xff" * 11, b"7" * 12, b"\xff" * 12)
            )
            block[start : start + size] = value[:size].ljust(size, b"\0")
            data = data[:at] + resummed(bytes(block)) + data[at + 512 :]
    return data


LINES = [
    encode_head(JournalHead(UUID_7, 1)),
    encode_entry(described(4, size=20, xattrs={b"user.a": b"1"}, sha256=bytes(32))),
    encode_entry(described(5, 0o120777, target=b"\xff")),
    encode_entry(LinkEntry(1, b"\xff", 4)),
    encode_entry(ExtentEntry(4, 0, 10, 512, bytes(32))),
    *encode_crcs(RecordCrcs(0, bytes(64))),
]


def forged_line(rng: random.Random) -> bytes:
    fields = odd(rng, json.loads(rng.choice(LINES)))
    return json.dumps(fields).encode() + b"\n"


def use_line(data: bytes) -> None:
    decoded = decode_line(data)
    if not isinstance(decoded, JournalHead | RecordCrcs):
        encode_entry(decoded)


def use_journal(data: bytes) -> None:
    decoder = JournalDecoder(UUID_7, 1)
    for at in range(0, len(data), 1000):
        for _ in decoder.feed(data[at : at + 1000]):
            pass
    decoder.finish()


DECODED: dict[str, tuple[list[bytes], Callable[[bytes], None], Callable[..., bytes] | None]] = {
    "labels": ([LABEL], use_label, forged_label),
    "tails": (TAILS, use_tail, forged_tail),
    "headers": (HEADERS, use_header, forged_header),
    "journal lines": (LINES, use_line, forged_line),
    "whole journals": ([b"".join(LINES)], use_journal, None),
}


@pytest.mark.parametrize("group", DECODED)
def test_bytes(group: str) -> None:
    corpus, use, forge = DECODED[group]
    for data in corpus:
        use(data)
    fuzz(f"{group}, damaged", corpus, use, input_count(11_000)).report()
    if forge is None:
        return
    rng, tally = randomness(group, "forged"), Tally(f"{group}, forged")
    with unstuck():
        for number in range(input_count(11_000)):
            data = forge(rng)
            with tally.input(number, data):
                use(data)
    tally.report()


async def test_a_tail_cannot_point_beyond_its_tape_file(place: Path) -> None:
    tail, no_drive = some_tail(), cast("Any", None)
    for position, length in ((RECORD_BYTES, 1), (0, RECORD_BYTES + 1), (INT64_MAX, INT64_MAX)):
        span = MemberSpan(position, length, bytes(32))
        with pytest.raises(DamagedTape, match="tape file 5 points beyond its end"):
            await fetch_span(
                no_drive, tail, span, Geometry(RECORD_BYTES), place / "x", lambda *_: None
            )


# -- journals, applied


BASE: list[Entry] = [
    described(2, DIRECTORY),
    LinkEntry(1, b"dir", 2),
    described(3, DIRECTORY),
    LinkEntry(2, b"b", 3),
    described(4, size=20),
    LinkEntry(3, b"a", 4),
    LinkEntry(1, b"b", 4),
    ExtentEntry(4, 0, 10, 0, bytes(32)),
    described(5, 0o120777, target=b"x"),
    LinkEntry(2, b"a", 5),
]


def test_an_extent_lies_within_its_tape_file(place: Path) -> None:
    view = new_view(place)
    end = segment(1).record_count * RECORD_BYTES
    with pytest.raises(DamagedTape, match="puts bytes of inode 4 beyond its tape file"):
        view.apply(segment(1), [*BASE, ExtentEntry(4, 10, 10, end - 9, bytes(32))])
    assert view.apply(segment(1), [*BASE, ExtentEntry(4, 10, 10, end - 10, bytes(32))])
    view.close()


async def test_an_extent_beyond_its_tape_file_ends_a_read(
    place: Path, assert_logs: Callable[[str], object]
) -> None:
    """As in a catalog that was made before such extents were refused, or was damaged."""
    rig = Rig(place, config=Config(settle_s=0, idle_s=3600, commit_s=1))
    await rig.format()
    async with rig.mounted() as user:
        await user.write("file", b"x" * 1000)
    for path in (*rig.state.rglob("live.sqlite"), *rig.state.rglob("tape.sqlite")):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE extent SET position = 5 * 65536")
            connection.commit()
    assert_logs("recall.failed")
    assert_logs("data.mismatch path=file")
    async with rig.mounted(read_only=True) as user:
        user.evict_everything()
        with pytest.raises(DataMismatch, match="tape file 1 has no record 5"):
            await user.read("file")


@pytest.fixture
def place() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


def some_journal(rng: random.Random, sequence: int, volume: UUID = SETTINGS.volume_uuid) -> bytes:
    """A journal of mixed entries, most of them odd, as the bytes that a tape would have."""
    entries = some_entries(rng, rng.randrange(1, 6))
    if rng.random() < 0.5:
        entries = [*BASE, *entries]
        rng.shuffle(entries)
    lines = [encode_entry(entry) for entry in entries]
    if rng.random() < 0.3:
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(odd(rng, json.loads(lines[at]))).encode() + b"\n"
    crcs = encode_crcs(RecordCrcs(0, bytes(4 * rng.choice((0, 1, 1000, 1001)))))
    return b"".join((encode_head(JournalHead(volume, sequence)), *lines, *crcs))


def test_journals(place: Path) -> None:
    rng, tally = randomness("journals"), Tally("journals applied")
    path = place / "journal"
    view = new_view(place)
    with unstuck():
        for number in range(input_count(3_000)):
            last = view.last_tape_file()
            sequence = last.sequence + 1 if last else 1
            if sequence > 20:
                view.close()
                remove_database(view.path)
                view, sequence = new_view(place), 1
            path.write_bytes(some_journal(rng, sequence))
            before = view.last_tape_file()
            with tally.input(number, path.read_bytes()):
                first = read_crcs(path)
                file = segment(sequence)
                entries = read_entries(path, SETTINGS.volume_uuid, sequence)
                assert view.apply(_with(file, first), entries)
                assert_sound(view.path)
            assert view.last_tape_file() == before or tally.outcomes["taken"]
    view.close()
    tally.report()


def _with(file: Any, crcs: bytes) -> Any:
    return replace(file, crcs=crcs)


# -- checkpoints


@pytest.fixture
def checkpoint(place: Path) -> Path:
    view = new_view(place, "source.sqlite")
    view.apply(segment(1), BASE)
    view.apply(segment(2), [described(6, 0o020666), LinkEntry(2, b"c", 6)])
    path = place / "checkpoint.sqlite"
    view.export(path)
    view.close()
    return path


def forge(rng: random.Random, path: Path) -> None:
    """Change rows of a checkpoint whose tables have no constraints any more."""
    values = (*NUMBERS[:-3], None, 1.5, "text", *NAMES, b"\0" * 70_000)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for _ in range(rng.choice((1, 1, 2))):
            table = rng.choice(("setting", "tape_file", "inode", "dentry", "xattr", "extent"))
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            kind = rng.random()
            if kind < 0.15:
                connection.execute(f"DELETE FROM {table} WHERE random() % 3 = 0")
            elif kind < 0.3:
                connection.execute(f"INSERT INTO {table} SELECT * FROM {table} LIMIT 1")
            else:
                column, value = rng.choice(columns), rng.choice(values)
                if isinstance(value, int) and not -(2**63) <= value < 2**63:
                    value = str(value)
                rows = [row[0] for row in connection.execute(f"SELECT rowid FROM {table}")]
                if rows:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? WHERE rowid = ?",
                        (value, rng.choice(rows)),
                    )


def unconstrained(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO xattr VALUES (4, x'41', x'42')")
        for table in ("setting", "tape_file", "inode", "dentry", "xattr", "extent"):
            connection.executescript(
                f"CREATE TABLE forged AS SELECT * FROM {table}; DROP TABLE {table};"
                f"ALTER TABLE forged RENAME TO {table};"
            )


@pytest.mark.parametrize("way", ["forged rows", "damaged bytes"])
def test_checkpoints(checkpoint: Path, place: Path, way: str) -> None:
    rng, tally = randomness(way), Tally(f"checkpoints, {way}")
    if way == "forged rows":
        unconstrained(checkpoint)
    original, mutator = checkpoint.read_bytes(), Mutator(rng)
    target, copy = place / "imported.sqlite", place / "copy.sqlite"
    with unstuck():
        for number in range(input_count(1_000)):
            if way == "forged rows":
                copy.write_bytes(original)
                forge(rng, copy)
            else:
                copy.write_bytes(damaged_pages(mutator, original))
            with tally.input(number):
                imported = TapeView.import_checkpoint(copy, target)
                try:
                    assert_sound(target)
                    # It can be used, and written again, and that is taken as well.
                    imported.apply(segment(3), [])
                    again = place / "again.sqlite"
                    imported.export(again)
                    again.unlink()
                except DamagedTape:
                    raise AssertionError("taken, but of no use") from None
                finally:
                    imported.close()
            remove_database(target)
    tally.report()


def damaged_pages(mutator: Mutator, original: bytes) -> bytes:
    """The file with damage in one of its pages, more often near that page's start."""
    at = mutator.rng.randrange(0, len(original), 4096)
    length = mutator.rng.choice((16, 100, 4096))
    page = mutator.mutated(original[at : at + length])
    page = page if mutator.rng.random() < 0.1 else page[:length].ljust(length, b"\0")
    return original[:at] + page + original[at + length :]


# -- whole tapes


class Forger:
    """Puts tape files of its own making behind the label of a cartridge."""

    def __init__(self, rig: Rig, rng: random.Random) -> None:
        self.rig = rig
        self.rng = rng
        self.empty = rig.tap.read_bytes()

    def forge(self) -> None:
        """One to three tape files: segments, checkpoints, torn ones."""
        self.rig.tap.write_bytes(self.empty)
        self._block = 2
        since: list[EarlierFile] = []
        for sequence in range(1, self.rng.randint(2, 4)):
            kind = self.rng.random()
            first_block = self._block
            if kind < 0.5:
                self._segment(sequence, tuple(since))
            elif kind < 0.75:
                self._checkpoint(sequence, tuple(since))
            else:
                self._torn(sequence)
            listed = TapeFileKind.SEGMENT if kind < 0.5 else TapeFileKind.TORN
            since.append(EarlierFile(sequence, first_block, self._block - first_block - 1, listed))

    def _segment(self, sequence: int, since: tuple[EarlierFile, ...]) -> None:
        journal = some_journal(self.rng, sequence, self.rig.label.volume_uuid)
        path = b".tapefs/segments/%08d.ndjson" % sequence
        kind = TapeFileKind.CLOSING if self.rng.random() < 0.3 else TapeFileKind.SEGMENT
        self._close(kind, sequence, path, journal, since)

    def _checkpoint(self, sequence: int, since: tuple[EarlierFile, ...]) -> None:
        path = self.rig.directory / "forged.sqlite"
        view = TapeView.create(path, settings_of(self.rig.label))
        with suppress(DamagedTape, WrongTape):
            view.apply(segment(1), [*BASE, *some_entries(self.rng, 3)])
        copy = self.rig.directory / "forged copy.sqlite"
        copy.unlink(missing_ok=True)
        view.export(copy)
        view.close()
        remove_database(path)
        if self.rng.random() < 0.7:
            unconstrained(copy)
            forge(self.rng, copy)
        packed = zstandard.compress(copy.read_bytes())
        if self.rng.random() < 0.1:
            packed = zstandard.compress(bytes(100 << 20))
        name = b".tapefs/catalog-%08d.sqlite.zst" % sequence
        self._close(TapeFileKind.CHECKPOINT, sequence, name, packed, since)

    def _torn(self, sequence: int) -> None:
        made = HandMade(self.rig, sequence)
        data = bytes(made.bytes)
        for _ in range(self.rng.randint(1, 4)):
            note = encode_note(MemberNote(self.rng.choice((0, 1, 2, 3, 4, 9, 2**40)), None))
            member = replace(self.rng.choice(MEMBERS), comment=note)
            header = member_header(replace(member, size=0))
            data += header if self.rng.random() < 0.6 else forged_header(self.rng)
        self._put(data + bytes(-len(data) % RECORD_BYTES))

    def _close(
        self,
        kind: TapeFileKind,
        sequence: int,
        path: bytes,
        index: bytes,
        since: tuple[EarlierFile, ...],
    ) -> None:
        head = TapeFileHead(self.rig.label.volume_uuid, sequence, kind)
        data = global_header(head) + member_header(Member(path, size=len(index)))
        span = MemberSpan(len(data), len(index), hashlib.sha256(index).digest())
        if self.rng.random() < 0.2:
            place = self.rng.choice((0, 511, 2**40, INT64_MAX))
            span = replace(span, position=place, length=self.rng.choice((0, 1, 2**40, INT64_MAX)))
        data += index + bytes(-len(index) % 512)
        tail = Tail(
            self.rig.label.volume_uuid,
            sequence,
            kind,
            self._block if self.rng.random() < 0.9 else self.rng.choice((0, 2**40, INT64_MAX)),
            0,
            span,
            span if kind is not TapeFileKind.CHECKPOINT else None,
            0 if self.rng.random() < 0.7 else self.rng.choice((2, 3, 7, 2**40, INT64_MAX)),
            since if self.rng.random() < 0.9 else since[1:],
            1,
            10**18,
        )
        self._put(data + encode_tail(tail, len(data), RECORD_BYTES))

    def _put(self, data: bytes) -> None:
        word = RECORD_BYTES.to_bytes(4, "little")
        pieces = [data[at : at + RECORD_BYTES] for at in range(0, len(data), RECORD_BYTES)]
        append(self.rig.tap, b"".join(word + piece + word for piece in pieces) + bytes(4))
        self._block += len(pieces) + 1


async def test_hostile_tapes(place: Path) -> None:
    """Mounted from nothing: sound, every file read or refused, and a file can be written."""
    rng, tally = randomness("tapes"), Tally("whole tapes")
    rig = Rig(place, config=Config(settle_s=0, idle_s=3600, commit_s=1))
    await rig.format()
    forger = Forger(rig, rng)
    with logs_expected(logging.ERROR), unstuck():
        for number in range(input_count(150)):
            forger.forge()
            shutil.rmtree(rig.state, ignore_errors=True)
            with tally.input(number), only_one():
                async with rig.mounted(read_only=rng.random() < 0.5) as user:
                    assert_sound(user.volume.view.path)
                    await use(user)
    tally.report()


async def use(user: User) -> None:
    """Look at everything; write where that is allowed."""
    pending = [ROOT_INO]
    catalog = user.volume.catalog
    while pending:
        for _, _, ino in catalog.children(pending.pop(), 0, 1 << 30):
            inode = catalog.inode(ino)
            if stat.S_ISDIR(inode.mode):
                pending.append(ino)
            elif stat.S_ISREG(inode.mode):
                await user.volume.contents.open(ino, write=False)
                with suppress(TapefsError):
                    await user.volume.contents.read(ino, 0, 100_000)
                    await user.volume.contents.read(ino, inode.size - 5, 10)
                await user.volume.contents.release(ino, write=False)
    if user.volume.contents.admission.read_only_reason is None:
        with suppress(TapefsError):
            await user.write("made here", b"1")


@contextmanager
def only_one() -> Iterator[None]:
    """The one error in the groups that nurseries make."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = leaves_of(group)[0]
        if isinstance(error, TapefsError):
            assert error.fault is not Fault.BUG, repr(error)
        raise error from group


def settings_of(label: Label) -> VolumeSettings:
    return VolumeSettings(label.volume_uuid, label.name, label.record_bytes, label.created_ns)
