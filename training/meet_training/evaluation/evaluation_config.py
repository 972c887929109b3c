"""What an evaluation is told: which prompts, how replies are sampled, what each axis is measured by, which figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, field_validator, model_validator

from meet_training.config import describe, read_yaml
from meet_training.errors import TrainingError
from meet_training.evaluation.attributes import ATTRIBUTES

Figure = Literal["leakage", "side_effects", "strength", "mixes", "log_odds", "length", "judge"]
FIGURES: tuple[Figure, ...] = get_args(Figure)
"""What can be measured besides whether each preference holds, which always is."""

_FILES = ("prompts", "pairs", "neutral", "similarity")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplingConfig(_Section):
    """How every reply is sampled, whoever gives it."""

    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    repetition_penalty: float = Field(
        default=1.1,
        gt=0,
        description="1 is none; a small model repeats itself under greedy decoding. "
        "By default 1 of an endpoint that is no MEET server",
    )
    max_tokens: int = Field(default=400, ge=1, description="tokens of one reply; the same for all, for fairness")


def _known(attribute: str) -> str:
    if attribute not in ATTRIBUTES:
        raise ValueError(f"{attribute!r} is not measured; the attributes are {', '.join(sorted(ATTRIBUTES))}")
    return attribute


class AxisConfig(_Section):
    """What the preferences of an axis are measured by."""

    attribute: str = Field(description="what is measured on a reply to test it: `words`, `list_share`")
    higher: str | None = Field(default=None, description="the preference whose replies have more of it")
    lower: str | None = Field(
        default=None,
        description="the preference whose replies have less of it, in place of `higher`, where there is none",
    )
    trained_by: str | None = Field(
        default=None,
        description="the attribute that the training data was chosen by; the report says if it is the same",
    )
    question: str | None = Field(
        default=None, description="what a judge is asked: `Which reply is more formal?`; the higher one should win"
    )
    bound: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of prompts on which the preferences of the axis must hold",
    )

    @field_validator("attribute")
    @classmethod
    def _attribute_is_known(cls, attribute: str) -> str:
        return _known(attribute)

    @model_validator(mode="after")
    def _one_side_is_named(self) -> Self:
        if (self.higher is None) == (self.lower is None):
            raise ValueError("one of `higher` and `lower` names the preference whose replies have more, or less, of it")
        return self

    @property
    def named(self) -> str:
        """The preference that `higher` or `lower` names."""
        return self.higher or self.lower or ""

    def asks_more(self, preference: str) -> bool:
        """Whether that preference of the axis asks for more of the attribute."""
        return preference == self.higher if self.lower is None else preference != self.lower

    @property
    def tested_by(self) -> Literal["what it was trained by", "something else", "not said"]:
        """Is it tested by what its training data was chosen by?"""
        if self.trained_by is None:
            return "not said"
        return "what it was trained by" if self.trained_by == self.attribute else "something else"


class AskedPreference(_Section):
    """A preference of an endpoint that has no bundle here."""

    axis: str
    opposite: str | None = None
    instruction: str | None = Field(default=None, description="the sentence that asks a plain model for it")
    fields: dict[str, Any] | None = Field(
        default=None, description="fields of the body that ask for it, of an endpoint that is no MEET server"
    )


class JudgeConfig(_Section):
    """An OpenAI-compatible endpoint that says which of two replies is more of something."""

    url: str = Field(description="its address, with or without `/v1`")
    model: str
    api_key_env: str | None = Field(default=None, description="the environment variable that holds its key")
    max_tokens: int = Field(default=8, ge=1, description="tokens of its answer, which is one letter")


class EvaluationConfig(_Section):
    """One evaluation; every field has a default. Files are relative to the configuration."""

    prompts: Path | None = Field(default=None, description="JSON Lines with `prompt` or `messages`")
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
    figures: tuple[Figure, ...] = Field(
        default=("leakage", "side_effects"), description="what is measured besides whether each preference holds"
    )
    few: int = Field(
        default=40,
        ge=1,
        description="prompts of what costs most: strength, mixes, log_odds, length, and parity with the base",
    )
    leakage: tuple[str, ...] = Field(
        default=("mean_word_length", "casual_marks"),
        description="attributes of the leakage matrix besides those of the axes",
    )
    strengths: tuple[float, ...] = Field(
        default=(-1.0, -0.5, 0.0, 0.5, 1.0, 1.5), min_length=2, description="strengths of the curve"
    )
    mix_strength: float = Field(default=1.0, gt=0, description="strength of each of the two preferences of a mix")
    mix_strengths: dict[str, PositiveFloat] = Field(
        default={}, description="preference -> its strength in every mix, where that is not `mix_strength`"
    )
    max_words: tuple[int, ...] = Field(default=(50, 100), min_length=1, description="the asked-for lengths, in words")
    pairs: Path | None = Field(
        default=None,
        description="rows of `prompt`, `reply`, `preference` for log_odds; else the prompted base model's replies",
    )
    neutral: Path | None = Field(
        default=None, description="rows of `prompt`, `reply` for perplexity; else the base model's own replies"
    )
    similarity: Path | None = Field(
        default=None, description="folder of a sentence-embedding model; else overlap of words, which is not meaning"
    )
    preferences: dict[str, AskedPreference] = Field(
        default={}, description="preferences of an endpoint; else those that a MEET server lists"
    )
    judge: JudgeConfig | None = Field(
        default=None, description="who judges pairs of replies, where `judge` is a figure"
    )

    @field_validator("leakage")
    @classmethod
    def _attributes_are_known(cls, attributes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_known, attributes))

    def mix_strength_of(self, preference: str) -> float:
        """Its strength in mixes."""
        return self.mix_strengths.get(preference, self.mix_strength)

    def of_plain_endpoint(self) -> EvaluationConfig:
        """Without a repetition penalty that nobody asked for: OpenAI's API refuses arguments that it does not know."""
        if "repetition_penalty" in self.sampling.model_fields_set:
            return self
        return self.model_copy(update={"sampling": self.sampling.model_copy(update={"repetition_penalty": 1.0})})

    def without_files(self) -> dict[str, Any]:
        """The configuration as the report has it, its files by name alone."""
        named = {file: path.name for file in _FILES if (path := getattr(self, file)) is not None}
        return {**self.model_dump(mode="json"), **named}


def load_evaluation_config(path: Path) -> EvaluationConfig:
    """Reads a configuration; its files are relative to it. Raises TrainingError naming file and field."""
    try:
        config = EvaluationConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise TrainingError(f"{path}: {describe(error)}") from None
    files = {file: path.parent / named for file in _FILES if (named := getattr(config, file)) is not None}
    return config.model_copy(update=files)
