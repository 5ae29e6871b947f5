"""At mount, and after a failed write: make the tape view agree with the tape, prove the end (P6).

With a catalog: the end of data must be where the view says, and the last tail must be the one the
view knows. Tape files beyond that are rolled forward over their tails; a torn one is closed with a
filemark and skipped from then on. Without a catalog: the last checkpoint is loaded, then the same
roll-forward does the rest. The code that applies a journal is the one that ran when it was written.
"""

from __future__ import annotations

import logging
from array import array
from typing import TYPE_CHECKING, Any, Final

import trio
import zstandard

from tapefs import telemetry
from tapefs.catalog import TapeView, VolumeSettings, remove_database
from tapefs.drive import TapeAddress
from tapefs.entries import TapeFile, TapeFileKind
from tapefs.errors import DamagedTape, MediumFailed, WrongTape
from tapefs.scsi.sense import EndOfData, FilemarkDetected, IncorrectLength
from tapefs.volume.journal_file import read_crcs, read_entries
from tapefs.volume.session import (
    FIRST_TAPE_FILE_BLOCK,
    close_torn,
    fetch_span,
    find_end,
    go_to_end,
    read_tail,
    torn_file,
)
from tapefs.volume.tail import NoTail, Tail, find_tail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.drive import TapeDrive
    from tapefs.volume.label import Label
    from tapefs.volume.session import EndOfTape

    Report = Callable[[dict[str, Any]], None]

# A catalog copy never unpacks to more than this many times its size (plus a margin): what claims
# to is hostile. Measured: 1 M files pack 121 MB into 66 MB, an almost empty catalog 60 KB into 2.
_UNPACK_FACTOR_MAX: Final = 200
_UNPACK_MARGIN_BYTES: Final = 64 << 20
_COPY_BYTES: Final = 1 << 20


async def settle_end(
    drive: TapeDrive,
    view: TapeView,
    work: Path,
    now_ns: int,
    report: Report,
    *,
    writable: bool = True,
) -> int:
    """Roll `view` forward to the end of the tape; returns how many tape files it did not know.

    Leaves the head at the proven end of data when `writable`. Raises WrongTape when the tape ends
    before the view does or its last tape file is another one; DamagedTape when a journal that is
    needed cannot be read.
    """
    end = await find_end(drive)
    expected = view.expected_end_block()
    if end.block < expected:
        raise WrongTape(
            f"the tape ends at block {end.block}, but this host's catalog knows it up to block "
            f"{expected}; it is an older copy or was formatted or overwritten elsewhere"
        )
    count = 0
    if end.last_file_end + 1 == expected:
        await _prove_last_tail(drive, view)
    else:
        count = await _roll_forward(drive, view, end, work, now_ns, report)
    if end.torn_records and writable:
        await close_torn(drive, end)
        _learn_torn(view, end.last_file_end + 1, end.torn_records, now_ns)
        count += 1
    if writable:
        await go_to_end(drive, view.expected_end_block())
    return count


async def rebuild(
    drive: TapeDrive,
    label: Label,
    target: Path,
    work: Path,
    now_ns: int,
    report: Report,
    *,
    writable: bool = True,
) -> TapeView:
    """Make the tape view in `target` from the tape alone. Raises DamagedTape, WrongTape, ...

    The last checkpoint that can be read, or nothing, is the start; the roll-forward does the rest.
    """
    remove_database(target)
    view = await _from_checkpoint(drive, label, target, work, report)
    if view is None:
        settings = VolumeSettings(
            label.volume_uuid, label.name, label.record_bytes, label.created_ns
        )
        view = TapeView.create(target, settings)
    try:
        await settle_end(drive, view, work, now_ns, report, writable=writable)
    except BaseException:
        view.close()
        raise
    return view


