"""The gate in front of a fake app: who passes, and with what the others are sent away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount
from starlette.testclient import TestClient

from meet_server import app as composition
from meet_server.access.keyring import Keyring
from meet_server.errors import ServerError
from meet_server.http.keys import KEY, KeyGate
from meet_server.settings import Settings

USER, OTHER, ADMIN = "sk-user-0123456789", "sk-other-0123456789", "sk-admin-0123456789"
CHAT = "/v1/chat/completions"


class Inner:
    """Answers with the name of the key that it was asked with; holds on to requests while told to."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()
        self.num_waiting = 0

    async def until(self, num_waiting: int) -> None:
        while self.num_waiting < num_waiting:  # noqa: ASYNC110 - the loop is this test's own
            await asyncio.sleep(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_waiting += 1
        try:
            await self.free.wait()
        finally:
            self.num_waiting -= 1
        key = scope.get(KEY)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": (key.name if key else "nobody").encode()})


def keyring(**environment: str) -> Keyring:
    return Keyring(None, environment)


GUARDED = keyring(MEET_USER_KEYS=f"{USER},{OTHER}", MEET_ADMIN_KEYS=ADMIN)


def ask(
    method: str, path: str, headers: dict[str, str], keys: Keyring = GUARDED, origins: tuple[str, ...] = ()
) -> httpx.Response:
    async def run() -> httpx.Response:
        gate = KeyGate(Inner(), keyring=keys, origins=origins, host="meet.here.example")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://server") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(run())


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [bearer(USER), {"x-api-key": USER}, {"Authorization": f"bearer  {USER}"}])
def test_a_key_as_openai_or_anthropic_clients_send_it(headers: dict[str, str]) -> None:
    reply = ask("POST", CHAT, headers)
    assert (reply.status_code, reply.text) == (200, "user-1")


@pytest.mark.parametrize(
    "headers", [{}, bearer(USER[:-1]), bearer(""), {"authorization": USER}, {"authorization": f"Basic {USER}"}]
)
@pytest.mark.parametrize(
    "path", [CHAT, "/metrics", "/tokenize", "/v1/models", "/docs", "/health//live", "/health/", "/playground/"]
)
def test_without_a_key_nothing_but_probes(path: str, headers: dict[str, str]) -> None:
    reply = ask("GET", path, headers)
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    error = reply.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert USER[:-1] not in reply.text


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/ping", "/", "/playground/page.js"])
def test_probes_need_no_key(path: str) -> None:
    assert ask("GET", path, {}).text == "nobody"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/preferences"),
        ("PATCH", "/v1/preferences/concise"),
        ("DELETE", "/v1/preferences/concise"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/pause"),
        ("POST", "/collective_rpc"),
        ("POST", "/abort_requests"),
        ("POST", "/inference/v1/abort_requests"),
        ("POST", "/reset_prefix_cache"),
        ("POST", "/scale_elastic_ep"),
        ("POST", "/of/a/release/to/come"),
    ],
)
def test_what_changes_the_server_needs_an_admin_key(method: str, path: str) -> None:
    refused = ask(method, path, bearer(USER))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")
    assert ask(method, path, bearer(ADMIN)).text == "admin-1"
    open_server = ask(method, path, {}, keyring())
    assert (open_server.status_code, open_server.json()["error"]["code"]) == (403, "admin_key_required")


@pytest.mark.parametrize(
    "path", [CHAT, "/tokenize", "/invocations", "/v1/responses/x/cancel", "/inference/v1/generate"]
)
def test_users_may_ask_for_whatever_is_no_change(path: str) -> None:
    assert ask("POST", path, bearer(USER)).status_code == 200
    assert ask("GET", "/v1/preferences", bearer(USER)).status_code == 200


def limited(tmp_path: Any, **limits: Any) -> Keyring:
    file = tmp_path / "keys.json"
    file.write_text(
        json.dumps({"keys": [{"name": "widget", "key": USER, **limits}, {"name": "letters", "key": OTHER}]})
    )
    return Keyring(file, {})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", CHAT, 200), ("GET", "/v1/models", 200), ("POST", "/invocations", 403), ("POST", f"{CHAT}/batch", 403)],
)
def test_a_key_of_some_preferences_goes_where_they_are_checked(
    tmp_path: Any, method: str, path: str, status: int
) -> None:
    reply = ask(method, path, bearer(USER), limited(tmp_path, preferences=["concise"]))
    assert reply.status_code == status
    if status == 403:
        assert reply.json()["error"]["code"] == "route_not_allowed"


