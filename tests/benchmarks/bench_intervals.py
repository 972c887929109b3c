"""How often the evaluation's 95% intervals hold the truth: `python tests/benchmarks/bench_intervals.py`, half a minute.

Means of normal and medians of exponential values by simulation, 1,000 of each; shares exactly, from the binomial.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from meet_training.evaluation.bootstrap import Array, Estimate, mean_of, median_of
from meet_training.evaluation.figures import share_of

NUM_SIMULATIONS = 1000


def simulated(estimate: Callable[[Array], Estimate], samples: Array, truth: float) -> float:
    """Share of the samples, one a row, whose interval holds the truth."""
    return float(np.mean([each.low <= truth <= each.high for each in map(estimate, samples)]))


def exact(share: float, num_prompts: int) -> tuple[float, float]:
    """Probability that Wilson's and the bootstrap's interval of a share hold it."""
    wilson = drawn = 0.0
    for count in range(num_prompts + 1):
        found = share_of(count, num_prompts)
        likely = math.comb(num_prompts, count) * share**count * (1 - share) ** (num_prompts - count)
        wilson += likely * (found.low <= share <= found.high)
        drawn += likely * (found.bootstrap_low <= share <= found.bootstrap_high)
    return wilson, drawn


def main() -> None:
    for num in (20, 40, 100):
        normal = np.random.default_rng(1).normal(3.0, 2.0, size=(NUM_SIMULATIONS, num))
        skewed = np.random.default_rng(2).exponential(1.0, size=(NUM_SIMULATIONS, num))
        mean, median = simulated(mean_of, normal, 3.0), simulated(median_of, skewed, math.log(2))
        print(f"{num} prompts: mean {mean:.3f}, median {median:.3f}")
    for share in (0.5, 0.9, 0.98):
        wilson, drawn = exact(share, 100)
        print(f"a share of {share} of 100 prompts: Wilson {wilson:.3f}, bootstrap {drawn:.3f}")


if __name__ == "__main__":
    main()
