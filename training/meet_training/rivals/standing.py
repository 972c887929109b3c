"""Who is ahead, and who is not beyond the intervals: figures of every rival, and of each beside another. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, median

import numpy as np

from meet_training.evaluation.bootstrap import Array, Estimate
from meet_training.evaluation.figures import share_of
from meet_training.rivals.figures import Ordered, broken_share, by_prompt, perplexity_ratios, scored_beside
from meet_training.rivals.intervals import difference, over_prompts_and_seeds
from meet_training.rivals.measuring import Cost, Measured
from meet_training.rivals.rival import Point


class Standing(StrEnum):
    """Where one stands beside another."""

    AHEAD = "ahead"
    BEHIND = "behind"
    LEVEL = "not told apart"


@dataclass(frozen=True, slots=True)
class Outcome:
    """All results of one rival: the point it chose, what the first seed gave at every point, and what each seed gave
    at that one."""

    name: str
    what: str
    has_neutral: bool
    point: Point
    searched: Mapping[Point, Measured]
    by_seed: Sequence[Measured]


@dataclass(frozen=True, slots=True)
class Beside:
    """By how much one is above another, and whether that is beyond the interval."""

    difference: Estimate
    standing: Standing


@dataclass(frozen=True, slots=True)
class Row:
    """One rival's figures on the tested prompts.

    Perplexity is None where the base said nothing to measure it on, or nothing can be not asked for.

    `cost` is of one seed, its seconds the mean; `beside` is by name.
    """

    name: str
    what: str
    point: str
    num_seeds: int
    cost: Cost
    holds: Estimate
    log_odds: Estimate
    perplexity_ratio: Estimate | None
    broken: float
    medians: Mapping[str, float]
    beside: Mapping[str, Mapping[str, Beside]]


FIGURES = ("holds", "log_odds")


def standing_of(each: Estimate) -> Standing:
    """Ahead or behind where the whole interval of a difference is on one side of 0."""
    if each.low > 0:
        return Standing.AHEAD
    return Standing.BEHIND if each.high < 0 else Standing.LEVEL


def standings(outcomes: Sequence[Outcome], base: Measured, pairs: Sequence[Ordered], rows: slice) -> list[Row]:
    """The figures of every outcome, each beside every other."""
    values = {outcome.name: _values(outcome, pairs, rows) for outcome in outcomes}
    return [_row(outcome, values, base, rows) for outcome in outcomes]


def beside(values: Array, others: Array) -> Beside:
    """Figures (S, N) of one beside those of another on the same prompts."""
    by = difference(values, others)
    return Beside(by, standing_of(by))


def share(values: Array) -> Estimate:
    """A share of values (S, N) in 0 to 1. Its interval is the wider of the bootstrap's and of Wilson's score for as
    many prompts: near 0 and 1 the bootstrap promises too much, and seeds are no prompts. It ends at 0 and 1."""
    drawn = over_prompts_and_seeds(values)
    score = share_of(round(drawn.value * drawn.num_prompts), drawn.num_prompts)
    low, high = max(0.0, min(drawn.low, score.low)), min(1.0, max(drawn.high, score.high))
    return Estimate(drawn.value, low, high, drawn.num_prompts)


def _values(outcome: Outcome, pairs: Sequence[Ordered], rows: slice) -> dict[str, Array]:
    found = [by_prompt(each, pairs, rows) for each in outcome.by_seed]
    return {"holds": np.stack([each.holds for each in found]), "log_odds": np.stack([each.log_odds for each in found])}


def _row(outcome: Outcome, values: Mapping[str, Mapping[str, Array]], base: Measured, rows: slice) -> Row:
    own, seeds = values[outcome.name], outcome.by_seed
    neutral = np.stack([scored_beside(each.neutral, base.neutral) for each in seeds])
    others = [name for name in values if name != outcome.name]
    return Row(
        outcome.name,
        outcome.what,
        str(outcome.point) if len(outcome.searched) > 1 else "",
        len(seeds),
        _cost(seeds),
        share(own["holds"]),
        over_prompts_and_seeds(own["log_odds"]),
        over_prompts_and_seeds(neutral, perplexity_ratios) if base.neutral and outcome.has_neutral else None,
        fmean(broken_share(each, rows) for each in seeds),
        _medians(seeds, rows),
        {other: {figure: beside(own[figure], values[other][figure]) for figure in FIGURES} for other in others},
    )


def _cost(seeds: Sequence[Measured]) -> Cost:
    first = seeds[0].cost
    return Cost(first.learned_tokens, first.all_tokens, fmean(each.cost.seconds for each in seeds), first.parameters)


def _medians(seeds: Sequence[Measured], rows: slice) -> dict[str, float]:
    """Of the attribute under each preference, over all prompts and seeds."""
    return {name: median(value for each in seeds for value in each.values[name][rows]) for name in seeds[0].values}
