"""A mount is shared by Debian's Samba: what a Windows program would do with a tape."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from first_light_rig import STUCK_S, Host, deterministic_bytes, new_host, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse

SETTINGS = """
[global]
  bind interfaces only = yes
  interfaces = lo
  smb ports = {port}
  map to guest = Bad User
  guest account = root
  load printers = no
  disable spoolss = yes
  log level = 1
  log file = {root}/log
  lock directory = {root}
  state directory = {root}
  cache directory = {root}
  private dir = {root}
  pid directory = {root}
  ncalrpc dir = {root}/ncalrpc
[tape]
  path = {share}
  read only = no
  guest ok = yes
  ea support = yes
  store dos attributes = yes
"""


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port


class Client:
    """smbclient(1) without a password."""

    def __init__(self, port: int) -> None:
        self._words = ["smbclient", "-s", "/dev/null", "-N", "-p", str(port), "//127.0.0.1/tape"]

    def answers(self) -> bool:
        """Whether the server is up."""
        return run([*self._words, "-c", "ls"]).code == 0

    def do(self, commands: str, directory: Path) -> str:
        """Run `commands`, which must succeed, in a local directory; what they print."""
        done = run([*self._words, "-c", f"lcd {directory}; {commands}"])
        assert done.code == 0, done
        return done.stdout


@contextmanager
def shared(share: Path, root: Path) -> Iterator[Client]:
    """Samba serves `share`; `root` is for what it needs."""
    root.mkdir()
    port = free_port()
    settings = root / "smb.conf"
    settings.write_text(SETTINGS.format(port=port, root=root, share=share))
    words = ["smbd", "--foreground", f"--configfile={settings}"]
    # Which makes a process group of its own, and ends that along with itself.
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as server:
        try:
            client = Client(port)
            give_up = time.monotonic() + STUCK_S
            while not client.answers():
                assert server.poll() is None, (root / "log").read_text()
                assert time.monotonic() < give_up, (root / "log").read_text()
                time.sleep(0.1)
            yield client
        finally:
            server.terminate()
            server.wait()


def test_put_get_rename_and_delete_before_and_after_the_tape(host: Host, tmp_path: Path) -> None:
    local, back = tmp_path / "local", tmp_path / "back"
    local.mkdir()
    back.mkdir()
    contents = {
        "letter.txt": b"Dear tape,\r\n",
        "Große Datei.bin": deterministic_bytes("samba", 5_000_000),
        "empty": b"",
    }
    for name, data in contents.items():
        (local / name).write_bytes(data)
    host.mount()
    with shared(host.mountpoint, tmp_path / "samba") as client:
        client.do('mkdir photos; cd photos; prompt; mput "*"', local)
        assert {path.name for path in (host.mountpoint / "photos").iterdir()} == set(contents)
        client.do('rename photos\\letter.txt "photos\\a letter.txt"', local)
        client.do("put letter.txt photos\\other.txt; del photos\\other.txt", local)
    attributes = os.listxattr(host.mountpoint / "photos" / "empty")
    assert "user.DOSATTRIB" in attributes
    host.umount()

    host.forget()
    host.mount()
    contents["a letter.txt"] = contents.pop("letter.txt")
    with shared(host.mountpoint, tmp_path / "samba again") as client:
        client.do('cd photos; prompt; mget "*"', back)
        assert {path.name: path.read_bytes() for path in back.iterdir()} == contents
        client.do('put empty "photos\\Große Datei.bin"; rename photos pictures', local)
        assert "Große Datei.bin" in client.do("ls pictures\\*", local)
    host.umount()
    host.mount("ro")
    found = {path.name: path.read_bytes() for path in (host.mountpoint / "pictures").iterdir()}
    assert found == {**contents, "Große Datei.bin": b""}
    host.umount()
