"""The least that the work of a row costs on this machine, however it is programmed.

A large file, in: the copy through kernel and binding into a local file, while a thread hashes what
arrives on the second core. The file is archived when it was closed, so what follows adds up: it is
read, with a CRC-32C of each record and an xxh128 as proof that it is what was hashed, while a
thread hands it to the emulated drive: command, data and status, through pyusb, and nothing of what
a host has to think of beside; and a command that unmounts has to start.

A large file, out: the records of the cartridge read by a thread that takes CRC-32C and SHA-256 of
them, while kernel and binding take those before to whoever reads the file.

Small files, in: each is made, written and closed in a filesystem that answers the kernel and keeps
no more than names in memory and the bytes in one file (`benchmarks.least`). The same adds up as for
a large file: each is read and hashed, a block with the hash and the content go to the emulated
drive; and a command that unmounts has to start.
"""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

import crc32c
import xxhash

from benchmarks import mounts
from benchmarks.row import GIB
from benchmarks.sources import SMALL_FILE_BYTES
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.personality import DEFAULT_PERSONALITY
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.scsi.cdb import TestUnitReady, Write6, WriteFilemarks6
from tapefs.scsi.command import Direction
from tapefs.usb.bot import STATUS_BLOCK_BYTES, CommandBlock
from tapefs.usb.device import open_endpoints

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK_BYTES: Final = 512
_RECORD_BYTES: Final = 512 * 1024
_RECORDS: Final = 16
_CARTRIDGE_BYTES: Final = 64 * GIB
_TIMEOUT_S: Final = 60.0


class Ceiling(NamedTuple):
    """How long it takes, and what the processes take that do a daemon's work."""

    wall_s: float
    cpu_s: float


def write(source: Path, directory: Path) -> Ceiling:
    """For the content of `source`, with all that is written below `directory`, which is new."""
    with mounts.pass_through(directory, hashing=True) as reference:
        dd_s = mounts.dd(source, reference.path / "file")
        started = time.monotonic()
        reference.umount()
        hashed_s = time.monotonic() - started
    before_s = time.process_time()
    tape_s = _check_and_copy_s(directory / "files" / "file", directory / "cartridge.tap")
    tape_cpu_s = time.process_time() - before_s
    # What is left to be hashed then may be, while the file is copied.
    wall_s = dd_s + max(tape_s, hashed_s) + _umount_s(directory / "tapefs")
    return Ceiling(wall_s, reference.cpu_s + tape_cpu_s)


def read(source: Path, directory: Path) -> Ceiling:
    """For the content of `source`, from a copy of it below `directory`, which is new."""
    with mounts.pass_through(directory, hashing=True) as reference:
        mounts.run(["cp", source, directory / "files" / "file"])
        read_s = mounts.dd(reference.path / "file", Path("/dev/null"))
        reference.umount()
    return Ceiling(read_s, reference.cpu_s)


def create(make: Callable[[Path], None], directory: Path) -> Ceiling:
    """For the small files that `make` makes below the directory it is given; `directory` is new."""
    with mounts.least(directory) as reference:
        started = time.monotonic()
        make(reference.path)
        made_s = time.monotonic() - started
        reference.umount()
    before_s = time.process_time()
    tape_s = _pack_s(directory / "content", directory / "cartridge.tap")
    tape_cpu_s = time.process_time() - before_s
    wall_s = made_s + tape_s + _umount_s(directory / "tapefs")
    return Ceiling(wall_s, reference.cpu_s + tape_cpu_s)


def _umount_s(directory: Path) -> float:
    """`tapefs umount` where nothing was written."""
    with mounts.tapefs(directory) as mount:
        started = time.monotonic()
        mount.umount()
        return time.monotonic() - started


def _check_and_copy_s(source: Path, target: Path) -> float:
    """Read and check in one thread, give to the drive in the other, as plainly as can be."""
    free: SimpleQueue[array[int]] = SimpleQueue()
    full: SimpleQueue[tuple[array[int], int] | None] = SimpleQueue()
    for _ in range(_RECORDS):
        free.put(array("B", bytes(_RECORD_BYTES)))

    def write() -> None:
        status = array("B", bytes(STATUS_BLOCK_BYTES))
        while (filled := full.get()) is not None:
            record, length = filled
            block = CommandBlock(1, Write6(length).pack(), Direction.OUT, length).pack()
            endpoints.send(array("B", block), _TIMEOUT_S)
            endpoints.send(record if length == len(record) else record[:length], _TIMEOUT_S)
            endpoints.receive(status, _TIMEOUT_S)
            free.put(record)
        assert drive.execute(WriteFilemarks6(1).pack()).good, "what the drive took is on tape"

    cartridge, drive = _drive(target)
    endpoints = open_endpoints("usb", backend=EmulatedUsbBackend(drive))
    started = time.monotonic()
    writer = threading.Thread(target=write)
    writer.start()
    xxh128 = xxhash.xxh3_128()
    with source.open("rb", buffering=0) as stream:
        while True:
            buffer = free.get()
            length = stream.readinto(buffer)
            if not length:
                break
            record = memoryview(buffer)[:length]
            xxh128.update(record)
            crc32c.crc32c(record)
            full.put((buffer, length))
    full.put(None)
    writer.join()
    copied_s = time.monotonic() - started
    endpoints.close()
    assert cartridge.end_bytes > source.stat().st_size, "all of it is on tape"
    cartridge.close()
    return copied_s


def _pack_s(source: Path, target: Path) -> float:
    """Read and hash one small file after the other; give blocks and contents to the drive."""
    cartridge, drive = _drive(target)
    started = time.monotonic()
    record = bytearray()
    with source.open("rb") as stream:
        while data := stream.read(SMALL_FILE_BYTES):
            record += hashlib.sha256(data).digest().ljust(_BLOCK_BYTES, b"\0")
            record += data
            if len(record) >= _RECORD_BYTES:
                drive.execute(Write6(len(record)).pack(), record)
                record = bytearray()
    if record:
        drive.execute(Write6(len(record)).pack(), record)
    assert drive.execute(WriteFilemarks6(1).pack()).good, "what the drive took is on tape"
    packed_s = time.monotonic() - started
    assert cartridge.end_bytes > source.stat().st_size > 0, "all of it is on tape"
    cartridge.close()
    return packed_s


def _drive(image: Path) -> tuple[VirtualCartridge, Target]:
    """A new cartridge, and a drive that is ready for it."""
    cartridge = VirtualCartridge.create(image, DEFAULT_PERSONALITY.name, _CARTRIDGE_BYTES)
    drive = Target(cartridge)
    while not drive.execute(TestUnitReady().pack()).good:
        """It reports that it was switched on."""
    return cartridge, drive
