"""The name of a virtual drive, `virtual:PATH?personality=ait3&capacity=4G`, and its cartridge.

With `faults=FILE` or `faults=seed:NUMBER` it is a drive that fails (docs/fault-plans.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tapefs.config import MIB, parse_bytes
from tapefs.emulator.fault_plan import FaultPlan
from tapefs.emulator.medium import VirtualCartridge, found_memory
from tapefs.emulator.personality import DEFAULT_PERSONALITY, Personality, personality_named
from tapefs.errors import UsageError

SCHEME: Final = "virtual:"
CAPACITY_BYTES_MIN: Final = MIB


@dataclass(frozen=True, slots=True)
class VirtualDriveName:
    """Which image, and what drive it is put into where the name says so.

    The options describe a new cartridge; of one that exists they must say the same as its chip.
    """

    path: Path
    personality: Personality | None = None
    capacity_bytes: int | None = None
    faults: FaultPlan | None = None

    @classmethod
    def matches(cls, text: str) -> bool:
        """Whether `text` means a virtual drive at all."""
        return text.startswith(SCHEME)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name. The last `?` ends the path. Raises UsageError that says what is wrong."""
        if not cls.matches(text):
            raise UsageError(f"'{text}' is no virtual drive; write virtual:PATH")
        path, mark, query = text.removeprefix(SCHEME).rpartition("?")
        if not mark:
            path, query = query, ""
        if not path or "\0" in path:
            raise UsageError(f"'{text}' names no file; write virtual:PATH")
        options = cls._options(query)
        if "personality" not in options:
            personality = None
        else:
            personality = personality_named(options["personality"])
        capacity_bytes = parse_bytes(options["capacity"]) if "capacity" in options else None
        if capacity_bytes is not None and capacity_bytes < CAPACITY_BYTES_MIN:
            raise UsageError("a cartridge must hold at least 1M; give it a larger capacity")
        faults = FaultPlan.named(options["faults"]) if "faults" in options else None
        return cls(Path(path), personality, capacity_bytes, faults)

    @staticmethod
    def _options(query: str) -> dict[str, str]:
        options: dict[str, str] = {}
        for item in filter(None, query.split("&")):
            name, _, value = item.partition("=")
            if name not in ("personality", "capacity", "faults"):
                raise UsageError(
                    f"a virtual drive has no option '{name}'; it has personality, capacity, faults"
                )
            if name in options:
                raise UsageError(f"option '{name}' of a virtual drive is given twice; give it once")
            options[name] = value
        return options


def open_cartridge(name: VirtualDriveName, *, create: bool) -> VirtualCartridge:
    """Open the cartridge that `name` means, or make it when it is missing and `create`.

    Raises NoDrive when it is missing and must not be made, UsageError when the name contradicts
    the cartridge's chip, and what `VirtualCartridge.open` and `create` raise.
    """
    personality = name.personality or DEFAULT_PERSONALITY
    if create and not name.path.exists():
        capacity_bytes = name.capacity_bytes or personality.capacity_bytes
        return VirtualCartridge.create(name.path, personality.name, capacity_bytes)
    default = found_memory(name.path, personality, name.capacity_bytes)
    cartridge = VirtualCartridge.open(name.path, default=default)
    try:
        _check(name, cartridge)
    except UsageError:
        cartridge.close()
        raise
    return cartridge


def _check(name: VirtualDriveName, cartridge: VirtualCartridge) -> None:
    memory = cartridge.memory
    personality_named(memory.personality)
    if name.personality is not None and name.personality.name != memory.personality:
        raise UsageError(
            f"the cartridge {name.path} is for a drive of personality {memory.personality}, not "
            f"{name.personality.name}; leave the option out"
        )
    if name.capacity_bytes is not None and name.capacity_bytes != memory.capacity_bytes:
        raise UsageError(
            f"the cartridge {name.path} holds {memory.capacity_bytes} bytes, not "
            f"{name.capacity_bytes}; leave the option out"
        )
