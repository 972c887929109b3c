"""What a run is told of its controls: their kind, size and start. Knows no torch.

Defaults that differ from one kind to the other stand in `PEAK_LEARNING_RATES`; how they were found is in
docs/EXPERIMENTS.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from meet_training.section import Section

MAX_RANK = 512
"""Of any LoRA, of controls or of the model."""

MAX_VIRTUAL_TOKENS = 1024
"""Of one soft prompt."""

ControlKind = Literal["lora", "soft_prompt"]


class LoraConfig(Section):
    """One LoRA adapter per preference."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=MAX_RANK)
    alpha: float = Field(default=16.0, gt=0, description="the adapter adds alpha / rank x B A")
    share_a: bool = Field(
        default=True,
        description="all controls have the same frozen A and learn B alone, so that every mix and strength is exact "
        "at the same rank; false: each control learns its own A and B",
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear", description="suffixes of the linear layers to adapt, the output layer left out"
    )


class SoftPromptConfig(Section):
    """One soft prompt per preference: embeddings of virtual tokens."""

    kind: Literal["soft_prompt"] = "soft_prompt"
    num_virtual_tokens: int = Field(default=16, ge=1, le=MAX_VIRTUAL_TOKENS)
    placement: Literal["before_prompt", "after_prompt"] = Field(
        default="after_prompt",
        description="before the rendered prompt, or between it and the reply: then a server computes a prompt once "
        "for all preferences, and stage 1 once for all controls and epochs",
    )
    start: Literal["text", "vocabulary", "random"] = Field(
        default="text",
        description="embeddings of `start_text`, of tokens drawn from the vocabulary, or noise of the same spread",
    )
    start_text: dict[str, str] = Field(
        default_factory=dict,
        description="preference -> the text whose tokens it starts from, repeated or cut to length; a preference "
        "that is not named starts from its instruction, its description or its name",
    )


def _with_kind(value: Any) -> Any:
    return {"kind": "lora", **value} if isinstance(value, dict) else value


ControlsConfig = Annotated[
    Annotated[LoraConfig | SoftPromptConfig, Field(discriminator="kind")], BeforeValidator(_with_kind)
]

# Peak learning rates of the controls: in stage 1, and in stage 2 where they are tuned along with the model.
PEAK_LEARNING_RATES: dict[ControlKind, tuple[float, float]] = {"lora": (2e-3, 1e-3), "soft_prompt": (3e-2, 1e-3)}