async def _prove_last_tail(drive: TapeDrive, view: TapeView) -> None:
    """The head stands before the last filemark: what ends there must be what the view knows."""
    last = view.last_tape_file()
    if last is None or last.kind is TapeFileKind.TORN:
        return
    tail = await _tail_before_head(drive, view.settings.record_bytes)
    known = (view.settings.volume_uuid, last.sequence, last.written_ns, last.record_count)
    if (tail.volume_uuid, tail.sequence, tail.written_ns, tail.record_count) != known:
        raise WrongTape(
            f"tape file {last.sequence} on this tape is not the one that this host's catalog "
            "knows; the tape was written elsewhere, so mount it with another --state-dir"
        )


async def _tail_before_head(drive: TapeDrive, record_bytes: int) -> Tail:
    """The tail in the record just before the filemark at which the head stands."""
    buffer: array[int] = array("B", bytes(record_bytes))
    try:
        await drive.space_blocks(-1)
        length = await drive.read_block(buffer)
    except (FilemarkDetected, EndOfData, IncorrectLength, MediumFailed) as exc:
        raise NoTail("the end of the last tape file cannot be read") from exc
    return find_tail(memoryview(buffer)[:length])


async def _roll_forward(
    drive: TapeDrive, view: TapeView, end: EndOfTape, work: Path, now_ns: int, report: Report
) -> int:
    """Learn every closed tape file behind the view's last one."""
    count = 0
    first = view.expected_end_block()
    while first <= end.last_file_end:
        last = view.last_tape_file()
        sequence = last.sequence + 1 if last else 1
        await drive.locate(TapeAddress(first, sequence, 0))
        await drive.space_filemarks(1)
        after = (await drive.position()).block
        if after is None:
            raise DamagedTape("the drive cannot tell its position; the tape cannot be followed")
        report(
            {
                "event": "progress",
                "phase": "roll forward",
                "message": f"reading what tape file {sequence} holds",
                "done_bytes": first - FIRST_TAPE_FILE_BLOCK,
                "total_bytes": end.last_file_end,
            }
        )
        await _learn_file(
            drive, view, TapeAddress(first, sequence, 0), after - 1 - first, work, now_ns
        )
        first = after
        count += 1
    return count


async def _learn_file(
    drive: TapeDrive,
    view: TapeView,
    start: TapeAddress,
    record_count: int,
    work: Path,
    now_ns: int,
) -> None:
    settings = view.settings
    sequence = start.file
    last_record = TapeAddress(start.block + record_count - 1, sequence, record_count - 1)
    try:
        tail = await read_tail(drive, last_record, settings.record_bytes) if record_count else None
    except NoTail:
        tail = None
    if tail is None:
        _learn_torn(view, start.block, record_count, now_ns)
        return
    claimed = (tail.volume_uuid, tail.sequence, tail.first_block, tail.record_count)
    if claimed != (settings.volume_uuid, sequence, start.block, record_count):
        raise WrongTape(f"tape file {sequence} belongs to another volume or to another place")
    index = work / f"fetched-{sequence}"
    try:
        tape_file = await fetch_span(
            drive, tail, tail.index, settings.record_bytes, index, lambda *_: None
        )
        await trio.to_thread.run_sync(_apply, view, tape_file, index)
    finally:
        index.unlink(missing_ok=True)
    telemetry.event(telemetry.ROLL_FORWARD, sequence=sequence, kind=tail.kind.value)


def _apply(view: TapeView, tape_file: TapeFile, index: Path) -> None:
    if tape_file.kind is TapeFileKind.CHECKPOINT:
        view.apply(tape_file, ())
        return
    uuid = view.settings.volume_uuid
    first_crcs = read_crcs(index)
    crcs = first_crcs + tape_file.crcs[len(first_crcs) :]
    tape_file = TapeFile(
        tape_file.sequence,
        tape_file.kind,
        tape_file.first_block,
        tape_file.record_count,
        tape_file.written_ns,
        crcs,
    )
    view.apply(tape_file, read_entries(index, uuid, tape_file.sequence))


def _learn_torn(view: TapeView, first_block: int, record_count: int, now_ns: int) -> None:
    last = view.last_tape_file()
    sequence = last.sequence + 1 if last else 1
    view.apply(torn_file(sequence, first_block, record_count, now_ns), ())
    telemetry.event(telemetry.TORN_FILE, logging.INFO, sequence=sequence, records=record_count)


