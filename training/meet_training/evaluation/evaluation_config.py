"""What an evaluation is told: which prompts, how replies are sampled, what each axis is measured by."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from meet_training.config import describe, read_yaml
from meet_training.errors import TrainingError
from meet_training.evaluation.attributes import ATTRIBUTES


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplingConfig(_Section):
    """How every reply is sampled, whoever gives it."""

    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    repetition_penalty: float = Field(
        default=1.1, gt=0, description="1 is none; a small model repeats itself under greedy decoding"
    )
    max_tokens: int = Field(default=400, ge=1, description="tokens of one reply; the same for all, for fairness")


class AxisConfig(_Section):
    """What the preferences of an axis are measured by."""

    attribute: str = Field(description="what is measured on a reply: `words`, `list_share`")
    higher: str = Field(description="the preference whose replies have more of it")
    bound: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of prompts on which the preferences of the axis must hold",
    )

    @field_validator("attribute")
    @classmethod
    def _attribute_is_known(cls, attribute: str) -> str:
        if attribute not in ATTRIBUTES:
            raise ValueError(f"{attribute!r} is not measured; the attributes are {', '.join(sorted(ATTRIBUTES))}")
        return attribute


class EvaluationConfig(_Section):
    """One evaluation; every field has a default."""

    prompts: Path | None = Field(
        default=None, description="JSON Lines with `prompt` or `messages`; relative to the configuration file"
    )
    limit: int | None = Field(default=None, ge=1, description="take no more prompts than this, the first ones")
    sampling: SamplingConfig = SamplingConfig()
    concurrency: int = Field(default=32, ge=1, description="requests in flight at once")
    axes: dict[str, AxisConfig] = Field(
        default={
            "length": AxisConfig(attribute="words", higher="detailed"),
            "format": AxisConfig(attribute="list_share", higher="bulleted"),
        },
        description="axis -> what it is measured by",
    )


def load_evaluation_config(path: Path) -> EvaluationConfig:
    """Reads a configuration; its `prompts` are relative to it. Raises TrainingError naming file and field."""
    try:
        config = EvaluationConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise TrainingError(f"{path}: {describe(error)}") from None
    if config.prompts is None:
        return config
    return config.model_copy(update={"prompts": path.parent / config.prompts})
