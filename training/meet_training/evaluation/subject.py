"""Who is evaluated: a bundle, or whatever answers at an address. Knows what to put into a request for a preference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meet_bundle import LoraControls, Manifest, Preference, SoftPromptControls
from meet_training.errors import TrainingError
from meet_training.evaluation.evaluation_config import EvaluationConfig
from meet_training.evaluation.prompts import Prompt, with_instruction
from meet_training.evaluation.replies import Question

FIELD = "preference"
"""The field of a body that a MEET server reads."""

AS_TRAINED = 1.0

_OF_CONTROLS = ("strength", "mixes", "log_odds")
_ONE_STRENGTH = (AS_TRAINED, AS_TRAINED)
_NO_STRENGTH = "a soft prompt has no strength"
_NO_PLACE = "the server does not say where its soft prompts stand: behind a given reply they would change nothing of it"
_NO_CONTROLS = "a preference is asked for by words or fields, not by a MEET server's control"


@dataclass(frozen=True, slots=True)
class Tested:
    """One preference, and how it is asked for.

    `controlled` is True where a MEET server applies a control for it; a plain endpoint gets its instruction and
    `fields`. `recommended` is the strength that its name alone stands for.
    """

    name: str
    axis: str
    opposite: str | None = None
    instruction: str | None = None
    controlled: bool = True
    fields: Mapping[str, Any] | None = None
    strength_range: tuple[float, float] = (-1.0, 2.0)
    recommended: float = AS_TRAINED

    def question(self, prompt: Prompt, strength: float | None = None) -> Question:
        """What is asked for it; at the recommended strength where none is named."""
        if not self.controlled:
            asked = prompt if self.instruction is None else with_instruction(prompt, self.instruction)
            return Question(asked, self.fields or {})
        strength = self.recommended if strength is None else strength
        if strength == 0:
            return Question(prompt, {FIELD: None})
        # By name where that says the same, so that a reply is kept once.
        plain = strength == self.recommended == AS_TRAINED
        return Question(prompt, {FIELD: self.name if plain else {self.name: strength}})


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is evaluated.

    `model` is what requests call it; `identity` names all that its replies depend on besides the question, and
    `base_identity` the same of the base model. `lacks` says of figures that cannot be had of it why not.
    """

    name: str
    model: str
    identity: str
    preferences: tuple[Tested, ...]
    base: str | None = None
    base_identity: str | None = None
    digest: str | None = None
    has_controls: bool = True
    lacks: Mapping[str, str] = field(default_factory=dict)

    def preference(self, name: str) -> Tested:
        """The preference of that name. Raises KeyError."""
        for tested in self.preferences:
            if tested.name == name:
                return tested
        raise KeyError(name)

    def uncontrolled(self, prompt: Prompt) -> Question:
        """What is asked without a control; null keeps a MEET server's default away."""
        return Question(prompt, {FIELD: None} if self.has_controls else {})

    def prompted(self, tested: Tested, prompt: Prompt) -> Question | None:
        """What the rival that users try first is asked, the plainly prompted model; None without an instruction.

        That is the base model where there is one, else this one without a control.
        """
        if tested.instruction is None:
            return None
        return self.unchanged(with_instruction(prompt, tested.instruction))

    def unchanged(self, prompt: Prompt) -> Question:
        """A prompt as it is, to the base model where there is one, else to this one without a control."""
        return self.uncontrolled(prompt) if self.base_identity is None else Question(prompt, {})

    @property
    def rival_identity(self) -> str:
        """What the replies of the plainly prompted model depend on besides the question."""
        return self.base_identity or self.identity


