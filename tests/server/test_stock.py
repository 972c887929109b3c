"""The endpoint plugin for stock vLLM: what its wrapper makes of a request."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request

from meet_server.stock import PreferenceToModel


@pytest.fixture
def wrapped() -> TestClient:
    """The wrapper round an app that says what it got."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> dict[str, object]:
        return {"body": (await request.body()).decode()}

    return TestClient(PreferenceToModel(app, labels=lambda: ("concise", "detailed")))


@pytest.mark.parametrize(
    ("body", "headers", "sent", "applied"),
    [
        ('{"model": "m", "preference": "concise"}', {}, '{"model": "concise"}', "concise"),
        ('{"model": "m"}', {"X-Meet-Preference": "detailed=1"}, '{"model": "detailed"}', "detailed"),
        ('{"model": "m", "preference": null}', {}, '{"model": "m"}', "none"),
        ('{"model":  "m"}', {}, '{"model":  "m"}', None),
        ("no json", {}, "no json", None),
    ],
)
def test_a_label_becomes_the_model(
    wrapped: TestClient, body: str, headers: dict[str, str], sent: str, applied: str | None
) -> None:
    reply = wrapped.post("/v1/chat/completions", content=body, headers=headers)
    assert reply.json()["body"] == sent
    assert reply.headers.get("x-meet-preference") == applied


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        ({"preference": "terse"}, {}, "unknown_preference"),
        ({"preference": {"concise": 0.5}}, {}, "unsupported_mix"),
        ({"preference": ["concise", "detailed"]}, {}, "unsupported_mix"),
        ({"preference": 3}, {}, "invalid_preference"),
        ({"preference": "concise"}, {"X-Meet-Preference": "detailed"}, "conflicting_preferences"),
    ],
)
def test_what_it_cannot_do_it_refuses(
    wrapped: TestClient, body: dict[str, object], headers: dict[str, str], code: str
) -> None:
    reply = wrapped.post("/v1/chat/completions", json=body, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)
