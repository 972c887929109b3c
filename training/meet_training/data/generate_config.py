"""What `meet data generate` is told: the model, how to sample, and what to keep for each preference."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from meet_training.data.attributes import ATTRIBUTES
from meet_training.errors import TrainingError


class _Frozen(BaseModel):
    """Immutable; a key that is not a field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _known_attribute(name: str) -> str:
    if name not in ATTRIBUTES:
        raise ValueError(f"attribute {name!r} is not known; allowed: {', '.join(ATTRIBUTES)}")
    return name


class Bounds(_Frozen):
    """The closed interval that an attribute of a reply must lie in; a missing side is open."""

    min: float | None = Field(None, description="Lowest value accepted, in the attribute's unit.")
    max: float | None = Field(None, description="Highest value accepted, in the attribute's unit.")

    @model_validator(mode="after")
    def _in_order(self) -> "Bounds":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def hold(self, value: float) -> bool:
        """Does `value` lie between the bounds, both included?"""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class PreferenceRecipe(_Frozen):
    """How replies of one preference are asked for and chosen."""

    axis: str = Field(min_length=1, description="What the preference moves along, e.g. `length`.")
    opposite: str | None = Field(None, description="The preference at the other end of the axis, if any.")
    instruction: str = Field(min_length=1, description="What the model is told, and the kept rows are not.")
    where: Literal["user", "system"] = Field(
        "user",
        description="Where the instruction stands: at the end of the user's message, or as system message.",
    )
    reply_start: str = Field(
        "", description="How every reply starts; the model goes on from there. A vLLM extension if not empty."
    )
    max_tokens: int | None = Field(None, ge=1, description="Limit of a reply, in tokens; else the common one.")
    attribute: str = Field(description="The attribute that chooses among accepted replies.")
    select: Literal["lowest", "highest"] = Field(description="Which end of the attribute is chosen.")
    keep: int = Field(1, ge=1, description="Replies kept for a prompt, at most.")
    accept: dict[str, Bounds] = Field(default_factory=dict, description="Bounds that a reply must meet, by attribute.")

    @field_validator("attribute")
    @classmethod
    def _attribute_known(cls, name: str) -> str:
        return _known_attribute(name)

    @field_validator("accept")
    @classmethod
    def _accept_known(cls, accept: dict[str, Bounds]) -> dict[str, Bounds]:
        for name in accept:
            _known_attribute(name)
        return accept


class GenerateConfig(_Frozen):
    """Everything that decides which preference data comes out."""

    model: str = Field("smollm2-135m", min_length=1, description="`smollm2-135m`, a path, or an endpoint's model.")
    base_url: str | None = Field(None, description="An OpenAI-compatible endpoint; none: the model is served here.")
    api_key_env: str | None = Field(None, description="Environment variable that holds the endpoint's key.")
    prompts: Path = Field(description="JSON lines with `prompt` and, if wanted, `subject`; from the config's folder.")
    output: Path = Field(description="JSON lines written: prompt, reply, preference, subject.")
    report: Path | None = Field(None, description="JSON report; none: beside the output, as `.report.json`.")
    samples: int = Field(4, ge=1, description="Replies sampled for each prompt and preference.")
    temperature: float = Field(0.8, ge=0, le=2, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Probability mass that is sampled from; 1 is off.")
    min_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Least probability, as a share of the likeliest token's; a vLLM extension.",
    )
    repetition_penalty: float | None = Field(
        None, gt=0, description="Penalty on tokens already there, 1 is off; a vLLM extension."
    )
    max_tokens: int = Field(256, ge=1, description="Limit of a reply, in tokens, where a preference sets none.")
    seed: int = Field(0, ge=0, description="Every request's seed is derived from it, the prompt and the preference.")
    concurrency: int = Field(32, ge=1, description="Requests in flight at once.")
    on_topic: bool = Field(
        False, description="Throw out replies that share no topic word with their prompt; for English."
    )
    preferences: dict[str, PreferenceRecipe] = Field(min_length=1, description="One recipe for each preference.")

    @model_validator(mode="after")
    def _opposites_exist(self) -> "GenerateConfig":
        for name, recipe in self.preferences.items():
            if recipe.opposite is None:
                continue
            if recipe.opposite == name or recipe.opposite not in self.preferences:
                others = ", ".join(other for other in self.preferences if other != name) or "none"
                raise ValueError(f"preferences.{name}.opposite {recipe.opposite!r} is not one of: {others}")
        return self

    @property
    def report_path(self) -> Path:
        """Where the report goes: `report`, or the output's name with `.report.json` at its end."""
        return self.report or self.output.with_suffix(".report.json")

    @property
    def samples_path(self) -> Path:
        """Where raw samples gather, so that an interrupted run can go on."""
        return self.output.with_name(self.output.name + ".samples.jsonl")


def load_generate_config(path: Path) -> GenerateConfig:
    """Read a configuration; its relative paths are taken from the folder that it lies in.

    Raises TrainingError that names the file, the field, the value and what is allowed.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise TrainingError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path}: holds {type(content).__name__}; allowed: a mapping of fields")
    try:
        config = GenerateConfig.model_validate(content)
    except ValidationError as error:
        raise TrainingError(_explain(path, error)) from error
    folder = path.parent
    return config.model_copy(
        update={
            "prompts": folder / config.prompts,
            "output": folder / config.output,
            "report": folder / config.report if config.report else None,
        }
    )


def _explain(path: Path, error: ValidationError) -> str:
    """The first thing wrong, on one line: file, field, value, and what is allowed."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    allowed = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("missing", "value_error"):
        return f"{path}: {field}: {allowed}" if field else f"{path}: {allowed}"
    if first["type"] == "extra_forbidden":
        return f"{path}: {field} = {first['input']!r}: no such field"
    return f"{path}: {field} = {first['input']!r}: {allowed}"


def instructed(text: str, instruction: str) -> str:
    """A user's message with an instruction at its end: the one form in which data is made and prompting measured."""
    return f"{text} {instruction}"
