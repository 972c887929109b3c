"""Stage 2: the language model is fine-tuned together with its controls.

max over theta and all phi_k of sum log p(y | x; theta, phi_k), arXiv 2310.00819, section 3, second stage,
started from the controls of stage 1.
"""

from __future__ import annotations

from torch import nn

from meet_training.config import Stage2Config
from meet_training.controls.control import ControlSet
from meet_training.data.batches import Schedule
from meet_training.stages.optimise import GroupConfig, ParameterGroup
from meet_training.stages.tune_controls import control_groups


def joint_groups(
    model: nn.Module, controls: ControlSet, schedule: Schedule, config: Stage2Config
) -> list[ParameterGroup]:
    """One optimiser for the language model and one for each control; all of them get gradients.

    The loop sums the controls' mean losses. The model is meant to follow their mean: under Adam a factor on the
    gradient changes nothing but where it is clipped, so its bound is that many times larger.
    """
    model.requires_grad_(True)
    learned = {id(p) for k in range(len(controls.names)) for p in controls.parameters_of(k)}
    own = [parameter for parameter in model.parameters() if id(parameter) not in learned]
    model_group = ParameterGroup(
        GroupConfig(
            name="model",
            learning_rate=config.learning_rate,
            num_steps=schedule.num_steps,
            warmup_share=config.warmup_share,
            max_grad_norm=config.max_grad_norm * len(controls.names),
            weight_decay=config.weight_decay,
        ),
        own,
    )
    return [
        model_group,
        *control_groups(
            controls,
            schedule,
            learning_rate=config.control_learning_rate,
            warmup_share=config.warmup_share,
            max_grad_norm=config.max_grad_norm,
        ),
    ]
