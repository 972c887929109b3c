"""The two clients, for threads and for asyncio. They only send: requests and replies are made elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from openai import AsyncOpenAI, OpenAI

from meet_client import words
from meet_client.loopback import direct, direct_async
from meet_client.reply import AsyncReplyStream, Reply, ReplyStream, placed_text_of, replies_from, reply_from, text_of
from meet_client.words import DEFAULT, Asked, Messages, ModelList, Preference, PreferenceList, PreferenceValue

DEFAULT_URL = "http://127.0.0.1:8000"


def _key(api_key: str | None) -> str:
    # Never OPENAI_API_KEY, which the SDK would fall back on: it is no business of this server's.
    key = api_key or os.environ.get("MEET_API_KEY") or "none"
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key ($MEET_API_KEY) has other characters than printable ASCII: it cannot be sent")
    return key


class MeetClient:
    """A client of one MEET server; `openai` is the SDK's client that it sends with."""

    def __init__(
        self, base_url: str = DEFAULT_URL, api_key: str | None = None, *, model: str | None = None, **options: Any
    ) -> None:
        """`api_key` defaults to $MEET_API_KEY, `model` to the first that the server lists.

        `options` go to `openai.OpenAI`: `timeout` (seconds), `max_retries`, `http_client`. Without one, a server on
        this machine is asked without the proxies that the environment names.
        """
        if "http_client" not in options:
            options |= direct(base_url)
        self.openai = OpenAI(base_url=words.api_url(base_url), api_key=_key(api_key), **options)
        self._model = model

    def chat(self, messages: Messages, *, preference: Asked = DEFAULT, **options: Any) -> Reply:
        """The reply to a message, or to the last of several, in the way that `preference` names.

        `options` go to the SDK's `chat.completions.create`: `max_tokens`, `temperature`.
        Raises openai.OpenAIError.
        """
        raw = self._create(words.request_of(messages, preference, options))
        return reply_from(raw.parse(), raw.headers)

    def stream(self, messages: Messages, *, preference: Asked = DEFAULT, **options: Any) -> ReplyStream[str]:
        """As `chat`, piece by piece as it is written."""
        raw = self._create({**words.request_of(messages, preference, options), "stream": True})
        return ReplyStream(raw.parse(), raw.headers, text_of)

    def chat_each(self, messages: Messages, preferences: Sequence[PreferenceValue], **options: Any) -> list[Reply]:
        """One reply to the same message for each of `preferences`, in their order, from one request.

        `options` as for `chat`; with `n`, as many replies for each. Raises openai.OpenAIError.
        """
        return replies_from(self._create(words.request_of_each(messages, preferences, options)).parse())

    def stream_each(
        self, messages: Messages, preferences: Sequence[PreferenceValue], **options: Any
    ) -> ReplyStream[tuple[int, str]]:
        """As `chat_each`, piece by piece as they are written: the place of a reply among all, and some of its text."""
        raw = self._create({**words.request_of_each(messages, preferences, options), "stream": True})
        return ReplyStream(raw.parse(), raw.headers, placed_text_of)

    def preferences(self) -> list[Preference]:
        """What the server knows. Raises openai.OpenAIError, and ValueError where it is no MEET server."""
        return words.preferences_of(self.openai.get("/preferences", cast_to=PreferenceList))

    def preference(self, name: str) -> Preference:
        """One of them, by its name or an alias. Raises openai.NotFoundError."""
        return self.openai.get(words.path_of(name), cast_to=Preference)

    def add_preference(self, archive: bytes) -> Preference:
        """Adds the preference that a zip archive is of. This and the next two need an admin key."""
        added: Preference = self.openai.post("/preferences", cast_to=Preference, **words.change_of(archive))
        return added

    def change_preference(self, name: str, change: bytes | Mapping[str, Any]) -> Preference:
        """Gives it another control, a zip archive, or changes `description`, `aliases`, `enabled`, `revision`."""
        return self.openai.patch(words.path_of(name), cast_to=Preference, **words.change_of(change))

    def remove_preference(self, name: str) -> None:
        """Removes it."""
        self.openai.delete(words.path_of(name), cast_to=object)

    def close(self) -> None:
        """Closes the connections."""
        self.openai.close()

    def _create(self, request: dict[str, Any]) -> Any:
        self._model = self._model or words.model_of(self.openai.get("/models", cast_to=ModelList))
        return self.openai.chat.completions.with_raw_response.create(model=self._model, **request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncMeetClient:
    """The same as `MeetClient` for asyncio; `openai` is the SDK's asynchronous client."""

    def __init__(
        self, base_url: str = DEFAULT_URL, api_key: str | None = None, *, model: str | None = None, **options: Any
    ) -> None:
        """As `MeetClient` has it; `options` go to `openai.AsyncOpenAI`."""
        if "http_client" not in options:
            options |= direct_async(base_url)
        self.openai = AsyncOpenAI(base_url=words.api_url(base_url), api_key=_key(api_key), **options)
        self._model = model

    async def chat(self, messages: Messages, *, preference: Asked = DEFAULT, **options: Any) -> Reply:
        """The reply to a message, or to the last of several, in the way that `preference` names."""
        raw = await self._create(words.request_of(messages, preference, options))
        return reply_from(raw.parse(), raw.headers)

    async def stream(self, messages: Messages, *, preference: Asked = DEFAULT, **options: Any) -> AsyncReplyStream[str]:
        """As `chat`, piece by piece as it is written."""
        raw = await self._create({**words.request_of(messages, preference, options), "stream": True})
        return AsyncReplyStream(raw.parse(), raw.headers, text_of)

    async def chat_each(
        self, messages: Messages, preferences: Sequence[PreferenceValue], **options: Any
    ) -> list[Reply]:
        """One reply to the same message for each of `preferences`, in their order, from one request."""
        return replies_from((await self._create(words.request_of_each(messages, preferences, options))).parse())

    async def stream_each(
        self, messages: Messages, preferences: Sequence[PreferenceValue], **options: Any
    ) -> AsyncReplyStream[tuple[int, str]]:
        """As `chat_each`, piece by piece as they are written: the place of a reply among all, and some of its text."""
        raw = await self._create({**words.request_of_each(messages, preferences, options), "stream": True})
        return AsyncReplyStream(raw.parse(), raw.headers, placed_text_of)

    async def preferences(self) -> list[Preference]:
        """What the server knows. Raises openai.OpenAIError, and ValueError where it is no MEET server."""
        return words.preferences_of(await self.openai.get("/preferences", cast_to=PreferenceList))

    async def preference(self, name: str) -> Preference:
        """One of them, by its name or an alias. Raises openai.NotFoundError."""
        return await self.openai.get(words.path_of(name), cast_to=Preference)

    async def add_preference(self, archive: bytes) -> Preference:
        """Adds the preference that a zip archive is of."""
        added: Preference = await self.openai.post("/preferences", cast_to=Preference, **words.change_of(archive))
        return added

    async def change_preference(self, name: str, change: bytes | Mapping[str, Any]) -> Preference:
        """Gives it another control, a zip archive, or changes `description`, `aliases`, `enabled`, `revision`."""
        return await self.openai.patch(words.path_of(name), cast_to=Preference, **words.change_of(change))

    async def remove_preference(self, name: str) -> None:
        """Removes it."""
        await self.openai.delete(words.path_of(name), cast_to=object)

    async def close(self) -> None:
        """Closes the connections."""
        await self.openai.close()

    async def _create(self, request: dict[str, Any]) -> Any:
        self._model = self._model or words.model_of(await self.openai.get("/models", cast_to=ModelList))
        return await self.openai.chat.completions.with_raw_response.create(model=self._model, **request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
