"""The two clients, for threads and for asyncio. They only send: requests and replies are made elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Self, overload

from openai import AsyncOpenAI, OpenAI

from meet_client.reply import AsyncReplyStream, Reply, ReplyStream, replies_from, reply_from
from meet_client.words import (
    DEFAULT,
    Asked,
    Messages,
    Preference,
    PreferenceValue,
    api_url,
    preferences_from,
    request_of,
    request_of_each,
)

DEFAULT_URL = "http://127.0.0.1:8000"


def _key(api_key: str | None) -> str:
    # Never OPENAI_API_KEY, which the SDK would fall back on: it is no business of this server's.
    return api_key or os.environ.get("MEET_API_KEY") or "none"


class MeetClient:
    """A client of one MEET server; `openai` is the SDK's client that it sends with."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        model: str | None = None,
        **options: Any,
    ) -> None:
        """`api_key` defaults to $MEET_API_KEY, `model` to the first that the server lists.

        `options` go to `openai.OpenAI`: `timeout` (seconds), `max_retries`, `http_client`.
        """
        self.openai = OpenAI(base_url=api_url(base_url), api_key=_key(api_key), **options)
        self._model = model

    @overload
    def chat(
        self, messages: Messages, *, preference: Asked = ..., stream: Literal[False] = ..., **options: Any
    ) -> Reply: ...

    @overload
    def chat(
        self, messages: Messages, *, preference: Asked = ..., stream: Literal[True], **options: Any
    ) -> ReplyStream: ...

    def chat(
        self, messages: Messages, *, preference: Asked = DEFAULT, stream: bool = False, **options: Any
    ) -> Reply | ReplyStream:
        """The reply to a message, or to the last of several, in the way that `preference` names.

        `options` go to the SDK's `chat.completions.create`: `max_tokens`, `temperature`.
        Raises openai.OpenAIError.
        """
        model = self._model = self._model or self.openai.models.list().data[0].id
        create: Any = self.openai.chat.completions.with_raw_response.create
        raw = create(model=model, stream=stream, **request_of(messages, preference, options))
        return (ReplyStream if stream else reply_from)(raw.parse(), raw.headers)

    def chat_each(self, messages: Messages, preferences: Sequence[PreferenceValue], **options: Any) -> list[Reply]:
        """One reply to the same message for each of `preferences`, in their order, from one request.

        `options` as for `chat`; with `n`, as many replies for each. Raises openai.OpenAIError.
        """
        model = self._model = self._model or self.openai.models.list().data[0].id
        create: Any = self.openai.chat.completions.create
        return replies_from(create(model=model, **request_of_each(messages, preferences, options)))

    def preferences(self) -> list[Preference]:
        """What the server knows. Raises openai.OpenAIError, and ValueError where it is no MEET server."""
        return preferences_from(self.openai.get("/preferences", cast_to=object))

    def close(self) -> None:
        """Closes the connections."""
        self.openai.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncMeetClient:
    """The same as `MeetClient` for asyncio; `openai` is the SDK's asynchronous client."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        model: str | None = None,
        **options: Any,
    ) -> None:
        """As `MeetClient` has it; `options` go to `openai.AsyncOpenAI`."""
        self.openai = AsyncOpenAI(base_url=api_url(base_url), api_key=_key(api_key), **options)
        self._model = model

    @overload
    async def chat(
        self, messages: Messages, *, preference: Asked = ..., stream: Literal[False] = ..., **options: Any
    ) -> Reply: ...

    @overload
    async def chat(
        self, messages: Messages, *, preference: Asked = ..., stream: Literal[True], **options: Any
    ) -> AsyncReplyStream: ...

    async def chat(
        self, messages: Messages, *, preference: Asked = DEFAULT, stream: bool = False, **options: Any
    ) -> Reply | AsyncReplyStream:
        """The reply to a message, or to the last of several, in the way that `preference` names."""
        model = self._model = self._model or (await self.openai.models.list()).data[0].id
        create: Any = self.openai.chat.completions.with_raw_response.create
        raw = await create(model=model, stream=stream, **request_of(messages, preference, options))
        return (AsyncReplyStream if stream else reply_from)(raw.parse(), raw.headers)

    async def chat_each(
        self, messages: Messages, preferences: Sequence[PreferenceValue], **options: Any
    ) -> list[Reply]:
        """One reply to the same message for each of `preferences`, in their order, from one request."""
        model = self._model = self._model or (await self.openai.models.list()).data[0].id
        create: Any = self.openai.chat.completions.create
        return replies_from(await create(model=model, **request_of_each(messages, preferences, options)))

    async def preferences(self) -> list[Preference]:
        """What the server knows. Raises openai.OpenAIError, and ValueError where it is no MEET server."""
        return preferences_from(await self.openai.get("/preferences", cast_to=object))

    async def close(self) -> None:
        """Closes the connections."""
        await self.openai.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
