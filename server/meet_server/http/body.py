"""Bodies of requests: read whole, within bounds, and given to the app again. Understands no body but its nesting."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from meet_server.errors import RequestError


class Disconnected(Exception):
    """The client left while its body was being read."""


async def read_body(scope: Scope, receive: Receive, limit: float = math.inf) -> bytes:
    """The whole body. Raises RequestError `body_too_large` where it has more than `limit` bytes, and Disconnected."""
    length = Headers(scope=scope).get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(limit)
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then whatever really comes: the disconnect."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def with_length(scope: Scope, length: int) -> Scope:
    """The scope of a request whose body has been read and is so long."""
    dropped = (b"content-length", b"transfer-encoding")
    headers = [(key, value) for key, value in scope["headers"] if key.lower() not in dropped]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def is_nested_deeper(body: bytes, limit: int) -> bool:
    """Whether a JSON body has more than `limit` arrays and objects in one another. What is no JSON has none."""
    # Counting is all that nearly every body costs.
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    try:
        level: list[Any] = [json.loads(body)]
    except RecursionError:
        return True
    except ValueError:
        return False
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


class _Constant(ValueError):
    pass


def holds_no_number(body: bytes) -> bool:
    """Whether a JSON body holds NaN or Infinity, which Python's parser takes and JSON does not know."""
    if b"NaN" not in body and b"Infinity" not in body and b"\0" not in body:  # a null byte: it is UTF-16 or 32
        return False
    try:
        json.loads(body, parse_constant=_refuse)
    except _Constant:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def _refuse(constant: str) -> None:
    raise _Constant(constant)


def _too_large(limit: float) -> RequestError:
    return RequestError("body_too_large", f"the body is larger than {limit:.0f} bytes")
