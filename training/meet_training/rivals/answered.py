"""The data of a comparison: prompts that several preferences have answered, and who gets to see which.

No prompt is on two sides: conversations that begin with the same message, system messages apart, go the same way, to
the test, to the choice of learning rates, to the classifier or to training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meet_training.config import TrainConfig
from meet_training.data.example import Example, Message
from meet_training.data.forms import load_examples
from meet_training.data_config import DataConfig
from meet_training.errors import TrainingError
from meet_training.rivals.compare_config import CompareConfig, Opposites

SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Answered:
    """A conversation, and one reply to it of each of some preferences."""

    messages: tuple[Message, ...]
    replies: Mapping[str, str]

    @property
    def first(self) -> str:
        """What the conversation begins with, behind a system message: many conversations may have the same one."""
        said = [message for message in self.messages if message["role"] not in SYSTEM_ROLES]
        return str((said or self.messages)[0]["content"])

    def has(self, preferences: Iterable[str]) -> bool:
        return all(preference in self.replies for preference in preferences)


@dataclass(frozen=True, slots=True)
class Split:
    """Who sees what. `training` is by opposites; the others have a reply of every preference."""

    test: list[Answered]
    tuning: list[Answered]
    training: dict[Opposites, list[Answered]]
    classifier: list[Answered] = field(default_factory=list)

    def examples(self) -> dict[str, list[Example]]:
        """The training examples of every preference, each with its opposite's reply as the rejected one."""
        examples: dict[str, list[Example]] = {}
        for (one, other), rows in self.training.items():
            for own, opposite in ((one, other), (other, one)):
                examples[own] = [
                    Example(row.messages, row.replies[own], own, rejected=row.replies[opposite]) for row in rows
                ]
        return examples


def read_answered(config: CompareConfig, data: Sequence[DataConfig]) -> list[Answered]:
    """Every conversation of the data with its replies, the first of each preference, in an order by content.

    Raises TrainingError where the data cannot be read or a reply is no text.
    """
    reading = TrainConfig(
        name="compare", base=config.base, output=Path(), data=tuple(data), preferences=config.preferences
    )
    found: dict[str, tuple[tuple[Message, ...], dict[str, str]]] = {}
    for label, examples in load_examples(reading).items():
        for example in examples:
            if not isinstance(example.reply, str) or example.tools:
                raise TrainingError(f"data: a reply of {label!r} has tool calls; rivals are compared on text alone")
            key = json.dumps(example.messages, sort_keys=True)
            found.setdefault(key, (example.messages, {}))[1].setdefault(label, example.reply)
    rows = [Answered(messages, replies) for messages, replies in found.values()]
    return sorted(rows, key=lambda row: (_place(row.first), _place(json.dumps(row.messages, sort_keys=True))))


def split(config: CompareConfig, fits: Callable[[Answered], bool]) -> Split:
    """Deals the data out. `fits` says whether a row is short enough. Raises TrainingError where there is too little."""
    rows = [row for row in read_answered(config, config.data) if len(row.replies) > 1]
    all_of_them = tuple(config.preferences)
    dealt: dict[str, str] = {}
    if config.test.data:
        given = read_answered(config, config.test.data)
        test = _take("test", config.test.prompts, given, all_of_them, fits, dealt)
    else:
        test = _take("test", config.test.prompts, rows, all_of_them, fits, dealt)
    tuning = _take("tuning", config.tuning.prompts, rows, all_of_them, fits, dealt)
    judged = _take("classifier", config.classifier.pairs, rows, all_of_them, fits, dealt) if config.judged else []
    left = [row for row in rows if row.first not in dealt]
    training = {two: _take("budget", config.budget.pairs, left, two, fits, {}) for two in config.opposites}
    return Split(test, tuning, training, judged)


def digest_of(rows: Iterable[Answered]) -> str:
    """SHA-256 of conversations and replies, in order."""
    hashed = hashlib.sha256()
    for row in rows:
        hashed.update(json.dumps([row.messages, dict(row.replies)], sort_keys=True).encode())
    return hashed.hexdigest()


def _take(
    what: str,
    num: int,
    rows: Sequence[Answered],
    preferences: Sequence[str],
    fits: Callable[[Answered], bool],
    dealt: dict[str, str],
) -> list[Answered]:
    """The first `num` rows with a reply of all `preferences` that were not dealt to somebody else; notes them."""
    taken: list[Answered] = []
    for row in rows:
        if len(taken) == num:
            break
        if row.has(preferences) and dealt.get(row.first, what) == what and fits(row):
            taken.append(row)
            dealt[row.first] = what
    if len(taken) < num:
        field_name = {"budget": "budget.pairs", "classifier": "classifier.pairs"}.get(what, f"{what}.prompts")
        raise TrainingError(
            f"{field_name}: {num}, but the data has {len(taken)} prompts left that {', '.join(preferences)} all answer "
            f"and that fit max_length"
        )
    return taken


def _place(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
