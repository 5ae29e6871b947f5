"""Salvage (P5): the host is lost, a segment is torn, and what is whole in it comes back."""

from __future__ import annotations

import random
import shutil
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from torn_rig import HandMade, append, cut, tape_file, whole_members
from volume_rig import RECORD_BYTES, Rig, User, dump

from tapefs.archive import salvage_journal
from tapefs.archive.catalogs import LIVE_NAME, VIEW_NAME, may_salvage
from tapefs.archive.contents import FileState
from tapefs.catalog import remove_database
from tapefs.entries import TapeFileKind
from tapefs.errors import DataMismatch, WrongTape
from tapefs.volume.pax import Member, MemberKind, TapeFileHead

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Snapshot = dict[str, tuple[Any, ...]]
MODE, UID, GID, NLINK, SIZE, MTIME, TARGET, XATTRS, CONTENT = range(9)


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.format()
    return rig


def make(user: User, path: str, mode: int, **more: Any) -> int:
    return user.tree.make(*user.place(path), mode, 1000, 1001, **more).ino


async def write_first(user: User) -> None:
    """What a closed segment holds."""
    user.mkdir("old")
    await user.write("old/rewritten", content(1, 3_000))
    await user.write("old/grown", content(2, 200_000))
    await user.write("old/untouched", content(3, 5_000))
    await user.write("old/replaced", content(4, 1_000))
    await user.sync()


async def write_second(user: User) -> None:
    """What is going to be torn: every kind of member, and names of every length."""
    for folder in ("new", "new/deep", "new/deep/er", "old/fresh"):
        make(user, folder, stat.S_IFDIR | 0o2750)
    for number in range(120):
        folder = ("new", "new/deep", "new/deep/er", "old/fresh", "old")[number % 5]
        path = f"{folder}/{'n' * (number % 3 * 60)}{number:03}"
        ino = make(user, path, stat.S_IFREG | 0o640)
        await user.write(path, content(number, number * 37))
        if number % 7 == 0:
            user.tree.set_xattr(ino, b"user.number", b"%d\0\xff" % number)
        if number % 11 == 0:
            user.tree.link(ino, *user.place(f"new/link{number}"))
    await user.write("new/big", content(5, 250_000))
    await user.write("new/deep/big", content(6, 150_000))
    await user.write("old/rewritten", content(7, 2_000))
    await user.write("old/replaced.tmp", content(8, 1_500))
    user.rename("old/replaced.tmp", "old/replaced")
    for number in range(60):
        user.tree.make(
            *user.place(f"new/sym{number}"), stat.S_IFLNK | 0o777, 7, 8, target=b"t" * 300
        )
    make(user, "new/pipe", stat.S_IFIFO | 0o600)
    make(user, "new/null", stat.S_IFCHR | 0o666, rdev=0x103)
    make(user, "new/socket", stat.S_IFSOCK | 0o600)
    await user.sync()


@dataclass
class Torn:
    """What a host leaves that dies right after its second segment, which is then cut."""

    rig: Rig
    # The tree after the first segment and after the second.
    before: Snapshot
    after: Snapshot
    image: bytes
    replaced_ino: int

    @property
    def records(self) -> list[bytes]:
        """The second segment's."""
        return [spot.data for spot in tape_file(self.image, 2) if spot.data is not None]

    def lose(self, record_count: int, *, closed: bool = False) -> Snapshot:
        """Cut the segment, lose the host; returns what must come back."""
        self.rig.tap.write_bytes(cut(self.image, 2, record_count, closed=closed))
        shutil.rmtree(self.rig.state, ignore_errors=True)
        whole = set(whole_members(self.records, record_count))
        tree = expected(self.before, self.after, whole)
        if "old/replaced" in whole:
            # Another inode has the name now. Nobody can tell whether it was renamed over, or the
            # old one had gone to another name before, so the old one stays as well.
            tree[f"/old/replaced.tapefs-ino-{self.replaced_ino}"] = self.before["/old/replaced"]
        return tree


@pytest.fixture
async def torn(rig: Rig) -> Torn:
    """Two segments and a crash."""
    async with rig.mounted() as user:
        await write_first(user)
        before = await user.snapshot()
        replaced_ino = user.find("old/replaced").ino
        shutil.copytree(user.directory, rig.directory / "earlier" / user.directory.name)
        await write_second(user)
        after = await user.snapshot()
        user.crash()
    return Torn(rig, before, after, rig.tap.read_bytes(), replaced_ino)


