"""Every code that the server raises has a status, and the body is OpenAI's."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import meet_server
from meet_server.errors import EngineDied, RequestError, ServerError
from meet_server.http.errors import STATUSES, error_response
from meet_server.http.health import health_router
from meet_server.http.preference_changes import change_router
from meet_server.lifecycle import Lifecycle
from meet_server.registry.admission import ControlRefused

RAISED = re.compile(r'RequestError\(\s*"([a-z_]+)"')


def test_every_code_raised_has_a_status() -> None:
    source = "\n".join(p.read_text() for p in Path(meet_server.__path__[0]).rglob("*.py"))
    assert set(RAISED.findall(source)) == set(STATUSES)


@pytest.mark.parametrize("code", sorted(STATUSES))
def test_body(code: str) -> None:
    response = error_response(RequestError(code, "message", param="preference"))
    assert response.status_code == STATUSES[code]
    error = json.loads(bytes(response.body))["error"]
    assert error == {
        "message": "message",
        "type": "invalid_request_error" if STATUSES[code] < 500 else "server_error",
        "param": "preference",
        "code": code,
    }


def test_a_dead_engine_says_nothing_of_what_comes_next() -> None:
    """The process exits, or starts another engine, or Ray replaces it: the route does not know which."""
    app = FastAPI()
    app.include_router(health_router(lambda: True, Lifecycle()))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.get("/health/ready")

    reply = asyncio.run(ask())
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_dead")
    assert "exit" not in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("label_taken", "no"), 409, "label_taken"),
        (ControlRefused("concise", "no"), 400, "control_refused"),
        (EngineDied("no"), 503, "engine_dead"),
        (ServerError("no"), 500, "registry_failed"),
    ],
)
def test_what_keeps_a_preference_from_being_changed_has_a_code(error: ServerError, status: int, code: str) -> None:
    class Registry:
        async def change(self, name: str, fields: object) -> None:
            raise error

        async def remove(self, name: str) -> None:
            raise error

    registry: Any = Registry()
    app = FastAPI()
    app.include_router(change_router(registry, lambda name: None, 1 << 20))

    async def ask(method: str, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.request(method, "/v1/preferences/concise", **options)

    for reply in (asyncio.run(ask("DELETE")), asyncio.run(ask("PATCH", json={"enabled": False}))):
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert "no" in reply.json()["error"]["message"]
