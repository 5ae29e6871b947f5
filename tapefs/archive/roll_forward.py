"""Rolling a tape view forward over the tape files that it does not know yet.

A closed tape file is learned from its tail and journal. A torn one has neither; what became of it
is known from the next tail: whoever wrote that lists it as salvaged or as skipped, and has built
on it. So torn tape files wait until there is a tail, or none.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import trio

from tapefs import telemetry
from tapefs.archive.salvage import salvage
from tapefs.entries import TapeFile, TapeFileKind
from tapefs.errors import DamagedTape, MediumFailed, WrongTape
from tapefs.volume.journal_file import read_crcs, read_entries
from tapefs.volume.session import fetch_span, read_tail, tail_before_head, torn_file
from tapefs.volume.short_file import read_short
from tapefs.volume.tail import NoTail, Tail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.catalog import TapeView
    from tapefs.drive import TapeAddress, TapeDrive
    from tapefs.volume.short_file import RecordSource

    Report = Callable[[dict[str, Any]], None]


class RollForward:
    """One roll-forward of `view`: `run`, perhaps `note_unclosed`, then `settle_torn`.

    `is_dispensable` says of a tail whether this host still has everything that is in its segment:
    if its journal cannot be read, it is as good as torn. `learned_count` is the number of tape
    files that the view did not know before.
    """

    def __init__(
        self,
        drive: TapeDrive,
        view: TapeView,
        work: Path,
        report: Report,
        is_dispensable: Callable[[Tail], bool] = lambda _: False,
        admit: Callable[[Tail], None] = lambda _: None,
    ) -> None:
        self._drive = drive
        self._view = view
        self._geometry = view.settings.geometry
        self._work = work
        self._report = report
        self._admit = admit
        # Tape files without a tail behind the view's last one, in order, not judged yet.
        self._torn: list[TapeFile] = []
        self._unclosed: TapeFile | None = None
        self._is_dispensable = is_dispensable
        # Segments that are closed but whose journal cannot be read, and why; also in `_torn`.
        self._unread: dict[int, DamagedTape | MediumFailed] = {}
        # What whoever wrote the last tail took for torn, whatever it looks like here.
        self._passed_over: frozenset[int] = frozenset()
        # How many records each tape file that is no torn one has, as that tail says.
        self._listed: dict[int, int] = {}
        self.learned_count = 0

    async def run(self, last_file_end: int, last: TapeFile | None = None) -> None:
        """Learn every tape file up to the filemark at block `last_file_end`.

        That is the last one on the tape, or the one behind the closed tape file `last`. Raises
        WrongTape when one does not belong here or contradicts what the view knows, DamagedTape when
        a journal cannot be read or records are missing.
        """
        geometry = self._geometry
        if self._next_start().block <= last_file_end:
            self._passed_over = await self._judgement_at_end(last_file_end, last)
        while (start := self._next_start()).block <= last_file_end:
            self._report(
                {
                    "event": "progress",
                    "phase": "roll forward",
                    "message": f"reading what tape file {start.file} holds",
                    "done_bytes": geometry.bytes_before(start.block),
                    "total_bytes": geometry.bytes_before(last_file_end),
                }
            )
            await self._drive.locate(start)
            listed_count = self._listed.get(start.file, 0)
            short = await read_short(self._drive, start, listed_count, geometry)
            if short is not None:
                block_count = listed_count * geometry.blocks_per_record
                await self._learn_file(start, block_count, short)
                continue
            await self._drive.locate(start)
            after = await self._drive.pass_tape_file()
            await self._learn_file(start, after - 1 - start.block, self._drive)

    def note_unclosed(self, block_count: int) -> None:
        """Behind the last filemark stand `block_count` blocks, and that is not to be changed."""
        self._unclosed = torn_file(self._next_start(), block_count)
        self._torn.append(self._unclosed)

    async def settle_torn(self, *, salvages: bool) -> None:
        """No tail follows: salvage or skip the torn tape files at the end.

        One that is not closed, and from which nothing is taken, stays unknown. Raises DamagedTape
        or MediumFailed when one of them is a segment that is needed but has no readable journal.
        """
        for torn in self._torn:
            if torn.sequence in self._unread:
                raise self._unread[torn.sequence]
        await self._settle(lambda _: salvages)

    def _next_start(self) -> TapeAddress:
        last = self._torn[-1] if self._torn else self._view.last_tape_file()
        if last is None:
            return self._geometry.first_tape_file
        return self._geometry.end_address(last)

    async def _learn_file(self, start: TapeAddress, block_count: int, source: RecordSource) -> None:
        settings = self._view.settings
        sequence = start.file
        record_count = self._geometry.whole_records(block_count)
        tail = None
        if record_count and sequence not in self._passed_over:
            tail = await self._tail(source, start, record_count)
        if tail is None:
            self._torn.append(torn_file(start, block_count))
            return
        if tail.volume_uuid != settings.volume_uuid:
            raise WrongTape(f"tape file {sequence} belongs to another volume than the tape's label")
        claimed = (tail.sequence, tail.first_block, tail.record_count)
        if claimed != (sequence, start.block, record_count):
            raise DamagedTape(
                f"tape file {sequence} has {record_count} records from block {start.block} on, but "
                f"it was written as tape file {tail.sequence} with {tail.record_count} from block "
                f"{tail.first_block} on: records are missing or doubled; restore with tar"
            )
        self._refuse_gaps(tail)
        self._admit(tail)
        await self._follow_judgement(tail)
        index = self._work / f"fetched-{sequence}"
        try:
            try:
                tape_file = await self._fetch(source, tail, index)
            except (DamagedTape, MediumFailed) as exc:
                self._put_off(torn_file(start, block_count), tail, exc)
                return
            await trio.to_thread.run_sync(_apply, self._view, tape_file, index)
        finally:
            index.unlink(missing_ok=True)
        self.learned_count += 1
        telemetry.event(telemetry.ROLL_FORWARD, sequence=sequence, kind=tail.kind.value)

    def _put_off(self, torn: TapeFile, tail: Tail, exc: DamagedTape | MediumFailed) -> None:
        """The journal of a closed segment cannot be read: whoever wrote on behind it knew more."""
        telemetry.event(
            telemetry.ROLL_FORWARD, logging.WARNING, unread_journal=torn.sequence, reason=exc
        )
        self._torn.append(torn)
        if not self._is_dispensable(tail):
            self._unread[torn.sequence] = exc

    async def _judgement_at_end(self, last_file_end: int, last: TapeFile | None) -> frozenset[int]:
        """The tape files that the last tail, before block `last_file_end`, calls torn."""
        try:
            if last is not None:
                tail = await read_tail(
                    self._drive, self._geometry.last_record_address(last), self._geometry
                )
            else:
                await self._drive.space_to_end_of_data()
                await self._drive.space_filemarks(-1)
                tail = await tail_before_head(self._drive, self._geometry)
        except DamagedTape:
            return frozenset()
        if tail.volume_uuid != self._view.settings.volume_uuid or tail.first_block > last_file_end:
            return frozenset()
        torn = [file for file in tail.since_checkpoint if file.kind is TapeFileKind.TORN]
        self._listed = {
            file.sequence: file.record_count
            for file in tail.since_checkpoint
            if file.kind is not TapeFileKind.TORN
        }
        self._listed[tail.sequence] = tail.record_count
        return frozenset(file.sequence for file in torn if not file.salvaged)

    async def _fetch(self, source: RecordSource, tail: Tail, index: Path) -> TapeFile:
        """Copy the journal or catalog of the tape file that ends in `tail` to `index`."""
        try:
            return await fetch_span(
                source, tail, tail.index, self._geometry, index, lambda *_: None
            )
        except (DamagedTape, MediumFailed) as exc:
            if tail.kind is not TapeFileKind.CHECKPOINT:
                raise
            # It repeats what the journals before it said, and those have been read.
            telemetry.event(
                telemetry.ROLL_FORWARD,
                logging.WARNING,
                damaged_checkpoint=tail.sequence,
                reason=exc,
            )
            return TapeFile(
                tail.sequence,
                tail.kind,
                tail.first_block,
                tail.record_count,
                tail.written_ns,
                index_bytes=tail.index.length,
            )

    async def _tail(
        self, source: RecordSource, start: TapeAddress, record_count: int
    ) -> Tail | None:
        address = self._geometry.record_address(start.file, start.block, record_count - 1)
        try:
            return await read_tail(source, address, self._geometry)
        except NoTail:
            return None
        except DamagedTape as exc:
            telemetry.event(
                telemetry.ROLL_FORWARD, logging.WARNING, damaged_tail=start.file, reason=exc
            )
            return None

    def _refuse_gaps(self, tail: Tail) -> None:
        """What has no tail that can be read is either torn for `tail` too, or its checkpoint.

        Raises DamagedTape for any other: it was closed, and nobody can tell what is in it.
        """
        torn = {file.sequence for file in tail.since_checkpoint if file.kind is TapeFileKind.TORN}
        for index, file in enumerate(self._torn):
            count = self._geometry.whole_records(file.record_count)
            if file.first_block == tail.checkpoint_block and count is not None:
                # All that it says has been read in the journals before it.
                kind = TapeFileKind.CHECKPOINT
                self._torn[index] = dataclasses.replace(file, kind=kind, record_count=count)
            elif file.sequence in torn:
                self._unread.pop(file.sequence, None)
            elif file.sequence in self._unread:
                raise self._unread[file.sequence]
            else:
                raise DamagedTape(
                    f"the end of tape file {file.sequence} cannot be read, nor can a checkpoint "
                    "that tells what is in it; restore with tar"
                )

    async def _follow_judgement(self, tail: Tail) -> None:
        """Do with the torn tape files before `tail` what its writer had done with them."""
        torn = [file for file in tail.since_checkpoint if file.kind is TapeFileKind.TORN]
        for file in torn:
            known = self._view.tape_file(file.sequence)
            if known is not None and known.salvaged != file.salvaged:
                raise WrongTape(
                    f"tape file {tail.sequence} was written by another host, which did not see "
                    f"the torn tape file {file.sequence} as this host's catalog does; mount the "
                    "tape with another --state-dir"
                )
        salvaged = {file.sequence for file in torn if file.salvaged}
        await self._settle(salvaged.__contains__)

    async def _settle(self, salvages: Callable[[int], bool]) -> None:
        for torn in self._torn:
            if torn.kind is TapeFileKind.CHECKPOINT:
                self._view.apply(torn, ())
                self.learned_count += 1
                continue
            taken = salvages(torn.sequence) and await salvage(
                self._drive, self._view, torn, self._work, self._report
            )
            if not taken:
                if torn is self._unclosed:
                    continue
                self._view.apply(torn, ())
                telemetry.event(
                    telemetry.TORN_FILE,
                    sequence=torn.sequence,
                    records=self._geometry.record_count(torn),
                )
            self.learned_count += 1
        self._torn.clear()


def _apply(view: TapeView, tape_file: TapeFile, index: Path) -> None:
    if tape_file.kind is TapeFileKind.CHECKPOINT:
        view.apply(tape_file, ())
        return
    uuid = view.settings.volume_uuid
    first_crcs = read_crcs(index)
    crcs = first_crcs + tape_file.crcs[len(first_crcs) :]
    tape_file = dataclasses.replace(tape_file, crcs=crcs)
    entries = read_entries(index, uuid, tape_file.sequence)
    if tape_file.kind is TapeFileKind.CLOSING and next(entries, None) is not None:
        raise DamagedTape(
            f"tape file {tape_file.sequence} says that it only closes, but changes files; mount an "
            "earlier generation or restore with tar"
        )
    view.apply(tape_file, entries)
