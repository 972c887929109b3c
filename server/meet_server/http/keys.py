"""Pure-ASGI gate in front of everything but the probes: who asks, and may they come here?

Knows keys and paths, and nothing of what is asked. Nothing is wrapped on the way out, so that a stream costs the same
with keys as without. Where no key is set the server listens on this machine alone (`run` sees to it), its preferences
cannot be changed, and pages of other machines cannot use it through a visitor's browser.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from meet_server.access.keyring import Key, Keyring
from meet_server.errors import RequestError
from meet_server.http.errors import error_response
from meet_server.http.paths import GENERATING, OPEN, READING, is_admins, path_of

_LOCAL = (".localhost", ".local", ".internal")  # not of the public DNS (RFC 6761, RFC 6762, ICANN)
KEY = "meet_key"  # where the rest of the app finds the key, in the scope


class KeyGate:
    """Lets a request pass that shows a key which may go where it goes."""

    def __init__(self, app: ASGIApp, *, keyring: Keyring, origins: Collection[str] = (), host: str = "") -> None:
        """`origins` are those of pages that may use a server on which no key is set, `host` is what it listens on."""
        self._app = app
        self._keyring = keyring
        self._origins = origins
        self._hosts = {host.lower(), *map(_host_of, origins)} - {""}
        self._num_requests: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or path_of(scope) in OPEN or _is_preflight(scope):
            await self._app(scope, receive, send)
            return
        try:
            key = self._admitted(scope)
            limit = None if key is None or scope.get("method") != "POST" else key.max_concurrent
            if key is not None and limit is not None and self._num_requests[key.name] >= limit:
                raise RequestError(
                    "too_many_requests", f"{limit} requests at a time are allowed for this key", retry_after_s=1
                )
        except RequestError as error:
            await _refuse(error, scope, receive, send)
            return
        if key is None:
            await self._app(scope, receive, send)
            return
        if limit is None:
            await self._app(scope, receive, send)
            return
        self._num_requests[key.name] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_requests[key.name] -= 1

    def _admitted(self, scope: Scope) -> Key | None:
        """The key that was shown, or None where none is set. Raises RequestError where the request may not pass."""
        headers = Headers(scope=scope)
        method, path = scope.get("method", "GET"), path_of(scope)
        if self._keyring.is_empty:
            self._check_origin(headers.get("origin"))
            self._check_host(headers.get("host"))
            if is_admins(method, path):
                raise RequestError("admin_key_required", "this needs an admin key, and none is set")
            return None
        key = self._keyring.find(_presented(headers))
        if key is None:
            raise RequestError(
                "invalid_api_key", "no key that is known was shown; send it as `Authorization: Bearer KEY`"
            )
        scope[KEY] = key  # not in a copy: whoever stands in front may know whose request it was, refused or not
        if key.role != "admin" and is_admins(method, path):
            raise RequestError("admin_key_required", "this needs an admin key; the one that was shown is a user's")
        reads = scope["type"] == "http" and method in READING  # a socket (`/v1/realtime`) begins as a GET, and asks
        if key.preferences is not None and not (reads or path in GENERATING):
            # Elsewhere vLLM itself takes adapters by the model's name, past what this key allows.
            raise RequestError("route_not_allowed", f"a key of some preferences alone cannot be used for {path[:100]}")
        return key

    def _check_origin(self, origin: str | None) -> None:
        if origin is None or origin in self._origins or _is_local(origin):
            return
        raise RequestError(
            "origin_not_allowed", "no key is set, so that pages of other machines are not served; set keys"
        )

    def _check_host(self, host: str | None) -> None:
        """A page's own name may be made to lead to this machine. What it only reads then comes without an origin."""
        if not host or (name := _host_of(f"http://{host}")) in self._hosts or _is_nobodys(name):
            return
        raise RequestError(
            "origin_not_allowed",
            f"no key is set, so that this server is not known as {host[:100]!r}; set keys, or name it by "
            "--allowed-origins",
        )


def _is_preflight(scope: Scope) -> bool:
    """Whether it is a browser's question if a page may ask. It never has a key, and vLLM's CORS answers it: in front of
    this, but under Ray in the replica. Without an origin CORS would let it through, to what answers any method."""
    if scope.get("method") != "OPTIONS":
        return False
    headers = Headers(scope=scope)
    return "origin" in headers and "access-control-request-method" in headers


def _presented(headers: Headers) -> str | None:
    """The key as OpenAI's clients send it, or as Anthropic's do."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key")


def _is_local(origin: str) -> bool:
    host = _host_of(origin)
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_nobodys(host: str) -> bool:
    """Whether nobody can have a DNS server give it an address of his choice: an address itself, or a local name."""
    return _is_address(host) or (host != "" and "." not in host) or host.endswith(_LOCAL)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_of(origin: str) -> str:
    """The host's name in an origin, "" where there is none."""
    try:
        return (urlsplit(origin).hostname or "").removesuffix(".")
    except ValueError:
        return ""


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})
        return
    await error_response(error)(scope, receive, send)