# -- without a catalog


async def _from_checkpoint(
    drive: TapeDrive, label: Label, target: Path, work: Path, report: Report
) -> TapeView | None:
    """The newest checkpoint that can be read, as a view; None when there is none."""
    tail = await _last_tail(drive, label.record_bytes)
    if tail is not None and tail.volume_uuid != label.volume_uuid:
        raise WrongTape("the end of this tape belongs to another volume than its label")
    while tail is not None:
        if tail.kind is not TapeFileKind.CHECKPOINT:
            tail = await _checkpoint_tail_before(drive, tail, label.record_bytes)
            continue
        try:
            return await _load_checkpoint(drive, tail, label, target, work, report)
        except (DamagedTape, MediumFailed) as exc:
            telemetry.event(
                telemetry.ROLL_FORWARD,
                logging.WARNING,
                damaged_checkpoint=tail.sequence,
                reason=exc,
            )
            remove_database(target)
            tail = await _checkpoint_tail_before(drive, tail, label.record_bytes)
    return None


async def _last_tail(drive: TapeDrive, record_bytes: int) -> Tail | None:
    """The last tail on the tape; torn tape files behind it are passed over."""
    end = await find_end(drive)
    mark: int | None = end.last_file_end
    while mark is not None and mark >= FIRST_TAPE_FILE_BLOCK:
        try:
            return await _tail_before_head(drive, record_bytes)
        except NoTail:
            await drive.space_filemarks(-1)
            mark = (await drive.position()).block
    return None


async def _checkpoint_tail_before(drive: TapeDrive, tail: Tail, record_bytes: int) -> Tail | None:
    """The tail of the checkpoint before the tape file of `tail`."""
    if not tail.checkpoint_block:
        return None
    following = tail.since_checkpoint[0] if tail.since_checkpoint else tail
    record_count = following.first_block - 1 - tail.checkpoint_block
    last = tail.checkpoint_block + record_count - 1
    if not FIRST_TAPE_FILE_BLOCK <= tail.checkpoint_block <= last < tail.first_block:
        return None
    address = TapeAddress(last, following.sequence - 1, record_count - 1)
    try:
        found = await read_tail(drive, address, record_bytes)
    except DamagedTape:
        return None
    earlier = found.kind is TapeFileKind.CHECKPOINT and found.sequence < tail.sequence
    return found if earlier and found.volume_uuid == tail.volume_uuid else None


async def _load_checkpoint(
    drive: TapeDrive, tail: Tail, label: Label, target: Path, work: Path, report: Report
) -> TapeView:
    packed, plain = work / "checkpoint.zst", work / "checkpoint.sqlite"

    def progress(done: int, total: int) -> None:
        report(
            {
                "event": "progress",
                "phase": "catalog",
                "message": "reading the catalog from tape",
                "done_bytes": done * label.record_bytes,
                "total_bytes": total * label.record_bytes,
            }
        )

    try:
        tape_file = await fetch_span(drive, tail, tail.index, label.record_bytes, packed, progress)
        await trio.to_thread.run_sync(_unpack, packed, plain)
        view = await trio.to_thread.run_sync(TapeView.import_checkpoint, plain, target)
    finally:
        packed.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)
    if view.settings.volume_uuid == label.volume_uuid:
        view.apply(tape_file, ())
        return view
    view.close()
    raise DamagedTape("a checkpoint on this tape belongs to another volume")


def _unpack(packed: Path, plain: Path) -> None:
    """Decompress, bounded in memory and in size. Raises DamagedTape."""
    room = packed.stat().st_size * _UNPACK_FACTOR_MAX + _UNPACK_MARGIN_BYTES
    try:
        with packed.open("rb") as source, plain.open("wb") as sink:
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(source)
            while data := reader.read(_COPY_BYTES):
                room -= len(data)
                if room < 0:
                    raise DamagedTape("a catalog copy on this tape unpacks without end")
                sink.write(data)
    except zstandard.ZstdError as exc:
        raise DamagedTape("a catalog copy on this tape cannot be unpacked") from exc
