"""Asks an OpenAI-compatible endpoint for replies, and remembers them so that an interrupted run goes on.

Knows nothing of what is kept: it turns prompts and recipes into requests, and requests into samples.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI, OpenAIError
from openai.types.chat import ChatCompletionMessageParam

from meet_client.loopback import direct_async
from meet_training.data.completions import choices_of, text_of
from meet_training.data.generate_config import GenerateConfig, PreferenceRecipe, instructed
from meet_training.data.records import RecordFile
from meet_training.data.selection import Sample
from meet_training.errors import TrainingError

REQUEST_TIMEOUT_S = 1800.0
"""A slow machine with a full queue needs minutes for one request."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and what it is about where that is known."""

    text: str
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, asked in the way of one preference; `key` is a digest of all that decides its samples."""

    key: str
    prompt: str
    preference: str
    reply_start: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a request gave: samples in the endpoint's order, and how many tokens they took."""

    samples: tuple[Sample, ...]
    num_tokens: int


def messages_for(prompt: str, recipe: PreferenceRecipe) -> list[ChatCompletionMessageParam]:
    """The chat that asks for the preference: the instruction ends the user's message, or is the system's.

    Where the recipe has a `reply_start`, an unfinished reply with it comes last.
    """
    messages: list[ChatCompletionMessageParam] = (
        [{"role": "system", "content": recipe.instruction}, {"role": "user", "content": prompt}]
        if recipe.where == "system"
        else [{"role": "user", "content": instructed(prompt, recipe.instruction)}]
    )
    if recipe.reply_start:
        messages.append({"role": "assistant", "content": recipe.reply_start})
    return messages


def seed_for(seed: int, prompt: str, preference: str) -> int:
    """A request's own seed, 0 to 2^31 - 1, from the run's seed, the prompt and the preference."""
    digest = hashlib.sha256(json.dumps([seed, prompt, preference]).encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def request_for(config: GenerateConfig, prompt: str, preference: str) -> Request:
    """The request that samples one prompt in the way of one preference."""
    recipe = config.preferences[preference]
    body: dict[str, Any] = {
        "model": config.model,
        "messages": messages_for(prompt, recipe),
        "n": config.samples,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": recipe.max_tokens or config.max_tokens,
        "seed": seed_for(config.seed, prompt, preference),
    }
    extensions = {"repetition_penalty": config.repetition_penalty, "min_p": config.min_p}
    extra: dict[str, Any] = {name: value for name, value in extensions.items() if value is not None}
    if recipe.reply_start:
        extra |= {"add_generation_prompt": False, "continue_final_message": True}
    if extra:
        body["extra_body"] = extra
    key = hashlib.sha256(json.dumps([preference, body], sort_keys=True).encode()).hexdigest()[:32]
    return Request(key, prompt, preference, recipe.reply_start, body)


class SampleFile(RecordFile[Sampled]):
    """Raw samples by request, one line each."""

    what = "record of samples"

    def read(self, fields: dict[str, Any]) -> Sampled:
        """The samples of a line."""
        samples = tuple(Sample(one["reply"], one["finish_reason"]) for one in fields["samples"])
        return Sampled(samples, fields["num_tokens"])

    def write(self, record: Sampled) -> Mapping[str, Any]:
        """The fields of a line."""
        samples = [{"reply": one.reply, "finish_reason": one.finish_reason} for one in record.samples]
        return {"num_tokens": record.num_tokens, "samples": samples}


async def ask(client: AsyncOpenAI, request: Request) -> Sampled:
    """Send one request. Raises TrainingError that names the endpoint and says what it answered."""
    try:
        answer = await client.chat.completions.create(**request.body)
    except OpenAIError as error:
        raise TrainingError(f"base_url {client.base_url}: {' '.join(str(error).split())}") from error
    except json.JSONDecodeError:
        raise TrainingError(f"base_url {client.base_url}: answered no JSON") from None
    start = request.reply_start
    choices = choices_of(answer)
    if not choices:
        said = " ".join(str(answer).split())
        raise TrainingError(f"base_url {client.base_url}: answered no completion but {said[:200]!r}")
    samples = tuple(Sample(start + text_of(one), one.finish_reason) for one in choices)
    return Sampled(samples, answer.usage.completion_tokens if answer.usage else 0)


@asynccontextmanager
async def endpoint(config: GenerateConfig, base_url: str) -> AsyncIterator[AsyncOpenAI]:
    """A client of the endpoint. Raises TrainingError where `api_key_env` names a variable that is not set."""
    api_key = "unused" if config.api_key_env is None else os.environ.get(config.api_key_env)
    if not api_key:
        raise TrainingError(f"api_key_env = {config.api_key_env!r}: the variable is not set, or empty")
    async with AsyncOpenAI(
        base_url=base_url, api_key=api_key, timeout=REQUEST_TIMEOUT_S, **direct_async(base_url)
    ) as client:
        yield client


async def ask_all(
    client: AsyncOpenAI, requests: Sequence[Request], concurrency: int
) -> AsyncGenerator[tuple[Request, Sampled], None]:
    """Answers as they come in, at most `concurrency` requests at once; the first failure ends the rest."""
    slots = asyncio.Semaphore(concurrency)

    async def ask_in_turn(request: Request) -> tuple[Request, Sampled]:
        async with slots:
            return request, await ask(client, request)

    tasks = [asyncio.create_task(ask_in_turn(request)) for request in requests]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        await _stop(tasks)


async def _stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