def expected(before: Snapshot, after: Snapshot, whole: set[str]) -> Snapshot:
    """What must be there when the members `whole` of the second segment are."""
    tree = before | {path: row for path, row in after.items() if path[1:] in whole}
    for path in sorted(tree):
        parent = path.rpartition("/")[0]
        while parent and parent not in tree:
            tree[parent] = (stat.S_IFDIR | 0o755,)
            parent = parent.rpartition("/")[0]
    return tree


def assert_same(found: Snapshot, wanted: Snapshot) -> None:
    assert found.keys() == wanted.keys()
    for path, row in wanted.items():
        if len(row) == 1:
            assert found[path][MODE] == row[0], path
        else:
            assert found[path][:NLINK] + found[path][SIZE:] == row[:NLINK] + row[SIZE:], path


async def test_a_segment_torn_at_every_record(torn: Torn) -> None:
    rig, sizes = torn.rig, set()
    assert len(torn.records) > 15
    for count in range(len(torn.records)):
        wanted = torn.lose(count, closed=count % 2 == 0)
        read_only = count % 3 > 0
        async with rig.mounted(read_only=read_only) as user:
            user.evict_everything()
            found = await user.snapshot()
            assert_same(found, wanted)
            if "/old/fresh/033" in found:
                assert found["/old/fresh/033"][NLINK] == 1 + ("/new/link33" in found)
            if not read_only:
                await user.write("afterwards", b"works")
        sizes.add(len(found))
        if read_only:
            continue
        shutil.rmtree(rig.state)
        async with rig.mounted(read_only=True) as user:
            assert await user.read("afterwards") == b"works"
            later = await user.snapshot()
            assert later.pop("/afterwards")[CONTENT] == b"works"
            assert later == found
    assert len(sizes) > 8, "the cuts fell into different places"


async def test_attributes_are_those_of_the_member(torn: Torn) -> None:
    rig, after = torn.rig, torn.after
    torn.lose(len(torn.records) - 1, closed=True)
    async with rig.mounted() as user:
        for path in ("/new/sym3", "/new/pipe", "/new/null", "/new/deep", "/new/000", "/new/big"):
            inode, wanted = user.find(path), after[path]
            assert (inode.mode, inode.uid, inode.gid) == wanted[:NLINK]
            assert inode.ctime_ns == inode.atime_ns == inode.mtime_ns == wanted[MTIME]
            assert inode.target == wanted[TARGET]
            assert (inode.sha256 is None) is not stat.S_ISREG(inode.mode)
        assert user.find("new/null").rdev == 0x103
        assert user.volume.contents.state(user.find("new/big").ino) is FileState.MIGRATED
        xattrs = user.volume.catalog.xattrs(user.find("new/000").ino)
        assert xattrs == after["/new/000"][XATTRS] == {b"user.number": b"0\0\xff"}


async def test_a_later_rebuild_gives_the_same_rows(torn: Torn) -> None:
    """While nothing follows, once it is closed, and when the new host has built on it."""
    rig = torn.rig
    torn.lose(12)
    open_end = await rig.tape_dump()
    assert [row[1] for row in open_end[4]] == ["segment", "torn"]
    async with rig.mounted() as user:
        assert dump(user.volume.view) == open_end
        assert await rig_dump_of_copy(rig) == open_end
        user.unlink("new/015")
        user.rename("new/deep", "old/deep")
        await user.write("new/030", b"changed", 30)
        await user.sync()
        built_on = dump(user.volume.view)
        user.crash()
    assert [row[1] for row in built_on[4]] == ["segment", "torn", "segment"]
    assert await rig.tape_dump() == built_on
    # A host that knows the first segment only, and has a catalog, sees the same.
    earlier = rig.directory / "earlier"
    async with rig.mounted(state=earlier, read_only=True) as user:
        assert dump(user.volume.view) == built_on
    async with rig.mounted() as user:
        finalized = await user.snapshot()
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.snapshot() == finalized
        assert [row[1] for row in dump(user.volume.view)[4]] == [
            "segment",
            "torn",
            "segment",
            "checkpoint",
        ]


