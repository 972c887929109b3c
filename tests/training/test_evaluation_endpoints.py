"""Who is evaluated where there is no bundle, and endpoints that answer something else than they should."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meet_training.errors import TrainingError
from meet_training.evaluation.asking import Endpoint
from meet_training.evaluation.evaluation_config import EvaluationConfig
from meet_training.evaluation.prompts import Message
from meet_training.evaluation.replies import Question, Reply, ReplyCache, ask_missing, key_of
from meet_training.evaluation.scores import GivenReply, ScoreCache, score_missing
from meet_training.evaluation.subject import subject_of_endpoint

URL = "http://endpoint"
PROMPT = (Message("user", "Why is the sky\nblue?"),)
CARDS = [{"id": name, "axis": "length", "strength_range": [-1, 2]} for name in ("concise", "detailed")]
SAMPLING = EvaluationConfig().sampling


class Answers:
    """Stands where `openai.AsyncOpenAI` does, and answers everything with what it was given, or raises it."""

    def __init__(self, chat: Any = None, completion: Any = None, tokens: Any = None) -> None:
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.answering(chat)))
        self.completions = SimpleNamespace(create=self.answering(completion))
        self.post = self.answering(tokens)

    @staticmethod
    def answering(answer: Any) -> Any:
        async def create(*_: Any, **__: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return create


def said(content: Any) -> Any:
    choice = SimpleNamespace(message=SimpleNamespace(content=content), finish_reason="stop")
    return SimpleNamespace(choices=[choice], usage=None)


def asked(answer: Any, folder: Path) -> Reply:
    cache, client, question = ReplyCache(folder / "replies.jsonl"), Answers(answer), Question(PROMPT, {})
    fake: Any = client
    asyncio.run(ask_missing([question], Endpoint(URL, "m", "x"), SAMPLING, cache, client=fake))
    return ReplyCache(folder / "replies.jsonl")[key_of(question, "x", SAMPLING)]


class TestReplies:
    @pytest.mark.parametrize(
        "answer",
        [
            SimpleNamespace(error={"message": "overloaded"}, choices=None),
            SimpleNamespace(choices=[]),
            "<html>overloaded</html>",
            said([{"type": "text", "text": "overloaded"}]),
            SimpleNamespace(choices=[SimpleNamespace(message=None, overloaded=True)]),
        ],
    )
    def test_what_is_no_completion_is_named_and_not_kept(self, answer: Any, tmp_path: Path) -> None:
        words = r"http://endpoint answered no completion but .*overloaded.* \(asked: 'Why is the sky blue\?'\)"
        words = words if "overloaded" in str(answer) else "http://endpoint answered no completion"
        with pytest.raises(TrainingError, match=words):
            asked(answer, tmp_path)
        assert not (tmp_path / "replies.jsonl").exists() or not (tmp_path / "replies.jsonl").read_text()

    def test_what_is_no_json_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match=r"http://endpoint answered no JSON \(asked: 'Why is the sky blue\?'\)"):
            asked(json.JSONDecodeError("Expecting value", "<html>", 0), tmp_path)

    def test_one_on_this_machine_is_asked_without_the_proxy(self, endpoint_behind_proxy: str, tmp_path: Path) -> None:
        cache, question = ReplyCache(tmp_path / "replies.jsonl"), Question(PROMPT, {})
        asyncio.run(ask_missing([question], Endpoint(endpoint_behind_proxy, "m", "x"), SAMPLING, cache))
        assert cache[key_of(question, "x", SAMPLING)].text == "Tin is a metal."

    def test_nothing_said_is_an_empty_reply(self, tmp_path: Path) -> None:
        assert asked(said(None), tmp_path).empty

    def test_half_a_character_can_be_kept(self, tmp_path: Path) -> None:
        assert asked(said("a\ud800b"), tmp_path).text == "a?b"


class TestScores:
    TOKENS = {"tokens": [1]}  # noqa: RUF012

    def scored(self, tokens: Any, rows: Any, folder: Path) -> None:
        completion = SimpleNamespace(choices=[SimpleNamespace(model_extra={"prompt_logprobs": rows})])
        fake: Any = Answers(completion=completion, tokens=tokens)
        given = GivenReply(PROMPT, "a", {})
        asyncio.run(score_missing([given], Endpoint(URL, "m", "x"), ScoreCache(folder / "s.jsonl"), client=fake))

    def test_tokens_that_are_none(self, tmp_path: Path) -> None:
        for tokens in ("<html>", {"error": "no"}, {"tokens": None}):
            with pytest.raises(TrainingError, match="answers `/tokenize` with no tokens"):
                self.scored(tokens, [], tmp_path)

    @pytest.mark.parametrize("row", [None, {}, {"1": {}}, {"1": {"logprob": None}}, {"2": {"logprob": -1.0}}])
    def test_rows_without_the_tokens_own(self, row: Any, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="without those of the prompt's own tokens"):
            self.scored(self.TOKENS, [None, row], tmp_path)


class TestSubjects:
    def test_a_preference_that_nothing_asks_for_is_a_mistake(self) -> None:
        config = EvaluationConfig.model_validate(
            {"preferences": {"consice": {"axis": "length", "opposite": "detailed"}, "detailed": {"axis": "length"}}}
        )
        words = (
            r"preferences\.consice: http://endpoint does not know it \(it lists concise, detailed\), and it has neither"
        )
        with pytest.raises(TrainingError, match=words):
            subject_of_endpoint(URL, "m", config, CARDS)
        with pytest.raises(TrainingError, match="it lists none"):
            subject_of_endpoint(URL, "m", config, None)

    def test_where_words_alone_ask_a_servers_default_stays_away(self) -> None:
        fields = {"axis": "length", "instruction": "Be kind."}
        config = EvaluationConfig.model_validate({"preferences": {"kind": fields, "concise": {"axis": "length"}}})
        of = subject_of_endpoint(URL, "m", config, CARDS)
        assert of.preference("kind").question(PROMPT).fields == {"preference": None}
        assert of.preference("concise").question(PROMPT).fields == {"preference": "concise"}
        plain = EvaluationConfig.model_validate({"preferences": {"kind": fields}})
        assert subject_of_endpoint(URL, "m", plain, None).preference("kind").question(PROMPT).fields == {}

    def test_of_soft_prompts_behind_a_server_neither_strength_nor_log_odds_are_had(self) -> None:
        cards = [{**card, "strength_range": [1, 1]} for card in CARDS]
        of = subject_of_endpoint(URL, "m", EvaluationConfig(), cards)
        assert set(of.lacks) == {"strength", "log_odds"}
        assert subject_of_endpoint(URL, "m", EvaluationConfig(), CARDS).lacks == {}


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "base_url"),
        [
            ("http://localhost:8000", "http://localhost:8000/v1"),
            ("http://localhost:8000/", "http://localhost:8000/v1"),
            ("https://proxy/meet", "https://proxy/meet/v1"),
            ("https://api.example.com/v1", "https://api.example.com/v1"),
            ("https://api.example.com/v1beta/openai/", "https://api.example.com/v1beta/openai"),
            ("https://api.example.com/api/paas/v4", "https://api.example.com/api/paas/v4"),
            ("https://v1.example.com", "https://v1.example.com/v1"),
        ],
    )
    def test_a_path_that_names_a_version_stays(self, url: str, base_url: str) -> None:
        assert Endpoint(url, "m", "x").base_url == base_url

    def test_a_plain_endpoint_gets_a_repetition_penalty_only_where_it_was_asked_for(self) -> None:
        assert EvaluationConfig().of_plain_endpoint().sampling.repetition_penalty == 1
        named = EvaluationConfig.model_validate({"sampling": {"repetition_penalty": 1.1}})
        assert named.of_plain_endpoint().sampling.repetition_penalty == 1.1
        other = EvaluationConfig.model_validate({"sampling": {"max_tokens": 5}}).of_plain_endpoint().sampling
        assert (other.max_tokens, other.repetition_penalty) == (5, 1)
