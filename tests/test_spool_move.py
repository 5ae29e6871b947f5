"""What waits for a tape is listed, and taken elsewhere: at worst it is twice, never lost.

`TAPEFS_CRASH_POINTS=all` lets a move die at every call that changes something, else at a spread.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest
import trio
from crash_rig import logs_expected, scratch
from test_write_errors import CONFIG, FailingWire, Failure
from volume_rig import Rig
from workload import noise

from tapefs import cli
from tapefs.archive import moving, waiting
from tapefs.archive.catalogs import LIVE_NAME, VIEW_NAME
from tapefs.catalog import Catalog, Snapshot, remove_database
from tapefs.emulator.transport import TargetTransport
from tapefs.errors import DriveBusy, ExitCode, MountpointUnusable, NotFinalized, WrongTape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVERY_POINT = os.environ.get("TAPEFS_CRASH_POINTS") == "all"
FILES = {"d/one": noise(1, 200_000), "d/new": noise(2, 70_000), "top": noise(3, 10), "hole": b""}


class Death(BaseException):
    """The process that moves ends here."""


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """A volume whose tape takes nothing more, with files waiting, not mounted."""
    return await worn_out(tmp_path)


async def worn_out(directory: Path) -> Rig:
    rig = Rig(directory, config=CONFIG)
    rig.state = directory / "state" / "volumes"
    await rig.format()
    async with rig.mounted() as user:
        user.mkdir("d")
        await user.write("d/one", b"old content")
        await user.write("kept", noise(9, 50_000))
        await user.write("renamed", b"x")
    rig.wire = lambda target: FailingWire(target, Failure.MEDIUM, 1, 1000)
    with logs_expected(up_to=logging.ERROR):
        async with rig.mounted() as user:
            for path in ("d/one", "d/new", "top"):
                await user.write(path, FILES[path])
            user.tree.link(user.find("d/new").ino, *user.place("link"))
            user.tree.set_attributes(user.find("top").ino, mode=0o640)
            user.tree.set_xattr(user.find("top").ino, b"user.note", b"\0\xff")
            user.tree.make(*user.place("symlink"), stat.S_IFLNK | 0o777, 0, 0, target=b"d/one")
            user.mkdir("empty")
            await user.write("hole", b"")
            await user.truncate("hole", 5_000_000)
            await user.write("hole", b"end", 4_000_000)
            with pytest.raises(NotFinalized):
                await user.sync()
            user.crash()
    rig.wire = TargetTransport
    return rig


def volume_of(rig: Rig) -> waiting.WaitingVolume:
    return waiting.find_volume(rig.state.parent, rig.label.name)


def nothing(_: object) -> None:
    """Progress is not looked at."""


def assert_all_there(target: Path) -> None:
    for path in ("d/one", "d/new", "top"):
        assert (target / path).read_bytes() == FILES[path]
    assert (target / "link").stat().st_ino == (target / "d/new").stat().st_ino
    assert (target / "symlink").readlink() == target.__class__("d/one")
    assert stat.S_IMODE((target / "top").stat().st_mode) == 0o640
    assert os.getxattr(target / "top", "user.note") == b"\0\xff"
    assert (target / "empty").is_dir()
    hole = (target / "hole").read_bytes()
    assert hole == bytes(4_000_000) + b"end" + bytes(999_997)
    assert sorted(os.listdir(target)) == ["d", "empty", "hole", "link", "symlink", "top"]


async def test_everything_that_waits_is_moved_and_forgotten(rig: Rig, tmp_path: Path) -> None:
    volume = volume_of(rig)
    assert volume.files_count == 4
    listed = {file.path.decode(): file.size_bytes for file in waiting.waiting_files(volume)}
    assert listed == {"d/one": 200_000, "d/new": 70_000, "top": 10, "hole": 5_000_000}
    target = tmp_path / "target"
    target.mkdir()
    moved = moving.move(volume, target, nothing)
    assert (moved.files_count, moved.left, moved.changes_count) == (4, [], 0)
    assert_all_there(target)
    after = volume_of(rig)
    assert (after.files_count, after.waiting_bytes, after.changes_count) == (0, 0, 0)
    for path in (volume.directory / "spool").rglob("*"):
        assert path.is_dir() or path.read_bytes() in (noise(9, 50_000), b"x"), "only caches stay"
    # The old tape says again what it said before.
    async with rig.mounted() as user:
        assert await user.read("d/one") == b"old content"
        assert await user.read("kept") == noise(9, 50_000)
        assert not user.volume.catalog.owes_tape()
        names = {name for _, name, _ in user.volume.catalog.children(1)}
        assert names == {b"d", b"kept", b"renamed"}
        shown = await user.snapshot()
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.snapshot() == shown


async def test_a_move_may_die_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = await worn_out(tmp_path)
    calls = ("mkdir", "open", "pwrite", "fsync", "rename", "link", "unlink", "utime", "symlink")
    at, tried, finished = 0, 0, False
    while not finished:
        at += 1 if EVERY_POINT else 11
        with scratch() as directory:
            shutil.copytree(source.directory / "state", directory / "state")
            target = directory / "target"
            target.mkdir()
            volume = waiting.find_volume(directory / "state", source.label.name)
            with monkeypatch.context() as patched:
                count = [at]
                for name in calls:
                    patched.setattr(os, name, dying(getattr(os, name), count))
                for name in ("delete_staged", "cut_extents", "confirm", "unlink", "commit"):
                    patched.setattr(Catalog, name, dying(getattr(Catalog, name), count))
                try:
                    moving.move(volume, target, nothing)
                    finished = True
                except Death:
                    tried += 1
            again = moving.move(
                waiting.find_volume(directory / "state", volume.uuid), target, nothing
            )
            assert again.left == []
            assert_all_there(target)
            left = waiting.find_volume(directory / "state", volume.uuid)
            assert (left.files_count, left.changes_count) == (0, 0)
            with Snapshot.open(left.directory / LIVE_NAME) as snapshot:
                found = snapshot.lookup(snapshot.lookup(1, b"d") or 0, b"one")
                assert found is not None
                inode, extents = snapshot.inode(found), snapshot.extents(found)
                assert inode is not None
                assert (inode.size, [extent.length for extent in extents]) == (11, [11])
    print(f"{tried} places tried")
    assert tried > 20


def dying(call: Callable[..., object], count: list[int]) -> Callable[..., object]:
    """`call`, unless this is the one before which the process ends."""

    def called(*arguments: object, **options: object) -> object:
        count[0] -= 1
        if count[0] == 0:
            raise Death
        return call(*arguments, **options)

    return called


async def test_what_is_partly_on_tape_stays_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(tmp_path, config=CONFIG)
    rig.state = tmp_path / "state" / "volumes"
    await rig.format()
    async with rig.mounted() as user:
        await user.write("large", noise(1, 3_000_000))
        await user.sync()
        user.evict_everything()
        rig.wire = TargetTransport
        await user.write("large", b"patch", 1_000_000)
        await user.write("new", b"new")
        await user.fsync("new")
        user.crash()
    target = tmp_path / "target"
    target.mkdir()
    words = ["--state-dir", str(tmp_path / "state"), "--json"]
    assert cli.main(["spool", "list", "RIG", *words]) == ExitCode.OK
    listed = json.loads(capsys.readouterr().out)
    assert [(file["path"], file["whole"]) for file in listed["files"]] == [
        ("large", False),
        ("new", True),
    ]
    code = cli.main(["spool", "move", "RIG", "--to", str(target), *words])
    assert code == ExitCode.NOT_FINALIZED
    answer = json.loads(capsys.readouterr().out)
    assert [left["path"] for left in answer["left"]] == ["large"]
    assert "only on its own tape" in answer["left"][0]["reason"]
    assert (target / "new").read_bytes() == b"new"
    assert not (target / "large").exists()
    async with rig.mounted() as user:
        assert (await user.read("large"))[1_000_000:1_000_005] == b"patch"


@pytest.mark.parametrize("rebuilt", [False, True])
async def test_a_tape_that_was_written_by_another_host(
    rig: Rig, tmp_path: Path, rebuilt: bool
) -> None:
    older = rig.tap.read_bytes()
    async with rig.mounted(state=tmp_path / "other host") as user:
        await user.write("theirs", b"theirs")
        await user.write("hole", b"their hole")
    with logs_expected(up_to=logging.ERROR), pytest.raises(WrongTape, match="spool move"):
        async with rig.mounted():
            pass
    words = [f"virtual:{rig.tap}", "--state-dir", str(tmp_path / "state")]
    for command in ("verify", "generations"):
        assert await trio.to_thread.run_sync(cli.main, [command, *words]) == ExitCode.WRONG_TAPE
    # The refusal changed nothing: the tape as this host knows it is still taken.
    newer = rig.tap.read_bytes()
    rig.tap.write_bytes(older)
    async with rig.mounted() as user:
        assert await user.read("top") == FILES["top"]
        user.crash()
    rig.tap.write_bytes(newer)
    if rebuilt:
        # As `tapefs rebuild` does: inode numbers of the other host's files are in the view now.
        remove_database(volume_of(rig).directory / VIEW_NAME)
        with logs_expected(up_to=logging.ERROR), pytest.raises(WrongTape, match="spool move"):
            async with rig.mounted():
                pass
    target = tmp_path / "target"
    target.mkdir()
    moved = moving.move(volume_of(rig), target, nothing)
    assert (moved.left, moved.changes_count) == ([], 0)
    assert_all_there(target)
    async with rig.mounted() as user:
        assert await user.read("hole") == b"their hole"
        assert await user.read("d/one") == b"old content"


async def test_nothing_at_the_new_place_is_overwritten(rig: Rig, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "top").write_bytes(b"mine")
    moved = moving.move(volume_of(rig), target, nothing)
    assert [path for path, _ in moved.left] == [b"top"]
    assert (target / "top").read_bytes() == b"mine"
    assert volume_of(rig).files_count == 1
    (target / "top").unlink()
    assert moving.move(volume_of(rig), target, nothing).left == []
    assert_all_there(target)


async def test_a_name_that_is_taken_while_the_copy_is_made_is_not_given(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    fsync = os.fsync

    def taking(fd: int) -> None:
        if not (target / "top").exists():
            (target / "top").write_bytes(b"mine")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", taking)
    moved = moving.move(volume_of(rig), target, nothing)
    assert [path for path, _ in moved.left] == [b"top"]
    assert (target / "top").read_bytes() == b"mine"
    assert sorted(os.listdir(target)) == ["d", "empty", "hole", "link", "symlink", "top"]


async def test_where_there_are_no_hard_links_files_get_their_names_all_the_same(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    taken: list[str] = []

    def refusing(source: bytes, name: bytes, **_: object) -> None:
        if name == b"hole":
            (target / "hole").write_bytes(b"mine")
            taken.append("hole")
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source)

    monkeypatch.setattr(os, "link", refusing)
    moved = moving.move(volume_of(rig), target, nothing)
    assert taken == ["hole"]
    assert {path for path, _ in moved.left} == {b"hole", b"link"}
    assert (target / "hole").read_bytes() == b"mine"
    assert (target / "top").read_bytes() == FILES["top"]
    assert (target / "d/one").read_bytes() == FILES["d/one"]


async def test_what_an_interrupted_move_left_half_named_is_never_written_into(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died between giving the name and taking the first one away; then somebody moved it."""
    target = tmp_path / "target"
    target.mkdir()
    with monkeypatch.context() as patched:
        unlink = os.unlink

        def dying_after_a_link(name: bytes | str, **options: int) -> None:
            if isinstance(name, bytes) and (target / "top").exists():
                raise Death
            unlink(name, **options)

        patched.setattr(os, "unlink", dying_after_a_link)
        with pytest.raises(Death):
            moving.move(volume_of(rig), target, nothing)
    assert len(list(target.glob(".tapefs-moving-*"))) == 1
    (target / "top").rename(tmp_path / "elsewhere")
    assert moving.move(volume_of(rig), target, nothing).left == []
    assert (tmp_path / "elsewhere").read_bytes() == FILES["top"]
    assert (tmp_path / "elsewhere").stat().st_nlink == 1
    assert_all_there(target)


