"""What a mix is, as numbers: its canonical strengths, its name by content, its arithmetic. Pure.

With one A for all, sum_i w_i B_i A is an adapter of the same rank, so that a mix is a sum of B's. With an A for each,
the factors stand side by side and ranks add up. Both are exact; a sum of A's and B's is not (it has cross terms).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

# Strengths are applied in these steps, so that 0.7 and 0.7000001 are one mix. Finer than any reply can tell.
STEPS_PER_UNIT = 100


def quantised(strength: float) -> float:
    """The nearest strength that is applied: a multiple of 0.01, and never -0.0."""
    return round(strength * STEPS_PER_UNIT) / STEPS_PER_UNIT  # `round` gives an integer, which has no -0


def content_key(parts: Iterable[tuple[str, float]]) -> str:
    """A name for the content of a mix: SHA-256 of the digests of its controls with their strengths, in any order."""
    lines = sorted(f"{digest}={strength!r}" for digest, strength in parts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weighted_sum(strengths: Sequence[float], arrays: Sequence[Any]) -> Any:
    """sum_i w_i X_i of at least one array, all of one shape: numpy's, or torch's."""
    total = strengths[0] * arrays[0]
    for strength, array in zip(strengths[1:], arrays[1:], strict=True):
        total = total + strength * array
    return total
