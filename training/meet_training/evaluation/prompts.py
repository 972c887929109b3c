"""The prompts that an evaluation asks. Reads JSON Lines; knows nothing of who is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from meet_training.data.generate_config import instructed
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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    prompts: list[Prompt] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and (limit is None or len(prompts) < limit):
            prompts.append(_read_row(line, f"{path}:{number}"))
    if not prompts:
        raise TrainingError(f"{path} holds no prompts")
    return prompts


def with_instruction(prompt: Prompt, instruction: str) -> Prompt:
    """The prompt with an instruction at the end of the user's last message, as data generation asks it."""
    *before, last = prompt
    return (*before, last._replace(content=instructed(last.content, instruction)))


def _read_row(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TrainingError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise TrainingError(f"{where}: expected an object with `prompt` or `messages`, found {type(row).__name__}")
    if ("prompt" in row) == ("messages" in row):
        found = ", ".join(sorted(row)) or "nothing"
        raise TrainingError(f"{where}: expected one of the fields `prompt` and `messages`, found {found}")
    if "prompt" in row:
        return (Message("user", _text(row["prompt"], f"{where}: prompt")),)
    return _read_messages(row["messages"], f"{where}: messages")


def _read_messages(messages: Any, where: str) -> Prompt:
    if not isinstance(messages, list) or not messages:
        raise TrainingError(f"{where}: expected a list of messages, found {messages!r}")
    read = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise TrainingError(f"{where}.{index}.role: expected system, user or assistant, found {message!r}")
        read.append(Message(message["role"], _text(message.get("content"), f"{where}.{index}.content")))
    if read[-1].role != "user":
        raise TrainingError(f"{where}: the last message must be the user's, found {read[-1].role!r}")
    return tuple(read)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TrainingError(f"{where}: expected text, found {value!r}")
    return value
