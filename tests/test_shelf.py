"""What was ever mounted here stays searchable, in use or not, and nobody is disturbed by that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from volume_rig import Rig

from tapefs.archive import known_volumes, waiting
from tapefs.archive.catalogs import LIVE_NAME
from tapefs.catalog import remove_database
from tapefs.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def new_rig(directory: Path) -> Rig:
    rig = Rig(directory)
    rig.state = directory / "state" / "volumes"
    return rig


async def test_a_volume_keeps_its_name_while_its_view_is_written(tmp_path: Path) -> None:
    rig = new_rig(tmp_path)
    await rig.format()
    async with rig.mounted() as user:
        await user.write("f", b"x")
        await user.sync()
        # As `TapeView.apply` does for as long as a journal is.
        with user.volume.view._writer.transaction():
            (found,) = waiting.volumes(rig.state.parent)
        assert found.name == rig.label.name
        user.crash()


async def test_a_volume_that_is_only_a_tape_view_is_known(tmp_path: Path) -> None:
    rig = new_rig(tmp_path)
    await rig.format()
    async with rig.mounted() as user:
        await user.write("f", b"x")
    uuid = str(rig.label.volume_uuid)
    remove_database(rig.state / uuid / LIVE_NAME)
    for wanted in (rig.label.name, uuid, uuid[:5]):
        assert known_volumes.find_volume(rig.state.parent, wanted).uuid == uuid
    with pytest.raises(UsageError, match="never mounted"):
        waiting.find_volume(rig.state.parent, uuid)
    assert list(waiting.volumes(rig.state.parent)) == []
    with pytest.raises(UsageError, match="'tapefs volumes' lists them"):
        known_volumes.find_volume(rig.state.parent, "")
