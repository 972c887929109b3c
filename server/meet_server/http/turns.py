"""Requests to the engine take turns, and have a deadline. What cannot have a turn is told when to come again.

A client that leaves while it waits leaves the queue, and one that does not take its reply loses it. Knows neither
preferences nor the engine: who asks, for what and for how much is said to it.
"""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meet_server.access.fair_queue import FairQueue, NoTurn, Turn
from meet_server.errors import RequestError
from meet_server.http.errors import end_with, error_response
from meet_server.settings import LoadSettings


class Turns:
    """Answers requests in turn."""

    def __init__(self, queue: FairQueue, settings: LoadSettings) -> None:
        self._queue = queue
        self._max_replies = settings.max_replies
        self._max_wait_s = settings.max_wait_s
        self._max_stall_s = settings.max_stall_s
        self._deadline_s = settings.deadline_s

    async def answer(
        self, app: ASGIApp, asked: tuple[str, str, int], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Has `app` answer in its turn. `asked` is the key's name, the preference, and the number of replies.

        The body has been read, so that what `receive` gives next is the disconnect.
        """
        if (num := asked[-1]) > self._max_replies:  # the engine would be its alone until the last of them
            error = RequestError("too_many_replies", f"{num} replies are asked for; {self._max_replies} are allowed")
            await error_response(error)(scope, receive, send)
            return
        deadline = None if self._deadline_s is None else asyncio.get_running_loop().time() + self._deadline_s
        try:
            turn = self._queue.ask(*asked)
            if not turn.granted.done() and not await self._granted(turn, receive):
                return
        except NoTurn as refused:
            await error_response(_refusal(refused))(scope, receive, send)
            return
        try:
            answering = app if deadline is None else partial(_until, deadline, app)
            await _while_taken(self._max_stall_s, answering, scope, receive, send)
        finally:
            self._queue.give_back(turn)

    async def _granted(self, turn: Turn, receive: Receive) -> bool:
        """Whether the client is still there when its turn comes. Raises NoTurn."""
        waiting = asyncio.create_task(self._queue.wait(turn, self._max_wait_s))
        tasks: set[asyncio.Task[object]] = {waiting, asyncio.create_task(_left(receive))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._queue.give_back(turn)
            raise
        finally:
            for task in tasks:
                task.cancel()
        if waiting in done:
            waiting.result()
            return True
        self._queue.give_back(turn)  # it may have been granted in this very moment
        return False


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _while_taken(max_stall_s: float, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """The app's answer, cut off where the client takes nothing of it for so long: it would keep its turn for ever.

    Looks at a clock now and then, since a timer for each message would cost every stream.
    """
    loop = asyncio.get_running_loop()
    since: float | None = None  # when the message was begun that is being sent
    timer: asyncio.TimerHandle

    async def noting(message: Message) -> None:
        nonlocal since
        since = loop.time()
        try:
            await send(message)
        finally:
            since = None

    def look() -> None:
        nonlocal timer
        if since is not None and loop.time() - since >= max_stall_s:
            cut.reschedule(loop.time())
        else:
            timer = loop.call_later(max_stall_s / 4, look)

    try:
        async with asyncio.timeout(None) as cut:
            timer = loop.call_later(max_stall_s, look)
            try:
                await app(scope, receive, noting)
            finally:
                timer.cancel()
    except TimeoutError:
        if not cut.expired():
            raise


async def _until(deadline: float, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """The app's answer, cut off at the deadline: an error where nothing was sent yet, else as a stream's last event."""
    began: Message | None = None

    async def noting(message: Message) -> None:
        nonlocal began
        if message["type"] == "http.response.start":
            began = message
        await send(message)

    try:
        async with asyncio.timeout_at(deadline):
            await app(scope, receive, noting)
    except TimeoutError:
        error = RequestError("deadline_exceeded", "the request took longer than this server allows")
        if not await end_with(error, began, scope, receive, send):
            raise


def _refusal(error: NoTurn) -> RequestError:
    if error.why == "full":
        return RequestError("overloaded", "too many requests are waiting", retry_after_s=error.retry_after_s)
    return RequestError(
        "waited_too_long", "the engine had no room for the request in time", retry_after_s=error.retry_after_s
    )
