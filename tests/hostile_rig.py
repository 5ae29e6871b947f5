"""What a forger puts on a tape: odd values under right checksums; and what no mount may show."""

from __future__ import annotations

import json
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING, Any

from tapefs.entries import ExtentEntry, InodeEntry, LinkEntry, UnlinkEntry
from tapefs.volume.pax import XATTRS_BYTES_MAX
from tapefs.volume.sealed_json import seal

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tapefs.entries import Entry

INT64_MAX = 2**63 - 1
NUMBERS = (
    *(0, 1, 2, 3, 4, 5, -1, 255, 4096, 65536, 2**31, 2**32 - 1, 2**32, 2**53, 2**62),
    *(INT64_MAX - 1, INT64_MAX, 2**63, -(2**63), 2**64, 10**30),
)
NAMES = (b"a", b"b", b"dir", b".tapefs", b".", b"..", b"", b"a/b", b"a\0b", b"\xff", b"n" * 256)
ODD_VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *(None, True, 1.5, float("inf"), "", "x", "..", "0", "-1", "9" * 25, "\0", "\ud800", "A" * 300),
    *([], [1], {}, {"b64": "AA=="}, {"b64": "!"}, [[]], "100644", "40755", "120777", "104755"),
)


def odd(rng: random.Random, fields: Any, depth: int = 0) -> Any:
    """`fields` of a JSON object with one value, somewhere in it, replaced, dropped or added."""
    if isinstance(fields, dict) and fields and depth < 4:
        key = rng.choice(list(fields))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in fields.items() if k != key}
        if kind < 0.15:
            return fields | {"more": rng.choice(ODD_VALUES)}
        return fields | {key: odd(rng, fields[key], depth + 1)}
    if isinstance(fields, list) and fields and rng.random() < 0.7 and depth < 4:
        at = rng.randrange(len(fields))
        return [*fields[:at], odd(rng, fields[at], depth + 1), *fields[at + 1 :]]
    return rng.choice(ODD_VALUES)


def resealed(rng: random.Random, line: bytes) -> bytes:
    """A sealed line with an odd field and a right checksum."""
    fields = json.loads(line)
    del fields["crc32c"]
    try:
        return seal(odd(rng, fields))
    except (UnicodeEncodeError, TypeError, AttributeError):
        return seal(fields | {"format": rng.choice((0, 2, "1", None))})


