"""How much the cartridge can still take: accounted before a write is accepted (P9).

Pure arithmetic. What is accepted must fit together with its pax headers, its journal and the
checkpoint that closes the volume; so ENOSPC comes while there is still room for all of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# A pax header pair, the padding to 512 bytes, a manifest line and journal lines of one member.
MEMBER_OVERHEAD_BYTES: Final = 2560
# Of a catalog row set of one inode, compressed hardly at all (hashes do not compress).
CATALOG_BYTES_PER_INODE: Final = 160
# Room for the end of each tape file: tail, filler, padding.
TAPE_FILE_OVERHEAD_RECORDS: Final = 4
# Share of the whole that stays free for what the drive's own accounting rounds away.
SLACK_SHARE: Final = 0.01


@dataclass(slots=True)
class CapacityAccount:
    """Room on one cartridge. All figures in bytes; `total_bytes` None means the drive cannot tell.

    `written_bytes` is where the end of data stands; `pending_bytes` and `pending_count` are what
    has been accepted and is not on tape yet; `inode_count` sizes the checkpoint.
    """

    total_bytes: int | None
    written_bytes: int
    record_bytes: int
    inode_count: int = 0
    pending_bytes: int = 0
    pending_count: int = 0
    # Nothing is accepted any more.
    closed: bool = False
    # A segment is on tape, and its files still count as pending: there is more room than it seems.
    counts_twice: bool = False

    def reserve_bytes(self) -> int:
        """What must stay free: the trailer and two checkpoints (one may fail), and slack."""
        return 2 * self._closing_bytes() + int((self.total_bytes or 0) * SLACK_SHARE)

    def measured(self, end_bytes: int, remaining_bytes: int | None) -> None:
        """The end of data was proven at `end_bytes`, and the drive says how much it can take."""
        self.written_bytes = end_bytes
        if remaining_bytes is not None:
            self.total_bytes = end_bytes + remaining_bytes

    def is_known_to_have_room(self) -> bool:
        """Whether there is room for more than what closes the volume. Unknown is no."""
        return bool(self._segment_room_bytes())

    def tight_room_bytes(self, whole_bytes: int) -> int | None:
        """What the next segment may take with its headers, where that has to be minded.

        None: nobody knows, or there is room for all that waits even when files that changed in
        part go whole, up to `whole_bytes` or twice what changed.
        """
        room = self._segment_room_bytes()
        overhead = self.pending_count * (MEMBER_OVERHEAD_BYTES + whole_bytes)
        if room is None or 2 * self.pending_bytes + overhead <= room:
            return None
        return room

    def _segment_room_bytes(self) -> int | None:
        if self.total_bytes is None:
            return None
        return max(0, self.total_bytes - self.written_bytes - self._closing_bytes())

    def _closing_bytes(self) -> int:
        """A segment's trailer and a checkpoint."""
        checkpoint = self.inode_count * CATALOG_BYTES_PER_INODE
        return checkpoint + TAPE_FILE_OVERHEAD_RECORDS * self.record_bytes

    def free_bytes(self) -> int:
        """What may still be accepted; never negative. Unlimited is answered as 2^60."""
        if self.closed:
            return 0
        if self.total_bytes is None:
            return 1 << 60
        overhead = self.pending_count * MEMBER_OVERHEAD_BYTES
        taken = self.written_bytes + self.pending_bytes + overhead + self.reserve_bytes()
        return max(0, self.total_bytes - taken)

    def fits(self, more_bytes: int) -> bool:
        """Whether `more_bytes` of content can be accepted."""
        return more_bytes <= self.free_bytes()
