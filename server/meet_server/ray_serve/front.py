"""What Ray's proxies ask: checks keys and bounds as `meet serve` does, and relays each request to a replica.

A deployment of its own, because a proxy routes by headers alone, and a preference stands in the body. It loads no
model. A request whose replica dies gets an error; it is not sent again, for it may be what killed the replica.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayError
from ray.serve.context import _get_global_client  # Ray has no public way to ask what its proxies listen on
from ray.serve.exceptions import RayServeException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meet_server.access.keyring import Keyring
from meet_server.errors import RequestError, ServerError
from meet_server.http.body import Disconnected, read_body
from meet_server.http.bounds import RequestBounds
from meet_server.http.errors import end_with, error_response
from meet_server.http.keys import KeyGate
from meet_server.http.paths import brings_body, path_of
from meet_server.ray_serve.affinity import Wanted, wanted
from meet_server.ray_serve.replica import Gone
from meet_server.run import is_loopback
from meet_server.settings import Settings

# What of a request's scope is the same in another process.
_SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
_ADDRESSES = ("client", "server")


class Front:
    """The ingress deployment. `replicas` is the handle of `Replica`s."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        keyring = Keyring(settings.keys_file, os.environ)
        host = listening_on()
        if keyring.is_empty and not is_loopback(host):
            raise ServerError(
                f"other machines can reach Ray Serve's proxies on {host}, and no key is set: set keys_file, or have "
                "Ray listen on 127.0.0.1"
            )
        relay = Relay(
            replicas.options(stream=True, method_name="answer"),
            max(settings.limits.max_body_bytes, settings.max_upload_bytes),
        )
        self._app = KeyGate(RequestBounds(relay, limits=settings.limits), keyring=keyring, host=host)

    async def __call__(self, request: Request) -> Response:  # noqa: ARG002 - the response has it too
        """What Ray calls for a request over HTTP."""
        return _AnsweredBy(self._app)


def listening_on() -> str:
    """The host that Ray's proxies listen on."""
    return str(_get_global_client().http_config.host)


class _AnsweredBy(Response):
    """A response that an ASGI app gives."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Relay:
    """Relays requests to replicas, and their replies message by message."""

    def __init__(self, answer: Any, max_body_bytes: int) -> None:
        """`answer` is a handle that streams `Replica.answer`."""
        self._answer = answer
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003, "reason": "replicas are asked over HTTP"})
            return
        began: Message | None = None
        try:
            path, body = path_of(scope), b""
            if brings_body(scope["method"], path):
                body = await read_body(scope, receive, self._max_body_bytes)
            where = wanted(path, Headers(scope=scope), body)
            async for message in self._answered(where, _plain(scope), body):
                if message["type"] == "http.response.start":
                    began = message
                    del MutableHeaders(scope=message)["x-request-id"]  # Ray's proxy adds it
                await send(message)
        except Disconnected:
            return
        except RequestError as error:
            await error_response(error)(scope, receive, send)
        except (RayError, RayServeException) as error:
            lost = RequestError("replica_lost", "the replica that worked on this request is lost", retry_after_s=1)
            if not await end_with(lost, began, scope, receive, send):
                raise lost from error

    async def _answered(self, where: Wanted, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """A replica's messages; another's, where one says that its engine has died before it took the request."""
        while True:
            async for messages in self._answer.remote(where, scope, body):
                if not isinstance(messages, Gone):
                    for message in messages:
                        yield message
                elif messages.replica in where.avoid:
                    raise RequestError("engine_dead", "the engine of every replica has died", retry_after_s=5)
                else:
                    where = where.without(messages.replica)
                    break
            else:
                return


def _plain(scope: Scope) -> Scope:
    plain = {name: scope[name] for name in _SCOPE if name in scope}
    addresses = {name: tuple(scope[name]) for name in _ADDRESSES if scope.get(name)}
    return {**plain, **addresses, "asgi": {"version": "3.0", "spec_version": "2.3"}}
