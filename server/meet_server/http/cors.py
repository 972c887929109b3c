"""What pages of other origins may read of a reply. Who they are is vLLM's to say (`--allowed-origins`)."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from meet_server.http.request_log import REQUEST_ID
from meet_server.preferences.words import HEADER

EXPOSED = (HEADER, REQUEST_ID, "Retry-After")


def expose_headers(app: FastAPI) -> None:
    """Has vLLM's own CORS name the headers that say what was applied, and when to come again: browsers hide others.

    Holds from the next build of the app's middleware on.
    """
    for middleware in app.user_middleware:
        kind: object = middleware.cls
        if kind is CORSMiddleware:
            middleware.kwargs["expose_headers"] = EXPOSED
