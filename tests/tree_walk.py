"""Walking a tree the same way on every Python."""

from __future__ import annotations

import os
from pathlib import Path


def below(root: Path) -> list[Path]:
    """Everything below `root`, sorted.

    Path.rglob of Python 3.11.2 (Debian 12) raises on symlinks with very long targets.
    """
    found = [
        Path(directory, name)
        for directory, directories, files in os.walk(root)
        for name in (*directories, *files)
    ]
    return sorted(found)
