"""One row -> the examples in it, form by form. Pure; reads nothing and knows nothing of other rows."""

from __future__ import annotations

import math
from typing import NamedTuple

from meet_training.data import conversations
from meet_training.data.attributes import ATTRIBUTES
from meet_training.data.example import UNCONTROLLED, Example, Message
from meet_training.data.levels import Ends, level_of
from meet_training.data.recognise import Columns, Recognised
from meet_training.data.sources import Row
from meet_training.data_config import DataConfig, LevelsConfig

NO_LEVEL = "(no level)"
"""The label of a row whose score lies in no level."""
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class Labelled(NamedTuple):
    """The label that the data gives a reply, and the reply as example; none where it is data of no preference.

    `again`: none either, since another label of the reply means the same preference and has the example already.
    """

    label: str
    example: Example | None
    again: bool = False


def labelled(row: Row, data: DataConfig, recognised: Recognised, ends: Ends) -> list[Labelled]:
    """The examples of a row, one for each reply and label. Raises RowError where the row lacks its form."""
    columns = recognised.columns
    if recognised.form in ("pairwise", "hh"):
        return _of_pair(row, data, columns, dialogues=recognised.form == "hh")
    if recognised.form == "unpaired":
        return [_of_truth(row, data, columns)]
    if data.levels is not None:
        label = level_of(score_of(row, data.levels, columns), ends)
        return [Labelled(label or NO_LEVEL, _answered(row, data, columns, label))]
    return _of_labels(row, data, columns)


def uncontrolled(row: Row, data: DataConfig, recognised: Recognised) -> Example:
    """The reply of a row, whatever its label; of a pair the chosen one. Raises RowError."""
    columns = recognised.columns
    if recognised.form in ("pairwise", "hh"):
        messages, reply = _side(row, columns, columns.chosen, dialogue=recognised.form == "hh")
    else:
        messages, reply = _conversation(row, columns)
    tools = conversations.tools_of(row, columns.tools)
    return Example(messages, reply, UNCONTROLLED, tools=tools, supervise=data.supervise)


def asked(row: Row, columns: Columns) -> tuple[tuple[Message, ...], str | Message | None]:
    """The conversation of a row that may or may not have a reply, and the reply. Raises RowError."""
    if row.fields.get(columns.chosen) is not None:
        dialogue = columns.prompt not in row.fields and conversations.is_dialogue(row.fields[columns.chosen])
        return _side(row, columns, columns.chosen, dialogue=dialogue)
    if row.fields.get(columns.messages) is not None and columns.reply not in row.fields:
        messages = conversations.messages_of(row, columns.messages)
        if messages[-1]["role"] != "assistant":
            return messages, None
    elif row.fields.get(columns.reply) is None:
        return conversations.prompt_of(row, columns.prompt), None
    return _conversation(row, columns)


def score_of(row: Row, levels: LevelsConfig, columns: Columns) -> float:
    """What a row's level goes by: its column's number or the text of one, or what is measured on its reply.

    Raises RowError.
    """
    if levels.attribute is not None:
        _, reply = _conversation(row, columns)
        return ATTRIBUTES[levels.attribute].measure(reply if isinstance(reply, str) else str(reply["content"]))
    field = str(levels.column)
    value = conversations.value_of(row, field)
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        raise row.mistake(field, f"must be a number, {conversations.found(value)}")
    return score


def _answered(row: Row, data: DataConfig, columns: Columns, preference: str | None) -> Example | None:
    if preference is None:
        return None
    messages, reply = _conversation(row, columns)
    tools = conversations.tools_of(row, columns.tools)
    return Example(messages, reply, preference, tools=tools, supervise=data.supervise)


def _conversation(row: Row, columns: Columns) -> tuple[tuple[Message, ...], str | Message]:
    """The conversation before the reply, from `messages` or from `prompt`, and the reply."""
    if row.fields.get(columns.messages) is None:
        return conversations.prompt_of(row, columns.prompt), conversations.reply_of(row, columns.reply)
    messages = conversations.messages_of(row, columns.messages)
    if columns.reply not in row.fields:
        return conversations.split_reply(row, columns.messages, messages)
    conversations.check_open(row, columns.messages, messages)
    return messages, conversations.reply_of(row, columns.reply)


