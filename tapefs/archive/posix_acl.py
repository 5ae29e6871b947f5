"""POSIX ACLs as Linux stores them in `system.posix_acl_access` and `system.posix_acl_default`.

Layout (linux/posix_acl_xattr.h), little-endian: version 2 in four bytes, then eight bytes an
entry: tag, permissions, id. tapefs stores ACLs, keeps them consistent with the permission
bits and hands them down; the kernel asks for them and enforces them.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Final

from tapefs.errors import FilesystemError

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20

_ONCE: Final = (USER_OBJ, GROUP_OBJ, OTHER)


@dataclass(frozen=True, slots=True)
class Acl:
    """The parsed list: (tag, permissions 0..7, uid or gid) in stored order."""

    entries: tuple[tuple[int, int, int], ...]

    @property
    def is_extended(self) -> bool:
        """Whether it says more than nine permission bits can."""
        return len(self.entries) > len(_ONCE)

    @property
    def permission_bits(self) -> int:
        """The nine bits that stand for it: with a mask, the group bits are the mask."""
        permissions = {tag: granted for tag, granted, _ in self.entries}
        group = permissions.get(MASK, permissions[GROUP_OBJ])
        return permissions[USER_OBJ] << 6 | group << 3 | permissions[OTHER]


def parse(value: bytes) -> Acl:
    """Read and check an ACL. Raises EOPNOTSUPP (another version) or EINVAL (anything else)."""
    if len(value) < len(_VERSION) or (len(value) - len(_VERSION)) % _ENTRY.size:
        raise FilesystemError(errno.EINVAL)
    if not value.startswith(_VERSION):
        raise FilesystemError(errno.EOPNOTSUPP)
    entries = tuple(_ENTRY.iter_unpack(value[len(_VERSION) :]))
    tags = [tag for tag, _, _ in entries]
    named = any(tag in (USER, GROUP) for tag in tags)
    valid = (
        all(tag in (*_ONCE, USER, GROUP, MASK) and granted <= 7 for tag, granted, _ in entries)
        and all(tags.count(tag) == 1 for tag in _ONCE)
        and tags.count(MASK) in ((1,) if named else (0, 1))
        and tags == sorted(tags)
    )
    if not valid:
        raise FilesystemError(errno.EINVAL)
    return Acl(entries)


def is_empty(value: bytes) -> bool:
    """Whether it is a list without entries, which stands for removing the ACL."""
    return value == _VERSION


def with_permission_bits(value: bytes, bits: int) -> bytes:
    """The access ACL after chmod to `bits`: owner, mask (or group) and other follow them."""
    acl = parse(value)
    new = {USER_OBJ: bits >> 6 & 7, _group_tag(acl): bits >> 3 & 7, OTHER: bits & 7}
    packed = (_ENTRY.pack(tag, new.get(tag, granted), who) for tag, granted, who in acl.entries)
    return _VERSION + b"".join(packed)


def inherited(default: bytes, bits: int) -> bytes:
    """The access ACL of a file made with permission `bits` where the default ACL is `default`.

    It grants what both do (acl(5), object creation and default ACLs). A new directory also gets
    `default` itself.
    """
    acl = parse(default)
    group_tag = _group_tag(acl)
    asked = {USER_OBJ: bits >> 6 & 7, group_tag: bits >> 3 & 7, OTHER: bits & 7}
    packed = (
        _ENTRY.pack(tag, granted & asked.get(tag, 7), who) for tag, granted, who in acl.entries
    )
    return _VERSION + b"".join(packed)


def _group_tag(acl: Acl) -> int:
    """Which entry the group bits of the mode stand for."""
    return MASK if any(tag == MASK for tag, _, _ in acl.entries) else GROUP_OBJ
