"""A contract for tape drives: asks a drive what it is and does, and writes a report to send us.

    python tests/drive_contract.py --drive usb                  changes nothing on the tape
    python tests/drive_contract.py --drive usb --destructive    OVERWRITES the cartridge

docs/drive-contract.md says what is asked and what comes out. Nothing here trusts the drive layer of
tapefs: commands go straight to the USB transport, and what comes back is written down as it is.
What a personality of the emulated drive says about itself comes out under the same names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs import __version__
from tapefs.emulator.descriptors import UsbIdentity
from tapefs.emulator.name import VirtualDriveName, open_cartridge
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.errors import TapefsError
from tapefs.scsi import cdb as c
from tapefs.scsi.data import BlockDescriptor, BlockLimits, ModeParameters, ShortPosition
from tapefs.scsi.sense import Sense
from tapefs.usb.bot import ATAPI_CDB_BYTES, CDB_BYTES_MAX, TWELVE_BYTE_SUBCLASSES, Pipe
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from array import array
    from collections.abc import AsyncIterator, Callable

    from tapefs.scsi.completion import Completion

KIB: Final = 1 << 10
MIB: Final = 1 << 20
READY_POLLS_MAX: Final = 300
_TOO_LONG: Final = "not asked, its CDB is too long for an ATAPI packet"


@dataclass
class Report:
    """What was found. `personality` has the fields of `tapefs.emulator.personality.Personality`."""

    drive: str
    tapefs: str = __version__
    facts: dict[str, Any] = field(default_factory=dict)
    personality: dict[str, Any] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)

    def expect(self, holds: bool, sentence: str) -> None:
        """Note `sentence` as a surprise unless what the standard says holds."""
        if not holds:
            self.surprises.append(sentence)

    def text(self) -> str:
        """For a person."""
        parts = [f"Drive contract: {self.drive}, tapefs {self.tapefs}", ""]
        for title, values in (("Facts", self.facts), ("As a personality", self.personality)):
            parts += [
                f"{title}:",
                *(f"  {name}: {_shown(value)}" for name, value in values.items()),
            ]
            parts.append("")
        parts.append(f"Surprises ({len(self.surprises)}):")
        parts += [f"  - {sentence}" for sentence in self.surprises] or ["  none"]
        return "\n".join(parts) + "\n"


class Bench:
    """One drive, and commands to it whose outcome is a fact, whatever it is."""

    def __init__(self, endpoints: Any, settle_s: float, clock: Callable[[], float]) -> None:
        self.endpoints = endpoints
        self.transport = BotTransport(endpoints, settle_s=settle_s)
        self.clock = clock

    async def ask(self, command: c.Command, data: bytes | array[int] | None = None) -> Completion:
        """The outcome of one command, unit attentions included."""
        return await self.transport.execute(command, data)

    async def says(self, command: c.Command, data: bytes | None = None) -> str:
        """`good`, or the sense code; for the wire's failures a sentence."""
        try:
            completion = await self.ask(command, data)
        except TapefsError as exc:
            return f"wire: {exc}"
        return _code(completion)

    async def settled(self) -> str:
        """TEST UNIT READY until it is neither becoming ready nor has news, or patience ends."""
        said = ""
        for _ in range(READY_POLLS_MAX):
            said = await self.says(c.TestUnitReady())
            if not said.startswith(("2/04", "6/")):
                break
            await trio.sleep(1.0)
        return said

    async def good(self, command: c.Command, data: bytes | None = None) -> Completion:
        """A command that must succeed for the rest to make sense."""
        completion = await self.ask(command, data)
        if not completion.good:
            raise SystemExit(
                f"{command.name} failed with {_code(completion)}: no more to be learnt"
            )
        return completion

    async def seconds(self, command: c.Command) -> float:
        """How long a command took that must succeed."""
        start = self.clock()
        await self.good(command)
        return round(self.clock() - start, 3)

    async def write(self, data: bytes) -> Completion:
        return await self.ask(c.Write6(len(data)), data)

    async def read(self, size_bytes: int, *, sili: bool = False) -> Completion:
        return await self.ask(c.Read6(size_bytes, sili=sili))

    async def block(self) -> int | None:
        """What READ POSITION says, short form."""
        completion = await self.ask(c.ReadPosition())
        if not completion.good:
            return None
        position = ShortPosition.unpack(completion.data)
        return None if position.unknown else position.block