async def rig_dump_of_copy(rig: Rig) -> list[Any]:
    """What the tape alone says, while the cartridge is in a drive."""
    copy = Rig(rig.directory, config=rig.config)
    copy.label, copy.tap = rig.label, rig.directory / "copy.tap"
    for suffix in ("", ".mam"):
        shutil.copy(f"{rig.tap}{suffix}", f"{copy.tap}{suffix}")
    return await copy.tape_dump()


async def test_the_host_that_lives_skips_its_torn_segment(torn: Torn) -> None:
    """What it deleted since does not come back, here or for anybody who reads the tape later."""
    rig = torn.rig
    torn.rig.tap.write_bytes(cut(torn.image, 2, 12, closed=False))
    shutil.rmtree(rig.state)
    shutil.copytree(rig.directory / "earlier", rig.state)
    async with rig.mounted() as user:
        assert await user.snapshot() == torn.before
        await user.write("more", b"1")
        await user.sync()
        kept = dump(user.volume.view)
        user.crash()
    assert [row[1] for row in kept[4]] == ["segment", "torn", "segment"]
    assert await rig.tape_dump() == kept


async def test_two_hosts_that_judged_differently_do_not_mix(torn: Torn) -> None:
    rig, other = torn.rig, torn.rig.directory / "earlier"
    torn.lose(12)
    async with rig.mounted() as user:
        assert user.find("new/015").size == 15 * 37
        user.crash()
    async with rig.mounted(state=other) as user:
        assert await user.snapshot() == torn.before
        await user.write("more", b"1")
    with pytest.raises(WrongTape, match="torn tape file 2"):
        async with rig.mounted():
            pass


async def test_a_read_only_mount_shows_the_files_and_leaves_the_tape(torn: Torn) -> None:
    rig = torn.rig
    wanted = torn.lose(12)
    before = rig.tap.read_bytes()
    for _ in range(2):
        async with rig.mounted(read_only=True) as user:
            assert_same(await user.snapshot(), wanted)
    assert rig.tap.read_bytes() == before
    async with rig.mounted() as user:
        assert_same(await user.snapshot(), wanted)
        await user.write("more", b"1")
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert user.find("more").size == 1
        user.unlink("more")
        assert_same(await user.snapshot(), wanted)


async def test_a_read_only_mount_of_the_living_host_judges_nothing(torn: Torn) -> None:
    rig = torn.rig
    torn.lose(12)
    shutil.copytree(rig.directory / "earlier", rig.state)
    async with rig.mounted(read_only=True) as user:
        assert await user.snapshot() == torn.before
    async with rig.mounted() as user:
        assert await user.snapshot() == torn.before
        await user.write("more", b"1")
    async with rig.mounted(read_only=True) as user:
        assert await user.read("more") == b"1"


async def test_a_mount_that_died_while_it_salvaged_is_done_again(torn: Torn) -> None:
    """The live catalog is made last; a view without one is not that of a host that wrote this."""
    rig = torn.rig
    wanted = torn.lose(12)
    shutil.copytree(rig.directory / "earlier", rig.state)
    directory = rig.state / str(rig.label.volume_uuid)
    assert not may_salvage(directory)
    remove_database(directory / LIVE_NAME)
    assert may_salvage(directory)
    async with rig.mounted() as user:
        assert_same(await user.snapshot(), wanted)
        user.crash()
    # Now there is one, but what was salvaged stays so in a rebuild.
    assert (directory / LIVE_NAME).exists()
    assert may_salvage(directory)
    remove_database(directory / VIEW_NAME)
    assert not may_salvage(directory)


async def test_a_salvaged_record_is_checked_when_it_is_read(
    torn: Torn, assert_logs: Callable[[str], object]
) -> None:
    rig = torn.rig
    torn.lose(len(torn.records) - 1, closed=True)
    async with rig.mounted() as user:
        user.crash()
    image = bytearray(rig.tap.read_bytes())
    image[image.find(content(5, 250_000)[100_000:100_016])] ^= 1
    rig.tap.write_bytes(image)
    assert_logs("data.mismatch")
    assert_logs("recall.failed")
    async with rig.mounted() as user:
        with pytest.raises(DataMismatch):
            await user.read("new/big")


# -- parts


