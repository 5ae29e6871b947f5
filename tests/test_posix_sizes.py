"""A large directory while it changes, and whether df tells the truth, in a real mount.

`TAPEFS_TEST_SIZE=whole` makes the directory one of 100,000 entries.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from first_light_rig import MIB, WHOLE, Host, new_host
from posix_calls import DirectoryStream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse

# Half of them stay, half of them come and go.
ENTRIES = 100_000 if WHOLE else 4_000


class Crowd:
    """A directory of which half the names stay and the other half never rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.staying = {b"stays %d" % number for number in range(ENTRIES // 2)}
        self.changes = 0

    def fill(self) -> None:
        self.path.mkdir()
        directory = os.open(self.path, os.O_RDONLY)
        try:
            # One after the other, so that every part of the directory has both kinds.
            for number, name in enumerate(sorted(self.staying)):
                os.mknod(name, dir_fd=directory)
                os.mknod(b"goes %d" % number, dir_fd=directory)
        finally:
            os.close(directory)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Names go, come and change until the block ends, and some did."""
        ended, began = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def change() -> None:
            chance = random.Random(3)
            try:
                for count in itertools.count():
                    self._change_one(chance, count)
                    began.set()
                    if ended.is_set():
                        return
            except BaseException as exc:  # noqa: BLE001 - for the other thread
                failures.append(exc)
                began.set()

        thread = threading.Thread(target=change)
        thread.start()
        try:
            assert began.wait(60)
            yield
        finally:
            ended.set()
            thread.join()
        assert failures == []

    def _change_one(self, chance: random.Random, count: int) -> None:
        name = b"goes %d" % chance.randrange(ENTRIES // 2)
        here = os.fsencode(self.path) + b"/"
        try:
            if count % 3 == 0:
                os.unlink(here + name)
            elif count % 3 == 1:
                os.rename(here + name, here + b"went %d" % count)
            else:
                os.mknod(here + name)
        except (FileNotFoundError, FileExistsError):
            return
        self.changes += 1

    def assert_stream_is_whole(self, chance: random.Random) -> None:
        """Read to the end, going back now and then to where the stream stood before: who stays all
        the time comes exactly once, and from every place the same of them follow."""
        stream = DirectoryStream(self.path)
        seen: list[bytes] = []
        places: list[tuple[int, int]] = []
        while (name := stream.read()) is not None:
            if name in self.staying:
                seen.append(name)
            if chance.random() < 0.001:
                places.append((stream.tell(), len(seen)))
        assert len(seen) == len(set(seen)), "somebody came twice"
        assert set(seen) == self.staying
        for place, count in chance.sample(places, min(3, len(places))):
            stream.seek(place)
            following = [name for name in stream.rest() if name in self.staying]
            assert following == seen[count:]
        stream.rewind()
        assert [name for name in stream.rest() if name in self.staying] == seen
        stream.close()


def test_a_directory_that_changes_all_the_while_lists_every_name_that_stays_once() -> None:
    """Staged; while all goes to tape; and after the loss of the catalog."""
    chance = random.Random(7)
    with new_host("?capacity=20G") as host:
        host.format().mount("settle=0,idle=1")
        crowd = Crowd(host.mountpoint / "crowd")
        crowd.fill()
        with crowd.changing():
            crowd.assert_stream_is_whole(chance)
            stream = DirectoryStream(crowd.path)
            first = [stream.read() for _ in range(ENTRIES // 4)]
            host.ok("sync", host.mountpoint)
            seen = [name for name in (*first, *stream.rest()) if name in crowd.staying]
            assert sorted(seen) == sorted(crowd.staying), "the archiver changed a stream"
            stream.close()
        host.umount()
        host.forget()
        host.mount()
        with crowd.changing():
            crowd.assert_stream_is_whole(chance)
        print(f"{ENTRIES} entries, {crowd.changes} changes meanwhile")
        assert crowd.changes > 0
        host.umount()


def free_bytes(host: Host) -> int:
    """What df(1) shows."""
    figures = os.statvfs(host.mountpoint)
    assert figures.f_bavail <= figures.f_bfree <= figures.f_blocks
    return figures.f_bavail * figures.f_frsize


def test_what_df_says_can_be_written_and_no_more() -> None:
    with new_host("?capacity=48M") as host:
        host.format().mount("settle=0,idle=0.3,burst=4M")
        before = free_bytes(host)
        with (host.mountpoint / "some").open("wb") as file:
            file.write(bytes(8 * MIB))
        after = free_bytes(host)
        assert 8 * MIB <= before - after < 9 * MIB
        # That it goes to tape changes little: label, trailers and the next checkpoint are counted.
        host.ok("sync", host.mountpoint)
        promised = free_bytes(host)
        assert abs(promised - after) < 4 * MIB
        written = fill(host.mountpoint / "rest")
        assert promised - 4 * MIB < written < promised + 4 * MIB
        assert free_bytes(host) < MIB
        host.umount()
        host.forget()
        host.mount()
        assert (host.mountpoint / "rest").stat().st_size == written
        assert free_bytes(host) < MIB
        host.umount()


def fill(path: Path) -> int:
    """Write until there is no room; how much there was."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    written = 0
    try:
        while True:
            written += os.write(fd, bytes(MIB // 4))
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
    finally:
        os.close(fd)
    return written
