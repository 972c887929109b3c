"""What a comparison is told: one base, one set of data, one budget, and who takes part. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from meet_bundle.manifest import check_label
from meet_training.config import (
    MAX_SEED,
    PreferenceConfig,
    apply_override,
    check_known,
    check_no_own_opposite,
    describe,
    named_by,
    read_yaml,
)
from meet_training.controls_config import MAX_RANK, MAX_VIRTUAL_TOKENS
from meet_training.data.attributes import ATTRIBUTES
from meet_training.data_config import DataConfig, check_weights
from meet_training.errors import TrainingError
from meet_training.section import Section

CLASSIFIER = "preference_classifier"
"""The attribute that is not counted but judged: how likely a reply is to be the preferred one."""

Positive = Annotated[float, Field(gt=0)]

Opposites = tuple[str, str]
"""Two preferences that are each other's opposite, in the configuration's order."""


class ComparedAxis(Section):
    """What the preferences of an axis are measured by."""

    attribute: str = Field(description="`words`, `list_share`, ..., or `preference_classifier`")
    order: tuple[str, ...] = Field(
        min_length=2, description="its preferences from the one whose replies have least of it to that with most"
    )

    @model_validator(mode="after")
    def _is_measured(self) -> Self:
        if self.attribute == CLASSIFIER and len(self.order) != 2:
            raise ValueError(f"{CLASSIFIER} tells two preferences apart; order has {len(self.order)}")
        if self.attribute != CLASSIFIER and self.attribute not in ATTRIBUTES:
            known = ", ".join([*sorted(ATTRIBUTES), CLASSIFIER])
            raise ValueError(f"{self.attribute!r} is not measured; the attributes are {known}")
        return self


class BudgetConfig(Section):
    """What every rival may use: no more and no less."""

    pairs: int = Field(default=32, ge=1, description="prompts with a reply of each of two opposites, for every two")
    stage1_epochs: int = Field(default=2, ge=2, multiple_of=2, description="of a rival with two stages")
    stage2_epochs: int = Field(
        default=2,
        ge=2,
        multiple_of=2,
        description="rivals of one stage get both numbers; those that see both replies of a pair at once get half",
    )
    batch_size: int = Field(default=4, ge=1, description="examples of each preference per step")

    @property
    def epochs(self) -> int:
        """Of rivals with one stage."""
        return self.stage1_epochs + self.stage2_epochs


class TuningConfig(Section):
    """How every rival's learning rate is chosen, on prompts that nobody is trained on and nobody is tested on."""

    prompts: int = Field(default=16, ge=1)
    rate_factors: tuple[Positive, ...] = Field(
        default=(0.3, 1.0, 3.0), min_length=1, description="learning rates that are tried, as multiples of the usual"
    )
    multiplied: Literal["all", "controls"] = Field(
        default="all",
        description="which rates of a rival that tunes controls and the model: all, or those of its controls alone",
    )
    betas: tuple[Positive, ...] = Field(
        default=(0.1, 0.5), min_length=1, description="that DPO tries with each rate (its paper has 0.1 and 0.5)"
    )
    max_perplexity: float = Field(
        default=1.03,
        gt=0,
        description="of neutral replies when nothing is asked for, over the base's: a rate with more is taken only "
        "where all have more, and then the one with least",
    )


class TestedConfig(Section):
    """What all are tested on: replies are sampled greedily, and those of the data are scored."""

    data: tuple[DataConfig, ...] = Field(default=(), description="where none is named, prompts of `data` are held out")
    prompts: int = Field(default=40, ge=2, description="with a reply of every preference each")
    max_tokens: int = Field(default=256, ge=1, description="of one sampled reply")
    repetition_penalty: float = Field(default=1.1, gt=0)
    neutral: Path | None = Field(
        default=None,
        description="rows of `prompt`, `reply` for perplexity, `prompts` of them, and behind these as many as "
        "`tuning.prompts` that rates are chosen by; else the base's own greedy replies",
    )


class ClassifierConfig(Section):
    """The judge of preferences that nothing counts, trained on prompts that no rival is trained on."""

    pairs: int = Field(default=400, ge=2)
    weight_decay: float = Field(default=0.03, gt=0, description="of its weights, features having unit variance")


class SizesConfig(Section):
    """How large what is learned is."""

    lora_rank: int = Field(
        default=8, ge=1, le=MAX_RANK, description="of each control; one LoRA for all has the sum of their ranks"
    )
    num_virtual_tokens: int = Field(default=16, ge=1, le=MAX_VIRTUAL_TOKENS)


