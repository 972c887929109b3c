"""From rows of pointwise data to examples: who said what, and which preference the reply shows.

Pure but for reading the files that the configuration names. Knows no tokens.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from meet_training.config import ColumnNames, DataConfig, TrainConfig
from meet_training.data.sources import Row, read_rows
from meet_training.errors import TrainingError

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation up to the reply, the reply, and the preference that the reply shows."""

    messages: tuple[Message, ...]
    reply: str
    preference: str


def load_examples(config: TrainConfig) -> dict[str, list[Example]]:
    """The examples of every preference, in the order in which the configuration names the preferences.

    Raises TrainingError where data is empty, has one label only, or has none of a preference.
    """
    found: dict[str, list[Example]] = {label: [] for label in config.preferences}
    files = ", ".join(str(data.path) for data in config.data)
    seen: set[str] = set()
    for data in config.data:
        for label, example in pointwise(read_rows(data.path), data):
            seen.add(label)
            if example is None:
                continue
            if example.preference not in found:
                known = ", ".join(found)
                raise TrainingError(
                    f"{data.path}: label {label!r} is none of the preferences ({known}); name it under "
                    f"`preferences`, or map it under `labels`"
                )
            found[example.preference].append(example)
    if not seen:
        raise TrainingError(f"{files}: no rows")
    if len(seen) == 1:
        raise TrainingError(
            f"{files}: every row has the label {seen.pop()!r}; a control is told apart from at least one other"
        )
    if missing := [label for label, examples in found.items() if not examples]:
        raise TrainingError(f"{files}: no example of {', '.join(missing)}; labels found: {', '.join(sorted(seen))}")
    return {
        label: draw(examples, config.examples_per_preference, f"{config.seed}/{label}")
        for label, examples in found.items()
    }


def draw(examples: list[Example], num: int | None, seed: str) -> list[Example]:
    """At most `num` of the examples, drawn by the seed, in their own order."""
    if num is None or len(examples) <= num:
        return examples
    chosen = sorted(random.Random(seed).sample(range(len(examples)), num))  # noqa: S311 - a draw, no secret
    return [examples[i] for i in chosen]


def pointwise(rows: Iterable[Row], data: DataConfig) -> Iterator[tuple[str, Example | None]]:
    """The label of every row that `data.where` keeps, with its example; None where `data.labels` leaves it out."""
    columns = data.columns
    for row in rows:
        if not all(_matches(row.fields.get(field), wanted) for field, wanted in data.where.items()):
            continue
        label = _text(row, columns.preference)
        preference = data.labels.get(label) if data.labels else label
        if preference is None:
            yield label, None
        else:
            yield label, Example(_messages(row, columns), _text(row, columns.reply), preference)


def digest(examples: dict[str, list[Example]]) -> str:
    """SHA-256 of what is trained on, in order."""
    content = [
        [label, [[list(example.messages), example.reply] for example in group]] for label, group in examples.items()
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _matches(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted


def _text(row: Row, field: str) -> str:
    if field not in row.fields:
        raise row.mistake(field, f"is missing; the row has {', '.join(row.fields) or 'no fields'}")
    value = row.fields[field]
    if not isinstance(value, str) or not value.strip():
        raise row.mistake(field, f"must be text that is not empty, found {value!r}")
    return value


def _messages(row: Row, columns: ColumnNames) -> tuple[Message, ...]:
    """The conversation before the reply, from `messages` or from `prompt`."""
    if columns.messages not in row.fields:
        return ({"role": "user", "content": _text(row, columns.prompt)},)
    messages = row.fields[columns.messages]
    if not isinstance(messages, list) or not messages:
        raise row.mistake(columns.messages, f"must be a list of messages, found {messages!r}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise row.mistake(f"{columns.messages}.{i}", f"must have role and content, found {message!r}")
    if messages[-1]["role"] == "assistant":
        raise row.mistake(columns.messages, f"must end before the reply, which stands in {columns.reply!r}")
    return tuple(messages)
