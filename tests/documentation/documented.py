"""Every fenced block of every page, and the commands in those of a shell. Knows markdown, and nothing of the commands.

The reference is left out: it is generated, and compared with the code by `tests/test_docs.py`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
INCLUDED = re.compile(r'--8<-- "([^"]+)"')
SHELLS = ("sh", "bash")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PROGRAM = re.compile(r"(?:\$ )?(?:\.venv/bin/)?(meet|make|torchrun|accelerate|vllm|curl|pip|docker|kubectl)\s")
_VARIABLE = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Block:
    """One block: the page that it stands on, its line there, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    @cached_property
    def kind(self) -> str:
        """Its language; `shell` for commands, whether the block names a shell or not; `text` for what is neither."""
        if self.language in SHELLS or (not self.language and _PROGRAM.match(self.text)):
            return "shell"
        return self.language or "text"

    @property
    def includes(self) -> list[str]:
        """The files that the page shows here."""
        return INCLUDED.findall(self.text)

    @property
    def content(self) -> str:
        """The text as the page shows it."""
        return INCLUDED.sub(lambda found: (ROOT / found[1]).read_text().rstrip(), self.text)

    @property
    def place(self) -> str:
        """For the names of tests."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a block, as the shell would split it; `words` without assignments before the program."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        words = shlex.split(self.text, comments=True)
        while words and _VARIABLE.fullmatch(words[0]):
            words = words[1:]
        return [words[0].removeprefix(".venv/bin/"), *words[1:]]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line} {self.words[0]}"


def pages() -> list[Path]:
    """The pages that people write."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    found += (ROOT / "docs").glob("*.md")
    found += (ROOT / "examples").glob("*/README.md")
    found += (ROOT / "clients").glob("*/README.md")
    return sorted(found)


def blocks(*kinds: str) -> list[Block]:
    """The blocks of all pages; of some kinds where any are given."""
    found = []
    for path in pages():
        page, text = path.relative_to(ROOT).as_posix(), path.read_text()
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match["language"], dedent(match["text"])))
    return [block for block in found if not kinds or block.kind in kinds]


def num_fences(path: Path) -> int:
    """How many lines of the page begin or end a block, however they are written."""
    return len(re.findall(r"^ *(?:```|~~~)", path.read_text(), re.MULTILINE))


def commands() -> list[Command]:
    """Every command of every block of commands."""
    return [command for block in blocks("shell") for command in commands_of(block)]


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block. In a transcript only what stands behind `$ ` is one."""
    lines = block.text.splitlines()
    is_transcript = lines[0].startswith("$ ")
    kept, begun = "", 0
    for number, line in enumerate(lines, block.line + 1):
        if is_transcript and not kept and not line.startswith("$ "):
            continue
        begun = begun if kept else number
        kept += line.removeprefix("$ ") if is_transcript and not kept else line
        if kept.endswith("\\"):
            kept = kept[:-1]
            continue
        try:
            words = shlex.split(kept, comments=True)
        except ValueError:  # a quotation goes on on the next line
            kept += "\n"
            continue
        if words:
            yield Command(block.page, begun, kept)
        kept = ""
    assert not kept, f"{block.place}: a command does not end"


def inline_commands() -> list[Command]:
    """`meet …` and `make …` within sentences. `meet a|b` and what is cut short by … name several at once: left out."""
    found = []
    for path in pages():
        page = path.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            texts = [text for text in _INLINE.findall(line) if re.match(r"(meet|make) [a-z]", text)]
            found += [Command(page, number, text) for text in texts if not re.search(r"[|…]", text)]
    return found