def _code(completion: Completion) -> str:
    sense = completion.sense
    if completion.good or sense is None:
        return "good"
    flags = {"FM": sense.filemark, "EOM": sense.end_of_medium, "ILI": sense.incorrect_length}
    words = [sense.code, *(name for name, on in flags.items() if on)]
    if sense.information is not None:
        words.append(f"info={sense.information}")
    return " ".join([*words, *(["deferred"] if sense.deferred else [])])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _pattern(number: int, size_bytes: int) -> bytes:
    """Incompressible, and different for each block."""
    return random.Random(number).randbytes(size_bytes)


# What is asked without touching the tape.


async def readiness(bench: Bench, report: Report) -> bool:
    """Ten TEST UNIT READY from power on, then patience. Good once and then not is a false good."""
    answers = [await bench.says(c.TestUnitReady()) for _ in range(10)]
    report.facts["ready_answers"] = answers
    if "good" in answers:
        later = answers[answers.index("good") :]
        report.expect(set(later) == {"good"}, "TEST UNIT READY was good and then not: a false good")
    said = report.facts["ready"] = await bench.settled()
    return said == "good"


async def identity(bench: Bench, report: Report) -> None:
    """INQUIRY with and without vital product data, and whether residues are true."""
    raw = bytes((await bench.good(c.Inquiry())).data)
    report.facts["inquiry"] = raw.hex(" ")
    text = raw.decode("ascii", "replace")
    report.personality |= {
        "vendor": text[8:16].rstrip(),
        "product": text[16:32].rstrip(),
        "revision": text[32:36],
    }
    report.expect(raw[0] == 0x01, f"the device type is {raw[0]:02X}h, not that of a tape")
    wide = await bench.ask(c.Inquiry(allocation_bytes=96))
    report.facts["inquiry_96"] = {"bytes": len(wide.data), "residue": wide.residue_bytes}
    report.expect(len(wide.data) + wide.residue_bytes == 96, "the residue of INQUIRY is wrong")
    pages = await bench.ask(c.Inquiry(evpd=True, page=0, allocation_bytes=64))
    listed = bytes(pages.data)[4:] if pages.good else b""
    report.facts["vital_product_data"] = {
        f"{page:02X}h": bytes((await bench.ask(_vpd(page))).data).hex(" ") for page in listed
    }
    report.facts["usb"] = {
        "subclass": bench.endpoints.subclass,
        "max_packet_bytes": bench.endpoints.max_packet_bytes,
    }
    report.personality["usb_subclass"] = bench.endpoints.subclass


def _vpd(page: int) -> c.Inquiry:
    return c.Inquiry(evpd=True, page=page, allocation_bytes=252)


