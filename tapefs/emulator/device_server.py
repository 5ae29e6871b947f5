"""What stands behind the emulated wire and executes the commands, as the wire sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from array import array

    from tapefs.emulator.reply import TargetReply
    from tapefs.scsi.command import Direction


class DeviceServer(Protocol):
    """What executes the commands behind the wire. Called by one thread at a time."""

    def execute(self, cdb: bytes, data_out: bytes | memoryview | array[int]) -> TargetReply:
        """Execute one command. `data_out` belongs to the host: it must be copied to be kept."""
        ...

    def expects(self, cdb: bytes) -> tuple[Direction, int]:
        """Which way the device would move data for `cdb`, and how many bytes at most."""
        ...

    def class_reset(self) -> None:
        """The command under way, if any, is forgotten; nothing buffered is lost."""
        ...

    def reset(self) -> None:
        """The port was reset: unit attention 29h/00h, nothing buffered is lost."""
        ...

    def power_cut(self) -> None:
        """The power failed: what was only buffered is lost."""
        ...
