"""Many programs read at one time, with real commands and /dev/fuse, and the tape takes its time.

The cable of the virtual drive is out while readers wait: nothing they wait for can come.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cable_rig import Cable, until_away, until_status
from first_light_rig import STUCK_S, Host, deterministic_bytes, new_host, quiet, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.fuse

OPTIONS = "drive_poll=0.05,drive_check=0.05,idle=3600,settle=0.05"
READERS = 200
FILE_BYTES = 40_000

# Reads each of the files that are named on standard input in a thread of its own, all at a time.
READ_ALL = """
    import hashlib, json, sys, threading
    digests = {}
    def read(path):
        with open(path, "rb") as file:
            digests[path] = hashlib.sha256(file.read()).hexdigest()
    threads = [threading.Thread(target=read, args=[path]) for path in json.load(sys.stdin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(digests))
"""
# What goes on beside them.
OTHERS = """
    import os, sys
    mount = sys.argv[1]
    assert len(os.listdir(mount)) > 200
    sizes = sum(os.stat(f"{mount}/f{number}").st_size for number in range(200))
    assert sizes == 200 * 40_000
    for number in range(20):
        with open(f"{mount}/new{number}", "wb") as file:
            file.write(b"%d" % number * 5000)
            os.fsync(file.fileno())
        with open(f"{mount}/new{number}", "rb") as file:
            assert file.read() == b"%d" % number * 5000
        os.rename(f"{mount}/new{number}", f"{mount}/newer{number}")
        os.chmod(f"{mount}/f{number}", 0o600)
    assert os.getxattr(f"{mount}/f0", "user.tapefs.state") == b"migrated"
    os.statvfs(mount)
    print("done")
"""


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


def fill(host: Host, count: int, size: int) -> dict[str, bytes]:
    """Files on tape; this host knows their names and nothing of their content."""
    contents = {f"f{number}": deterministic_bytes(f"{number}", size) for number in range(count)}
    host.mount(OPTIONS)
    for name, data in contents.items():
        (host.mountpoint / name).write_bytes(data)
    host.umount()
    host.forget()
    return contents


def python(script: str, *arguments: Path) -> list[str | Path]:
    return [sys.executable, "-c", textwrap.dedent(script), *arguments]


def spool_files_open(host: Host) -> list[str]:
    """What the daemon has open of the spool."""
    links = []
    for name in os.listdir(f"/proc/{host.daemon.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{host.daemon.pid}/fd/{name}"))
    return [link for link in links if "/spool/" in link]


def waiting_count(status: dict[str, Any]) -> int:
    return int(status["since_mount"]["reads_waiting"])


def test_two_hundred_readers_wait_and_nobody_else_does(host: Host) -> None:
    cable = Cable(host)
    contents = fill(host, READERS + 6, FILE_BYTES)
    host.mount(OPTIONS)
    cable.pull()
    until_away(host)

    paths = [str(host.mountpoint / f"f{number}") for number in range(READERS)]
    readers = subprocess.Popen(
        python(READ_ALL), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert readers.stdin is not None
    readers.stdin.write(json.dumps(paths))
    readers.stdin.close()
    readers.stdin = None
    killed = [
        subprocess.Popen(["cat", host.mountpoint / f"f{READERS + number}"], stdout=subprocess.PIPE)
        for number in range(6)
    ]
    until_status(host, lambda status: waiting_count(status) >= READERS + 6)

    others = subprocess.run(
        python(OTHERS, host.mountpoint),
        capture_output=True,
        text=True,
        timeout=STUCK_S,
        check=False,
    )
    assert (others.stdout, others.stderr) == ("done\n", "")
    for number, reader in enumerate(killed):
        reader.send_signal(signal.SIGKILL if number % 2 else signal.SIGINT)
    for reader in killed:
        assert reader.communicate(timeout=STUCK_S)[0] == b""
        assert reader.returncode < 0
    assert readers.poll() is None

    cable.plug_in()
    output, _ = readers.communicate(timeout=STUCK_S)
    expected = {path: hashlib.sha256(contents[Path(path).name]).hexdigest() for path in paths}
    assert json.loads(output) == expected
    until_status(host, lambda status: waiting_count(status) == 0)
    give_up = time.monotonic() + STUCK_S
    while left := spool_files_open(host):
        assert time.monotonic() < give_up, left
        time.sleep(0.05)
    host.umount()


def test_a_read_that_waits_too_long_is_an_input_output_error(host: Host) -> None:
    cable = Cable(host)
    contents = fill(host, 2, FILE_BYTES)
    host.mount(OPTIONS + ",recall_deadline=0.3")
    cable.pull()
    until_away(host)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error") as caught:
            (host.mountpoint / "f0").read_bytes()
        assert caught.value.errno == errno.EIO
    assert (host.mountpoint / "f0").stat().st_size == FILE_BYTES
    cable.plug_in()
    until_status(host, lambda status: status["state"] != "away")
    assert (host.mountpoint / "f0").read_bytes() == contents["f0"]
    host.umount()


def test_copies_and_searches_of_a_tree_read_each_record_once(host: Host, tmp_path: Path) -> None:
    host.mount(OPTIONS)
    for number in range(40):
        directory = host.mountpoint / f"d{number % 4}" / f"e{number % 8}"
        directory.mkdir(parents=True, exist_ok=True)
        size = 3_000_000 if number % 10 == 0 else 150_000 + number
        (directory / f"f{number}").write_bytes(deterministic_bytes(f"{number}", size))
    host.umount()
    host.forget()
    host.mount(OPTIONS)
    records = host.status()["tape"]["written_bytes"] // host.status()["tape"]["record_bytes"]
    quiet("cp", "-r", host.mountpoint, tmp_path / "copy")
    since_mount = host.status()["since_mount"]
    assert 0 < since_mount["records_read"] <= records
    assert since_mount["checksum_mismatches"] == 0
    for number in range(40):
        path = tmp_path / "copy" / f"d{number % 4}" / f"e{number % 8}" / f"f{number}"
        size = 3_000_000 if number % 10 == 0 else 150_000 + number
        assert path.read_bytes() == deterministic_bytes(f"{number}", size)
    host.umount()

    host.forget()
    host.mount(OPTIONS)
    found = run(["grep", "-rl", "no such thing is in there", host.mountpoint])
    assert (found.code, found.stdout, found.stderr) == (1, "", "")
    assert 0 < host.status()["since_mount"]["records_read"] <= records
    host.umount()
