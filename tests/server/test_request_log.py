"""What is logged of requests that were refused before anything looked at them: one line each, and never the key."""

from __future__ import annotations

import asyncio
import json
import logging
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import Server
from test_keys import ADMIN, CHAT, GUARDED, OTHER, USER, Inner, bearer, keyring, limited

from meet_bundle import open_bundle
from meet_server.access.keyring import Keyring
from meet_server.app import compose
from meet_server.engine.start import bundle_arguments, vllm_app
from meet_server.http.keys import KeyGate
from meet_server.http.request_log import RequestLog
from meet_server.settings import Settings

WRONG = "sk-guessed-9876543210"
EVIL = {"origin": "https://evil.example"}


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "meet.requests"]


def ask(app: Any, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("keys", "method", "path", "headers", "status", "name"),
    [
        (GUARDED, "POST", CHAT, {}, 401, None),
        (GUARDED, "POST", CHAT, bearer(WRONG), 401, None),
        (GUARDED, "GET", "/v1/models", {"x-api-key": WRONG}, 401, None),
        (GUARDED, "DELETE", "/v1/preferences/concise", bearer(USER), 403, "user-1"),
        (keyring(), "DELETE", "/v1/preferences/concise", {}, 403, None),
        (keyring(), "POST", CHAT, EVIL, 403, None),
        (GUARDED, "POST", CHAT, bearer(OTHER), 200, "user-2"),
    ],
)
@pytest.mark.parametrize("given", ["asked-7", None])
def test_a_refusal_at_the_gate_is_one_line(
    caplog: pytest.LogCaptureFixture,
    keys: Keyring,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    name: str | None,
    given: str | None,
) -> None:
    sent = {**headers, **({"x-request-id": given} if given else {})}
    with caplog.at_level(logging.INFO, "meet.requests"):
        reply = ask(RequestLog(KeyGate(Inner(), keyring=keys)), method, path, sent)
    (line,) = lines(caplog)
    assert reply.status_code == status
    assert (line["status"], line["key"], line["method"], line["path"]) == (status, name, method, path)
    assert line["complete"] is True
    assert line["request_id"] == reply.headers["x-request-id"] == (given or line["request_id"])
    assert len(line["request_id"]) > 5
    for key in (WRONG, USER, OTHER):
        assert key not in caplog.text


def test_a_key_over_its_limit(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async def run() -> int:
        inner = Inner()
        inner.free.clear()
        app = RequestLog(KeyGate(inner, keyring=limited(tmp_path, max_concurrent=1)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            first = asyncio.create_task(client.post(CHAT, headers=bearer(USER)))
            await inner.until(1)
            refused = await client.post(CHAT, headers={**bearer(USER), "x-request-id": "one-too-many"})
            inner.free.set()
            await first
            return refused.status_code

    with caplog.at_level(logging.INFO, "meet.requests"):
        assert asyncio.run(run()) == 429
    refused, answered = lines(caplog)
    assert (refused["request_id"], refused["status"], refused["key"]) == ("one-too-many", 429, "widget")
    assert (answered["status"], answered["key"]) == (200, "widget")
    assert USER not in caplog.text


def test_a_websocket_that_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def connect() -> None:
        async def send(message: Any) -> None:
            pass

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        scope = {"type": "websocket", "path": "/v1/realtime", "headers": [(b"x-api-key", WRONG.encode())]}
        await RequestLog(KeyGate(Inner(), keyring=GUARDED))(scope, receive, send)

    with caplog.at_level(logging.INFO, "meet.requests"):
        asyncio.run(connect())
    (line,) = lines(caplog)
    assert (line["status"], line["path"], line["key"]) == (403, "/v1/realtime", None)
    assert WRONG not in caplog.text


def test_the_whole_app_logs_what_it_refuses(server: Server, bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Refusals of our gate, and of vLLM's own where the keys are its."""

    def composed(keys: Keyring, **changed: Any) -> Any:
        args = Namespace(**{**vars(bundle_arguments(open_bundle(bundle), ())), **changed})

        async def second() -> Any:
            app = await vllm_app(server.engine, args)
            app.state.openai_serving_models = server.app.state.served.app.state.openai_serving_models
            compose(replace(server.app.state.served, app=app), args, keys, Settings(bundle=bundle, log_requests=True))
            return app

        return server.call(second())

    ours = composed(Keyring(None, {"MEET_USER_KEYS": USER, "MEET_ADMIN_KEYS": ADMIN}))
    theirs = composed(Keyring(None, {}, [USER]), api_key=[USER])
    with caplog.at_level(logging.INFO, "meet.requests"):
        for app in (ours, theirs):
            statuses = [ask(app, "GET", "/v1/preferences", bearer(key)).status_code for key in (WRONG, USER)]
            assert statuses == [401, 200]
    logged = lines(caplog)
    assert [(line["status"], line["path"]) for line in logged] == [
        (401, "/v1/preferences"),
        (200, "/v1/preferences"),
    ] * 2
    assert [line["key"] is None for line in logged] == [True, False] * 2
    assert WRONG not in caplog.text
    assert USER not in caplog.text
