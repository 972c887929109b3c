"""What Ray's proxies ask, in front of a replica that the test is: what reaches it, and with which body.

`make test-ray` installs Ray and runs these too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

pytest.importorskip("ray", reason="Ray is not installed; `make test-ray` does it")

from meet_server.ray_serve import front
from meet_server.settings import Settings

KEY = "sk-user-0123456789"
PREFLIGHT = {"origin": "https://page.example", "access-control-request-method": "POST"}


class Replicas:
    """A handle of one replica, which notes what it is asked and answers with the body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []

    def options(self, **_: Any) -> Replicas:
        return self

    async def remote(self, _: Any, scope: Any, body: bytes) -> AsyncIterator[Any]:
        self.asked.append((scope["method"], scope["path"], body))
        yield [{"type": "http.response.start", "status": 200, "headers": []}]
        yield [{"type": "http.response.body", "body": body}]


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Replicas:
    monkeypatch.setattr(front, "listening_on", lambda: "127.0.0.1")
    monkeypatch.setenv("MEET_USER_KEYS", KEY)
    return Replicas()


def ask(
    replicas: Replicas, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, Headers, int]:
    """Status, headers, and how many pieces of the body were read."""
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
    sent: list[Any] = []
    num_read = 0

    async def receive() -> Any:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": pieces[num_read - 1], "more_body": num_read < len(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "root_path": ""}
        scope |= {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
        response = await front.Front(replicas, Settings(bundle=Path("bundle")))(None)  # type: ignore[arg-type]
        await response(scope, receive, send)

    asyncio.run(run())
    return sent[0]["status"], Headers(raw=sent[0]["headers"]), num_read


def test_a_request_with_a_key_reaches_a_replica_whole(replicas: Replicas) -> None:
    body = b'{"prompt": "%s"}' % (b"rain " * 1000)
    assert ask(replicas, "POST", "/v1/completions", {"authorization": f"Bearer {KEY}"}, body)[0] == 200
    assert replicas.asked == [("POST", "/v1/completions", body)]
    assert ask(replicas, "POST", "/v1/completions", {}, body)[0] == 401
    assert len(replicas.asked) == 1


def test_a_browsers_question_before_a_request_of_another_origin_reaches_a_replica(replicas: Replicas) -> None:
    """It brings no key, and vLLM's CORS, which stands in the replica, answers it."""
    assert ask(replicas, "OPTIONS", "/v1/completions", PREFLIGHT)[0] == 200
    assert ask(replicas, "OPTIONS", "/v1/completions", {})[0] == 401
    assert ask(replicas, "POST", "/v1/completions", PREFLIGHT)[0] == 401
    assert replicas.asked == [("OPTIONS", "/v1/completions", b"")]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/health/ready"), ("POST", "/health"), ("POST", "/ping"), ("OPTIONS", "/v1/completions")],
)
def test_no_body_is_read_of_what_needs_no_key(replicas: Replicas, method: str, path: str) -> None:
    status, _, num_read = ask(replicas, method, path, PREFLIGHT, b"x" * 100_000)
    assert (status, num_read) == (200, 0)
    assert replicas.asked == [(method, path, b"")]
