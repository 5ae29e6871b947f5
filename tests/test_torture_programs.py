"""Programs that were written to find faults in filesystems, in a mount: stress-ng, fio, bonnie++.

While they run, the archiver takes to tape what they write.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from first_light_rig import PROGRAMS, new_host, run
from torture_time import STUCK_S, rounds, share_s

if TYPE_CHECKING:
    from pathlib import Path

    from first_light_rig import Host

pytestmark = pytest.mark.fuse

# Archiving starts as soon as anything is there, and goes on all the time.
BUSY = "settle=0,idle=0.5,burst=4M,segment_max=16M,checkpoint_segments=8"
CARTRIDGE = "?capacity=200G"

# Everything of stress-ng's that asks something of one filesystem. Not fallocate, fpunch, fsize,
# chattr, inode-flags, fiemap, file-ioctl, verity: they want calls that a mount does not have. Not
# io: it waits for every disk of the machine.
STRESSORS = (
    "access chdir chmod chown dentry dir dirdeep dirmany dnotify dup fcntl filename flock"
    " fstat getdent handle hdd inotify iomix lease link locka lockf lockofd mknod mmap mmapfork"
    " msync open readahead rename revio seek sendfile splice symlink sync-file tee touch utime"
    " vm-splice xattr"
)
# Their usual sizes would have them make and remove names for longer than they test.
SMALL: tuple[str, ...] = ("--chdir-dirs", "256", "--dentries", "256", "--dirdeep-inodes", "400")
SMALL += ("--dirdeep-dirs", "2", "--hdd-bytes", "8M")
SMALL += ("--iomix-bytes", "16M", "--readahead-bytes", "8M", "--revio-bytes", "8M")
SMALL += ("--seek-size", "4M", "--mmap-bytes", "16M", "--mmap-file", "--sync-file-bytes", "4M")

# Blocks of different sizes, by the calls of different programs, each checked by its own CRC.
FIO: tuple[str, ...] = ("fio", "--output-format=terse", "--verify=crc32c", "--verify_fatal=1")
FIO += ("--fallocate=none", "--verify_state_save=0")
FIO_JOBS: tuple[str, ...] = ("--name=direct", "--rw=randwrite", "--ioengine=psync", "--direct=1")
FIO_JOBS += ("--bsrange=4k-128k", "--size=8M")
FIO_JOBS += ("--name=cached", "--rw=randwrite", "--ioengine=psync", "--bsrange=1k-64k", "--ba=1k")
FIO_JOBS += ("--size=8M", "--name=mapped", "--rw=randwrite", "--ioengine=mmap", "--size=4M")
FIO_JOBS += ("--name=queued", "--rw=randwrite", "--ioengine=libaio", "--iodepth=8", "--bs=16k")
FIO_JOBS += ("--size=8M",)


def assert_sound(host: Host) -> None:
    """Unmount: all of the tape reads well, and no daemon had a complaint."""
    host.umount()
    assert run([PROGRAMS / "tapefs", "verify", host.drive], STUCK_S, env=host.env).code == 0
    complaints = [
        line for line in host.log().splitlines() if " WARNING " in line or "ERROR" in line
    ]
    assert complaints == []


def test_stress_ng_finds_no_fault() -> None:
    with new_host(CARTRIDGE) as host:
        host.format().mount(f"{BUSY},spool=1G")
        work = host.mountpoint / "work"
        work.mkdir()
        counts = [word for name in STRESSORS.split() for word in (f"--{name}", "1")]
        seconds = ("--timeout", f"{share_s():.0f}")
        done = run(
            ["stress-ng", *counts, *SMALL, *seconds, "--verify", "--temp-path", work], STUCK_S
        )
        said = done.stdout + done.stderr
        assert done.code == 0, said[-4000:]
        assert "fail:" not in said
        assert list(work.iterdir()) == []
        assert_sound(host)


def fio(at: Path, seed: int, *words: str) -> None:
    done = run([*FIO, f"--randseed={seed}", f"--directory={at}", *words, *FIO_JOBS], STUCK_S)
    assert (done.code, done.stderr) == (0, ""), done.stdout[-2000:]


def remounted(host: Host) -> None:
    """All on tape, nothing known of it here."""
    host.umount()
    host.forget()
    host.mount(f"{BUSY},spool=16M")


def test_fio_and_bonnie_find_what_they_wrote() -> None:
    """Written and read back, also from tape alone; then the same with what overwrites it."""
    with new_host(CARTRIDGE) as host:
        host.format().mount(f"{BUSY},spool=16M")
        for number in rounds():
            work = host.mountpoint / f"round {number}"
            work.mkdir()
            for seed in (2 * number, 2 * number + 1):
                fio(work, seed, "--do_verify=1")
                remounted(host)
                fio(work, seed, "--verify_only")
            bonnie(work)
            shutil.rmtree(work)
        assert_sound(host)


def bonnie(at: Path) -> None:
    # MiB, block, seeks, seekers; 1,024 names.
    sizes = ("-s", "8M:16k:300:2", "-r", "4", "-n", "1", "-x", "1")
    done = run(["bonnie++", "-d", at, *sizes, "-f", "-q", "-u", "root", "-m", "mount"], STUCK_S)
    assert done.code == 0, done.stderr[-2000:]
    assert not any(path.name.startswith("Bonnie") for path in at.iterdir())
