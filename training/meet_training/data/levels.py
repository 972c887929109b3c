"""Cuts a score into levels, each the data of a preference. Pure; reads no rows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping

from meet_training.data_config import LevelsConfig

Ends = Mapping[str, tuple[float, float]]
"""Preference -> lowest score of its level, and the score that its level ends below."""


def ends_by_score(levels: LevelsConfig) -> Ends:
    """The levels' ends as the configuration gives them."""
    return {label: level.ends for label, level in levels.preferences.items()}


def ends_by_quantile(levels: LevelsConfig, scores: array[float]) -> Ends:
    """The scores at the levels' shares: the share q of n scores ends at the floor(qn)-th of them in order, from 0.

    Equal scores lie in one level, so a level of a column with few values may hold more or less than its share.
    """
    ordered = sorted(scores)

    def score_at(share: float) -> float:
        place = math.floor(share * len(ordered))
        return ordered[place] if place < len(ordered) else math.inf

    return {
        label: (
            -math.inf if level.at_least in (None, 0) else score_at(level.ends[0]),
            math.inf if level.below in (None, 1) else score_at(level.ends[1]),
        )
        for label, level in levels.preferences.items()
    }


def level_of(score: float, ends: Ends) -> str | None:
    """The preference whose level a score lies in, or none."""
    return next((label for label, (low, high) in ends.items() if low <= score < high), None)
