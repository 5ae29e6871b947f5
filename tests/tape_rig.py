"""A drive on a bench: cartridge, emulated target, and a wire that listens and can lie."""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING

from tapefs.drive import TapeDrive
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.target import Target
from tapefs.emulator.transport import TargetTransport
from tapefs.scsi.completion import Completion
from tapefs.scsi.sense import Sense

if TYPE_CHECKING:
    from pathlib import Path

    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import DataBuffer

MIB = 1 << 20
RECORD_BYTES = 4096
# What matters to positioning differs: LOCATE and both positions; no long one; neither at all; nor
# anything that SPACE would tell.
PERSONALITIES = ("lto5", "ait3", "dat72", "plain", "tgt")


class Wire(TargetTransport):
    """A transport that keeps a log, and answers in the target's place when told to."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.log: list[Command] = []
        self._answers: list[tuple[type, deque[Completion | Exception | None]]] = []

    def answer(self, command: type, *answers: Completion | Sense | Exception | None) -> None:
        """The next commands of this class get these answers and do not reach the target.

        In place of None one does.
        """
        completions: deque[Completion | Exception | None] = deque(
            Completion(False, sense=a) if isinstance(a, Sense) else a for a in answers
        )
        self._answers.append((command, completions))

    async def execute(self, command: Command, data: DataBuffer | bytes | None = None) -> Completion:
        self.log.append(command)
        for kind, answers in self._answers:
            if answers and isinstance(command, kind):
                answer = answers.popleft()
                if isinstance(answer, Exception):
                    raise answer
                if answer is not None:
                    return answer
        return await super().execute(command, data)

    def sent(self, *kinds: type) -> list[Command]:
        """Commands of these classes since the last call of `forget`."""
        return [command for command in self.log if isinstance(command, kinds)]

    def forget(self) -> None:
        self.log.clear()


class Rig:
    """A cartridge in a target behind a wire."""

    def __init__(self, path: Path, personality: str, capacity_bytes: int) -> None:
        self.cartridge = VirtualCartridge.create(path, personality, capacity_bytes)
        self.target = Target(self.cartridge)
        self.wire = Wire(self.target)

    async def open(self) -> TapeDrive:
        drive = await TapeDrive.open(self.wire)
        self.wire.forget()
        return drive


class Rigs:
    """Makes rigs and remembers them for closing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: list[Rig] = []

    def __call__(self, personality: str = "lto5", capacity_bytes: int = 64 * MIB) -> Rig:
        rig = Rig(self._directory / f"{len(self._made)}.tap", personality, capacity_bytes)
        self._made.append(rig)
        return rig

    def close(self) -> None:
        """Let go of the cartridges."""
        for rig in self._made:
            rig.cartridge.close()


def record(number: int, size_bytes: int = RECORD_BYTES) -> array[int]:
    return array("B", number.to_bytes(4, "big") * (size_bytes // 4))


def buffer(size_bytes: int = RECORD_BYTES) -> array[int]:
    return array("B", bytes(size_bytes))


async def write_files(drive: TapeDrive, *counts: int) -> None:
    """From the beginning: tape files of so many records; record n of file f holds 100 f + n."""
    await drive.rewind()
    for file, count in enumerate(counts):
        for number in range(count):
            await drive.write_block(record(100 * file + number))
        await drive.write_filemarks(1)


async def read_number(drive: TapeDrive) -> int:
    into = buffer()
    assert await drive.read_block(into) == RECORD_BYTES
    return int.from_bytes(into[:4].tobytes(), "big")
