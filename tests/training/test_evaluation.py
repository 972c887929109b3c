"""What an evaluation asks of whom, that it goes on where it stopped, and what it makes of the replies."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from meet_bundle import BaseModelSource, LoraControls, Manifest, Preference, Probe
from meet_training.errors import TrainingError
from meet_training.evaluation.answers import Answers
from meet_training.evaluation.asking import Endpoint
from meet_training.evaluation.evaluate import check_axes, collect, measure
from meet_training.evaluation.evaluation_config import AxisConfig, EvaluationConfig, load_evaluation_config
from meet_training.evaluation.plan import Plan
from meet_training.evaluation.prompts import Message, Prompt, read_prompts
from meet_training.evaluation.replies import Question, Reply, ReplyCache, ask_missing, key_of
from meet_training.evaluation.report import failures, report_data, show, write_report
from meet_training.evaluation.results import results
from meet_training.evaluation.scores import ScoreCache
from meet_training.evaluation.subject import Subject, subject_of_bundle

ROOT = Path(__file__).parents[2]
CONFIG = EvaluationConfig(axes={"length": AxisConfig(attribute="words", higher="detailed", bound=0.7)}, figures=())
PROMPTS = [(Message("user", "one"),), (Message("user", "two"),), (Message("user", "three"),)]
MEET = Endpoint("http://meet", "toy", "bundle x")


def preference(name: str, opposite: str | None, instruction: str | None) -> Preference:
    probe = Probe(token_ids=(1, 2), start=1, controlled=(-1.0,), uncontrolled=(-2.0,), dtype="float32")
    return Preference(
        name=name, axis="length", opposite=opposite, instruction=instruction, path=f"controls/{name}",
        digest="0" * 64, trained_examples=1, probe=probe,
    )  # fmt: skip


def subject(*preferences: Preference) -> Subject:
    manifest = Manifest(
        name="toy", base=BaseModelSource(source="toy-base", digest="1" * 64), model_digest="0" * 64,
        model_dtype="float32", preferences=preferences, files={}, digest="2" * 64,
        controls=LoraControls(rank=8, alpha=16, target_modules=("q_proj",), shared_a=True),
    )  # fmt: skip
    return subject_of_bundle(manifest)


def plan(of: Subject, prompts: list[Prompt]) -> Plan:
    return Plan(of, CONFIG, prompts)


BOTH = subject(preference("concise", "detailed", "Be short."), preference("detailed", "concise", "Be long."))


class FakeClient:
    """Stands where `openai.AsyncOpenAI` does; says as many words as `words` gives for a request's body."""

    def __init__(self, words: Any, *, fail_after: int | None = None) -> None:
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))
        self.words = words
        self.fail_after = fail_after
        self.bodies: list[dict[str, Any]] = []
        self.num_at_once = 0
        self.most_at_once = 0

    async def create(self, **body: Any) -> Any:
        self.bodies.append(body)
        number = len(self.bodies)
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        await asyncio.sleep(0.001)
        self.num_at_once -= 1
        if self.fail_after is not None and number > self.fail_after:
            raise TrainingError("out of order")
        text = " ".join(["word"] * self.words(body))
        choice = SimpleNamespace(message=SimpleNamespace(content=text), finish_reason="stop" if text else "length")
        return SimpleNamespace(choices=[choice], usage=SimpleNamespace(completion_tokens=7))


def ask(client: FakeClient, questions: list[Question], cache: ReplyCache, **options: Any) -> None:
    fake: Any = client
    asyncio.run(ask_missing(questions, MEET, CONFIG.sampling, cache, client=fake, **options))


def questions(num: int) -> list[Question]:
    return [Question((Message("user", f"number {n}"),), {"preference": None}) for n in range(num)]


