"""A MEET server in a thread of this process, so that tests can look into its engine."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from meet_server.settings import Settings


@dataclass(frozen=True)
class Soft:
    """A server of soft prompts, and what plain transformers make of the same bundle."""

    server: Server
    reference: Any
    placement: str
    num_virtual_tokens: int


class Server:
    """A MEET server in a thread of its own, with an event loop of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.app: Any = None
        self.loop: asyncio.AbstractEventLoop
        self._http: Any = None

    @property
    def engine(self) -> Any:
        return self.app.state.engine

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(timeout=600):
            raise TimeoutError("the server did not start")
        if self._error is not None:
            raise self._error

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=300)

    def stop(self) -> None:
        if self._http is not None:
            self._http.should_exit = True
        self._thread.join(timeout=60)
        self.socket.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        import uvicorn

        from meet_server.app import create_app
        from meet_server.http.head import bounded_protocol

        self.loop = asyncio.get_running_loop()
        self.app = create_app(self._settings)
        async with self.app.router.lifespan_context(self.app):
            protocol = bounded_protocol(self._settings.limits.max_header_bytes)
            self._http = uvicorn.Server(
                uvicorn.Config(self.app, http=protocol, lifespan="off", log_level="error")  # as `run` has it
            )
            ready, parent = self._ready, self._http.startup

            async def startup(sockets: Any = None) -> None:
                await parent(sockets)
                ready.set()

            self._http.startup = startup
            await self._http.serve(sockets=[self.socket])
