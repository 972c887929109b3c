"""Asks an OpenAI-compatible endpoint for replies, many at once, and keeps each one as it comes.

A run that was interrupted goes on where it stopped, and one that is finished asks nobody. Knows nothing of
what the replies are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import openai

from meet_training.data.completions import choices_of, text_of
from meet_training.data.records import RecordFile
from meet_training.errors import TrainingError
from meet_training.evaluation.asking import Endpoint, OnProgress, client_of, errors_of, work_through
from meet_training.evaluation.evaluation_config import SamplingConfig
from meet_training.evaluation.prompts import Prompt, shortened


@dataclass(frozen=True, slots=True)
class Question:
    """One request: a prompt, and fields of the body that only a MEET server knows, such as `preference`."""

    prompt: Prompt
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. `finished` is False where it was cut off by the limit on tokens."""

    text: str
    finished: bool
    num_tokens: int

    @property
    def empty(self) -> bool:
        """Does it say nothing?"""
        return not self.text.strip()


def key_of(question: Question, identity: str, sampling: SamplingConfig) -> str:
    """SHA-256 of everything that decides the reply, hexadecimal."""
    decides = [identity, question.prompt, dict(question.fields), sampling.model_dump()]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


class ReplyCache(RecordFile[Reply]):
    """Replies by key in a JSON Lines file, one line each."""

    what = "reply"

    def read(self, fields: dict[str, Any]) -> Reply:
        """The reply of a line."""
        return Reply(**fields)

    def write(self, record: Reply) -> Mapping[str, Any]:
        """The fields of a line."""
        return asdict(record)


def missing(
    questions: Sequence[Question], cache: ReplyCache, identity: str, sampling: SamplingConfig
) -> dict[str, Question]:
    """The questions that no reply is kept for, by key, each once."""
    keyed = {key_of(question, identity, sampling): question for question in questions}
    return {key: question for key, question in keyed.items() if cache.get(key) is None}


def kept(questions: Sequence[Question], cache: ReplyCache, identity: str, sampling: SamplingConfig) -> list[Reply]:
    """The kept reply of every question, in their order. Raises KeyError where one is missing."""
    replies = []
    for question in questions:
        key = key_of(question, identity, sampling)
        if (reply := cache.get(key)) is None:
            raise KeyError(key)
        replies.append(reply)
    return replies


async def ask_missing(
    questions: Sequence[Question],
    endpoint: Endpoint,
    sampling: SamplingConfig,
    cache: ReplyCache,
    *,
    concurrency: int = 32,
    on_progress: OnProgress | None = None,
    client: openai.AsyncOpenAI | None = None,
) -> None:
    """Asks every question that no reply is kept for, `concurrency` at once, and keeps each reply.

    `client` stands in for the one made from the endpoint. Raises TrainingError where the endpoint refuses
    or stops answering; what it answered until then is kept.
    """
    to_ask = missing(questions, cache, endpoint.identity, sampling)
    num_all = len({key_of(question, endpoint.identity, sampling) for question in questions})
    if not to_ask:
        return
    async with client_of(endpoint, client) as sender:

        async def ask(key: str, question: Question) -> None:
            cache.add(key, await _ask(sender, endpoint, question, sampling))

        await work_through(to_ask, ask, num_all=num_all, concurrency=concurrency, on_progress=on_progress)


async def _ask(client: openai.AsyncOpenAI, endpoint: Endpoint, question: Question, sampling: SamplingConfig) -> Reply:
    messages: Any = [message._asdict() for message in question.prompt]
    # Not every endpoint knows it; those that do take 1 where it is not said.
    penalty = {} if sampling.repetition_penalty == 1 else {"repetition_penalty": sampling.repetition_penalty}
    asked = question.prompt[-1].content
    with errors_of(endpoint, asked):
        completion = await client.chat.completions.create(
            model=endpoint.model,
            messages=messages,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            extra_body={**penalty, **question.fields},
        )
    choices = choices_of(completion)
    if not choices:
        raise TrainingError(
            f"{endpoint.url} answered no completion but {shortened(str(completion), 200)} (asked: {shortened(asked)!r})"
        )
    num_tokens = completion.usage.completion_tokens if completion.usage else 0
    return Reply(text_of(choices[0]), choices[0].finish_reason == "stop", num_tokens)