class TestWhatIsAsked:
    def test_of_the_meet_model_every_preference_and_none_of_every_prompt(self) -> None:
        asked = plan(BOTH, PROMPTS[:2]).asked()
        assert [(question.prompt[0].content, question.fields) for question in asked] == [
            ("one", {"preference": "concise"}),
            ("one", {"preference": "detailed"}),
            ("one", {"preference": None}),
            ("two", {"preference": "concise"}),
            ("two", {"preference": "detailed"}),
            ("two", {"preference": None}),
        ]

    def test_of_the_base_model_the_instruction_behind_the_users_last_message(self) -> None:
        prompt = (Message("system", "Be kind."), Message("user", "Why?"))
        (question,) = plan(subject(preference("concise", None, "Be short.")), [prompt]).rival()
        assert question == Question((Message("system", "Be kind."), Message("user", "Why? Be short.")), {})

    def test_of_the_base_model_nothing_without_an_instruction(self) -> None:
        assert plan(subject(preference("concise", None, None)), PROMPTS).rival() == []

    def test_the_request(self, tmp_path: Path) -> None:
        client = FakeClient(lambda body: 1)
        ask(client, questions(1), ReplyCache(tmp_path / "replies.jsonl"))
        assert client.bodies == [
            {
                "model": "toy",
                "messages": [{"role": "user", "content": "number 0"}],
                "temperature": 0.0,
                "max_tokens": 400,
                "extra_body": {"repetition_penalty": 1.1, "preference": None},
            }
        ]


class TestReplies:
    def test_at_most_so_many_at_once(self, tmp_path: Path) -> None:
        client, heard = FakeClient(lambda body: 1), list[tuple[int, int]]()
        cache = ReplyCache(tmp_path / "replies.jsonl")
        ask(client, questions(20), cache, concurrency=4, on_progress=lambda *told: heard.append(told))
        assert client.most_at_once == 4
        assert heard == [(n, 20) for n in range(1, 21)]

    def test_what_is_kept_is_not_asked_again(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "replies.jsonl"
        ask(FakeClient(lambda body: 2), questions(3), ReplyCache(path))
        client = FakeClient(lambda body: 9)
        cache = ReplyCache(path)
        ask(client, questions(4), cache)
        assert [body["messages"][0]["content"] for body in client.bodies] == ["number 3"]
        assert cache.get(key_of(questions(1)[0], MEET.identity, CONFIG.sampling)) == Reply("word word", True, 7)

    def test_one_question_twice_is_asked_once(self, tmp_path: Path) -> None:
        client = FakeClient(lambda body: 1)
        ask(client, questions(1) * 3, ReplyCache(tmp_path / "replies.jsonl"))
        assert len(client.bodies) == 1

    def test_a_line_that_was_cut_off_is_asked_again_and_glued_to_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "replies.jsonl"
        ask(FakeClient(lambda body: 1), questions(3), ReplyCache(path), concurrency=1)
        whole = path.read_bytes()
        path.write_bytes(whole[:-10])
        client = FakeClient(lambda body: 1)
        ask(client, questions(3), ReplyCache(path))
        assert [body["messages"][0]["content"] for body in client.bodies] == ["number 2"]
        assert path.read_bytes() == whole

    def test_a_line_that_is_no_reply_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "replies.jsonl"
        path.write_text('{"key": "k", "text": "t", "finished": true, "num_tokens": 1}\n{"key": "k"}\n')
        with pytest.raises(TrainingError, match=r"replies\.jsonl:2: not a kept reply"):
            ReplyCache(path)

    def test_the_first_error_ends_the_rest_and_what_came_before_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "replies.jsonl"
        client = FakeClient(lambda body: 1, fail_after=2)
        with pytest.raises(TrainingError, match="out of order"):
            ask(client, questions(50), ReplyCache(path), concurrency=2)
        assert len(client.bodies) <= 4
        assert len(path.read_text().splitlines()) == 2

    def test_nobody_there_is_a_training_error(self, tmp_path: Path) -> None:
        nobody = Endpoint("http://127.0.0.1:9", "toy", "x")
        cache = ReplyCache(tmp_path / "replies.jsonl")
        with pytest.raises(TrainingError, match=r"http://127\.0\.0\.1:9 stopped answering"):
            asyncio.run(ask_missing(questions(1), nobody, CONFIG.sampling, cache))

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ((questions(2)[0], "a"), (questions(2)[1], "a")),
            ((questions(1)[0], "a"), (questions(1)[0], "b")),
            ((questions(1)[0], "a"), (Question(questions(1)[0].prompt, {"preference": "concise"}), "a")),
            ((questions(1)[0], "a"), (Question(questions(1)[0].prompt, {}), "a")),
        ],
    )
    def test_the_key_is_made_of_all_that_decides(self, one: Any, other: Any) -> None:
        assert key_of(*one, CONFIG.sampling) == key_of(*one, CONFIG.sampling)
        assert key_of(*one, CONFIG.sampling) != key_of(*other, CONFIG.sampling)
        longer = CONFIG.sampling.model_copy(update={"max_tokens": 401})
        assert key_of(*one, CONFIG.sampling) != key_of(*one, longer)


