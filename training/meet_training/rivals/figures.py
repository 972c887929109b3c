"""From what was measured to figures a prompt: how often attributes are in order, and how far sides are preferred. Pure.

For every two preferences of an axis, of which the second is to have more of the attribute:

- *holds*: whether the second's reply has, where both say anything;
- *log-odds*: half of (ln p(y1 | 1) - ln p(y1 | 2)) / |y1| + (ln p(y2 | 2) - ln p(y2 | 1)) / |y2|, in nats a token, y1
  and y2 being given replies of each. It is the mean of what `meet eval` calls log-odds over both controls: what it
  takes as its reference cancels out, so that models without an uncontrolled state have it too.

A prompt's figure is the mean over these pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from meet_training.evaluation.bootstrap import Array
from meet_training.evaluation.log_odds import Score, Scored
from meet_training.evaluation.side_effects import broken
from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.measuring import Measured

Ordered = tuple[str, str]
"""Two preferences of an axis, the one that is to have less of its attribute first."""


@dataclass(frozen=True, slots=True)
class ByPrompt:
    """Figures of one training on some rows, (N,) each."""

    holds: Array
    log_odds: Array


@dataclass(frozen=True, slots=True)
class Quality:
    """What a learning rate is chosen by.

    `perplexity_ratio` is of neutral replies, over the base's, None where the base said nothing to measure it on or the
    rival has no neutral state; `too_much` is how far it is above what it may be, 0 where it is not.
    """

    holds: float
    log_odds: float
    perplexity_ratio: float | None
    too_much: float

    @property
    def rank(self) -> tuple[float, float, float]:
        """The greatest is chosen: the least too perplexing; of equals, what holds most often; of equals, log-odds."""
        return -self.too_much, self.holds, self.log_odds


def ordered_pairs(config: CompareConfig) -> list[Ordered]:
    """Every two preferences of every axis."""
    return [pair for axis in config.axes.values() for pair in combinations(axis.order, 2)]


def sides(config: CompareConfig) -> dict[str, tuple[str, ...]]:
    """Whose given replies are scored under a preference: all of its axis."""
    return {label: config.axis_of(label).order for label in config.preferences}


def by_prompt(measured: Measured, pairs: Sequence[Ordered], rows: slice) -> ByPrompt:
    """The figures on a part of the rows."""
    return ByPrompt(
        np.array([_holds(measured, pair, rows) for pair in pairs], dtype=np.float64).mean(axis=0),
        np.array([list(_log_odds(measured, pair, rows)) for pair in pairs], dtype=np.float64).mean(axis=0),
    )


def quality(
    measured: Measured, base: Measured, pairs: Sequence[Ordered], rows: slice, max_perplexity: float | None
) -> Quality:
    """Of one training on the rows that rates are chosen on. Without `max_perplexity` none is too much."""
    found, ratio, too_much = by_prompt(measured, pairs, rows), None, 0.0
    if base.neutral_tuning and max_perplexity is not None:
        neutral = scored_beside(measured.neutral_tuning, base.neutral_tuning)
        ratio = float(perplexity_ratios(neutral[None, None])[0])
        too_much = max(0.0, ratio - max_perplexity)
    return Quality(float(found.holds.mean()), float(found.log_odds.mean()), ratio, too_much)


def broken_share(measured: Measured, rows: slice) -> float:
    """Share of all replies that were cut off or repeat themselves."""
    replies = [reply for given in measured.replies.values() for reply in given[rows]]
    return sum(map(broken, replies)) / len(replies)


def scored_beside(scores: Sequence[Score], base: Sequence[Score]) -> Array:
    """Log-probability and tokens of each neutral reply, of the rival and of the base, (N, 4)."""
    pairs = zip(scores, base, strict=True)
    return np.array([(a.logprob, a.num_tokens, b.logprob, b.num_tokens) for a, b in pairs], dtype=np.float64)


def perplexity_ratios(drawn: Array) -> Array:
    """The rival's perplexity over the base's, (R, S, N, 4) -> (R,). 1.03 is 3% worse."""
    logprob, num, base_logprob, base_num = np.moveaxis(drawn.sum(axis=(1, 2)), -1, 0)
    ratios: Array = np.exp(base_logprob / base_num - logprob / num)
    return ratios


def _holds(measured: Measured, pair: Ordered, rows: slice) -> list[bool]:
    less, more = (measured.values[name][rows] for name in pair)
    said = (not (a.empty or b.empty) for a, b in zip(*(measured.replies[name][rows] for name in pair), strict=True))
    return [both and a < b for a, b, both in zip(less, more, said, strict=True)]


def _log_odds(measured: Measured, pair: Ordered, rows: slice) -> Iterator[float]:
    lifts = []
    for own, other in (pair, pair[::-1]):
        under_own, under_other = measured.scores[own][own][rows], measured.scores[other][own][rows]
        lifts.append([Scored(a, b).lift for a, b in zip(under_own, under_other, strict=True)])
    return (sum(both) / 2 for both in zip(*lifts, strict=True))
