"""What an evaluation asks of whom, before anybody is asked: so that it can be counted, and so that it can go on.

Two models are asked: the one that is evaluated, and its rival, the plainly prompted base. Knows no servers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meet_training.errors import TrainingError
from meet_training.evaluation.evaluate import check_axes
from meet_training.evaluation.evaluation_config import EvaluationConfig, Figure
from meet_training.evaluation.given import Pair, read_neutral, read_pairs
from meet_training.evaluation.judging import judge_endpoint
from meet_training.evaluation.length_limits import TEMPLATE
from meet_training.evaluation.prompts import Prompt, read_prompts, with_instruction
from meet_training.evaluation.replies import Question, Reply
from meet_training.evaluation.scores import GivenReply
from meet_training.evaluation.subject import FIELD, Subject, Tested

NO_CONTROL = "uncontrolled"
PROMPTED = "prompted base"


@dataclass(frozen=True, slots=True)
class Plan:
    """The questions of one evaluation. `pairs` and `neutral` are replies from files, where there are such files."""

    subject: Subject
    config: EvaluationConfig
    prompts: Sequence[Prompt]
    pairs: Sequence[Pair] | None = None
    neutral: Sequence[tuple[Prompt, str]] | None = None

    @property
    def skipped(self) -> dict[str, str]:
        """Why figures that were asked for cannot be had of this subject."""
        lacks = dict(self.subject.lacks)
        if len({tested.axis for tested in self.subject.preferences}) < 2:
            lacks["mixes"] = "there is one axis alone"
        if not self.length_preferences():
            lacks["length"] = "no axis is measured by words"
        axes = self.config.axes
        if not any(axis.question for axis in axes.values()):
            lacks["judge"] = "no axis has a `question` for the judge"
        elif not any(
            tested.opposite and axes[tested.axis].question for tested in self.subject.preferences if tested.axis in axes
        ):
            lacks["judge"] = "no preference of an axis with a `question` has an opposite to be judged beside"
        return {figure: lacks[figure] for figure in self.config.figures if figure in lacks}

    def measures(self, figure: Figure) -> bool:
        """Is the figure asked for, and can it be had?"""
        return figure in self.config.figures and figure not in self.skipped

    @property
    def measures_odds_by_strength(self) -> bool:
        """Are log-odds measured at each strength? Where both figures are."""
        return self.measures("strength") and self.measures("log_odds")

    @property
    def few(self) -> Sequence[Prompt]:
        """The prompts of the figures that cost most."""
        return self.prompts[: self.config.few]

    def strengths(self, tested: Tested) -> list[float]:
        """The strengths of its curve: those that it and its opposite allow."""
        sides = [tested] if tested.opposite is None else [tested, self.subject.preference(tested.opposite)]
        low = max(side.strength_range[0] for side in sides)
        high = min(side.strength_range[1] for side in sides)
        return sorted({strength for strength in self.config.strengths if low <= strength <= high})

    def mixes(self) -> list[tuple[Tested, Tested]]:
        """Every pair of preferences of different axes."""
        return [
            (one, other) for one, other in itertools.combinations(self.subject.preferences, 2) if one.axis != other.axis
        ]

    def mixed(self, one: Tested, other: Tested, prompt: Prompt) -> Question:
        """What is asked for a mix of two preferences."""
        return Question(prompt, {FIELD: {each.name: self.config.mix_strength_of(each.name) for each in (one, other)}})

    def prompted_mix(self, one: Tested, other: Tested, prompt: Prompt) -> Question | None:
        """What the rival is asked for it, both instructions in turn; None where these or their opposites lack one."""
        opposites = [self.subject.preference(name) for name in (one.opposite, other.opposite) if name is not None]
        if len(opposites) < 2 or any(tested.instruction is None for tested in opposites):
            return None
        if one.instruction is None or other.instruction is None:
            return None
        return self.subject.unchanged(with_instruction(with_instruction(prompt, one.instruction), other.instruction))

    def limited(self, tested: Tested | None, max_words: int, prompt: Prompt) -> Question:
        """A prompt that asks for so many words at most, under a control or none."""
        asked = with_instruction(prompt, TEMPLATE.format(max_words=max_words))
        return self.subject.uncontrolled(asked) if tested is None else tested.question(asked)

    def length_preferences(self) -> list[Tested]:
        """The preferences of the axes that are measured by words."""
        by_words = {axis for axis, said in self.config.axes.items() if said.attribute == "words"}
        return [tested for tested in self.subject.preferences if tested.axis in by_words]

    def asked(self) -> list[Question]:
        """All replies of the model that is evaluated; those to one prompt stand together, to share its cache."""
        return [question for prompt in self.prompts for question in self._asked_of(prompt)] + [
            question for prompt in self.few for question in self._costly(prompt)
        ]

    def rival(self) -> list[Question]:
        """All replies of the rival."""
        subject = self.subject
        prompted = [
            question
            for tested in subject.preferences
            for prompt in self.prompts
            if (question := subject.prompted(tested, prompt)) is not None
        ]
        if self.measures("mixes"):
            asked = [self.prompted_mix(one, other, prompt) for prompt in self.few for one, other in self.mixes()]
            prompted += [question for question in asked if question is not None]
        if subject.base_identity is None:  # what else a rival does is what the model without a control does
            return prompted
        if self.measures("side_effects"):
            prompted += map(subject.unchanged, self.few)
        if self.measures("length"):
            prompted += [question for words in self.config.max_words for question in self.limited_rival(words)]
        return prompted

    def _asked_of(self, prompt: Prompt) -> Iterator[Question]:
        for tested in self.subject.preferences:
            yield tested.question(prompt)
        yield self.subject.uncontrolled(prompt)

    def _costly(self, prompt: Prompt) -> Iterator[Question]:
        if self.measures("strength"):
            for tested in self.subject.preferences:
                yield from (tested.question(prompt, strength) for strength in self.strengths(tested))
        if self.measures("mixes"):
            yield from (self.mixed(one, other, prompt) for one, other in self.mixes())
        if self.measures("length"):
            for words in self.config.max_words:
                yield from (self.limited(tested, words, prompt) for tested in (*self.length_preferences(), None))

    def limited_rival(self, max_words: int) -> list[Question]:
        """What the rival is asked for a length."""
        asked = TEMPLATE.format(max_words=max_words)
        return [self.subject.unchanged(with_instruction(prompt, asked)) for prompt in self.few]


def plan_of(subject: Subject, config: EvaluationConfig) -> Plan:
    """The plan of an evaluation, its files read. Raises TrainingError where one is missing or does not fit."""
    check_axes(subject, config)
    if config.prompts is None:
        raise TrainingError("prompts: no file is named in the configuration")
    _check_strengths(Plan(subject, config, ()))
    if "judge" in config.figures:
        if config.judge is None:
            raise TrainingError("judge: the figure needs someone who judges: say judge: {url: ..., model: ...}")
        judge_endpoint(config.judge)  # its key is missed now, not after an hour
    return Plan(
        subject,
        config,
        read_prompts(config.prompts, config.limit),
        None if config.pairs is None else read_pairs(config.pairs),
        None if config.neutral is None else read_neutral(config.neutral, config.limit),
    )


def _check_strengths(plan: Plan) -> None:
    for tested in plan.subject.preferences if plan.measures("strength") else ():
        left = plan.strengths(tested)
        if len(left) < 2 or left[-1] <= 0:
            low, high = tested.strength_range
            raise TrainingError(
                f"strengths: of {_listed(plan.config.strengths)} the range of "
                f"{tested.name!r}, {low:g} to {high:g}, and its opposite's leave {_listed(left)}; a "
                "curve needs two, one of them above 0"
            )


def _listed(strengths: Sequence[float]) -> str:
    return ", ".join(f"{strength:g}" for strength in strengths) or "none"


def neutral_replies(prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[tuple[Prompt, str]]:
    """Prompts with the replies that perplexity is measured on; those without text are left out."""
    return [(prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True) if not reply.empty]


def scored_pairs(
    subject: Subject, tested: Tested, pairs: Sequence[Pair], strength: float | None = None
) -> list[tuple[GivenReply, ...]]:
    """For each pair that has both sides: own and other reply under the control, then both without one.

    The control is at the recommended strength where none is named.
    """
    sides = (tested.name, tested.opposite)
    rows = []
    for pair in pairs:
        texts = [pair.replies.get(side or "", "") for side in sides]
        if not all(text.strip() for text in texts):
            continue
        asked, none = tested.question(pair.prompt, strength).fields, subject.uncontrolled(pair.prompt).fields
        rows.append(tuple(GivenReply(pair.prompt, text, fields) for fields in (asked, none) for text in texts))
    return rows
