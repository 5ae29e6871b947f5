"""What stands behind `-o`: settings of tapefs, flags for the kernel, and words of mount(8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tapefs.config import parse_options

# What the kernel does by itself for any filesystem; libfuse knows these.
_KERNEL_FLAGS: Final = frozenset(
    ("nodev", "dev", "nosuid", "suid", "noexec", "exec", "noatime", "nodiratime", "sync", "dirsync")
)
# Words of fstab(5) and mount(8) that are meant for others, or that say what is so anyway.
_NO_MEANING: Final = frozenset(
    (
        *(
            "defaults",
            "async",
            "atime",
            "diratime",
            "relatime",
            "norelatime",
            "default_permissions",
        ),
        *("auto", "noauto", "user", "users", "nouser", "owner", "group", "nofail", "_netdev"),
    )
)
_FOR_OTHERS: Final = ("x-", "X-", "comment=", "uhelper=", "helper=")
_STATE_DIR: Final = "state_dir="
_METRICS: Final = "metrics="


@dataclass(frozen=True, slots=True)
class MountWords:
    """The options of one mount, told apart. `settings` is for `Config`."""

    settings: str
    read_only: bool = False
    kernel_flags: tuple[str, ...] = ()
    state_dir: str | None = None


def tell_apart(text: str) -> MountWords:
    """What the comma-separated options in `text` mean; of contradicting ones the last counts.

    Raises UsageError for an unknown option or a bad value, before anything is started.
    """
    settings, flags = [], []
    read_only, state_dir = False, None
    for item in filter(None, text.split(",")):
        if item in ("ro", "rw"):
            read_only = item == "ro"
        elif item in _KERNEL_FLAGS:
            flags.append(item)
        elif item.startswith(_STATE_DIR):
            state_dir = item.removeprefix(_STATE_DIR)
        elif item.startswith(_METRICS) and item != _METRICS:
            # The daemon changes its directory.
            path = Path(item.removeprefix(_METRICS)).expanduser().absolute()
            settings.append(f"{_METRICS}{path}")
        elif item not in _NO_MEANING and not item.startswith(_FOR_OTHERS):
            settings.append(item)
    parse_options(",".join(settings))
    return MountWords(",".join(settings), read_only, tuple(flags), state_dir)
