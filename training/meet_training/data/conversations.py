"""From a field of a row to messages: texts, message lists, whole dialogues, tools. Every mistake is named.

Messages come out as chat templates take them, and as the server hands them to the template: no empty keys,
and the arguments of tool calls as objects, not as JSON text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from meet_training.data.example import Message
from meet_training.data.sources import Row

ROLES = ("system", "developer", "user", "assistant", "tool")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_LIST_OF_OBJECTS = re.compile(r"\s*\[\s*\{")
_MESSAGE_FIRST = re.compile(r"\s*\[\s*\{\s*(['\"])(?:role|content)\1\s*:")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def value_of(row: Row, field: str) -> Any:
    """A field's value. Raises RowError where the row has no such field, or null in it."""
    if row.fields.get(field) is None:
        missing = "is missing" if field not in row.fields else "is null"
        raise row.mistake(field, f"{missing}; the row has {', '.join(row.fields) or 'no fields'}")
    return row.fields[field]


def text_of(row: Row, field: str) -> str:
    """A field's text. Raises RowError where it is none, blank, or no Unicode text."""
    value = value_of(row, field)
    if not isinstance(value, str) or not value.strip():
        raise row.mistake(field, f"must be text that is not empty, found {value!r}")
    _check_unicode(row, field, value)
    return value


def is_message_list(value: Any) -> bool:
    """Is it a list, or the JSON text of one, as CSV and some Parquet files hold it?

    Other JSON is text as any. What begins as a list of messages and is no JSON, as Python writes one, counts: whoever
    reads it says so.
    """
    if not isinstance(value, str):
        return isinstance(value, list)
    return _LIST_OF_OBJECTS.match(value) is not None and (_MESSAGE_FIRST.match(value) is not None or _has_roles(value))


def _has_roles(text: str) -> bool:
    try:
        read = json.loads(text)
    except ValueError:
        return False
    return all(isinstance(each, dict) and "role" in each for each in read)


def messages_of(row: Row, field: str) -> tuple[Message, ...]:
    """A field's list of messages. Raises RowError naming the message and what is allowed."""
    value = _decoded(row, field, value_of(row, field))
    if not isinstance(value, list) or not value:
        raise row.mistake(field, f"must be a list of messages, found {value!r}")
    return tuple(_message(row, f"{field}.{i}", message) for i, message in enumerate(value))


def prompt_of(row: Row, field: str) -> tuple[Message, ...]:
    """A prompt that is text, or a list of messages that ends before the reply."""
    if not is_message_list(row.fields.get(field)):
        return ({"role": "user", "content": text_of(row, field)},)
    messages = messages_of(row, field)
    check_open(row, field, messages)
    return messages


def check_open(row: Row, field: str, messages: Sequence[Message]) -> None:
    """Raises RowError where a conversation that is to be answered already ends with the assistant's reply."""
    if messages[-1]["role"] == "assistant":
        raise row.mistake(field, "must end before the reply, found an assistant's message at its end")


def reply_of(row: Row, field: str) -> str | Message:
    """A reply that is text, or an assistant's message, alone or in a list of one."""
    value = row.fields.get(field)
    if isinstance(value, dict):
        return as_reply(row, field, _message(row, field, value))
    if not is_message_list(value):
        return text_of(row, field)
    messages = messages_of(row, field)
    if len(messages) != 1:
        raise row.mistake(field, f"must be one message of the assistant's, found {len(messages)} messages")
    return as_reply(row, field, messages[0])


def as_reply(row: Row, field: str, message: Message) -> str | Message:
    """An assistant's message as a reply: its text where there is no more to it. Raises RowError."""
    if message["role"] != "assistant":
        raise row.mistake(field, f"must end with the assistant's reply, found a message of {message['role']!r}")
    if set(message) != {"role", "content"}:
        return message
    return str(message["content"])


def split_reply(row: Row, field: str, messages: Sequence[Message]) -> tuple[tuple[Message, ...], str | Message]:
    """What comes before the last message, and that as a reply. Raises RowError where there is no prompt."""
    reply = as_reply(row, field, messages[-1])
    if len(messages) == 1:
        raise row.mistake(field, "must have a message before the reply, found the reply alone")
    return tuple(messages[:-1]), reply


