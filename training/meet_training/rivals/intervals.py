"""Intervals over prompts and seeds: both are resampled, the prompts alike for everybody, the seeds by each. Pure.

S seeds, N prompts, R resamples, C numbers a prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from meet_training.evaluation.bootstrap import LEVEL, NUM_RESAMPLES, SEED, Array, Estimate

OfResamples = Callable[[Array], Array]
"""From (R, S, N) or (R, S, N, C) to one figure each, (R,)."""


def mean_of_all(drawn: Array) -> Array:
    """The mean over seeds and prompts, (R, S, N) -> (R,)."""
    mean: Array = drawn.mean(axis=(1, 2))
    return mean


def over_prompts_and_seeds(values: npt.ArrayLike, statistic: OfResamples = mean_of_all) -> Estimate:
    """A figure of values (S, N) or (S, N, C) and its percentile interval. With one seed it is over prompts alone.

    Raises ValueError where there are no values.
    """
    given = _checked(values)
    generator = np.random.default_rng(SEED)
    figures = statistic(_drawn(given, _prompts(given, generator), generator))
    return _estimate(float(statistic(given[None])[0]), figures, given.shape[1])


def difference(values: npt.ArrayLike, others: npt.ArrayLike) -> Estimate:
    """Mean of `values` (S, N) less that of `others` (S', N) on the same prompts, which stay paired.

    Raises ValueError where their numbers of prompts differ, or there are no values.
    """
    given, against = _checked(values), _checked(others)
    if given.shape[1] != against.shape[1]:
        raise ValueError(f"{given.shape[1]} prompts on one side and {against.shape[1]} on the other")
    generator = np.random.default_rng(SEED)
    prompts = _prompts(given, generator)
    figures = mean_of_all(_drawn(given, prompts, generator)) - mean_of_all(_drawn(against, prompts, generator))
    return _estimate(float(given.mean() - against.mean()), figures, given.shape[1])


def _checked(values: npt.ArrayLike) -> Array:
    given = np.asarray(values, dtype=np.float64)
    if given.ndim < 2 or not given.shape[0] or not given.shape[1]:
        raise ValueError("an interval needs at least one seed and one prompt")
    return given


def _prompts(given: Array, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    return generator.integers(given.shape[1], size=(NUM_RESAMPLES, given.shape[1]))


def _drawn(given: Array, prompts: npt.NDArray[np.int64], generator: np.random.Generator) -> Array:
    """(R, S, N) or (R, S, N, C)"""
    seeds = generator.integers(given.shape[0], size=(NUM_RESAMPLES, given.shape[0]))
    drawn: Array = given[seeds[:, :, None], prompts[:, None, :]]
    return drawn


def _estimate(value: float, figures: Array, num_prompts: int) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(figures, (tail, 1 - tail))
    return Estimate(value, float(low), float(high), num_prompts)
