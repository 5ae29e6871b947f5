"""The SIMH .tap image: its words on disk, and how one is walked through without reading its data.

An image is a run of objects. A record is a 4-byte little-endian length, the data padded to an even
number of bytes, and the same length again; a tape mark (filemark) is one zero word. An
end-of-medium word, or the physical end of the file, is the end of data. Bit 31 of the length marks
a record that was read with an error. Erase gaps and private objects are not understood here; an
image that holds one is refused rather than misread.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from dataclasses import dataclass
from typing import Final

from tapefs.errors import DamagedTape

# READ(6) and WRITE(6) count 24 bits of bytes.
RECORD_BYTES_MAX: Final = 0xFFFFFF
WORD_BYTES: Final = 4
FRAMING_BYTES: Final = 2 * WORD_BYTES

# More filemarks in a row than this are taken for something that is no tape image at all; together
# with the one index entry per record it keeps memory in proportion to the image.
FILEMARKS_IN_A_ROW_MAX: Final = 1 << 20

_WORD: Final = struct.Struct("<I")
_MARK: Final = _WORD.pack(0)
_END_OF_MEDIUM: Final = _WORD.pack(0xFFFFFFFF)
_BAD_RECORD: Final = 0x80000000
_LENGTH_MASK: Final = 0x0FFFFFFF
_TAIL_WORDS_MAX: Final = 1024
_CHUNK_BYTES: Final = 1 << 20


def pack_word(length_bytes: int) -> bytes:
    """The length word before and after a record."""
    return _WORD.pack(length_bytes)


def pack_filemarks(count: int) -> bytes:
    """`count` tape marks."""
    return bytes(WORD_BYTES * count)


def unpack_word(word: bytes | bytearray) -> tuple[int, bool]:
    """Length of the record that `word` frames, and whether the image calls it unreadable."""
    value: int = _WORD.unpack(word)[0]
    return value & _LENGTH_MASK, bool(value & _BAD_RECORD)


def record_span_bytes(length_bytes: int) -> int:
    """What a record of `length_bytes` takes in the image, framing and padding included."""
    return length_bytes + (length_bytes & 1) + FRAMING_BYTES


@dataclass(slots=True)
class Layout:
    """Where each object of an image starts.

    Two objects `WORD_BYTES` apart (or the last object and `end_bytes`) mean that the first of them
    is a filemark: no record is that short. `marks` holds the object numbers of the filemarks.
    """

    offsets: array[int]
    marks: array[int]
    end_bytes: int


def scan(fd: int, size_bytes: int, name: str) -> Layout:
    """Walk through the length words of the image open at `fd`; one small read an object.

    A last record that the end of the file cuts off, as a crash of the host leaves it, is not part
    of the layout: end of data is before it. Raises DamagedTape, with `name` in the sentence, when
    the words contradict each other anywhere else.
    """
    offsets, marks = array("Q"), array("Q")
    position_bytes = 0
    word = os.pread(fd, WORD_BYTES, 0)
    while len(word) == WORD_BYTES and word != _END_OF_MEDIUM:
        if word == _MARK:
            count, is_last = _filemarks_at(fd, position_bytes, size_bytes, name)
            marks.extend(range(len(offsets), len(offsets) + count))
            next_bytes = position_bytes + WORD_BYTES * count
            offsets.extend(range(position_bytes, next_bytes, WORD_BYTES))
            position_bytes = next_bytes
            word = b"" if is_last else os.pread(fd, WORD_BYTES, position_bytes)
            continue
        length_bytes = _WORD.unpack(word)[0]
        if not 0 < length_bytes & _LENGTH_MASK <= RECORD_BYTES_MAX or length_bytes & 0x70000000:
            raise DamagedTape(
                f"{name} is no SIMH tape image that tapefs can read: the word at byte "
                f"{position_bytes} is no record length; use an intact copy of the image"
            )
        next_bytes = position_bytes + record_span_bytes(length_bytes & _LENGTH_MASK)
        # Trailer of this record and header of the next in one call.
        words = os.pread(fd, FRAMING_BYTES, next_bytes - WORD_BYTES)
        if words[:WORD_BYTES] != word:
            _refuse_unless_torn(fd, position_bytes, next_bytes, size_bytes, name)
            break
        offsets.append(position_bytes)
        position_bytes = next_bytes
        word = words[WORD_BYTES:]
    return Layout(offsets, marks, position_bytes)


def is_empty(fd: int) -> bool:
    """Whether the file holds nothing, or begins with the word that ends an image."""
    return os.pread(fd, WORD_BYTES, 0) in (b"", _END_OF_MEDIUM)


def _filemarks_at(fd: int, start_bytes: int, size_bytes: int, name: str) -> tuple[int, bool]:
    """How many filemarks stand in a row at `start_bytes`, and whether the image ends there.

    A file system may, after a crash, leave zeros where data was never written, up to the end of
    the file. A run that is too long to be meant and ends there counts as one filemark.
    """
    if os.pread(fd, FRAMING_BYTES, start_bytes) != bytes(FRAMING_BYTES):
        return 1, False
    count = 0
    while count < FILEMARKS_IN_A_ROW_MAX:
        chunk = os.pread(fd, _CHUNK_BYTES, start_bytes + WORD_BYTES * count)
        zero_bytes = len(chunk) - len(chunk.lstrip(b"\0"))
        count += zero_bytes // WORD_BYTES
        if zero_bytes < _CHUNK_BYTES:
            return count, False
    if _only_zeros_from(fd, start_bytes, size_bytes):
        return 1, True
    raise DamagedTape(
        f"{name} is no SIMH tape image that tapefs can read: it holds more than "
        f"{FILEMARKS_IN_A_ROW_MAX} filemarks in a row; use an intact copy of the image"
    )


def _only_zeros_from(fd: int, start_bytes: int, size_bytes: int) -> bool:
    """Whether nothing but zeros stands between `start_bytes` and the end of the file."""
    position_bytes = start_bytes
    while position_bytes < size_bytes:
        try:
            position_bytes = os.lseek(fd, position_bytes, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole up to the end
                return True
            raise
        chunk = os.pread(fd, _CHUNK_BYTES, position_bytes)
        if chunk.strip(b"\0"):
            return False
        position_bytes += len(chunk)
    return True


def _refuse_unless_torn(
    fd: int, start_bytes: int, next_bytes: int, size_bytes: int, name: str
) -> None:
    """Raise DamagedTape unless the broken record at `start_bytes` is simply the last thing there.

    A wrong length word in the middle of an image may point beyond the end of the file too. What
    tells it from a record that a crash cut off is that the image still ends in a sound object.
    """
    if next_bytes >= size_bytes and not _ends_soundly(fd, start_bytes, size_bytes):
        return
    raise DamagedTape(
        f"{name} is damaged: the record at byte {start_bytes} does not end where its length says, "
        "and more follows; use an intact copy of the image"
    )


def _ends_soundly(fd: int, start_bytes: int, size_bytes: int) -> bool:
    """Whether the file's end, walked backwards, shows a whole record behind `start_bytes`."""
    position_bytes = size_bytes
    for _ in range(_TAIL_WORDS_MAX):
        position_bytes -= WORD_BYTES
        if position_bytes < start_bytes + FRAMING_BYTES:
            return False
        word = os.pread(fd, WORD_BYTES, position_bytes)
        if word in (_MARK, _END_OF_MEDIUM):
            continue
        length_bytes = _WORD.unpack(word)[0] & _LENGTH_MASK
        header_bytes = position_bytes + WORD_BYTES - record_span_bytes(length_bytes)
        return (
            0 < length_bytes <= RECORD_BYTES_MAX
            and header_bytes > start_bytes
            and os.pread(fd, WORD_BYTES, header_bytes) == word
        )
    return False
