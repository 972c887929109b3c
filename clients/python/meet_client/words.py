"""The words that go over the wire, as types, and the request made of them. Pure: sends nothing."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias


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


@dataclass(frozen=True, slots=True)
class Preference:
    """A preference that the server knows. `raw` is all that the server said of it."""

    name: str
    description: str
    aliases: tuple[str, ...]
    axis: str
    opposite: str | None
    version: str
    raw: Mapping[str, Any]


def preferences_from(listing: Any) -> list[Preference]:
    """Reads what `GET /v1/preferences` answers. Raises ValueError where it is no list of preferences."""
    if not isinstance(listing, Mapping) or not isinstance(listing.get("data"), list):
        raise ValueError("the server's list of preferences has no `data`: is it a MEET server?")
    return [
        Preference(
            name=str(raw["id"]),
            description=str(raw.get("description") or ""),
            aliases=tuple(raw.get("aliases") or ()),
            axis=str(raw.get("axis") or ""),
            opposite=raw.get("opposite"),
            version=str(raw.get("version") or ""),
            raw=raw,
        )
        for raw in listing["data"]
    ]


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
