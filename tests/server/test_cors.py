"""What a page of another origin can read of a reply."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.testclient import TestClient

from meet_server.http.cors import expose_headers


def test_pages_may_read_what_was_applied() -> None:
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["https://page.example"])

    @app.get("/", response_model=None)
    def reply() -> Response:
        return Response(headers={"X-Meet-Preference": "concise=1"})

    expose_headers(app)
    client = TestClient(app)
    headers = client.get("/", headers={"origin": "https://page.example"}).headers
    assert headers["access-control-expose-headers"] == "X-Meet-Preference, X-Request-Id, Retry-After"
    assert headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-origin" not in client.get("/", headers={"origin": "https://another.example"}).headers
