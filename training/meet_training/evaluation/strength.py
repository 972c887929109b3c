"""How an attribute follows the strength of a control, and which strength to recommend. Pure.

The rank correlation is Spearman's, of the strengths with the attribute's median, or mean, at each, so that the spread
between prompts does not count against a control. Its sign is turned so that 1 is what was asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meet_bundle import Calibration
from meet_training.evaluation.attributes import Summary
from meet_training.evaluation.bootstrap import Array, Estimate, bootstrap, mean_of, median_of
from meet_training.evaluation.figures import Share, holds, share_of

TRAINED = 1.0
"""The strength at which a control was trained."""

WITHIN = 0.01
"""Shares that differ by no more count as the same when a strength is recommended: the one nearer 1 is taken."""

MORE_BROKEN = 0.05
"""How much larger the share of broken replies may be than at strength 0 for a strength to be recommended."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured of the attribute at one strength. `broken` replies are empty, cut off or repeat themselves."""

    strength: float
    median: Estimate
    mean: Estimate
    holds: Share
    broken: Share

    def typical(self, summary: Summary) -> Estimate:
        """What stands for the replies of all prompts."""
        return self.median if summary == "median" else self.mean


@dataclass(frozen=True, slots=True)
class Curve:
    """An attribute against the strength of one control, the strengths in ascending order.

    `summary` says what the rank correlation and `monotone` are about: the medians of the points, or their means.
    """

    preference: str
    attribute: str
    summary: Summary
    against: str
    points: tuple[Point, ...]
    rank_correlation: Estimate
    monotone: bool
    recommended: float

    @property
    def calibration(self) -> Calibration:
        """What the manifest keeps of it."""
        return Calibration(
            attribute=self.attribute,
            strengths=tuple(point.strength for point in self.points),
            medians=tuple(point.median.value for point in self.points),
            recommended=self.recommended,
        )


def curve(
    preference: str,
    attribute: str,
    values: Mapping[float, Sequence[float]],
    broken: Mapping[float, Sequence[bool]],
    others: Mapping[float, Sequence[float]],
    *,
    higher: bool,
    against: str,
    summary: Summary = "median",
) -> Curve:
    """The curve of one control.

    `values`, and whether each reply is `broken`, are by strength, one a prompt. `others` are what it must be on the
    asked side of at each strength: its opposite's values at that strength, or those without a control; `against`
    names which, NaN is on neither side. Raises ValueError where there are fewer than two strengths or none above 0.
    """
    strengths = sorted(values)
    if len(strengths) < 2 or strengths[-1] <= 0:
        raise ValueError(f"a curve needs two strengths, one of them above 0, found {strengths}")
    points = tuple(
        Point(
            strength,
            median_of(values[strength]),
            mean_of(values[strength]),
            holds(values[strength], others[strength], higher=higher),
            share_of(sum(broken[strength]), len(broken[strength])),
        )
        for strength in strengths
    )
    sign = 1.0 if higher else -1.0
    columns = sign * np.array([values[strength] for strength in strengths], dtype=np.float64).T
    over_prompts = np.median if summary == "median" else np.mean
    typical = [sign * point.typical(summary).value for point in points]
    return Curve(
        preference,
        attribute,
        summary,
        against,
        points,
        bootstrap(columns, lambda drawn: rank_correlations(strengths, over_prompts(drawn, axis=1))),
        rises(typical),
        recommended(points),
    )


def recommended(points: Sequence[Point]) -> float:
    """The strength above 0 that holds most often; of those within `WITHIN` of it the nearest to 1, then the lower.

    Strengths whose replies are broken on `MORE_BROKEN` more prompts than at strength 0 (at the strength nearest to
    it, where 0 was not measured) are left out; where that leaves none, it is the strength as trained.
    """
    calm = min(points, key=lambda point: abs(point.strength)).broken.share
    sound = [point for point in points if point.strength > 0 and point.broken.share <= calm + MORE_BROKEN]
    if not sound:
        return TRAINED
    best = max(point.holds.share for point in sound)
    near = [point.strength for point in sound if point.holds.share >= best - WITHIN]
    return min(near, key=lambda strength: (abs(strength - TRAINED), strength))


def rises(typical: Sequence[float]) -> bool:
    """Whether the values never fall, and end above where they began."""
    return all(before <= after for before, after in itertools.pairwise(typical)) and typical[0] < typical[-1]


def rank_correlations(strengths: Sequence[float], typical: Array) -> Array:
    """Spearman's rank correlation of the strengths (C,) with each row of medians or means (R, C) -> (R,).

    Ties get their mean rank; a row that is all one value has no rank order, and 0.
    """
    ranks = _ranks(typical)
    ranks -= ranks.mean(axis=1, keepdims=True)
    ordered = _ranks(np.asarray([strengths], dtype=np.float64))[0]
    ordered -= ordered.mean()
    spread = np.sqrt((ranks**2).sum(axis=1) * (ordered**2).sum())
    together: Array = ranks @ ordered
    correlations: Array = np.divide(together, spread, out=np.zeros_like(spread), where=spread > 0)
    return correlations


def _ranks(rows: Array) -> Array:
    # (R, C): for each value how many of its row are smaller, and half of the others that are equal to it.
    smaller = (rows[:, None, :] < rows[:, :, None]).sum(axis=2)
    equal = (rows[:, None, :] == rows[:, :, None]).sum(axis=2)
    ranks: Array = smaller + (equal - 1) / 2
    return ranks
