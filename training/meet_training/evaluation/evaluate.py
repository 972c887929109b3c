"""What to ask of whom, and what the answers say of a bundle: does each control hold?

Three kinds of replies to the same prompts: controlled and uncontrolled ones of the MEET model, and those of
the base model that is plainly prompted with a preference's instruction. Knows no server processes: whoever
calls gives an endpoint for each of the two models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meet_bundle import Manifest, Preference
from meet_training.errors import TrainingError
from meet_training.evaluation.attributes import ATTRIBUTES
from meet_training.evaluation.evaluation_config import AxisConfig, EvaluationConfig, SamplingConfig
from meet_training.evaluation.figures import Share, holds, median, median_index, share_of
from meet_training.evaluation.prompts import Prompt, with_instruction
from meet_training.evaluation.replies import Question, Reply, ReplyCache, kept


@dataclass(frozen=True, slots=True)
class Replies:
    """Replies by preference, one a prompt, in the order of the prompts. Prompted ones may be missing."""

    controlled: Mapping[str, Sequence[Reply]]
    uncontrolled: Sequence[Reply]
    prompted: Mapping[str, Sequence[Reply]]


@dataclass(frozen=True, slots=True)
class Example:
    """The reply of median length, as it was given."""

    prompt: str
    reply: str


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one preference. What has nothing to be measured against is None."""

    preference: str
    axis: str
    attribute: str
    opposite: str | None
    bound: float | None
    median_controlled: float
    median_uncontrolled: float
    median_prompted: float | None
    holds_vs_opposite: Share | None
    holds_vs_uncontrolled: Share
    prompted_holds_vs_opposite: Share | None
    finished: Share
    example: Example

    @property
    def holds(self) -> Share:
        """Against its opposite; against no control where it has none."""
        return self.holds_vs_opposite or self.holds_vs_uncontrolled

    @property
    def below_bound(self) -> bool:
        """Does it hold on fewer prompts than the configuration asks for?"""
        return self.bound is not None and self.holds.share < self.bound


def check_axes(manifest: Manifest, config: EvaluationConfig) -> None:
    """Raises TrainingError where the configuration does not say how a preference is measured."""
    for preference in manifest.preferences:
        axis = config.axes.get(preference.axis)
        if axis is None:
            raise TrainingError(
                f"axes: nothing said of {preference.axis!r}, the axis of {preference.name!r}; "
                f"say {preference.axis}: {{attribute: ..., higher: ...}} in the evaluation's configuration"
            )
        names = [p.name for p in manifest.preferences if p.axis == preference.axis]
        if axis.higher not in names:
            raise TrainingError(
                f"axes.{preference.axis}.higher: {axis.higher!r} is not on that axis of the bundle; "
                f"{', '.join(names)} are"
            )


def controlled_questions(preference: Preference, prompts: Sequence[Prompt]) -> list[Question]:
    """What the MEET server is asked for a preference."""
    return [Question(prompt, {"preference": preference.name}) for prompt in prompts]


def uncontrolled_questions(prompts: Sequence[Prompt]) -> list[Question]:
    """What the MEET server is asked without a control; null keeps its default away."""
    return [Question(prompt, {"preference": None}) for prompt in prompts]


def prompted_questions(preference: Preference, prompts: Sequence[Prompt]) -> list[Question]:
    """What the base model is asked for a preference: none where the preference has no instruction."""
    if preference.instruction is None:
        return []
    return [Question(with_instruction(prompt, preference.instruction), {}) for prompt in prompts]


def meet_questions(manifest: Manifest, prompts: Sequence[Prompt]) -> list[Question]:
    """All that the MEET server is asked; the preferences of one prompt stand together, to share its cache."""
    columns = [controlled_questions(preference, prompts) for preference in manifest.preferences]
    columns.append(uncontrolled_questions(prompts))
    return [question for row in zip(*columns, strict=True) for question in row]


def base_questions(manifest: Manifest, prompts: Sequence[Prompt]) -> list[Question]:
    """All that the plain base model is asked."""
    return [q for preference in manifest.preferences for q in prompted_questions(preference, prompts)]


def meet_identity(manifest: Manifest) -> str:
    """What the MEET model's replies depend on, besides the question."""
    return f"bundle {manifest.digest}"


def base_identity(manifest: Manifest) -> str:
    """What the base model's replies depend on, besides the question."""
    return f"base {manifest.base.source} {manifest.base.digest or ''}".strip()


def collect(
    manifest: Manifest,
    prompts: Sequence[Prompt],
    cache: ReplyCache,
    sampling: SamplingConfig,
    *,
    prompted: bool = True,
) -> Replies:
    """The kept replies to all questions, those of the base model where `prompted`. Raises KeyError."""
    meet, base = meet_identity(manifest), base_identity(manifest)
    preferences = manifest.preferences
    return Replies(
        controlled={p.name: kept(controlled_questions(p, prompts), cache, meet, sampling) for p in preferences},
        uncontrolled=kept(uncontrolled_questions(prompts), cache, meet, sampling),
        prompted={p.name: kept(prompted_questions(p, prompts), cache, base, sampling) for p in preferences}
        if prompted
        else {},
    )


def measure(manifest: Manifest, config: EvaluationConfig, prompts: Sequence[Prompt], replies: Replies) -> list[Row]:
    """The figures of every preference. Raises TrainingError as `check_axes` does."""
    check_axes(manifest, config)
    return [_row(preference, config.axes[preference.axis], prompts, replies) for preference in manifest.preferences]


def _row(preference: Preference, axis: AxisConfig, prompts: Sequence[Prompt], replies: Replies) -> Row:
    name, opposite = preference.name, preference.opposite
    higher = name == axis.higher
    own = _measured(axis, replies.controlled[name])
    uncontrolled = _measured(axis, replies.uncontrolled)
    prompted = _measured(axis, replies.prompted.get(name, ()))
    other = _measured(axis, replies.controlled[opposite]) if opposite else []
    prompted_other = _measured(axis, replies.prompted.get(opposite, ())) if opposite else []
    return Row(
        preference=name,
        axis=preference.axis,
        attribute=axis.attribute,
        opposite=opposite,
        bound=axis.bound,
        median_controlled=median(own),
        median_uncontrolled=median(uncontrolled),
        median_prompted=median(prompted) if prompted else None,
        holds_vs_opposite=holds(own, other, higher=higher) if other else None,
        holds_vs_uncontrolled=holds(own, uncontrolled, higher=higher),
        prompted_holds_vs_opposite=(
            holds(prompted, prompted_other, higher=higher) if prompted and prompted_other else None
        ),
        finished=share_of(sum(reply.finished for reply in replies.controlled[name]), len(prompts)),
        example=_example(prompts, replies.controlled[name]),
    )


def _measured(axis: AxisConfig, replies: Sequence[Reply]) -> list[float]:
    return [ATTRIBUTES[axis.attribute].measure(reply.text) for reply in replies]


def _example(prompts: Sequence[Prompt], replies: Sequence[Reply]) -> Example:
    index = median_index([ATTRIBUTES["words"].measure(reply.text) for reply in replies])
    return Example(prompts[index][-1].content, replies[index].text)
