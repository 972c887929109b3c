"""What a run is told of its stages, its objective, and how it uses the machine. Knows no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meet_training.controls_config import MAX_RANK
from meet_training.data_config import DataConfig
from meet_training.section import Section

# Peak learning rates of the language model in stage 2: whole, and where a LoRA of it is tuned and then merged.
MODEL_LEARNING_RATES = {"whole": 3e-5, "lora": 3e-4}


class Stage1Config(Section):
    """Controls alone are tuned; the language model is frozen."""

    epochs: float = Field(default=2.0, ge=0, description="passes over each preference's examples; 0 leaves it out")
    learning_rate: float | None = Field(
        default=None, gt=0, description="peak, on the controls; by default 2e-3 for LoRA, 3e-2 for soft prompts"
    )
    batch_size: int = Field(default=4, ge=1, description="examples of each control per step")
    warmup_share: float = Field(default=0.1, ge=0, le=1, description="share of steps over which it rises")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradient norm of one control is clipped to it")
    uncontrolled_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of a step's examples that are uncontrolled. They cannot change anything here, where the "
        "model is frozen: their loss is a reference line in the report, at the cost of a forward pass",
    )


class Stage2Config(Section):
    """The language model is fine-tuned, together with its controls or under frozen ones."""

    epochs: float = Field(default=1.0, ge=0, description="passes over each preference's examples; 0 leaves it out")
    controls: Literal["joint", "frozen"] = Field(
        default="joint", description="whether the controls are tuned along with the model"
    )
    model: Literal["whole", "lora"] = Field(
        default="whole", description="every weight, or a LoRA that is merged when the bundle is written"
    )
    model_rank: int = Field(default=32, ge=1, le=MAX_RANK, description="of that LoRA")
    model_alpha: float = Field(default=64.0, gt=0, description="it adds alpha / rank x B A")
    learning_rate: float | None = Field(
        default=None, gt=0, description="peak, on the language model; by default 3e-5 whole, 3e-4 by LoRA"
    )
    control_learning_rate: float | None = Field(
        default=None, gt=0, description="peak, on the controls; by default 1e-3 of either kind"
    )
    batch_size: int = Field(default=4, ge=1, description="examples of each control per step")
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, description="on the language model")
    max_grad_norm: float = Field(default=1.0, gt=0, description="of the model, and of each control, apart")
    uncontrolled_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of a step's examples that are uncontrolled, with replies of the base itself: they keep "
        "what the model does when nothing is asked of it",
    )
    centre: bool | None = Field(
        default=None,
        description="whether the mean of controls that have an opposite, or are one, moves into the model, so that a "
        "strength below 0 leads towards the opposite; by default where LoRA controls share one A, are tuned along, and "
        "uncontrolled_share is 0",
    )


class ObjectiveConfig(Section):
    """What a stage maximises."""

    kind: Literal["likelihood", "preference"] = Field(
        default="likelihood",
        description="log-probability of the reply (arXiv 2310.00819), or that its control prefers it to the other "
        "reply of its pair (DPO, arXiv 2305.18290, with the winner decided by the control)",
    )
    beta: float = Field(default=0.1, gt=0, description="of the preference objective, on summed log-probabilities")
    likelihood_weight: float = Field(
        default=0.2, ge=0, description="weight of the reply's log-probability beside the preference objective"
    )


class UncontrolledConfig(Section):
    """Where uncontrolled examples come from: data of the base's own replies or, where none is named, the base itself,
    which is asked the prompts of the training data."""

    data: tuple[DataConfig, ...] = Field(default=(), description="prompts and replies; labels are not read")
    max_new_tokens: int = Field(
        default=128, ge=1, description="longest reply that the base is let give; those it does not end are left out"
    )
    temperature: float = Field(default=1.0, gt=0, description="1 samples what the base does, neither more nor less")


class SpeedConfig(Section):
    """How a run uses the machine. None of it changes what is learned, beyond rounding."""

    gradient_checkpointing: bool = Field(default=False, description="less memory, a third more arithmetic")
    packing: Literal["auto", "never", "always"] = Field(
        default="auto",
        description="several examples in one row, kept apart by the attention; auto: where it is FlashAttention, and "
        "on CPUs where an attention of our own can stand in for the model's",
    )
    attention: str | None = Field(
        default=None, description="transformers' attn_implementation: `sdpa`, `flash_attention_2`; by default its own"
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="full: of several processes each holds a part of the language model (FSDP), for one too large "
        "for a single device; with one process it changes nothing",
    )
    loss_chunk: int = Field(default=256, ge=1, description="supervised tokens whose logits are held at a time")
    prompt_cache_mib: int | None = Field(
        default=None,
        ge=0,
        description="memory for keys and values of prompts, which stage 1 computes once for all soft prompts "
        "after the prompt; 0 computes them anew. By default 2048, and 0 on CPUs where rows can be packed instead",
    )
