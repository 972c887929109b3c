"""`POST`, `PATCH` and `DELETE` under `/v1/preferences`, for holders of an admin key (`keys` sees to that).

    POST   /v1/preferences          an archive: add the preference that it is of
    PATCH  /v1/preferences/{name}   an archive: give it another control; JSON: change `PreferenceChange`'s fields
    DELETE /v1/preferences/{name}   remove it

An answer is sent once the change is on disk and in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from meet_server.errors import EngineDied, RequestError, ServerError
from meet_server.http.body import Disconnected, read_body
from meet_server.http.errors import error_response
from meet_server.http.preference_routes import PreferenceCard
from meet_server.registry.admission import ControlRefused
from meet_server.registry.changing import Registry
from meet_server.registry.record import Files, unpack

ARCHIVE = "application/zip"
_MAX_JSON_BYTES = 64 << 10
_LOGGER = logging.getLogger(__name__)

Shown = Callable[[str], PreferenceCard | None]
"""The card of a preference as `GET` shows it, or None where it is disabled."""


class PreferenceChange(BaseModel):
    """What JSON may change. A field that is not given stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str | None = Field(default=None, max_length=2000)
    aliases: tuple[str, ...] | None = Field(default=None, max_length=16)
    enabled: bool | None = None
    revision: int | None = Field(default=None, ge=0, description="the revision to serve again; 0 is the bundle's own")


_UPLOAD = {ARCHIVE: {"schema": {"type": "string", "format": "binary"}}}
_CHANGE = {"application/json": {"schema": PreferenceChange.model_json_schema()}}


def change_router(registry: Registry, shown: Shown, max_upload_bytes: int) -> APIRouter:
    """The three routes."""
    router = APIRouter(tags=["preferences"])

    async def answered(change: Awaitable[str], status: int) -> JSONResponse:
        try:
            name = await change
        except ServerError as error:
            return error_response(_told(error))
        except Disconnected:
            return JSONResponse({}, status_code=499)  # nobody reads it
        revision, generation = registry.entry(name)
        card = shown(name)
        said = card.model_dump(mode="json") if card else {"id": name, "object": "preference", "enabled": False}
        return JSONResponse({**said, "revision": revision, "generation": generation}, status_code=status)

    @router.post("/v1/preferences", response_model=None, status_code=201, openapi_extra=_takes(_UPLOAD))
    async def add_preference(request: Request) -> JSONResponse:
        """Add the preference that the archive in the body is of (`application/zip`)."""

        async def add() -> str:
            return await registry.add(await _uploaded(request, max_upload_bytes))

        return await answered(add(), 201)

    @router.patch("/v1/preferences/{name}", response_model=None, openapi_extra=_takes(_UPLOAD | _CHANGE))
    async def change_preference(name: str, request: Request) -> JSONResponse:
        """Give it another control (an archive, `application/zip`), or change `PreferenceChange`'s fields (JSON)."""

        async def change() -> str:
            if _content_type(request) == ARCHIVE:
                await registry.update(name, await _uploaded(request, max_upload_bytes))
            else:
                await registry.change(name, await _fields(request))
            return name

        return await answered(change(), 200)

    @router.delete("/v1/preferences/{name}", response_model=None)
    async def remove_preference(name: str) -> JSONResponse:
        """Remove it."""
        try:
            await registry.remove(name)
        except ServerError as error:
            return error_response(_told(error))
        return JSONResponse({"id": name, "object": "preference", "deleted": True})

    return router


def _told(error: ServerError) -> RequestError:
    """What the admin is told."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ControlRefused):
        return RequestError("control_refused", str(error))
    if isinstance(error, EngineDied):
        return RequestError("engine_dead", str(error))
    _LOGGER.error("a change of preferences failed: %s", error)
    return RequestError("registry_failed", str(error))


def _takes(content: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI says of a body that the route reads by itself."""
    return {"requestBody": {"required": True, "content": content}}


async def _uploaded(request: Request, max_bytes: int) -> Files:
    if _content_type(request) != ARCHIVE:
        raise RequestError("unsupported_media_type", f"an archive must be sent as {ARCHIVE}")
    data = await read_body(request.scope, request.receive, max_bytes)
    return await asyncio.to_thread(unpack, data, max_bytes)


async def _fields(request: Request) -> dict[str, Any]:
    if _content_type(request) != "application/json":
        raise RequestError("unsupported_media_type", f"application/json changes fields, and {ARCHIVE} the control")
    try:
        change = PreferenceChange.model_validate_json(await read_body(request.scope, request.receive, _MAX_JSON_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise RequestError("invalid_body", f"{where or 'body'}: {first['msg'][:300]}", param=where or None) from None
    fields = {name: value for name in change.model_fields_set if (value := getattr(change, name)) is not None}
    if not fields:
        raise RequestError("invalid_body", f"nothing to change; there are {', '.join(PreferenceChange.model_fields)}")
    return fields


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
