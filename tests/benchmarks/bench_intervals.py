"""How often the evaluation's 95% intervals hold the truth: `python tests/benchmarks/bench_intervals.py`, a minute.

Means of normal and medians of exponential values by simulation, 1,000 of each; shares exactly, from the binomial. Then
how often a comparison of two equal rivals, three seeds each, tells them apart, which is to be one time in twenty: with
Student's t for the seeds, as `meet compare` has it, and with seeds that are resampled as prompts are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from meet_training.evaluation.bootstrap import NUM_RESAMPLES, Array, Estimate, mean_of, median_of
from meet_training.evaluation.figures import share_of
from meet_training.rivals.standing import Standing, beside

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


def resampled(values: Array, others: Array) -> bool:
    """Whether the two are told apart where seeds, each side's own, are resampled as prompts are, (S, N) each."""
    generator = np.random.default_rng(0)
    num_seeds, num_prompts = values.shape
    prompts = generator.integers(num_prompts, size=(NUM_RESAMPLES, num_prompts))
    drawn = [
        each[generator.integers(num_seeds, size=(NUM_RESAMPLES, num_seeds))[:, :, None], prompts[:, None, :]]
        for each in (values, others)
    ]
    low, high = np.quantile(drawn[0].mean(axis=(1, 2)) - drawn[1].mean(axis=(1, 2)), (0.025, 0.975))
    return bool(low > 0 or high < 0)


def told_apart(seeds_differ_by: float, num: int = 16) -> tuple[float, float]:
    """Share of comparisons of equals that are told apart, by `meet compare` and where seeds are resampled.

    Prompts differ by 1, what a seed makes of a single one by 0.5.
    """
    generator = np.random.default_rng(3)
    shape = (NUM_SIMULATIONS, 2, 3)
    seeds = generator.normal(0, seeds_differ_by, (*shape, 1)) + generator.normal(0, 0.5, (*shape, num))
    both = generator.normal(0, 1, (NUM_SIMULATIONS, 1, 1, num)) + seeds
    by_t = [beside(ours, theirs).standing != Standing.LEVEL for ours, theirs in both]
    return float(np.mean(by_t)), float(np.mean([resampled(ours, theirs) for ours, theirs in both]))


def main() -> None:
    for num in (20, 40, 100):
        normal = np.random.default_rng(1).normal(3.0, 2.0, size=(NUM_SIMULATIONS, num))
        skewed = np.random.default_rng(2).exponential(1.0, size=(NUM_SIMULATIONS, num))
        mean, median = simulated(mean_of, normal, 3.0), simulated(median_of, skewed, math.log(2))
        print(f"{num} prompts: mean {mean:.3f}, median {median:.3f}")
    for share in (0.5, 0.9, 0.98):
        wilson, drawn = exact(share, 100)
        print(f"a share of {share} of 100 prompts: Wilson {wilson:.3f}, bootstrap {drawn:.3f}")
    for differ in (0.0, 0.1, 0.3, 1.0):
        by_t, drawn = told_apart(differ)
        print(f"two equals, three seeds that differ by {differ}: told apart {by_t:.3f}, seeds resampled {drawn:.3f}")


if __name__ == "__main__":
    main()
