"""How often a control holds, and by how much, from measured replies. Pure: numbers in, numbers out.

A preference *holds* on a prompt where its attribute is on the asked side of that of another reply to the
same prompt: above it for the preference that is higher on its axis, below it for the other. Ties do not hold.
Its *advantage* is the share of prompts on the asked side less the share on the other: 0 for two sets of replies
that cannot be told apart, whatever the number of ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from meet_training.evaluation.bootstrap import LEVEL, Estimate, mean_of

# The 97.5% quantile of the normal distribution, for intervals of 95%.
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Share:
    """A share of prompts with its 95% interval, by Wilson's score and by the bootstrap.

    Where a share is 0 or 1 every resample is the same and the bootstrap's interval is that one point, however few
    the prompts; Wilson's is the one to read.
    """

    share: float
    low: float
    high: float
    num_prompts: int
    bootstrap_low: float
    bootstrap_high: float


@dataclass(frozen=True, slots=True)
class Holds(Share):
    """Share of prompts on the asked side, the advantage, and the share of those that are not ties (None: all are)."""

    advantage: Estimate
    decided: Share | None

    @property
    def better(self) -> bool:
        """Is it on the asked side on more than half of the prompts that decide, and not by chance?"""
        return self.decided is not None and self.decided.share > 0.5 and not by_chance(self.decided)

    @property
    def worse(self) -> bool:
        """Is it on the asked side on fewer than half of them, and not by chance?"""
        return self.decided is not None and self.decided.share < 0.5 and not by_chance(self.decided)

    @property
    def num_ties(self) -> int:
        """Prompts on neither side."""
        return self.num_prompts - (self.decided.num_prompts if self.decided else 0)


def holds(values: Sequence[float], others: Sequence[float], *, higher: bool) -> Holds:
    """How often `values` is on the asked side of `others`; both have one value a prompt. NaN is on neither side.

    Raises ValueError where they differ in length or are empty.
    """
    signs = [int(value > other) - int(value < other) for value, other in zip(values, others, strict=True)]
    sides = [sign if higher else -sign for sign in signs]
    num_held, num_decided = sides.count(1), len(sides) - sides.count(0)
    return Holds(
        **asdict(share_of(num_held, len(sides))),
        advantage=mean_of(sides),
        decided=share_of(num_held, num_decided) if num_decided else None,
    )


def share_of(num_held: int, num_prompts: int) -> Share:
    """A share and its Wilson score interval (Wilson 1927), which is sound near 0 and 1 and for few prompts.

    Raises ValueError where there are no prompts.
    """
    if num_prompts < 1:
        raise ValueError("a share needs at least one prompt")
    share = num_held / num_prompts
    square = _Z * _Z / num_prompts
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / num_prompts + square / (4 * num_prompts))
    drawn = mean_of(np.arange(num_prompts) < num_held)
    return Share(share, max(0.0, centre - half), min(1.0, centre + half), num_prompts, drawn.low, drawn.high)


def by_chance(decided: Share) -> bool:
    """Whether a fair coin would be as far from one half, either way, in more than 1 of 20 such experiments.

    The exact sign test. Intervals promise too much of few prompts: Wilson's of 4 in 4 leaves out one half, and 4 equal
    things are all on one side in 1 of 8. So 6 of 6 is the least that tells two replies apart.
    """
    num = decided.num_prompts
    fewer = min(held := round(decided.share * num), num - held)
    tail = sum(math.comb(num, count) for count in range(fewer + 1))
    likely: float = 2 * tail / 2**num
    return likely > 1 - LEVEL


def mean_difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Mean over the prompts of `values` less `others`, in their unit.

    Raises ValueError where they differ in length or are empty.
    """
    return mean_of([value - other for value, other in zip(values, others, strict=True)])


def same_share(texts: Sequence[str], others: Sequence[str]) -> Share:
    """Share of prompts on which both replies are the same text.

    Raises ValueError where they differ in length or are empty.
    """
    num_same = sum(text == other for text, other in zip(texts, others, strict=True))
    return share_of(num_same, len(texts))


def median_index(values: Sequence[float]) -> int:
    """Index of the lower median: where a value stands that half of the others do not exceed."""
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    return order[(len(order) - 1) // 2]
