"""What comes back: a whole reply, or one piece after another. Knows the SDK's types and no addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from meet_client.words import APPLIED_HEADER

Piece = TypeVar("Piece", str, tuple[int, str])


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
    return [
        Reply(choice.message.content or "", (choice.model_extra or {}).get("preference"), choice.finish_reason,
              completion)
        for choice in sorted(completion.choices, key=lambda choice: choice.index)
    ]  # fmt: skip


class _Pieces(Generic[Piece]):
    """What both kinds of stream hold. `applied` is known before the first piece."""

    def __init__(
        self, stream: Any, headers: Mapping[str, str], read: Callable[[ChatCompletionChunk], Piece | None]
    ) -> None:
        self.applied = headers.get(APPLIED_HEADER)
        self._stream = stream
        self._read: Callable[[ChatCompletionChunk], Piece | None] = read


class ReplyStream(_Pieces[Piece]):
    """A reply as it is written: iterate over its pieces.

    Leaving the `with` block, or `close`, ends the request, and generation with it.
    """

    def __iter__(self) -> Iterator[Piece]:
        return (piece for chunk in self._stream if (piece := self._read(chunk)) is not None)

    def close(self) -> None:
        """Ends the request."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncReplyStream(_Pieces[Piece]):
    """The same as `ReplyStream` for `async with` and `async for`."""

    def __aiter__(self) -> AsyncIterator[Piece]:
        return (piece async for chunk in self._stream if (piece := self._read(chunk)) is not None)

    async def close(self) -> None:
        """Ends the request."""
        await self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def text_of(chunk: ChatCompletionChunk) -> str | None:
    """The text in a chunk of the one reply; None where it has none."""
    return (chunk.choices[0].delta.content or None) if chunk.choices else None


def placed_text_of(chunk: ChatCompletionChunk) -> tuple[int, str] | None:
    """The index of the choice that a chunk belongs to, and its text; None where it has none."""
    text = text_of(chunk)
    return None if text is None else (chunk.choices[0].index, text)
