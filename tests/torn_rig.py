"""Torn segments on the shelf: real ones cut off at a record, and ones made by hand."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from volume_rig import RECORD_BYTES, Rig

from tapefs.entries import TapeFileKind
from tapefs.volume.notes import MemberNote, encode_note
from tapefs.volume.pax import Member, TapeFileHead, global_header, member_header, pad_length

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Spot:
    """One object of a `.tap` image: a record (its data) or, with None, a filemark."""

    start: int
    end: int
    data: bytes | None


def spots(image: bytes) -> list[Spot]:
    """Everything in an image, in order."""
    found, at = [], 0
    while at < len(image) and (word := image[at : at + 4]) != b"\xff" * 4:
        length = int.from_bytes(word, "little")
        end = at + (length + (length & 1) + 8 if length else 4)
        found.append(Spot(at, end, image[at + 4 : at + 4 + length] if length else None))
        at = end
    return found


def tape_file(image: bytes, sequence: int) -> list[Spot]:
    """The records of one tape file, and the filemark that closes it if there is one."""
    inside: list[Spot] = []
    number = 0
    for spot in spots(image):
        if number == sequence:
            inside.append(spot)
        number += spot.data is None
    return inside


def cut(image: bytes, sequence: int, record_count: int, *, closed: bool) -> bytes:
    """The image, ending after so many records of one tape file; with a filemark if `closed`."""
    return image[: tape_file(image, sequence)[record_count].start] + bytes(4 * closed)


def whole_members(records: list[bytes], record_count: int) -> dict[str, tarfile.TarInfo]:
    """By Python's tarfile: the members whose data ends within the first records, by path."""
    length = record_count * RECORD_BYTES
    with tarfile.open(fileobj=io.BytesIO(b"".join(records)), mode="r:") as archive:
        return {
            member.name: member
            for member in archive
            if member.offset_data + (member.size if member.isreg() else 0) <= length
        }


@dataclass
class HandMade:
    """A segment made by hand, as a hostile or a strange writer would."""

    rig: Rig
    sequence: int
    head: TapeFileHead | None = None

    def __post_init__(self) -> None:
        self.head = self.head or TapeFileHead(
            self.rig.label.volume_uuid, self.sequence, TapeFileKind.SEGMENT
        )
        self.bytes = bytearray(global_header(self.head))

    def member(
        self,
        member: Member,
        data: bytes = b"",
        *,
        ino: int | None = None,
        offset: int | None = None,
        sha256: bytes | None = None,
    ) -> HandMade:
        """Append a member; its note has the right hash unless another is given."""
        if ino is not None:
            digest = sha256 or (hashlib.sha256(data).digest() if data else None)
            member = replace(member, comment=encode_note(MemberNote(ino, offset, digest)))
        self.bytes += member_header(replace(member, size=len(data)))
        self.bytes += data + bytes(pad_length(len(data)))
        return self

    def file(self, path: bytes, ino: int, data: bytes = b"data") -> HandMade:
        """Append an ordinary file."""
        return self.member(Member(path, uid=5, gid=6, mtime_ns=7), data, ino=ino)

    def tear(self) -> None:
        """Put it at the end of the cartridge, as whole records without a filemark."""
        data = bytes(self.bytes)
        data += bytes(-len(data) % RECORD_BYTES)
        word = RECORD_BYTES.to_bytes(4, "little")
        append(
            self.rig.tap,
            b"".join(
                word + data[at : at + RECORD_BYTES] + word
                for at in range(0, len(data), RECORD_BYTES)
            ),
        )


def append(tap: Path, data: bytes) -> None:
    """Put raw image bytes behind the last object of an image."""
    image = tap.read_bytes()
    ends = spots(image)
    tap.write_bytes(image[: ends[-1].end if ends else 0] + data)