async def test_parts_count_when_the_file_is_there_and_something_follows(rig: Rig) -> None:
    data = bytearray(content(1, 4_000_000))
    async with rig.mounted() as user:
        await user.write("big", bytes(data))
        await user.sync()
        old = await user.snapshot()
        await user.write("big", b"x" * 100_000, 1_000_000)
        await user.write("big", b"y" * 100_000, 4_000_000)
        await user.write("late", content(2, 80_000))
        await user.write("last", content(2, 80_000))
        await user.sync()
        new = await user.snapshot()
        user.crash()
    image = rig.tap.read_bytes()
    records = [spot.data for spot in tape_file(image, 2) if spot.data is not None]
    whole = [len(whole_members(records, count)) for count in range(len(records))]
    assert {0, 1, 2, 3} <= set(whole)
    for count in range(len(records)):
        rig.tap.write_bytes(cut(image, 2, count, closed=False))
        shutil.rmtree(rig.state)
        async with rig.mounted(read_only=True) as user:
            found = await user.snapshot()
        assert ("/late" in found) is (whole[count] >= 3)
        # The second part alone does not tell that it is the last one; the next header does.
        assert found["/big"][CONTENT] in (old["/big"][CONTENT], new["/big"][CONTENT])
        if whole[count] >= 3:
            assert found["/big"][:NLINK] + found["/big"][SIZE:] == (
                new["/big"][:NLINK] + new["/big"][SIZE:]
            )
        elif whole[count] < 2:
            assert found == old


async def test_parts_of_a_file_that_is_not_on_tape_are_left(rig: Rig) -> None:
    part = Member(b"p.tapefs-part-00000000000000000100-00000001")
    made = HandMade(rig, 1).member(part, b"part", ino=9, offset=100).file(b"next", 10)
    made.member(replace(part, path=b"next.tapefs-part"), b"part", ino=10, offset=1)
    made.file(b"last", 11).tear()
    async with rig.mounted() as user:
        assert (await user.snapshot()).keys() == {"/next", "/last"}
        assert await user.read("next") == b"data"


# -- what no writer of ours leaves


async def salvaged(rig: Rig) -> Snapshot:
    """The tree, by a first and a second host; mounted, finalized and mounted again."""
    first = await rig.tape_dump()
    async with rig.mounted() as user:
        assert dump(user.volume.view) == first
        found = await user.snapshot()
    shutil.rmtree(rig.state)
    async with rig.mounted() as user:
        assert await user.snapshot() == found
    return found


DIRECTORY, LINK, SYMLINK = MemberKind.DIRECTORY, MemberKind.HARD_LINK, MemberKind.SYMLINK
REFUSED = {
    "no note": lambda made: made.member(Member(b"x"), b"data"),
    "a wrong hash": lambda made: made.member(Member(b"x"), b"data", ino=9, sha256=bytes(32)),
    "the root's number": lambda made: made.file(b"x", 1),
    "a number of no file": lambda made: made.file(b"x", 0),
    "an absurd number": lambda made: made.file(b"x", 2**63 - 1),
    "a number twice": lambda made: made.file(b"x", 2, b"other"),
    "a name twice": lambda made: made.file(b"good", 9, b"other"),
    "a file as a directory": lambda made: made.file(b"good/x", 9),
    "a directory as a file": lambda made: made.file(b"folder", 9),
    "a directory where a file is": lambda made: made.member(Member(b"good", DIRECTORY), ino=9),
    "a directory twice": lambda made: made.member(Member(b"folder", DIRECTORY), ino=9),
    "a file's number for a directory": lambda made: made.member(Member(b"x", DIRECTORY), ino=2),
    "a directory's number": lambda made: made.file(b"x", 3),
    "a link to a directory": lambda made: made.member(
        Member(b"x", LINK, linkpath=b"folder"), ino=3
    ),
    "a link to nothing": lambda made: made.member(Member(b"x", LINK, linkpath=b"y"), ino=9),
    "a path of a mile": lambda made: made.file(b"/".join([b"x" * 200] * 21), 9),
    "a target of a mile": lambda made: made.member(
        Member(b"x", SYMLINK, linkpath=b"t" * 4096), ino=9
    ),
}
GOOD = {"/good", "/folder", "/folder/in"}


def decent(rig: Rig, sequence: int = 1) -> HandMade:
    made = HandMade(rig, sequence).file(b"good", 2)
    return made.member(Member(b"folder", DIRECTORY, 0o700), ino=3).file(b"folder/in", 4)


