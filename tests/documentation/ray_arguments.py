"""What a page gives Ray Serve to build the application from. Needs no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meet_server.settings import RaySettings, Settings

BUILDER = "meet_server.ray_serve:build"


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """They are settings, or those of `ray` without that word, or the name of a file of settings."""
    given = {name: value for name, value in arguments.items() if name != "config"}
    for_ray = {name: given.pop(name) for name in set(given) & set(RaySettings.model_fields)}
    Settings.model_validate({**given, "ray": for_ray})
