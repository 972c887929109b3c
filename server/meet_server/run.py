"""Runs a server until it is told to stop: socket, event loop, signals, and an eye on the engine.

Knows no bundle and no controls. Importing it imports neither vLLM nor uvicorn.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from meet_server.errors import EngineDied, ServerError
from meet_server.settings import RequestLimits, ServingSettings, Settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

Announce = Callable[[str], None]
_WATCH_S = 0.5
_OPEN_FILES = 65_536
_MAX_RESTARTS, _RESTARTS_WITHIN_S = 3, 600
_LOGGER = logging.getLogger(__name__)


def serve(settings: Settings, *, announce: Announce | None = None) -> None:
    """Serves a bundle until SIGTERM, on which it returns, or SIGINT, on which it raises KeyboardInterrupt.

    Raises MeetError on one line where it cannot start (bundle, control, port) or the engine dies.
    `announce` gets the line that says where it listens; standard output by default.
    """
    from meet_server.engine.start import prepare_environment

    prepare_environment()
    with bound_socket(settings.host, settings.port) as sock:
        from meet_server.app import create_app
        from meet_server.http.request_log import to_stderr

        if settings.log_requests:
            to_stderr()

        run_again(lambda: create_app(settings), sock, settings, announce or to_stdout)


def run_again(
    create: Callable[[], FastAPI], sock: socket.socket, settings: ServingSettings, announce: Announce
) -> None:
    """As `run`, with a new app and engine where the old engine has died and the settings say so.

    Clients that connect meanwhile wait in the socket's backlog.
    """
    died: list[float] = []
    while True:
        try:
            with sock.dup() as listening:  # uvicorn closes what it listens on
                run(create(), listening, settings, announce)
        except EngineDied as error:
            now = time.monotonic()
            died = [*(each for each in died if now - each < _RESTARTS_WITHIN_S), now]
            if settings.engine_failure == "exit" or len(died) > _MAX_RESTARTS:
                raise
            _LOGGER.error("%s; another is started", error)
        else:
            return


def run(app: FastAPI, sock: socket.socket, settings: ServingSettings, announce: Announce) -> None:
    """Runs an app on a bound socket. It has `state.lifecycle`, and its lifespan sets `state.engine`, `example` and
    `needs_key` (see `app`)."""
    import uvloop

    _raise_open_files_limit()
    stopped_by: list[int] = []
    try:
        with _interrupted_while_starting(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(app, sock, settings, announce, stopped_by))
    except _Interrupted as interrupted:
        stopped_by.append(interrupted.number)
    finally:
        gc.unfreeze()  # vLLM freezes the heap; objects left in it have nanobind report leaks at exit
    if signal.SIGINT in stopped_by:
        raise KeyboardInterrupt


class _Interrupted(SystemExit):
    """A signal while starting. No KeyboardInterrupt, which vLLM's `zmq_socket_ctx` swallows (0.32, 0.33)."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A bound TCP socket, before anything slow starts. Raises ServerError where the address is not free."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ServerError(f"cannot listen on {host}: {error.strerror}") from None
    with socket.socket(family, kind, protocol) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise ServerError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
            ) from None
        yield sock


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


async def _serve(
    app: FastAPI, sock: socket.socket, settings: ServingSettings, announce: Announce, stopped_by: list[int]
) -> None:
    # The lifespan is entered here and not by uvicorn, which would turn its errors into tracebacks.
    async with app.router.lifespan_context(app):
        server = _server(app, settings, lambda: announce(_ready_line(app, sock)))
        _stop_on_signals(app, server, stopped_by, settings.drain_delay_s)
        watching = asyncio.create_task(_watch(app, server, stopped_by))
        try:
            await server.serve(sockets=[sock])
        finally:
            watching.cancel()
        # Ctrl-C in a terminal reaches the engine's processes too, so that it may go first.
        if app.state.engine.errored and not stopped_by:
            raise EngineDied("the engine has died, and the server with it; its own messages stand above")


def _server(app: FastAPI, settings: ServingSettings, when_ready: Callable[[], None]) -> uvicorn.Server:
    import uvicorn

    from meet_server.http.head import bounded_protocol

    limits = settings.limits if isinstance(settings, Settings) else RequestLimits()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            when_ready()

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leaves signals alone: uvicorn raises them again when it ends, before the engine is shut down."""
            yield

    return Server(
        uvicorn.Config(
            app,
            http=bounded_protocol(limits.max_header_bytes),
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=settings.shutdown_grace_s,
        )
    )


def _ready_line(app: FastAPI, sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    messages = [{"role": "user", "content": "What is rain?"}]
    example = json.dumps({**app.state.example, "max_tokens": 64, "messages": messages})
    key = ' -H "authorization: Bearer $MEET_API_KEY"' if app.state.needs_key else ""
    note = "" if app.state.needs_key else "  (no key is set: for this machine alone)"
    return (
        f"ready: {url}  try: curl {url}/v1/chat/completions{key} -H 'content-type: application/json' "
        f"-d '{example}'{note}"
    )


async def _watch(app: FastAPI, server: uvicorn.Server, stopped_by: list[int]) -> None:
    """Stops the server when the engine has died: a streaming reply would not."""
    while not app.state.engine.errored:  # noqa: ASYNC110 - the client offers no event
        await asyncio.sleep(_WATCH_S)
    if not stopped_by:
        _LOGGER.error("the engine has died")
    server.should_exit = True


def _stop_on_signals(app: FastAPI, server: uvicorn.Server, stopped_by: list[int], delay_s: float) -> None:
    """The first signal ends readiness, then new connections, and lets requests end within the grace; a second cuts
    them off. Ctrl-C does not wait for load balancers."""
    loop = asyncio.get_running_loop()

    def exit_now() -> None:
        server.should_exit = True

    def stop(number: int) -> None:
        server.force_exit = bool(stopped_by)
        stopped_by.append(number)
        app.state.lifecycle.draining = True
        if server.force_exit or number == signal.SIGINT or not delay_s:
            exit_now()
        else:
            loop.call_later(delay_s, exit_now)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)


@contextmanager
def _interrupted_while_starting() -> Iterator[None]:
    """Starting blocks the event loop for many seconds, in which only a plain handler is heard.

    It raises where it stands, and the engine's context shuts down what was started.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise _Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_open_files_limit() -> None:
    """Each connection is an open file, and 1024, a common limit, is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def to_stdout(line: str) -> None:
    """Where `announce` goes unless told otherwise."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
