"""Intervals over prompts and seeds: prompts are resampled, the same for everybody; seeds are too few for that. Pure.

Three seeds that are resampled show two thirds of their variance, and tails as of many. So a figure's standard error
over seeds, s / sqrt(S), is added to each resample of the prompts with a draw of Student's t with S - 1 degrees of
freedom; for a difference of two sides that of both, with Welch's degrees of freedom. What a seed makes of single
prompts is counted twice, which errs on the safe side.

S seeds, N prompts, R resamples, C numbers a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    """A figure of values (S, N) or (S, N, C) and its 95% interval. With one seed it is over prompts alone.

    Raises ValueError where there are no values.
    """
    given = _checked(values)
    generator = np.random.default_rng(SEED)
    figures = statistic(_drawn(given, _prompts(given, generator))) + _of_seeds([given], statistic, generator)
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
    figures = mean_of_all(_drawn(given, prompts)) - mean_of_all(_drawn(against, prompts))
    figures = figures + _of_seeds([given, against], mean_of_all, generator)
    return _estimate(float(given.mean() - against.mean()), figures, given.shape[1])


def _checked(values: npt.ArrayLike) -> Array:
    given = np.asarray(values, dtype=np.float64)
    if given.ndim < 2 or not given.shape[0] or not given.shape[1]:
        raise ValueError("an interval needs at least one seed and one prompt")
    return given


def _prompts(given: Array, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    return generator.integers(given.shape[1], size=(NUM_RESAMPLES, given.shape[1]))


def _drawn(given: Array, prompts: npt.NDArray[np.int64]) -> Array:
    """(R, S, N) or (R, S, N, C)"""
    return np.moveaxis(given[:, prompts], 0, 1)


def _of_seeds(sides: Sequence[Array], statistic: OfResamples, generator: np.random.Generator) -> Array:
    """What chance of the seeds adds to a figure, or to the difference of two, (R,)."""
    squares = np.array([_squared_error(each, statistic) for each in sides])
    if not (total := float(squares.sum())):
        return np.zeros(NUM_RESAMPLES)
    free = np.array([max(1, len(each) - 1) for each in sides])
    degrees = total**2 / float((squares**2 / free).sum())
    added: Array = np.sqrt(total) * generator.standard_t(degrees, NUM_RESAMPLES)
    return added


def _squared_error(given: Array, statistic: OfResamples) -> float:
    """s^2 / S of a figure over the seeds; 0 of one seed, of which nothing is known."""
    if (num := len(given)) == 1:
        return 0.0
    of_each = [statistic(given[None, seed : seed + 1])[0] for seed in range(num)]
    return float(np.var(of_each, ddof=1)) / num


def _estimate(value: float, figures: Array, num_prompts: int) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(figures, (tail, 1 - tail))
    return Estimate(value, float(low), float(high), num_prompts)