@pytest.mark.parametrize("name", REFUSED)
async def test_what_contradicts_is_refused(
    rig: Rig, name: str, assert_logs: Callable[..., Any]
) -> None:
    REFUSED[name](decent(rig)).file(b"last", 5, b"fine").tear()
    refused = assert_logs("salvage.refused")
    found = await salvaged(rig)
    assert len(refused.records) == 2, "one for each host without a catalog"
    assert found.keys() == GOOD | {"/last"}
    assert found["/good"][CONTENT] == found["/folder/in"][CONTENT] == b"data"
    assert found["/last"][CONTENT] == b"fine"


@pytest.mark.parametrize("path", [b"../x", b"/x", b"folder/../../x", b"x" * 256])
async def test_a_path_that_leaves_the_tree_ends_it(
    rig: Rig, path: bytes, assert_logs: Callable[..., Any]
) -> None:
    decent(rig).file(path, 9).file(b"last", 5).tear()
    assert_logs("salvage.refused")
    assert (await salvaged(rig)).keys() == GOOD


async def test_members_of_tapefs_are_passed_over(rig: Rig) -> None:
    made = decent(rig).file(b".tapefs/deep/9", 9).file(b".tapefs", 10)
    made.file(b"folder/.tapefs", 11).member(Member(b".", DIRECTORY), ino=12)
    made.file(b".tapefs/segments/00000001.sha256", 13).file(b"behind", 14).tear()
    assert (await salvaged(rig)).keys() == GOOD | {"/folder/.tapefs"}


@pytest.mark.parametrize(
    "change",
    [{"volume_uuid": uuid4()}, {"sequence": 2}, {"kind": TapeFileKind.CHECKPOINT}],
    ids=["volume", "sequence", "kind"],  # the same in every process that collects
)
async def test_another_tape_file_is_not_taken_for_this_one(
    rig: Rig, change: dict[str, Any]
) -> None:
    head = TapeFileHead(rig.label.volume_uuid, 1, TapeFileKind.SEGMENT)
    HandMade(rig, 1, replace(head, **change)).file(b"x", 2).tear()
    assert await rig.tape_dump()
    async with rig.mounted() as user:
        assert await user.snapshot() == {}
        assert [row[5] for row in dump(user.volume.view)[4]] == [b""]


async def test_garbage_is_nothing(rig: Rig, assert_logs: Callable[..., Any]) -> None:
    word = RECORD_BYTES.to_bytes(4, "little")
    append(rig.tap, (word + content(1, RECORD_BYTES) + word) * 2)
    assert_logs("salvage.refused")
    async with rig.mounted() as user:
        assert await user.snapshot() == {}


async def test_a_short_record_and_an_unreadable_one_end_it(
    rig: Rig, assert_logs: Callable[..., Any]
) -> None:
    decent(rig).file(b"large", 5, content(1, 80_000)).file(b"behind", 6).tear()
    image = rig.tap.read_bytes()
    second = tape_file(image, 1)[1]
    rig.tap.write_bytes(image[: second.start])
    # All of both files would be there, but nothing reads or checks a short record later.
    assert second.data is not None
    word = (40_000).to_bytes(4, "little")
    append(rig.tap, word + second.data[:40_000] + word)
    assert (await salvaged(rig)).keys() == GOOD
    shutil.rmtree(rig.state)
    bad = (RECORD_BYTES | 1 << 31).to_bytes(4, "little")
    rig.tap.write_bytes(
        image[: second.start] + bad + image[second.start + 4 : second.end - 4] + bad
    )
    assert_logs("salvage.refused")
    async with rig.mounted() as user:
        assert (await user.snapshot()).keys() == GOOD


async def test_a_segment_without_end_is_bounded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, assert_logs: Callable[..., Any]
) -> None:
    monkeypatch.setattr(salvage_journal, "_NAMES_MAX", 4)
    decent(rig).file(b"a", 5).file(b"b", 6).file(b"c", 7).tear()
    assert_logs("salvage.refused")
    assert (await salvaged(rig)).keys() == GOOD


