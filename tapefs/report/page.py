"""One HTML page that shows a volume, with everything it needs in it."""

from __future__ import annotations

import html
import importlib.resources
import json
import re
from typing import TYPE_CHECKING, Any, Final

import tapefs

if TYPE_CHECKING:
    from collections.abc import Mapping

_PART: Final = re.compile("@(TITLE|STYLE|SCRIPT|DATA)@")


def page(portrait: Mapping[str, Any], made_ns: int) -> str:
    """The page for what `tapefs.archive.portrait.portrait` returned. `made_ns`: now.

    It loads nothing from anywhere: its content security policy forbids that. Names of files get
    into the document as text only.
    """
    data = {**portrait, "made_ns": made_ns, "tapefs_version": tapefs.__version__}
    parts = {
        "TITLE": html.escape(f"{portrait['name']} - tapefs"),
        "STYLE": _resource("page.css"),
        "SCRIPT": _resource("page.js"),
        # Within a script element nothing but "<" could end it.
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return _PART.sub(lambda found: parts[found[1]], _resource("page.html"))


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
