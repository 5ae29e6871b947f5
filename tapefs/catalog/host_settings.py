"""What this host notes of a volume beside its files: single values of the live catalog."""

from __future__ import annotations

from abc import ABC, abstractmethod
from uuid import UUID

from tapefs.catalog.namespace import Namespace


class HostSettings(Namespace, ABC):
    """The settings of the live catalog. Whoever is one writes them in its open transaction."""

    @abstractmethod
    def _begin(self) -> None:
        """Open the transaction if there is none."""

    @abstractmethod
    def commit(self, *, durable: bool = False) -> None:
        """End the open transaction, keeping it; `durable`: also through power loss."""

    @property
    def volume_uuid(self) -> UUID:
        """The volume that this is the catalog of."""
        return UUID(str(self._database.setting("volume_uuid")))

    @property
    def clean_shutdown(self) -> bool:
        """Whether the last session ended in `close(clean=True)`; False during a session."""
        return self._database.setting("clean_shutdown") == 1

    @property
    def boot_id(self) -> str:
        """What the last session gave to `begin_session`; empty when there was none."""
        return str(self._database.setting("boot_id"))

    @property
    def confirmed_sequence(self) -> int:
        """The last tape file that `set_confirmed_sequence` was told of; 0 is the label."""
        return self._database.integer_setting("confirmed_sequence")

    def set_confirmed_sequence(self, sequence: int) -> None:
        """Take note that everything tape file `sequence` tells is known here."""
        self._begin()
        self._database.set_setting("confirmed_sequence", sequence)

    @property
    def segment_written_ns(self) -> int:
        """What the last call of `begin_segment` said; 0 when there was none."""
        return self._database.integer_setting("segment_written_ns")

    def begin_segment(self, written_ns: int) -> None:
        """Take durable note that a segment with this time stamp is about to be written.

        If it is found on tape after a crash, it is this host's own.
        """
        self._begin()
        self._database.set_setting("segment_written_ns", written_ns)
        self.commit(durable=True)

    @property
    def end_is_reached(self) -> bool:
        """Whether `set_end_reached` was called: the tape takes no further segment."""
        return self._database.setting("end_reached") == 1

    def set_end_reached(self) -> None:
        """Take durable note that the end of this tape is near."""
        self._begin()
        self._database.set_setting("end_reached", 1)
        self.commit(durable=True)

    def begin_session(self, boot_id: str) -> None:
        """Take durable note that a session runs: until a clean close, `clean_shutdown` is False."""
        self._begin()
        self._database.set_setting("clean_shutdown", 0)
        self._database.set_setting("boot_id", boot_id)
        self.commit(durable=True)
