"""What a training run is told: one frozen model per concern, every field with its unit and default.

Reads YAML and `a.b=c` overrides. Knows no torch and opens no data file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from meet_bundle.manifest import check_label
from meet_training.controls_config import PEAK_LEARNING_RATES, ControlsConfig, LoraConfig, SoftPromptConfig
from meet_training.data_config import DataConfig, check_weights
from meet_training.errors import TrainingError
from meet_training.section import Section
from meet_training.stages_config import (
    MODEL_LEARNING_RATES,
    ObjectiveConfig,
    SpeedConfig,
    Stage1Config,
    Stage2Config,
    UncontrolledConfig,
)

MAX_SEED = 2**43
"""Every step draws by a number made of the seed and its own, a million times the seed and more; torch takes 64 bits."""

MIN_LENGTH = 8
"""Tokens of prompt and reply that `max_length` leaves at least."""

NOT_YAML = (yaml.YAMLError, ValueError)
"""What reading YAML raises. ValueError: text that is not UTF-8, and a date or number that there is none of."""


class PreferenceConfig(Section):
    """What the manifest will say of a preference."""

    axis: str = Field(description="what it moves along: `length`, `format`")
    opposite: str | None = Field(default=None, description="the preference at the other end of the axis")
    description: str = ""
    aliases: tuple[str, ...] = ()
    instruction: str | None = Field(
        default=None, description="the sentence that asks a plain model for it; evaluation compares with that"
    )


class TrainConfig(Section):
    """A whole run: data, controls, both stages, and the bundle to write."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="model name that clients ask for")
    base: str = Field(description="`smollm2-135m`, a folder or a hub name")
    output: Path = Field(description="the bundle's folder; relative to the working directory")
    data: tuple[DataConfig, ...] = Field(min_length=1)
    preferences: dict[str, PreferenceConfig] = Field(min_length=1)
    default: str | None = Field(default=None, description="preference of a request that names none")
    verbosity: dict[str, str] = Field(default_factory=dict, description="OpenAI's `verbosity` -> preference")
    effort: dict[str, str] = Field(default_factory=dict, description="Anthropic's `effort` -> preference")
    controls: ControlsConfig = LoraConfig()
    start_from: Path | None = Field(
        default=None, description="a bundle of the same base whose controls this run starts from, not from new ones"
    )
    objective: ObjectiveConfig = ObjectiveConfig()
    stage1: Stage1Config = Stage1Config()
    stage2: Stage2Config = Stage2Config()
    uncontrolled: UncontrolledConfig = UncontrolledConfig()
    examples_per_preference: int | None = Field(
        default=None, ge=1, description="take no more; drawn by the seed, where the objective wants pairs by prompt"
    )
    max_length: int = Field(
        default=1024, ge=MIN_LENGTH, description="tokens of prompt and reply; longer ones are left out"
    )
    tokens_per_pass: int = Field(default=1024, ge=8, description="tokens in one pass over the model")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the arithmetic; auto takes bfloat16 where the machine is fast at it"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    speed: SpeedConfig = SpeedConfig()
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=(), description="where learning curves go while it runs, beside the bundle's report"
    )
    log_folder: Path | None = Field(
        default=None, description="where trackers keep their files; by default beside the output, `OUTPUT.logs`"
    )
    checkpoint_every_s: float = Field(default=300.0, ge=0, description="seconds between checkpoints")
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    @model_validator(mode="after")
    def _labels_hang_together(self) -> Self:
        for label in self.preferences:
            check_label(label)
        named = {
            "default": [self.default] if self.default is not None else [],
            "verbosity": list(self.verbosity.values()),
            "effort": list(self.effort.values()),
        }
        named |= {
            f"preferences.{label}.opposite": [preference.opposite]
            for label, preference in self.preferences.items()
            if preference.opposite is not None
        }
        check_known(named | named_by(self.data, "data"), self.preferences)
        check_no_own_opposite({label: said.opposite for label, said in self.preferences.items()})
        check_weights(self.data)
        self._stages_hang_together()
        return self

    def _stages_hang_together(self) -> None:
        if not self.stage1.epochs and not self.stage2.epochs:
            raise ValueError("stage1.epochs and stage2.epochs are both 0: nothing would be tuned")
        if self.stage2.epochs and self.stage2.controls == "frozen" and not self.stage1.epochs and not self.start_from:
            raise ValueError(
                "stage2.controls: 'frozen' controls must have learned something; give stage1 epochs, or start_from"
            )
        if self.stage2.centre and not self._can_centre:
            raise ValueError(
                "stage2.centre: needs LoRA controls that share one A (controls.share_a) and that stage 2 tunes along "
                "(stage2.controls: joint, stage2.epochs above 0)"
            )
        if self.stage2.centre and not self.opposed:
            labels = ", ".join(self.preferences)
            raise ValueError(f"stage2.centre: needs opposites, and none of {labels} names one (preferences.*.opposite)")
        if isinstance(self.controls, SoftPromptConfig):
            for label in self.controls.start_text:
                if label not in self.preferences:
                    known = ", ".join(sorted(self.preferences))
                    raise ValueError(f"controls.start_text names {label!r}; the preferences are {known}")

    @property
    def opposed(self) -> frozenset[str]:
        """The preferences that have an opposite or are one: both sides, where one side alone names the other."""
        pairs = ((label, said.opposite) for label, said in self.preferences.items())
        return frozenset(side for label, opposite in pairs if opposite is not None for side in (label, opposite))

    @property
    def _can_centre(self) -> bool:
        """Whether what controls have in common could move into the model."""
        shared = isinstance(self.controls, LoraConfig) and self.controls.share_a
        return shared and bool(self.stage2.epochs) and self.stage2.controls == "joint"

    @property
    def _centres(self) -> bool:
        """Whether it does, where nothing is said: not where stage 2 teaches what uncontrolled is to be."""
        return self._can_centre and not self.stage2.uncontrolled_share

    def resolved(self) -> TrainConfig:
        """The same configuration with every default that depends on another field put in."""
        control_rates = PEAK_LEARNING_RATES[self.controls.kind]
        stage1 = self.stage1.model_copy(update={"learning_rate": self.stage1.learning_rate or control_rates[0]})
        stage2 = self.stage2.model_copy(
            update={
                "learning_rate": self.stage2.learning_rate or MODEL_LEARNING_RATES[self.stage2.model],
                "control_learning_rate": self.stage2.control_learning_rate or control_rates[1],
                "centre": self._centres if self.stage2.centre is None else self.stage2.centre,
            }
        )
        return self.model_copy(update={"stage1": stage1, "stage2": stage2})

    def without_folders(self) -> TrainConfig:
        """The same with bare file names, for a bundle: where things lay is one machine's business."""
        own = tuple(data.without_folders() for data in self.uncontrolled.data)
        return self.model_copy(
            update={
                "data": tuple(data.without_folders() for data in self.data),
                "uncontrolled": self.uncontrolled.model_copy(update={"data": own}),
                "start_from": Path(self.start_from.name) if self.start_from else None,
            }
        )


