"""Entry point of `tapefs` and of `python3 -m tapefs`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tapefs import cli

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return cli.main(argv)


def umount_main(argv: Sequence[str] | None = None) -> int:
    """Run as umount(8)'s helper `umount.fuse.tapefs`; the exit code."""
    return cli.umount_main(argv)


def mount_main(argv: Sequence[str] | None = None) -> int:
    """Run as mount(8)'s helper `mount.fuse.tapefs`; the exit code."""
    return cli.mount_main(argv)


if __name__ == "__main__":
    sys.exit(main())
