"""Names of files whose content waits for a later segment: what the earlier segment must say."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from volume_rig import Rig, dump

from tapefs.config import Config

if TYPE_CHECKING:
    from pathlib import Path

# One file a segment, so that the second one waits.
CONFIG = Config(settle_s=0.0, idle_s=3600.0, commit_s=0.01, segment_members_max=1)


async def test_a_waiting_file_has_the_old_name_of_a_directory(tmp_path: Path) -> None:
    rig = Rig(tmp_path, config=CONFIG)
    await rig.format()
    async with rig.mounted() as user:
        user.mkdir("a")
        await user.write("a/inside", b"1")
        await user.sync()
        user.rename("a", "moved")
        await user.write("first", b"2")
        await user.write("a", b"3")
        await user.sync()
        wanted, kept = await user.snapshot(), dump(user.volume.view)
        user.crash()
    assert await rig.tape_dump() == kept
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.snapshot() == wanted
        assert await user.read("a") == b"3"


async def test_a_waiting_file_replaces_the_old_version_only_when_it_comes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, config=CONFIG)
    await rig.format()
    async with rig.mounted() as user:
        await user.write("config", b"old")
        await user.sync()
        await user.write("first", b"1")
        await user.write("config.new", b"new")
        user.rename("config.new", "config")
        user.rename("first", "renamed")
        await user.sync()
        segments = list(user.volume.view.tape_files())
        assert len(segments) == 3
        user.crash()
    with rig.tap.open("r+b") as tap:
        # Without the last segment, the old version is still there, under its name.
        tap.truncate(tap.seek(0, 2) - segments[-1].record_count * (rig.label.record_bytes + 8) - 4)
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.read("config") == b"old"
        assert await user.read("renamed") == b"1"
