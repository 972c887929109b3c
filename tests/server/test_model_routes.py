"""One model of the list, by its name."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from meet_server.http.model_routes import model_router

NAMES = ("tiny", "tiny:concise", "org/tiny", "org/tiny:concise")


async def cards() -> list[dict[str, Any]]:
    return [{"id": name, "object": "model"} for name in NAMES]


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(model_router(cards))
    return TestClient(app)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_by_its_name_as_clients_write_it(client: TestClient, name: str) -> None:
    """OpenAI's clients quote it; `--served-model-name` may have a slash in it, as names of the hub have."""
    for written in (name, quote(name, safe="")):
        assert client.get(f"/v1/models/{written}").json() == {"id": name, "object": "model"}


def test_a_model_that_is_not_there(client: TestClient) -> None:
    reply = client.get("/v1/models/org/other")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
