"""What a run is told of its data: where it is, what form it has, which preference each reply is data of.

Opens no file: whether the data is as it says is found out where the data is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from meet_training.section import Section

Form = Literal["pointwise", "pairwise", "hh", "unpaired", "scored"]
FORMS: tuple[Form, ...] = ("pointwise", "pairwise", "hh", "unpaired", "scored")

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "messages": ("messages",),
    "reply": ("reply", "completion", "response"),
    "preference": ("preference", "label"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "tools": ("tools",),
}
"""What a column is called where the configuration does not say; the first that the first row has is taken."""


class ColumnNames(Section):
    """Which field of a row holds what. One that is not named has its usual name."""

    prompt: str | None = Field(default=None, description="text, or a list of messages; `prompt`")
    messages: str | None = Field(default=None, description="the conversation, with or without the reply; `messages`")
    reply: str | None = Field(default=None, description="text, or a message; `reply`, `completion` or `response`")
    preference: str | None = Field(
        default=None, description="a label, several of them, or true and false; `preference` or `label`"
    )
    chosen: str | None = Field(default=None, description="the better reply, or the whole dialogue; `chosen`")
    rejected: str | None = Field(default=None, description="the worse reply, or the whole dialogue; `rejected`")
    tools: str | None = Field(default=None, description="the tools on offer, a list or its JSON text; `tools`")


class Level(Section):
    """A stretch of an axis: what lies at or above one end and below the other; a missing end is open."""

    at_least: float | None = None
    below: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        low = float("-inf") if self.at_least is None else self.at_least
        return low, float("inf") if self.below is None else self.below

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = self.ends
        if low >= high:
            raise ValueError(f"at_least {low:g} must lie under below {high:g}")
        return self


class LevelsConfig(Section):
    """A score cut into levels, each the data of a preference. A score in no level is left out."""

    column: str | None = Field(default=None, description="the field that holds the score, a number")
    attribute: str | None = Field(
        default=None, description="in place of a column: what is measured on the reply, `words`, `list_share`, ..."
    )
    by: Literal["score", "quantile"] = Field(
        default="score",
        description="what the ends of a level are: scores, or shares (0 to 1) of the data set's rows in order of score",
    )
    preferences: dict[str, Level] = Field(min_length=1, description="preference -> its level")

    @model_validator(mode="after")
    def _of_one_score(self) -> Self:
        if (self.column is None) == (self.attribute is None):
            raise ValueError("give either `column` or `attribute`")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        ordered = sorted(self.preferences.items(), key=lambda item: item[1].ends)
        for (label, level), (other, above) in pairwise(ordered):
            if above.ends[0] < level.ends[1]:
                raise ValueError(f"the levels of {label!r} and {other!r} overlap; a score may lie in one of them only")
        for label, level in self.preferences.items():
            ends = [end for end in (level.at_least, level.below) if end is not None]
            if self.by == "quantile" and not all(0 <= end <= 1 for end in ends):
                raise ValueError(f"{label!r}: by quantile the ends are shares from 0 to 1, found {ends}")
        return self


class DataConfig(Section):
    """One data set: a file, several files, or a data set of the hub."""

    path: Path | tuple[Path, ...] | None = Field(
        default=None,
        description="JSON, JSON Lines (either gzipped or not), CSV or Parquet: a file, a pattern such as "
        "`part-*.jsonl.gz`, or a list of these; relative to the configuration file",
    )
    hub: str | None = Field(default=None, description="in place of `path`: what `datasets.load_dataset` is to load")
    split: str | None = Field(default=None, description="which split of the hub's data set; none: `train`")
    config: str | None = Field(default=None, description="which configuration of the hub's data set")
    form: Literal["auto", "pointwise", "pairwise", "hh", "unpaired", "scored"] = Field(
        default="auto", description="auto: recognised by the first row's columns"
    )
    columns: ColumnNames = ColumnNames()
    where: dict[str, Any] = Field(
        default_factory=dict, description="keep only rows whose field has this value, or one of these values"
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="label in the file -> preference; where given, rows with other labels are left out",
    )
    separator: str | None = Field(
        default=None, min_length=1, description="what stands between the labels of a row where one text holds several"
    )
    chosen: str | None = Field(default=None, description="the preference that chosen replies are data of; none: of no")
    rejected: str | None = Field(default=None, description="the preference that rejected replies are data of")
    levels: LevelsConfig | None = Field(default=None, description="how a score becomes a preference")
    supervise: Literal["last", "all"] = Field(
        default="last", description="which of the assistant's turns are learned: the last, or every one"
    )
    weight: float | None = Field(
        default=None,
        gt=0,
        description="this data set's share of each preference's examples, relative to the weights of the other data "
        "sets that have the preference; examples are drawn by the seed, none twice, as many as the shares allow. "
        "Given for all data sets or for none; without weights every example of every data set is taken",
    )
    bad_rows: Literal["refuse", "leave_out"] = Field(
        default="refuse", description="what becomes of a row that does not have its form"
    )

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files and patterns, none where the data is the hub's."""
        if self.path is None:
            return ()
        return self.path if isinstance(self.path, tuple) else (self.path,)

    @property
    def source(self) -> str:
        """What messages call it."""
        return self.hub if self.hub is not None else ", ".join(map(str, self.paths))

    def relative_to(self, folder: Path) -> DataConfig:
        """The same with its paths taken from a folder."""
        if self.path is None:
            return self
        path = tuple(folder / p for p in self.path) if isinstance(self.path, tuple) else folder / self.path
        return self.model_copy(update={"path": path})

    def without_folders(self) -> DataConfig:
        """The same with bare file names: where data lay is one machine's business."""
        if self.path is None:
            return self
        path = tuple(Path(p.name) for p in self.path) if isinstance(self.path, tuple) else Path(self.path.name)
        return self.model_copy(update={"path": path})

    def preferences_named(self) -> dict[str, list[str]]:
        """By field, the preferences that it says replies are data of."""
        named = {
            "labels": list(self.labels.values()),
            "chosen": [self.chosen] if self.chosen is not None else [],
            "rejected": [self.rejected] if self.rejected is not None else [],
            "levels.preferences": list(self.levels.preferences) if self.levels else [],
        }
        return {field: labels for field, labels in named.items() if labels}

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if (self.hub is None) == (not self.paths):
            raise ValueError("give either `path` or `hub`")
        if self.hub is None and (self.config is not None or self.split is not None):
            raise ValueError("`split` and `config` are of a data set of the hub; here is a `path`")
        if self.levels and self.form not in ("auto", "scored"):
            raise ValueError(f"`levels` are for the form scored, not {self.form}")
        if self.form == "scored" and self.levels is None:
            raise ValueError("the form scored needs `levels`, which say what each score is data of")
        if self.chosen is not None and self.chosen == self.rejected:
            raise ValueError(f"`chosen` and `rejected` are both {self.chosen!r}; each is data of its own preference")
        return self


def check_weights(data: Sequence[DataConfig]) -> None:
    """Raises ValueError where some data sets have a weight and others do not."""
    without = [i for i, one in enumerate(data) if one.weight is None]
    if without and len(without) < len(data):
        raise ValueError(f"data.{without[0]}.weight: missing; give a weight to all data sets or to none")
