"""Intervals by resampling prompts: the percentile bootstrap (Efron 1979). Pure; the same values give the same interval.

Knows nothing of what was measured. Prompts are drawn with everything that was measured on them, so that figures
which pair several replies to one prompt keep the pairing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 2000
SEED = 0
LEVEL = 0.95

# Numbers that one batch of resamples may hold: 32 MiB of float64.
_BATCH = 4_194_304

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""From values (R, N) or (R, N, C) of R resamples of N prompts to one figure each, (R,)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, the ends of its 95% interval, and the number of prompts behind it."""

    value: float
    low: float
    high: float
    num_prompts: int

    def shown(self, digits: int) -> str:
        """`0.214 [0.152, 0.276]`."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap(values: npt.ArrayLike, statistic: Statistic, *, seed: int = SEED) -> Estimate:
    """The statistic of the values and its percentile interval over `NUM_RESAMPLES` resamples of the prompts.

    `values` has one entry a prompt, (N,), or one row a prompt, (N, C). Raises ValueError where there are none.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.ndim == 0 or len(given) == 0:
        raise ValueError("an interval needs at least one prompt")
    generator = np.random.default_rng(seed)
    size = max(1, _BATCH // given.size)
    figures = [
        statistic(given[generator.integers(len(given), size=(min(size, NUM_RESAMPLES - begun), len(given)))])
        for begun in range(0, NUM_RESAMPLES, size)
    ]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(figures), (tail, 1 - tail))
    return Estimate(float(statistic(given[None])[0]), float(low), float(high), len(given))


def mean_of(values: npt.ArrayLike) -> Estimate:
    """The mean of one value a prompt, (N,)."""
    return bootstrap(values, lambda drawn: drawn.mean(axis=1))


def median_of(values: npt.ArrayLike) -> Estimate:
    """The median of one value a prompt, (N,)."""
    return bootstrap(values, lambda drawn: np.median(drawn, axis=1))
