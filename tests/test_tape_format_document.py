"""docs/tape-format.md must say what the code does: its example is the encoders' output.

`python tests/test_tape_format_document.py` writes the example into the document anew.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from tapefs.entries import Entry, ExtentEntry, InodeEntry, LinkEntry, TapeFileKind
from tapefs.volume.journal import JournalHead, encode_entry, encode_head
from tapefs.volume.manifest import encode_manifest_line
from tapefs.volume.names import journal_path, manifest_path
from tapefs.volume.notes import MemberNote, encode_note
from tapefs.volume.pax import Member, TapeFileHead, global_header, member_header, pad_length
from tapefs.volume.pax_reader import (
    EndOfArchive,
    GlobalHeader,
    HeaderReader,
    MemberHeader,
    NeedMore,
)
from tapefs.volume.tail import MemberSpan, Tail, encode_tail, find_tail

DOCUMENT = Path(__file__).parent.parent / "docs" / "tape-format.md"
EXAMPLE = re.compile(r"(?<=<!-- example begins -->\n).*(?=<!-- example ends -->)", re.DOTALL)
HEX_LINE = re.compile("[0-9a-f]{8}")
VOLUME = UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")
RECORD_BYTES = 65_536
WRITTEN_NS = 1_672_628_700_000_000_000
MTIME_NS = 1_672_628_645_123_456_789


def example_tape_file() -> bytes:
    """The first segment of a volume with one file, assembled member by member."""
    content = b"hello, tape\n"
    sha256 = hashlib.sha256(content).digest()
    hello = Member(
        b"hello.txt",
        uid=1000,
        gid=1000,
        size=len(content),
        mtime_ns=MTIME_NS,
        comment=encode_note(MemberNote(2, None, sha256)),
    )
    body = global_header(TapeFileHead(VOLUME, 1, TapeFileKind.SEGMENT)) + member_header(hello)
    position = len(body)
    body += content + bytes(pad_length(len(content)))
    body, manifest = with_member(body, manifest_path(1), encode_manifest_line(sha256, hello.path))
    times = (MTIME_NS, MTIME_NS, MTIME_NS)
    entries: tuple[Entry, ...] = (
        InodeEntry(1, 0o040755, 1000, 1000, 0, 0, *times),
        InodeEntry(2, 0o100644, 1000, 1000, len(content), 0, *times, sha256=sha256),
        ExtentEntry(2, 0, len(content), position, sha256),
        LinkEntry(1, hello.path, 2),
    )
    lines = encode_head(JournalHead(VOLUME, 1)) + b"".join(map(encode_entry, entries))
    body, journal = with_member(body, journal_path(1), lines)
    tail = Tail(VOLUME, 1, TapeFileKind.SEGMENT, 2, 0, journal, manifest, written_ns=WRITTEN_NS)
    return body + encode_tail(tail, len(body), RECORD_BYTES)


def with_member(body: bytes, path: bytes, data: bytes) -> tuple[bytes, MemberSpan]:
    body += member_header(Member(path, size=len(data), mtime_ns=WRITTEN_NS))
    span = MemberSpan(len(body), len(data), hashlib.sha256(data).digest())
    return body + data + bytes(pad_length(len(data))), span


def dump(data: bytes) -> str:
    """`data` as `hexdump -C` shows it."""
    lines: list[str] = []
    previous = b""
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        if row == previous:
            if lines[-1] != "*":
                lines.append("*")
            continue
        previous = row
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {left}  {right}  |{text}|")
    return "\n".join([*lines, f"{len(data):08x}"])


def contents(data: bytes) -> str:
    """A table of what stands where in the tape file."""
    rows = ["| position | bytes | what |", "|---|---|---|"]
    reader, position = HeaderReader(), 0
    while True:
        header = reader.parse(data[position:])
        assert not isinstance(header, NeedMore)
        what = "end of the archive"
        if isinstance(header, GlobalHeader):
            what = "opening header"
        elif isinstance(header, MemberHeader):
            what = f"headers of `{header.member.path.decode()}`"
        rows.append(f"| {position:x}h | {header.header_bytes} | {what} |")
        position += header.header_bytes
        if isinstance(header, EndOfArchive):
            break
        if isinstance(header, MemberHeader):
            size = header.member.size
            rows.append(f"| {position:x}h | {size} | its data |")
            position += header.data_and_pad_bytes
    rows.append(f"| {position:x}h | {len(data) - position} | zeros to the end of the record |")
    return "\n".join(rows)


def example() -> str:
    data = example_tape_file()
    return f"{contents(data)}\n\n```\n{dump(data)}\n```\n"


def undump(text: str) -> bytes:
    """The bytes that a dump shows."""
    data = b""
    for line in filter(HEX_LINE.match, text.splitlines()):
        start = int(line[:8], 16)
        data += data[-16:] * ((start - len(data)) // 16)
        data += bytes.fromhex(line[8:].partition("|")[0])
    return data


def example_in_document() -> str:
    found = EXAMPLE.search(DOCUMENT.read_text())
    assert found is not None
    return found[0]


def program_in_document() -> str:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert isinstance(program, str)
    return program


def run_program(image: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", program_in_document(), image, str(RECORD_BYTES)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_example_is_what_the_encoders_write() -> None:
    assert example_in_document() == example()


def test_the_bytes_in_the_document_are_a_tape_file(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(undump(example_in_document()))
    assert image.read_bytes() == example_tape_file()
    tail = find_tail(image.read_bytes()[-RECORD_BYTES:])
    assert (tail.volume_uuid, tail.sequence, tail.record_count) == (VOLUME, 1, 1)
    subprocess.run(["tar", "-xf", image, "-C", tmp_path], check=True)
    assert (tmp_path / "hello.txt").read_bytes() == b"hello, tape\n"
    subprocess.run(
        ["sha256sum", "-c", ".tapefs/segments/00000001.sha256"], check=True, cwd=tmp_path
    )


def test_the_program_in_the_document_reads_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(undump(example_in_document()))
    done = run_program(image)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"segment 1 of volume {VOLUME}",
        "inode 2 bytes 12 good",
        "inode 2 is hello.txt in 1",
    ]


@pytest.mark.parametrize(
    ("find", "problem"),
    [
        (b"hello, tape", "BAD"),
        (b'"tapefs":"journal"', "the journal is damaged"),
        (b'"tapefs":"tail"', "the tail is damaged"),
        (b".tapefs/segments/00000001.tail", "torn"),
    ],
)
def test_the_program_in_the_document_finds_damage(
    find: bytes, problem: str, tmp_path: Path
) -> None:
    damaged = bytearray(example_tape_file())
    damaged[damaged.rindex(find) + 3] ^= 1
    image = tmp_path / "image"
    image.write_bytes(damaged)
    done = run_program(image)
    assert problem in done.stdout + done.stderr


if __name__ == "__main__":
    written = EXAMPLE.sub(lambda _: example(), DOCUMENT.read_text())
    DOCUMENT.write_text(written)
