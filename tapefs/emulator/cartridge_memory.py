"""The cartridge's memory chip: a small JSON file beside the image.

It says what the image cannot: which personality wrote it, how much it may hold, whether its tab
forbids writing, how often it was loaded, and a number that changes with every load in which the
tape is written (SPC-4 MAM attribute 0009h), which tells a host that somebody else used the tape.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Final

from tapefs.errors import DamagedTape

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX: Final = ".mam"
_FILE_BYTES_MAX: Final = 64 * 1024


@dataclass(slots=True)
class CartridgeMemory:
    """What the chip holds. `capacity_bytes` counts bytes of the image, framing included."""

    personality: str
    capacity_bytes: int
    serial: str
    write_protected: bool = False
    load_count: int = 0
    volume_change_reference: int = 0


def memory_path(image: Path) -> Path:
    """Where the memory of the cartridge at `image` is kept."""
    return image.with_name(image.name + SUFFIX)


def load(path: Path) -> CartridgeMemory | None:
    """Read the chip; None when there is none. Raises DamagedTape when it cannot be understood."""
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_BYTES_MAX)
        values = json.loads(text)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as exc:
        raise _damaged(path, "is no JSON") from exc
    if not isinstance(values, dict):
        raise _damaged(path, "is no JSON object")
    kinds = {field.name: field.type for field in fields(CartridgeMemory)}
    known = {name: value for name, value in values.items() if name in kinds}
    for name, value in known.items():
        # type(), not isinstance(): JSON's true must not pass for the number 1.
        if type(value).__name__ != kinds[name] or (isinstance(value, int) and value < 0):
            raise _damaged(path, f"has a wrong value for '{name}'")
    try:
        return CartridgeMemory(**known)
    except TypeError as exc:
        raise _damaged(path, "lacks personality, capacity_bytes or serial") from exc


def save(path: Path, memory: CartridgeMemory) -> None:
    """Replace the chip's content as a whole; on return it survives power loss. Raises OSError."""
    scratch = path.with_name(path.name + ".new")
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(asdict(memory), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make names created or replaced in `path` survive power loss. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _damaged(path: Path, what: str) -> DamagedTape:
    return DamagedTape(f"{path} {what}; delete it to have the cartridge's memory made anew")
