"""Where the wraps of an LTO tape end: the answer to READ END OF WRAP POSITION.

Pure. LTO-7 and later drives know it (IBM LTO-8 SCSI reference). The answer is good for what was on
tape when the cartridge was loaded; the last wrap in it is the one that the end of data lies on.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final

from tapefs.errors import MalformedData

# Wraps of a whole tape by density code: LTO-7, LTO-7 type M, LTO-8, LTO-9. Their drives know where
# wraps end.
WRAP_COUNTS: Final = {0x5C: 112, 0x5D: 168, 0x5E: 208, 0x60: 280}

_HEADER_BYTES: Final = 4
_DESCRIPTOR = struct.Struct(">HHH6s")
# Room for more wraps than any tape has.
WRAP_REPORT_BYTES: Final = _HEADER_BYTES + 512 * _DESCRIPTOR.size


def pack_wraps(last_blocks: list[int]) -> bytes:
    """The answer that says this of partition 0: the last object on each wrap."""
    descriptors = b"".join(
        _DESCRIPTOR.pack(wrap, 0, 0, block.to_bytes(6, "big"))
        for wrap, block in enumerate(last_blocks)
    )
    return struct.pack(">HH", 2 + len(descriptors), 0) + descriptors


def written_wrap_ends(report: bytes | memoryview) -> tuple[int, ...]:
    """The block behind each wrap of partition 0 that is full; none when data ends on the first.

    Raises MalformedData when these do not ascend from wrap to wrap.
    """
    length = min(len(report), int.from_bytes(report[:2], "big") + 2)
    ends: list[int] = []
    for start in range(_HEADER_BYTES, length - _DESCRIPTOR.size + 1, _DESCRIPTOR.size):
        wrap, partition, _, last = _DESCRIPTOR.unpack_from(report, start)
        if partition == 0:
            if wrap != len(ends):
                raise MalformedData(f"the drive told of wrap {wrap} after {len(ends)} others")
            ends.append(int.from_bytes(last, "big") + 1)
    if any(end <= start for start, end in pairwise(ends)):
        raise MalformedData("the drive told of wraps that end before they start")
    return tuple(ends[:-1])
