"""The whole composition: a bundle, an engine, its controls, vLLM's own app, and our wrapper inside it."""

from __future__ import annotations

import asyncio
import logging
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from meet_bundle import Bundle, LoraControls, Manifest, open_bundle
from meet_server.access.fair_queue import FairQueue
from meet_server.access.keyring import ADMIN_KEYS, USER_KEYS, Keyring
from meet_server.engine import lora_settings, start
from meet_server.engine.controlled_client import ControlledEngine, list_models, model_cards
from meet_server.engine.proof import prove
from meet_server.engine.soft_prompts import SoftPromptEngine
from meet_server.errors import ServerError
from meet_server.http.bounds import RequestBounds
from meet_server.http.cors import expose_headers
from meet_server.http.health import health_router
from meet_server.http.keys import KeyGate
from meet_server.http.model_routes import model_router
from meet_server.http.page import page_router
from meet_server.http.preference_changes import change_router
from meet_server.http.preference_field import PreferenceField
from meet_server.http.preference_routes import preference_router, shown
from meet_server.http.request_log import RequestLog
from meet_server.http.turns import Turns
from meet_server.lifecycle import Lifecycle
from meet_server.metrics import Metrics
from meet_server.registry.admission import check_lora, model_shapes
from meet_server.registry.catalogue import Catalogue
from meet_server.registry.changing import Registry
from meet_server.registry.live import LiveControls
from meet_server.registry.loading import EngineDoor
from meet_server.registry.soft_prompt_admission import check_soft_prompts
from meet_server.registry.soft_prompts import LiveSoftPrompts
from meet_server.registry.store import Store, beside
from meet_server.run import is_loopback
from meet_server.settings import Settings

_LOGGER = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """The MEET server for one bundle. Its lifespan starts the engine, and sets what `run` reads: `state.engine`,
    vLLM's engine client, `state.example`, the fields of our own in an example request, and `state.needs_key`.

    Entering the lifespan raises MeetError, on one line, for a bundle or a control that cannot be served.
    """

    @asynccontextmanager
    async def lifespan(outer: FastAPI) -> AsyncIterator[None]:
        start.prepare_environment()
        bundle = open_bundle(settings.bundle)
        admit(bundle)
        args = start.bundle_arguments(bundle, settings.engine_args)
        keyring = keys_of(settings, args)
        first_id = bundle.manifest.first_virtual_id
        with start.running_engine(args, worker_start=settings.worker_start, first_banned_id=first_id) as raw:
            async with serving(bundle, raw, args, keyring, settings, outer.state.lifecycle) as served:
                outer.state.served, outer.state.engine = served, served.engine
                outer.state.example = {"preference": served.catalogue.manifest.preferences[0].name}
                outer.state.needs_key = not keyring.is_empty
                outer.mount("/", served.app)
                yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.state.lifecycle = Lifecycle()
    return app


@dataclass(frozen=True, slots=True)
class Served:
    """The parts of one server."""

    app: FastAPI
    engine: ControlledEngine
    live: LiveControls
    catalogue: Catalogue
    registry: Registry
    queue: FairQueue
    metrics: Metrics
    lifecycle: Lifecycle


@asynccontextmanager
async def serving(
    bundle: Bundle, raw: Any, args: Namespace, keyring: Keyring, settings: Settings, lifecycle: Lifecycle
) -> AsyncIterator[Served]:
    """Everything on a running engine: controls loaded and proved, the app ready, other processes' changes followed."""
    engine, live = controlled(bundle.manifest, raw, args)
    catalogue = Catalogue(bundle.manifest)
    app = await start.vllm_app(engine, args)
    queue = FairQueue(settings.load.max_running or start.max_running(raw), settings.load.max_waiting)
    metrics = Metrics(partial(gauges, engine, live, queue))
    registry = registry_of(bundle, catalogue, live, engine, app, args, settings, metrics)
    await registry.start()
    engine.observe = metrics.generated
    served = Served(app, engine, live, catalogue, registry, queue, metrics, lifecycle)
    compose(served, args, keyring, settings)
    async with app.router.lifespan_context(app):  # a mounted app's own does not run
        background = [asyncio.create_task(registry.follow()), asyncio.create_task(watch(engine, settings))]
        unregister = metrics.register()
        try:
            yield served
        finally:
            unregister()
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await registry.close()


async def watch(engine: ControlledEngine, settings: Settings) -> None:
    """Ends an engine that does not answer, so that requests under way get an error and `run` sees that it is dead."""
    while not engine.is_dead:
        await asyncio.sleep(min(10, settings.engine_timeout_s / 2))
        try:
            if await engine.answers(settings.engine_timeout_s) or engine.is_dead:
                continue
            _LOGGER.error("the engine has not answered for %g s, and is ended", settings.engine_timeout_s)
            engine.kill()
            return
        except Exception:  # whatever it is, an engine that hangs later is still to be found out
            _LOGGER.exception("the engine could not be asked whether it hangs")


