"""Stage 1: every control is tuned, the language model is frozen.

max over phi_k of sum log p(y | x; theta_0, phi_k), arXiv 2310.00819, section 3, first stage. All controls are
tuned in one pass over one frozen model.
"""

from __future__ import annotations

from torch import nn

from meet_training.controls.control import ControlSet
from meet_training.data.batches import Schedule
from meet_training.errors import TrainingError
from meet_training.stages.optimise import GroupConfig, ParameterGroup


def freeze_all_but_controls(model: nn.Module, controls: ControlSet) -> None:
    """Only the controls' parameters get gradients."""
    model.requires_grad_(False)
    for control in range(len(controls.names)):
        for parameter in controls.parameters_of(control):
            parameter.requires_grad_(True)


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


def check_that_all_learned(controls: ControlSet) -> None:
    """Raises TrainingError, by name, where a control is still what it was at the start: all zero."""
    for control, name in enumerate(controls.names):
        if not any(bool(parameter.count_nonzero()) for parameter in controls.parameters_of(control)):
            raise TrainingError(f"control {name!r} did not learn: every weight is still zero after stage 1")
