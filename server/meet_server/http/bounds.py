"""Pure-ASGI bounds on what a request may bring: headers, size of the body, nesting. Replies pass untouched.

Uploads of preferences have bounds of their own (`preference_changes`) and are left alone here; of what needs no key no
body is read.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from meet_server.errors import RequestError
from meet_server.http.body import Disconnected, holds_no_number, is_nested_deeper, read_body, replay
from meet_server.http.errors import error_response
from meet_server.http.paths import brings_body, is_preference, path_of
from meet_server.settings import RequestLimits


class RequestBounds:
    """Reads a request's body, within the limits, before the app sees anything of it."""

    def __init__(self, app: ASGIApp, *, limits: RequestLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
            path = path_of(scope)
            if brings_body(scope["method"], path) and not is_preference(path):
                body = await read_body(scope, receive, self._limits.max_body_bytes)
                if is_nested_deeper(body, self._limits.max_nesting):
                    raise RequestError(
                        "invalid_body", f"the body is nested too deeply; {self._limits.max_nesting} levels are allowed"
                    )
                if holds_no_number(body):
                    raise RequestError("invalid_body", "the body is no JSON: it holds NaN or Infinity")
                receive = replay(body, receive)
        except Disconnected:
            return
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_headers(self, scope: Scope) -> None:
        headers, limits = scope["headers"], self._limits
        size = sum(len(key) + len(value) for key, value in headers)
        if len(headers) > limits.max_headers or size > limits.max_header_bytes:
            raise RequestError(
                "headers_too_large",
                f"{len(headers)} headers, {size} bytes; {limits.max_headers} and {limits.max_header_bytes} are allowed",
            )