def named_by(data: Sequence[DataConfig], where: str) -> dict[str, list[str]]:
    """By field, the preferences that data sets name; `where` is the field that holds the data sets."""
    return {
        f"{where}.{i}.{field}": labels
        for i, one in enumerate(data)
        for field, labels in one.preferences_named().items()
    }


def check_known(named: Mapping[str, Sequence[str]], preferences: Collection[str]) -> None:
    """Raises ValueError where a field names something that is no preference. `named` is by field."""
    for field, labels in named.items():
        for label in labels:
            if label not in preferences:
                raise ValueError(f"{field} names {label!r}; the preferences are {', '.join(sorted(preferences))}")


def check_no_own_opposite(opposites: Mapping[str, str | None]) -> None:
    """Raises ValueError where a preference is said to be its own opposite."""
    if own := [label for label, opposite in opposites.items() if opposite == label]:
        raise ValueError(f"preferences.{own[0]}.opposite: {own[0]!r} is the preference itself; name another one")


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a configuration; `overrides` are `stage1.epochs=3` and the like, their values read as YAML.

    Paths of data are taken relative to the file. Raises TrainingError naming file, field and value.
    """
    path = Path(path)
    content = read_yaml(path)
    for override in overrides:
        apply_override(content, override)
    try:
        config = TrainConfig.model_validate(content)
    except ValidationError as error:
        raise TrainingError(f"{path}: {describe(error)}") from None
    here = path.parent
    own = tuple(data.relative_to(here) for data in config.uncontrolled.data)
    return config.model_copy(
        update={
            "data": tuple(data.relative_to(here) for data in config.data),
            "uncontrolled": config.uncontrolled.model_copy(update={"data": own}),
        }
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises TrainingError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
    except NOT_YAML as error:
        raise TrainingError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise TrainingError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content


def describe(error: ValidationError) -> str:
    """Every mistake of a configuration on one line: field, value, what is allowed."""
    lines = []
    for mistake in error.errors(include_url=False):
        field = ".".join(str(part) for part in mistake["loc"])
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = "unknown key"
        elif mistake["type"] not in ("missing", "value_error"):
            message = f"{message}, not {mistake['input']!r}"
        lines.append(f"{field}: {message}" if field else message)
    return "; ".join(lines)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Sets one field of a configuration that is not checked yet. Raises TrainingError where there is no such place."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise TrainingError(f"override {override!r}: expected field=value, for example stage1.epochs=3")
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else _item(place, parent, override)
    try:
        read = yaml.safe_load(value)
    except NOT_YAML as error:
        raise TrainingError(f"override {override!r}: its value is not YAML: {' '.join(str(error).split())}") from None
    if isinstance(place, list):
        place[_index(place, last, override)] = read
    elif isinstance(place, dict):
        place[last] = read
    else:
        raise TrainingError(f"override {override!r}: {'.'.join(parents)} is a value, it has no fields")


def _item(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, override)]
    raise TrainingError(f"override {override!r}: {key!r} stands under a value, it has no fields")


def _index(place: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(place):
        raise TrainingError(f"override {override!r}: {key!r} is no index of a list of {len(place)}")
    return int(key)
