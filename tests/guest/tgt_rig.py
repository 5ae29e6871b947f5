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
    directory = image.parent
    log = directory / "tgtd.log"
    subprocess.run(
        [
            *("tgtimg", "--op", "new", "--device-type", "tape", "--barcode", "GUEST1"),
            *(f"--size={capacity_mb}", "--type=data", f"--file={image}"),
        ],
        check=True,
        capture_output=True,
    )
    port = _free_port()
    environment = {**os.environ, "TGT_IPC_SOCKET": str(directory / "tgtd.socket")}

    def manage(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = ["tgtadm", "--lld", "iscsi", "--mode", *words]
        return subprocess.run(command, env=environment, capture_output=True, check=False)

    with (
        log.open("w") as output,
        subprocess.Popen(
            ["tgtd", "--foreground", "--iscsi", f"portal=127.0.0.1:{port}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as server,
    ):
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while manage("system", "--op", "show").returncode:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            for words in (
                ("target", "--op", "new", "--tid", "1", "--targetname", NAME),
                (
                    "logicalunit",
                    "--op",
                    "new",
                    "--tid",
                    "1",
                    "--lun",
                    "1",
                    "--device-type",
                    "tape",
                    "--bstype",
                    "ssc",
                    "--backing-store",
                    str(image),
                ),
                ("target", "--op", "bind", "--tid", "1", "--initiator-address", "127.0.0.1"),
            ):
                done = manage(*words)
                assert done.returncode == 0, (words, done.stderr)
            yield [
                *("-device", "qemu-xhci,id=hc", "-device", "usb-bot,id=bot,bus=hc.0"),
                *("-drive", f"if=none,id=tape,format=raw,file=iscsi://127.0.0.1:{port}/{NAME}/1"),
                *("-device", "scsi-generic,bus=bot.0,drive=tape,scsi-id=0,lun=0"),
            ]
        finally:
            server.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