def test_requests_at_a_time(tmp_path: Any) -> None:
    async def run() -> None:
        inner = Inner()
        gate = KeyGate(inner, keyring=limited(tmp_path, max_concurrent=2))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://server") as client:
            inner.free.clear()
            two = [asyncio.create_task(client.post(CHAT, headers=bearer(USER))) for _ in range(2)]
            await inner.until(2)
            third = await client.post(CHAT, headers=bearer(USER))
            assert (third.status_code, third.headers["retry-after"]) == (429, "1")
            assert third.json()["error"]["code"] == "too_many_requests"
            other = asyncio.create_task(client.post(CHAT, headers=bearer(OTHER)))
            two[0].cancel()  # a client that leaves makes room
            await asyncio.gather(two[0], return_exceptions=True)
            fourth = asyncio.create_task(client.post(CHAT, headers=bearer(USER)))
            await inner.until(3)
            inner.free.set()
            assert [(await each).status_code for each in (two[1], other, fourth)] == [200] * 3
            assert (await client.post(CHAT, headers=bearer(USER))).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:5173", 200),
        ("http://127.0.0.1:8000", 200),
        ("http://[::1]:1", 200),
        ("https://page.example", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_where_no_key_is_set_pages_of_others_are_refused(origin: str | None, status: int) -> None:
    headers = {} if origin is None else {"origin": origin}
    reply = ask("POST", CHAT, headers, keyring(), ("https://page.example",))
    assert reply.status_code == status
    if status == 403:
        assert reply.json()["error"]["code"] == "origin_not_allowed"
    assert ask("POST", CHAT, {**headers, **bearer(USER)}).status_code == 200  # with keys it is CORS that decides


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7:8000", 200),
        ("workstation:8000", 200),
        ("host.docker.internal:8000", 200),
        ("meet.localhost", 200),
        ("Page.Example", 200),
        ("meet.here.example:8000", 200),
        ("", 200),
        ("evil.example:8000", 403),
        ("EVIL.example.:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1:8000@evil.example", 403),
        ("[evil.example", 403),
    ],
)
def test_where_no_key_is_set_no_name_of_others_leads_here(host: str, status: int) -> None:
    """A page may have its own name lead to the visitor's machine, and then reads without an origin."""
    reply = ask("GET", "/v1/preferences", {"host": host}, keyring(), ("*", "https://page.example"))
    assert reply.status_code == status
    if status == 403:
        assert reply.json()["error"]["code"] == "origin_not_allowed"
    assert ask("GET", "/v1/preferences", {"host": host, **bearer(USER)}).status_code == 200


def test_a_browsers_question_before_a_request_brings_no_key() -> None:
    asks = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert ask("OPTIONS", CHAT, asks).text == "nobody"
    assert ask("OPTIONS", CHAT, {"origin": "https://page.example"}).status_code == 401
    assert ask("POST", CHAT, asks).status_code == 401


def test_what_cors_does_not_answer_needs_a_key() -> None:
    """vLLM's `/metrics` asks for no method: they were shown for OPTIONS with one of a question's headers."""
    metrics = Starlette(
        routes=[Mount("/metrics", make_asgi_app(CollectorRegistry()))],
        middleware=[Middleware(CORSMiddleware, allow_origins=["*"]), Middleware(KeyGate, keyring=GUARDED)],
    )
    with TestClient(metrics) as client:
        question = {"access-control-request-method": "GET"}
        assert client.options("/metrics/", headers=question).status_code == 401
        answer = client.options("/metrics/", headers={**question, "origin": "https://page.example"})
        assert (answer.status_code, answer.text) == (200, "OK")
        assert client.options("/metrics/", headers=bearer(USER)).headers["content-type"].startswith("text/plain")


def test_websockets_are_guarded_too(tmp_path: Any) -> None:
    async def connect(headers: list[tuple[bytes, bytes]], keys: Keyring = GUARDED) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        gate = KeyGate(Inner(), keyring=keys)
        await gate({"type": "websocket", "path": "/v1/realtime", "headers": headers}, receive, send)
        return sent

    assert asyncio.run(connect([])) == [{"type": "websocket.close", "code": 1008, "reason": "invalid_api_key"}]
    shown = [(b"x-api-key", USER.encode())]
    assert asyncio.run(connect(shown))[0]["type"] == "http.response.start"
    # What is asked for there no one looks at.
    assert asyncio.run(connect(shown, limited(tmp_path, preferences=["concise"])))[0]["reason"] == "route_not_allowed"


@pytest.mark.parametrize(
    ("host", "environment", "theirs", "words"),
    [
        ("0.0.0.0", {}, [], "other machines can reach 0.0.0.0, and no key is set: .*--keys-file.* or listen on 127"),
        ("::", {}, [], "other machines can reach ::"),
        ("127.0.0.1", {}, [], None),
        ("localhost", {}, [], None),
        ("::1", {}, [], None),
        ("0.0.0.0", {"MEET_USER_KEYS": USER}, [], None),
        ("0.0.0.0", {}, ["vllms"], None),
        ("127.0.0.1", {"MEET_USER_KEYS": USER}, ["vllms"], "keys are set twice"),
    ],
)
def test_no_key_means_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    host: str,
    environment: dict[str, str],
    theirs: list[str],
    words: str | None,
) -> None:
    from argparse import Namespace

    for name in ("MEET_USER_KEYS", "MEET_ADMIN_KEYS", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings, args = Settings(bundle=tmp_path, host=host), Namespace(api_key=theirs or None)
    if words is None:
        assert composition.keys_of(settings, args).is_empty == (not environment and not theirs)
        return
    with pytest.raises(ServerError, match=words):
        composition.keys_of(settings, args)
