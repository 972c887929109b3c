"""What was answered in an evaluation, and what follows to be asked from it: scores and judgements of replies.

Reads what is kept, asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meet_training.evaluation.given import Pair
from meet_training.evaluation.judging import judge_questions
from meet_training.evaluation.log_odds import Score
from meet_training.evaluation.plan import Plan, neutral_replies, scored_pairs
from meet_training.evaluation.prompts import Prompt
from meet_training.evaluation.replies import Question, Reply, ReplyCache, kept
from meet_training.evaluation.scores import GivenReply, ScoreCache
from meet_training.evaluation.subject import Tested


@dataclass(frozen=True, slots=True)
class Answers:
    """Every answer of one evaluation, and what was planned. `no_rival` says why the rival was not asked."""

    plan: Plan
    replies: ReplyCache
    scores: ScoreCache
    no_rival: str | None = None

    def of(self, questions: Sequence[Question]) -> list[Reply]:
        """The replies of the model that is evaluated. Raises KeyError where one is missing."""
        return kept(questions, self.replies, self.plan.subject.identity, self.plan.config.sampling)

    def of_rival(self, questions: Sequence[Question]) -> list[Reply]:
        """Those of its rival."""
        return kept(questions, self.replies, self.plan.subject.rival_identity, self.plan.config.sampling)

    def score(self, given: GivenReply, identity: str) -> Score:
        """The score of a reply. Raises KeyError."""
        return self.scores[given.key(identity)]

    def pairs(self) -> list[Pair]:
        """The pairs for log-odds: those of the file, else what the prompted rival replied. None without either."""
        plan = self.plan
        if plan.pairs is not None:
            return list(plan.pairs[: plan.config.few])
        if self.no_rival is not None:
            return []
        pairs = []
        for prompt in plan.few:
            asked = {tested.name: plan.subject.prompted(tested, prompt) for tested in plan.subject.preferences}
            replies = {name: self.of_rival([one])[0].text for name, one in asked.items() if one is not None}
            pairs.append(Pair(prompt, replies))
        return pairs

    def neutral(self) -> list[tuple[Prompt, str]]:
        """The replies for perplexity: those of the file, else the base model's own; none where it is not measured."""
        plan = self.plan
        if self.no_rival is not None or plan.subject.base_identity is None or not plan.measures("side_effects"):
            return []
        if plan.neutral is not None:
            return list(plan.neutral)
        return neutral_replies(plan.few, self.of_rival([plan.subject.unchanged(prompt) for prompt in plan.few]))

    def to_score(self) -> list[GivenReply]:
        """All that the model that is evaluated is to score."""
        plan = self.plan
        given: list[GivenReply] = []
        if plan.measures("log_odds"):
            pairs = self.pairs()
            for tested in plan.subject.preferences:
                strengths = plan.strengths(tested) if plan.measures_odds_by_strength else []
                for strength in (None, *strengths):
                    given += [each for row in scored_pairs(plan.subject, tested, pairs, strength) for each in row]
        return given + self.neutral_under_subject()

    def neutral_under_subject(self) -> list[GivenReply]:
        """The neutral replies as the model that is evaluated scores them: without a control."""
        uncontrolled = self.plan.subject.uncontrolled
        return [GivenReply(prompt, reply, uncontrolled(prompt).fields) for prompt, reply in self.neutral()]

    def neutral_under_base(self) -> list[GivenReply]:
        """The same as the base model scores them."""
        return [GivenReply(prompt, reply, {}) for prompt, reply in self.neutral()]

    def judge_questions(self) -> list[tuple[Tested, list[tuple[Question, Question]]]]:
        """What the judge is asked: the controlled replies of each preference beside its opposite's."""
        plan = self.plan
        if not plan.measures("judge"):
            return []
        asked = []
        for tested in plan.subject.preferences:
            question = plan.config.axes[tested.axis].question
            if tested.opposite is None or question is None:
                continue
            own = self.of([tested.question(prompt) for prompt in plan.prompts])
            opposite = plan.subject.preference(tested.opposite)
            other = self.of([opposite.question(prompt) for prompt in plan.prompts])
            rows = zip(plan.prompts, own, other, strict=True)
            asked.append((tested, [judge_questions(prompt, a.text, b.text, question) for prompt, a, b in rows]))
        return asked
