"""What `meet.json` says, as types. Knows no files: reading, digests and writing are in `bundle.py`.

The format is versioned: a reader refuses a version it does not know. Adding an optional field keeps
the version; changing the meaning of one raises it. So the digest is of what is written, not of what a reader makes
of it: a manifest from before a field was added is as whole as it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FORMAT_VERSION = 1
MANIFEST_NAME = "meet.json"

# A label stands in JSON, in a header (`a=1,b=0.5`), in a model name (`NAME:a+b`) and in a folder name,
# so it has none of their separators.
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RESERVED_LABELS = frozenset({"none", "null"})

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# NaN is in no range, and 1e308 has no hundredths: what is served by such a strength is an error for every request.
Strength = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


def check_label(label: str) -> str:
    """Returns the label, or raises ValueError saying what a label may be."""
    if not LABEL.fullmatch(label) or label.lower() in RESERVED_LABELS:
        raise ValueError(
            f"{label!r} is no label: use 1 to 64 letters, digits, '_', '-' or '.', starting with a letter "
            f"or digit, and not {' or '.join(sorted(RESERVED_LABELS))}"
        )
    return label


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseModelSource(_Part):
    """Where the language model came from before training."""

    source: str = Field(description="what the configuration named: `smollm2-135m`, a path or a hub name")
    digest: Sha256 | None = Field(default=None, description="digest of its weights, where it was a folder")


class LoraControls(_Part):
    """Every control of the bundle is a LoRA adapter as PEFT writes it."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(ge=1, description="r of every adapter")
    alpha: float = Field(gt=0, description="the adapter adds alpha / rank x B A")
    target_modules: tuple[str, ...] = Field(min_length=1, description="suffixes of the linear layers adapted")
    shared_a: bool = Field(description="every control has the same A in each layer, so that mixes are exact")


class SoftPromptControls(_Part):
    """Every control of the bundle is a run of extra rows at the end of the model's embedding matrix.

    A preference's `first_token_id` says where its run begins. `before_prompt`: the run stands before the first
    token of the rendered prompt; `after_prompt`: between the rendered prompt, generation prompt included, and the
    reply. The ids have no text in the tokenizer, and are never to be sampled.
    """

    kind: Literal["soft_prompt"] = "soft_prompt"
    num_virtual_tokens: int = Field(ge=1)
    placement: Literal["before_prompt", "after_prompt"]


class Probe(_Part):
    """Proof that what is served is what was trained: a reply's log-probabilities under transformers + PEFT.

    `controlled[i]` and `uncontrolled[i]` are ln p(token_ids[start + i] | token_ids[:start + i]) in nats, of
    the exported model with and without the control. `token_ids` holds no virtual tokens of a soft prompt: under
    the control they are put where the placement says (`start` is where the rendered prompt ends), and their ids
    have no share of any probability.
    """

    token_ids: tuple[int, ...] = Field(min_length=2)
    start: int = Field(ge=1, description="index of the first reply token")
    controlled: tuple[float, ...] = Field(min_length=1)
    uncontrolled: tuple[float, ...] = Field(min_length=1)
    dtype: str = Field(description="what the reference was computed in: `float32` or `bfloat16`")

    @model_validator(mode="after")
    def _lengths_agree(self) -> Probe:
        num = len(self.token_ids) - self.start
        if not len(self.controlled) == len(self.uncontrolled) == num:
            raise ValueError(
                f"controlled ({len(self.controlled)}) and uncontrolled ({len(self.uncontrolled)}) need one value "
                f"per reply token ({num})"
            )
        return self


class Calibration(_Part):
    """Measured strength against the attribute it moves."""

    attribute: str
    strengths: tuple[float, ...]
    medians: tuple[float, ...] = Field(description="median of the attribute at each strength")
    recommended: Strength = Field(description="the strength that a request gets when it names none")


class Preference(_Part):
    """One preference that a request may ask for, and where its control lies."""

    name: str
    description: str = ""
    aliases: tuple[str, ...] = ()
    axis: str = Field(description="what it moves along: `length`, `format`")
    opposite: str | None = Field(default=None, description="the preference at the other end of the axis")
    instruction: str | None = Field(default=None, description="the sentence that asks a plain model for it")
    path: str = Field(
        pattern=r"^controls/[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="folder of the control, relative to the bundle",
    )
    digest: Sha256
    first_token_id: int | None = Field(
        default=None, ge=0, description="of a soft prompt: id of its first virtual token"
    )
    trained_examples: int = Field(ge=0)
    strength_range: tuple[Strength, Strength] = (-1.0, 2.0)
    calibration: Calibration | None = None
    probe: Probe

    @field_validator("name")
    @classmethod
    def _name_is_label(cls, name: str) -> str:
        return check_label(name)

    @field_validator("aliases")
    @classmethod
    def _aliases_are_labels(cls, aliases: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_label(alias) for alias in aliases)

    @property
    def version(self) -> str:
        """Short name of the control's content, as replies carry it."""
        return self.digest[:12]


