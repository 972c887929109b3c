"""Stage 1: every control is tuned, the language model is frozen.

max over phi_k of sum log p(y | x; theta_0, phi_k), arXiv 2310.00819, section 3, first stage. All controls are
tuned in one pass over one frozen model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from meet_training.controls.control import ControlSet
from meet_training.data.batches import Schedule
from meet_training.errors import TrainingError
from meet_training.stages.optimise import GroupConfig, ParameterGroup

# A loss that moved by less than this share of itself did not move: it is the rounding of float32.
STILL = 1e-6


def freeze_all_but_controls(model: nn.Module, controls: ControlSet) -> None:
    """Only the controls' parameters get gradients."""
    model.requires_grad_(False)
    let_controls_learn(controls)


def let_controls_learn(controls: ControlSet) -> None:
    """The controls' parameters get gradients."""
    for control in range(len(controls.names)):
        for parameter in controls.parameters_of(control):
            parameter.requires_grad_(True)


def known(learning_rate: float | None) -> float:
    """The learning rate of a resolved configuration (`TrainConfig.resolved`), in which none is missing."""
    assert learning_rate is not None  # noqa: S101 - cannot happen: `Run` resolves
    return learning_rate


def control_groups(
    controls: ControlSet,
    schedule: Schedule,
    *,
    learning_rate: float,
    warmup_share: float,
    max_grad_norm: float,
) -> list[ParameterGroup]:
    """One optimiser per control, over that control's own number of steps."""
    return [
        ParameterGroup(
            GroupConfig(
                name=name,
                learning_rate=learning_rate,
                num_steps=schedule.num_steps_of(control),
                warmup_share=warmup_share,
                max_grad_norm=max_grad_norm,
            ),
            controls.parameters_of(control),
        )
        for control, name in enumerate(controls.names)
    ]


def check_that_all_are_numbers(stage: str, losses: Mapping[str, float]) -> None:
    """Raises TrainingError, by name, where a loss after a stage's last step is none: then weights are none either."""
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of {name!r} became {loss} at the last step of {stage}; lower the learning rate, or train in "
                f"float32"
            )


def check_that_all_learned(
    names: Sequence[str],
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    losses: Mapping[str, tuple[float, float]],
) -> None:
    """Raises TrainingError, by name, where the weights or the loss of a control are what they were at the start.

    `start` and `end` are `ControlSet.state` before and after a stage; `losses` those of one batch, before and after.
    """
    for name in names:
        own = [where for where in end if where.startswith(f"{name}/")]
        if all(torch.equal(start[where], end[where]) for where in own):
            raise TrainingError(f"control {name!r} did not learn: every weight of it is what it was at the start")
        before, after = losses[name]
        if abs(after - before) <= STILL * max(1.0, abs(before)):
            raise TrainingError(
                f"control {name!r} did not learn: its loss on its first batch was {before:.6g} and is {after:.6g}; "
                f"raise the learning rate, or look at its data"
            )