class CompareConfig(Section):
    """A whole comparison."""

    base: str = Field(description="`smollm2-135m`, a folder or a hub name")
    output: Path = Field(description="folder that keeps every result as it comes; relative to the working directory")
    data: tuple[DataConfig, ...] = Field(min_length=1)
    preferences: dict[str, PreferenceConfig] = Field(min_length=2)
    axes: dict[str, ComparedAxis] = Field(min_length=1)
    budget: BudgetConfig = BudgetConfig()
    tuning: TuningConfig = TuningConfig()
    test: TestedConfig = TestedConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    sizes: SizesConfig = SizesConfig()
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field(
        default=(0, 1, 2), min_length=1, description="of every rival's trainings, all different"
    )
    rivals: tuple[str, ...] = Field(default=(), description="who takes part; all where none is named")
    beside: str = Field(default="meet_lora_joint", description="the one that all others are compared with")
    token_text: str = Field(
        default="A {preference} answer:\n",
        description="a preference's token as text, at the start of the reply; a brace of its own is written twice",
    )
    max_length: int = Field(default=768, ge=8, description="tokens of a prompt and both its replies")
    tokens_per_pass: int = Field(default=1024, ge=8)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every_s: float = Field(default=60.0, ge=0, description="seconds between checkpoints of a training")

    @property
    def opposites(self) -> list[Opposites]:
        """Every two opposites, once."""
        order = list(self.preferences)
        pairs = [(label, str(said.opposite)) for label, said in self.preferences.items()]
        return [(a, b) for a, b in pairs if order.index(a) < order.index(b)]

    def without_folders(self) -> CompareConfig:
        """The same with bare file names, and without its own folder's: where things lay is one machine's business."""
        neutral = self.test.neutral
        test = self.test.model_copy(
            update={
                "data": tuple(data.without_folders() for data in self.test.data),
                "neutral": None if neutral is None else Path(neutral.name),
            }
        )
        data = tuple(data.without_folders() for data in self.data)
        return self.model_copy(update={"data": data, "test": test, "output": Path(self.output.name)})

    def axis_of(self, preference: str) -> ComparedAxis:
        """The axis that a preference is on."""
        return self.axes[self.preferences[preference].axis]

    @property
    def judged(self) -> bool:
        """Whether the classifier is needed."""
        return any(axis.attribute == CLASSIFIER for axis in self.axes.values())

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        check_no_own_opposite({label: said.opposite for label, said in self.preferences.items()})
        for label, said in self.preferences.items():
            check_label(label)
            other = self.preferences.get(said.opposite or "")
            if other is None or other.opposite != label:
                raise ValueError(
                    f"preferences.{label}.opposite: {said.opposite!r} is no preference whose opposite is {label!r}"
                )
            if said.instruction is None:
                raise ValueError(f"preferences.{label}.instruction: missing; the prompted base is always a rival")
            axis = self.axes.get(said.axis)
            if axis is None or label not in axis.order:
                raise ValueError(f"axes.{said.axis}.order: {label!r} is missing")
        for name, axis in self.axes.items():
            for label in axis.order:
                if label not in self.preferences or self.preferences[label].axis != name:
                    raise ValueError(f"axes.{name}.order: {label!r} is no preference of that axis")
        if not _names_the_preference(self.token_text):
            raise ValueError(f"token_text: {self.token_text!r} must hold {{preference}}, and no other field in braces")
        for where, data in (("data", self.data), ("test.data", self.test.data)):
            check_known(named_by(data, where), self.preferences)
            check_weights(data)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} must all be different; a seed twice is the same training")
        judged = [name for name, axis in self.axes.items() if axis.attribute == CLASSIFIER]
        if len(judged) > 1:
            raise ValueError(
                f"axes.{judged[1]}.attribute: {CLASSIFIER} judges axes.{judged[0]} already; it is trained for one axis"
            )
        return self


def _names_the_preference(text: str) -> bool:
    """Whether a text has the field `{preference}` and no other."""
    try:
        fields = [parts[1:] for parts in Formatter().parse(text) if parts[1] is not None]
    except ValueError:  # a brace without its other half
        return False
    return bool(fields) and all(field == ("preference", "", None) for field in fields)


def load_compare_config(path: Path, overrides: Sequence[str] = ()) -> CompareConfig:
    """Reads a configuration; paths of data are relative to it. Raises TrainingError naming file, field and value."""
    content: dict[str, Any] = read_yaml(path)
    for override in overrides:
        apply_override(content, override)
    try:
        config = CompareConfig.model_validate(content)
    except ValidationError as error:
        raise TrainingError(f"{path}: {describe(error)}") from None
    here = path.parent
    test = config.test.model_copy(
        update={
            "data": tuple(data.relative_to(here) for data in config.test.data),
            "neutral": None if config.test.neutral is None else here / config.test.neutral,
        }
    )
    data = tuple(data.relative_to(here) for data in config.data)
    return config.model_copy(update={"data": data, "test": test})