def _labels(row: Row, field: str, separator: str | None) -> list[str]:
    value = conversations.value_of(row, field)
    if isinstance(value, list):
        if not value or not all(isinstance(label, str) and label.strip() for label in value):
            raise row.mistake(field, f"must be a label or a list of labels, {conversations.found(value)}")
        return list(dict.fromkeys(value))
    text = conversations.text_of(row, field)
    if separator is None:
        return [text]
    labels = [label.strip() for label in text.split(separator)]
    if not all(labels):
        raise row.mistake(field, f"must be labels with {separator!r} between them, {conversations.found(value)}")
    return list(dict.fromkeys(labels))


def _of_labels(row: Row, data: DataConfig, columns: Columns) -> list[Labelled]:
    """The reply under each of its labels, and as an example once for each preference that they mean."""
    found: list[Labelled] = []
    preferences: set[str] = set()
    for label in _labels(row, columns.preference, data.separator):
        preference = data.labels.get(label) if data.labels else label
        again = preference in preferences
        found.append(Labelled(label, None if again else _answered(row, data, columns, preference), again))
        preferences |= {preference} if preference is not None else set()
    return found


def _of_truth(row: Row, data: DataConfig, columns: Columns) -> Labelled:
    value = conversations.value_of(row, columns.preference)
    truth = _TRUTHS.get(str(value).strip().lower())
    if truth is None:
        raise row.mistake(columns.preference, f"must be true or false, {conversations.found(value)}")
    preference = data.chosen if truth else data.rejected
    return Labelled(str(truth).lower(), _answered(row, data, columns, preference))


def _of_pair(row: Row, data: DataConfig, columns: Columns, *, dialogues: bool) -> list[Labelled]:
    """Both replies, each with the other as rejected where they answer the same conversation."""
    chosen = _side(row, columns, columns.chosen, dialogue=dialogues)
    rejected = _side(row, columns, columns.rejected, dialogue=dialogues)
    if chosen == rejected:
        raise row.mistake(columns.rejected, f"must differ from {columns.chosen!r}, found the same")
    tools = conversations.tools_of(row, columns.tools)
    is_pair = chosen[0] == rejected[0]
    examples = []
    for label, preference, own, other in (
        ("chosen", data.chosen, chosen, rejected),
        ("rejected", data.rejected, rejected, chosen),
    ):
        example = None
        if preference is not None:
            example = Example(*own, preference, rejected=other[1] if is_pair else None, tools=tools)
        examples.append(Labelled(label, example))
    return examples


def _side(row: Row, columns: Columns, field: str, *, dialogue: bool) -> tuple[tuple[Message, ...], str | Message]:
    """The conversation before one reply of a pair, and the reply.

    A side is a dialogue, a whole conversation, or what follows on the prompt: text, or messages.
    """
    if dialogue:
        return conversations.split_reply(row, field, conversations.dialogue_of(row, field))
    if not conversations.is_message_list(row.fields.get(field)):
        return conversations.prompt_of(row, columns.prompt), conversations.reply_of(row, field)
    messages = conversations.messages_of(row, field)
    if messages[0]["role"] not in ("assistant", "tool"):
        _check_same_prompt(row, columns, field, messages)
        return conversations.split_reply(row, field, messages)
    prompt = conversations.prompt_of(row, columns.prompt)
    return (*prompt, *messages[:-1]), conversations.as_reply(row, field, messages[-1])


def _check_same_prompt(row: Row, columns: Columns, field: str, messages: tuple[Message, ...]) -> None:
    """A whole conversation needs no prompt; where the row has one all the same, it must be part of it."""
    prompt = row.fields.get(columns.prompt)
    if isinstance(prompt, str) and prompt not in [message["content"] for message in messages]:
        raise row.mistake(
            field, f"must hold the row's {columns.prompt!r}, or follow on it and start with the assistant"
        )
