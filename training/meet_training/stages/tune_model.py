"""Stage 2: the language model is fine-tuned, together with its controls or under frozen ones.

max over theta and all phi_k of sum log p(y | x; theta, phi_k), arXiv 2310.00819, section 3, second stage,
started from the controls of stage 1; or over theta alone, the other reading of the paper.
"""

from __future__ import annotations

from torch import nn

from meet_training.controls.control import ControlSet
from meet_training.controls.model_lora import ModelLora
from meet_training.data.batches import Schedule
from meet_training.stages.optimise import GroupConfig, ParameterGroup
from meet_training.stages.tune_controls import control_groups, known, let_controls_learn
from meet_training.stages_config import Stage2Config


def model_groups(
    model: nn.Module,
    model_lora: ModelLora | None,
    controls: ControlSet,
    schedule: Schedule,
    config: Stage2Config,
) -> list[ParameterGroup]:
    """One optimiser for the language model, or for the LoRA that is tuned in its place, and one for each control
    unless the controls are frozen. Everything else gets no gradient.

    The loop sums the controls' mean losses. The model is meant to follow their mean: under Adam a factor on the
    gradient changes nothing but where it is clipped, so its bound is that many times larger.
    """
    num = len(controls.names)
    learned = {id(parameter) for k in range(num) for parameter in controls.parameters_of(k)}
    if model_lora is None:
        tuned = [parameter for parameter in model.parameters() if id(parameter) not in learned]
    else:
        tuned = model_lora.parameters()
    model.requires_grad_(False)
    for parameter in tuned:
        parameter.requires_grad_(True)
    groups = [
        ParameterGroup(
            GroupConfig(
                name="model",
                learning_rate=known(config.learning_rate),
                num_steps=schedule.num_steps,
                warmup_share=config.warmup_share,
                max_grad_norm=config.max_grad_norm * num / (1 - config.uncontrolled_share),
                weight_decay=config.weight_decay,
            ),
            tuned,
        )
    ]
    if config.controls == "joint":
        let_controls_learn(controls)
        groups += control_groups(
            controls,
            schedule,
            learning_rate=known(config.control_learning_rate),
            warmup_share=config.warmup_share,
            max_grad_norm=config.max_grad_norm,
        )
    return groups
