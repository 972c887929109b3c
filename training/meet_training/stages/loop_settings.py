"""What a configuration and a machine make of the loop's settings: packed rows, kept prompts, autocast, weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from meet_training.config import TrainConfig
from meet_training.stages import packed_attention
from meet_training.stages.machine import Machine
from meet_training.stages.objective import Objective
from meet_training.stages.optimise import LoopConfig
from meet_training.stages.prompt_cache import PROMPT_CACHE_MIB, PromptCache, fits
from meet_training.stages_config import Stage1Config, Stage2Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def loop_settings(
    config: TrainConfig,
    name: str,
    stage: Stage1Config | Stage2Config,
    model: PreTrainedModel,
    *,
    machine: Machine,
    dtype: torch.dtype,
    pad_id: int,
    objective: Objective,
    num_controls: int,
    sharded: bool,
) -> LoopConfig:
    """Those of the stage called `name`, for a model that its controls are attached to; `dtype` is the arithmetic's."""
    speed, share = config.speed, stage.uncontrolled_share
    prompt_cache = _prompt_cache(config, model, machine, sharded=sharded) if name == "stage1" else None
    return LoopConfig(
        stage=name,
        machine=machine,
        tokens_per_pass=config.tokens_per_pass,
        pad_id=pad_id,
        autocast=dtype == torch.bfloat16 and name == "stage2",
        seed=config.seed,
        objective=objective,
        packed=prompt_cache is None and packed_attention.packs(model, speed, machine.device),
        loss_chunk=speed.loss_chunk,
        uncontrolled_weight=num_controls * share / (1 - share),
        prompt_cache=prompt_cache,
        sharded=sharded,
    )


def _prompt_cache(
    config: TrainConfig, model: PreTrainedModel, machine: Machine, *, sharded: bool
) -> PromptCache | None:
    """Where prompts can be computed once: nothing of a control stands before them or in them."""
    speed, controls = config.speed, config.controls
    after = controls.kind == "soft_prompt" and controls.placement == "after_prompt"
    mib = speed.prompt_cache_mib
    if mib is None:  # packed rows are quicker than rows of a length after kept prompts: docs/EXPERIMENTS.md
        mib = 0 if packed_attention.stands_in(model, speed, machine.device) else PROMPT_CACHE_MIB
    if not after or sharded or not mib or speed.gradient_checkpointing or not fits(model):
        return None
    return PromptCache(mib << 20, machine.device)
