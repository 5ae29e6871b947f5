"""What the wheel installs beside the code: manual pages, completions, units and udev rules.

Called by hatchling when it builds a wheel. Pages and completions are made anew each time, so that
they say what this version's argument parser says.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelData(BuildHookInterface[Any]):
    """Adds files below share/ of the environment that the wheel is installed in."""

    _made: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the files. A checkout that is used as it is has them in contrib/ already."""
        if version == "editable":
            return
        root = Path(self.root)
        sys.path[:0] = [str(root), str(root / "contrib")]
        from manpages import pages  # noqa: PLC0415 - only now it is found

        from tapefs.cli.completion import completion_script  # noqa: PLC0415 - the same

        self._made = tempfile.TemporaryDirectory()
        made = Path(self._made.name)
        shared = build_data["shared_data"]
        for name, text in (
            *((f"share/man/man1/{name}", text) for name, text in pages()),
            ("share/bash-completion/completions/tapefs", completion_script("bash")),
            ("share/zsh/site-functions/_tapefs", completion_script("zsh")),
        ):
            path = made / name.replace("/", "-")
            path.write_text(text)
            shared[str(path)] = name
        for folder in ("systemd", "udev"):
            for path in sorted((root / "contrib" / folder).iterdir()):
                shared[str(path)] = f"share/tapefs/{folder}/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is made."""
        if self._made is not None:
            self._made.cleanup()
