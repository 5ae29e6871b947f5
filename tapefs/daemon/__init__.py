"""The composition root: builds everything, owns the root nursery and the signals.

Only here is a transport chosen: the one place that knows both the drive and the wires.
"""

from tapefs.daemon.commands import format_tape, list_drives, list_generations, rebuild, verify
from tapefs.daemon.doctor import examine
from tapefs.daemon.mount import MountRequest, run_mount
from tapefs.daemon.unmounted import find_cartridge, with_volume

__all__ = [
    "MountRequest",
    "examine",
    "find_cartridge",
    "format_tape",
    "list_drives",
    "list_generations",
    "rebuild",
    "run_mount",
    "verify",
    "with_volume",
]