async def test_a_name_that_was_given_to_another_file_stays_a_change_that_the_tape_lacks(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, config=CONFIG)
    rig.state = tmp_path / "state" / "volumes"
    await rig.format()
    async with rig.mounted() as user:
        await user.write("document", b"first")
        user.tree.link(user.find("document").ino, *user.place("other name"))
        await user.sync()
        await user.write("document.new", b"second")
        user.rename("document.new", "document")
        await user.fsync("document")
        user.crash()
    target = tmp_path / "target"
    target.mkdir()
    moved = moving.move(volume_of(rig), target, nothing)
    assert (moved.files_count, moved.left) == (1, [])
    assert (target / "document").read_bytes() == b"second"
    # What the tape still calls "document" was deleted, and the tape does not say so.
    assert moved.changes_count > 0
    async with rig.mounted() as user:
        names = {name for _, name, _ in user.volume.catalog.children(1)}
        assert names == {b"other name"}
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        names = {name for _, name, _ in user.volume.catalog.children(1)}
        assert names == {b"other name"}, "the deletion went to tape with the next unmount"


async def test_no_symbolic_link_leads_out_of_the_new_place(rig: Rig, tmp_path: Path) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "d").symlink_to(outside)
    moved = moving.move(volume_of(rig), target, nothing)
    assert {path for path, _ in moved.left} == {b"d/one", b"d/new"}
    assert list(outside.iterdir()) == []


