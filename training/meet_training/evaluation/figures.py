"""The figures of an evaluation, from measured replies. Pure: numbers in, numbers out.

A preference *holds* on a prompt where its attribute is on the asked side of that of another reply to the
same prompt: above it for the preference that is higher on its axis, below it for the other. Ties do not hold.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# The 97.5% quantile of the normal distribution, for intervals of 95%.
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Share:
    """A share of prompts with its 95% interval (Wilson's score interval)."""

    share: float
    low: float
    high: float
    num_prompts: int


def holds(values: Sequence[float], others: Sequence[float], *, higher: bool) -> Share:
    """Share of prompts on which `values` is on the asked side of `others`; both have one value a prompt.

    Raises ValueError where they differ in length or are empty.
    """
    num_held = sum(value > other if higher else value < other for value, other in zip(values, others, strict=True))
    return share_of(num_held, len(values))


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
    return Share(share, max(0.0, centre - half), min(1.0, centre + half), num_prompts)


def median(values: Sequence[float]) -> float:
    """The median, in the unit of the values. Raises statistics.StatisticsError where there are none."""
    return statistics.median(values)


def median_index(values: Sequence[float]) -> int:
    """Index of the lower median: where a value stands that half of the others do not exceed."""
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    return order[(len(order) - 1) // 2]