async def parameters(bench: Bench, report: Report) -> None:
    """Block limits, mode pages, log pages, chip, densities."""
    limits = BlockLimits.unpack((await bench.good(c.ReadBlockLimits())).data)
    report.personality |= {
        "block_bytes_min": limits.minimum_bytes,
        "block_bytes_max": limits.maximum_bytes,
        "granularity_exponent": limits.granularity,
        "fixed_only": limits.fixed_only,
    }
    modes = ModeParameters.unpack((await bench.good(c.ModeSense6())).data)
    report.facts["mode_header"] = dataclasses.asdict(modes) | {"pages": modes.pages.hex(" ")}
    if modes.descriptor is not None:
        report.personality["default_block_bytes"] = modes.descriptor.block_bytes
        report.personality["density_code"] = modes.descriptor.density
    strict = await bench.says(c.ModeSense6(allocation_bytes=255)) != "good"
    report.personality["strict_mode_allocation"] = strict
    all_pages = await bench.ask(c.ModeSense6(page=0x3F, allocation_bytes=255))
    report.facts["mode_pages"] = (
        bytes(all_pages.data).hex(" ") if all_pages.good else _code(all_pages)
    )
    report.facts["mode_sense_10"] = await bench.says(c.ModeSense10())
    compression = await bench.says(c.ModeSense6(page=0x0F, allocation_bytes=255))
    report.personality["compresses"] = compression == "good"
    supported = await bench.ask(c.LogSense(0x00))
    listed = bytes(supported.data)[4:] if supported.good else b""
    report.facts["log_pages"] = {
        f"{page:02X}h": bytes((await bench.ask(c.LogSense(page))).data).hex(" ") for page in listed
    }
    report.personality |= {
        "has_log_pages": supported.good,
        "has_tape_alert": 0x2E in listed,
        "has_volume_statistics": 0x17 in listed,
    }
    density = await bench.ask(c.ReportDensitySupport())
    report.facts["densities"] = bytes(density.data).hex(" ") if density.good else _code(density)


async def support(bench: Bench, report: Report) -> None:
    """Which commands the drive has, by trying them where they do nothing."""
    await bench.good(c.Rewind())
    tried: dict[str, c.Command] = {
        "has_locate": c.Locate10(0),
        "locate_16": c.Locate16(0),
        "space_16": c.Space16(c.SpaceCode.BLOCKS, 0),
        "has_read_position": c.ReadPosition(),
        "has_long_position": c.ReadPosition(c.PositionForm.LONG),
        "extended_position": c.ReadPosition(c.PositionForm.EXTENDED),
        "has_attributes": c.ReadAttribute(),
        "prevent_removal": c.PreventAllowMediumRemoval(False),
        "reserve": c.Reserve6(),
        "release": c.Release6(),
    }
    # Behind an ATAPI bridge longer ones would stall the wire.
    room = ATAPI_CDB_BYTES if bench.endpoints.subclass in TWELVE_BYTE_SUBCLASSES else CDB_BYTES_MAX
    said = {
        name: await bench.says(command) if len(command.pack()) <= room else _TOO_LONG
        for name, command in tried.items()
    }
    report.facts["commands"] = said
    for name in ("has_locate", "has_read_position", "has_long_position", "has_attributes"):
        report.personality[name] = said[name] == "good"
    report.personality["has_wide_addresses"] = said["locate_16"] == said["space_16"] == "good"
    report.personality["knows_position"] = await bench.block() == 0
    for name, answer in said.items():
        fine = answer in ("good", _TOO_LONG) or answer.startswith(("5/20", "5/24"))
        report.expect(fine, f"{tried[name].name} ({name}) was answered {answer}")


async def resets(bench: Bench, report: Report) -> None:
    """What a class reset and a port reset leave: attentions, modes."""
    endpoints = bench.endpoints
    for name, reset in (("class", endpoints.class_reset), ("port", endpoints.port_reset)):
        await endpoints.run(reset)
        await trio.sleep(bench.transport._settle_s)
        if name == "class":
            for pipe in (Pipe.IN, Pipe.OUT):
                await endpoints.run(lambda pipe=pipe: endpoints.clear_halt(pipe))
        report.facts[f"after_{name}_reset"] = [
            await bench.says(c.TestUnitReady()) for _ in range(3)
        ]
        said = await bench.settled()
        report.expect(said == "good", f"after a {name} reset the drive says {said}")
    class_answers = report.facts["after_class_reset"]
    report.personality["reports_class_reset"] = class_answers[0].startswith("6/29")
    port_answers = report.facts["after_port_reset"]
    report.expect(port_answers[0].startswith("6/29"), "a port reset is not reported")


# What overwrites the tape.


async def variable_blocks(bench: Bench, report: Report) -> bool:
    """MODE SELECT of variable blocks and buffering; False when the drive cannot."""
    density = report.personality.get("density_code", 0)
    wanted = ModeParameters(buffered_mode=1, descriptor=BlockDescriptor(density))
    listed = wanted.pack(select=True)
    said = await bench.says(c.ModeSelect6(len(listed)), listed)
    report.facts["variable_blocks"] = said
    return said == "good"


