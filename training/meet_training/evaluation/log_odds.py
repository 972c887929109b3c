"""How far a control prefers its own side of a pair of replies, without sampling and without a judge. Pure.

For a prompt x with a reply y+ of the preference's side and y- of its opposite's:

    (log p(y+ | x, control) - log p(y+ | x)) / |y+|  -  (log p(y- | x, control) - log p(y- | x)) / |y-|

in nats a token, |y| in tokens. What the model thinks of the two replies by itself cancels out: a control that does
nothing has 0 on every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meet_training.evaluation.bootstrap import Estimate, mean_of
from meet_training.evaluation.figures import Share, share_of


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probability of a reply, summed over its tokens, in nats."""

    logprob: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Scored:
    """One reply scored under the control and without one."""

    controlled: Score
    uncontrolled: Score

    @property
    def lift(self) -> float:
        """What the control adds, in nats a token."""
        return (self.controlled.logprob - self.uncontrolled.logprob) / self.controlled.num_tokens


@dataclass(frozen=True, slots=True)
class LogOdds:
    """How far one control prefers its own side: the mean, in nats a token, and the share of pairs on which it does."""

    preference: str
    opposite: str
    mean: Estimate
    prefers_own: Share


def log_odds(preference: str, opposite: str, own: Sequence[Scored], other: Sequence[Scored]) -> LogOdds:
    """The figures of one control on pairs of replies, one pair a prompt. Raises ValueError where there are none."""
    found = differences(own, other)
    num_own = sum(difference > 0 for difference in found)
    return LogOdds(preference, opposite, mean_of(found), share_of(num_own, len(found)))


def differences(own: Sequence[Scored], other: Sequence[Scored]) -> list[float]:
    """The log-odds of each pair, in nats a token."""
    return [mine.lift - others.lift for mine, others in zip(own, other, strict=True)]
