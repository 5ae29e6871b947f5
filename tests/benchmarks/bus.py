"""How much of USB 2.0 the host end of Bulk-Only Transport leaves unused, on a modelled bus.

The transfers are those that the shipped drive layer and transport make of records, on the emulated
device, and the pauses between them those of this host. What the bus would take for that is
computed: at high speed a microframe of 125 us carries 13 bulk packets of 512 bytes at most (USB 2.0
§5.8.4), and the host hears of the end of a transfer when the microframe ends. A command takes three
transfers, each of which has to wait for the one before.
"""

from __future__ import annotations

import math
import statistics
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from benchmarks.row import GIB, Figure, Row
from tapefs.config import RECORD_BYTES_DEFAULT, Config
from tapefs.drive import TapeDrive
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport
from tapefs.volume.record_feed import RecordFeed
from tapefs.volume.records import RecordBuffers
from tapefs.volume.session import AppendProgress, append

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.row import Run

_MICROFRAME_S: Final = 125e-6
_PACKET_BYTES: Final = 512
_PACKETS: Final = 13
# From a transfer's end to libusb's return, and from its call to the bus: interrupt, a change of
# task, a system call each way. A guess; the rest of the pause is measured.
_KERNEL_S: Final = 20e-6
# Records go to the drive, and come from it, in visits of so many.
_VISIT_COUNT: Final = Config().record_queue_count // 4


@dataclass(slots=True)
class Transfers:
    """Bytes of each bulk transfer, and how long the host took from the one before to its begin."""

    byte_counts: list[int] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    _ended_s: float = field(default_factory=time.perf_counter)

    def begin(self) -> None:
        """The host asks for a transfer."""
        self.pauses_s.append(time.perf_counter() - self._ended_s)

    def end(self, byte_count: int) -> None:
        """It is over."""
        self.byte_counts.append(byte_count)
        self._ended_s = time.perf_counter()

    def typical_pauses_s(self) -> list[float]:
        """Each pause as it mostly is at that place of a visit: others use this computer as well."""
        visit = 3 * _VISIT_COUNT
        usual = [statistics.median(self.pauses_s[place::visit]) for place in range(visit)]
        return [usual[number % visit] for number in range(len(self.pauses_s))]

    def bus_s(self) -> float:
        """What they take on the bus, one after the other."""
        at = 0.0
        for byte_count, pause_s in zip(self.byte_counts, self.typical_pauses_s(), strict=True):
            at += (pause_s + _KERNEL_S) / _MICROFRAME_S
            at = math.ceil(at + max(1, -(-byte_count // _PACKET_BYTES)) / _PACKETS)
        return at * _MICROFRAME_S


class _Backend(EmulatedUsbBackend):
    """An emulated device that notes its transfers."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.transfers = Transfers()

    def bulk_write(self, *words: Any) -> int:
        self.transfers.begin()
        count = super().bulk_write(*words)
        self.transfers.end(count)
        return count

    def bulk_read(self, *words: Any) -> int:
        self.transfers.begin()
        count = super().bulk_read(*words)
        self.transfers.end(count)
        return count


def _measure(run: Run) -> Mapping[str, float]:
    visit_count = run.size(60, 3)
    found: dict[str, float] = {}
    with VirtualCartridge.create(run.directory / "bus.tap", "lto5", GIB) as cartridge:
        backend = _Backend(Target(cartridge))

        async def work() -> None:
            drive = await TapeDrive.open(BotTransport(open_endpoints("usb", backend), settle_s=0))
            await drive.rewind()
            backend.transfers = Transfers()
            buffers = RecordBuffers(RECORD_BYTES_DEFAULT)
            feed = RecordFeed(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_assemble, feed, buffers, visit_count)
                await append(drive, feed, buffers, AppendProgress())
            found.update(_figures("writing", backend.transfers, visit_count))
            await drive.rewind()
            backend.transfers = Transfers()
            into = [array("B", bytes(RECORD_BYTES_DEFAULT)) for _ in range(_VISIT_COUNT)]
            for _ in range(visit_count):
                await drive.read_blocks(into)
            found.update(_figures("reading", backend.transfers, visit_count))
            await drive.aclose()

        trio.run(work)
    return found


async def _assemble(feed: RecordFeed, buffers: RecordBuffers, visit_count: int) -> None:
    for _ in range(visit_count):
        await feed.put([buffers.take() for _ in range(_VISIT_COUNT)])
    feed.finish()
    feed.end()


def _figures(words: str, transfers: Transfers, visit_count: int) -> Mapping[str, float]:
    # Only whole visits: not the filemark behind them.
    count = 3 * _VISIT_COUNT * visit_count
    del transfers.byte_counts[count:], transfers.pauses_s[count:]
    data_bytes = visit_count * _VISIT_COUNT * RECORD_BYTES_DEFAULT
    limit_bytes_per_s = _PACKET_BYTES * _PACKETS / _MICROFRAME_S
    pauses_s = transfers.typical_pauses_s()
    return {
        f"{words}: of the bus limit": 100 * data_bytes / transfers.bus_s() / limit_bytes_per_s,
        f"{words}: pause between transfers": 1e6 * statistics.mean(pauses_s),
    }


ROWS: Final = (
    Row(
        "bus",
        "records of the default size through the transport to the emulated device, what they would "
        "take on USB 2.0 at high speed: 53.2 MB/s of bulk data at most",
        {
            "writing: of the bus limit": Figure("%", at_least=95),
            "writing: pause between transfers": Figure("us"),
            "reading: of the bus limit": Figure("%", at_least=95),
            "reading: pause between transfers": Figure("us"),
        },
        _measure,
        in_every_place=False,
    ),
)
