"""At mount, and after a failed write: make the tape view agree with the tape, prove the end (P6).

With a catalog: the end of data must be where the view says, and the last tail must be the one the
view knows. Tape files beyond that are rolled forward over their tails; a torn one is closed with a
filemark. Without a catalog: the last checkpoint is loaded, then the same roll-forward does the
rest. The code that applies a journal is the one that ran when it was written.
"""

from __future__ import annotations

import logging
from array import array
from typing import TYPE_CHECKING, Any, Final

import trio
import zstandard

from tapefs import telemetry
from tapefs.archive.roll_forward import RollForward
from tapefs.catalog import TapeView, VolumeSettings, remove_database
from tapefs.entries import TapeFileKind
from tapefs.errors import DamagedTape, MediumFailed, StateUnusable, WrongTape
from tapefs.scsi.sense import EndOfData, FilemarkDetected, IncorrectLength
from tapefs.volume.session import (
    close_torn,
    fetch_span,
    find_end,
    go_to_end,
    read_tail,
    tail_before_head,
)
from tapefs.volume.tail import NoTail, Tail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.drive import TapeDrive
    from tapefs.entries import TapeFile
    from tapefs.geometry import Geometry
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
    report: Report,
    *,
    writable: bool = True,
    salvages: bool = False,
    is_dispensable: Callable[[Tail], bool] = lambda _: False,
    admit: Callable[[Tail], None] = lambda _: None,
) -> int:
    """Roll `view` forward to the end of the tape; returns how many tape files it did not know.

    Leaves the head at the proven end of data when `writable`. Torn tape files that no later tail
    judges are salvaged when `salvages`, else skipped; so is a segment whose journal cannot be read,
    if its tail `is_dispensable`: this host still has what is in it. Raises WrongTape when the tape
    ends before the view does, its last tape file is another one, or it was written by someone who
    judged a torn tape file otherwise; DamagedTape when a journal that is needed cannot be read; and
    what `admit` raises about a tape file, before the view learns anything of it.
    """
    expected = view.expected_end()
    end = await find_end(drive, expected)
    if _ends_torn_as_known(view, end):
        if writable:
            await close_torn(drive, end)
            await go_to_end(drive, expected)
        return 0
    _demand_whole(view, end)
    await _prove_last_tail(drive, view, end, writable=writable)
    roll = RollForward(drive, view, work, report, is_dispensable, admit)
    await roll.run(end.last_file_end)
    if end.torn_blocks and writable:
        # It may be complete but for its filemark: whoever rebuilds from the tape will take it for
        # a segment then, so it is one here as well.
        await close_torn(drive, end)
        await roll.run(end.block)
    elif end.torn_blocks:
        roll.note_unclosed(end.torn_blocks)
    await roll.settle_torn(salvages=salvages)
    if writable:
        await go_to_end(drive, view.expected_end())
    return roll.learned_count


async def prove_known_tape(drive: TapeDrive, view: TapeView, *, writable: bool) -> None:
    """The loaded tape must hold everything that `view` knows; what is behind it is not looked at.

    Writes nothing, neither to tape nor to `view`. Raises WrongTape when the tape ends before, or
    when the last tape file that the view knows is another one on tape, DamagedTape when nobody
    can tell.
    """
    end = await find_end(drive)
    if _ends_torn_as_known(view, end):
        return
    _demand_whole(view, end)
    await _prove_last_tail(drive, view, end, writable=writable)


def _ends_torn_as_known(view: TapeView, end: EndOfTape) -> bool:
    """Whether the tape ends with a torn tape file that was salvaged without being closed."""
    last = view.last_tape_file()
    if last is None or not last.salvaged:
        return False
    return (last.first_block, last.record_count) == (end.last_file_end + 1, end.torn_blocks)


def _demand_whole(view: TapeView, end: EndOfTape) -> None:
    expected = view.expected_end().block
    if end.block < expected:
        raise WrongTape(
            f"the tape ends at block {end.block}, but this host's catalog knows it up to block "
            f"{expected}; it is an older copy, or was overwritten elsewhere: to read it as it is, "
            "mount it with another --state-dir"
        )


async def rebuild(
    drive: TapeDrive,
    label: Label,
    target: Path,
    work: Path,
    report: Report,
    *,
    writable: bool = True,
    salvages: bool = False,
) -> TapeView:
    """Make the tape view in `target` from the tape alone. Raises DamagedTape, WrongTape, ...

    The last checkpoint that can be read, or nothing, is the start; `settle_end` does the rest.
    """
    remove_database(target)
    tail = await _last_tail(drive, label.geometry)
    view = await _from_checkpoint(drive, label, tail, target, work, report)
    if view is None:
        view = TapeView.create(target, _settings(label))
    try:
        await settle_end(drive, view, work, report, writable=writable, salvages=salvages)
    except BaseException:
        view.close()
        raise
    return view


async def rebuild_as_of(
    drive: TapeDrive, label: Label, last: TapeFile, target: Path, work: Path, report: Report
) -> TapeView:
    """The view of the volume as it was when the closed tape file `last` was its last, in `target`.

    Writes nothing to tape. Raises DamagedTape, MediumFailed, WrongTape, StateUnusable.
    """
    remove_database(target)
    geometry = label.geometry
    tail = await read_tail(drive, geometry.last_record_address(last), geometry)
    view = await _from_checkpoint(drive, label, tail, target, work, report)
    if view is None:
        view = TapeView.create(target, _settings(label))
    try:
        roll = RollForward(drive, view, work, report)
        await roll.run(geometry.end_address(last).block - 1, last)
    except BaseException:
        view.close()
        raise
    return view


