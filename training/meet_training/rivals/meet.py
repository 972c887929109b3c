"""MEET itself (arXiv 2310.00819), and what is left of it without one of its parts.

Both stages with LoRA or soft prompts, joint or frozen, not centred, and with the preference objective; stage 1 alone;
stage 2 alone, from controls that learned nothing, or from the embeddings of the text tokens. Centring is a rival's own
choice, not a part of it: what else is of LoRA is not centred, as in the paper.
"""

from __future__ import annotations

from typing import Any

from meet_training.controls_config import PEAK_LEARNING_RATES, ControlKind
from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rendering import AsItIs
from meet_training.rivals.rival import Job, Jobs, Point, Rival, all_preferences, by_rate_of_both, in_pairs, stages
from meet_training.stages_config import MODEL_LEARNING_RATES


def _lora(config: CompareConfig) -> dict[str, Any]:
    return {"kind": "lora", "rank": config.sizes.lora_rank, "alpha": 2 * config.sizes.lora_rank}


def _soft_prompt(config: CompareConfig, placement: str) -> dict[str, Any]:
    size = config.sizes.num_virtual_tokens
    return {"kind": "soft_prompt", "num_virtual_tokens": size, "placement": placement, "start": "text"}


def _from_tokens(config: CompareConfig) -> dict[str, Any]:
    """A soft prompt that is, before training, the text token itself."""
    texts = {label: config.token_text.format(preference=label) for label in config.preferences}
    return {**_soft_prompt(config, "after_prompt"), "start_text": texts}


def _job(
    config: CompareConfig,
    point: Point,
    controls: dict[str, Any],
    epochs: tuple[float, float],
    *,
    frozen: bool = False,
    paired: bool = False,
    centre: bool | None = None,
) -> list[Job]:
    kind: ControlKind = controls["kind"]
    stage1_rate, control_rate = PEAK_LEARNING_RATES[kind]
    training = stages(
        config,
        point,
        epochs=epochs,
        stage1_rate=stage1_rate,
        model_rate=MODEL_LEARNING_RATES["whole"],
        control_rate=control_rate,
        controls="frozen" if frozen else "joint",
        centre=centre,
    )
    objective = {"objective": {"kind": "preference", "beta": config.tuning.betas[0]}} if paired else {}
    fields = {**(in_pairs(training) if paired else training), **objective, "controls": controls}
    return [Job(all_preferences(config), AsItIs(paired=paired), fields, controls=True)]


def _both(config: CompareConfig) -> tuple[float, float]:
    return config.budget.stage1_epochs, config.budget.stage2_epochs


def _meet_preference(config: CompareConfig, point: Point) -> list[Job]:
    """Under the first beta alone, so that it searches as little as the others; both replies count: half the epochs."""
    first, second = _both(config)
    return _job(config, point, _lora(config), (first / 2, second / 2), paired=True, centre=False)


def _soft(placement: str) -> Jobs:
    return lambda config, point: _job(config, point, _soft_prompt(config, placement), _both(config))


def _rival(name: str, what: str, jobs: Jobs) -> Rival:
    """One that tunes controls and the model."""
    return Rival(name, what, jobs, by_rate_of_both)


MEET = (
    _rival("meet_lora_joint", "MEET, LoRA, joint stage 2", lambda c, p: _job(c, p, _lora(c), _both(c))),
    _rival(
        "meet_lora_frozen", "MEET, LoRA, frozen in stage 2", lambda c, p: _job(c, p, _lora(c), _both(c), frozen=True)
    ),
    _rival(
        "meet_lora_uncentred",
        "MEET, LoRA, joint stage 2, not centred",
        lambda c, p: _job(c, p, _lora(c), _both(c), centre=False),
    ),
    _rival("meet_soft_before", "MEET, soft prompts before the prompt", _soft("before_prompt")),
    _rival("meet_soft_after", "MEET, soft prompts after the prompt", _soft("after_prompt")),
    _rival("meet_preference", "MEET, LoRA, preference objective", _meet_preference),
)

PARTS_OF_MEET = (
    Rival("stage1_only", "stage 1 alone, LoRA", lambda c, p: _job(c, p, _lora(c), (c.budget.epochs, 0))),
    _rival(
        "stage2_only",
        "stage 2 alone, from untrained LoRA",
        lambda c, p: _job(c, p, _lora(c), (0, c.budget.epochs), centre=False),
    ),
    _rival(
        "stage2_from_text",
        "stage 2 alone, soft prompts from the text tokens",
        lambda c, p: _job(c, p, _from_tokens(c), (0, c.budget.epochs)),
    ),
)
