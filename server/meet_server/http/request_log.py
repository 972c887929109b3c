"""One line of JSON for each request, let in or refused: who asked for what, and what came of it. Pure ASGI.

Stands in front of all that may refuse one. `keys` says in the scope whose key was shown. A request without an
`X-Request-Id` gets one, which vLLM puts into its own ids too. Neither keys nor texts are logged.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meet_server.access.keyring import Key
from meet_server.http.keys import KEY
from meet_server.http.paths import path_of
from meet_server.preferences.words import HEADER

REQUEST_ID = "X-Request-Id"
_SAFE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_WEBSOCKET_STATUSES = {"websocket.accept": 101, "websocket.close": 403}
_LOGGER = logging.getLogger("meet.requests")


class RequestLog:
    """Logs to `meet.requests`, at the level of information."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        scope = dict(scope)  # in which `keys` leaves its word
        if request_id != given:
            others = [(name, value) for name, value in scope["headers"] if name.lower() != REQUEST_ID.lower().encode()]
            scope["headers"] = [*others, (REQUEST_ID.lower().encode(), request_id.encode())]
        began, status, applied, ended = time.perf_counter(), 0, None, False

        async def noting(message: Message) -> None:
            nonlocal status, applied, ended
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                status, applied = message["status"], headers.get(HEADER)
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            elif message["type"] in _WEBSOCKET_STATUSES:
                # What closes before it was accepted is refused, which servers say as 403.
                status, ended = status or _WEBSOCKET_STATUSES[message["type"]], message["type"] == "websocket.close"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            key: Key | None = scope.get(KEY)
            line = {
                "request_id": request_id,
                "key": None if key is None else key.name,
                "method": scope.get("method", "GET"),
                "path": path_of(scope)[:200],
                "status": status or None,
                "preference": applied,
                "complete": ended,
                "seconds": round(time.perf_counter() - began, 4),
            }
            _LOGGER.info(json.dumps(line))


def to_stderr() -> logging.Handler:
    """Has the log written to standard error, a line each, and returns the handler that does so."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    return handler
