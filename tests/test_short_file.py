"""A short tape file is read once, from its start to its filemark, and looked at in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tape_rig import RECORD_BYTES, Rigs, buffer, record, write_files

from tapefs.drive import TapeAddress
from tapefs.geometry import Geometry
from tapefs.scsi.cdb import Locate10, Locate16, Space6, Space16
from tapefs.volume import short_file
from tapefs.volume.short_file import read_short

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GEOMETRY = Geometry(RECORD_BYTES)
# Behind two records and a filemark: three records.
START = TapeAddress(3, 1, 0)


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    made = Rigs(tmp_path)
    yield made
    made.close()


async def test_it_is_read_without_turning_round(rigs: Rigs) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, 2, 3, 1)
    await drive.locate(START)
    rig.wire.forget()
    short = await read_short(drive, START, 3, GEOMETRY)
    assert short is not None
    for number in (2, 0):
        await short.locate(TapeAddress(START.block + number, 1, number))
        into = buffer()
        assert await short.read_block(into) == RECORD_BYTES
        assert into == record(100 + number)
    assert not rig.wire.sent(Locate10, Locate16, Space6, Space16)
    # The head stands where the next one begins.
    assert (await drive.position()).block == 7


@pytest.mark.parametrize("count", [0, 2, 4, 5])
async def test_a_list_that_is_wrong_is_not_believed(rigs: Rigs, count: int) -> None:
    drive = await rigs().open()
    await write_files(drive, 2, 3, 1)
    await drive.locate(START)
    assert await read_short(drive, START, count, GEOMETRY) is None


async def test_what_is_long_is_left_alone(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rigs()
    drive = await rig.open()
    await write_files(drive, 2, 3, 1)
    await drive.locate(START)
    monkeypatch.setattr(short_file, "SHORT_BYTES_MAX", 3 * RECORD_BYTES - 1)
    rig.wire.forget()
    assert await read_short(drive, START, 3, GEOMETRY) is None
    assert not rig.wire.log


async def test_the_end_of_data_is_no_end_of_a_tape_file(rigs: Rigs) -> None:
    drive = await rigs().open()
    await write_files(drive, 2)
    await drive.write_block(record(100))
    await drive.locate(START)
    assert await read_short(drive, START, 1, GEOMETRY) is None
