"""A tape that is not ours: Debian's tgt, behind QEMU's Bulk-Only device.

tgtd keeps the tape in a file of its own and serves it over iSCSI; QEMU makes a USB drive of that.
tgtd gets a port and a management socket of its own, so that it disturbs no other, and is stopped
when the block ends.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "iqn.2000-01.test:tape"
START_DEADLINE_S = 30.0


def missing() -> list[str]:
    """What this machine lacks for such a tape, in words."""
    lacking = [name for name in ("tgtd", "tgtadm", "tgtimg") if shutil.which(name) is None]
    if not any(Path("/usr/lib").glob("*/qemu/block-iscsi.so")):
        lacking.append("QEMU's iSCSI driver (qemu-block-extra)")
    return lacking


@contextmanager
def served_tape(image: Path, capacity_mb: int) -> Iterator[list[str]]:
    """A blank tape in the new file `image`; yields what makes QEMU have it as a USB drive."""
    _run("tgtimg", "--op=new", "--device-type=tape", "--barcode=GUEST1", "--type=data",
         f"--size={capacity_mb}", f"--file={image}")  # fmt: skip
    log = image.with_name("tgtd.log")
    port = _free_port()
    # A socket's path may not be long.
    with TemporaryDirectory(prefix="tgt.") as directory, log.open("w") as output:
        environment = {**os.environ, "TGT_IPC_SOCKET": f"{directory}/socket"}
        with subprocess.Popen(
            ["tgtd", "--foreground", "--iscsi", f"portal=127.0.0.1:{port}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as server:
            try:
                _wait_for(server, environment, log)
                _manage(environment, "target --op new --tid 1", f"--targetname={NAME}")
                _manage(
                    environment,
                    "logicalunit --op new --tid 1 --lun 1 --device-type tape --bstype ssc",
                    f"--backing-store={image}",
                )
                _manage(environment, "target --op bind --tid 1 --initiator-address 127.0.0.1")
                source = f"iscsi://127.0.0.1:{port}/{NAME}/1"
                yield [
                    *("-device", "qemu-xhci,id=hc", "-device", "usb-bot,id=bot,bus=hc.0"),
                    *("-drive", f"if=none,id=tape,format=raw,file={source}"),
                    *("-device", "scsi-generic,bus=bot.0,drive=tape,scsi-id=0,lun=0"),
                ]
            finally:
                server.kill()


def _wait_for(server: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        assert server.poll() is None, log.read_text()
        try:
            _manage(environment, "system --op show")
        except AssertionError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            return


def _manage(environment: dict[str, str], words: str, *more: str) -> None:
    _run("tgtadm", "--lld=iscsi", "--mode", *words.split(), *more, environment=environment)


def _run(*command: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
