"""Asks an OpenAI-compatible endpoint many things at once. Knows who is asked, not what, nor what for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai

from meet_client.loopback import direct_async
from meet_training.errors import TrainingError
from meet_training.evaluation.prompts import shortened

REQUEST_TIMEOUT_S = 1800.0
"""A slow machine with a full queue needs minutes for one request."""

_VERSIONED = re.compile(r"/v\d[^/]*(/|$)")

OnProgress = Callable[[int, int], None]
"""How many answers there are, and how many there will be."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who is asked. `identity` names everything that its replies depend on, such as a bundle's digest."""

    url: str
    model: str
    identity: str
    api_key: str = "none"

    @property
    def base_url(self) -> str:
        """What the OpenAI SDK is told: the url as it is where its path names a version, as `/v1beta/openai` does."""
        url = self.url.rstrip("/")
        return url if _VERSIONED.search(urlsplit(url).path) else f"{url}/v1"


@asynccontextmanager
async def client_of(endpoint: Endpoint, client: openai.AsyncOpenAI | None) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client that was given, or one for the endpoint for as long as the block takes."""
    if client is not None:
        yield client
        return
    async with openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
        timeout=REQUEST_TIMEOUT_S,
        **direct_async(endpoint.base_url),
    ) as own:
        yield own


@contextmanager
def errors_of(endpoint: Endpoint, asked: str) -> Iterator[None]:
    """Turns what the SDK raises into TrainingError that names the endpoint and how what it was asked begins."""
    try:
        yield
    except openai.APIStatusError as error:
        raise TrainingError(
            f"{endpoint.url} answered {error.status_code}: {error.message} (asked: {shortened(asked)!r})"
        ) from None
    except json.JSONDecodeError:
        raise TrainingError(f"{endpoint.url} answered no JSON (asked: {shortened(asked)!r})") from None
    except openai.OpenAIError as error:
        raise TrainingError(f"{endpoint.url} stopped answering: {error}") from None


async def work_through(
    to_ask: Mapping[str, T],
    ask: Callable[[str, T], Awaitable[None]],
    *,
    num_all: int,
    concurrency: int,
    on_progress: OnProgress | None,
) -> None:
    """Calls `ask` with every key and what stands under it, `concurrency` at once.

    `num_all` counts what was answered before too. The first TrainingError ends it and is raised.
    """
    turns = iter(to_ask.items())
    num_done = num_all - len(to_ask)

    async def work() -> None:
        nonlocal num_done
        for key, item in turns:
            await ask(key, item)
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