def _settings(label: Label) -> VolumeSettings:
    return VolumeSettings(
        label.volume_uuid, label.name, label.record_bytes, label.created_ns, label.block_bytes
    )


async def _prove_last_tail(
    drive: TapeDrive, view: TapeView, end: EndOfTape, *, writable: bool
) -> None:
    """The last tape file that the view knows must end on tape where and as the view says.

    Raises WrongTape when another one does, DamagedTape when that cannot be told. A tape that is
    only read, and ends where it must, needs no such proof: every record is checked by itself.
    """
    last = view.last_tape_file()
    if last is None or last.kind is TapeFileKind.TORN:
        return
    geometry = view.settings.geometry
    nothing_follows = end.last_file_end + 1 == geometry.end_address(last).block
    try:
        if nothing_follows:
            tail = await tail_before_head(drive, geometry)
        else:
            tail = await _tail_before_mark(drive, last, geometry)
    except DamagedTape as exc:
        if nothing_follows and not writable:
            telemetry.event(
                telemetry.ROLL_FORWARD, logging.WARNING, damaged_tail=last.sequence, reason=exc
            )
            return
        raise DamagedTape(
            f"tape file {last.sequence} does not end as this host's catalog knows it ({exc}), so "
            "nothing proves where the tape may be written; mount it read-only with -o ro"
        ) from exc
    known = (view.settings.volume_uuid, last.sequence, last.written_ns, last.record_count)
    if (tail.volume_uuid, tail.sequence, tail.written_ns, tail.record_count) != known:
        raise WrongTape(
            f"tape file {last.sequence} on this tape is not the one that this host's catalog "
            "knows; the tape was written elsewhere, so mount it with another --state-dir"
        )


async def _tail_before_mark(drive: TapeDrive, tape_file: TapeFile, geometry: Geometry) -> Tail:
    """The tail in the last record of `tape_file`, behind which its filemark must stand."""
    tail = await read_tail(drive, geometry.last_record_address(tape_file), geometry)
    try:
        await drive.read_block(array("B", bytes(geometry.record_bytes)))
    except FilemarkDetected:
        if (await drive.position()).block == geometry.end_address(tape_file).block:
            return tail
    except (EndOfData, IncorrectLength, MediumFailed) as exc:
        raise NoTail("something else than its filemark follows") from exc
    raise NoTail("more records follow")


# -- without a catalog


async def _from_checkpoint(
    drive: TapeDrive, label: Label, tail: Tail | None, target: Path, work: Path, report: Report
) -> TapeView | None:
    """The newest checkpoint that can be read, up to that of `tail`, as a view; None: there is none.

    `tail` is that of the last tape file that counts, None when none has one.
    """
    if tail is not None and tail.volume_uuid != label.volume_uuid:
        raise WrongTape("the end of this tape belongs to another volume than its label")
    while tail is not None:
        if tail.kind is not TapeFileKind.CHECKPOINT:
            tail = await _checkpoint_tail_before(drive, tail, label.geometry)
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
            tail = await _checkpoint_tail_before(drive, tail, label.geometry)
    return None


async def _last_tail(drive: TapeDrive, geometry: Geometry) -> Tail | None:
    """The last tail that can be read; torn and damaged tape files behind it are passed over."""
    end = await find_end(drive)
    mark: int | None = end.last_file_end
    while mark is not None and mark >= geometry.first_tape_file_block:
        try:
            return await tail_before_head(drive, geometry)
        except DamagedTape:
            await drive.space_filemarks(-1)
            mark = (await drive.position()).block
    return None


async def _checkpoint_tail_before(drive: TapeDrive, tail: Tail, geometry: Geometry) -> Tail | None:
    """The tail of the checkpoint before the tape file of `tail`."""
    if not tail.checkpoint_block:
        return None
    following = tail.since_checkpoint[0] if tail.since_checkpoint else tail
    count = geometry.whole_records(following.first_block - 1 - tail.checkpoint_block)
    if not count:
        return None
    address = geometry.record_address(following.sequence - 1, tail.checkpoint_block, count - 1)
    first_block = geometry.first_tape_file_block
    if not first_block <= tail.checkpoint_block <= address.block < tail.first_block:
        return None
    try:
        found = await read_tail(drive, address, geometry)
    except DamagedTape:
        return None
    earlier = found.kind is TapeFileKind.CHECKPOINT and found.sequence < tail.sequence
    return found if earlier and found.volume_uuid == tail.volume_uuid else None


async def _load_checkpoint(
    drive: TapeDrive, tail: Tail, label: Label, target: Path, work: Path, report: Report
) -> TapeView:
    """The catalog in the checkpoint that ends in `tail`, as a new view in `target`.

    Raises DamagedTape and MediumFailed when it cannot be read or believed, StateUnusable.
    """
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
        tape_file = await fetch_span(drive, tail, tail.index, label.geometry, packed, progress)
        await trio.to_thread.run_sync(_unpack, packed, plain)
        view = await trio.to_thread.run_sync(TapeView.import_checkpoint, plain, target)
    finally:
        packed.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)
    try:
        if view.settings != _settings(label):
            raise DamagedTape("a checkpoint on this tape belongs to another volume")  # noqa: TRY301
        view.apply(tape_file, ())
    except WrongTape as exc:
        view.close()
        raise DamagedTape("a checkpoint on this tape belongs to another place") from exc
    except BaseException:
        view.close()
        raise
    return view


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
    except OSError as exc:
        raise StateUnusable(
            f"{plain} cannot be written: {exc.strerror}; free some of its disk and mount again"
        ) from exc
    except zstandard.ZstdError as exc:
        raise DamagedTape("a catalog copy on this tape cannot be unpacked") from exc
