"""Does each preference hold? Three kinds of replies to the same prompts are compared.

Controlled and uncontrolled ones of the model that is evaluated, and those of the model that is plainly prompted with
a preference's instruction: it is the rival that users try first, and always one of the rows. Knows no servers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meet_training.errors import TrainingError
from meet_training.evaluation.attributes import ATTRIBUTES
from meet_training.evaluation.bootstrap import Estimate, median_of
from meet_training.evaluation.evaluation_config import AxisConfig, EvaluationConfig, SamplingConfig
from meet_training.evaluation.figures import Holds, Share, holds, median_index, same_share, share_of
from meet_training.evaluation.prompts import Prompt
from meet_training.evaluation.replies import Reply, ReplyCache, kept
from meet_training.evaluation.subject import Subject, Tested
from meet_training.evaluation.verdict import Verdict, counted, judge, sentence


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
    tested_by: str
    opposite: str | None
    bound: float | None
    controlled: Estimate
    uncontrolled: Estimate
    prompted: Estimate | None
    holds_vs_opposite: Holds | None
    holds_vs_uncontrolled: Holds
    holds_vs_prompted: Holds | None
    prompted_holds_vs_opposite: Holds | None
    same_as_uncontrolled: Share
    finished: Share
    empty: Share
    example: Example

    @property
    def holds(self) -> Holds:
        """Against its opposite; against no control where it has none."""
        return self.holds_vs_opposite or self.holds_vs_uncontrolled

    @property
    def below_bound(self) -> bool:
        """Does it hold on fewer prompts than the configuration asks for?"""
        return self.bound is not None and self.holds.share < self.bound

    @property
    def median_controlled(self) -> float:
        """Median of the attribute of the controlled replies."""
        return self.controlled.value

    @property
    def median_uncontrolled(self) -> float:
        """Of the uncontrolled ones."""
        return self.uncontrolled.value

    @property
    def median_prompted(self) -> float | None:
        """Of the prompted ones, where there are such."""
        return None if self.prompted is None else self.prompted.value

    @property
    def verdict(self) -> Verdict:
        """What the figures say."""
        return judge(self.holds, self.holds_vs_uncontrolled, self.same_as_uncontrolled, self.bound)

    @property
    def sentence(self) -> str:
        """The same as a sentence."""
        against = "no control" if self.holds_vs_opposite is None or self.opposite is None else self.opposite
        said = sentence(
            self.preference,
            self.attribute,
            against,
            self.holds,
            self.holds_vs_uncontrolled,
            self.same_as_uncontrolled,
            self.verdict,
            self.bound,
        )
        return f"{said} It says nothing at all on {counted(self.empty)}." if self.empty.share else said


def check_axes(subject: Subject, config: EvaluationConfig) -> None:
    """Raises TrainingError where the configuration does not say how a preference is measured, or names another."""
    known = [tested.name for tested in subject.preferences]
    for name in config.mix_strengths:
        if name not in known:
            raise TrainingError(f"mix_strengths.{name}: {name!r} is no preference; {', '.join(known)} are")
    for tested in subject.preferences:
        axis = config.axes.get(tested.axis)
        if axis is None:
            raise TrainingError(
                f"axes: nothing said of {tested.axis!r}, the axis of {tested.name!r}; "
                f"say {tested.axis}: {{attribute: ..., higher: ...}}, or lower, in the evaluation's configuration"
            )
        names = [each.name for each in subject.preferences if each.axis == tested.axis]
        if axis.named not in names:
            side = "higher" if axis.lower is None else "lower"
            raise TrainingError(
                f"axes.{tested.axis}.{side}: {axis.named!r} is not on that axis of the bundle; {', '.join(names)} are"
            )
        if tested.opposite is not None and tested.opposite not in known:
            raise TrainingError(
                f"preferences.{tested.name}.opposite: {tested.opposite!r} is no preference; {', '.join(known)} are"
            )


def collect(
    subject: Subject,
    prompts: Sequence[Prompt],
    cache: ReplyCache,
    sampling: SamplingConfig,
    *,
    prompted: bool = True,
) -> Replies:
    """The kept replies to all questions, those of the prompted model where `prompted`. Raises KeyError."""
    return Replies(
        controlled={
            tested.name: kept([tested.question(prompt) for prompt in prompts], cache, subject.identity, sampling)
            for tested in subject.preferences
        },
        uncontrolled=kept([subject.uncontrolled(prompt) for prompt in prompts], cache, subject.identity, sampling),
        prompted={
            tested.name: kept(
                [question for prompt in prompts if (question := subject.prompted(tested, prompt)) is not None],
                cache,
                subject.rival_identity,
                sampling,
            )
            for tested in subject.preferences
        }
        if prompted
        else {},
    )


def measure(subject: Subject, config: EvaluationConfig, prompts: Sequence[Prompt], replies: Replies) -> list[Row]:
    """The figures of every preference. Raises TrainingError as `check_axes` does."""
    check_axes(subject, config)
    return [_row(tested, config.axes[tested.axis], prompts, replies) for tested in subject.preferences]


def measured(attribute: str, replies: Sequence[Reply]) -> list[float]:
    """The attribute of each reply."""
    return [ATTRIBUTES[attribute].measure(reply.text) for reply in replies]


def beside(attribute: str, replies: Sequence[Reply], others: Sequence[Reply]) -> list[float]:
    """The attribute of the others' replies, for comparison with that of `replies`.

    NaN where either says nothing: silence has the fewest words and yet is no concise reply.
    """
    return [
        math.nan if reply.empty or other.empty else value
        for reply, other, value in zip(replies, others, measured(attribute, others), strict=True)
    ]


def _row(tested: Tested, axis: AxisConfig, prompts: Sequence[Prompt], replies: Replies) -> Row:
    name, opposite, attribute = tested.name, tested.opposite, axis.attribute
    higher = axis.asks_more(name)
    own, prompted = replies.controlled[name], replies.prompted.get(name, ())
    other = replies.controlled[opposite] if opposite else ()
    prompted_other = replies.prompted.get(opposite, ()) if opposite else ()

    def against(given: Sequence[Reply], others: Sequence[Reply]) -> Holds:
        return holds(measured(attribute, given), beside(attribute, given, others), higher=higher)

    return Row(
        preference=name,
        axis=tested.axis,
        attribute=attribute,
        tested_by=axis.tested_by,
        opposite=opposite,
        bound=axis.bound,
        controlled=median_of(measured(attribute, own)),
        uncontrolled=median_of(measured(attribute, replies.uncontrolled)),
        prompted=median_of(measured(attribute, prompted)) if prompted else None,
        holds_vs_opposite=against(own, other) if other else None,
        holds_vs_uncontrolled=against(own, replies.uncontrolled),
        holds_vs_prompted=against(own, prompted) if prompted else None,
        prompted_holds_vs_opposite=against(prompted, prompted_other) if prompted and prompted_other else None,
        same_as_uncontrolled=same_share(_texts(own), _texts(replies.uncontrolled)),
        finished=share_of(sum(reply.finished for reply in own), len(prompts)),
        empty=share_of(sum(reply.empty for reply in own), len(prompts)),
        example=_example(prompts, own),
    )


def _texts(replies: Sequence[Reply]) -> list[str]:
    return [reply.text for reply in replies]


def _example(prompts: Sequence[Prompt], replies: Sequence[Reply]) -> Example:
    index = median_index([ATTRIBUTES["words"].measure(reply.text) for reply in replies])
    return Example(prompts[index][-1].content, replies[index].text)
