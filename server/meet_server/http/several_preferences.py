"""`preferences`: one request, one choice per preference.

The request is put to vLLM's app once per entry, all at once, each with its control in force, and the replies are
made one on the fly. Where the first goes wrong the rest are aborted, and its error is the reply; where the client
leaves, all are. With `n`, or several prompts, an entry has as many choices as a request of its own would have: they
follow one another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meet_server.errors import RequestError
from meet_server.http.merging import Merging, MergingStream
from meet_server.registry.live import Applied, LoadedControl

FIELD = "preferences"
# Each is a request to the engine; more than this is what several requests are for.
MAX_ENTRIES = 16

_INT = TypeAdapter(int)  # as vLLM's models read one: 2.0 and "2" too
_CLIENT = -1
_WAITING = 64  # messages that wait to be sent before replies are held up
_GRACE_S = 10


Together = Callable[[int], Sequence[AbstractContextManager[None]]]
"""For so many tasks, what each is to be in: their requests to the engine begin together."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One of the preferences: what is applied for it, and the index of its first choice."""

    applied: Applied
    first_index: int


def entries_of(request: dict[str, Any], apply: Callable[[object, str], Applied]) -> list[Entry]:
    """What each item of `preferences` asks for. `apply` resolves one, at the place that its errors are to name."""
    listed = request[FIELD]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_ENTRIES:
        got = f"a list of {len(listed)}" if isinstance(listed, list) else "no list"
        raise RequestError(
            "invalid_preference",
            f"{FIELD} is {got}; it must be a list of 1 to {MAX_ENTRIES} values, each as `preference` may be",
            param=FIELD,
        )
    num = num_choices(request)
    return [Entry(apply(value, f"{FIELD}[{index}]"), index * num) for index, value in enumerate(listed)]


class SeveralReplies:
    """The requests that one request's entries come to, and the one reply that is made of theirs."""

    def __init__(
        self,
        app: ASGIApp,
        applying: Callable[[LoadedControl | None], AbstractContextManager[None]],
        entries: Sequence[Entry],
        together: Together,
    ) -> None:
        self._app = app
        self._applying = applying
        self._entries = entries
        self._together = together(len(entries))
        # Who it is of, and a message, the exception that ended it, or None for its end.
        self._messages: asyncio.Queue[tuple[int, Message | Exception | None]] = asyncio.Queue(_WAITING)
        self._over = asyncio.Event()

    async def answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Sends the reply. When this returns none of the requests is left."""
        asking = {asyncio.create_task(self._ask(index, scope, body)) for index in range(len(self._entries))}
        listening = asyncio.create_task(self._listen(receive))
        try:
            await self._reply(send)
        finally:
            listening.cancel()
            await self._end(asking)

    async def _ask(self, index: int, scope: Scope, body: bytes) -> None:
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await self._over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if self._over.is_set():
                raise OSError("nobody waits for this reply any more")  # as servers say it when a client has left
            await self._messages.put((index, message))

        ended: Exception | None = None
        try:
            with self._together[index], self._applying(self._entries[index].applied.control):
                # What vLLM keeps of a request lies in its state.
                await self._app({**scope, "state": dict(scope.get("state", {}))}, receive, send)
        except Exception as error:  # noqa: BLE001 - raised by `_reply`
            ended = error
        if not self._over.is_set():
            await self._messages.put((index, ended))

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await self._messages.put((_CLIENT, None))

    async def _reply(self, send: Send) -> None:
        starts: dict[int, Message] = {}
        held: list[tuple[int, bytes]] = []
        merging: Merging | MergingStream | None = None
        left = len(self._entries)
        while left and not (merging and merging.failed):
            index, message = await self._next()
            if message is None:
                if index == _CLIENT:
                    return
                left -= 1
            elif message["type"] == "http.response.start":
                starts[index] = message
                if message["status"] >= 400:
                    await self._only(index, message, send)
                    return
            else:
                held.append((index, message.get("body", b"")))
            if merging is None and len(starts) == len(self._entries):
                merging = await self._begin(starts[0], send)
            if merging is not None:
                for reply, chunk in held:
                    if merged := merging.take(reply, chunk):
                        await send({"type": "http.response.body", "body": merged, "more_body": True})
                held.clear()
        if merging is not None:  # else vLLM has fallen silent, as it does where clients leave
            await self._finish(merging, starts[0], send)

    async def _begin(self, start: Message, send: Send) -> Merging | MergingStream:
        places = [(str(entry.applied.mix), entry.first_index) for entry in self._entries]
        if not Headers(raw=start["headers"]).get("content-type", "").startswith("text/event-stream"):
            return Merging(places)
        await send(_start(start, None))
        return MergingStream(places)

    async def _finish(self, merging: Merging | MergingStream, start: Message, send: Send) -> None:
        body = merging.finish()
        if isinstance(merging, Merging):
            await send(_start(start, len(body)))
        await send({"type": "http.response.body", "body": body})

    async def _only(self, index: int, start: Message, send: Send) -> None:
        """The reply is the error of this entry's request."""
        await send(start)
        while True:
            whose, message = await self._next()
            if whose == _CLIENT or (whose == index and message is None):
                return
            if whose == index and message is not None:
                await send(message)

    async def _next(self) -> tuple[int, Message | None]:
        index, message = await self._messages.get()
        if isinstance(message, Exception):
            raise message
        return index, message

    async def _end(self, asking: set[asyncio.Task[None]]) -> None:
        """Has what is left of the requests see that nobody waits, and waits until they are gone."""
        self._over.set()
        end = asyncio.get_running_loop().time() + _GRACE_S
        while asking and asyncio.get_running_loop().time() < end:
            while not self._messages.empty():  # some may wait for room in it
                self._messages.get_nowait()
            _, asking = await asyncio.wait(asking, timeout=0.1)
        for task in asking:
            task.cancel()


def num_choices(request: dict[str, Any]) -> int:
    """Choices of one entry. What vLLM will refuse counts as one."""
    prompt = request.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1
    try:
        n = _INT.validate_python(request.get("n"))
    except ValidationError:
        n = 1
    return prompts * max(1, n)


def _start(start: Message, length: int | None) -> Message:
    headers = [(key, value) for key, value in start["headers"] if key.lower() != b"content-length"]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {**start, "headers": headers}