async def test_a_mounted_volume_is_not_touched(rig: Rig, tmp_path: Path) -> None:
    async with rig.mounted():
        assert volume_of(rig).files_count == 4
        with pytest.raises(DriveBusy, match="is mounted"):
            moving.move(volume_of(rig), tmp_path, nothing)


async def test_a_target_that_is_no_directory(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(MountpointUnusable):
        moving.move(volume_of(rig), tmp_path / "missing", nothing)
    assert volume_of(rig).files_count == 4


async def test_volumes_are_listed_and_found(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--state-dir", str(tmp_path / "state")]
    assert cli.main(["spool", "list", *words]) == 0
    out = capsys.readouterr().out
    assert "RIG" in out
    assert str(rig.label.volume_uuid)[:8] in out
    assert cli.main(["spool", "list", str(rig.label.volume_uuid)[:8], *words]) == 0
    assert "d/new" in capsys.readouterr().out
    assert cli.main(["spool", "list", "WRONG", *words]) == ExitCode.USAGE
    assert cli.main(["spool", "list", "--state-dir", str(tmp_path / "none")]) == 0


async def test_a_copy_that_is_there_already_is_made_to_last_before_it_is_relied_on(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's own cp -p: nobody has written that out yet."""
    target = tmp_path / "target"
    target.mkdir()
    volume = volume_of(rig)
    with Snapshot.open(volume.directory / LIVE_NAME) as snapshot:
        inode = snapshot.inode(snapshot.lookup(1, b"top") or 0)
    assert inode is not None
    (target / "top").write_bytes(FILES["top"])
    os.utime(target / "top", ns=(inode.atime_ns, inode.mtime_ns))
    synced: set[int] = set()
    fsync = os.fsync

    def noting(fd: int) -> None:
        synced.add(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    assert moving.move(volume, target, nothing).left == []
    assert (target / "top").stat().st_ino in synced