async def test_names_that_were_others_before(rig: Rig, assert_logs: Callable[..., Any]) -> None:
    """Whatever the closed segments hold stays, under its name or under one of its own."""
    async with rig.mounted() as user:
        file = await user.write("file", b"old file")
        folder = user.mkdir("folder").ino
        await user.write("folder/x", b"old x")
        twice = await user.write("twice", b"two names")
        user.tree.link(twice, *user.place("second"))
        await user.write("taken", b"old taken")
        await user.write(f"taken.tapefs-ino-{user.find('taken').ino}", b"in the way")
    shutil.rmtree(rig.state)
    made = HandMade(rig, 3).file(b"file/in", 50).file(b"folder", 51).file(b"twice", 52)
    made.file(b"folder/y", 53).file(b"taken", 54).tear()
    refused = assert_logs("salvage.refused")
    async with rig.mounted() as user:
        found = await user.snapshot()
        taken = user.find("taken").ino
        assert len(refused.records) == 2
        contents = {path: row[CONTENT] for path, row in found.items()}
        assert contents == {
            "/file": None,
            "/file/in": b"data",
            f"/file.tapefs-ino-{file}": b"old file",
            "/folder": b"data",
            f"/folder.tapefs-ino-{folder}": None,
            f"/folder.tapefs-ino-{folder}/x": b"old x",
            "/twice": b"data",
            "/second": b"two names",
            "/taken": b"old taken",
            f"/taken.tapefs-ino-{taken}": b"in the way",
        }
        assert found["/file"][:NLINK] == (stat.S_IFDIR | 0o755, 5, 6)
        assert user.tree.lookup(user.find("file").ino, b"in").ino == 50


async def test_an_inode_never_becomes_something_else(
    rig: Rig, assert_logs: Callable[..., Any]
) -> None:
    async with rig.mounted() as user:
        file = await user.write("file", b"old")
        folder = user.mkdir("folder").ino
        await user.write("folder/x", b"x")
        wanted = await user.snapshot()
    shutil.rmtree(rig.state)
    made = HandMade(rig, 3).file(b"a", folder).member(Member(b"b", MemberKind.FIFO), ino=file)
    part = Member(b"folder.tapefs-part")
    made.member(part, b"part", ino=folder, offset=0)
    made.member(Member(b"c", LINK, linkpath=b"folder"), ino=folder).file(b"good", 90).tear()
    refused = assert_logs("salvage.refused")
    found = await salvaged(rig)
    assert len(refused.records) == 2 * 3
    assert found.pop("/good")[CONTENT] == b"data"
    assert found == wanted


async def test_a_renamed_directory_is_at_both_places(
    rig: Rig, assert_logs: Callable[..., Any]
) -> None:
    async with rig.mounted() as user:
        folder = user.mkdir("from").ino
        await user.write("from/x", b"x")
        empty = user.mkdir("empty").ino
    shutil.rmtree(rig.state)
    made = HandMade(rig, 3).file(b"to/y", 9, b"y")
    for path, ino in ((b"to", folder), (b"void", empty)):
        made.member(Member(path, DIRECTORY, 0o710, uid=3, gid=4, mtime_ns=5), ino=ino)
    made.tear()
    assert_logs("salvage.refused path=b'void'")
    found = await salvaged(rig)
    assert found.keys() == {"/from", "/from/x", "/empty", "/to", "/to/y"}
    assert found["/to"][:NLINK] == (stat.S_IFDIR | 0o710, 3, 4)
    assert found["/to"][MTIME] == 5


async def test_numbers_are_never_given_twice(rig: Rig) -> None:
    """Directories of salvage's making, and what is made later, get numbers of their own."""
    HandMade(rig, 1).file(b"a/b/c", 900).member(Member(b"a", DIRECTORY), ino=901).tear()
    async with rig.mounted() as user:
        assert user.find("a").ino == 901
        assert user.find("a/b").ino == 902
        assert await user.write("new", b"1") > 902


async def test_two_torn_segments_in_a_row(rig: Rig) -> None:
    """The second finds what the first one brought."""
    HandMade(rig, 1).file(b"a", 2, b"first").file(b"b", 3, b"first").tear()
    append(rig.tap, bytes(4))
    HandMade(rig, 2).file(b"b", 3, b"second").member(
        Member(b"c", LINK, linkpath=b"a"), ino=2
    ).tear()
    found = await salvaged(rig)
    assert {path: row[CONTENT] for path, row in found.items()} == {
        "/a": b"first",
        "/b": b"second",
        "/c": b"first",
    }
    assert found["/a"][NLINK] == 2
