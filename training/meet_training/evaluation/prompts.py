"""The prompts that an evaluation asks, from any file of rows. Knows nothing of who is asked."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import NamedTuple

from meet_training.data.conversations import messages_of, text_of
from meet_training.data.generate_config import instructed
from meet_training.data.sources import Row, read_rows, reading
from meet_training.errors import TrainingError


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    content: str


Prompt = tuple[Message, ...]
"""The messages that a reply is asked to; the last one is the user's."""


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of a file, all where it is None. Rows have `prompt` or `messages`.

    Other fields of a row are let be. Raises TrainingError naming file, line and field.
    """
    with reading(read_rows(path)) as rows:
        prompts = [prompt_of(row) for row in islice(rows, limit)]
    if not prompts:
        raise TrainingError(f"{path} holds no prompts")
    return prompts


def with_instruction(prompt: Prompt, instruction: str) -> Prompt:
    """The prompt with an instruction at the end of the user's last message, as data generation asks it."""
    *before, last = prompt
    return (*before, last._replace(content=instructed(last.content, instruction)))


def prompt_of(row: Row) -> Prompt:
    """The prompt of a row, from `prompt` or `messages`. Raises TrainingError naming file, line and field."""
    if ("prompt" in row.fields) == ("messages" in row.fields):
        found = ", ".join(sorted(row.fields)) or "nothing"
        raise TrainingError(
            f"{row.file}:{row.number}: expected one of the fields `prompt` and `messages`, found {found}"
        )
    if "prompt" in row.fields:
        return (Message("user", text_of(row, "prompt")),)
    messages = messages_of(row, "messages")
    if messages[-1]["role"] != "user":
        raise row.mistake("messages", f"must end with the user's message, found {messages[-1]['role']!r}")
    return tuple(Message(message["role"], message["content"]) for message in messages)


def shortened(text: str, length: int = 60) -> str:
    """The text's beginning on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
