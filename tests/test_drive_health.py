"""What drives say of their health: asked once, believed with care, kept where a drive forgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tape_rig import MIB, Rigs, buffer, record, write_files

from tapefs.daemon.drives import open_drive
from tapefs.emulator.fault_plan import FaultPlan
from tapefs.emulator.personality import PERSONALITIES, Personality
from tapefs.errors import UsageError
from tapefs.scsi import cdb as c
from tapefs.scsi.completion import Completion
from tapefs.scsi.log import LogPage
from tapefs.scsi.sense import MediumError, PowerOnReset, Sense, SenseKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KNOWN_PAGES = {0x02, 0x03, 0x0C, 0x14, 0x17, 0x1B, 0x2E, 0x32}


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    made = Rigs(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("personality", PERSONALITIES.values(), ids=PERSONALITIES.keys())
async def test_each_drive_is_asked_for_what_it_has_and_for_nothing_else(
    rigs: Rigs, personality: Personality
) -> None:
    rig = rigs(personality.name)
    drive = await rig.open()
    position = await drive.position() if personality.knows_position else None
    rig.wire.forget()
    health = await drive.health()
    pages = [
        command.page for command in rig.wire.sent(c.LogSense) if isinstance(command, c.LogSense)
    ]
    assert len(pages) == len(set(pages)), "no page is read twice"
    assert set(pages) <= KNOWN_PAGES | {0x00}
    assert (health.alerts == frozenset()) is personality.has_tape_alert
    assert (health.volume is not None) is personality.has_volume_statistics
    assert (health.device is not None) is personality.has_device_statistics
    assert (health.cleaning_requested is False) is personality.has_sequential_access_log
    assert (health.compression is not None) is (personality.compression_log_page != 0)
    assert (health.write_errors is not None) is personality.has_log_pages
    assert (health.attributes is not None) is (
        personality.has_attributes and not personality.has_volume_statistics
    )
    if position is not None:
        assert await drive.position() == position, "asking moves no tape"
    # A second look does not ask again for what there is not.
    rig.wire.forget()
    await drive.health()
    refused_before = personality.has_attributes is False
    assert bool(rig.wire.sent(c.ReadAttribute)) is (
        not refused_before and not personality.has_volume_statistics
    )


async def test_errors_are_counted_and_alerts_are_told_once(rigs: Rigs) -> None:
    rig = rigs("lto5")
    drive = await rig.open()
    await write_files(drive, 2)
    rig.target.faults.unreadable[0] = 1
    await drive.rewind()
    with pytest.raises(MediumError):
        await drive.read_block(buffer())
    health = await drive.health()
    assert health.alerts == frozenset((3, 5))
    assert health.read_errors is not None
    assert health.read_errors.uncorrected_count == 1
    assert (await drive.health()).alerts == frozenset(), "reading clears them"


async def test_a_plan_raises_alerts_and_wears_a_tape_out(rigs: Rigs) -> None:
    rig = rigs("lto5")
    plan = "drive alert flags=4,20 skip=1 times=2\ndrive cleaning\nmedium worn corrected=8"
    FaultPlan.parse(plan).apply(rig.target)
    drive = await rig.open()
    await drive.rewind()
    await drive.write_block(record(1, MIB))
    looks = [await drive.health() for _ in range(4)]
    raised = [sorted(look.alerts or ()) for look in looks]
    assert raised == [[], [4, 20], [4, 20], []]
    assert looks[0].cleaning_requested is True
    assert looks[0].write_errors is not None
    assert looks[0].write_errors.corrected_count == 8
    assert looks[0].read_errors is not None
    assert looks[0].read_errors.corrected_count == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("drive alert flags=65", "flags is a list of TapeAlert flags from 1 to 64, such as 20,21"),
        ("drive alert flags=4;5", "flags is a list of TapeAlert flags from 1 to 64"),
        ("drive alert", "'drive alert' needs flags=..."),
        ("drive cleaning flags=20", "'drive cleaning' has no option 'flags'"),
        ("drive smokes", "'drive' is followed by 'alert' or 'cleaning'"),
        ("medium worn", "'medium worn' wants corrected=N, a whole number from 0"),
    ],
)
def test_a_plan_that_makes_no_sense(line: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        FaultPlan.parse(line)
    assert sentence in str(caught.value)


async def test_a_bridge_that_answers_with_another_page_is_not_believed(rigs: Rigs) -> None:
    rig = rigs("lto5")
    drive = await rig.open()
    listed = Completion(True, data=memoryview(bytes((0, 0, 0, 2, 0x02, 0x2E))))
    wrong = Completion(True, data=memoryview(LogPage(0x2F, {4: b"\1", 20: b"\1"}).pack()))
    rig.wire.answer(c.LogSense, listed, wrong, wrong)
    health = await drive.health()
    assert health.alerts is None
    assert health.write_errors is None


async def test_a_bridge_that_refuses_the_list_is_asked_for_nothing(rigs: Rigs) -> None:
    rig = rigs("lto5")
    drive = await rig.open()
    rig.wire.answer(c.LogSense, Sense(SenseKey.ILLEGAL_REQUEST, 0x20))
    rig.wire.forget()
    assert (await drive.health()).alerts is None
    assert len(rig.wire.sent(c.LogSense)) == 1


async def test_a_reset_drive_is_noticed_and_not_taken_for_a_healthy_one(rigs: Rigs) -> None:
    rig = rigs("lto5")
    drive = await rig.open()
    rig.target.reset()
    with pytest.raises(PowerOnReset):
        await drive.health()


@pytest.mark.parametrize("personality", PERSONALITIES)
async def test_no_wire_chokes_on_it(tmp_path: Path, personality: str) -> None:
    """ATAPI bridges take no command of 16 bytes: one would cost a reset and the position."""
    name = f"virtual:{tmp_path}/a.tap?personality={personality}&capacity=64M"
    async with open_drive(name, create=True) as opened:
        await opened.drive.health()
        await opened.drive.health()
