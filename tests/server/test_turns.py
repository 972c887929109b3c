"""Requests in turn, before a fake app: refusals, deadlines, and clients that leave while they wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from meet_server.access.fair_queue import FairQueue
from meet_server.http.turns import Turns
from meet_server.settings import LoadSettings


class Exchange:
    """One request. The app answers when `free` is set; `stream` begins at once."""

    def __init__(
        self, turns: Turns, *, key: str = "a", stream: bool = False, kind: bytes = b"text/event-stream"
    ) -> None:
        self.sent: list[Any] = []
        self.free, self.left = asyncio.Event(), asyncio.Event()
        self.asked = False
        self.stalls_after: int | None = None
        self.num_listening = 0
        self._stream, self._kind = stream, kind
        self.task = asyncio.create_task(
            turns.answer(self._app, (key, "x", 1), {"type": "http"}, self._receive, self._send)
        )

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked = True
        headers = [(b"content-type", self._kind)] if self._stream else []
        if self._stream:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await self.free.wait()
        if not self._stream:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _receive(self) -> Any:
        self.num_listening += 1
        try:
            await self.left.wait()
        finally:
            self.num_listening -= 1
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self.stalls_after is not None and len(self.sent) >= self.stalls_after:
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def refusal(self) -> tuple[int, str, str | None]:
        headers = dict(self.sent[0]["headers"])
        retry = headers.get(b"retry-after")
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])["error"]["code"], retry and retry.decode()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def test_waits_its_turn_and_the_queue_is_bounded() -> None:
    async def test() -> None:
        queue = FairQueue(1, 1)
        turns = Turns(queue, LoadSettings())
        first, second = Exchange(turns), Exchange(turns)
        await settle()
        third = Exchange(turns)
        await third.task
        assert third.refusal == (429, "overloaded", "2")
        assert (first.asked, second.asked, third.asked) == (True, False, False)
        first.free.set()
        await first.task
        await settle()
        assert (second.asked, second.num_listening) == (True, 0)  # the disconnect is the app's to hear
        second.free.set()
        await second.task
        assert second.sent[0]["status"] == 200
        assert (queue.num_running, queue.num_waiting) == (0, 0)

    run(test)


def test_a_wait_that_is_too_long() -> None:
    async def test() -> None:
        queue = FairQueue(1, 1)
        turns = Turns(queue, LoadSettings(max_wait_s=0.02))
        first, second = Exchange(turns), Exchange(turns)
        await second.task
        assert second.refusal == (503, "waited_too_long", "1")
        first.free.set()
        await first.task
        assert (queue.num_running, queue.num_waiting) == (0, 0)

    run(test)


def test_a_client_that_leaves_while_it_waits_leaves_the_queue() -> None:
    async def test() -> None:
        queue = FairQueue(1, 1)
        turns = Turns(queue, LoadSettings())
        first, second = Exchange(turns), Exchange(turns)
        await settle()
        second.left.set()
        await second.task
        assert (second.asked, second.sent, queue.num_waiting) == (False, [], 0)
        third = Exchange(turns)
        await settle()
        third.task.cancel()  # as a server does that is being stopped
        await asyncio.gather(third.task, return_exceptions=True)
        await settle()
        assert (third.task.cancelled(), queue.num_running, queue.num_waiting) == (True, 1, 0)
        first.task.cancel()
        await asyncio.gather(first.task, return_exceptions=True)
        assert queue.num_running == 0

    run(test)


def test_a_client_that_leaves_as_its_turn_comes() -> None:
    async def test() -> None:
        queue = FairQueue(1, 1)
        turns = Turns(queue, LoadSettings())
        first, second = Exchange(turns), Exchange(turns)
        await settle()
        second.left.set()
        first.free.set()
        second.free.set()
        await asyncio.gather(first.task, second.task)
        await settle()
        assert (queue.num_running, queue.num_waiting) == (0, 0)
        for num_steps in range(6):  # or is cancelled then, at whatever step
            first, second = Exchange(turns), Exchange(turns)
            await settle()
            first.free.set()
            await first.task
            for _ in range(num_steps):
                await asyncio.sleep(0)
            second.task.cancel()
            await asyncio.gather(second.task, return_exceptions=True)
            await settle()
            assert (queue.num_running, queue.num_waiting) == (0, 0)

    run(test)


def test_deadlines() -> None:
    async def test() -> None:
        queue = FairQueue(4, 4)
        turns = Turns(queue, LoadSettings(deadline_s=0.05))
        plain, stream, quick = Exchange(turns), Exchange(turns, stream=True), Exchange(turns)
        quick.free.set()
        await asyncio.gather(plain.task, stream.task, quick.task)
        assert plain.refusal[:2] == (504, "deadline_exceeded")
        assert stream.sent[0]["status"] == 200
        *_, event, done, end = stream.sent[-1]["body"].split(b"\n\n")
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
        assert (done, end, stream.sent[-1].get("more_body", False)) == (b"data: [DONE]", b"", False)
        assert quick.sent[0]["status"] == 200
        with pytest.raises(TimeoutError):  # has the server cut it off: the client must not take it for whole
            await Exchange(turns, stream=True, kind=b"application/json").task
        assert queue.num_running == 0

    run(test)


def test_a_client_that_takes_nothing_of_its_reply_keeps_no_turn() -> None:
    """Its connection stands, but the server's buffers are full, so that sending waits."""

    async def test() -> None:
        queue = FairQueue(4, 4)
        for deadline_s in (None, 0.02):
            turns = Turns(queue, LoadSettings(max_stall_s=0.08, deadline_s=deadline_s))
            stalled = Exchange(turns, stream=True)
            stalled.stalls_after = 2
            stalled.free.set()
            await asyncio.wait_for(stalled.task, 10)
            assert [message["type"] for message in stalled.sent] == ["http.response.start", "http.response.body"]
            assert queue.num_running == 0
        slow = Exchange(Turns(queue, LoadSettings(max_stall_s=0.08)), stream=True)
        await asyncio.sleep(0.3)  # that the engine takes its time is no matter of the client's
        assert queue.num_running == 1
        slow.free.set()
        await slow.task
        assert len(slow.sent) == 3

    run(test)


def test_errors_and_cancellations_of_the_app_pass_through() -> None:
    async def test() -> None:
        queue = FairQueue(4, 4)
        turns = Turns(queue, LoadSettings())

        async def fails(scope: Any, receive: Any, send: Any) -> None:
            raise TimeoutError("its own")

        async def never(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.Event().wait()

        with pytest.raises(TimeoutError, match="its own"):
            await turns.answer(fails, ("a", "x", 1), {"type": "http"}, never, never)  # type: ignore[arg-type]
        task = asyncio.create_task(turns.answer(never, ("a", "x", 1), {"type": "http"}, never, never))  # type: ignore[arg-type]
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert queue.num_running == 0

    run(test)


def test_an_evicted_request_is_told_so() -> None:
    async def test() -> None:
        turns = Turns(FairQueue(1, 2), LoadSettings())
        first, *flood = [Exchange(turns) for _ in range(3)]
        await settle()
        other = Exchange(turns, key="b")
        await flood[1].task
        assert flood[1].refusal[:2] == (429, "overloaded")
        for each in (first, other, flood[0]):
            each.free.set()
        await asyncio.gather(first.task, other.task, flood[0].task)
        assert [each.sent[0]["status"] for each in (first, other, flood[0])] == [200] * 3

    run(test)
