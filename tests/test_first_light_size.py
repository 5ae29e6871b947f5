"""Many files and large ones: memory stays bounded, and every byte comes back from the tape."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from first_light_rig import (
    MIB,
    STUCK_S,
    WHOLE,
    Daemon,
    Host,
    deterministic_bytes,
    feed_tape_files,
    new_host,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse

MEMORY_KIB_MAX = 200 * 1000
SMALL_FILES = 100_000 if WHOLE else 20_000
PER_DIRECTORY = 500
LARGE_MIB = 20 * 1024 if WHOLE else 1024
SPARSE_BYTES = 20_000_000_000 if WHOLE else 300_000_000
SPOOL = "spool=4G" if WHOLE else "spool=128M"


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


class Peak:
    """The largest VmHWM of the daemons of one test."""

    def __init__(self) -> None:
        self.samples_kib: list[int] = []

    def of(self, daemon: Daemon) -> Any:
        """Watch `daemon` while the block runs."""
        return daemon.watching_memory(self.samples_kib)

    def check(self, what: str) -> None:
        print(f"{what}: VmHWM {max(self.samples_kib) / 1000:.0f} MB")
        assert max(self.samples_kib) < MEMORY_KIB_MAX


def small_name(number: int) -> str:
    return f"{number // PER_DIRECTORY:04d}/{number % PER_DIRECTORY:03d}"


def small_content(number: int) -> bytes:
    digest = hashlib.sha256(str(number).encode()).digest()
    return (digest * 64)[: 1 + int.from_bytes(digest[:2]) % 2000]


def test_many_small_files(host: Host) -> None:
    peak = Peak()
    host.mount()
    started = time.monotonic()
    with peak.of(host.daemon):
        for number in range(SMALL_FILES):
            path = host.mountpoint / small_name(number)
            if number % PER_DIRECTORY == 0:
                path.parent.mkdir()
            path.write_bytes(small_content(number))
        written = time.monotonic()
        host.umount()
    unmounted = time.monotonic()
    host.forget()
    host.mount()
    with peak.of(host.daemon):
        mounted = time.monotonic()
        for number in range(SMALL_FILES):
            path = host.mountpoint / small_name(number)
            assert path.read_bytes() == small_content(number), number
        assert len(os.listdir(host.mountpoint)) == -(-SMALL_FILES // PER_DIRECTORY)
        read = time.monotonic()
        host.umount()
    print(
        f"{SMALL_FILES} files: written {SMALL_FILES / (written - started):.0f}/s, umount "
        f"{unmounted - written:.1f} s, mount {mounted - unmounted:.1f} s, read "
        f"{SMALL_FILES / (read - mounted):.0f}/s"
    )
    peak.check("many files")


def large_content() -> Iterator[bytes]:
    """One MiB after the other; never all of it."""
    for number in range(LARGE_MIB):
        yield deterministic_bytes(number, MIB)


def assert_is_large_content(read: Any) -> None:
    """What `read(length)` returns is the large file, to its end."""
    for number, expected in enumerate(large_content()):
        assert read(MIB) == expected, f"MiB {number}"
    assert read(1) == b""


def test_a_file_larger_than_the_spool(host: Host) -> None:
    peak = Peak()
    host.mount(SPOOL)
    path = host.mountpoint / "large"
    started = time.monotonic()
    with peak.of(host.daemon):
        with path.open("wb", buffering=0) as file:
            for data in large_content():
                assert file.write(data) == MIB
        written = time.monotonic()
        host.umount()
    unmounted = time.monotonic()
    host.forget()
    host.mount(SPOOL)
    mounted = time.monotonic()
    with peak.of(host.daemon):
        with path.open("rb", buffering=0) as file:
            assert_is_large_content(file.read)
        read = time.monotonic()
        assert host.status()["spool"]["used_bytes"] <= 4096 * MIB
        host.umount()
    print(
        f"{LARGE_MIB} MiB, {SPOOL}: written {LARGE_MIB / (written - started):.0f} MiB/s, umount "
        f"{unmounted - written:.1f} s, read back {LARGE_MIB / (read - mounted):.0f} MiB/s"
    )
    peak.check("large file")
    joined_parts_are_the_file(host.image)


def joined_parts_are_the_file(image: Path) -> None:
    """`cat` of the parts that GNU tar finds on the tape, in order, is the file."""
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as joined:
        assert joined.stdin
        assert joined.stdout
        into = joined.stdin

        def extract(_number: int) -> subprocess.Popen[bytes]:
            words = ["tar", "-xOf", "-", "--wildcards", "large*"]
            return subprocess.Popen(
                ["sh", "-c", '"$@" 2>err || grep -q "Not found in archive" err', "sh", *words],
                stdin=subprocess.PIPE,
                stdout=into,
                stderr=subprocess.PIPE,
                cwd=image.parent,
            )

        def feed() -> None:
            feed_tape_files(image, extract)
            into.close()

        verify_while(feed, joined.stdout.read)
        joined.wait(STUCK_S)


def verify_while(feed: Any, read: Any) -> None:
    """Compare in this thread what `feed` makes appear from another."""

    def read_exactly(length: int) -> bytes:
        pieces = []
        while length and (data := read(length)):
            pieces.append(data)
            length -= len(data)
        return b"".join(pieces)

    with ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(feed)
        assert_is_large_content(read_exactly)
        feeding.result(STUCK_S)


def test_a_sparse_file_larger_than_the_spool(host: Host) -> None:
    peak = Peak()
    host.mount("spool=128M")
    path = host.mountpoint / "sparse"
    with peak.of(host.daemon):
        with path.open("wb") as file:
            file.truncate(SPARSE_BYTES)
            file.seek(SPARSE_BYTES // 2)
            file.write(b"in the middle")
        host.umount()
    host.forget()
    host.mount()
    with path.open("rb") as file:
        assert file.seek(0, os.SEEK_END) == SPARSE_BYTES
        file.seek(SPARSE_BYTES // 2 - 10)
        assert file.read(30) == bytes(10) + b"in the middle" + bytes(7)
    peak.check("sparse file")
