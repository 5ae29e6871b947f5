"""Each kind of drive, as tapefs drives it through the wire: what is written comes back."""

from __future__ import annotations

import re
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from usb_rig import Unthreaded

from tapefs.drive import TapeAddress, TapeDrive
from tapefs.emulator.descriptors import UsbIdentity
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.personality import PERSONALITIES, Personality
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.scsi.sense import EndOfData, FilemarkDetected
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DOCUMENT = (Path(__file__).parent.parent / "docs" / "personalities.md").read_text()
CAPACITY_BYTES = 32 << 20


@pytest.fixture(params=list(PERSONALITIES.values()), ids=list(PERSONALITIES))
def personality(request: pytest.FixtureRequest) -> Personality:
    kind: Personality = request.param
    return kind


@pytest.fixture
async def backend(tmp_path: Path, personality: Personality) -> AsyncIterator[EmulatedUsbBackend]:
    path = tmp_path / "cartridge.tap"
    with VirtualCartridge.create(path, personality.name, CAPACITY_BYTES) as cartridge:
        target = Target(cartridge)
        yield EmulatedUsbBackend(
            target,
            identity=UsbIdentity.of(personality, target.serial),
            subclass=personality.usb_subclass,
        )


@pytest.fixture
async def drive(backend: EmulatedUsbBackend) -> AsyncIterator[TapeDrive]:
    transport = BotTransport(Unthreaded(open_endpoints("usb", backend)), settle_s=0)
    drive = await TapeDrive.open(transport)
    yield drive
    await drive.aclose()


def record(number: int, size_bytes: int) -> array[int]:
    return array("B", bytes((number + place) & 0xFF for place in range(256)) * (size_bytes // 256))


async def read(drive: TapeDrive, size_bytes: int) -> array[int]:
    into = array("B", bytes(size_bytes))
    assert await drive.read_block(into) == size_bytes
    return into


async def test_what_is_written_comes_back(
    drive: TapeDrive, backend: EmulatedUsbBackend, personality: Personality
) -> None:
    sizes = [64 << 10] * 5 + [256 << 10]
    await drive.rewind()
    addresses = {}
    for file in range(3):
        for number, size_bytes in enumerate(sizes):
            addresses[file, number] = await drive.position()
            await drive.write_block(record(10 * file + number, size_bytes))
        await drive.write_filemarks(1)
    end = await drive.position()
    await drive.locate(TapeAddress(0, 0, 0))
    for file in range(3):
        for number, size_bytes in enumerate(sizes):
            assert await read(drive, size_bytes) == record(10 * file + number, size_bytes)
        with pytest.raises(FilemarkDetected):
            await read(drive, sizes[0])
    with pytest.raises(EndOfData):
        await read(drive, sizes[0])
    there = addresses[1, 2]
    assert there.block is not None
    assert there.block_in_file is not None
    await drive.locate(TapeAddress(there.block, 1, there.block_in_file))
    assert await read(drive, sizes[0]) == record(12, sizes[0])
    found = await drive.space_to_end_of_data()
    assert found.block == end.block
    await drive.write_block(record(99, sizes[0]))
    await drive.write_filemarks(1)
    assert backend.device.violations == []
    assert backend.device.server.personality is personality  # type: ignore[attr-defined]


async def test_early_warning_comes_before_the_end(
    drive: TapeDrive, personality: Personality
) -> None:
    await drive.rewind()
    size_bytes = 256 << 10
    for count in range(CAPACITY_BYTES // size_bytes):
        if (await drive.write_block(record(count, size_bytes))).early_warning:
            break
    else:
        pytest.fail("no early warning")
    assert CAPACITY_BYTES * 9 // 10 < count * size_bytes < CAPACITY_BYTES
    assert (await drive.write_filemarks(1)).early_warning


async def test_it_tells_who_it_is(drive: TapeDrive, personality: Personality) -> None:
    identity = drive.identity
    assert (identity.vendor, identity.product) == (personality.vendor, personality.product)
    assert len(identity.serial) > 5
    assert len(personality.vendor) <= 8
    assert len(personality.product) <= 16
    assert len(personality.revision) == 4
    capacity = await drive.capacity()
    tells = personality.capacity_log_unit_bytes or personality.has_volume_statistics
    assert (capacity is not None) == bool(tells)


def test_the_document_says_what_each_is(personality: Personality) -> None:
    (row,) = re.findall(rf"^\| `{re.escape(personality.name)}` \|(.*)$", DOCUMENT, re.MULTILINE)
    cells = (cell.strip() for cell in row.split("|")[:8])
    name, size, blocks, position, locate, room, chip, health = cells
    assert name == f"{personality.vendor} {personality.product}"
    assert chip.startswith("yes" if personality.has_attributes else "no")
    knows = personality.has_read_position and personality.knows_position
    assert ("long" in position) == (knows and personality.has_long_position)
    assert ("short" in position) == knows
    assert ("(10)" in locate) == personality.has_locate
    assert ("(16)" in locate) == personality.has_wide_addresses
    assert ("31h" in room) == bool(personality.capacity_log_unit_bytes)
    assert ("17h" in room) == personality.has_volume_statistics
    health_pages = {
        "02h": personality.has_log_pages,
        "0Ch": personality.has_sequential_access_log,
        "14h": personality.has_device_statistics,
        "17h": personality.has_volume_statistics,
        "1Bh": personality.compression_log_page == 0x1B,
        "2Eh": personality.has_tape_alert,
        "32h": personality.compression_log_page == 0x32,
    }
    assert {page: page in health for page in health_pages} == health_pages
    if personality.name != "tgt":
        assert f"{personality.block_bytes_max:,}" in blocks or personality.fixed_only
        assert ("even" in blocks) == (personality.granularity_exponent == 1)
        gigabytes = personality.capacity_bytes / 1e9
        wanted = f"{gigabytes / 1000:g} TB" if gigabytes >= 1000 else f"{gigabytes:g} GB"
        assert size == f"{wanted}, {personality.rate_bytes_per_s / 1e6:g} MB/s"
