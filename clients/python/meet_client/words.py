"""The words that go over the wire, as types, and the request made of them. Pure: sends nothing."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from openai import BaseModel
from pydantic import Field


class Default(enum.Enum):
    """The type of `DEFAULT`."""

    DEFAULT = "default"


DEFAULT: Literal[Default.DEFAULT] = Default.DEFAULT
"""Ask for no preference in particular: the server applies its default, if it has one."""

PreferenceValue: TypeAlias = str | Sequence[str] | Mapping[str, float] | None
"""A label, several labels, a strength for each label, or None for an uncontrolled reply."""
Asked: TypeAlias = PreferenceValue | Literal[Default.DEFAULT]
Messages: TypeAlias = str | Sequence[Mapping[str, Any]]
"""The user's message, or all messages of a chat as OpenAI's API has them."""

APPLIED_HEADER = "X-Meet-Preference"


class Calibration(BaseModel):
    """What was measured of a preference: the median of an attribute at each strength."""

    attribute: str
    strengths: list[float]
    medians: list[float]
    recommended: float


class Preference(BaseModel):
    """A preference that the server knows, as a type of the SDK's; `to_dict()` is all that the server said of it."""

    name: str = Field(alias="id")
    description: str = ""
    aliases: list[str] = Field(default_factory=list)
    axis: str = ""
    opposite: str | None = None
    default: bool = False
    strength_range: tuple[float, float] | None = None
    version: str = ""
    trained_examples: int | None = None
    calibration: Calibration | None = None


class PreferenceList(BaseModel):
    """What `GET /v1/preferences` answers."""

    data: list[Preference] | None = None


class ListedModel(BaseModel):
    """A model that the server lists."""

    id: str | None = None


class ModelList(BaseModel):
    """What `GET /v1/models` answers."""

    data: list[ListedModel] | None = None


def model_of(listing: ModelList) -> str:
    """The name of the first model in a list. Raises ValueError where there is none."""
    first = next(iter(listing.data or ()), None) if isinstance(listing, ModelList) else None
    if not isinstance(first, ListedModel) or not isinstance(first.id, str):
        raise ValueError("the server lists no models; is it an OpenAI-compatible server?")
    return first.id


def preferences_of(listing: PreferenceList) -> list[Preference]:
    """The preferences in a list. Raises ValueError where it is none."""
    if not isinstance(listing, PreferenceList) or listing.data is None:
        raise ValueError("the server's list of preferences has no `data`: is it a MEET server?")
    return listing.data


def request_of(messages: Messages, preference: Asked, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the SDK's `chat.completions.create`, without `model` and `stream`."""
    chat = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    request: dict[str, Any] = {**options, "messages": chat}
    if preference is not DEFAULT:
        request["extra_body"] = {**(options.get("extra_body") or {}), "preference": preference}
    return request


def request_of_each(
    messages: Messages, preferences: Sequence[PreferenceValue], options: Mapping[str, Any]
) -> dict[str, Any]:
    """As `request_of`, for one choice per preference."""
    request = request_of(messages, DEFAULT, options)
    request["extra_body"] = {**(options.get("extra_body") or {}), "preferences": list(preferences)}
    return request


def api_url(base_url: str) -> str:
    """The address of the API under a server's address; `/v1` at its end may be left out."""
    bare = base_url.rstrip("/")
    return bare if bare.endswith("/v1") else f"{bare}/v1"


def path_of(name: str) -> str:
    """Where a preference stands under the API."""
    return f"/preferences/{quote(name, safe='')}"


def change_of(change: bytes | Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the SDK's `post` and `patch`: an archive as it is, fields as JSON."""
    if isinstance(change, bytes):
        return {"content": change, "options": {"headers": {"Content-Type": "application/zip"}}}
    return {"body": dict(change)}
