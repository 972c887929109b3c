"""Asks an OpenAI-compatible endpoint for replies, many at once, and keeps each one as it comes.

A run that was interrupted goes on where it stopped, and one that is finished asks nobody. Knows nothing of
what the replies are for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import openai

from meet_training.data.records import RecordFile
from meet_training.errors import TrainingError
from meet_training.evaluation.evaluation_config import SamplingConfig
from meet_training.evaluation.prompts import Prompt

REQUEST_TIMEOUT_S = 1800.0
"""A slow machine with a full queue needs minutes for one request."""

OnProgress = Callable[[int, int], None]
"""How many replies there are, and how many there will be."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who is asked. `identity` names everything that its replies depend on, such as a bundle's digest."""

    url: str
    model: str
    identity: str
    api_key: str = "none"


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
    turns = iter(to_ask.items())
    num_done = num_all - len(to_ask)
    async with _client_of(endpoint, client) as sender:

        async def work() -> None:
            nonlocal num_done
            for key, question in turns:
                cache.add(key, await _ask(sender, endpoint, question, sampling))
                num_done += 1
                if on_progress:
                    on_progress(num_done, num_all)

        await _all_or_first_error(work() for _ in range(min(concurrency, len(to_ask))))


async def _all_or_first_error(workers: Iterable[Any]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker)
    except* TrainingError as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
    else:
        return
    raise first


@asynccontextmanager
async def _client_of(endpoint: Endpoint, client: openai.AsyncOpenAI | None) -> AsyncIterator[openai.AsyncOpenAI]:
    if client is not None:
        yield client
        return
    async with openai.AsyncOpenAI(
        base_url=f"{endpoint.url.rstrip('/')}/v1", api_key=endpoint.api_key, timeout=REQUEST_TIMEOUT_S
    ) as own:
        yield own


async def _ask(client: openai.AsyncOpenAI, endpoint: Endpoint, question: Question, sampling: SamplingConfig) -> Reply:
    messages: Any = [message._asdict() for message in question.prompt]
    try:
        completion = await client.chat.completions.create(
            model=endpoint.model,
            messages=messages,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            extra_body={"repetition_penalty": sampling.repetition_penalty, **question.fields},
        )
    except openai.APIStatusError as error:
        raise TrainingError(f"{endpoint.url} answered {error.status_code}: {error.message}") from None
    except openai.OpenAIError as error:
        raise TrainingError(f"{endpoint.url} stopped answering: {error}") from None
    choice = completion.choices[0]
    num_tokens = completion.usage.completion_tokens if completion.usage else 0
    return Reply(choice.message.content or "", choice.finish_reason == "stop", num_tokens)
