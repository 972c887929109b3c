"""`GET /v1/preferences` and `GET /v1/preferences/{name}`: what may be asked for, and what it is."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse

from meet_bundle import Calibration, Manifest, Preference
from meet_server.errors import RequestError
from meet_server.http.errors import error_response
from meet_server.preferences.resolve import Resolver
from meet_server.registry.live import LiveControls


class PreferenceCard(BaseModel):
    """One preference as clients see it."""

    id: str
    object: Literal["preference"] = "preference"
    description: str
    aliases: tuple[str, ...]
    axis: str
    opposite: str | None
    default: bool
    strength_range: tuple[float, float]
    version: str
    trained_examples: int
    calibration: Calibration | None


class PreferenceList(BaseModel):
    """All of them, as OpenAI's lists are."""

    object: Literal["list"] = "list"
    data: list[PreferenceCard]


def preference_router(manifest: Manifest, resolver: Resolver, live: LiveControls) -> APIRouter:
    """The two routes. A preference is shown while its control is loaded."""
    router = APIRouter(tags=["preferences"])

    def card(preference: Preference) -> PreferenceCard | None:
        control = live.get(preference.name)
        if control is None:
            return None
        return PreferenceCard(
            id=preference.name,
            default=preference.name == manifest.default,
            version=control.version,
            strength_range=live.strength_range(preference),
            **preference.model_dump(
                include={
                    "description", "aliases", "axis", "opposite", "trained_examples", "calibration"
                }
            ),
        )  # fmt: skip

    @router.get("/v1/preferences")
    async def list_preferences() -> PreferenceList:
        return PreferenceList(data=[each for p in manifest.preferences if (each := card(p)) is not None])

    @router.get("/v1/preferences/{name}", response_model=PreferenceCard)
    async def get_preference(name: str) -> PreferenceCard | JSONResponse:
        preference = resolver.preference(name)
        found = None if preference is None else card(preference)
        if found is not None:
            return found
        known = ", ".join(p.name for p in manifest.preferences)
        return error_response(
            RequestError("preference_not_found", f"{name!r} is no preference; known: {known}", param="name")
        )

    return router
