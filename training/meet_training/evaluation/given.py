"""Replies that are given and not asked for: pairs for log-odds, neutral ones for perplexity. Any file of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from meet_training.data.conversations import text_of
from meet_training.data.sources import read_rows
from meet_training.errors import TrainingError
from meet_training.evaluation.prompts import Prompt, prompt_of


@dataclass(frozen=True, slots=True)
class Pair:
    """Replies of both sides of an axis to one prompt, by preference."""

    prompt: Prompt
    replies: Mapping[str, str]


def read_pairs(path: Path) -> list[Pair]:
    """Rows of `prompt` or `messages`, `reply` and `preference`, those of one prompt put together.

    The first reply of a preference to a prompt is taken; prompts with replies of one alone are left out. Raises
    TrainingError where a row does not fit, or none is left.
    """
    found: dict[Prompt, dict[str, str]] = {}
    for row in read_rows(path):
        replies = found.setdefault(prompt_of(row), {})
        replies.setdefault(text_of(row, "preference"), text_of(row, "reply"))
    if not any(len(replies) > 1 for replies in found.values()):
        raise TrainingError(f"pairs: {path} has no prompt with replies of two preferences")
    return [Pair(prompt, replies) for prompt, replies in found.items() if len(replies) > 1]


def read_neutral(path: Path, limit: int | None = None) -> list[tuple[Prompt, str]]:
    """The first `limit` rows of `prompt` or `messages`, and `reply`. Raises TrainingError."""
    rows = [(prompt_of(row), text_of(row, "reply")) for row in islice(read_rows(path), limit)]
    if not rows:
        raise TrainingError(f"neutral: {path} holds no replies")
    return rows