NUM_WORDS = {
    # prompt: concise, detailed, uncontrolled, "Be short.", "Be long."
    "one": (1, 9, 4, 2, 8),
    "two": (2, 9, 4, 5, 5),
    "three": (6, 5, 4, 3, 7),
}


def num_words(body: dict[str, Any]) -> int:
    words = body["messages"][-1]["content"].split(maxsplit=1)
    row = NUM_WORDS[words[0]]
    if len(words) == 2:
        return row[3 if words[1] == "Be short." else 4]
    return row[{"concise": 0, "detailed": 1, None: 2}[body["extra_body"]["preference"]]]


@pytest.fixture
def cache(tmp_path: Path) -> ReplyCache:
    """Every reply that evaluating `BOTH` on `PROMPTS` needs."""
    cache = ReplyCache(tmp_path / "replies.jsonl")
    client: Any = FakeClient(num_words)
    for identity, asked in (
        (BOTH.identity, plan(BOTH, PROMPTS).asked()),
        (BOTH.rival_identity, plan(BOTH, PROMPTS).rival()),
    ):
        endpoint = Endpoint("http://fake", "fake", identity)
        asyncio.run(ask_missing(asked, endpoint, CONFIG.sampling, cache, client=client))
    return cache


class TestMeasure:
    def test_figures(self, cache: ReplyCache) -> None:
        concise, detailed = measure(BOTH, CONFIG, PROMPTS, collect(BOTH, PROMPTS, cache, CONFIG.sampling))
        # one: 1 < 9, two: 2 < 9, three: 6 > 5.
        assert concise.holds_vs_opposite is not None
        assert concise.holds_vs_opposite.share == pytest.approx(2 / 3)
        assert detailed.holds_vs_opposite == concise.holds_vs_opposite
        assert concise.holds_vs_uncontrolled.share == pytest.approx(2 / 3)  # 1, 2 < 4; 6 is not
        assert detailed.holds_vs_uncontrolled.share == 1.0  # 9, 9, 5 > 4
        assert concise.prompted_holds_vs_opposite is not None
        assert concise.prompted_holds_vs_opposite.share == pytest.approx(2 / 3)  # 5 and 5 are a tie
        medians = [(row.median_controlled, row.median_uncontrolled, row.median_prompted) for row in (concise, detailed)]
        assert medians == [(2, 4, 3), (9, 4, 7)]
        assert (concise.finished.share, concise.finished.num_prompts) == (1.0, 3)
        assert (concise.example.prompt, concise.example.reply) == ("two", "word word")

    def test_bounds(self, cache: ReplyCache) -> None:
        rows = measure(BOTH, CONFIG, PROMPTS, collect(BOTH, PROMPTS, cache, CONFIG.sampling))
        assert failures(rows) == [
            f"{name} holds on 66.7% of 3 prompts, the bound of its axis length is 70.0%"
            for name in ("concise", "detailed")
        ]
        lower = EvaluationConfig(axes={"length": AxisConfig(attribute="words", higher="detailed", bound=0.66)})
        assert failures(measure(BOTH, lower, PROMPTS, collect(BOTH, PROMPTS, cache, CONFIG.sampling))) == []

    def test_without_the_base_model(self, cache: ReplyCache) -> None:
        rows = measure(BOTH, CONFIG, PROMPTS, collect(BOTH, PROMPTS, cache, CONFIG.sampling, prompted=False))
        assert [(row.median_prompted, row.prompted_holds_vs_opposite) for row in rows] == [(None, None)] * 2

    def test_without_an_opposite_it_must_hold_against_no_control(self, cache: ReplyCache) -> None:
        alone = replace(BOTH, preferences=(replace(BOTH.preference("detailed"), opposite=None, instruction=None),))
        (row,) = measure(alone, CONFIG, PROMPTS, collect(alone, PROMPTS, cache, CONFIG.sampling))
        assert (row.holds_vs_opposite, row.holds.share, row.below_bound) == (None, 1.0, False)

    def test_missing_replies_are_no_figures(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError):
            collect(BOTH, PROMPTS, ReplyCache(tmp_path / "none.jsonl"), CONFIG.sampling)

    def test_an_axis_that_nothing_is_said_of(self) -> None:
        with pytest.raises(TrainingError, match="axes: nothing said of 'length', the axis of 'concise'"):
            check_axes(BOTH, EvaluationConfig(axes={}))

    def test_a_higher_preference_that_is_not_on_the_axis(self) -> None:
        config = EvaluationConfig(axes={"length": AxisConfig(attribute="words", higher="verbose")})
        with pytest.raises(TrainingError, match=r"higher: 'verbose' is not on that axis.*concise, detailed"):
            check_axes(BOTH, config)

    def test_a_strength_in_mixes_of_what_is_no_preference(self) -> None:
        with pytest.raises(
            TrainingError, match=r"mix_strengths\.verbose: 'verbose' is no preference; concise, detailed"
        ):
            check_axes(BOTH, CONFIG.model_copy(update={"mix_strengths": {"verbose": 2.0}}))