def subject_of_bundle(manifest: Manifest, engine_args: Sequence[str] = ()) -> Subject:
    """The MEET model of a bundle, and its base, as an engine with these arguments of the user's serves them.

    Its identity leaves out what no reply depends on, such as a calibration: that decides what is asked.
    """
    engine = f" {json.dumps(list(engine_args))}" if engine_args else ""
    decides = [
        manifest.model_digest,
        manifest.controls.model_dump(),
        [(p.name, p.digest) for p in manifest.preferences],
    ]
    identity = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return Subject(
        name=manifest.name,
        model=manifest.name,
        identity=f"bundle {identity}{engine}",
        preferences=tuple(map(_of_manifest, manifest.preferences)),
        base=manifest.base.source,
        base_identity=f"base {manifest.base.source} {manifest.base.digest or ''}".strip() + engine,
        digest=manifest.digest,
        lacks=_lacks(manifest.controls),
    )


def subject_of_endpoint(
    url: str, model: str, config: EvaluationConfig, served: Sequence[Mapping[str, Any]] | None
) -> Subject:
    """Whatever answers at an address: the preferences of the configuration, else those that the server lists.

    `served` is what `GET /v1/preferences` lists; None where it does not answer that, as a plain endpoint. Raises
    TrainingError where neither names a preference, or one is named that nothing asks for.
    """
    listed = {str(card["id"]): card for card in served or ()}
    for name, said in config.preferences.items():
        if name not in listed and said.instruction is None and said.fields is None:
            known = f"it lists {', '.join(listed)}" if listed else "it lists none"
            raise TrainingError(
                f"preferences.{name}: {url} does not know it ({known}), and it has neither an instruction nor fields "
                "to ask for it by"
            )
    # Asked for by words alone, a MEET server's default must stay away as it does without a control.
    without_default = None if served is None else {FIELD: None}
    if config.preferences:
        preferences = tuple(
            Tested(
                name,
                said.axis,
                said.opposite,
                said.instruction,
                name in listed and said.fields is None,
                without_default if name not in listed and said.fields is None else said.fields,
                *_of_card(listed.get(name, {})),
            )
            for name, said in config.preferences.items()
        )
    else:
        preferences = tuple(
            Tested(name, str(card["axis"]), card.get("opposite"), None, True, None, *_of_card(card))
            for name, card in listed.items()
        )
    if not preferences:
        raise TrainingError(
            f"{url} lists no preferences: name them in the configuration, "
            "preferences: {concise: {axis: length, opposite: detailed, instruction: ...}}"
        )
    versions = [(name, card.get("version")) for name, card in sorted(listed.items())]
    return Subject(
        name=f"{model} at {url}",
        model=model,
        identity=f"endpoint {url} {model} {json.dumps(versions)}",
        preferences=preferences,
        has_controls=served is not None,
        lacks=_lacks_of_endpoint(preferences),
    )


def _lacks_of_endpoint(preferences: Sequence[Tested]) -> dict[str, str]:
    if not all(tested.controlled for tested in preferences):
        return dict.fromkeys(_OF_CONTROLS, _NO_CONTROLS)
    if any(tested.strength_range == _ONE_STRENGTH for tested in preferences):
        return {"strength": _NO_STRENGTH, "log_odds": _NO_PLACE}
    return {}


def _lacks(controls: LoraControls | SoftPromptControls) -> dict[str, str]:
    if isinstance(controls, LoraControls):
        return {}
    lacks = {"strength": _NO_STRENGTH}
    if controls.placement == "after_prompt":
        lacks["log_odds"] = "its soft prompts stand after the prompt: in front of a given reply they cannot be put"
    return lacks


def _of_manifest(preference: Preference) -> Tested:
    return Tested(
        preference.name,
        preference.axis,
        preference.opposite,
        preference.instruction,
        strength_range=preference.strength_range,
        recommended=AS_TRAINED if preference.calibration is None else preference.calibration.recommended,
    )


def _of_card(card: Mapping[str, Any]) -> tuple[tuple[float, float], float]:
    low, high = card.get("strength_range") or (-1.0, 2.0)
    calibration = card.get("calibration") or {}
    return (float(low), float(high)), float(calibration.get("recommended", AS_TRAINED))
