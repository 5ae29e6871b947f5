"""POSIX ACLs: the kernel's extended attribute value to and from the text that tar archives carry.

Linux hands out `system.posix_acl_access` and `system.posix_acl_default` as little-endian binary
(linux/posix_acl_xattr.h). Archives carry the same thing as text in `SCHILY.acl.access` and
`SCHILY.acl.default`; ids are always written as numbers, for a tape outlives any passwd file.
"""

from __future__ import annotations

import struct
from typing import Final

ACCESS_XATTR: Final = b"system.posix_acl_access"
DEFAULT_XATTR: Final = b"system.posix_acl_default"

_VERSION: Final = 2
_ID_UNDEFINED: Final = 0xFFFFFFFF
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_PERMISSIONS: Final = [
    bytes(c if bits & bit else ord("-") for c, bit in zip(b"rwx", (4, 2, 1), strict=True))
    for bits in range(8)
]
# Tag value -> (word in the text, entry names an id).
_WORDS: Final = {
    0x01: (b"user", False),
    0x02: (b"user", True),
    0x04: (b"group", False),
    0x08: (b"group", True),
    0x10: (b"mask", False),
    0x20: (b"other", False),
}
_TAGS: Final = {words: tag for tag, words in _WORDS.items()}
_PERMISSION_BITS: Final = {text: bits for bits, text in enumerate(_PERMISSIONS)}


def acl_to_text(value: bytes) -> bytes | None:
    """The text form of a binary ACL, entries separated by commas; None if it is not a valid ACL."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        return None
    if _HEADER.unpack_from(value)[0] != _VERSION:
        return None
    entries = []
    for tag, permissions, number in _ENTRY.iter_unpack(value[_HEADER.size :]):
        if tag not in _WORDS or permissions > 7:
            return None
        word, has_id = _WORDS[tag]
        if not has_id and number != _ID_UNDEFINED:
            return None
        who = b"%d" % number if has_id else b""
        entries.append(b"%b:%b:%b" % (word, who, _PERMISSIONS[permissions]))
    return b",".join(entries) or None


def acl_from_text(text: bytes) -> bytes | None:
    """The binary ACL for a text form, or None if it is malformed or names a user without its id.

    Accepts what archivers write: a fourth field holds the numeric id beside a name, and anything
    after `#` is an effective-rights remark.
    """
    value = bytearray(_HEADER.pack(_VERSION))
    for item in text.replace(b"\n", b",").split(b","):
        entry = item.partition(b"#")[0].strip()
        if not entry:
            continue
        packed = _entry_from_text(entry)
        if packed is None:
            return None
        value += packed
    return bytes(value) if len(value) > _HEADER.size else None


def _entry_from_text(entry: bytes) -> bytes | None:
    fields = entry.split(b":")
    if not 3 <= len(fields) <= 4:
        return None
    word, who, permissions = fields[:3]
    has_id = bool(who)
    number = fields[-1] if len(fields) == 4 and has_id else who
    tag = _TAGS.get((word, has_id))
    bits = _PERMISSION_BITS.get(permissions)
    if tag is None or bits is None:
        return None
    if not has_id:
        return _ENTRY.pack(tag, bits, _ID_UNDEFINED)
    if not number.isdigit() or len(number) > 10 or int(number) >= _ID_UNDEFINED:
        return None
    return _ENTRY.pack(tag, bits, int(number))
