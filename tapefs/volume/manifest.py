"""Manifest lines: what `sha256sum -c` (GNU coreutils) reads.

One line for each regular-file member of a segment, paths relative to the place of extraction.
"""

from __future__ import annotations

import re
from typing import Final

from tapefs.errors import DamagedTape

_LINE: Final = re.compile(rb"(\\?)([0-9a-f]{64})  ([^\n\0]+)\n", re.DOTALL)
_ESCAPED: Final = re.compile(rb"\\(.?)", re.DOTALL)
_UNESCAPE: Final = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}


class CorruptManifest(DamagedTape):
    """A manifest line that no writer of this format makes."""


def encode_manifest_line(sha256: bytes, path: bytes) -> bytes:
    r"""The line for one member; backslash, newline and carriage return in `path` are escaped."""
    digest = sha256.hex().encode("ascii")
    if b"\\" in path or b"\n" in path or b"\r" in path:
        escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        return b"\\%b  %b\n" % (digest, escaped)
    return b"%b  %b\n" % (digest, path)


def decode_manifest_line(line: bytes) -> tuple[bytes, bytes]:
    """SHA-256 and path from one line including its newline. Raises CorruptManifest."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise CorruptManifest("a line of the checksum list is malformed; check the tape's files")
    path = match[3]
    if match[1]:
        path = _ESCAPED.sub(_unescape, path)
    return bytes.fromhex(match[2].decode("ascii")), path


def _unescape(match: re.Match[bytes]) -> bytes:
    try:
        return _UNESCAPE[match[1]]
    except KeyError:
        raise CorruptManifest("a line of the checksum list has an unknown escape") from None
