"""Runs the commands of docs/TUTORIAL.md word for word, in a folder, and says how long each block took.

Knows nothing of what the commands do but that `meet serve` goes on until it is stopped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from page_shell import Step, run, serving


def commands_of(page: Path) -> list[str]:
    """The blocks of shell commands, in order, the installation left out."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert blocks[0] == "make setup\n", "the page begins with the installation"
    return blocks[1:]


def run_page(page: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[Step]:
    """Every block, until one fails. A server that a block starts serves the blocks after it."""
    blocks = commands_of(page)
    served = next(number for number, block in enumerate(blocks) if "meet serve" in block)
    for block in blocks[:served]:
        yield run(block, folder, environment)
    begun = time.monotonic()
    with serving(blocks[served], folder, environment):
        yield Step(blocks[served], time.monotonic() - begun, "")
        for block in blocks[served + 1 :]:
            yield run(block, folder, environment)
