"""A guest whose kernel has the emulated drive attached, and a job to do with it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest_machine import HERE, HOST_ADDRESS, START, Outcome, run_job

from tapefs.emulator.medium import VirtualCartridge

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# The start of every job; see guest_functions.sh.
FUNCTIONS = f"""
. {HERE}/guest_functions.sh
T=/dev/nst0
cd $EXCHANGE
"""

ATTACH = """
modprobe -a vhci-hcd usb-storage st sg
python3 {here}/guest_attach.py {host} {port}
{until}
"""


@dataclass(frozen=True)
class Served:
    """What came of a job with the drive. `said` is what the server told its operator."""

    outcome: Outcome
    said: list[str]

    def check(self) -> None:
        """The job ended well, and the host kept to the protocol."""
        assert self.outcome.exit_code == 0, self.outcome.console + "\n".join(self.said)
        assert [each for each in self.said if "protocol" in each or "sent away" in each] == []
        assert "reset high-speed USB device" not in self.outcome.console


def with_drive(
    cartridge: Path,
    script: str,
    exchange: Path,
    *,
    before: str = "",
    devices: Sequence[str] = (),
    until: str = "appears $T",
    start: str = START,
    deadline_s: float = 300,
) -> Served:
    """Attach a drive with this cartridge in a new guest, then run `script` there.

    `before` runs before that, and `until` waits until the drive can be used; `devices` are more
    arguments for QEMU.
    """
    words = ["cartridge", "serve", str(cartridge), "--once", "--listen", "127.0.0.1:0"]
    errors = exchange / "server"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "tapefs", *words], stdout=subprocess.PIPE, stderr=stderr
        ) as server,
    ):
        try:
            assert server.stdout is not None
            hint = next(line for line in server.stdout if line.startswith(b"attach it"))
            port = int(hint.split(b"--tcp-port ")[1].split()[0])
            attach = ATTACH.format(here=HERE, host=HOST_ADDRESS, port=port, until=until)
            job = FUNCTIONS + before + attach + script + "\ndmesg"
            outcome = run_job(job, exchange, devices=devices, start=start, deadline_s=deadline_s)
            if "attached by" not in errors.read_text():
                server.terminate()
            assert server.wait(60) == 0, errors.read_text()
        finally:
            server.kill()
    return Served(outcome, errors.read_text().splitlines())


def tape_files(cartridge: Path) -> list[list[bytes]]:
    """Every record on the cartridge, by tape file; the last list is what follows the last mark."""
    files: list[list[bytes]] = [[]]
    with VirtualCartridge.open(cartridge, read_only=True) as tape:
        for number in range(tape.object_count):
            if tape.is_filemark(number):
                files.append([])
                continue
            nothing = memoryview(bytearray())
            into = bytearray(tape.read_record(number, nothing).length_bytes)
            tape.read_record(number, memoryview(into))
            files[-1].append(bytes(into))
    return files


def new_cartridge(path: Path, capacity_bytes: int, personality: str = "lto5") -> Path:
    """A blank cartridge."""
    VirtualCartridge.create(path, personality, capacity_bytes).close()
    return path