class TestReport:
    def test_table_examples_and_json_say_the_same(self, cache: ReplyCache, tmp_path: Path) -> None:
        found = results(Answers(plan(BOTH, PROMPTS), cache, ScoreCache(tmp_path / "scores.jsonl")))
        with (tmp_path / "out.txt").open("w") as out:
            console = Console(width=200, record=True, quiet=False, file=out)
            show(console, found, num_prompts=3, skipped=None)
            text = console.export_text()
        assert "2 | 4 | 3" in text
        assert "66.7% [21, 94]" in text  # Wilson's interval of 2 of 3: 0.2077 to 0.9385
        assert "concise is not distinguishable from detailed: measured by words" in text  # three prompts say little
        assert "concise, the reply of median length, to 'two':\nword word" in text
        data = report_data(plan(BOTH, PROMPTS), found, None)
        file = write_report(tmp_path / "report", data)
        read = json.loads(file.read_text())
        assert read["bundle"] == {"name": "toy", "digest": "2" * 64, "base": "toy-base"}
        assert read["preferences"][0]["holds_vs_opposite"]["low"] == pytest.approx(0.20766, abs=1e-5)
        assert read["preferences"][0]["below_bound"] is True
        assert read["preferences"][0]["verdict"] == "not distinguishable"
        assert sorted(path.name for path in file.parent.iterdir()) == ["evaluation.html", "evaluation.json"]

    def test_markup_in_a_reply_is_text(self, tmp_path: Path) -> None:
        cache = ReplyCache(tmp_path / "replies.jsonl")
        for question in plan(BOTH, PROMPTS).asked():
            cache.add(key_of(question, BOTH.identity, CONFIG.sampling), Reply("[red]x[/nonsense]<b>", True, 1))
        answers = Answers(plan(BOTH, PROMPTS), cache, ScoreCache(tmp_path / "scores.jsonl"), "no [base]")
        found = results(answers)
        with (tmp_path / "out.txt").open("w") as file:
            show(Console(file=file, width=200), found, num_prompts=3, skipped="no [base]")
        assert "[red]x[/nonsense]" in (tmp_path / "out.txt").read_text()
        assert "nobody was prompted: no [base]" in (tmp_path / "out.txt").read_text()
        write_report(tmp_path, report_data(answers.plan, found, answers.no_rival))
        page = (tmp_path / "evaluation.html").read_text()
        assert "[red]x[/nonsense]&lt;b&gt;" in page
        assert "<b>" not in page


