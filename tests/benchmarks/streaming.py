"""Whether the tape streams: the whole mount over a drive with a buffer, in virtual time.

Everything between the filesystem's calls and the commands to the drive is what is shipped. Rates
and sizes are divided by a number, so that some minutes of an LTO-9 are not 100 GB; seconds, and so
what is decided, stay as they are. What this host's processor takes is no part of it.
"""

from __future__ import annotations

import dataclasses
import functools
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio
from volume_rig import Rig

from benchmarks import virtual_time
from benchmarks.row import GIB, MIB, Figure, Row
from benchmarks.timeline import Sample
from tapefs.config import RECORD_BYTES_DEFAULT, Config
from tapefs.drive import TapeDrive
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.personality import PERSONALITIES, Personality
from tapefs.emulator.tape_stream import StreamStatistics, TapeStream
from tapefs.emulator.target import Target
from tapefs.emulator.transport import TargetTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from volume_rig import User

    from benchmarks.row import Run
    from benchmarks.timeline import Timeline

# A program writes so much at a time, and a record is as large.
_RECORD_BYTES: Final = 256 << 10
# What comes at a fifth of the drive's rate.
_SLOW: Final = 0.2
_FILE_S: Final = 2.5
# How long files come: fast for so many seconds, slowly for that many.
_FAST_S: Final = 600
_SLOW_S: Final = 1500
_SAMPLE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Model:
    """A drive of which everything but the time is a `divisor`-th, and the spool beside it."""

    words: str
    personality: Personality
    divisor: int
    spool_bytes: int

    @property
    def rate(self) -> float:
        """Bytes per second, divided."""
        return self.divided.rate_bytes_per_s

    @property
    def divided(self) -> Personality:
        """The drive."""
        kind = self.personality
        return dataclasses.replace(
            kind,
            rate_bytes_per_s=kind.rate_bytes_per_s // self.divisor,
            rate_min_bytes_per_s=kind.lowest_rate_bytes_per_s // self.divisor,
            drive_buffer_bytes=kind.drive_buffer_bytes // self.divisor,
            buffer_bytes=MIB,
            default_block_bytes=0,
        )

    def toy(self) -> Model:
        """A still smaller one, of which only is seen that it runs."""
        return dataclasses.replace(self, divisor=8 * self.divisor, spool_bytes=0)

    @property
    def config(self) -> Config:
        """The mount's options: as shipped, but for what is an amount."""
        shipped = Config()
        return Config(
            spool_bytes=max(16 * MIB, self.spool_bytes // self.divisor),
            part_bytes_min=shipped.part_bytes_min // self.divisor,
            record_queue_count=shipped.record_queue_count,
            drive_check_s=1e9,
            health_s=0,
        )


_LTO9: Final = dataclasses.replace(PERSONALITIES["lto9"], rate_bytes_per_s=400_000_000)
MODELS: Final = {
    "lto9": Model("LTO-9 of full height (400 MB/s)", _LTO9, 160, 128 * GIB),
    "lto5": Model("LTO-5", PERSONALITIES["lto5"], 56, 48 * GIB),
    "dat160": Model("DAT-160", PERSONALITIES["dat160"], 3, 2 * GIB),
    "ait3": Model("AIT-3", PERSONALITIES["ait3"], 4, 4 * GIB),
}


class _Drive:
    """The drive that the volume is on."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.stream: TapeStream | None = None

    def target(self, cartridge: VirtualCartridge) -> Target:
        self.stream = TapeStream(self.model.divided, trio.current_time)
        return Target(cartridge, self.model.divided, stream=self.stream)


@dataclass(slots=True)
class Streamed:
    """What came of it, from the first byte written on."""

    span_s: float
    found: StreamStatistics

    @property
    def writing_share(self) -> float:
        """The part of the time in which the tape was written to."""
        return self.found.writing_s / self.span_s

    def stops(self) -> int:
        """How often the tape stopped while or after it was written to."""
        return self.found.back_hitch_count + self.found.stop_count

    def efficiency(self, model: Model) -> float:
        """Of the time that writing takes the drive, stops and turns included, the part in which it
        writes, as if at full speed.
        """
        full_s = self.found.written_bytes / model.rate
        return full_s / (self.found.writing_s + self.stops() * model.personality.stop_s)


@dataclass(slots=True)
class Source:
    """A program that writes files for so long, at most so fast."""

    duration_s: float
    bytes_per_s: float
    accepted_bytes: int = 0

    async def write(self, user: User, model: Model) -> None:
        """Do it."""
        contents, number = user.volume.contents, 0
        data, begun_s = bytes(_RECORD_BYTES), trio.current_time()
        while trio.current_time() < begun_s + self.duration_s:
            ino = await user.write(f"file {number}", b"")
            await contents.open(ino, write=True)
            for offset in range(0, int(_FILE_S * model.rate), _RECORD_BYTES):
                await contents.write(ino, offset, data)
                self.accepted_bytes += _RECORD_BYTES
                await trio.sleep_until(begun_s + self.accepted_bytes / self.bytes_per_s)
            await contents.release(ino, write=True)
            number += 1


def mounted(
    directory: Path, model: Model, source: Source, timeline: Timeline | None = None
) -> Streamed:
    """Files come into a mount. Ends with the last file, or the end of a burst under way then."""
    drive = _Drive(model)
    size = int(2 * source.duration_s * model.rate) + 2 * model.config.spool_bytes
    rig = Rig(directory, model.personality.name, size, model.config)
    rig.label = dataclasses.replace(rig.label, record_bytes=_RECORD_BYTES)
    rig.make_target, rig.clock_ns = drive.target, virtual_time.clock_ns
    rig.wire = functools.partial(TargetTransport, paced=True)

    async def work() -> Streamed:
        await rig.format()
        async with rig.mounted() as user, trio.open_nursery() as nursery:
            assert drive.stream is not None
            stream, before = drive.stream, dataclasses.replace(drive.stream.statistics)
            if timeline is not None:
                nursery.start_soon(_draw, stream, source, model, timeline)
            begun_s = trio.current_time()
            async with trio.open_nursery() as writing:
                writing.start_soon(source.write, user, model)
                await _until(stream.is_writing)
                begun_s = trio.current_time()
            if source.bytes_per_s < model.rate:
                await _until(lambda: not stream.is_writing())
            span_s = trio.current_time() - begun_s
            found = _difference(stream.statistics, before)
            nursery.cancel_scope.cancel()
        return Streamed(span_s, found)

    return virtual_time.in_virtual_time(work)


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - the drive tells nobody
        await trio.sleep(0.1)


async def _draw(stream: TapeStream, source: Source, model: Model, timeline: Timeline) -> None:
    """Note what happens, in the amounts of the whole drive, behind what is noted already."""
    begun_s, before = trio.current_time(), Sample(0.0, "", 0, 0, 0)
    if timeline.samples:
        before = timeline.samples[-1]
    while True:
        state = "writing" if stream.is_writing() else "standing"
        tape_bytes = int(stream.statistics.written_bytes) * model.divisor
        timeline.samples.append(
            Sample(
                before.at_s + trio.current_time() - begun_s,
                state,
                before.accepted_bytes + source.accepted_bytes * model.divisor,
                before.tape_bytes + tape_bytes,
                tape_bytes // RECORD_BYTES_DEFAULT,
            )
        )
        await trio.sleep(_SAMPLE_S)


def _difference(now: StreamStatistics, then: StreamStatistics) -> StreamStatistics:
    pairs = zip(dataclasses.astuple(now), dataclasses.astuple(then), strict=True)
    return StreamStatistics(*(new - old for new, old in pairs))


def naive(directory: Path, model: Model, byte_count: float, bytes_per_s: float) -> Streamed:
    """As `tar` to a tape drive: each record is written when it is there."""
    drive = _Drive(model)

    async def work() -> Streamed:
        path = directory / "naive.tap"
        capacity = int(2 * byte_count) + GIB
        with VirtualCartridge.create(path, model.personality.name, capacity) as cartridge:
            tape = await TapeDrive.open(TargetTransport(drive.target(cartridge), paced=True))
            await tape.rewind()
            record = array("B", bytes(_RECORD_BYTES))
            begun_s = trio.current_time()
            for written in range(0, int(byte_count), _RECORD_BYTES):
                await trio.sleep_until(begun_s + written / bytes_per_s)
                await tape.write_block(record)
            await tape.write_filemarks(1)
            assert drive.stream is not None
            return Streamed(trio.current_time() - begun_s, drive.stream.statistics)

    return virtual_time.in_virtual_time(work)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _measure(model: Model, run: Run) -> Mapping[str, float]:
    model = model.toy() if run.small else model
    fast = Source(run.size(_FAST_S, 100), 50 * model.rate)
    slow = Source(run.size(_SLOW_S, 300), _SLOW * model.rate)
    kept_up = mounted(_made(run.directory / "fast"), model, fast, run.timeline)
    bursts = mounted(_made(run.directory / "slow"), model, slow, run.timeline)
    one_by_one = naive(run.directory, model, bursts.found.written_bytes, slow.bytes_per_s)
    return {
        "source keeps up: tape is written to": 100 * kept_up.writing_share,
        "source keeps up: back-hitches": kept_up.found.back_hitch_count,
        "a fifth of its rate: streaming efficiency": 100 * bursts.efficiency(model),
        "a fifth of its rate: stops and back-hitches": bursts.stops(),
        "naive writer: streaming efficiency": 100 * one_by_one.efficiency(model),
        "naive writer: stops and back-hitches": one_by_one.stops(),
    }


def _row(name: str, model: Model) -> Row:
    return Row(
        f"stream-{name}",
        f"files come into a mount on {model.words}, in virtual time, with a spool of "
        f"{model.spool_bytes // GIB} GiB: faster than the drive for {_FAST_S} s; at a fifth of its "
        f"rate for {_SLOW_S} s; the same to a writer that sends each record when it comes",
        {
            "source keeps up: tape is written to": Figure("% of the time", at_least=97),
            "source keeps up: back-hitches": Figure("besides stops", at_most=0, may_be_zero=True),
            "a fifth of its rate: streaming efficiency": Figure("%", at_least=90),
            "a fifth of its rate: stops and back-hitches": Figure("times"),
            "naive writer: streaming efficiency": Figure("%"),
            "naive writer: stops and back-hitches": Figure("times"),
        },
        functools.partial(_measure, model),
        in_every_place=False,
        varies=False,
    )


ROWS: Final = tuple(_row(name, model) for name, model in MODELS.items())
