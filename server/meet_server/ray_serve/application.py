"""From settings to a Ray Serve application, and one way to run it: `meet serve --ray`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from meet_server.engine.start import ENGINE_EXIT_S
from meet_server.errors import ServerError
from meet_server.ray_serve.front import Front
from meet_server.ray_serve.replica import Replica
from meet_server.ray_serve.router import PreferenceRouter
from meet_server.run import Announce, to_stdout
from meet_server.settings import RaySettings, Settings, read_settings

NAME = "meet"
# The replicas' own queues say when there is no room (429, 503); Ray's would have requests wait without an end.
_MAX_ONGOING = 10_000
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 2, 30
_MAX_START_TRIES = 3


def settings_of(args: Mapping[str, Any]) -> Settings:
    """Settings from the arguments of a Ray Serve application, which are words on a command line, or YAML in a file."""
    given = dict(args)
    config = given.pop("config", None)
    overrides, values = [], {}
    for name, value in given.items():
        place = f"ray.{name}" if name in RaySettings.model_fields else name
        if isinstance(value, str) or place != name:
            overrides.append(f"{place}={value}")
        else:
            values[name] = value
    return read_settings(None if config is None else Path(config), overrides, values)


def application(settings: Settings) -> Application:
    """A front and its replicas. Paths are made absolute here, and must lead to the same files on every node."""
    settings = settings.model_copy(
        update={
            name: path.absolute()
            for name in ("bundle", "registry", "keys_file")
            if (path := getattr(settings, name)) is not None
        }
    )
    shape = settings.ray
    replicas = serve.deployment(Replica).options(
        num_replicas=shape.replicas,
        max_ongoing_requests=_MAX_ONGOING,
        ray_actor_options={"num_cpus": shape.cpus, "num_gpus": shape.gpus},
        request_router_config=RequestRouterConfig(request_router_class=PreferenceRouter),
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.shutdown_grace_s + 2 * ENGINE_EXIT_S,
        max_constructor_retry_count=_MAX_START_TRIES,
    )
    front = serve.deployment(Front).options(
        num_replicas=shape.fronts,
        max_ongoing_requests=_MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.shutdown_grace_s,
        max_constructor_retry_count=_MAX_START_TRIES,
    )
    # A replica is reached through Ray alone; the front knows where Ray listens.
    own = settings.model_copy(update={"host": "127.0.0.1"})
    return front.bind(replicas.bind(own), settings)


def serve_until_stopped(settings: Settings, *, announce: Announce = to_stdout) -> None:
    """Serves a bundle on the cluster that RAY_ADDRESS names, or one of its own, until SIGTERM or SIGINT.

    On SIGINT it raises KeyboardInterrupt, as `run.serve` does. Raises ServerError where it cannot start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers of each cluster
    try:
        ray.init(os.environ.get("RAY_ADDRESS"), log_to_driver=True, include_dashboard=False)
    except Exception as error:  # noqa: BLE001 - Ray raises it bare
        raise ServerError(f"Ray did not start, or is not there: {_reason(error)}") from None
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        try:
            serve.run(application(settings), name=NAME)
        except RuntimeError as error:
            raise ServerError(f"Ray Serve did not start the application: {_reason(error)}") from None
        announce(f"ready: http://{settings.host}:{settings.port}  {settings.ray.replicas} replicas")
        by = _wait_for_signal()
        serve.delete(NAME)
    finally:
        ray.shutdown()
    if by == signal.SIGINT:
        raise KeyboardInterrupt


def _wait_for_signal() -> int:
    """The signal that tells to stop. Later ones do not cut short what it began."""
    stopped, by = threading.Event(), []

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        by.append(number)
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    stopped.wait()
    return by[0]


def _reason(error: Exception) -> str:
    """The line of Ray's long message that says most: the last, which is the exception's own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
