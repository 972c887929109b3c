"""`GET /v1/preferences` and `GET /v1/preferences/{name}`: what may be asked for, and what it is."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse

from meet_bundle import Calibration
from meet_server.errors import RequestError
from meet_server.http.errors import error_response
from meet_server.registry.catalogue import Catalogue
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


def shown(catalogue: Catalogue, live: LiveControls, label: str) -> PreferenceCard | None:
    """The preference that a name or an alias stands for, while its control is loaded."""
    preference = catalogue.resolver.preference(label)
    control = None if preference is None else live.get(preference.name)
    if preference is None or control is None:
        return None
    return PreferenceCard(
        id=preference.name,
        default=preference.name == catalogue.manifest.default,
        version=control.version,
        strength_range=live.strength_range(preference),
        **preference.model_dump(
            include={
                "description", "aliases", "axis", "opposite", "trained_examples", "calibration"
            }
        ),
    )  # fmt: skip


def preference_router(catalogue: Catalogue, live: LiveControls) -> APIRouter:
    """The two routes."""
    router = APIRouter(tags=["preferences"])

    @router.get("/v1/preferences")
    async def list_preferences() -> PreferenceList:
        """Every preference that may be asked for."""
        cards = (shown(catalogue, live, preference.name) for preference in catalogue.manifest.preferences)
        return PreferenceList(data=[card for card in cards if card is not None])

    @router.get("/v1/preferences/{name}", response_model=PreferenceCard)
    async def get_preference(name: str) -> PreferenceCard | JSONResponse:
        """One of them, by its name or an alias."""
        if (found := shown(catalogue, live, name)) is not None:
            return found
        known = ", ".join(p.name for p in catalogue.manifest.preferences)
        return error_response(
            RequestError("preference_not_found", f"{name!r} is no preference; known: {known}", param="name")
        )

    return router
