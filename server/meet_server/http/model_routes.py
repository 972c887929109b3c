"""`GET /v1/models/{model}`: one entry of vLLM's list, which it serves only whole. OpenAI's clients ask for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from meet_server.errors import RequestError
from meet_server.http.errors import error_response

Cards = Callable[[], Awaitable[list[dict[str, Any]]]]


def model_router(cards: Cards) -> APIRouter:
    """The route. `cards` gives the entries of `GET /v1/models`."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models/{model:path}", response_model=None)
    async def retrieve_model(model: str) -> dict[str, Any] | JSONResponse:
        """One entry of `GET /v1/models`."""
        for card in await cards():
            if card["id"] == model:
                return card
        return error_response(RequestError("model_not_found", f"the model {model!r} does not exist", param="model"))

    return router
