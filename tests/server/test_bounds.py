"""What a request may bring: sizes of bodies and headers, nesting, and what is left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from meet_server.http.body import is_nested_deeper
from meet_server.http.bounds import RequestBounds
from meet_server.http.paths import OPEN
from meet_server.settings import RequestLimits

LIMITS = RequestLimits(max_body_bytes=1024, max_nesting=8, max_headers=10, max_header_bytes=2048)


class Exchange:
    """One request through the bounds to an app that reads it whole."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        *,
        path: str = "/tokenize",
        method: str = "POST",
        headers: Sequence[tuple[bytes, bytes]] = (),
        leaves: bool = False,
    ) -> None:
        self.sent: list[Any] = []
        self.body: bytes | None = None
        self.after: str | None = None
        self._incoming: list[Any] = [
            {"type": "http.request", "body": piece, "more_body": leaves or index < len(pieces) - 1}
            for index, piece in enumerate(pieces)
        ] + [{"type": "http.disconnect"}]
        scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        asyncio.run(RequestBounds(self._app, limits=LIMITS)(scope, self._receive, self._send))

    @property
    def outcome(self) -> tuple[int, str]:
        error = json.loads(self.sent[1]["body"])["error"]
        return self.sent[0]["status"], error["code"]

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.body, more = b"", True
        while more:
            message = await receive()
            self.body, more = self.body + message["body"], message["more_body"]
        self.after = (await receive())["type"]

    async def _receive(self) -> Any:
        return self._incoming.pop(0)

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


def test_what_is_within_the_limits_passes_byte_for_byte() -> None:
    seen = Exchange([b'{"a": ', b"[1]}", b""])
    assert (seen.body, seen.after, seen.sent) == (b'{"a": [1]}', "http.disconnect", [])


@pytest.mark.parametrize("said", [None, b"10", b"1025", b"9" * 400])
def test_bodies_that_are_too_large_never_reach_the_app(said: bytes | None) -> None:
    headers = [] if said is None else [(b"content-length", said)]
    seen = Exchange([b"x" * 300] * 4, headers=headers)
    assert (seen.outcome, seen.body) == ((413, "body_too_large"), None)


@pytest.mark.parametrize(
    "body", [b"[" * 9 + b"]" * 9, b'{"a":' * 9 + b"1" + b"}" * 9, b"[[[[[1,[[[[2]]]],3]]]]]", b"[" * 1000]
)
def test_nesting(body: bytes) -> None:
    deep = Exchange([body])
    if body == b"[" * 1000:  # is no JSON, or too deep to know: never the app's to fall over
        assert deep.sent == [] or deep.outcome == (400, "invalid_body")
        return
    assert (deep.outcome, deep.body) == ((400, "invalid_body"), None)


def test_depth_and_not_number_is_what_counts() -> None:
    assert not is_nested_deeper(json.dumps([[{}]] * 50).encode(), 3)
    assert is_nested_deeper(json.dumps([[{}]] * 50).encode(), 2)
    assert not is_nested_deeper(json.dumps("[" * 500).encode(), 1)
    assert not is_nested_deeper(b"[" * 50 + b"nonsense", 1)
    assert is_nested_deeper(b"[" * 400_000 + b"]" * 400_000, 400)


@pytest.mark.parametrize(
    "body",
    [
        b'{"temperature": NaN}',
        b"[-Infinity]",
        b'{"a": "NaN", "b": Infinity}',
        '{"temperature": NaN}'.encode("utf-16-le"),
        '{"temperature": NaN}'.encode("utf-32"),
    ],
)
def test_numbers_that_json_does_not_have(body: bytes) -> None:
    seen = Exchange([body])
    assert (seen.outcome, seen.body) == ((400, "invalid_body"), None)


@pytest.mark.parametrize("body", [b'{"prompt": "NaN and Infinity"}', b'{"a": '])
def test_words_about_numbers_pass(body: bytes) -> None:
    assert Exchange([body]).body == body


@pytest.mark.parametrize("headers", [[(b"a", b"1")] * 11, [(b"a", b"1" * 2048)]])
def test_headers(headers: list[tuple[bytes, bytes]]) -> None:
    for method in ("GET", "POST"):
        seen = Exchange([b""], headers=headers, method=method)
        assert (seen.outcome, seen.body) == ((431, "headers_too_large"), None)


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/preferences", "POST"), ("/v1/preferences/concise", "PATCH"), ("/docs", "GET")]
)
def test_uploads_have_bounds_of_their_own(path: str, method: str) -> None:
    assert Exchange([b"x" * 2000], path=path, method=method).body == b"x" * 2000


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("path", sorted(OPEN))
def test_no_body_is_read_of_what_needs_no_key(path: str, method: str) -> None:
    """Whoever reaches the server could have it hold and parse one else."""
    answered = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answered.append(scope["path"])

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(RequestBounds(app, limits=LIMITS)(scope, receive, receive))
    assert answered == [path]


def test_a_client_that_leaves_while_sending_gets_no_reply() -> None:
    seen = Exchange([b"{"], leaves=True)
    assert (seen.sent, seen.body) == ([], None)
