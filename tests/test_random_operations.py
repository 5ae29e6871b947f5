"""Random calls in a mount and in a local directory must give the same, whatever happens between.

Between the calls everything goes to tape, the mount ends and begins again, or the catalog and the
spool are lost, so that files are met in every state; the archiver works all the time. Hypothesis
chooses the calls. `TAPEFS_TORTURE_S` sets how long it goes on; above 60 a failing sequence is made
short as well.
"""

from __future__ import annotations

import collections
import errno
import itertools
import mmap
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from first_light_rig import Host, fingerprint, new_host
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from posix_calls import RENAME_EXCHANGE, RENAME_NOREPLACE, content, pattern, renameat2
from torture_time import TORTURE_S, rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.fuse

# The archiver takes what it finds; files of more than 1 MiB go in parts while they are open.
OPTIONS = "settle=0,idle=0.3,burst=1M,part_min=1M,spool=16M,checkpoint_segments=3"

PATHS = st.sampled_from(["a", "b", "c", "d", "d/a", "d/b", "e", "e/d", "e/d/a"])
# Calls that are about content mostly meet a file.
FILES = st.sampled_from(["a", "b", "c", "d/a", "e/d/a", "a", "b", "c", "d/a", "d"])
OFFSETS = st.one_of(st.integers(0, 9_000), st.integers(0, 2_500_000))
SIZES = st.one_of(st.integers(0, 9_000), st.integers(0, 700_000))
# So many calls at least between two things that take seconds.
QUIET_COUNT = 25
SLOTS = st.integers(0, 2)
ATTRIBUTES = st.sampled_from(["user.one", "user.two", "trusted.three"])
WAYS = st.sampled_from([os.O_RDWR, os.O_WRONLY, os.O_RDONLY])
MORE = st.sampled_from([0, os.O_CREAT, os.O_APPEND, os.O_TRUNC, os.O_CREAT | os.O_EXCL])

# What was done and how it ended, over all rounds.
TALLY: collections.Counter[str] = collections.Counter()
_numbers = itertools.count()


def write(path: Path, flags: int, offset: int, size: int) -> int:
    fd = os.open(path, flags, 0o644)
    try:
        return os.pwrite(fd, pattern(f"{offset} {size}", size), offset)
    finally:
        os.close(fd)


def write_mapped(path: Path, offset: int, size: int) -> None:
    """Through a shared mapping, as far as the file reaches."""
    with path.open("r+b") as file:
        end = min(offset + size, os.fstat(file.fileno()).st_size)
        if offset >= end:
            return
        with mmap.mmap(file.fileno(), 0) as view:
            view[offset:end] = pattern(f"mapped {offset}", end - offset)


def copy_range(source: Path, target: Path, offset: int, to: int, size: int) -> int:
    with source.open("rb") as one, target.open("r+b") as other:
        return os.copy_file_range(one.fileno(), other.fileno(), size, offset, to)


def make_socket(path: Path) -> None:
    """Opening it fails at once, which a fifo's opening does not."""
    os.mknod(path, stat.S_IFSOCK | 0o600)


