"""What comes back: a whole reply, or one piece after another. Knows the SDK's types and no addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from openai import AsyncStream, Stream
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from meet_client.words import APPLIED_HEADER


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply. `applied` is what the server says it applied; None where it is no MEET server."""

    text: str
    applied: str | None
    finish_reason: str | None
    completion: ChatCompletion


def reply_from(completion: ChatCompletion, headers: Mapping[str, str]) -> Reply:
    """Reads the first choice of a completion, and what was applied from the headers."""
    choice = completion.choices[0]
    return Reply(choice.message.content or "", headers.get(APPLIED_HEADER), choice.finish_reason, completion)


def replies_from(completion: ChatCompletion) -> list[Reply]:
    """Reads all choices of a completion, each of which says what was applied."""
    ordered = sorted(completion.choices, key=lambda choice: choice.index)
    return [
        Reply(
            choice.message.content or "", (choice.model_extra or {}).get("preference"), choice.finish_reason, completion
        )
        for choice in ordered
    ]


class ReplyStream:
    """A reply as it is written: iterate over pieces of text. `applied` is known before the first one.

    Leaving the `with` block, or `close`, ends the request, and generation with it.
    """

    def __init__(self, stream: Stream[ChatCompletionChunk], headers: Mapping[str, str]) -> None:
        self.applied = headers.get(APPLIED_HEADER)
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        return (text for chunk in self._stream if (text := _text(chunk)))

    def close(self) -> None:
        """Ends the request."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncReplyStream:
    """The same as `ReplyStream` for `async with` and `async for`."""

    def __init__(self, stream: AsyncStream[ChatCompletionChunk], headers: Mapping[str, str]) -> None:
        self.applied = headers.get(APPLIED_HEADER)
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[str]:
        return (text async for chunk in self._stream if (text := _text(chunk)))

    async def close(self) -> None:
        """Ends the request."""
        await self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _text(chunk: ChatCompletionChunk) -> str:
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""
