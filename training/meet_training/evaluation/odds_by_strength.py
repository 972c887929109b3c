"""How far a control prefers its own side of paired replies at each strength, without sampling. Pure.

It says whether a control follows its strength where an attribute knows little but 0 and 1, as the share of lines that
are list items does. The log-odds are those of `log_odds.py`, with the control at each strength; at 0, where there is
no control, they are 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meet_training.evaluation.bootstrap import Estimate, bootstrap, mean_of
from meet_training.evaluation.log_odds import Scored, differences
from meet_training.evaluation.strength import rank_correlations, rises


@dataclass(frozen=True, slots=True)
class OddsPoint:
    """Mean log-odds at one strength, in nats a token."""

    strength: float
    mean: Estimate


@dataclass(frozen=True, slots=True)
class OddsCurve:
    """Log-odds against the strength of one control, the strengths in ascending order.

    The rank correlation is Spearman's, of the strengths with the mean at each; 1 is what was asked for.
    """

    preference: str
    opposite: str
    points: tuple[OddsPoint, ...]
    rank_correlation: Estimate
    monotone: bool


def odds_curve(
    preference: str,
    opposite: str,
    own: Mapping[float, Sequence[Scored]],
    other: Mapping[float, Sequence[Scored]],
) -> OddsCurve:
    """The curve of one control: its own and the other side's replies scored at each strength, one pair a prompt.

    Raises ValueError where there are fewer than two strengths, or no pairs.
    """
    strengths = sorted(own)
    if len(strengths) < 2:
        raise ValueError(f"a curve needs two strengths, found {strengths}")
    columns = np.array([differences(own[strength], other[strength]) for strength in strengths]).T
    points = tuple(OddsPoint(strength, mean_of(columns[:, k])) for k, strength in enumerate(strengths))
    return OddsCurve(
        preference,
        opposite,
        points,
        bootstrap(columns, lambda drawn: rank_correlations(strengths, drawn.mean(axis=1))),
        rises([point.mean.value for point in points]),
    )
