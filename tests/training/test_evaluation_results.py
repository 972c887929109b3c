"""From plan to figures on a bundle of two axes whose replies follow a rule: an evaluation without servers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meet_bundle import BaseModelSource, LoraControls, Manifest, Preference, Probe, SoftPromptControls
from meet_training.errors import TrainingError
from meet_training.evaluation.answers import Answers
from meet_training.evaluation.asking import Endpoint
from meet_training.evaluation.evaluation_config import AxisConfig, EvaluationConfig, JudgeConfig
from meet_training.evaluation.given import read_neutral, read_pairs
from meet_training.evaluation.judging import judge_endpoint, judge_questions, judge_sampling, judged
from meet_training.evaluation.log_odds import Score
from meet_training.evaluation.page import page
from meet_training.evaluation.plan import Plan, plan_of
from meet_training.evaluation.prompts import Message
from meet_training.evaluation.replies import Question, Reply, ReplyCache, key_of
from meet_training.evaluation.report import report_data
from meet_training.evaluation.results import Results, results
from meet_training.evaluation.scores import GivenReply, ScoreCache, score_missing
from meet_training.evaluation.subject import Subject, subject_of_bundle

NAMES = {"concise": "detailed", "detailed": "concise", "bulleted": "prose", "prose": "bulleted"}
AXES = {
    "length": AxisConfig(attribute="words", higher="detailed", trained_by="words", question="Which reply is longer?"),
    "format": AxisConfig(attribute="list_share", higher="bulleted", trained_by="sentences"),
}
PROMPTS = [(Message("user", f"Question {n}"),) for n in range(12)]
LORA = LoraControls(rank=8, alpha=16, target_modules=("q_proj",), shared_a=True)


def subject(controls: LoraControls | SoftPromptControls = LORA) -> Subject:
    probe = Probe(token_ids=(1, 2), start=1, controlled=(-1.0,), uncontrolled=(-2.0,), dtype="float32")
    soft = isinstance(controls, SoftPromptControls)
    preferences = tuple(
        Preference(
            name=name, axis="length" if name in ("concise", "detailed") else "format", opposite=opposite,
            path=f"controls/{name}", digest="0" * 64, trained_examples=1, probe=probe,
            instruction=f"Be {name}.", first_token_id=100 + 32 * index if soft else None,
        )
        for index, (name, opposite) in enumerate(NAMES.items())
    )  # fmt: skip
    return subject_of_bundle(
        Manifest(
            name="toy", base=BaseModelSource(source="toy-base"), model_digest="0" * 64, model_dtype="float32",
            preferences=preferences, files={}, controls=controls,
        )
    )  # fmt: skip


def text(strengths: dict[str, float], number: int) -> str:
    """20 + number words, less 10 a strength of concise, more 10 of detailed; a list where bulleted is above prose."""
    words = round(20 + number + 10 * (strengths.get("detailed", 0) - strengths.get("concise", 0)))
    start = "- " if strengths.get("bulleted", 0) > strengths.get("prose", 0) else ""
    return start + " ".join(f"w{number:02}x{n:02}" for n in range(words))


def strengths_of(fields: Mapping[str, Any]) -> dict[str, float]:
    """What a body asks for, by preference."""
    asked = fields.get("preference")
    return asked if isinstance(asked, dict) else {} if asked is None else {asked: 1.0}


def by_rule(question: Question) -> str:
    """The reply of a MEET server, or of a base that takes instructions half as seriously."""
    strengths = strengths_of(question.fields)
    content = question.prompt[-1].content
    strengths = strengths or {name: 0.5 for name in NAMES if f"Be {name}." in content}
    return text(strengths, int(content.split()[1]))


def answered(plan: Plan, folder: Path, rule: Callable[[Question], str] = by_rule) -> Answers:
    """Everything that the plan needs, replied and scored by rule: a control likes replies of its own length."""
    replies, scores = ReplyCache(folder / "replies.jsonl"), ScoreCache(folder / "scores.jsonl")
    for identity, questions in ((plan.subject.identity, plan.asked()), (plan.subject.rival_identity, plan.rival())):
        for question in questions:
            replies.add(key_of(question, identity, plan.config.sampling), Reply(rule(question), True, 1))
    answers = Answers(plan, replies, scores)
    for given in answers.to_score():
        scores.add(given.key(plan.subject.identity), scored(given))
    for given in answers.neutral_under_base():
        scores.add(given.key(plan.subject.rival_identity), Score(-1.0 * len(given.reply.split()), 1))
    return answers


def scored(given: GivenReply) -> Score:
    num = len(given.reply.split())
    strengths = strengths_of(given.fields)
    likes = 0.01 * num * (strengths.get("detailed", 0) - strengths.get("concise", 0))
    return Score(num * (-2.0 + likes), num)


def evaluated(folder: Path, rule: Callable[[Question], str] = by_rule, **config: Any) -> tuple[Plan, Results]:
    plan = Plan(subject(), EvaluationConfig(axes=AXES, **config), PROMPTS)
    return plan, results(answered(plan, folder, rule))


class TestAFullEvaluation:
    def test_controls_that_hold(self, tmp_path: Path) -> None:
        _, found = evaluated(tmp_path, figures=("leakage", "strength", "mixes", "log_odds"))
        # By the rule a reply without a control is prose already, so that control has nothing to do.
        assert [row.verdict.value for row in found.rows] == ["holds", "holds", "holds", "does nothing"]
        assert [row.tested_by for row in found.rows] == ["what it was trained by"] * 2 + ["something else"] * 2
        assert [row.median_controlled for row in found.rows][:2] == [15.5, 35.5]
        assert [row.median_prompted for row in found.rows][:2] == [20.5, 30.5]
        # The controls of length are further out than the prompted model's on every prompt.
        assert [row.holds_vs_prompted.share for row in found.rows[:2] if row.holds_vs_prompted] == [1, 1]
        leaks = {(cell.preference, cell.attribute): cell.leaks for cell in found.leakage}
        assert {key for key, leak in leaks.items() if leak} == set()
        curves = {curve.preference: curve for curve in found.curves}
        assert [point.median.value for point in curves["concise"].points] == [35.5, 30.5, 25.5, 20.5, 15.5, 10.5]
        # A list is one or none: ranks of 0, 0, 0, 1, 1, 1 beside six strengths, 1.5 * 3 * 2 / sqrt(13.5 * 17.5).
        assert curves["bulleted"].rank_correlation.value == pytest.approx(13.5 / (13.5 * 17.5) ** 0.5)
        assert curves["bulleted"].monotone
        assert [curves[name].summary for name in ("concise", "bulleted")] == ["median", "mean"]
        assert [(mix.preferences, mix.both.share) for mix in found.mixes] == [
            (("concise", "bulleted"), 1), (("concise", "prose"), 1),
            (("detailed", "bulleted"), 1), (("detailed", "prose"), 1),
        ]  # fmt: skip
        # The rule heeds both instructions too, so the prompted model has both, beside its own opposites.
        assert [mix.prompted_both.share for mix in found.mixes if mix.prompted_both] == [1, 1, 1, 1]
        assert found.calibrations["detailed"].recommended == 1.0

    def test_a_curve_is_held_against_the_opposite_at_the_same_strength(self, tmp_path: Path) -> None:
        def rule(question: Question) -> str:
            strengths = strengths_of(question.fields)
            # Both lengthen, detailed more: beside no control concise never holds.
            longer = {"detailed": strengths.get("detailed", 0) + 0.4 * strengths.get("concise", 0)}
            return text(longer, int(question.prompt[-1].content.split()[1]))

        _, found = evaluated(tmp_path, rule, figures=("strength",), few=4)
        concise = found.curves[0]
        assert [point.holds.share for point in concise.points] == [0, 0, 0, 1, 1, 1]
        assert concise.rank_correlation.value == pytest.approx(-1)
        assert found.rows[0].sentence.endswith("Beside no control it moves the other way: 0% of 12 prompts [0%, 24%].")

    def test_log_odds_are_of_the_prompted_models_replies(self, tmp_path: Path) -> None:
        _, found = evaluated(tmp_path, figures=("log_odds",), few=2)
        concise, detailed, bulleted, _ = found.log_odds
        # Prompted, they have 15 and 25 words, then 16 and 26: -0.15 + 0.25, and as much for the other side.
        assert (concise.mean.value, concise.mean.num_prompts) == (pytest.approx(0.1), 2)
        assert detailed.mean.value == pytest.approx(0.1)
        assert bulleted.mean.value == 0

    def test_log_odds_follow_the_strength(self, tmp_path: Path) -> None:
        plan, found = evaluated(tmp_path, figures=("strength", "log_odds"), few=2)
        concise, detailed, bulleted, _ = found.odds_curves
        # 0.1 a strength, as above; nothing is asked at 0, where there is no control.
        for curve in (concise, detailed):
            means = [(point.strength, point.mean.value) for point in curve.points]
            assert means == [(strength, pytest.approx(0.1 * strength)) for strength in plan.config.strengths]
            assert (curve.rank_correlation.value, curve.monotone) == (pytest.approx(1), True)
        assert (concise.preference, concise.opposite) == ("concise", "detailed")
        assert (bulleted.rank_correlation.value, bulleted.monotone) == (0, False)
        data = report_data(plan, found, None)
        assert [curve["preference"] for curve in data["log_odds_by_strength"]] == list(NAMES)
        shown = page(data)
        assert "Log-odds in nats a token against strength, for concise, detailed, bulleted, prose" in shown
        assert "<td>0.15 [0.15, 0.15]</td>" in shown  # at 1.5

    def test_they_are_not_measured_at_each_strength_unless_both_figures_are_asked_for(self, tmp_path: Path) -> None:
        plan, found = evaluated(tmp_path, figures=("log_odds",), few=2)
        assert found.odds_curves == []
        assert len(answered(plan, tmp_path).to_score()) == 4 * 4 * 2

    def test_a_control_with_b_of_0_does_nothing(self, tmp_path: Path) -> None:
        def rule(question: Question) -> str:
            fields = question.fields
            return by_rule(
                replace(question, fields={"preference": None}) if fields.get("preference") == "concise" else question
            )

        _, found = evaluated(tmp_path, rule, figures=("leakage",))
        concise, detailed, *_ = found.rows
        assert concise.sentence == (
            "concise does nothing: its replies are those without a control, word for word, "
            "on 100% of 12 prompts [76%, 100%]."
        )
        assert detailed.verdict.value == "holds"
        assert all(cell.more.advantage.value == 0 for cell in found.leakage if cell.preference == "concise")

    def test_a_lone_preference_that_asks_for_less(self, tmp_path: Path) -> None:
        lone = replace(subject().preference("concise"), opposite=None)
        axes = {"length": AxisConfig(attribute="words", lower="concise", question="Which is longer?")}
        judge = JudgeConfig(url="http://judge", model="wise")
        config = EvaluationConfig(axes=axes, figures=("strength", "judge"), judge=judge)
        found = results(answered(Plan(replace(subject(), preferences=(lone,)), config, PROMPTS), tmp_path))
        (concise,) = found.rows
        assert concise.sentence.startswith(
            "concise holds: measured by words it is on the asked side of no control on 100%"
        )
        assert found.curves[0].rank_correlation.value == 1
        assert "no preference of an axis with a `question` has an opposite" in found.skipped["judge"]

    def test_two_identical_controls_are_not_distinguishable(self, tmp_path: Path) -> None:
        def rule(question: Question) -> str:
            same = question.fields.get("preference") == "detailed"
            return by_rule(replace(question, fields={"preference": "concise"}) if same else question)

        _, found = evaluated(tmp_path, rule, figures=())
        assert [row.verdict.value for row in found.rows[:2]] == ["not distinguishable"] * 2
        assert found.rows[0].holds_vs_uncontrolled.better  # both shorten: told from no control, not from each other

    def test_silence_is_no_concise_reply(self, tmp_path: Path) -> None:
        """A control that ends a reply at once has the fewest words there are. It neither holds nor is recommended."""

        def rule(question: Question) -> str:
            return "" if strengths_of(question.fields).get("concise", 0) >= 1 else by_rule(question)

        plan, found = evaluated(tmp_path, rule, figures=("side_effects", "strength", "mixes"))
        concise, detailed, *_ = found.rows
        assert (concise.holds.share, detailed.holds.share, concise.empty.share) == (0, 0, 1)
        assert concise.sentence == (
            "concise is not distinguishable from detailed: measured by words it is on the asked side of "
            "detailed on 0% of 12 prompts [0%, 24%], on neither side on 12. It says nothing at all on "
            "100% of 12 prompts [76%, 100%]."
        )
        points = {point.strength: point for point in found.curves[0].points}
        assert [points[strength].holds.share for strength in (0.5, 1, 1.5)] == [1, 0, 0]
        assert (points[1].broken.share, found.curves[0].recommended) == (1, 0.5)
        assert {mix.both.share for mix in found.mixes if "concise" in mix.preferences} == {0}
        assert next(each for each in found.side_effects if each.of == "concise").empty.share == 1
        assert "says nothing" in page(report_data(plan, found, None))

    def test_side_effects_and_parity(self, tmp_path: Path) -> None:
        _, found = evaluated(tmp_path, figures=("side_effects",), few=3)
        assert [effects.of for effects in found.side_effects] == ["uncontrolled", *NAMES]
        assert found.parity is not None
        assert (found.parity.same.share, found.parity.same.num_prompts) == (1, 3)
        assert found.parity.ratio is not None

    def test_examples_are_the_worst_and_the_middle(self, tmp_path: Path) -> None:
        plan, found = evaluated(
            tmp_path,
            lambda question: "one" if question.prompt[-1].content == "Question 7" else by_rule(question),
            figures=(),
        )
        shown = report_data(plan, found, None)["examples"]
        mine = [each for each in shown if each["preference"] == "concise"]
        assert [each["kind"] for each in mine] == ["median", "worst", "worst", "worst"]
        assert (mine[1]["prompt"], mine[1]["margin"]) == ("Question 7", 0)
        assert [reply["of"] for reply in mine[1]["replies"]] == [
            "concise", "detailed", "uncontrolled", "prompted base: concise",
        ]  # fmt: skip

    def test_the_report_is_json(self, tmp_path: Path) -> None:
        plan, found = evaluated(
            tmp_path, figures=("leakage", "side_effects", "strength", "mixes", "log_odds", "length")
        )
        data = report_data(plan, found, None)
        assert json.loads(json.dumps(data))["strength"][0] == json.loads(json.dumps(asdict(found.curves[0])))

    def test_the_page_says_behind_how_many_prompts_each_figure_stands(self, tmp_path: Path) -> None:
        plan, found = evaluated(tmp_path, figures=("leakage", "side_effects", "strength", "mixes", "log_odds"), few=3)
        shown = page(report_data(plan, found, None))
        captions = re.findall("<caption>(.*?)</caption>", shown)
        few = [
            "Share of 3 prompts on",
            "themselves; 3 prompts",
            "no control; 3 prompts",
            "strength; 3 prompts",
            "; 3 prompts",
        ]
        whole = ["Share of 12 prompts on", "12 prompts.", "Of 12 prompts."]
        assert all(any(words in caption for caption in captions) for words in (*few, *whole))
        assert "12 prompts. Intervals:" in shown
        # The leakage matrix has intervals too: a shift of all 12 prompts, and what it is in words.
        assert re.search(r"-1\.00 \[-1\.00, -1\.00\]<br>-[0-9.]+ \[-[0-9.]+, -[0-9.]+\]", shown)

    def test_what_comes_from_outside_is_escaped_everywhere(self, tmp_path: Path) -> None:
        plan, found = evaluated(tmp_path, lambda question: "<b>reply", figures=())
        named = replace(plan.subject, name="<i>name", base="<img src=x>", digest="<u>")
        config = plan.config.model_copy(update={"prompts": Path("<a>&.jsonl")})
        shown = page(report_data(replace(plan, subject=named, config=config), found, "<s>why"))
        assert not re.search("<(b|i|img|u|a|s)[ >]", shown.replace('<a class="skip"', ""))
        assert "&lt;img src=x&gt;" in shown

    def test_without_a_rival_what_needs_it_is_missing_and_said(self, tmp_path: Path) -> None:
        plan = Plan(subject(), EvaluationConfig(axes=AXES, figures=("side_effects", "log_odds")), PROMPTS)
        answers = replace(answered(plan, tmp_path), no_rival="--no-base was given")
        found = results(answers)
        assert (found.parity, found.log_odds) == (None, [])
        assert found.skipped == {"log_odds": "--no-base was given"}
        assert [row.prompted for row in found.rows] == [None] * 4


class TestPlan:
    @pytest.mark.parametrize(
        ("placement", "skipped"), [("before_prompt", {"strength"}), ("after_prompt", {"strength", "log_odds"})]
    )
    def test_what_soft_prompts_lack(self, placement: Any, skipped: set[str]) -> None:
        soft = SoftPromptControls(num_virtual_tokens=32, placement=placement)
        plan = Plan(subject(soft), EvaluationConfig(axes=AXES, figures=("strength", "log_odds", "mixes")), PROMPTS)
        assert set(plan.skipped) == skipped

    def test_strengths_stay_within_what_both_sides_allow(self) -> None:
        of = subject()
        narrow = replace(of.preference("detailed"), strength_range=(0.0, 1.0))
        of = replace(of, preferences=(of.preference("concise"), narrow))
        plan = Plan(of, EvaluationConfig(axes={"length": AXES["length"]}), PROMPTS)
        assert plan.strengths(of.preference("concise")) == [0, 0.5, 1]

    @pytest.mark.parametrize(
        ("strengths", "left"), [((-1, 0), "-1, 0"), ((3, 4), "none"), ((1, 1), "1"), ((0, 0.5, 3), None)]
    )
    def test_strengths_that_make_no_curve_are_a_mistake(
        self, strengths: tuple[float, ...], left: str | None, tmp_path: Path
    ) -> None:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"prompt": "Why?"}\n')
        config = EvaluationConfig(axes=AXES, figures=("strength",), strengths=strengths, prompts=prompts)
        if left is None:
            plan_of(subject(), config)
            return
        with pytest.raises(
            TrainingError, match=rf"strengths: of .* 'concise', -1 to 2, and its opposite's leave {left};"
        ):
            plan_of(subject(), config)

    def test_each_preference_of_a_mix_has_its_own_strength_where_one_is_named(self) -> None:
        config = EvaluationConfig(axes=AXES, mix_strength=0.5, mix_strengths={"bulleted": 2})
        plan = Plan(subject(), config, PROMPTS)
        asked = [plan.mixed(one, other, PROMPTS[0]).fields["preference"] for one, other in plan.mixes()]
        assert {"concise": 0.5, "bulleted": 2} in asked
        assert {"detailed": 0.5, "prose": 0.5} in asked

    def test_files_are_read_before_anybody_is_asked(self, tmp_path: Path) -> None:
        rows = [
            {"prompt": "a", "reply": "short", "preference": "concise"},
            {"prompt": "b", "reply": "alone", "preference": "concise"},
            {"prompt": "a", "reply": "long and longer", "preference": "detailed"},
            {"prompt": "a", "reply": "shorter", "preference": "concise"},  # the first of each is taken
        ]
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = EvaluationConfig(axes=AXES, prompts=path, pairs=path, neutral=path, limit=2)
        plan = plan_of(subject(), config)
        assert plan.pairs is not None
        (pair,) = plan.pairs
        assert (pair.prompt[0].content, pair.replies) == ("a", {"concise": "short", "detailed": "long and longer"})
        assert plan.neutral is not None
        assert [reply for _, reply in plan.neutral] == ["short", "alone"]

    def test_mistakes_in_them(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"prompt": "a", "reply": "b", "preference": "c"}\n')
        with pytest.raises(TrainingError, match="has no prompt with replies of two preferences"):
            read_pairs(path)
        path.write_text("\n")
        with pytest.raises(TrainingError, match="holds no replies"):
            read_neutral(path)
        path.write_text('{"prompt": "a"}\n')
        with pytest.raises(TrainingError, match=r"rows\.jsonl:1: field 'reply'"):
            read_neutral(path)


class ScoringClient:
    """Stands where `openai.AsyncOpenAI` does: a token a word, the n-th token of a text -n nats."""

    def __init__(self, *, scores: bool = True) -> None:
        self.completions = SimpleNamespace(create=self.create)
        self.scores = scores
        self.bodies: list[dict[str, Any]] = []

    async def post(self, path: str, *, cast_to: Any, body: dict[str, Any]) -> Any:
        assert path == "http://meet/tokenize"
        if "messages" in body:
            assert body["add_generation_prompt"] is True
            return {"tokens": [1, 2]}
        assert body["add_special_tokens"] is False
        return {"tokens": [10 + n for n, _ in enumerate(body["prompt"].split())]}

    async def create(self, **body: Any) -> Any:
        self.bodies.append(body)
        rows = [None, *({str(token): {"logprob": -float(token)}} for token in body["prompt"][1:])]
        choice = SimpleNamespace(model_extra={"prompt_logprobs": rows} if self.scores else None)
        return SimpleNamespace(choices=[choice])


class TestScores:
    GIVEN = GivenReply((Message("user", "Why?"),), "a b c", {"preference": {"concise": 0.5}})

    def test_of_a_reply_are_those_of_its_own_tokens(self, tmp_path: Path) -> None:
        client: Any = ScoringClient()
        cache = ScoreCache(tmp_path / "scores.jsonl")
        endpoint = Endpoint("http://meet", "toy", "x")
        asyncio.run(score_missing([self.GIVEN] * 2, endpoint, cache, client=client))
        (body,) = client.bodies
        assert body["prompt"] == [1, 2, 10, 11, 12]
        assert body["extra_body"] == {"prompt_logprobs": 0, "preference": {"concise": 0.5}}
        assert cache[self.GIVEN.key("x")] == Score(-33.0, 3)
        asyncio.run(score_missing([self.GIVEN], endpoint, ScoreCache(cache.path), client=client))
        assert len(client.bodies) == 1

    def test_an_endpoint_that_does_not_score_is_named(self, tmp_path: Path) -> None:
        client: Any = ScoringClient(scores=False)
        cache = ScoreCache(tmp_path / "scores.jsonl")
        with pytest.raises(TrainingError, match="http://meet gives no `prompt_logprobs`"):
            asyncio.run(score_missing([self.GIVEN], Endpoint("http://meet", "toy", "x"), cache, client=client))


class TestJudge:
    def test_each_pair_is_shown_in_both_orders(self) -> None:
        prompt = (Message("system", "Be kind."), Message("user", "Why?"))
        first, second = judge_questions(prompt, "mine", "theirs", "Which reply is longer?")
        one, two = first.prompt[0].content, second.prompt[0].content
        assert "Message:\nWhy?\n\nReply A:\nmine\n\nReply B:\ntheirs" in one
        assert "Reply A:\ntheirs\n\nReply B:\nmine" in two
        assert one.endswith("Which reply is longer? Answer with one letter, A or B, and nothing else.")

    @pytest.mark.parametrize(
        ("answer", "letter"),
        [
            ("A", "A"), (" b\n", "B"), ("**B**", "B"), ("(A)", "A"), ("A.", "A"), ("B: it is longer", "B"),
            ("Reply A", "A"), ("Reply B is longer", None), ("Answer: A", "A"), ("The answer is **B**.", "B"),
            ("I'd say B", "B"), ("I would choose Reply A.", "A"), ("The better reply is B", "B"),
            ("A\nBoth are good", "A"),
            ("A more formal reply is B.", None), ("Both are", None), ("", None), ("C", None), ("Absolutely", None),
        ],
    )  # fmt: skip
    def test_how_a_judge_may_say_it(self, answer: str, letter: str | None) -> None:
        both = [(Reply(answer, True, 1), Reply(answer, True, 1))]
        found = judged("detailed", "concise", "judge", both, more=True)
        assert found.no_answer.share == (letter is None)
        other = [(Reply(answer, True, 1), Reply("B" if letter == "A" else "A", True, 1))]
        assert judged("detailed", "concise", "judge", other, more=True).prefers_own.share == (letter == "A")

    def test_a_judge_that_goes_by_position_decides_nothing(self) -> None:
        said = [("A", "B"), ("A", "A"), ("B", "A"), ("**A**", " B."), ("Both are", "B"), ("B", "B")]
        answers = [(Reply(first, True, 1), Reply(second, True, 1)) for first, second in said]
        found = judged("detailed", "concise", "judge", answers, more=True)
        shares = [each.share for each in (found.prefers_own, found.by_position, found.no_answer)]
        assert shares == pytest.approx([2 / 6, 2 / 6, 1 / 6])
        # concise should lose where it is asked which is longer.
        assert judged("concise", "detailed", "judge", answers, more=False).prefers_own.share == pytest.approx(1 / 6)

    def test_through_the_plan(self, tmp_path: Path) -> None:
        judge = JudgeConfig(url="http://judge/v1/", model="wise")
        plan = Plan(subject(), EvaluationConfig(axes=AXES, figures=("judge",), judge=judge), PROMPTS)
        answers = answered(plan, tmp_path)
        endpoint = judge_endpoint(judge)
        assert (endpoint.url, endpoint.model) == ("http://judge", "wise")
        asked = answers.judge_questions()
        assert [tested.name for tested, _ in asked] == ["concise", "detailed"]  # the other axis has no question
        for _, pairs in asked:
            for question in (question for pair in pairs for question in pair):
                a, b = question.prompt[0].content.split("Reply A:")[1].split("Reply B:")
                letter = "A" if len(a.split()) > len(b.split("Which reply")[0].split()) else "B"
                key = key_of(question, endpoint.identity, judge_sampling(judge))
                answers.replies.add(key, Reply(letter, True, 1))
        assert [(each.preference, each.prefers_own.share) for each in results(answers).judged] == [
            ("concise", 1), ("detailed", 1),
        ]  # fmt: skip

    def test_a_key_that_is_not_there_is_missed_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        judge = JudgeConfig(url="http://judge", model="wise", api_key_env="JUDGE_KEY")
        config = EvaluationConfig(axes=AXES, figures=("judge",), judge=judge, prompts=tmp_path / "unread.jsonl")
        with pytest.raises(TrainingError, match=r"judge\.api_key_env: JUDGE_KEY is not set"):
            plan_of(subject(), config)
        monkeypatch.setenv("JUDGE_KEY", "secret")
        assert judge_endpoint(judge).api_key == "secret"