def is_dialogue(value: Any) -> bool:
    """Is it a whole dialogue in one text, in the form of Anthropic's HH data?"""
    return isinstance(value, str) and re.match(r"\s*Human:", value) is not None


def dialogue_of(row: Row, field: str) -> tuple[Message, ...]:
    """The messages of a dialogue `\\n\\nHuman: ...\\n\\nAssistant: ...`; turns of one speaker in a row are joined."""
    text = text_of(row, field)
    if not is_dialogue(text):
        raise row.mistake(field, f"must be a dialogue that starts with 'Human:', found {_start(text)}")
    parts = _TURN.split(f"\n\n{text.strip()}")[1:]
    messages: list[Message] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role, content = _SPEAKERS[speaker], said.strip()
        if not content:
            raise row.mistake(field, f"must have words in every turn, found an empty turn of {speaker!r}")
        if messages and messages[-1]["role"] == role:
            messages[-1] = {"role": role, "content": f"{messages[-1]['content']}\n\n{content}"}
        else:
            messages.append({"role": role, "content": content})
    return tuple(messages)


def tools_of(row: Row, field: str) -> tuple[dict[str, Any], ...] | None:
    """The tools on offer, from a list or its JSON text; none where the row has none."""
    value = row.fields.get(field)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = _decoded(row, field, value)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise row.mistake(
            field, f"must be a list of objects that describe a tool each, or its JSON text, {found(value)}"
        )
    _check_unicode(row, field, value)
    return tuple(value) or None


def found(value: Any) -> str:
    """What was found, cut to what a person reads."""
    return f"found {_start(value)}"


def _start(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _check_unicode(row: Row, field: str, value: Any) -> None:
    """Raises RowError where a text, or one in a message, has half of a surrogate pair: no tokenizer takes it. JSON lets
    it be written as an escape."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise row.mistake(field, f"must be Unicode text, found half of a surrogate pair, {half!r}") from None


def _decoded(row: Row, field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise row.mistake(field, f"must be a list or its JSON text, found {_start(value)}: {error}") from None


def _message(row: Row, field: str, value: Any) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys() | _excused(value):
        raise row.mistake(field, f"must have role and content, {found(value)}")
    # Parquet gives every message the keys of all messages, with null in those that it lacks.
    message = {key: part for key, part in value.items() if part is not None}
    if message.get("role") not in ROLES:
        raise row.mistake(f"{field}.role", f"must be one of {', '.join(ROLES)}, found {value['role']!r}")
    if "tool_calls" in message:
        if message["role"] != "assistant":
            raise row.mistake(f"{field}.tool_calls", f"is for the assistant, found in a message of {value['role']!r}")
        message["tool_calls"] = _tool_calls(row, f"{field}.tool_calls", message["tool_calls"])
        if not message["tool_calls"]:
            del message["tool_calls"]
    content = message.setdefault("content", "" if "tool_calls" in message else None)
    if not isinstance(content, str) or not (content.strip() or "tool_calls" in message or message["role"] == "tool"):
        raise row.mistake(f"{field}.content", f"must be text that is not empty, {found(content)}")
    _check_unicode(row, field, message)
    return message


def _excused(value: dict[str, Any]) -> set[str]:
    """A message that calls tools needs no content."""
    return {"content"} if value.get("tool_calls") else set()


def _tool_calls(row: Row, field: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise row.mistake(field, f"must be a list of tool calls, {found(value)}")
    return [_tool_call(row, f"{field}.{i}", call) for i, call in enumerate(value)]


def _tool_call(row: Row, field: str, value: Any) -> dict[str, Any]:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise row.mistake(field, f"must have function.name and function.arguments, {found(value)}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _decoded(row, f"{field}.function.arguments", arguments)
    if not isinstance(arguments, dict):
        raise row.mistake(f"{field}.function.arguments", f"must be an object or its JSON text, {found(arguments)}")
    call = {key: part for key, part in value.items() if part is not None}
    return {**call, "function": {**function, "arguments": arguments}}
