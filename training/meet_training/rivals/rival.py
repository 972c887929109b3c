"""What a rival is: the models that it trains, and how each is asked. Knows no torch and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rendering import Rendering


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the search: a multiple of the usual learning rates, and beta where the objective has one.

    `controls_only` leaves the model's rate as it is and multiplies those of the controls.
    """

    factor: float = 1.0
    beta: float | None = None
    controls_only: bool = False

    @property
    def model_factor(self) -> float:
        """The multiple of the model's usual rate."""
        return 1.0 if self.controls_only else self.factor

    def __str__(self) -> str:
        multiple = f"x{self.factor:g}{' controls' if self.controls_only else ''}"
        return multiple if self.beta is None else f"{multiple}, beta {self.beta:g}"


@dataclass(frozen=True, slots=True)
class Job:
    """One model of a rival.

    `preferences` are those that it is trained on and asked for; `training` the fields of a `TrainConfig` that say how,
    or None where the base is taken as it is; `controls` whether it has a control for each preference.
    """

    preferences: tuple[str, ...]
    rendering: Rendering
    training: Mapping[str, Any] | None
    controls: bool = False


STAGES = ("stage1", "stage2")

Jobs = Callable[[CompareConfig, Point], list[Job]]
Points = Callable[[CompareConfig], list[Point]]


def by_rate(config: CompareConfig) -> list[Point]:
    """One point for each learning rate."""
    return [Point(factor) for factor in config.tuning.rate_factors]


def by_rate_of_both(config: CompareConfig) -> list[Point]:
    """One point for each learning rate of a rival that tunes controls and the model: of both, or of the controls."""
    only = config.tuning.multiplied == "controls"
    return [Point(factor, controls_only=only) for factor in config.tuning.rate_factors]


def by_rate_and_beta(config: CompareConfig) -> list[Point]:
    """One point for each learning rate under each beta."""
    return [Point(factor, beta) for beta in config.tuning.betas for factor in config.tuning.rate_factors]


def as_it_is(config: CompareConfig) -> list[Point]:  # noqa: ARG001
    """Nothing is trained, so there is nothing to choose."""
    return [Point()]


@dataclass(frozen=True, slots=True)
class Rival:
    """A way to get one model, or several, to answer as preferred.

    `has_neutral` says whether there is a state in which nothing is asked for, whose perplexity may be bounded.
    """

    name: str
    what: str
    jobs: Jobs
    points: Points = by_rate
    has_neutral: bool = True


def all_preferences(config: CompareConfig) -> tuple[str, ...]:
    """In the order of the configuration."""
    return tuple(config.preferences)


def stages(
    config: CompareConfig,
    point: Point,
    *,
    epochs: tuple[float, float],
    stage1_rate: float | None = None,
    model_rate: float | None = None,
    control_rate: float | None = None,
    **stage2: Any,
) -> dict[str, Any]:
    """Fields of a `TrainConfig` for so many epochs of each stage; `point` multiplies the usual learning rates."""

    def times(factor: float, rate: float | None) -> float | None:
        return None if rate is None else rate * factor

    size = {"batch_size": config.budget.batch_size}
    return {
        "stage1": {"epochs": epochs[0], "learning_rate": times(point.factor, stage1_rate), **size},
        "stage2": {
            "epochs": epochs[1],
            "learning_rate": times(point.model_factor, model_rate),
            "control_learning_rate": times(point.factor, control_rate),
            **size,
            **stage2,
        },
    }


def in_pairs(training: Mapping[str, Any]) -> dict[str, Any]:
    """The same with half as many rows a step, each with two replies: as many replies a step as without pairs."""
    halved = {stage: {**training[stage], "batch_size": max(1, training[stage]["batch_size"] // 2)} for stage in STAGES}
    return {**training, **halved}


def instructions(config: CompareConfig) -> dict[str, str]:
    """The sentence that asks a plain model for each preference."""
    return {label: str(said.instruction) for label, said in config.preferences.items()}


def by_name(rivals: Sequence[Rival]) -> dict[str, Rival]:
    return {rival.name: rival for rival in rivals}