async def rates(bench: Bench, report: Report, megabytes: int) -> None:
    """Writes and reads so much in blocks of each size that the drive has; seconds and MB/s."""
    limit = report.personality["block_bytes_max"] or MIB
    sizes = [size for size in (64 * KIB, 256 * KIB, 512 * KIB, MIB) if size <= limit]
    measured = {}
    for size_bytes in sizes:
        count = max(1, megabytes * MIB // size_bytes)
        blocks = [_pattern(number % 8, size_bytes) for number in range(min(count, 8))]
        await bench.good(c.Rewind())
        start = bench.clock()
        for number in range(count):
            said = _code(await bench.write(blocks[number % 8]))
            report.expect(said == "good", f"WRITE of {size_bytes} bytes was answered {said}")
        written_s = bench.clock() - start
        flush_s = await bench.seconds(c.WriteFilemarks6(0))
        rewind_s = await bench.seconds(c.Rewind())
        start = bench.clock()
        same = [
            bytes((await bench.read(size_bytes)).data) == blocks[number % 8]
            for number in range(count)
        ]
        read_s = bench.clock() - start
        report.expect(all(same), f"blocks of {size_bytes} bytes came back different")
        total = count * size_bytes / 1e6
        measured[str(size_bytes)] = {
            "write_mb_per_s": round(total / max(written_s + flush_s, 1e-6), 2),
            "read_mb_per_s": round(total / max(read_s, 1e-6), 2),
            "flush_s": flush_s,
            "rewind_s": rewind_s,
        }
    report.facts["rates"] = measured
    best = max(each["write_mb_per_s"] for each in measured.values())
    report.personality["rate_bytes_per_s"] = int(best * 1e6)


async def lengths(bench: Bench, report: Report) -> None:
    """Blocks shorter and longer than asked for, with and without SILI, and their residues."""
    await bench.good(c.Rewind())
    for number in range(4):
        await bench.write(_pattern(number, 4 * KIB))
    await bench.good(c.WriteFilemarks6(1))
    asked = {
        "exact": (4 * KIB, False),
        "short": (16 * KIB, False),
        "short, SILI": (16 * KIB, True),
        "long": (KIB, False),
    }
    found = {}
    await bench.good(c.Rewind())
    for name, (size_bytes, sili) in asked.items():
        completion = await bench.read(size_bytes, sili=sili)
        data = len(completion.data)
        found[name] = {
            "says": _code(completion),
            "bytes": data,
            "residue": completion.residue_bytes,
        }
        right = size_bytes - min(size_bytes, 4 * KIB)
        report.expect(
            completion.residue_bytes == right,
            f"a read of {size_bytes} bytes ({name}) leaves residue {completion.residue_bytes}",
        )
    found["filemark"] = {"says": await bench.says(c.Read6(4 * KIB))}
    report.facts["lengths"] = found
    wanted = {
        "exact": "good",
        "short": f"0/00/00 ILI info={12 * KIB}",
        "short, SILI": "good",
        "long": f"0/00/00 ILI info={-3 * KIB}",
        "filemark": f"0/00/01 FM info={4 * KIB}",
    }
    for name, said in wanted.items():
        report.expect(found[name]["says"] == said, f"READ ({name}): {found[name]['says']}")


async def ends(bench: Bench, report: Report) -> None:
    """Filemarks and the end of data, met by SPACE and READ; where the head is afterwards."""
    steps: tuple[tuple[str, c.Command, str], ...] = (
        ("space over 2 blocks", c.Space6(c.SpaceCode.BLOCKS, 2), "good"),
        ("space into a filemark", c.Space6(c.SpaceCode.BLOCKS, 9), "0/00/01 FM info=7"),
        ("read at end of data", c.Read6(4 * KIB), f"8/00/05 info={4 * KIB}"),
        ("space at end of data", c.Space6(c.SpaceCode.BLOCKS, 1), "8/00/05 info=1"),
        ("back over a filemark", c.Space6(c.SpaceCode.FILEMARKS, -1), "good"),
        ("back to the beginning", c.Space6(c.SpaceCode.BLOCKS, -9), "0/00/04 EOM info=5"),
        ("to the end of data", c.Space6(c.SpaceCode.END_OF_DATA), "good"),
    )
    await bench.good(c.Rewind())
    found = {}
    for name, command, expected in steps:
        said = await bench.says(command)
        found[name] = {"says": said, "block": await bench.block()}
        report.expect(said == expected, f"{name}: {said} instead of {expected}")
    report.facts["ends"] = found
    stopped = found["space into a filemark"]["says"] == "0/00/01 FM info=7"
    report.personality["space_tells"] = stopped


async def buffering(bench: Bench, report: Report) -> None:
    """What READ POSITION says of a block just written, and whether a middle may be overwritten."""
    await bench.good(c.Space6(c.SpaceCode.END_OF_DATA))
    await bench.write(_pattern(9, 64 * KIB))
    completion = await bench.ask(c.ReadPosition())
    if completion.good and report.personality["knows_position"]:
        position = ShortPosition.unpack(completion.data)
        report.facts["buffered"] = {"first": position.block, "last": position.last_block}
        report.personality["tells_buffered"] = position.last_block < position.block
    await bench.good(c.WriteFilemarks6(1))
    await bench.good(c.Rewind())
    await bench.good(c.Space6(c.SpaceCode.BLOCKS, 3))
    said = _code(await bench.write(_pattern(8, 4 * KIB)))
    report.facts["overwrite_in_the_middle"] = said
    report.personality["appends_only"] = said != "good"


async def locates(bench: Bench, report: Report) -> None:
    """LOCATE to a few places of what was written for it, with times."""
    await bench.good(c.Rewind())
    size_bytes = min(64 * KIB, report.personality["block_bytes_max"] or 64 * KIB)
    for number in range(64):
        await bench.write(_pattern(number % 4, size_bytes))
    await bench.good(c.WriteFilemarks6(1))
    if not report.personality["has_locate"]:
        return
    times = {}
    for block in (0, 60, 5, 33, 64):
        times[str(block)] = await bench.seconds(c.Locate10(block))
        found = await bench.block()
        report.expect(found in (None, block), f"LOCATE {block} ended at {found}")
        if block < 64:
            data = bytes((await bench.read(size_bytes)).data)
            report.expect(data == _pattern(block % 4, size_bytes), f"block {block} is another one")
    report.facts["locate_s"] = times


async def end_of_tape(bench: Bench, report: Report) -> None:
    """Writes until the drive refuses: where it warns, and how much fits behind that."""
    await bench.good(c.Rewind())
    size_bytes = min(256 * KIB, report.personality["block_bytes_max"] or 256 * KIB)
    warning, written, block = "", 0, _pattern(1, size_bytes)
    before_bytes = 0
    while True:
        completion = await bench.write(block)
        sense = completion.sense or Sense()
        if not completion.good and not (sense.end_of_medium and sense.key in (0, 1)):
            break
        written += size_bytes
        if not completion.good and not warning:
            warning, before_bytes = _code(completion), written
    # What is missing counts blocks that were accepted before, and are not on tape.
    missing_bytes = (completion.sense or Sense()).information or size_bytes
    on_tape_bytes = written + size_bytes - missing_bytes
    report.facts["end_of_tape"] = {
        "early_warning": warning,
        "early_warning_at_bytes": before_bytes,
        "end": _code(completion),
        "accepted_bytes": written,
        "on_tape_bytes": on_tape_bytes,
    }
    report.personality["capacity_bytes"] = on_tape_bytes
    report.personality["early_warning_bytes"] = on_tape_bytes - before_bytes
    report.personality["buffers_past_early_warning"] = missing_bytes > size_bytes
    report.personality["bare_early_warning"] = warning.startswith("0/00/00")
    report.expect(bool(warning), "the tape ended without a warning")
    report.expect(_code(completion).startswith("D/00/02"), f"at the end: {_code(completion)}")
    await bench.good(c.Rewind())


async def examine(
    bench: Bench, report: Report, *, destructive: bool, to_the_end: bool, megabytes: int
) -> None:
    """All of it, as far as drive and flags allow."""
    ready = await readiness(bench, report)
    await identity(bench, report)
    if not ready:
        report.facts["stopped"] = "no cartridge is ready; load one for the rest"
        return
    await parameters(bench, report)
    await support(bench, report)
    if destructive:
        if report.facts["mode_header"]["write_protected"]:
            report.facts["stopped"] = "the cartridge is write protected"
            return
        if report.personality["fixed_only"] or not await variable_blocks(bench, report):
            report.facts["stopped"] = "without variable blocks there are no measurements"
            return
        for step in (lengths, ends, buffering, locates):
            await step(bench, report)
        await rates(bench, report, megabytes)
        if to_the_end:
            await end_of_tape(bench, report)
    await resets(bench, report)


@asynccontextmanager
async def bench_for(name: str) -> AsyncIterator[Bench]:
    """The drive called `name`, real or virtual. Given back afterwards, not rewound."""
    if not VirtualDriveName.matches(name):
        bench = Bench(open_endpoints(name), 6.0, time.monotonic)
        try:
            yield bench
        finally:
            await bench.transport.aclose()
        return
    virtual = VirtualDriveName.parse(name)
    with open_cartridge(virtual, create=True) as cartridge:
        target = Target(cartridge)
        kind = target.personality
        backend = EmulatedUsbBackend(
            target, identity=UsbIdentity.of(kind, target.serial), subclass=kind.usb_subclass
        )
        if virtual.faults is not None:
            virtual.faults.apply(target, backend.device)
        # The emulated drive says itself how long it would have been at work.
        bench = Bench(open_endpoints("usb", backend), 0.0, lambda: target.busy_s)
        try:
            yield bench
        finally:
            await bench.transport.aclose()


async def contract(
    name: str, *, destructive: bool = False, to_the_end: bool = False, megabytes: int = 64
) -> Report:
    """The report on the drive called `name`. Without `destructive` nothing on its tape changes."""
    report = Report(name)
    async with bench_for(name) as bench:
        try:
            await examine(
                bench, report, destructive=destructive, to_the_end=to_the_end, megabytes=megabytes
            )
        except TapefsError as exc:
            report.facts["stopped"] = str(exc)
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Examine a tape drive and write a report.")
    parser.add_argument("--drive", required=True, help="usb, usb:SERIAL or virtual:FILE.tap")
    parser.add_argument(
        "--destructive", action="store_true", help="OVERWRITE the cartridge in the drive"
    )
    parser.add_argument(
        "--to-the-end", action="store_true", help="... all of it, to see how the tape ends (hours)"
    )
    parser.add_argument("--megabytes", type=int, default=256, help="for each measured rate")
    parser.add_argument("--report", type=Path, default=Path("drive-report"), help="without suffix")
    arguments = parser.parse_args()
    if arguments.to_the_end and not arguments.destructive:
        parser.error("--to-the-end overwrites the whole tape; say --destructive as well")
    try:
        report = trio.run(
            lambda: contract(
                arguments.drive,
                destructive=arguments.destructive,
                to_the_end=arguments.to_the_end,
                megabytes=arguments.megabytes,
            )
        )
    except TapefsError as exc:
        sys.exit(str(exc))
    shown = report.text()
    arguments.report.with_suffix(".txt").write_text(shown)
    as_json = json.dumps(dataclasses.asdict(report), indent=1, default=str)
    arguments.report.with_suffix(".json").write_text(as_json + "\n")
    print(shown)
    print(
        f"Please send {arguments.report.with_suffix('.json')} to the project. It holds no data of"
    )
    print("yours, but the serial numbers of drive and cartridge; remove them if you like.")


if __name__ == "__main__":
    main()