def resummed(header: bytes) -> bytes:
    """An archive header block with a right checksum."""
    block = bytearray(header[:512].ljust(512, b"\0"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + header[512:]


def some_entries(rng: random.Random, count: int) -> list[Entry]:
    """Entries that contradict each other more often than not."""
    inos = (1, 2, 3, 4, 5, 6, 7, 8, rng.choice((9, 2**62, 2**62 + 1, INT64_MAX)))
    modes = (0o040755, 0o100644, 0o120777, 0o020666, 0o104755, 0o010600)
    made: list[Entry] = []
    for _ in range(count):
        ino, kind = rng.choice(inos), rng.randrange(8)
        if kind < 3:
            mode = rng.choice(modes)
            target = b"t" if stat.S_ISLNK(mode) or rng.random() < 0.05 else None
            size = rng.choice((0, 1, 10, 100_000, INT64_MAX))
            xattrs = {b"user.a": b"1"} if rng.random() < 0.2 else {}
            times = rng.choice((0, -1, INT64_MAX))
            made.append(
                InodeEntry(ino, mode, 0, 0, size, 0, times, times, times, target, xattrs=xattrs)
            )
        elif kind < 6:
            made.append(LinkEntry(rng.choice(inos), rng.choice(NAMES[:4]), ino))
        elif kind < 7:
            length = rng.choice((1, 10, 65536, INT64_MAX // 2))
            place = rng.choice((0, 5, 512, 1000 * 65536 - 5, INT64_MAX // 2))
            made.append(ExtentEntry(ino, rng.choice((0, 5, 10)), length, place, bytes(32)))
        else:
            made.append(UnlinkEntry(rng.choice(inos), rng.choice(NAMES[:4])))
    return made


# -- what a catalog must be, whoever wrote it


def assert_sound(path: Path) -> None:
    """Judges the tape view in `path` by itself, row by row, without the catalog's own checks."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        settings = dict(connection.execute("SELECT name, value FROM setting"))
        inodes = {row[0]: row for row in connection.execute("SELECT * FROM inode")}
        names = connection.execute("SELECT cookie, parent, name, ino FROM dentry").fetchall()
        xattrs = connection.execute("SELECT ino, name, value FROM xattr").fetchall()
        extents = connection.execute("SELECT * FROM extent ORDER BY ino, offset").fetchall()
        files = connection.execute("SELECT * FROM tape_file ORDER BY sequence").fetchall()
    next_block = 2
    for number, (sequence, _, first_block, record_count, _, crcs, _) in enumerate(files, 1):
        assert (sequence, first_block) == (number, next_block)
        assert record_count >= 0
        assert len(crcs) <= 4 * record_count
        next_block = first_block + record_count + 1
    assert next_block < 2**62
    assert settings["next_ino"] < 2**62 + 2, "the next file could not be made"
    _assert_inodes(inodes, settings["next_ino"])
    _assert_tree(inodes, names)
    _assert_extents(inodes, extents, files, settings["record_bytes"])
    total: dict[int, int] = {}
    for ino, name, value in xattrs:
        assert ino in inodes
        assert 0 < len(name) < 256
        assert b"\0" not in name
        total[ino] = total.get(ino, 0) + len(name) + len(value)
    assert all(size <= XATTRS_BYTES_MAX for size in total.values())


def _assert_inodes(inodes: dict[int, Any], next_ino: int) -> None:
    assert stat.S_ISDIR(inodes[1][1])
    for ino, mode, uid, gid, nlink, size, rdev, *times in inodes.values():
        assert 1 <= ino < next_ino
        assert 0 <= mode < 2**16
        for number in (uid, gid, rdev, nlink):
            assert 0 <= number < 2**32
        assert 0 <= size <= INT64_MAX
        assert all(isinstance(time, int) for time in times[:3])
        assert (times[3] is not None) is stat.S_ISLNK(mode), "only a symlink points somewhere"


def _assert_tree(inodes: dict[int, Any], names: list[Any]) -> None:
    assert len({(parent, name) for _, parent, name, _ in names}) == len(names)
    children: dict[int, list[int]] = {}
    for cookie, parent, name, ino in names:
        assert 1 <= cookie <= 2**62, "readdir starts at 0 and counts on"
        assert stat.S_ISDIR(inodes[parent][1])
        assert ino in inodes
        assert 0 < len(name) < 256
        assert not {b"/", b"\0"} & {name[i : i + 1] for i in range(len(name))}
        assert name not in (b".", b"..")
        assert (parent, name) != (1, b".tapefs")
        children.setdefault(parent, []).append(ino)
    reached, pending = {1}, [1]
    while pending:
        for ino in children.get(pending.pop(), []):
            if stat.S_ISDIR(inodes[ino][1]):
                assert ino not in reached
                pending.append(ino)
            reached.add(ino)
    assert reached == inodes.keys()
    for ino, row in inodes.items():
        links = [child for held in children.values() for child in held if child == ino]
        below = [c for c in children.get(ino, []) if stat.S_ISDIR(inodes[c][1])]
        assert row[4] == (2 + len(below) if stat.S_ISDIR(row[1]) else len(links))


def _assert_extents(
    inodes: dict[int, Any], extents: list[Any], files: list[Any], record_bytes: int
) -> None:
    ends: dict[int, int] = {}
    for ino, offset, length, sequence, position in extents:
        assert stat.S_ISREG(inodes[ino][1])
        assert ends.get(ino, 0) <= offset
        assert length > 0
        ends[ino] = offset + length
        assert ends[ino] <= inodes[ino][5], "bytes beyond the end of a file"
        assert 1 <= sequence <= len(files)
        assert position >= 0
        assert position + length <= files[sequence - 1][3] * record_bytes
