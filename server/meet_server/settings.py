"""What a server is started with: one frozen model per concern. The command line is made from these fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meet_server.errors import ServerError


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServingSettings(_Settings):
    """Where to listen and how to start the engine: common to the MEET server and the plain one."""

    host: str = Field(default="127.0.0.1", description="address to listen on; one that other machines reach needs keys")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    engine_args: tuple[str, ...] = Field(
        default=(), description="vLLM's own command-line arguments; they win over the server's defaults"
    )
    worker_start: Literal["spawn", "fork"] = Field(
        default="spawn",
        description="how the engine starts its processes: fork is quicker, and sound only with OMP_NUM_THREADS=1",
    )
    drain_delay_s: float = Field(
        default=0, ge=0, description="seconds between SIGTERM, when readiness ends, and the end of new connections"
    )
    engine_failure: Literal["exit", "restart"] = Field(
        default="exit", description="what happens once the engine has died: the process exits with status 2, or starts "
        "a new engine, at most 3 times in 10 minutes"
    )  # fmt: skip
    shutdown_grace_s: int = Field(
        default=10, ge=0, description="seconds that requests in flight are given to end when the server stops"
    )


class RequestLimits(_Settings):
    """What one request may bring."""

    max_body_bytes: int = Field(default=32 << 20, ge=1024, description="largest body of a request, in bytes")
    max_nesting: int = Field(
        default=100, ge=4, le=500, description="arrays and objects in one another, in a request's JSON"
    )
    max_headers: int = Field(default=100, ge=8, description="number of a request's headers")
    max_header_bytes: int = Field(default=64 << 10, ge=1024, description="names and values of all headers, in bytes")


class LoadSettings(_Settings):
    """How many requests the engine works on, and what becomes of the others."""

    max_running: int | None = Field(
        default=None, ge=1, description="replies that the engine works on at a time; as many as its --max-num-seqs "
        "by default"
    )  # fmt: skip
    max_replies: int = Field(
        default=2048, ge=1, description="replies that one request may ask for, by n, prompts and preferences together"
    )
    max_waiting: int = Field(
        default=256, ge=0, description="requests that wait for their turn; more get a 429 with Retry-After"
    )
    max_wait_s: float = Field(
        default=30, gt=0, description="seconds that a request waits at most; then it gets a 503 with Retry-After"
    )
    max_stall_s: float = Field(
        default=60, gt=0, description="seconds that a client may take nothing of its reply; then it is cut off"
    )
    deadline_s: float | None = Field(
        default=None, gt=0, description="seconds that a request may take in all, its wait included; any by default"
    )


class RaySettings(_Settings):
    """How many servers of the bundle Ray Serve runs, and what it keeps for each. Without Ray they say nothing."""

    replicas: int = Field(default=1, ge=1, description="engines that Ray Serve runs")
    fronts: int = Field(
        default=1, ge=1, description="processes that relay requests to replicas; each counts a key's requests by itself"
    )
    cpus: float = Field(
        default=1, ge=0, description="cores that Ray keeps for a replica; on CPUs also its number of threads"
    )
    gpus: float = Field(default=0, ge=0, description="GPUs that Ray keeps for a replica; without any it sees none")


class Settings(ServingSettings):
    """The MEET server."""

    bundle: Path = Field(description="folder of the bundle to serve")
    keys_file: Path | None = Field(
        default=None, description="file of keys (YAML or JSON), read anew when it changes; beside MEET_USER_KEYS "
        "and MEET_ADMIN_KEYS of the environment"
    )  # fmt: skip
    registry: Path | None = Field(
        default=None, description="folder of what is added to the bundle while serving; beside it, as BUNDLE.registry, "
        "by default"
    )  # fmt: skip
    engine_timeout_s: float = Field(
        default=120, gt=0, description="seconds without an answer of the engine, between two of its steps, after which "
        "it counts as dead"
    )  # fmt: skip
    log_requests: bool = Field(
        default=False, description="whether each request is logged to standard error, as a line of JSON"
    )
    max_upload_bytes: int = Field(
        default=512 << 20,
        ge=1024,
        description="largest control that is taken in over HTTP, in bytes; it is held in memory",
    )
    limits: RequestLimits = RequestLimits()
    load: LoadSettings = LoadSettings()
    ray: RaySettings = RaySettings()


class PlainSettings(ServingSettings):
    """vLLM's own app on a model folder, with no bundle and no controls."""

    model: Path = Field(description="folder of the model to serve")
    name: str = Field(description="what clients call the model")


def read_settings(file: Path | None, overrides: Iterable[str], given: Mapping[str, Any]) -> Settings:
    """Settings from a YAML file, then `a.b=c` overrides, then what was `given` by name; later ones win.

    Raises ServerError naming the field and what is allowed.
    """
    data = {} if file is None else _read_yaml(file)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(path.split(".")):
            raise ServerError(f"setting {override!r}: it must be written a.b=c")
        *outer, last = path.split(".")
        place = data
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ServerError(f"setting {path}: {name} is no group of settings")
        place[last] = _value(path, text)
    try:
        return Settings.model_validate({**data, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        value = "" if first["type"] == "missing" else f" is {first['input']!r}"
        raise ServerError(f"setting {where}{value}: {first['msg']}") from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise ServerError(f"settings {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ServerError(f"settings {file} is not YAML: {' '.join(str(error).split())}") from None
    if data is not None and not isinstance(data, dict):
        raise ServerError(f"settings {file}: a mapping of settings is needed")
    return data or {}


def _value(path: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ServerError(f"setting {path} is {text!r}, which is not YAML") from None
