"""Windows into the tape: what extended attributes say about where a file's bytes are."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import xxhash
from first_light_rig import Host, new_host
from tap_reader import objects
from volume_rig import RECORD_BYTES, Rig

from tapefs.archive.tape_attributes import TapeAttributes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from volume_rig import User

ADDRESS = (b"user.tapefs.tape-file", b"user.tapefs.start-block", b"user.ltfs.startblock")


def value(user: User, path: str, name: bytes) -> bytes | None:
    """The attribute as a program would get it."""
    volume = user.volume
    attributes = TapeAttributes(volume.catalog, volume.view, volume.contents)
    return attributes.value(user.find(path).ino, name)


@pytest.mark.fuse
def test_a_file_was_verified_when_the_last_of_its_tape_files_was(host_of_two: Host) -> None:
    host = host_of_two
    old, new = host.mountpoint / "old", host.mountpoint / "new"

    def verified_at(path: Path) -> str:
        return os.getxattr(path, "user.tapefs.verified-at").decode()

    for path in (old, new, host.mountpoint / "unwritten"):
        with pytest.raises(OSError, match="No data available"):
            verified_at(path)
    before = time.time()
    host.ok("verify", host.mountpoint)
    first = verified_at(old)
    assert int(before) <= dt.datetime.fromisoformat(first).timestamp() <= time.time()
    # In a tape file of its own, which was read after the other.
    assert verified_at(new) >= first
    with new.open("ab") as file:
        file.write(b"more")
    host.ok("sync", host.mountpoint)
    assert verified_at(old) == first
    with pytest.raises(OSError, match="No data available"):
        verified_at(new)
    assert "user.tapefs.verified-at" not in os.listxattr(old)
    with pytest.raises(PermissionError):
        os.setxattr(old, "user.tapefs.verified-at", b"today")


@pytest.fixture
def host_of_two() -> Iterator[Host]:
    """A mount with two files on tape, and one that is not."""
    with new_host() as host:
        host.format().mount("settle=0")
        for name in ("old", "new"):
            (host.mountpoint / name).write_bytes(name.encode() * 1000)
            host.ok("sync", host.mountpoint)
        (host.mountpoint / "unwritten").write_bytes(b"")
        yield host
        host.umount()


async def test_address_and_hashes_come_with_archiving_and_go_with_changes(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    await rig.format()
    first, second = b"first" + bytes(3 * RECORD_BYTES), b"second"
    async with rig.mounted() as user:
        await user.write("/first", first)
        await user.write("/second", second)
        await user.write("/empty", b"")
        assert [value(user, "/first", name) for name in ADDRESS] == [None] * 3
        assert value(user, "/first", b"user.tapefs.sha256") is None
        await user.sync()
        blocks = {}
        for path, content in (("/first", first), ("/second", second)):
            assert value(user, path, b"user.tapefs.tape-file") == b"1"
            assert value(user, path, b"user.ltfs.partition") == b"a"
            sha256 = hashlib.sha256(content).hexdigest().encode()
            assert value(user, path, b"user.tapefs.sha256") == sha256
            assert value(user, path, b"user.ltfs.hash.sha256sum") == sha256
            assert (
                value(user, path, b"user.tapefs.xxh128")
                == xxhash.xxh128(content).hexdigest().encode()
            )
            blocks[path] = int(value(user, path, b"user.tapefs.start-block") or b"-1")
            assert value(user, path, b"user.ltfs.startblock") == b"%d" % blocks[path]
        assert [value(user, "/empty", name) for name in ADDRESS] == [None] * 3
        await user.write("/second", b"changed")
        assert value(user, "/second", b"user.tapefs.sha256") is None
        assert value(user, "/second", b"user.tapefs.state") == b"resident"
    recorded = list(objects(rig.tap))
    assert b"first" in (recorded[blocks["/first"]] or b"")
    assert b"second" in (recorded[blocks["/second"]] or b"")
    assert blocks["/second"] >= blocks["/first"] + 3


async def test_the_volume_s_own(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    await rig.format()
    for count in (b"0", b"1"):
        async with rig.mounted() as user:
            assert value(user, "/", b"user.tapefs.generation") == count
            assert value(user, "/", b"user.tapefs.volume-name") == b"RIG"
            assert value(user, "/", b"user.ltfs.volumeName") == b"RIG"
            assert value(user, "/", b"user.ltfs.volumeUUID") == str(rig.label.volume_uuid).encode()
            assert value(user, "/", b"user.tapefs.state") is None
            assert value(user, "/", b"user.tapefs.nonsense") is None
            await user.write("/a", b"a")


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


@pytest.mark.fuse
def test_through_the_mount(host: Host) -> None:
    host.mount("idle=3600")
    file = host.mountpoint / "a"
    file.write_bytes(b"content")
    assert os.getxattr(file, "user.tapefs.state") in (b"staged", b"resident")
    os.setxattr(host.mountpoint, "user.ltfs.sync", b"1")
    assert os.getxattr(file, "user.tapefs.state") == b"premigrated"
    block = int(os.getxattr(file, "user.ltfs.startblock"))
    assert os.listxattr(file) == []
    dumped = subprocess.run(
        ["getfattr", "-d", "-m", "-", file], capture_output=True, check=True, text=True
    )
    assert dumped.stdout == ""
    host.ok("umount", host.mountpoint)
    assert b"content" in (list(objects(host.image))[block] or b"")