class TestConfig:
    def test_the_demos(self) -> None:
        config = load_evaluation_config(ROOT / "examples/demo/evaluation.yaml")
        assert config.prompts == ROOT / "examples/demo/prompts.test.jsonl"
        assert {axis: each.bound for axis, each in config.axes.items()} == {"length": 0.95, "format": 0.90}
        assert config.sampling == EvaluationConfig().sampling
        assert len(read_prompts(config.prompts)) == 80

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("limits: 3", "limits: unknown key"),
            ("axes: {length: {attribute: wrods, higher: a}}", "axes.length.attribute: 'wrods' is not measured"),
            ("axes: {length: {attribute: words}}", "axes.length: one of `higher` and `lower` names"),
            ("axes: {length: {attribute: words, higher: a, lower: b}}", "one of `higher` and `lower` names"),
            ("sampling: {max_tokens: 0}", "sampling.max_tokens"),
            ("- 1", "expected a mapping"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, content: str, words: str) -> None:
        path = tmp_path / "evaluation.yaml"
        path.write_text(content)
        with pytest.raises(TrainingError) as caught:
            load_evaluation_config(path)
        assert str(path) in str(caught.value)
        assert words in str(caught.value)


class TestPrompts:
    def test_both_forms(self, tmp_path: Path) -> None:
        path = tmp_path / "prompts.jsonl"
        chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]
        path.write_text(f"{json.dumps({'prompt': 'Why?', 'subject': 's'})}\n\n{json.dumps({'messages': chat})}\n")
        plain, messages = read_prompts(path)
        assert plain == (Message("user", "Why?"),)
        assert messages == (Message("system", "Be kind."), Message("user", "Why?"))
        assert read_prompts(path, limit=1) == [plain]

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ('{"prompt": "a", "messages": []}', "expected one of the fields"),
            ('{"prompt": " "}', "field 'prompt' must be text that is not empty, found ' '"),
            ('{"messages": []}', "field 'messages' must be a list of messages, found []"),
            ('{"messages": [{"content": "a"}]}', "field 'messages.0' must have role and content"),
            (
                '{"messages": [{"role": "user", "content": 3}]}',
                "field 'messages.0.content' must be text that is not empty, found 3",
            ),
            ("[]", "expected an object, found list"),
        ],
    )
    def test_mistakes_name_file_line_and_field(self, tmp_path: Path, row: str, words: str) -> None:
        path = tmp_path / "prompts.jsonl"
        path.write_text(f'{{"prompt": "fine"}}\n\n{row}\n')
        with pytest.raises(TrainingError) as caught:
            read_prompts(path)
        assert f"{path}:3: " in str(caught.value)
        assert words in str(caught.value)

    def test_no_file_and_no_prompts(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="cannot be read"):
            read_prompts(tmp_path / "none.jsonl")
        (tmp_path / "empty.jsonl").write_text("\n")
        with pytest.raises(TrainingError, match="holds no prompts"):
            read_prompts(tmp_path / "empty.jsonl")