def gauges(engine: ControlledEngine, live: LiveControls, queue: FairQueue) -> Iterator[tuple[str, str, float]]:
    """What the metrics look up."""
    mixes = engine.adapters.mixes
    yield "running_replies", "Replies that the engine works on.", queue.num_running
    yield "waiting_requests", "Requests that wait for their turn.", queue.num_waiting
    yield "resident_controls", "Controls that requests may ask for.", len(list(live))
    yield "resident_mixes", "Mixes that the engine keeps.", len(mixes)
    yield "mix_requests_total", "Requests of the engine for a mix.", mixes.num_asked
    yield "mix_loads_total", "Mixes that had to be made for one.", mixes.num_loaded


def compose(served: Served, args: Namespace, keyring: Keyring, settings: Settings) -> None:
    """Puts our routes into vLLM's own app, and our gate and our wrapper in front of them all."""
    app, engine, live, catalogue = served.app, served.engine, served.live, served.catalogue
    if isinstance(engine, SoftPromptEngine):
        engine.follow_beams(app.state)
    app.include_router(model_router(lambda: model_cards(app.state.openai_serving_models)))
    app.include_router(preference_router(catalogue, live))
    app.include_router(change_router(served.registry, partial(shown, catalogue, live), settings.max_upload_bytes))
    app.include_router(health_router(lambda: engine.is_dead, served.lifecycle))
    app.state.refused = served.metrics.refused
    app.include_router(page_router())
    expose_headers(app)
    if settings.log_requests:
        app.user_middleware.insert(0, Middleware(RequestLog))  # outermost: what vLLM's own refuses has a line too
    wrap(
        app,
        Middleware(KeyGate, keyring=keyring, origins=tuple(args.allowed_origins), host=settings.host),
        *traced(args),
        Middleware(RequestBounds, limits=settings.limits),
        Middleware(
            PreferenceField,
            catalogue=catalogue,
            live=live,
            applying=engine.applying,
            together=engine.together,
            names=args.served_model_name,
            turns=Turns(served.queue, settings.load),
        ),
    )


def traced(args: Namespace) -> Iterator[Middleware]:
    """Spans of ours, where vLLM was told to make its own."""
    if args.otlp_traces_endpoint is not None:
        from meet_server.http.request_span import RequestSpan

        yield Middleware(RequestSpan)


def registry_of(
    bundle: Bundle,
    catalogue: Catalogue,
    live: LiveControls,
    engine: ControlledEngine,
    app: FastAPI,
    args: Namespace,
    settings: Settings,
    metrics: Metrics,
) -> Registry:
    """What changes preferences on this engine. Nothing is loaded yet."""
    room = args.max_cpu_loras  # for controls and mixes together, where the engine has adapters at all

    def published() -> None:
        list_models(app.state.openai_serving_models, args.served_model_name, iter(live))
        metrics.keep_only(control.name for control in live)
        if room is not None:
            engine.adapters.mixes.limit = max(1, room - len(list(live)))

    door = EngineDoor(
        load=engine.load,
        unload=engine.unload,
        prove=partial(prove, engine),
        published=published,
        max_controls=None if room is None else room - 1,
    )
    return Registry(bundle, Store(settings.registry or beside(bundle.path)), catalogue, live, door)


def keys_of(settings: Settings, args: Namespace) -> Keyring:
    """The keys that are accepted. Raises ServerError where none is set and other machines could reach the server."""
    theirs = start.api_keys(args)
    ours = Keyring(settings.keys_file, os.environ)
    if theirs and not ours.is_empty:
        raise ServerError("keys are set twice, here and by vLLM's --api-key or VLLM_API_KEY; set them here alone")
    keyring = Keyring(None, {}, theirs) if theirs else ours
    if keyring.is_empty and not is_loopback(settings.host):
        raise ServerError(
            f"other machines can reach {settings.host}, and no key is set: set one by --keys-file, {USER_KEYS} or "
            f"{ADMIN_KEYS}, or listen on 127.0.0.1"
        )
    return keyring


def controlled(manifest: Manifest, raw: Any, args: Namespace) -> tuple[ControlledEngine, LiveControls]:
    """The engine client that applies the bundle's kind of control, and the list of what it has loaded."""
    controls, first_id = manifest.controls, manifest.first_virtual_id
    if isinstance(controls, LoraControls) or first_id is None:
        engine = ControlledEngine(raw, lora_settings.max_mixes(args, len(manifest.preferences)))
        return engine, LiveControls(start.max_parts(manifest, args))
    return SoftPromptEngine(raw, controls.placement, first_id), LiveSoftPrompts(controls.num_virtual_tokens)


def admit(bundle: Bundle) -> None:
    """Raises ControlRefused for the first control of the bundle that must not reach the engine."""
    controls = bundle.manifest.controls
    if not isinstance(controls, LoraControls):
        check_soft_prompts(bundle)
    else:
        shapes = model_shapes(bundle.model_path)
        for preference in bundle.manifest.preferences:
            check_lora(preference.name, bundle.path / preference.path, controls, shapes)


def wrap(app: FastAPI, *middleware: Middleware) -> None:
    """Puts middleware innermost, the first outermost of them: behind vLLM's own authentication, CORS and request ids.

    `build_app` returns with its stack built, so `add_middleware` would raise; this builds it again, as
    vLLM's SageMaker bootstrap does.
    """
    app.user_middleware.extend(middleware)
    app.middleware_stack = app.build_middleware_stack()
