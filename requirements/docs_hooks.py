"""Hooks of MkDocs: a link from a page to a file of the repository that is no page becomes the file's name."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^]]*)\]\(\.\./([^)#]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page as the site shows it; the repository's own view follows the links."""
    return _OUTSIDE.sub(lambda found: f"`{found[2]}`", markdown)
