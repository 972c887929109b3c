"""The whole MEET server as a replica of Ray Serve: its ASGI app is called here, where a socket would be otherwise.

A client that leaves has Ray cancel the call, and the app sees that as it would from uvicorn: a disconnect.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Scope

from meet_server.errors import EngineDied
from meet_server.http.body import replay
from meet_server.ray_serve.affinity import REPLICA, Wanted
from meet_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Gone:
    """A replica's answer once its engine has died, until Ray has replaced it."""

    replica: str


class Replica:
    """One engine with all the bundle's controls. Ray makes it, asks how it is, and ends it."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        """Returns once every control is proved. Raises MeetError for what cannot be served."""
        # Several replicas of a machine would otherwise have their threads on the same cores.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from meet_server.engine.start import prepare_environment

        prepare_environment()
        from meet_server.app import create_app
        from meet_server.http.request_log import to_stderr

        if settings.log_requests:
            to_stderr()
        self._name: str = serve.get_replica_context().replica_id.unique_id
        self._under_way: set[asyncio.Task[None]] = set()
        self._app = create_app(settings)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            self._running = stack.pop_all()

    async def answer(self, where: Wanted, scope: Scope, body: bytes) -> AsyncIterator[list[Message] | Gone]:  # noqa: ARG002
        """The app's messages in reply to one request, as they come; `where` is what the router reads."""
        if self._app.state.engine.is_dead:
            yield Gone(self._name)
            return
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        left = asyncio.Event()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REPLICA] = self._name
            sent.put_nowait(message)

        async def disconnect() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        answering = asyncio.create_task(self._app(scope, replay(body, disconnect), send))
        self._under_way.add(answering)
        answering.add_done_callback(self._under_way.discard)
        answering.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            while (messages := await _next(sent)) is not None:
                yield messages
            await answering
        finally:
            left.set()

    async def check_health(self) -> None:
        """Raises EngineDied once that is so, on which Ray replaces the replica."""
        if self._app.state.engine.is_dead:
            raise EngineDied("the engine has died")

    async def __del__(self) -> None:  # Ray awaits it, when requests have ended
        self._app.state.lifecycle.draining = True
        await self._running.aclose()


async def _next(sent: asyncio.Queue[Any]) -> list[Message] | None:
    """All that is there, or else the next that comes. None at the end."""
    message = await sent.get()
    if message is None:
        return None
    messages = [message]
    while not sent.empty():
        message = sent.get_nowait()
        if message is None:
            sent.put_nowait(None)
            break
        messages.append(message)
    return messages
