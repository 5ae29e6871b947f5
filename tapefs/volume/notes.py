"""The note in a member's `comment` record: which inode this is, which part of it, and its SHA-256.

A `comment` is the one pax record that every archiver reads past in silence. The note makes a
member useful without any journal: whole members of a torn segment are salvaged by it.
"""

from __future__ import annotations

import re
from binascii import hexlify
from dataclasses import dataclass
from typing import Final

from tapefs.volume.names import quote_name, unquote_name

_NOTE: Final = re.compile(
    rb"tapefs ino=([0-9]{1,19})"
    rb"(?: offset=([0-9]{1,19})(?: size=([0-9]{1,19}))?)?"
    rb"(?: sha256=([0-9a-f]{64}))?"
    rb"(?: rest=([A-Za-z0-9_.~%-]{1,765}))?"
)
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class MemberNote:
    """What a member's comment says.

    `offset` is None for a whole file (or anything that is not a file) and the first byte's place
    in the file for a part; `file_bytes` is then the size of the whole file. `name_rest` is what
    `names.part_path` had to cut off.
    """

    ino: int
    offset: int | None = None
    sha256: bytes | None = None
    name_rest: bytes = b""
    file_bytes: int | None = None


def encode_note(note: MemberNote, sha256: bytes | None = None) -> bytes:
    """The comment text for `note`; at most 512 bytes. `sha256` stands for the note's, if given."""
    text = b"tapefs ino=%d" % note.ino
    if note.offset is not None:
        text += b" offset=%d" % note.offset
        if note.file_bytes is not None:
            text += b" size=%d" % note.file_bytes
    sha256 = note.sha256 if sha256 is None else sha256
    if sha256 is not None:
        text += b" sha256=" + hexlify(sha256)
    if note.name_rest:
        text += b" rest=" + quote_name(note.name_rest)
    return text


def decode_note(comment: bytes) -> MemberNote | None:
    """The note in a comment, or None when the comment is something else."""
    match = _NOTE.fullmatch(comment)
    if match is None:
        return None
    ino, offset, file_bytes = (None if text is None else int(text) for text in match.groups()[:3])
    if ino is None or max(ino, offset or 0, file_bytes or 0) > _INT64_MAX:
        return None
    return MemberNote(
        ino,
        offset,
        None if match[4] is None else bytes.fromhex(match[4].decode("ascii")),
        b"" if match[5] is None else unquote_name(match[5]),
        file_bytes,
    )
