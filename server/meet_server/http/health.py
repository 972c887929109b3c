"""`GET /health/live`: the process answers. `GET /health/ready`: the engine behind it does too, and it is not about to
stop."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from starlette.responses import JSONResponse

from meet_server.errors import RequestError
from meet_server.http.errors import error_response
from meet_server.lifecycle import Lifecycle


def health_router(engine_is_dead: Callable[[], bool], lifecycle: Lifecycle) -> APIRouter:
    """The two routes. The server listens only once every control is proved, so ready means proved too."""
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @router.get("/ready", response_model=dict[str, str])
    async def ready() -> dict[str, str] | JSONResponse:
        """The engine answers too, every control is proved, and the server is not about to stop."""
        if engine_is_dead():
            return error_response(RequestError("engine_dead", "the engine has died: no request is answered"))
        if lifecycle.draining:
            return error_response(RequestError("draining", "the server has been told to stop"))
        return {"status": "ready"}

    return router
