"""All figures of one evaluation from what was answered. Reads what is kept, asks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meet_bundle import Calibration
from meet_training.evaluation.answers import Answers
from meet_training.evaluation.attributes import ATTRIBUTES
from meet_training.evaluation.evaluate import Replies, Row, beside, collect, measure, measured
from meet_training.evaluation.given import Pair
from meet_training.evaluation.judging import Judged, judge_endpoint, judge_sampling, judged
from meet_training.evaluation.leakage import Cell, leakage
from meet_training.evaluation.length_limits import LengthViolations, length_violations
from meet_training.evaluation.log_odds import LogOdds, Scored, log_odds
from meet_training.evaluation.mixes import Mixed, Side, mixed
from meet_training.evaluation.odds_by_strength import OddsCurve, odds_curve
from meet_training.evaluation.plan import NO_CONTROL, PROMPTED, Plan, scored_pairs
from meet_training.evaluation.replies import Reply, kept
from meet_training.evaluation.side_effects import Parity, SideEffects, broken, parity, side_effects
from meet_training.evaluation.similarity import Similarity, similarity_of
from meet_training.evaluation.strength import Curve, curve
from meet_training.evaluation.subject import Tested


@dataclass(frozen=True, slots=True)
class Results:
    """What one evaluation says. `skipped` says of each figure that was asked for and is missing why it is."""

    rows: list[Row]
    replies: Replies
    leakage: list[Cell]
    curves: list[Curve]
    mixes: list[Mixed]
    log_odds: list[LogOdds]
    odds_curves: list[OddsCurve]
    side_effects: list[SideEffects]
    parity: Parity | None
    similarity: str
    lengths: list[LengthViolations]
    judged: list[Judged]
    skipped: dict[str, str]

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """What the manifest may keep of the curves, by preference."""
        return {each.preference: each.calibration for each in self.curves}


def results(answers: Answers) -> Results:
    """The figures that were planned. Raises TrainingError, and KeyError where an answer is missing."""
    plan = answers.plan
    subject, config = plan.subject, plan.config
    replies = collect(subject, plan.prompts, answers.replies, config.sampling, prompted=answers.no_rival is None)
    similarity = similarity_of(config.similarity)
    has_rival = answers.no_rival is None
    skipped = dict(plan.skipped)
    odds = _log_odds(answers) if plan.measures("log_odds") else []
    if plan.measures("log_odds") and not odds:
        skipped["log_odds"] = answers.no_rival or "no prompt has replies of both sides"
    return Results(
        rows=measure(subject, config, plan.prompts, replies),
        replies=replies,
        leakage=_leakage(plan, replies) if plan.measures("leakage") else [],
        curves=_curves(answers) if plan.measures("strength") else [],
        mixes=_mixes(answers, replies) if plan.measures("mixes") else [],
        log_odds=odds,
        odds_curves=_odds_curves(answers) if plan.measures_odds_by_strength else [],
        side_effects=_side_effects(replies, similarity) if plan.measures("side_effects") else [],
        parity=_parity(answers, replies, similarity)
        if plan.measures("side_effects") and has_rival and subject.base_identity is not None
        else None,
        similarity=similarity.name,
        lengths=_lengths(answers) if plan.measures("length") else [],
        judged=_judged(answers),
        skipped=skipped,
    )


def _leakage(plan: Plan, replies: Replies) -> list[Cell]:
    axes = plan.config.axes
    asked = {tested.name: axes[tested.axis].attribute for tested in plan.subject.preferences}
    columns = list(dict.fromkeys([*asked.values(), *plan.config.leakage]))
    return leakage(
        {name: {each: measured(each, given) for each in columns} for name, given in replies.controlled.items()},
        {each: measured(each, replies.uncontrolled) for each in columns},
        asked,
    )


def _curves(answers: Answers) -> list[Curve]:
    plan = answers.plan
    curves = []
    for tested in plan.subject.preferences:
        axis = plan.config.axes[tested.axis]
        given = {strength: _at(answers, tested, strength) for strength in plan.strengths(tested)}
        opposite = None if tested.opposite is None else plan.subject.preference(tested.opposite)
        others = {
            strength: beside(axis.attribute, replies, _at(answers, opposite or tested, strength if opposite else 0.0))
            for strength, replies in given.items()
        }
        curves.append(
            curve(
                tested.name,
                axis.attribute,
                {strength: measured(axis.attribute, replies) for strength, replies in given.items()},
                {strength: list(map(broken, replies)) for strength, replies in given.items()},
                others,
                higher=axis.asks_more(tested.name),
                against=tested.opposite or NO_CONTROL,
                summary=ATTRIBUTES[axis.attribute].summary,
            )
        )
    return curves


def _at(answers: Answers, tested: Tested, strength: float) -> list[Reply]:
    plan = answers.plan
    if strength == 0:
        return answers.of([plan.subject.uncontrolled(prompt) for prompt in plan.few])
    return answers.of([tested.question(prompt, strength) for prompt in plan.few])


def _mixes(answers: Answers, replies: Replies) -> list[Mixed]:
    plan = answers.plan
    found = []
    for one, other in plan.mixes():
        given = answers.of([plan.mixed(one, other, prompt) for prompt in plan.few])
        asked = [plan.prompted_mix(one, other, prompt) for prompt in plan.few]
        questions = [question for question in asked if question is not None]
        prompted = None
        if answers.no_rival is None and questions:
            prompted = _sides(plan, (one, other), answers.of_rival(questions), replies.prompted, replies.uncontrolled)
        first, second = _sides(plan, (one, other), given, replies.controlled, replies.uncontrolled)
        strengths = (plan.config.mix_strength_of(one.name), plan.config.mix_strength_of(other.name))
        found.append(mixed(first, second, strengths, prompted))
    return found


def _sides(
    plan: Plan,
    pair: tuple[Tested, Tested],
    given: Sequence[Reply],
    by_preference: Mapping[str, Sequence[Reply]],
    uncontrolled: Sequence[Reply],
) -> tuple[Side, Side]:
    def side(tested: Tested) -> Side:
        axis = plan.config.axes[tested.axis]
        against = by_preference[tested.opposite] if tested.opposite else uncontrolled
        others = beside(axis.attribute, given, against[: len(given)])
        own = measured(axis.attribute, given)
        return Side(tested.name, tested.opposite or NO_CONTROL, own, others, axis.asks_more(tested.name))

    return side(pair[0]), side(pair[1])


def _log_odds(answers: Answers) -> list[LogOdds]:
    plan = answers.plan
    pairs = answers.pairs()
    found = []
    for tested in plan.subject.preferences:
        own, other = _scored(answers, tested, pairs)
        if tested.opposite is not None and own:
            found.append(log_odds(tested.name, tested.opposite, own, other))
    return found


def _odds_curves(answers: Answers) -> list[OddsCurve]:
    plan = answers.plan
    pairs = answers.pairs()
    found = []
    for tested in plan.subject.preferences:
        scored = {strength: _scored(answers, tested, pairs, strength) for strength in plan.strengths(tested)}
        if tested.opposite is None or not all(own for own, _ in scored.values()):
            continue
        own = {strength: both[0] for strength, both in scored.items()}
        other = {strength: both[1] for strength, both in scored.items()}
        found.append(odds_curve(tested.name, tested.opposite, own, other))
    return found


def _scored(
    answers: Answers, tested: Tested, pairs: Sequence[Pair], strength: float | None = None
) -> tuple[list[Scored], list[Scored]]:
    """The replies of its own side and of the other one, of every pair that has both."""
    rows = scored_pairs(answers.plan.subject, tested, pairs, strength)
    scores = [[answers.score(given, answers.plan.subject.identity) for given in row] for row in rows]
    return [Scored(row[0], row[2]) for row in scores], [Scored(row[1], row[3]) for row in scores]


def _side_effects(replies: Replies, similarity: Similarity) -> list[SideEffects]:
    found = [side_effects(NO_CONTROL, replies.uncontrolled, None, similarity)]
    found += [side_effects(name, given, replies.uncontrolled, similarity) for name, given in replies.controlled.items()]
    return found


def _parity(answers: Answers, replies: Replies, similarity: Similarity) -> Parity:
    plan = answers.plan
    base = answers.of_rival([plan.subject.unchanged(prompt) for prompt in plan.few])
    under_subject, under_base = answers.neutral_under_subject(), answers.neutral_under_base()
    scores = (
        [answers.score(given, plan.subject.identity) for given in under_subject],
        [answers.score(given, plan.subject.rival_identity) for given in under_base],
    )
    return parity(replies.uncontrolled[: len(base)], base, similarity, scores if under_subject else None)


def _lengths(answers: Answers) -> list[LengthViolations]:
    plan = answers.plan
    found = []
    for max_words in plan.config.max_words:
        asked = {tested.name: tested for tested in plan.length_preferences()}
        for name, tested in [*asked.items(), (NO_CONTROL, None)]:
            given = answers.of([plan.limited(tested, max_words, prompt) for prompt in plan.few])
            found.append(length_violations(name, max_words, [reply.text for reply in given]))
        if answers.no_rival is None and plan.subject.base_identity is not None:
            given = answers.of_rival(plan.limited_rival(max_words))
            found.append(length_violations(PROMPTED, max_words, [reply.text for reply in given]))
    return found


def _judged(answers: Answers) -> list[Judged]:
    plan = answers.plan
    judge = plan.config.judge
    if judge is None:
        return []
    found = []
    for tested, pairs in answers.judge_questions():
        asked = [question for pair in pairs for question in pair]
        given = kept(asked, answers.replies, judge_endpoint(judge).identity, judge_sampling(judge))
        both = list(zip(given[::2], given[1::2], strict=True))
        more = plan.config.axes[tested.axis].asks_more(tested.name)
        found.append(judged(tested.name, tested.opposite or "", judge.model, both, more=more))
    return found