class FileEntry(_Part):
    """One file of the bundle. The report is not listed: it may be written anew."""

    sha256: Sha256
    size: int = Field(ge=0)


def canonical(data: Mapping[str, Any]) -> bytes:
    """The one form in which a manifest is written: sorted keys, two spaces, a newline at the end.

    Raises ValueError for a text that is none in UTF-8: half of a surrogate pair.
    """
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def own_digest(data: Mapping[str, Any]) -> str:
    """What `digest` of a manifest's JSON is to be: SHA-256 of its canonical form with an empty one."""
    return hashlib.sha256(canonical({**data, "digest": ""})).hexdigest()


def overlap(preferences: Iterable[Preference], num_virtual_tokens: int) -> tuple[str, str, int] | None:
    """Two soft prompts that have virtual tokens in common, and the first of those; None where there are none."""
    begins = sorted((p.first_token_id, p.name) for p in preferences if p.first_token_id is not None)
    for (first, name), (following, other) in itertools.pairwise(begins):
        if following < first + num_virtual_tokens:
            return name, other, following
    return None


class Manifest(_Part):
    """`meet.json`. `digest` is that of the rest of it, so that one altered byte anywhere is seen."""

    format_version: int = FORMAT_VERSION
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    base: BaseModelSource
    model_path: Literal["model"] = "model"
    model_digest: Sha256
    model_dtype: str
    controls: Annotated[LoraControls | SoftPromptControls, Field(discriminator="kind")]
    preferences: tuple[Preference, ...] = Field(min_length=1)
    default: str | None = Field(default=None, description="the preference of a request that names none")
    verbosity: dict[str, str] = Field(default_factory=dict, description="OpenAI's `verbosity` -> preference")
    effort: dict[str, str] = Field(default_factory=dict, description="Anthropic's `effort` -> preference")
    made: dict[str, Any] = Field(
        default_factory=dict,
        description="resolved configuration, data digests, library versions, seeds, figures",
    )
    files: dict[str, FileEntry]
    digest: str = ""

    @model_validator(mode="after")
    def _labels_hang_together(self) -> Manifest:
        labels = [label for p in self.preferences for label in (p.name, *p.aliases)]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"labels stand for more than one preference: {', '.join(twice)}")
        names = {p.name for p in self.preferences}
        named = {
            "default": [self.default] if self.default is not None else [],
            "verbosity": list(self.verbosity.values()),
            "effort": list(self.effort.values()),
            "opposite": [p.opposite for p in self.preferences if p.opposite is not None],
        }
        for field, values in named.items():
            unknown = sorted(set(values) - names)
            if unknown:
                raise ValueError(f"{field} names {', '.join(unknown)}; the preferences are {', '.join(sorted(names))}")
        return self

    @model_validator(mode="after")
    def _virtual_tokens_hang_together(self) -> Manifest:
        firsts = {p.name: p.first_token_id for p in self.preferences}
        if isinstance(self.controls, LoraControls):
            if said := [name for name, first in firsts.items() if first is not None]:
                raise ValueError(f"first_token_id of {', '.join(said)}: LoRA controls have no virtual tokens")
            return self
        if missing := [name for name, first in firsts.items() if first is None]:
            raise ValueError(f"first_token_id of {', '.join(missing)} is missing: soft prompts need one")
        if (found := overlap(self.preferences, self.controls.num_virtual_tokens)) is not None:
            raise ValueError(f"the virtual tokens of {found[0]} and {found[1]} overlap")
        return self

    def virtual_token_ids(self, name: str) -> tuple[int, ...]:
        """Ids of a preference's virtual tokens, in order; none for LoRA controls. Raises KeyError."""
        first = self.preference(name).first_token_id
        if first is None or isinstance(self.controls, LoraControls):
            return ()
        return tuple(range(first, first + self.controls.num_virtual_tokens))

    @property
    def first_virtual_id(self) -> int | None:
        """The lowest id of any virtual token: the model's own vocabulary ends before it. None for LoRA controls."""
        return min((p.first_token_id for p in self.preferences if p.first_token_id is not None), default=None)

    def preference(self, name: str) -> Preference:
        """The preference of that name (not alias). Raises KeyError."""
        for preference in self.preferences:
            if preference.name == name:
                return preference
        raise KeyError(name)

    def sealed(self) -> Manifest:
        """The same manifest with its own digest in it."""
        return self.model_copy(update={"digest": own_digest(self.model_dump(mode="json"))})

    def to_bytes(self) -> bytes:
        """The manifest as it is written, in its canonical form."""
        return canonical(self.model_dump(mode="json"))
