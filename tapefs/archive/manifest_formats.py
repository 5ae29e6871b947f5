"""Lists of checksums in the forms that archivists use: bytes from facts, a file at a time.

`sha256sum`: GNU coreutils. `hashdeep`: hashdeep(1), names as `./NAME`. `csv` (RFC 4180) and `json`
(one object a line) are our own. BagIt: RFC 8493. MHL: ASC MHL 2.0 of the American Society of
Cinematographers, which knows no SHA-256: its hash is xxh128. No I/O but writing to the sink.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from xml.sax.saxutils import escape, quoteattr

from tapefs.entries import printable
from tapefs.volume.manifest import encode_manifest_line

if TYPE_CHECKING:
    from typing import BinaryIO

    from tapefs.entries import Inode

NO_HASH: Final = "no hash of it is known"
_NO_TEXT: Final = "its name is no text (UTF-8), which this format needs"
_NO_LINE: Final = "its name has a line break, which this format cannot hold"
# What XML 1.0 has no way to write.
_NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file, its path below the place that is listed, and the hashes of its content, if known."""

    path: bytes
    inode: Inode
    sha256: bytes | None
    xxh128: bytes | None


class ManifestFormat(Protocol):
    """Writes one list to a sink."""

    def __init__(self, sink: BinaryIO) -> None: ...

    def begin(self) -> None:
        """Write what stands before the first file."""

    def add(self, file: ListedFile) -> str | None:
        """Write `file`; else, or where its hash is lacking, say why in a few words."""


class Sha256Sum:
    """What `sha256sum --check` reads."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def begin(self) -> None:
        """Nothing."""

    def add(self, file: ListedFile) -> str | None:
        """See `ManifestFormat`."""
        if file.sha256 is None:
            return NO_HASH
        self._sink.write(encode_manifest_line(file.sha256, file.path))
        return None


class Hashdeep:
    """What `hashdeep -a -k` reads."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def begin(self) -> None:
        """See `ManifestFormat`."""
        self._sink.write(b"%%%% HASHDEEP-1.0\n%%%% size,sha256,filename\n")

    def add(self, file: ListedFile) -> str | None:
        """See `ManifestFormat`."""
        if file.sha256 is None:
            return NO_HASH
        if b"\n" in file.path or b"\r" in file.path:
            return _NO_LINE
        digest = file.sha256.hex().encode()
        self._sink.write(b"%d,%b,./%b\n" % (file.inode.size, digest, file.path))
        return None


class Csv:
    """A table with a header, for spreadsheets."""

    COLUMNS: Final = ("path", "size_bytes", "modified", "sha256", "xxh128")

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def begin(self) -> None:
        """See `ManifestFormat`."""
        self._row(self.COLUMNS)

    def add(self, file: ListedFile) -> str | None:
        """See `ManifestFormat`: a file without a hash is listed all the same."""
        hashes = (digest.hex() if digest else "" for digest in (file.sha256, file.xxh128))
        self._row((printable(file.path), file.inode.size, _moment(file.inode.mtime_ns), *hashes))
        return NO_HASH if file.sha256 is None else None

    def _row(self, values: tuple[object, ...]) -> None:
        text = io.StringIO()
        csv.writer(text).writerow(values)
        self._sink.write(text.getvalue().encode())


class JsonLines:
    """One object a line."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def begin(self) -> None:
        """Nothing."""

    def add(self, file: ListedFile) -> str | None:
        """See `ManifestFormat`: a file without a hash is listed all the same."""
        document = {
            "path": printable(file.path),
            "size_bytes": file.inode.size,
            "mtime_ns": file.inode.mtime_ns,
            "sha256": file.sha256.hex() if file.sha256 else None,
            "xxh128": file.xxh128.hex() if file.xxh128 else None,
        }
        self._sink.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        return NO_HASH if file.sha256 is None else None


class BagPayload:
    """The payload manifest of a bag, manifest-sha256.txt (RFC 8493, 2.1.3)."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.files_count = self.content_bytes = 0

    def begin(self) -> None:
        """Nothing."""

    def add(self, file: ListedFile) -> str | None:
        """See `ManifestFormat`."""
        if file.sha256 is None:
            return NO_HASH
        path = _text(file.path)
        if path is None:
            return _NO_TEXT
        path = path.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        self._sink.write(f"{file.sha256.hex()}  data/{path}\n".encode())
        self.files_count += 1
        self.content_bytes += file.inode.size
        return None