def what_is_there(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything but times, which are not the same in two places."""
    return {
        name: (*kept[:6], *kept[7:], _content(root / os.fsdecode(name)))
        for name, kept in fingerprint(root).items()
    }


def _content(path: Path) -> object:
    return content(path) if stat.S_ISREG(path.lstat().st_mode) else None


def make_beginning(root: Path) -> None:
    """Something for the first calls to meet."""
    for directory in (root, root / "d", root / "e", root / "e/d"):
        directory.mkdir()
    for name, size in (("a", 70_001), ("b", 1_500_000), ("d/a", 0), ("e/d/a", 9_000)):
        (root / name).write_bytes(pattern(name, size))
    os.link(root / "a", root / "c")


class Twins(RuleBasedStateMachine):
    """The same calls in two directories, one in the mount."""

    host: ClassVar[Host]
    local: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        name = f"{next(_numbers)}"
        self.roots = self.host.mountpoint / name, self.local / name
        self.slots: dict[int, tuple[int, int]] = {}
        self.quiet_count = 0
        for root in self.roots:
            make_beginning(root)
        self.open(0, "a", os.O_RDWR, 0)
        self.open(1, "b", os.O_RDWR, 0)

    def both(self, name: str, call: Callable[..., Any], *args: Any) -> None:
        """`call(root, *args)` for both; the same must come out."""
        self.quiet_count += 1
        ours, theirs = (_outcome(call, root, *args) for root in self.roots)
        TALLY[f"{name}: {errno.errorcode[ours] if isinstance(ours, _Errno) else 'done'}"] += 1
        assert ours == theirs, (name, args)

    def each(self, name: str, slot: int, call: Callable[..., Any], *args: Any) -> None:
        """`call(fd, *args)` for both files of a slot, if it is in use."""
        self.quiet_count += 1
        if slot in self.slots:
            ours, theirs = (_outcome(call, fd, *args) for fd in self.slots[slot])
            TALLY[f"open file, {name}"] += 1
            assert ours == theirs, (name, args)

    # -- content

    @rule(path=FILES, way=WAYS, more=MORE, offset=OFFSETS, size=SIZES)
    def write(self, path: str, way: int, more: int, offset: int, size: int) -> None:
        self.both("write", lambda at: write(at / path, way | more, offset, size))

    @rule(path=FILES, offset=OFFSETS, size=SIZES)
    def create(self, path: str, offset: int, size: int) -> None:
        self.both("create", lambda at: write(at / path, os.O_WRONLY | os.O_CREAT, offset, size))

    @rule(path=FILES, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        self.both("truncate", lambda at: os.truncate(at / path, size))

    @rule(path=FILES, offset=OFFSETS, size=SIZES)
    def write_mapped(self, path: str, offset: int, size: int) -> None:
        self.both("write mapped", lambda at: write_mapped(at / path, offset, size))

    @rule(paths=st.tuples(FILES, FILES), offset=OFFSETS, to=OFFSETS, size=SIZES)
    def copy(self, paths: tuple[str, str], offset: int, to: int, size: int) -> None:
        one, other = paths
        self.both("copy", lambda at: copy_range(at / one, at / other, offset, to, size))

    @rule(path=FILES)
    def read(self, path: str) -> None:
        self.both("read", lambda at: content(at / path))

    # -- open files

    @rule(slot=SLOTS, path=FILES, way=WAYS, more=MORE)
    def open(self, slot: int, path: str, way: int, more: int) -> None:
        self.close(slot)
        found = [_outcome(os.open, at / path, way | more, 0o640) for at in self.roots]
        refused = [isinstance(one, _Errno) for one in found]
        assert refused[0] == refused[1], (path, found)
        if refused[0]:
            assert found[0] == found[1]
        else:
            self.slots[slot] = found[0], found[1]

    @rule(slot=SLOTS)
    def close(self, slot: int) -> None:
        for fd in self.slots.pop(slot, ()):
            os.close(fd)

    @rule(slot=SLOTS, offset=OFFSETS, size=SIZES)
    def write_open(self, slot: int, offset: int, size: int) -> None:
        self.each("write", slot, os.pwrite, pattern(f"open {offset}", size), offset)

    @rule(slot=SLOTS, offset=OFFSETS, size=SIZES)
    def read_open(self, slot: int, offset: int, size: int) -> None:
        self.each("read", slot, os.pread, size, offset)

    @rule(slot=SLOTS, size=OFFSETS)
    def truncate_open(self, slot: int, size: int) -> None:
        self.each("truncate", slot, os.ftruncate, size)

    @rule(slot=SLOTS, sync=st.sampled_from([os.fsync, os.fdatasync]))
    def sync_open(self, slot: int, sync: Callable[[int], None]) -> None:
        self.each("sync", slot, sync)

    # -- names and attributes

    @rule(
        paths=st.tuples(PATHS, PATHS),
        flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )
    def rename(self, paths: tuple[str, str], flags: int) -> None:
        one, other = paths
        self.both("rename", lambda at: renameat2(at / one, at / other, flags))

    @rule(paths=st.tuples(PATHS, PATHS))
    def link(self, paths: tuple[str, str]) -> None:
        one, other = paths
        self.both("link", lambda at: os.link(at / one, at / other, follow_symlinks=False))

    @rule(path=PATHS, leads_to=st.sampled_from(["a", "d", "../a", "nowhere"]))
    def symlink(self, path: str, leads_to: str) -> None:
        self.both("symlink", lambda at: os.symlink(leads_to, at / path))

    @rule(path=PATHS, call=st.sampled_from([os.mkdir, os.rmdir, os.unlink, make_socket]))
    def name(self, path: str, call: Callable[[Path], None]) -> None:
        self.both(call.__name__, lambda at: call(at / path))

    @rule(path=PATHS, name=ATTRIBUTES, size=st.integers(0, 900))
    def set_attribute(self, path: str, name: str, size: int) -> None:
        value = pattern(name, size)
        self.both("setxattr", lambda at: os.setxattr(at / path, name, value))

    @rule(path=PATHS, name=ATTRIBUTES)
    def remove_attribute(self, path: str, name: str) -> None:
        self.both("removexattr", lambda at: os.removexattr(at / path, name))

    @rule(path=PATHS, mode=st.integers(0, 0o7777), owner=st.integers(0, 3))
    def change(self, path: str, mode: int, owner: int) -> None:
        self.both("chown", lambda at: os.chown(at / path, owner, owner, follow_symlinks=False))
        self.both("chmod", lambda at: os.chmod(at / path, mode))

    # -- what happens between

    @precondition(lambda self: self.quiet_count >= QUIET_COUNT)
    @rule(what=st.sampled_from(["sync", "sync", "remount", "lose the catalog"]))
    def meanwhile(self, what: str) -> None:
        self.quiet_count = 0
        TALLY[what] += 1
        if what == "sync":
            self.host.ok("sync", self.host.mountpoint)
            return
        for slot in list(self.slots):
            self.close(slot)
        self.host.umount()
        if what == "lose the catalog":
            self.host.forget()
        self.host.mount(OPTIONS)
        self.open(0, "a", os.O_RDWR, 0)
        self.open(1, "b", os.O_RDWR, 0)

    def teardown(self) -> None:
        for slot in list(self.slots):
            self.close(slot)
        ours, theirs = (what_is_there(root) for root in self.roots)
        assert ours == theirs


class _Errno(int):
    """How a call failed."""


def _outcome(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except OSError as exc:
        return _Errno(exc.errno or 0)


@pytest.fixture(scope="module")
def twins() -> Iterator[type[Twins]]:
    with new_host("?capacity=200G") as host, tempfile.TemporaryDirectory() as local:
        host.format().mount(OPTIONS)
        yield type("Here", (Twins,), {"host": host, "local": Path(local)})
        expected = what_is_there(Path(local))
        host.umount()
        host.forget()
        host.mount(OPTIONS)
        assert what_is_there(host.mountpoint) == expected
        host.umount()
        assert host.tapefs("verify", host.drive).code == 0


def test_a_mount_and_a_local_directory_stay_the_same(twins: type[Twins]) -> None:
    plan = settings(
        max_examples=3,
        stateful_step_count=150,
        suppress_health_check=list(HealthCheck),
        database=None,
        # Making a failing sequence short takes minutes.
        phases=[Phase.generate, Phase.shrink] if TORTURE_S > 60 else [Phase.generate],
    )
    for number in rounds():
        run_state_machine_as_test(seed(number)(twins), settings=plan)
    calls = sum(TALLY.values())
    print(f"{calls} calls in {number} rounds")
    print("\n".join(f"  {count:6} {what}" for what, count in sorted(TALLY.items())))
