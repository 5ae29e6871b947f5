"""The least that a large file costs on this machine, however it is programmed.

A file is archived when it was closed, so what happens before and after that adds up: the copy
through kernel and binding into a local file, then reading that file and hashing all of it on one
core, while the other one writes it to the cartridge; and a command that unmounts has to start.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import crc32c
import xxhash

from benchmarks import mounts

if TYPE_CHECKING:
    from pathlib import Path

_RECORD_BYTES: Final = 512 * 1024
_RECORDS: Final = 16


def seconds(source: Path, directory: Path) -> float:
    """For the content of `source`, with all that is written below `directory`, which is new."""
    with mounts.pass_through(directory) as reference:
        dd_s = mounts.dd(source, reference.path / "file")
        reference.umount()
    tape_s = _hash_and_copy_s(directory / "files" / "file", directory / "cartridge")
    with mounts.tapefs(directory / "tapefs") as mount:
        started = time.monotonic()
        mount.umount()
        umount_s = time.monotonic() - started
    return dd_s + tape_s + umount_s


def _hash_and_copy_s(source: Path, target: Path) -> float:
    """Read and hash in one thread, write in the other, both as plainly as can be."""
    free: SimpleQueue[bytearray] = SimpleQueue()
    full: SimpleQueue[memoryview | None] = SimpleQueue()
    for _ in range(_RECORDS):
        free.put(bytearray(_RECORD_BYTES))

    def write() -> None:
        with target.open("wb", buffering=0) as stream:
            while (record := full.get()) is not None:
                stream.write(record)
                assert isinstance(record.obj, bytearray)
                free.put(record.obj)
            os.fdatasync(stream.fileno())

    started = time.monotonic()
    writer = threading.Thread(target=write)
    writer.start()
    sha256, xxh128 = hashlib.sha256(), xxhash.xxh3_128()
    with source.open("rb", buffering=0) as stream:
        while True:
            buffer = free.get()
            length = stream.readinto(buffer)
            if not length:
                break
            record = memoryview(buffer)[:length]
            sha256.update(record)
            xxh128.update(record)
            crc32c.crc32c(record)
            full.put(record)
    full.put(None)
    writer.join()
    return time.monotonic() - started