class MediaHashes:
    """The body of an ASC MHL file, between `mhl_head` and `MHL_END`."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def begin(self) -> None:
        """Nothing."""

    def add(self, file: ListedFile) -> str | None:
        """See `ManifestFormat`."""
        if file.xxh128 is None:
            return NO_HASH
        path = _text(file.path)
        if path is None or _NOT_IN_XML.search(path):
            return _NO_TEXT
        # A carriage return as it is would be read as a line feed.
        shown = escape(path, {"\r": "&#13;"})
        modified = quoteattr(_moment(file.inode.mtime_ns))
        self._sink.write(
            f'    <hash>\n      <path size="{file.inode.size}"'
            f" lastmodificationdate={modified}>{shown}</path>\n"
            f'      <xxh128 action="original">{file.xxh128.hex()}</xxh128>\n'
            f"    </hash>\n".encode()
        )
        return None


STREAMED: Final[dict[str, type[ManifestFormat]]] = {
    "sha256sum": Sha256Sum,
    "hashdeep": Hashdeep,
    "csv": Csv,
    "json": JsonLines,
}


def mhl_head(now_ns: int, host: str, version: str) -> bytes:
    """What stands before the hashes of an ASC MHL file."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<hashlist version="2.0" xmlns="urn:ASC:MHL:v2.0">\n'
        f"  <creatorinfo>\n    <creationdate>{_moment(now_ns)}</creationdate>\n"
        f"    <hostname>{escape(host)}</hostname>\n"
        f"    <tool version={quoteattr(version)}>tapefs</tool>\n  </creatorinfo>\n"
        "  <processinfo>\n    <process>in-place</process>\n    <ignore>\n"
        "      <pattern>.DS_Store</pattern>\n      <pattern>ascmhl</pattern>\n"
        "      <pattern>ascmhl/</pattern>\n    </ignore>\n  </processinfo>\n  <hashes>\n"
    ).encode()


MHL_END: Final = b"  </hashes>\n</hashlist>\n"


def mhl_chain(name: str, sha512: bytes) -> bytes:
    """ascmhl_chain.xml for a history whose only generation is the file `name`."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ascmhldirectory xmlns="urn:ASC:MHL:DIRECTORY:v2.0">\n'
        f'  <hashlist sequencenr="1">\n    <path>{escape(name)}</path>\n'
        f"    <c4>{c4_id(sha512)}</c4>\n  </hashlist>\n</ascmhldirectory>\n"
    ).encode()


def c4_id(sha512: bytes) -> str:
    """The C4 ID of what has this SHA-512 (SMPTE ST 2114): base 58, 90 characters."""
    number, digits = int.from_bytes(sha512, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _ALPHABET[digit] + digits
    return "c4" + digits.rjust(88, _ALPHABET[0])


def bag_tags(now_ns: int, version: str, volume: str, name: str, payload: BagPayload) -> bytes:
    """bag-info.txt (RFC 8493, 2.2.2)."""
    return (
        f"Bag-Software-Agent: tapefs {version}\n"
        f"Bagging-Date: {_moment(now_ns)[:10]}\n"
        f"External-Description: volume {name}\n"
        f"External-Identifier: urn:uuid:{volume}\n"
        f"Payload-Oxum: {payload.content_bytes}.{payload.files_count}\n"
    ).encode()


BAG_DECLARATION: Final = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"


def _text(path: bytes) -> str | None:
    try:
        return path.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _moment(time_ns: int) -> str:
    """ISO 8601 in UTC, to the second, within the years that it can write."""
    first, last = -62_135_596_800, 253_402_300_799
    seconds = max(first, min(time_ns // 10**9, last))
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)).isoformat()
